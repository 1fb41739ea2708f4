package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// fork makes calls in a child that has a copy of all memory, this process's probes in it, and one thread.
//
// Go doesn't support that. It works as long as the child needs nothing of the runtime: it allocates nothing and
// waits for nothing.
func fork(n int) (map[string]any, error) {
	shared, err := syscall.Mmap(-1, 0, pageSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED|syscall.MAP_ANON)
	if err != nil {
		return nil, err
	}
	defer syscall.Munmap(shared)
	// Outside the account: this process has not made these calls.
	child := caller{account: &account{counts: (*[2]atomic.Uint64)(unsafe.Pointer(&shared[0]))}}
	called := server(usual)

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return nil, errno
	}
	if pid == 0 {
		for range n {
			child.call(called, nil)
		}
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(int(pid), &status, 0, nil); err != nil {
		return nil, err
	}
	if !status.Exited() {
		return nil, fmt.Errorf("the child ended by signal %d", status.Signal())
	}
	return map[string]any{"calls": child.account.ended(), "child": pid}, nil
}
