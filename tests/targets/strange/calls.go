package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.com/monitor/steer"
	kitex "github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/pkg/rpcinfo"
	"github.com/cloudwego/kitex/pkg/rpcinfo/remoteinfo"
	"github.com/cloudwego/kitex/pkg/stats"
)

var errAsked = errors.New("failed because the command asks for it")

// caller makes calls and keeps account of them.
type caller struct {
	controller rpcinfo.TraceController
	account    *account
}

func (c *caller) start(ri rpcinfo.RPCInfo) {
	c.account.begun(1)
	c.controller.DoStart(context.Background(), ri)
}

func (c *caller) finish(ri rpcinfo.RPCInfo, err error) {
	c.controller.DoFinish(context.Background(), ri, err)
	c.account.end(1)
}

func (c *caller) call(ri rpcinfo.RPCInfo, err error) {
	c.start(ri)
	c.finish(ri, err)
}

func (c *caller) same(n int, args []string) error {
	if len(args) == 0 {
		return steer.ErrUsage
	}
	shape, err := shapeNamed(args[0])
	if err != nil {
		return err
	}
	called, outcome := usual, error(nil)
	for _, arg := range args[1:] {
		name, form, isName := strings.Cut(arg, "=")
		if !isName && arg == "fail" {
			outcome = errAsked
			continue
		}
		if err := called.set(name, form); err != nil {
			return err
		}
	}
	for range n {
		c.call(shape(called), outcome)
	}
	return nil
}

// begin has a group wait for a goroutine.
func begin(group *sync.WaitGroup, body func()) {
	group.Add(1)
	go func() {
		defer group.Done()
		body()
	}()
}

func twoShapes(args []string) (start, finish shape, err error) {
	if len(args) < 2 {
		return nil, nil, steer.ErrUsage
	}
	if start, err = shapeNamed(args[0]); err != nil {
		return nil, nil, err
	}
	finish, err = shapeNamed(args[1])
	return start, finish, err
}

func (c *caller) change(n int, args []string) error {
	start, finish, err := twoShapes(args)
	if err != nil {
		return err
	}
	for range n {
		c.start(start(usual))
		c.finish(finish(usual), nil)
	}
	return nil
}

func (c *caller) inside(n int, args []string) error {
	if len(args) != 3 {
		return steer.ErrUsage
	}
	start, finish, err := twoShapes(args)
	if err != nil {
		return err
	}
	wait, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	outer := client(names{caller: "shop", callee: "stock", method: "Outer"})
	for range n {
		c.start(outer)
		time.Sleep(time.Duration(wait) * time.Millisecond)
		c.start(start(usual))
		c.finish(finish(usual), nil)
		c.finish(outer, nil)
	}
	return nil
}

// record makes calls that have noted themselves when they started, but at another time than they did: so it is with all
// calls that are under way when the clock is set.
func (c *caller) record(n int, args []string) error {
	shape, ago, err := shapeAndNumber(args)
	if err != nil {
		return err
	}
	for range n {
		ri := shape(usual)
		rpcinfo.AsMutableRPCStats(ri.Stats()).SetLevel(stats.LevelBase)
		c.start(ri)
		*recordedStart(ri) = time.Now().Add(time.Duration(-ago) * time.Millisecond).UnixNano()
		c.finish(ri, nil)
	}
	return nil
}

// recordedStart is where a call has noted when it started.
func recordedStart(ri rpcinfo.RPCInfo) *int64 {
	events := reflect.ValueOf(ri.Stats()).Elem().FieldByName("eventMap")
	return (*int64)(events.Index(int(stats.RPCStart.Index())).FieldByName("time").Addr().UnsafePointer())
}

// again makes calls whose RPCInfo has started another before that never finishes, as a stream does not that is dropped. They
// finish on another goroutine than they started on.
func (c *caller) again(n int, args []string) error {
	shape, ago, err := shapeAndNumber(args)
	if err != nil {
		return err
	}
	var dropped []rpcinfo.RPCInfo
	for range n {
		ri := shape(usual)
		c.start(ri)
		dropped = append(dropped, ri)
	}
	time.Sleep(time.Duration(ago) * time.Millisecond)
	for _, ri := range dropped {
		var started sync.WaitGroup
		begin(&started, func() { c.start(ri) })
		started.Wait()
		c.finish(ri, nil)
	}
	return nil
}

func (c *caller) bytes(n int, args []string) error {
	shape, size, err := shapeAndNumber(args)
	if err != nil {
		return err
	}
	for range n {
		ri := shape(usual)
		sizes := rpcinfo.AsMutableRPCStats(ri.Stats())
		sizes.SetSendSize(uint64(size))
		sizes.SetRecvSize(uint64(size))
		c.call(ri, nil)
	}
	return nil
}

// messages tells of messages as Kitex's streams do, which have their end as an error.
func (c *caller) messages(n int, args []string) error {
	if len(args) != 1 {
		return steer.ErrUsage
	}
	shape, err := shapeNamed(args[0])
	if err != nil {
		return err
	}
	ctx, ri := context.Background(), shape(usual)
	// Fails, and links what Kitex has for streams: by its types the agent learns what it is told of messages.
	if none, err := kitex.NewClient(nil); err == nil {
		_, err = none.(kitex.Streaming).StreamX(ctx, "")
		return err
	}
	for range n {
		for _, err := range []error{nil, io.EOF} {
			c.controller.HandleStreamSendEvent(ctx, ri, rpcinfo.StreamSendEvent{Err: err})
			c.controller.HandleStreamRecvEvent(ctx, ri, rpcinfo.StreamRecvEvent{Err: err})
		}
	}
	return nil
}

// tabs makes calls of which each has an itab that no other has.
func (c *caller) tabs(n int) {
	for range n {
		c.call(copied(server(usual), nowhere), nil)
		forgetCopies()
	}
}

// numbered makes calls of which each has an itab of its own, a copy that stays for the next call of its number.
func (c *caller) numbered(n int, args []string) error {
	if len(args) != 1 {
		return steer.ErrUsage
	}
	first, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	for i := range n {
		c.call(copied(server(usual), honest+tab(strconv.Itoa(first+i))), nil)
	}
	return nil
}

func (c *caller) methods(n int, args []string) error {
	if len(args) != 1 {
		return steer.ErrUsage
	}
	goroutines, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	var next atomic.Int64
	var all sync.WaitGroup
	for range goroutines {
		begin(&all, func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				called := usual
				called.method = fmt.Sprintf("method-%d", i-1)
				c.call(server(called), nil)
			}
		})
	}
	all.Wait()
	return nil
}

// retries makes calls as they are after retries, each after one more.
func (c *caller) retries(n int) error {
	for i := range n {
		to := remote(usual)
		if err := remoteinfo.AsRemoteInfo(to).SetTag(rpcinfo.RetryTag, strconv.Itoa(i+1)); err != nil {
			return err
		}
		c.call(whole(calling(usual), to, usual), nil)
	}
	return nil
}

// rewrite changes bytes without any lock, as a service with a data race does.
func (c *caller) rewrite(n int) {
	text := []byte("aaaaaaaaaaaaaaaa")
	var stop atomic.Bool
	var writer sync.WaitGroup
	begin(&writer, func() {
		for !stop.Load() {
			for _, letter := range []byte("ba") {
				for i := range text {
					text[i] = letter
				}
				runtime.Gosched()
			}
		}
	})
	called := usual
	called.method = stringOf(text)
	for range n {
		c.call(server(called), nil)
	}
	stop.Store(true)
	writer.Wait()
}

func (c *caller) die(n int, args []string) error {
	if len(args) != 1 || args[0] != "exit" && args[0] != "panic" {
		return steer.ErrUsage
	}
	for range n {
		var ended sync.WaitGroup
		begin(&ended, func() {
			defer func() { _ = recover() }()
			c.start(client(usual))
			if args[0] == "panic" {
				panic(errAsked)
			}
			runtime.Goexit()
		})
		ended.Wait()
	}
	return nil
}

// opened is a goroutine that is in the middle of calls.
type opened struct {
	leave chan struct{}
	ended chan struct{}
}

func (c *caller) open(shape shape, depth int, called names) *opened {
	o := &opened{leave: make(chan struct{}), ended: make(chan struct{})}
	started := make(chan struct{})
	go func() {
		defer close(o.ended)
		var calls []rpcinfo.RPCInfo
		for range depth {
			calls = append(calls, shape(called))
			c.start(calls[len(calls)-1])
		}
		close(started)
		<-o.leave
		for i := range calls {
			c.finish(calls[len(calls)-1-i], nil)
		}
	}()
	<-started
	return o
}

func (o *opened) close() {
	close(o.leave)
	<-o.ended
}

// flow makes calls as client and as server until it is ended.
type flow struct {
	stop  atomic.Bool
	calls atomic.Int64
	all   sync.WaitGroup
}

func startFlow(c *caller, goroutines int) *flow {
	f := new(flow)
	for range goroutines {
		begin(&f.all, func() {
			calls := []rpcinfo.RPCInfo{client(usual), server(usual)}
			for !f.stop.Load() {
				for _, ri := range calls {
					c.call(ri, nil)
				}
				f.calls.Add(int64(len(calls)))
				runtime.Gosched()
			}
		})
	}
	return f
}

func (f *flow) end() int64 {
	f.stop.Store(true)
	f.all.Wait()
	return f.calls.Load()
}
