package main

// place is what walks lead to.
type place interface{ walk(n int) }

// trail is where walks begin. What lies behind its pointers takes as many reads and bytes as a spec may ask for.
type trail struct {
	step *step
	path *path
	name string
}

// step is one of a chain with a number at its end: no path goes through one name twice.
type step struct {
	one, two, three, four, five, six *step
	number                           int32
}

// path is one of another chain, with names at its end.
type path struct {
	next *path
	side *name
	end  *names
}

type name struct{ name string }

// names have between them what is copied with them where there is room, but the last, which is too far.
type names struct {
	a string
	_ [40]byte
	b string
	_ [48]byte
	c string
	_ [56]byte
	d string
	_ [72]byte
	e string
}

func newTrail() *trail {
	end := &names{a: "first", b: "second", c: "third", d: "fourth", e: "fifth"}
	six := &step{six: &step{number: 7}}
	steps := &step{one: &step{two: &step{three: &step{four: &step{five: six}}}}}
	paths := &path{next: &path{side: &name{"side"}, end: end}}
	return &trail{step: steps, path: paths, name: "trail"}
}

// walk begins and ends n walks.
func (t *trail) walk(n int) {
	for range n {
		t.begin()
		t.end()
	}
}

//go:noinline
func (t *trail) begin() { t.name = "trail" }

//go:noinline
func (t *trail) end() { t.name = "trail" }
