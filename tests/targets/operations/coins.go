package main

// tosser is who tosses.
type tosser interface{ toss(n int) int }

// coin is tossed as a value: by an interface the compiler's own method for pointers to it is called, which calls that one.
type coin struct{ sides int }

//go:noinline
func (c coin) toss(n int) int { return fall(n + c.sides) }

// bank tosses for the purses that have it.
type bank struct{ tossed int }

//go:noinline
func (b *bank) toss(n int) int {
	b.tossed++
	return fall(n)
}

// purse is a tosser by what is in it: the compiler's own method jumps there.
type purse struct {
	coins int
	*bank
}

//go:noinline
func fall(n int) int { return n % 2 }

// box holds one thing of a kind, and has been given so many.
type box[T any] struct {
	held  T
	given int
}

//go:noinline
func (b *box[T]) put(thing T) {
	b.held = thing
	b.given++
}

// larger is the larger of two.
//
//go:noinline
func larger[T int | string](one, other T) T {
	if one < other {
		return other
	}
	return one
}

// coins are tossed, and the largest number that came of it is kept.
type coins struct {
	tossers []tosser
	largest box[int]
}

func newCoins() *coins {
	return &coins{tossers: []tosser{coin{sides: 2}, &coin{sides: 3}, &purse{bank: &bank{}}}}
}

// run tosses each n times.
func (c *coins) run(n int) {
	for i := range n {
		for _, t := range c.tossers {
			c.largest.put(larger(c.largest.held, t.toss(i)))
		}
	}
}
