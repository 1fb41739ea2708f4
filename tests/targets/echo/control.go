package main

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"example.com/monitor/steer"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// control obeys commands, as package steer reads them.
//
//	bench SECONDS C   on a client: unary echoes of 1 KB back to back, C at a time: {"calls","ok","seconds","p50_us",
//	                  "p99_us","p999_us"}
//	settle            on a server: answers once no call is in its handler and none has been for 50 ms
type control struct {
	ready      map[string]any
	connection *grpc.ClientConn
	inFlight   atomic.Int64
	handled    atomic.Int64
}

// message is what travels both ways.
type message = wrapperspb.BytesValue

const method = "/monitor.bench.Echo/Call"

var (
	payload = make([]byte, 1024)
)

// description says what protoc would have generated.
var description = grpc.ServiceDesc{
	ServiceName: "monitor.bench.Echo",
	HandlerType: (*any)(nil),
	Methods:     []grpc.MethodDesc{{MethodName: "Call", Handler: handle}},
}

func handle(c any, ctx context.Context, decode func(any) error, ear grpc.UnaryServerInterceptor) (any, error) {
	request := new(message)
	if err := decode(request); err != nil {
		return nil, err
	}
	echo := func(_ context.Context, request any) (any, error) {
		c := c.(*control)
		c.inFlight.Add(1)
		defer c.inFlight.Add(-1)
		c.handled.Add(1)
		return request, nil
	}
	if ear == nil {
		return echo(ctx, request)
	}
	return ear(ctx, request, &grpc.UnaryServerInfo{FullMethod: method}, echo)
}

func (c *control) obey(command string, args []string) (map[string]any, error) {
	switch {
	case command == "settle" && c.connection == nil:
		return c.settle(), nil
	case command == "bench" && c.connection != nil && len(args) == 2:
		seconds, err := strconv.ParseFloat(args[0], 64)
		workers, err2 := strconv.Atoi(args[1])
		if err != nil || err2 != nil || workers < 1 {
			return nil, steer.ErrUsage
		}
		return c.bench(time.Duration(seconds*float64(time.Second)), workers)
	}
	return nil, fmt.Errorf("no such command here: %q", command)
}

func (c *control) settle() map[string]any {
	still, seen := time.Now(), c.handled.Load()
	for time.Since(still) < 50*time.Millisecond {
		time.Sleep(time.Millisecond)
		if now := c.handled.Load(); now != seen || c.inFlight.Load() != 0 {
			still, seen = time.Now(), now
		}
	}
	return map[string]any{"settled": true}
}

func (c *control) bench(d time.Duration, workers int) (map[string]any, error) {
	var all sync.WaitGroup
	durations, errs := make([][]time.Duration, workers), make([]error, workers)
	begin := time.Now()
	for worker := range workers {
		all.Go(func() {
			for last := begin; last.Sub(begin) < d && errs[worker] == nil; {
				errs[worker] = c.connection.Invoke(context.Background(), method, &message{Value: payload}, new(message))
				now := time.Now()
				durations[worker] = append(durations[worker], now.Sub(last))
				last = now
			}
		})
	}
	all.Wait()
	seconds := time.Since(begin).Seconds()
	var sorted []time.Duration
	for _, some := range durations {
		sorted = append(sorted, some...)
	}
	sort.Slice(sorted, func(i, j int) bool { return sorted[i] < sorted[j] })
	quantile := func(q float64) int64 { return sorted[int(q*float64(len(sorted)-1))].Microseconds() }
	return map[string]any{
		"calls": len(sorted), "ok": len(sorted), "seconds": seconds,
		"p50_us": quantile(0.5), "p99_us": quantile(0.99), "p999_us": quantile(0.999),
	}, errors.Join(errs...)
}
