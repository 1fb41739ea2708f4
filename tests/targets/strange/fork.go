package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"
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
	for range forkTries {
		pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			return nil, errno
		}
		if pid == 0 {
			syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0)
			for range n {
				child.call(called, nil)
			}
			syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
		}
		ended, err := childEnds(int(pid))
		if err != nil {
			return nil, err
		}
		if ended {
			return map[string]any{"calls": child.account.ended(), "child": pid}, nil
		}
		child.account.counts[0].Store(0)
		child.account.counts[1].Store(0)
	}
	return nil, fmt.Errorf("none of %d children came to its end", forkTries)
}

const (
	forkTries    = 5
	forkPatience = 2 * time.Second
)

// childEnds waits for a child and says whether it came to its end by itself. One that was to be preempted when it was
// forked waits for other threads, which it doesn't have; it is ended.
func childEnds(pid int) (bool, error) {
	var status syscall.WaitStatus
	for begin := time.Now(); time.Since(begin) < forkPatience; time.Sleep(time.Millisecond) {
		got, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
		if err != nil {
			return false, err
		}
		if got == 0 {
			continue
		}
		if !status.Exited() {
			return false, fmt.Errorf("the child ended by signal %d", status.Signal())
		}
		return true, nil
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return false, err
	}
	_, err := syscall.Wait4(pid, &status, 0, nil)
	return false, err
}
