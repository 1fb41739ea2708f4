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
	"strings"
	"time"

	"example.com/monitor/runtime/load"
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
		switch line := lines.Text(); {
		case line == "report":
			answer(read(samples))
		case load.Run(line):
			answer(map[string]bool{"ok": true})
		default:
			answer(map[string]string{"error": "unknown command " + line})
		}
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
