package main

import "sync"

// turns begin and end when they are told to, one after the other on the goroutine that obeys.
type turns struct {
	mu   sync.Mutex
	byID map[int]*turn
}

// turn is one of them.
type turn struct {
	owner              *turns
	begun, taken, over int
}

// named gives the turn of this number.
func (t *turns) named(id int) *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID[id] == nil {
		t.byID[id] = &turn{owner: t}
	}
	return t.byID[id]
}

// begin is where a turn starts.
//
//go:noinline
func (t *turn) begin(id int) {
	t.owner.mu.Lock()
	t.begun++
	t.owner.mu.Unlock()
}

// take is in the middle of it.
//
//go:noinline
func (t *turn) take(id int) {
	t.owner.mu.Lock()
	t.taken++
	t.owner.mu.Unlock()
}

// put is behind that.
//
//go:noinline
func (t *turn) put(id int) {
	t.owner.mu.Lock()
	t.taken--
	t.owner.mu.Unlock()
}

// end is where it ends.
//
//go:noinline
func (t *turn) end(id int) {
	t.owner.mu.Lock()
	t.over++
	t.owner.mu.Unlock()
}
