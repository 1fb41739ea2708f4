package main

// marks are set with numbers of few bytes, which are cut from larger ones: the registers have more than such a number.
type marks struct {
	set int
}

// run sets n marks: of the kinds 0, 1 and 2 in turn, of which -1, 0 and 1 were found.
func (m *marks) run(n int) {
	for i := range n {
		of := i<<16 | i%3
		m.begin()
		m.end(uint8(of), i%3-1)
		m.kind(of)
	}
}

//go:noinline
func (m *marks) begin() { m.touch() }

//go:noinline
func (m *marks) end(kind uint8, found int) {
	m.touch()
	m.set += int(kind) + found
}

// kind returns the lowest byte of a number.
//
//go:noinline
func (m *marks) kind(of int) uint8 {
	m.touch()
	return uint8(of)
}

//go:noinline
func (m *marks) touch() { m.set++ }
