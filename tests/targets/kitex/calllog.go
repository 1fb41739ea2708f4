package main

import (
	"context"
	"strings"
	"sync"

	"github.com/cloudwego/kitex/pkg/rpcinfo"
	"github.com/cloudwego/kitex/pkg/stats"
)

// loggedCall is one finished call, as its tracer sees it.
type loggedCall struct {
	labels
	// Goroutine is the address of the goroutine's descriptor: what an observer outside sees of it.
	Goroutine  uint64 `json:"goroutine"`
	DurationUS int64  `json:"duration_us"`
	SentBytes  uint64 `json:"sent_bytes"`
	RecvBytes  uint64 `json:"received_bytes"`
	// Peer is the other end's address, on a server.
	Peer string `json:"peer,omitempty"`
	// TimeNS is when it finished, since 1970.
	TimeNS int64 `json:"time_ns"`
}

// callLog keeps every finished call of the process, those of one goroutine in their order.
type callLog struct {
	mu    sync.Mutex
	calls []loggedCall
}

// take gives what was logged since the last time.
func (l *callLog) take() []loggedCall {
	l.mu.Lock()
	defer l.mu.Unlock()
	calls := l.calls
	l.calls = nil
	return calls
}

// logger is the log's ear at one side of the process.
type logger struct {
	log  *callLog
	side string
}

func (l logger) Start(ctx context.Context) context.Context { return ctx }

func (l logger) Finish(ctx context.Context) {
	ri := rpcinfo.GetRPCInfo(ctx)
	s := ri.Stats()
	call := loggedCall{labels: labelsOf(ri, l.side), Goroutine: uint64(goroutine())}
	call.SentBytes, call.RecvBytes = s.SendSize(), s.RecvSize()
	if address := ri.From().Address(); l.side == "server" && address != nil {
		call.Peer = address.String()
	}
	if start, finish := s.GetEvent(stats.RPCStart), s.GetEvent(stats.RPCFinish); start != nil && finish != nil {
		call.DurationUS = finish.Time().Sub(start.Time()).Microseconds()
		call.TimeNS = finish.Time().UnixNano()
	}
	// Kitex may reuse the memory of names that came from the wire.
	call.Caller, call.Callee, call.Method = strings.Clone(call.Caller), strings.Clone(call.Callee), strings.Clone(call.Method)
	l.log.mu.Lock()
	defer l.log.mu.Unlock()
	l.log.calls = append(l.log.calls, call)
}
