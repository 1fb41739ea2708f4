// Command runtime is a Go program that uses its runtime on command, is quiet otherwise, and tells what the runtime says
// about itself. It is written for the standard library alone and for any Go from 1.18 on, so that each release can
// build it.
//
// It reads a command a line from stdin and answers each with a line of JSON; the end of stdin ends it.
package main

import (
	"bufio"
	"encoding/json"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"time"
)

type histogram struct {
	Counts  []uint64  `json:"counts"`
	Buckets []float64 `json:"buckets"`
}

type report struct {
	Version      string                 `json:"version"`
	Goroutines   int                    `json:"goroutines"`
	Threads      int                    `json:"threads"`
	GC           int64                  `json:"gc"`
	LastGC       int64                  `json:"last_gc_ns"`
	PauseTotal   int64                  `json:"pause_total_ns"`
	Pauses       []int64                `json:"pauses_ns"`
	Unsigned     map[string]uint64      `json:"unsigned"`
	Floats       map[string]float64     `json:"floats"`
	Histograms   map[string]histogram   `json:"histograms"`
	Descriptions map[string]description `json:"descriptions"`
}

type description struct {
	Text       string `json:"text"`
	Cumulative bool   `json:"cumulative"`
}

// What the commands leave behind.
var (
	kept   [][]byte
	parked sync.WaitGroup
	stop   chan struct{}
	busy   chan struct{}
	sink   []byte
)

func main() {
	out := json.NewEncoder(os.Stdout)
	samples := samples()
	answer := func(value interface{}) {
		if err := out.Encode(value); err != nil {
			os.Exit(1)
		}
	}
	answer(map[string]interface{}{"ready": true, "pid": os.Getpid()})
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) == 0 {
			continue
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
		case "report":
			answer(read(samples))
			continue
		default:
			answer(map[string]string{"error": "unknown command " + words[0]})
			continue
		}
		answer(map[string]bool{"ok": true})
	}
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

func samples() []metrics.Sample {
	var samples []metrics.Sample
	for _, d := range metrics.All() {
		if !strings.HasPrefix(d.Name, "/godebug/") {
			samples = append(samples, metrics.Sample{Name: d.Name})
		}
	}
	// The memory for the histograms is taken now, so that a report changes less of what it reports.
	metrics.Read(samples)
	return samples
}

func read(samples []metrics.Sample) report {
	metrics.Read(samples)
	// 256 is as many as the runtime keeps.
	stats := debug.GCStats{Pause: make([]time.Duration, 0, 256)}
	debug.ReadGCStats(&stats)
	threads, _ := runtime.ThreadCreateProfile(nil)
	r := report{
		Version:      runtime.Version(),
		Goroutines:   runtime.NumGoroutine(),
		Threads:      threads,
		GC:           stats.NumGC,
		LastGC:       stats.LastGC.UnixNano(),
		PauseTotal:   int64(stats.PauseTotal),
		Unsigned:     map[string]uint64{},
		Floats:       map[string]float64{},
		Histograms:   map[string]histogram{},
		Descriptions: map[string]description{},
	}
	for _, pause := range stats.Pause {
		r.Pauses = append(r.Pauses, int64(pause))
	}
	for _, s := range samples {
		switch s.Value.Kind() {
		case metrics.KindUint64:
			r.Unsigned[s.Name] = s.Value.Uint64()
		case metrics.KindFloat64:
			r.Floats[s.Name] = s.Value.Float64()
		case metrics.KindFloat64Histogram:
			r.Histograms[s.Name] = finite(s.Value.Float64Histogram())
		}
	}
	for _, d := range metrics.All() {
		r.Descriptions[d.Name] = description{d.Description, d.Cumulative}
	}
	return r
}

// finite copies a histogram with the largest numbers for the infinities, which JSON lacks.
func finite(h *metrics.Float64Histogram) histogram {
	copied := histogram{Counts: append([]uint64{}, h.Counts...)}
	for _, bound := range h.Buckets {
		copied.Buckets = append(copied.Buckets, math.Min(math.Max(bound, -math.MaxFloat64), math.MaxFloat64))
	}
	return copied
}
