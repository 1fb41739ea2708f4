package main

import (
	"fmt"
	"reflect"
	"runtime"
	"runtime/debug"
	"syscall"
	"unsafe"

	"example.com/monitor/steer"
	"github.com/cloudwego/kitex/pkg/rpcinfo"
)

// unmap makes calls whose RPCInfo is gone when they finish, or when they start already. Kitex runs into that too, and recovers.
func (c *caller) unmap(n int, args []string) error {
	if len(args) != 2 || args[1] != "start" && args[1] != "finish" {
		return steer.ErrUsage
	}
	shape, err := shapeNamed(args[0])
	if err != nil {
		return err
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for range n {
		original := shape(usual)
		ri, memory, err := moved(original)
		if err != nil {
			return err
		}
		if args[1] == "finish" {
			c.start(ri)
		}
		if err := syscall.Munmap(memory); err != nil {
			return err
		}
		if args[1] == "start" {
			c.start(ri)
		}
		c.finish(ri, nil)
		runtime.KeepAlive(original)
	}
	return nil
}

// moved is the RPCInfo in memory of its own.
func moved(ri rpcinfo.RPCInfo) (rpcinfo.RPCInfo, []byte, error) {
	memory, err := syscall.Mmap(-1, 0, pageSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return nil, nil, err
	}
	words := (*value)(unsafe.Pointer(&ri))
	size := reflect.TypeOf(ri).Elem().Size()
	copy(memory, unsafe.Slice((*byte)(words.data), size))
	words.data = unsafe.Pointer(&memory[0])
	return ri, memory, nil
}

// equal instructions: one byte of the first differs in the second, and the processor does the same.
var equal = []struct {
	place    string
	old, new []byte
}{
	// cmp rsp, [r14+16], with a bit of the prefix that means nothing there.
	{"entry", []byte{0x49, 0x3b, 0x66, 0x10}, []byte{0x4b, 0x3b, 0x66, 0x10}},
	// lea r12, [rsp-n], with a factor for an index that isn't there.
	{"entry", []byte{0x4c, 0x8d, 0x64, 0x24}, []byte{0x4c, 0x8d, 0x64, 0x64}},
	// push rbp; mov rbp, rsp, whose operands can be encoded either way round.
	{"frame", []byte{0x55, 0x48, 0x89, 0xe5}, []byte{0x55, 0x48, 0x8b, 0xec}},
}

// patch changes this process's own code, as tools for hot fixes and for test doubles do.
func patch(args []string) (map[string]any, error) {
	if len(args) != 2 {
		return nil, steer.ErrUsage
	}
	var function any
	switch args[0] {
	case "start":
		function = (*rpcinfo.TraceController).DoStart
	case "finish":
		function = (*rpcinfo.TraceController).DoFinish
	default:
		return nil, steer.ErrUsage
	}
	entry := reflect.ValueOf(function).Pointer()
	reply := map[string]any{"function": runtime.FuncForPC(entry).Name(), "patched": args[1]}
	code := unsafe.Slice((*byte)(pointer(entry)), 48)
	for _, change := range equal {
		if change.place != args[1] {
			continue
		}
		for at := range len(code) - len(change.old) {
			if string(code[at:at+len(change.old)]) == string(change.old) {
				return reply, overwrite(code[at:], change.new)
			}
		}
	}
	return nil, fmt.Errorf("%x has nothing to change at its %s", code, args[1])
}

func overwrite(code, with []byte) error {
	address := uintptr(unsafe.Pointer(&code[0]))
	first := address &^ (pageSize - 1)
	pages := unsafe.Slice((*byte)(pointer(first)), (address+uintptr(len(with))-first+pageSize-1)&^(pageSize-1))
	if err := syscall.Mprotect(pages, syscall.PROT_READ|syscall.PROT_WRITE|syscall.PROT_EXEC); err != nil {
		return err
	}
	copy(code, with)
	return syscall.Mprotect(pages, syscall.PROT_READ|syscall.PROT_EXEC)
}

// pointer makes one of an address outside of Go's heap.
func pointer(address uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&address)) }
