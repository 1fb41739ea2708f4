package main

import (
	"sync"
	"unsafe"

	"github.com/cloudwego/kitex/pkg/rpcinfo"
)

// A tab says what is done to the copy of an itab.
type tab string

const (
	// A copy, byte for byte; so is any that begins so, one for each of its names.
	honest tab = "copied"
	// It says that it is of another interface.
	wrongInterface tab = "wrong-interface"
	// It says that it is of another concrete type.
	wrongType tab = "wrong-type"
	// It says that it is of another type that Kitex uses as the same interface.
	wrongKnown tab = "wrong-known"
	// It says that its interface and its type lie where there is no memory.
	nowhere tab = "nowhere"
)

// itab is the head of Go's own (internal/abi/iface.go @ go1.26), and the five methods of RPCInfo and of EndpointInfo.
type itab struct {
	inter, concrete uintptr
	hash            uint64
	methods         [5]uintptr
}

// value is an interface value's two words.
type value struct {
	tab  *itab
	data unsafe.Pointer
}

type copyOf struct {
	original *itab
	as       tab
}

// copies keeps the itabs: Go's collector takes it that none ever needs to be freed.
var copies struct {
	sync.Mutex
	made map[copyOf]*itab
	// forgotten are still there, so that no other is made in their places.
	forgotten []*itab
}

// forgetCopies has the next copy of each itab be another.
func forgetCopies() {
	copies.Lock()
	defer copies.Unlock()
	for _, made := range copies.made {
		copies.forgotten = append(copies.forgotten, made)
	}
	copies.made = nil
}

// copied is the interface value with a copy of its itab.
func copied[T any](original T, as tab) T {
	words := (*value)(unsafe.Pointer(&original))
	words.tab = copyTab(words.tab, as)
	return original
}

func copyTab(original *itab, as tab) *itab {
	copies.Lock()
	defer copies.Unlock()
	key := copyOf{original, as}
	if made := copies.made[key]; made != nil {
		return made
	}
	made := *original
	switch as {
	case wrongInterface:
		made.inter = unrelatedTab().inter
	case wrongType:
		made.concrete = unrelatedTab().concrete
	case wrongKnown:
		made.concrete = siblingTab(original).concrete
	case nowhere:
		made.inter, made.concrete = unmapped, unmapped
	}
	if copies.made == nil {
		copies.made = map[copyOf]*itab{}
	}
	copies.made[key] = &made
	return &made
}

// unrelatedTab is of another interface and another type than all that are copied.
func unrelatedTab() *itab {
	stats := rpcinfo.NewRPCStats()
	return (*value)(unsafe.Pointer(&stats)).tab
}

// siblingTab is of the same interface and another type of Kitex's.
func siblingTab(tab *itab) *itab {
	whole, parts := server(usual), client(usual)
	callee, remote := called(usual), remote(usual)
	for _, known := range []unsafe.Pointer{
		unsafe.Pointer(&whole), unsafe.Pointer(&parts), unsafe.Pointer(&callee), unsafe.Pointer(&remote),
	} {
		if sibling := (*value)(known).tab; sibling.inter == tab.inter && sibling.concrete != tab.concrete {
			return sibling
		}
	}
	return unrelatedTab()
}
