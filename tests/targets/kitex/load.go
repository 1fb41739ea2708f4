package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudwego/kitex/pkg/kerrors"
)

// kind is one sort of call in the mixed load.
type kind struct {
	weight  uint64 // of 100
	method  string
	action  action
	sleepUS int32
	payload int // bytes
}

// mixed is the load: which calls, how often. A relay hands Relay on to its own server. With retries, the Echo
// calls that fail do so at the first attempt only.
var mixed = []kind{
	{32, "Echo", succeed, 0, 128},
	{20, "Lookup", succeed, 0, 1024},
	{10, "Store", succeed, 200, 256},
	{12, "Relay", succeed, 0, 128},
	{10, "Notify", succeed, 0, 64},
	{3, "Echo", fail, 0, 128},
	{4, "Store", fail, 0, 256},
	{4, "Lookup", biz, 0, 32},
	{3, "Relay", fail, 0, 128},
	{1, "Notify", fail, 0, 64},
	{1, "Echo", crash, 0, 128},
}

// pick chooses the kind of the i-th call of a seed, so that the calls of each kind depend on nothing else.
func (l *load) pick(seed, i uint64) *kind {
	at := mix(seed+i*0x9e3779b97f4a7c15) % 100
	for k := range l.kinds {
		if at < l.kinds[k].weight {
			return &l.kinds[k]
		}
		at -= l.kinds[k].weight
	}
	panic("the weights do not add up to 100")
}

// mix is the finaliser of SplitMix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// loopKey names what the load loop saw of a call: what any caller in this process would see.
type loopKey struct {
	method, result string
}

// load makes a client's calls and counts them where they are made, which works without any tracer.
type load struct {
	caller  *caller
	kinds   []kind
	payload []byte
	mu      sync.Mutex
	counts  map[loopKey]uint64
	flow    *flow
	// unexpected calls came to something else than they asked for.
	unexpected atomic.Uint64
}

// flow is a load that goes on until it is paused.
type flow struct {
	stop chan struct{}
	done chan outcome
}

// outcome is what a phase of load came to.
type outcome struct {
	calls, ok, biz, errs uint64
	seconds              float64
}

func (o outcome) reply() map[string]any {
	return map[string]any{"calls": o.calls, "ok": o.ok, "biz": o.biz, "err": o.errs, "seconds": o.seconds}
}

var (
	errFlowing = errors.New("a flow is under way: pause it first")
	errNoFlow  = errors.New("no flow is under way")
)

func newLoad(c *caller, retry bool) *load {
	l := &load{caller: c, kinds: slices.Clone(mixed), payload: make([]byte, 64<<10), counts: map[loopKey]uint64{}}
	for i := range l.kinds {
		if k := &l.kinds[i]; retry && k.method == "Echo" && k.action == fail {
			k.action = flaky
		}
	}
	return l
}

// run makes calls from c goroutines, each with its next number, until next says stop.
func (l *load) run(c int, next func() (uint64, bool), call func(i uint64) loopKey) outcome {
	begin := time.Now()
	var all sync.WaitGroup
	var out outcome
	for range c {
		all.Add(1)
		go func() {
			defer all.Done()
			counts := map[loopKey]uint64{}
			for {
				i, more := next()
				if !more {
					break
				}
				counts[call(i)]++
			}
			l.add(counts, &out)
		}()
	}
	all.Wait()
	out.seconds = time.Since(begin).Seconds()
	return out
}

// add brings one goroutine's counts into the totals.
func (l *load) add(counts map[loopKey]uint64, out *outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, n := range counts {
		l.counts[key] += n
		out.calls += n
		switch key.result {
		case "ok":
			out.ok += n
		case "biz":
			out.biz += n
		default:
			out.errs += n
		}
	}
}

// exactly makes n calls of the mixed load.
func (l *load) exactly(n uint64, c int, seed uint64) outcome {
	return l.run(c, upTo(n), func(i uint64) loopKey { return l.callKind(l.pick(seed, i)) })
}

// same makes n equal calls.
func (l *load) same(n uint64, k kind) outcome {
	return l.run(1, upTo(n), func(uint64) loopKey { return l.callKind(&k) })
}

func upTo(n uint64) func() (uint64, bool) {
	var taken atomic.Uint64
	return func() (uint64, bool) {
		i := taken.Add(1) - 1
		return i, i < n
	}
}

// startFlow makes mixed calls until pause, qps in a second, or as many as possible when qps is 0.
func (l *load) startFlow(c int, qps float64) {
	f := &flow{stop: make(chan struct{}), done: make(chan outcome, 1)}
	l.flow = f
	var taken atomic.Uint64
	begin := time.Now()
	next := func() (uint64, bool) {
		i := taken.Add(1) - 1
		var wait time.Duration
		if qps > 0 {
			wait = time.Until(begin.Add(time.Duration(float64(i) / qps * float64(time.Second))))
		}
		if wait > 0 {
			select {
			case <-f.stop:
				return 0, false
			case <-time.After(wait):
				return i, true
			}
		}
		select {
		case <-f.stop:
			return 0, false
		default:
			return i, true
		}
	}
	go func() { f.done <- l.run(c, next, func(i uint64) loopKey { return l.callKind(l.pick(1, i)) }) }()
}

// pause ends the flow and returns when its last call has; the connections stay open.
func (l *load) pause() (outcome, error) {
	if l.flow == nil {
		return outcome{}, errNoFlow
	}
	close(l.flow.stop)
	out := <-l.flow.done
	l.flow = nil
	return out, nil
}

// bench calls Lookup with 1 KB back to back from c goroutines and returns the durations that the callers saw.
func (l *load) bench(d time.Duration, c int, longest *longest) (outcome, [][2]uint64) {
	var durations histogram
	end := time.Now().Add(d)
	next := func() (uint64, bool) { return 0, time.Now().Before(end) }
	out := l.run(c, next, func(uint64) loopKey {
		begin := time.Now()
		key := l.callKind(&kind{method: "Lookup", payload: 1024})
		took := time.Since(begin).Microseconds()
		durations.add(took)
		longest.add(begin, took)
		return key
	})
	return out, durations.values()
}

func (l *load) callKind(k *kind) loopKey {
	req := request{action: k.action, sleepUS: k.sleepUS, payload: l.payload[:k.payload]}
	result := resultOf(l.caller.call(context.Background(), k.method, &req))
	if !k.allows(result) {
		l.unexpected.Add(1)
	}
	return loopKey{k.method, result}
}

func resultOf(err error) string {
	if err == nil {
		return "ok"
	}
	if _, isBiz := kerrors.FromBizStatusError(err); isBiz {
		return "biz"
	}
	return "error"
}

// allows says whether such a call may come to that where nothing disturbs it.
func (k *kind) allows(result string) bool {
	switch {
	case k.method == "Notify":
		// What the handler makes of it nobody hears.
		return result == "ok"
	case k.method == "Missing", k.action == fail, k.action == crash:
		return result == "error"
	case k.action == biz:
		// The status does not travel with every protocol.
		return result != "error"
	case k.action == flaky:
		// Kitex's breaker may have stopped the retry.
		return result != "biz"
	}
	return result == "ok"
}

// loopCounts copies what the load loop counted.
func (l *load) loopCounts() map[loopKey]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.counts)
}

func (l *load) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.counts)
	l.unexpected.Store(0)
}
