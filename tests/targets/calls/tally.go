package main

import (
	"context"
	"sort"
	"strings"
	"sync"

	"github.com/cloudwego/kitex/pkg/rpcinfo"
	"github.com/cloudwego/kitex/pkg/stats"
)

// labels names one kind of call, as the in-process tracer knows it.
type labels struct {
	Side       string `json:"side"`
	Type       string `json:"type"`
	Caller     string `json:"caller"`
	Callee     string `json:"callee"`
	Method     string `json:"method"`
	Status     string `json:"status"`
	Retry      string `json:"retry"`
	ErrorClass string `json:"error_class"`
	// As the extension for OpenTelemetry has them.
	Protocol   string `json:"protocol"`
	StatusCode string `json:"status_code"`
}

// totals is what is added up for one kind of call.
type totals struct {
	Count     uint64 `json:"count"`
	SendBytes uint64 `json:"send_bytes"`
	RecvBytes uint64 `json:"recv_bytes"`
}

// flow names the messages of one kind of stream in one direction.
type flow struct {
	Side      string `json:"side"`
	Type      string `json:"type"`
	Caller    string `json:"caller"`
	Callee    string `json:"callee"`
	Method    string `json:"method"`
	Kind      string `json:"kind"`
	Direction string `json:"direction"`
}

// events counts the messages of a flow: those that went well, and attempts that gave an error.
type events struct {
	Count  uint64 `json:"count"`
	Failed uint64 `json:"failed"`
}

// tally counts calls and messages by their labels.
type tally struct {
	mu       sync.Mutex
	calls    map[labels]totals
	messages map[flow]events
}

func newTally() *tally {
	return &tally{calls: map[labels]totals{}, messages: map[flow]events{}}
}

func (t *tally) addCall(l labels, sent, received uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	sum, known := t.calls[l]
	if !known {
		// Kitex may reuse the memory of names that came from the wire.
		l.Caller, l.Callee = strings.Clone(l.Caller), strings.Clone(l.Callee)
		l.Method, l.Retry = strings.Clone(l.Method), strings.Clone(l.Retry)
	}
	t.calls[l] = totals{sum.Count + 1, sum.SendBytes + sent, sum.RecvBytes + received}
}

func (t *tally) addMessage(f flow, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	sum, known := t.messages[f]
	if !known {
		f.Caller, f.Callee, f.Method = strings.Clone(f.Caller), strings.Clone(f.Callee), strings.Clone(f.Method)
	}
	if err == nil {
		sum.Count++
	} else {
		sum.Failed++
	}
	t.messages[f] = sum
}

func (t *tally) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.calls = map[labels]totals{}
	t.messages = map[flow]events{}
}

type callRow struct {
	labels
	totals
}

func (t *tally) callRows() []callRow {
	t.mu.Lock()
	defer t.mu.Unlock()
	rows := []callRow{}
	for l, sum := range t.calls {
		rows = append(rows, callRow{l, sum})
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i].sortKey() < rows[j].sortKey() })
	return rows
}

func (l labels) sortKey() string {
	return strings.Join([]string{l.Callee, l.Side, l.Caller, l.Method, l.Type, l.Status, l.ErrorClass, l.Retry, l.Protocol, l.StatusCode}, "\x00")
}

type messageRow struct {
	flow
	events
}

func (t *tally) messageRows() []messageRow {
	t.mu.Lock()
	defer t.mu.Unlock()
	rows := []messageRow{}
	for f, sum := range t.messages {
		rows = append(rows, messageRow{f, sum})
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i].sortKey() < rows[j].sortKey() })
	return rows
}

func (f flow) sortKey() string {
	return strings.Join([]string{f.Callee, f.Side, f.Caller, f.Method, f.Type, f.Kind, f.Direction}, "\x00")
}

// progress says how many calls of one side of one scenario have begun and ended.
type progress struct{ started, finished counter }

func (p *progress) underWay() int64 { return p.started.Load() - p.finished.Load() }

// forget keeps only the calls that are under way.
func (p *progress) forget() {
	ended := p.finished.Load()
	p.started.Add(-ended)
	p.finished.Add(-ended)
}

// tracer is the tally's ear at one side of one scenario.
type tracer struct {
	tally    *tally
	progress *progress
	side     string
}

func (t tracer) Start(ctx context.Context) context.Context {
	t.progress.started.Add(1)
	return ctx
}

func (t tracer) Finish(ctx context.Context) {
	ri := rpcinfo.GetRPCInfo(ctx)
	s := ri.Stats()
	l := labels{
		Side:       t.side,
		Type:       callType(t.side, ri),
		Caller:     orUnknown(ri.From().ServiceName()),
		Callee:     orUnknown(ri.To().ServiceName()),
		Method:     orUnknown(ri.To().Method()),
		Status:     "succeed",
		Retry:      ri.To().DefaultTag(rpcinfo.RetryTag, "0"),
		ErrorClass: errorClass(s.Error()),
		Protocol:   ri.Config().TransportProtocol().String(),
		StatusCode: "Unset",
	}
	if s.Error() != nil {
		l.Status = "error"
	}
	if panicked, _ := s.Panicked(); panicked || s.Error() != nil {
		l.StatusCode = "Error"
	}
	t.tally.addCall(l, s.SendSize(), s.RecvSize())
	t.progress.finished.Add(1)
}

var _ stats.Tracer = tracer{}

// callType is the type of a call as well as its side knows it.
func callType(side string, ri rpcinfo.RPCInfo) string {
	if side == "server" {
		return servedType(ri)
	}
	switch ri.Config().InteractionMode() {
	case rpcinfo.Oneway:
		return "oneway"
	case rpcinfo.Streaming:
		return "streaming"
	}
	return "pingpong"
}

func orUnknown(name string) string {
	if name == "" {
		return "unknown"
	}
	return name
}
