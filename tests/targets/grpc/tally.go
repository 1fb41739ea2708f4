package main

import (
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
)

// kind names calls before their end is known.
type kind struct {
	Side    string `json:"side"`
	Type    string `json:"grpc_type"`
	Service string `json:"grpc_service"`
	Method  string `json:"grpc_method"`
}

type labels struct {
	kind
	Code string `json:"grpc_code"`
}

// tally counts calls as interceptors see them.
type tally struct {
	mu      sync.Mutex
	started map[kind]uint64
	handled map[labels]uint64
	// Messages that went through: those of unary calls as go-grpc-prometheus counts them, a request for each that
	// starts and a reply for each that ends well.
	received, sent map[kind]uint64
	running        int64
}

func newTally() *tally {
	return &tally{
		started: map[kind]uint64{}, handled: map[labels]uint64{}, received: map[kind]uint64{}, sent: map[kind]uint64{},
	}
}

func newKind(side, method string, clientStreams, serverStreams bool) kind {
	names := strings.SplitN(strings.TrimPrefix(method, "/"), "/", 2)
	if len(names) < 2 {
		names = []string{"", ""}
	}
	for i, name := range names {
		if name == "" {
			names[i] = "unknown"
		}
	}
	types := map[[2]bool]string{
		{false, false}: "unary", {true, false}: "client_stream", {false, true}: "server_stream", {true, true}: "bidi_stream",
	}
	return kind{side, types[[2]bool{clientStreams, serverStreams}], names[0], names[1]}
}

func (t *tally) start(k kind) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.started[k]++
	t.running++
}

func (t *tally) end(k kind, code codes.Code) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.handled[labels{k, code.String()}]++
	t.running--
}

// message counts one in a direction, if there was one.
func (t *tally) message(direction map[kind]uint64, k kind, err error) {
	if err != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	direction[k]++
}

// refused counts a call that no interceptor sees.
func (t *tally) refused(k kind, code codes.Code) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.handled[labels{k, code.String()}]++
}

// begunAndRefused counts a call that has begun, and that no interceptor sees. That of a unary one counts as a message.
func (t *tally) begunAndRefused(k kind, code codes.Code) {
	t.start(k)
	if k.Type == "unary" {
		t.message(t.received, k, nil)
	}
	t.end(k, code)
}

func (t *tally) underWay() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.running
}

// await waits until so many calls are under way.
func (t *tally) await(n int64) error {
	for begin := time.Now(); t.underWay() != n; time.Sleep(time.Millisecond) {
		if time.Since(begin) > patience {
			return fmt.Errorf("%d calls are under way, not %d", t.underWay(), n)
		}
	}
	return nil
}

type row struct {
	labels
	Started  uint64 `json:"started"`
	Handled  uint64 `json:"handled"`
	Received uint64 `json:"received"`
	Sent     uint64 `json:"sent"`
}

// rows has the starts and the messages, under no code, and the ends.
func (t *tally) rows() []row {
	t.mu.Lock()
	defer t.mu.Unlock()
	rows := []row{}
	for k, n := range t.started {
		rows = append(rows, row{labels: labels{kind: k}, Started: n, Received: t.received[k], Sent: t.sent[k]})
	}
	for l, n := range t.handled {
		rows = append(rows, row{labels: l, Handled: n})
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i].sortKey() < rows[j].sortKey() })
	return rows
}

func (l labels) sortKey() string {
	return strings.Join([]string{l.Side, l.Service, l.Method, l.Type, l.Code}, "\x00")
}
