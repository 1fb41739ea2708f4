package main

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"

	"example.com/monitor/steer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// control obeys commands, as package steer reads them.
//
//	scenarios         {"scenarios":[name…]}
//	run SCENARIO N    makes N repetitions and waits until no call is under way: {"repeated"}; `all` for all of them
//	codes N           makes N unary calls that end with the codes from 1 on: {"codes"}
//	load N C          makes N unary calls, C at the same time
//	pace N            N times makes, at the same time, a unary call, one that takes 20 ms and a stream that does:
//	                  {"seconds":{method: what all its calls took, seen from outside}}
//	strand N          makes N unary calls that nobody answers, each tried again: {"stranded"}
//	close N           makes N unary calls that wait for a connection until it is closed: {"closed"}
//	exhaust N         opens N streams that are refused whenever they are tried, and sends until that fails: {"exhausted"}
//	odd N             makes N repetitions of each kind in odd.go: {"odd"}
//	hang N            makes N unary calls and, half a second later, N+2 streams that end with the next `release` only:
//	                  {"hanging"}
//	stall N           makes N of each for a connection that there never is: {"stalled"}
//	release           ends them, and waits until no call is under way: {"released"}
//	wait N            opens N streams whose both ends then wait for a message: {"waiting"}
//	exchange          sends one in both directions of each, and ends them: {"exchanged"}
//	counts            {"counts":[{side,grpc_type,grpc_service,grpc_method,grpc_code,started,handled,
//	                  received,sent}]}
type control struct {
	tally *tally
	stage *stage
	// cancel ends the calls that hang.
	cancel  context.CancelFunc
	waiting []waiting
}

// waiting is a stream that something receives from.
type waiting struct {
	stream   grpc.ClientStream
	received chan error
}

// patience is how long calls may take to end.
const patience = 20 * time.Second

func newControl() (*control, error) {
	t := newTally()
	s, err := newStage(t)
	return &control{tally: t, stage: s, cancel: func() {}}, err
}

func (c *control) serve() error {
	ready := steer.Ready()
	ready["addr"], ready["metrics"] = c.stage.address, others.metrics
	return steer.Serve(ready, c.obey)
}

func (c *control) obey(command string, args []string) (map[string]interface{}, error) {
	switch command {
	case "scenarios":
		names := []string{}
		for _, s := range append(scenarios, more...) {
			names = append(names, s.name)
		}
		return map[string]interface{}{"scenarios": names}, nil
	case "run":
		return c.run(args)
	case "codes":
		return c.codes(args)
	case "load":
		return c.load(args)
	case "pace":
		return c.pace(args)
	case "strand":
		return c.without("stranded", strand, args)
	case "close":
		return c.without("closed", closedWhileWaiting, args)
	case "exhaust":
		return c.without("exhausted", exhaust, args)
	case "odd":
		return c.odd(args)
	case "hang":
		return c.hang(args)
	case "stall":
		return c.stall(args)
	case "release":
		return map[string]interface{}{"released": true}, c.release()
	case "wait":
		return c.wait(args)
	case "exchange":
		return map[string]interface{}{"exchanged": true}, c.exchange()
	case "counts":
		return map[string]interface{}{"counts": c.tally.rows()}, nil
	}
	return nil, fmt.Errorf("no command %q", command)
}

func (c *control) run(args []string) (map[string]interface{}, error) {
	if len(args) < 2 {
		return nil, steer.ErrUsage
	}
	name, times := strings.Join(args[:len(args)-1], " "), args[len(args)-1]
	n, err := strconv.Atoi(times)
	if err != nil {
		return nil, steer.ErrUsage
	}
	found := false
	for _, s := range append(scenarios, more...) {
		if s.name != name && name != "all" {
			continue
		}
		found = true
		for i := 0; i < n; i++ {
			if err := s.run(c.stage); err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	if !found {
		return nil, fmt.Errorf("no scenario %q", name)
	}
	return map[string]interface{}{"repeated": n}, c.settle()
}

func (c *control) codes(args []string) (map[string]interface{}, error) {
	if len(args) != 1 {
		return nil, steer.ErrUsage
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, steer.ErrUsage
	}
	if err := codesUpTo(c.stage, codes.Code(n)); err != nil {
		return nil, err
	}
	return map[string]interface{}{"codes": n}, c.settle()
}

func (c *control) load(args []string) (map[string]interface{}, error) {
	if len(args) != 2 {
		return nil, steer.ErrUsage
	}
	n, err := strconv.Atoi(args[0])
	workers, err2 := strconv.Atoi(args[1])
	if err != nil || err2 != nil || workers < 1 {
		return nil, steer.ErrUsage
	}
	begin := time.Now()
	if err := c.stage.load(n, workers); err != nil {
		return nil, err
	}
	took := time.Since(begin)
	return map[string]interface{}{"calls": n, "seconds": took.Seconds()}, c.settle()
}

// pace makes calls that take their time at the same time as others that don't.
func (c *control) pace(args []string) (map[string]interface{}, error) {
	if len(args) != 1 {
		return nil, steer.ErrUsage
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, steer.ErrUsage
	}
	took := map[string]interface{}{}
	for _, kind := range c.stage.pace(n) {
		if kind.err != nil {
			return nil, fmt.Errorf("%s: %w", kind.method, kind.err)
		}
		took[kind.method] = kind.took.Seconds()
	}
	return map[string]interface{}{"seconds": took}, c.settle()
}

// without makes calls that never get a stream, and leaves the memory behind where they were.
func (c *control) without(what string, calls func(*stage, int) error, args []string) (map[string]interface{}, error) {
	if len(args) != 1 {
		return nil, steer.ErrUsage
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, steer.ErrUsage
	}
	if err := calls(c.stage, n); err != nil {
		return nil, err
	}
	runtime.GC()
	return map[string]interface{}{what: n}, c.settle()
}

func (c *control) odd(args []string) (map[string]interface{}, error) {
	if len(args) != 1 {
		return nil, steer.ErrUsage
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, steer.ErrUsage
	}
	for _, s := range odd {
		for i := 0; i < n; i++ {
			if err := s.run(c.stage); err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	return map[string]interface{}{"odd": n}, c.settle()
}

// hang makes calls whose handlers wait for their end, and waits until those have been entered.
func (c *control) hang(args []string) (map[string]interface{}, error) {
	ctx, n, err := c.begin(args)
	if err != nil {
		return nil, err
	}
	for i := 0; i < n; i++ {
		go func() { _ = call(ctx, c.stage.plain, "wait") }()
	}
	// On both sides.
	if err := c.tally.await(int64(2 * n)); err != nil {
		return nil, err
	}
	time.Sleep(500 * time.Millisecond)
	for i := 0; i < n+2; i++ {
		go func() {
			if stream, err := open(ctx, c.stage.plain, &echo, "wait"); err == nil {
				_ = stream.RecvMsg(new(text))
			}
		}()
	}
	return map[string]interface{}{"hanging": 2*n + 2}, c.tally.await(int64(4*n + 4))
}

// stall makes calls that wait for a connection, and gives them some time to begin to.
func (c *control) stall(args []string) (map[string]interface{}, error) {
	ctx, n, err := c.begin(args)
	if err != nil {
		return nil, err
	}
	for i := 0; i < n; i++ {
		go func() { _ = call(ctx, c.stage.dead, "hello", grpc.WaitForReady(true)) }()
		go func() {
			_, _ = c.stage.dead.NewStream(ctx, &echo, "/"+service+"/"+echo.StreamName, grpc.WaitForReady(true))
		}()
	}
	err = c.tally.await(int64(2 * n))
	time.Sleep(100 * time.Millisecond)
	return map[string]interface{}{"stalled": 2 * n}, err
}

// begin has calls that end with `release`: gives their context, and how many of them the only argument says.
func (c *control) begin(args []string) (context.Context, int, error) {
	if len(args) != 1 {
		return nil, 0, steer.ErrUsage
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, 0, steer.ErrUsage
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	return ctx, n, nil
}

func (c *control) release() error {
	c.cancel()
	return c.settle()
}

// wait opens streams, and gives both ends of each some time to begin to receive.
func (c *control) wait(args []string) (map[string]interface{}, error) {
	if len(args) != 1 {
		return nil, steer.ErrUsage
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, steer.ErrUsage
	}
	for i := 0; i < n; i++ {
		stream, err := open(context.Background(), c.stage.plain, &echo, "hello")
		if err != nil {
			return nil, err
		}
		if err := stream.RecvMsg(new(text)); err != nil {
			return nil, err
		}
		received := make(chan error)
		go func() { received <- stream.RecvMsg(new(text)) }()
		c.waiting = append(c.waiting, waiting{stream, received})
	}
	time.Sleep(100 * time.Millisecond)
	return map[string]interface{}{"waiting": n}, nil
}

func (c *control) exchange() error {
	for _, w := range c.waiting {
		if err := w.stream.SendMsg(&text{Value: "hello"}); err != nil {
			return err
		}
		if err := <-w.received; err != nil {
			return err
		}
		_ = w.stream.CloseSend()
		if err := drain(w.stream, codes.OK); err != nil {
			return err
		}
	}
	c.waiting = nil
	return c.settle()
}

// settle waits until no call is under way, for a moment.
func (c *control) settle() error {
	begin, still := time.Now(), time.Now()
	for time.Since(still) < 50*time.Millisecond {
		time.Sleep(time.Millisecond)
		if c.tally.underWay() != 0 {
			still = time.Now()
		}
		if time.Since(begin) > patience {
			return fmt.Errorf("%d calls are still under way", c.tally.underWay())
		}
	}
	return nil
}
