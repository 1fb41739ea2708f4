package main

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// timed is one call, with its time.
type timed struct {
	BeginNS int64 `json:"begin_ns"`
	US      int64 `json:"us"`
}

// longest keeps the longest calls, up to a limit; none with the limit 0.
type longest struct {
	limit int
	// least is what a call must pass to be kept.
	least atomic.Int64
	mu    sync.Mutex
	calls []timed
}

func (l *longest) add(begin time.Time, us int64) {
	if l.limit == 0 || us <= l.least.Load() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, timed{begin.UnixNano(), us})
	if len(l.calls) < 2*l.limit {
		return
	}
	slices.SortFunc(l.calls, func(a, b timed) int { return int(b.US - a.US) })
	l.calls = l.calls[:l.limit]
	l.least.Store(l.calls[l.limit-1].US)
}
