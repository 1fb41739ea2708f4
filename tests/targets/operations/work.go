package main

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// work is done by one function, which calls itself.
type work struct {
	done, failed atomic.Int64
}

var errOdd = errors.New("an odd number")

// step goes down to 0, one step inside the other. Odd steps fail.
//
//go:noinline
func (w *work) step(n int) (int, error) {
	if n < 0 {
		w.done.Add(1)
		return 0, nil
	}
	inner, _ := w.step(n - 1)
	if n%2 == 1 {
		w.failed.Add(1)
		return inner, errOdd
	}
	w.done.Add(1)
	return inner + 1, nil
}

// rescue recovers what one inside of it is left by. Each takes a while before it goes on.
//
//go:noinline
func rescue(isInside bool, pause time.Duration) {
	defer func() {
		if !isInside {
			_ = recover()
		}
	}()
	time.Sleep(pause)
	if isInside {
		panic("inside")
	}
	rescue(true, pause)
}

// leap is inlined where it is called by its name, and entered where it is not.
func leap(w *work, n int) { _, _ = w.step(n) }

var leaps = leap

// run has n goroutines take steps, three inside each other and one to end them.
func (w *work) run(n int) {
	var ended sync.WaitGroup
	for i := range n {
		ended.Go(func() {
			if i%2 == 0 {
				leap(w, 2)
			} else {
				leaps(w, 2)
			}
		})
	}
	ended.Wait()
}
