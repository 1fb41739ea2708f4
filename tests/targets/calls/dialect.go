package main

import (
	"encoding/binary"
	"strings"
	"sync/atomic"
)

// What the standard library has had only since a later release of Go than the oldest that builds this program, 1.18.

// counter is an atomic.Int64.
type counter struct{ value int64 }

func (c *counter) Add(n int64) int64 { return atomic.AddInt64(&c.value, n) }

func (c *counter) Load() int64 { return atomic.LoadInt64(&c.value) }

// join is errors.Join.
func join(errs ...error) error {
	var all joined
	for _, err := range errs {
		if err != nil {
			all = append(all, err)
		}
	}
	if all == nil {
		return nil
	}
	return all
}

type joined []error

func (j joined) Error() string {
	var texts []string
	for _, err := range j {
		texts = append(texts, err.Error())
	}
	return strings.Join(texts, "\n")
}

func appendUint32(to []byte, value uint32) []byte {
	var four [4]byte
	binary.BigEndian.PutUint32(four[:], value)
	return append(to, four[:]...)
}
