// Package load has the commands that make a Go runtime's numbers move.
package load

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"time"
)

// What the commands leave behind.
var (
	kept   [][]byte
	parked sync.WaitGroup
	stop   chan struct{}
	busy   chan struct{}
	sink   []byte
)

// Run does what a line says, such as "allocate 1000". It is false for a line that it does not know.
func Run(line string) bool {
	words := strings.Fields(line)
	if len(words) == 0 {
		return true
	}
	number := 0
	if len(words) > 1 {
		number, _ = strconv.Atoi(words[1])
	}
	switch words[0] {
	case "allocate":
		allocate(number)
	case "goroutines":
		park(number)
	case "gc":
		for i := 0; i < number; i++ {
			runtime.GC()
		}
	case "free":
		kept = nil
		debug.FreeOSMemory()
	case "gogc":
		debug.SetGCPercent(number)
	case "procs":
		runtime.GOMAXPROCS(number)
	case "churn":
		churn(number)
	default:
		return false
	}
	return true
}

// allocate makes objects of many sizes and keeps some of them.
func allocate(count int) {
	for i := 0; i < count; i++ {
		sink = make([]byte, 1+i*37%70000)
		if i%16 == 0 {
			kept = append(kept, sink)
		}
	}
}

// park replaces the goroutines that wait by so many new ones.
func park(count int) {
	if stop != nil {
		close(stop)
		parked.Wait()
	}
	stop = make(chan struct{})
	for i := 0; i < count; i++ {
		parked.Add(1)
		go func(stop chan struct{}) {
			<-stop
			parked.Done()
		}(stop)
	}
	// Those that have run once have the stacks that they keep.
	time.Sleep(20 * time.Millisecond)
}

// churn keeps so many goroutines allocating, until the next churn. They read the runtime's own statistics of the heap
// all the time: each time these are merged, and an onlooker can see them twice.
func churn(workers int) {
	if busy != nil {
		close(busy)
	}
	busy = make(chan struct{})
	for i := 0; i < workers; i++ {
		go func(busy chan struct{}, seed int) {
			own := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
			for round := 0; ; round++ {
				select {
				case <-busy:
					return
				default:
				}
				for j := 0; j < 100; j++ {
					local := make([]byte, 1+(seed+round*j)%5000)
					local[0] = 1
				}
				go func() {}()
				metrics.Read(own)
			}
		}(busy, i)
	}
}
