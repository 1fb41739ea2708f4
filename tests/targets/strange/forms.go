package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

const (
	pageSize = 4096
	// An address that Go never uses and the kernel never gives.
	unmapped = 1 << 16
)

// set gives one of the strings a form: text, or one that no Go program makes without `unsafe`.
func (n *names) set(name, form string) error {
	text, err := formed(form)
	if err != nil {
		return err
	}
	switch name {
	case "caller":
		n.caller = text
	case "callee":
		n.callee = text
	case "method":
		n.method = text
	default:
		return fmt.Errorf("no name %q", name)
	}
	return nil
}

func formed(form string) (string, error) {
	kind, argument, _ := strings.Cut(form, ":")
	here := uintptr(unsafe.Pointer(unsafe.StringData(usual.method)))
	switch kind {
	case "text":
		return stringOf([]byte(argument)), nil
	case "length": // so many x
		n, err := strconv.Atoi(argument)
		return stringOf([]byte(strings.Repeat("x", n))), err
	case "invalid-utf8":
		return stringOf([]byte("\xff\xfeEcho\xc3")), nil
	case "cut-character": // the 64th byte is the first of three
		return stringOf([]byte(strings.Repeat("x", 63) + "€")), nil
	case "huge":
		return words{here, 1 << 40}.text(), nil
	case "largest":
		return words{here, math.MaxInt}.text(), nil
	case "negative":
		return words{here, -1}.text(), nil
	case "nil":
		return words{0, 4}.text(), nil
	case "unmapped": // at another place for each number
		n, err := strconv.Atoi(argument)
		return words{unmapped + uintptr(n), 4}.text(), err
	case "kernel":
		return words{0xffffffff81000000, 4}.text(), nil
	case "non-canonical":
		return words{0x8000_0000_0000, 4}.text(), nil
	case "held": // whoever reads it waits
		page, err := heldPage()
		return words{page, 4}.text(), err
	case "page-end": // so many bytes, the first half of them (64 at most) right before memory that can't be read
		n, err := strconv.Atoi(argument)
		if err != nil {
			return "", err
		}
		page, err := lastPage()
		return words{page + pageSize - uintptr(min(n/2, 64)), n}.text(), err
	case "page-last": // so many bytes, the last of them the last that can be read
		n, err := strconv.Atoi(argument)
		if err != nil {
			return "", err
		}
		page, err := lastPage()
		return words{page + pageSize - uintptr(n), n}.text(), err
	}
	return "", fmt.Errorf("no form %q", form)
}

// words are a string's.
type words struct {
	pointer uintptr
	length  int
}

func (w words) text() string { return *(*string)(unsafe.Pointer(&w)) }

// stringOf is a string with these bytes, not with a copy of them.
func stringOf(bytes []byte) string { return unsafe.String(unsafe.SliceData(bytes), len(bytes)) }

// lastPage is a page of y before one that can't be read.
func lastPage() (uintptr, error) {
	memory, err := syscall.Mmap(-1, 0, 2*pageSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return 0, err
	}
	for i := range pageSize {
		memory[i] = 'y'
	}
	return uintptr(unsafe.Pointer(&memory[0])), syscall.Mprotect(memory[pageSize:], syscall.PROT_NONE)
}
