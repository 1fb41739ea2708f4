package main

import (
	"fmt"
	"reflect"
	"syscall"
	"unsafe"

	"github.com/cloudwego/kitex/pkg/rpcinfo"
)

// Of the kernel's interface (include/uapi/linux/userfaultfd.h).
const (
	sysUserfaultfd = 323
	uffdAPI        = 0xaa
	uffdioAPI      = 0xc018aa3f
	uffdioRegister = 0xc020aa00
	uffdMissing    = 1
)

// page is a page of memory of its own.
func page() ([]byte, error) {
	return syscall.Mmap(-1, 0, pageSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
}

// hold has whoever reads what is not there of this memory wait for as long as this process lives.
func hold(memory []byte) error {
	descriptor, _, errno := syscall.Syscall(sysUserfaultfd, syscall.O_CLOEXEC, 0, 0)
	if errno != 0 {
		return fmt.Errorf("userfaultfd: %w", errno)
	}
	api := [3]uint64{uffdAPI}
	if err := ioctl(descriptor, uffdioAPI, unsafe.Pointer(&api)); err != nil {
		return err
	}
	start := uint64(uintptr(unsafe.Pointer(&memory[0])))
	register := [4]uint64{start, uint64(len(memory)), uffdMissing}
	return ioctl(descriptor, uffdioRegister, unsafe.Pointer(&register))
}

func ioctl(descriptor, request uintptr, argument unsafe.Pointer) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, descriptor, request, uintptr(argument)); errno != 0 {
		return fmt.Errorf("ioctl %#x of a userfaultfd: %w", request, errno)
	}
	return nil
}

// heldPage is where a page lies that nobody ever gives.
func heldPage() (uintptr, error) {
	memory, err := page()
	if err != nil {
		return 0, err
	}
	return uintptr(unsafe.Pointer(&memory[0])), hold(memory)
}

// bury replaces the code where calls start by memory that nobody ever gives. A probe there is near the entry.
func bury() error {
	const (
		near  = 64
		flags = syscall.MAP_PRIVATE | syscall.MAP_ANON | syscall.MAP_FIXED
	)
	entry := reflect.ValueOf((*rpcinfo.TraceController).DoStart).Pointer()
	first := entry &^ (pageSize - 1)
	size := (entry + near - first + pageSize - 1) &^ (pageSize - 1)
	placed, _, errno := syscall.Syscall6(syscall.SYS_MMAP, first, size, syscall.PROT_READ, flags, ^uintptr(0), 0)
	if errno != 0 {
		return fmt.Errorf("mmap of the code: %w", errno)
	}
	return hold(unsafe.Slice((*byte)(pointer(placed)), size))
}

// vanish makes calls with a copy of their itab that is gone right after them. Whoever looks at it then waits.
func (c *caller) vanish(n int) error {
	memory, err := page()
	if err != nil {
		return err
	}
	ri := server(usual)
	words := (*value)(unsafe.Pointer(&ri))
	made := (*itab)(unsafe.Pointer(&memory[0]))
	*made = *words.tab
	words.tab = made
	if err := hold(memory); err != nil {
		return err
	}
	for range n {
		c.call(ri, nil)
	}
	return syscall.Madvise(memory, syscall.MADV_DONTNEED)
}
