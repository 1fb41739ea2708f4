package main

import (
	"context"
	"maps"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudwego/kitex/pkg/rpcinfo"
	"github.com/cloudwego/kitex/pkg/stats"
)

// labels names one kind of call. The values are those of monitor-prometheus, and the call's type.
type labels struct {
	Side   string `json:"side"`
	Type   string `json:"type"`
	Caller string `json:"caller"`
	Callee string `json:"callee"`
	Method string `json:"method"`
	Status string `json:"status"`
	Retry  string `json:"retry"`
}

type cell struct {
	count     atomic.Uint64
	durations histogram
}

// tally counts finished calls by their labels, exactly, however many finish at once. Known labels cost a look
// into a map that is never written; a new one replaces the map.
type tally struct {
	started  atomic.Uint64
	finished atomic.Uint64
	cells    atomic.Pointer[map[labels]*cell]
	grow     sync.Mutex
}

func newTally() *tally {
	t := new(tally)
	t.cells.Store(&map[labels]*cell{})
	return t
}

func (t *tally) cell(l labels) *cell {
	if c := (*t.cells.Load())[l]; c != nil {
		return c
	}
	t.grow.Lock()
	defer t.grow.Unlock()
	old := *t.cells.Load()
	if c := old[l]; c != nil {
		return c
	}
	// Kitex may reuse the memory of names that came from the wire.
	l.Caller, l.Callee = strings.Clone(l.Caller), strings.Clone(l.Callee)
	l.Method, l.Retry = strings.Clone(l.Method), strings.Clone(l.Retry)
	grown := maps.Clone(old)
	c := new(cell)
	grown[l] = c
	t.cells.Store(&grown)
	return c
}

// reset forgets all calls. Only a settled tally can be reset without losing any.
func (t *tally) reset() bool {
	if t.started.Load() != t.finished.Load() {
		return false
	}
	t.started.Store(0)
	t.finished.Store(0)
	t.cells.Store(&map[labels]*cell{})
	return true
}

// each visits the cells in the order of their labels.
func (t *tally) each(visit func(labels, *cell)) {
	cells := *t.cells.Load()
	keys := make([]labels, 0, len(cells))
	for l := range cells {
		keys = append(keys, l)
	}
	sort.Slice(keys, func(i, j int) bool { return keys[i].sortKey() < keys[j].sortKey() })
	for _, l := range keys {
		visit(l, cells[l])
	}
}

func (l labels) sortKey() string {
	return strings.Join([]string{l.Side, l.Caller, l.Callee, l.Method, l.Type, l.Status, l.Retry}, "\x00")
}

// tracer is the tally's ear at one side of the process.
type tracer struct {
	tally *tally
	side  string
	// clocked is set where Kitex does not record when calls start.
	clocked bool
}

// began is the key of the time at which a call has started.
type began struct{}

func (t tracer) Start(ctx context.Context) context.Context {
	t.tally.started.Add(1)
	if t.clocked {
		return context.WithValue(ctx, began{}, time.Now())
	}
	return ctx
}

func (t tracer) Finish(ctx context.Context) {
	ri := rpcinfo.GetRPCInfo(ctx)
	l, s := labelsOf(ri, t.side), ri.Stats()
	c := t.tally.cell(l)
	c.count.Add(1)
	start, finish := s.GetEvent(stats.RPCStart), s.GetEvent(stats.RPCFinish)
	if start != nil && finish != nil {
		c.durations.add(finish.Time().Sub(start.Time()).Microseconds())
	} else if start, ok := ctx.Value(began{}).(time.Time); ok && t.clocked {
		c.durations.add(time.Since(start).Microseconds())
	}
	t.tally.finished.Add(1)
}

// labelsOf names a finished call.
func labelsOf(ri rpcinfo.RPCInfo, side string) labels {
	to := ri.To()
	l := labels{
		Side:   side,
		Type:   callType(ri, side),
		Caller: orUnknown(ri.From().ServiceName()),
		Callee: orUnknown(to.ServiceName()),
		Method: orUnknown(to.Method()),
		Status: "succeed",
		Retry:  to.DefaultTag(rpcinfo.RetryTag, "0"),
	}
	if ri.Stats().Error() != nil {
		l.Status = "error"
	}
	return l
}

// callType reads the interaction mode, which Kitex sets on clients only, and what a server knows of the method.
func callType(ri rpcinfo.RPCInfo, side string) string {
	if side == "client" {
		switch ri.Config().InteractionMode() {
		case rpcinfo.Oneway:
			return "oneway"
		case rpcinfo.Streaming:
			return "streaming"
		}
		return "pingpong"
	}
	if method := ri.Invocation().MethodInfo(); method != nil && method.OneWay() {
		return "oneway"
	}
	return "pingpong"
}

func orUnknown(name string) string {
	if name == "" {
		return "unknown"
	}
	return name
}
