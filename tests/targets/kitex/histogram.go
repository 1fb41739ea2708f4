package main

import (
	"math"
	"math/bits"
	"sync/atomic"
)

// Values below exactBelow have a slot each; above, each doubling is cut into slotsPerDoubling, so that a slot is
// at most 1/128 (0.8 %) wide.
const (
	exactBelow       = 1024
	exactBits        = 10
	slotBits         = 7
	slotsPerDoubling = 1 << slotBits
	largestBits      = 40
)

// histogram counts durations in whole microseconds, in bounded memory (39 KB), without locks.
type histogram struct {
	sum   atomic.Int64
	slots [exactBelow + (largestBits-exactBits)*slotsPerDoubling]atomic.Uint64
}

func (h *histogram) add(us int64) {
	us = min(max(us, 0), 1<<largestBits-1)
	h.sum.Add(us)
	h.slots[slotOf(us)].Add(1)
}

func slotOf(us int64) int {
	if us < exactBelow {
		return int(us)
	}
	doubling := bits.Len64(uint64(us)) - 1 - exactBits
	within := us>>(doubling+exactBits-slotBits) - slotsPerDoubling
	return exactBelow + doubling*slotsPerDoubling + int(within)
}

// lowest returns the smallest value of a slot.
func lowest(slot int) int64 {
	if slot < exactBelow {
		return int64(slot)
	}
	doubling, within := (slot-exactBelow)/slotsPerDoubling, (slot-exactBelow)%slotsPerDoubling
	return int64(slotsPerDoubling+within) << (doubling + exactBits - slotBits)
}

// values lists the slots in use, as [smallest value, count].
func (h *histogram) values() [][2]uint64 {
	list := [][2]uint64{}
	for slot := range h.slots {
		if n := h.slots[slot].Load(); n > 0 {
			list = append(list, [2]uint64{uint64(lowest(slot)), n})
		}
	}
	return list
}

// quantile returns the value below or at which the share q of all values lie (nearest rank).
func quantile(values [][2]uint64, q float64) uint64 {
	var total uint64
	for _, v := range values {
		total += v[1]
	}
	rank := uint64(math.Ceil(q * float64(total)))
	var seen uint64
	for _, v := range values {
		seen += v[1]
		if seen >= rank {
			return v[0]
		}
	}
	return 0
}
