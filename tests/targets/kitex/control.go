package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sort"
	"strconv"
	"syscall"
	"time"

	"example.com/monitor/steer"
)

// control obeys commands, as package steer reads them.
//
//	counts            the tally: {"counts":[{side,type,caller,callee,method,status,retry,count}],
//	                  "started":n,"finished":n}; of a client also what its callers got, "loop":[{method,result,count}], and how
//	                  often that is not what the call asked for, "unexpected":n, calls of a flow under way included
//	durations         {"durations":[{labels…,count,sum,p50,p99,values:[[us,count]…]}]}, whole microseconds
//	calls             {"calls":[{labels…,goroutine,duration_us,sent_bytes,received_bytes,time_ns}]}: each call since the
//	                  last time, those of one goroutine in their order; with the tracer log only
//	reset             zero the tally; refused while calls are under way
//	settle            answers once no call is under way and none has been for 50 ms
//	cpu               {"user_us":n,"system_us":n} of this process
//	exec PATH ARG…    answers, then becomes another program
//
// On a client only:
//
//	load N C SEED     N mixed calls from C goroutines: {"calls","ok","biz","err","seconds"} when all have finished
//	call N METHOD ACTION [BYTES [SLEEP_US]]    N equal calls, one after the other
//	flow C [QPS]      mixed calls until pause; answers at once
//	pause             ends the flow, waits for its last call; connections stay open; answers like load
//	bench SECONDS C [LONGEST]    Lookup with 1 KB back to back: like load, and p50_us, p99_us, p999_us; so many of the
//	                  longest and more as "longest":[{begin_ns,us}], begun at nanoseconds since 1970
type control struct {
	tally   *tally
	log     *callLog
	load    *load
	handler *handler
	ready   map[string]any

	steering steer.Steering
}

const (
	quiet      = 50 * time.Millisecond
	settleTime = 20 * time.Second
)

func (c *control) obey(command string, args []string) (map[string]any, error) {
	switch command {
	case "counts":
		return c.counts(), nil
	case "durations":
		return c.durations(), nil
	case "calls":
		if c.log == nil {
			return nil, errors.New("calls are kept with --tracer tally,log only")
		}
		return map[string]any{"calls": c.log.take()}, nil
	case "reset":
		return c.reset()
	case "settle":
		return c.settle()
	case "cpu":
		return cpu()
	case "exec":
		return c.become(args)
	}
	if c.load == nil {
		return nil, fmt.Errorf("unknown command %q here", command)
	}
	if command == "pause" {
		out, err := c.load.pause()
		return out.reply(), err
	}
	if c.load.flow != nil {
		return nil, errFlowing
	}
	switch command {
	case "load":
		return c.exactly(args)
	case "call":
		return c.call(args)
	case "flow":
		return c.flow(args)
	case "bench":
		return c.bench(args)
	}
	return nil, fmt.Errorf("unknown command %q", command)
}

func (c *control) counts() map[string]any {
	type row struct {
		labels
		Count uint64 `json:"count"`
	}
	rows := []row{}
	c.tally.each(func(l labels, cell *cell) { rows = append(rows, row{l, cell.count.Load()}) })
	reply := map[string]any{
		"counts": rows, "started": c.tally.started.Load(), "finished": c.tally.finished.Load(),
	}
	if c.load != nil {
		reply["loop"] = loopRows(c.load.loopCounts())
		reply["unexpected"] = c.load.unexpected.Load()
	}
	return reply
}

func loopRows(counts map[loopKey]uint64) []map[string]any {
	rows := []map[string]any{}
	for key, n := range counts {
		rows = append(rows, map[string]any{"method": key.method, "result": key.result, "count": n})
	}
	name := func(i int) string { return fmt.Sprint(rows[i]["method"], rows[i]["result"]) }
	sort.Slice(rows, func(i, j int) bool { return name(i) < name(j) })
	return rows
}

func (c *control) durations() map[string]any {
	type row struct {
		labels
		Count  uint64      `json:"count"`
		Sum    int64       `json:"sum"`
		P50    uint64      `json:"p50"`
		P99    uint64      `json:"p99"`
		Values [][2]uint64 `json:"values"`
	}
	rows := []row{}
	c.tally.each(func(l labels, cell *cell) {
		values := cell.durations.values()
		rows = append(rows, row{l, cell.count.Load(), cell.durations.sum.Load(),
			quantile(values, 0.5), quantile(values, 0.99), values})
	})
	return map[string]any{"durations": rows}
}

func (c *control) reset() (map[string]any, error) {
	if !c.tally.reset() {
		return nil, errors.New("calls are under way: settle first")
	}
	if c.load != nil {
		c.load.reset()
	}
	return map[string]any{"reset": true}, nil
}

// underWay says how many calls have begun and not ended; a handler's own count serves where there is no tracer.
func (c *control) underWay() int64 {
	n := int64(c.tally.started.Load() - c.tally.finished.Load())
	if c.handler != nil {
		n = max(n, c.handler.inFlight.Load())
	}
	return n
}

// settle waits for the calls that the server still handles after a client's oneway call has returned.
func (c *control) settle() (map[string]any, error) {
	begin := time.Now()
	still, seen := begin, c.tally.started.Load()
	for time.Since(still) < quiet {
		if time.Since(begin) > settleTime {
			return nil, fmt.Errorf("%d calls are still under way after %v", c.underWay(), settleTime)
		}
		time.Sleep(time.Millisecond)
		if now := c.tally.started.Load(); now != seen || c.underWay() != 0 {
			still, seen = time.Now(), now
		}
	}
	return map[string]any{"settled": true, "started": c.tally.started.Load(), "finished": c.tally.finished.Load()}, nil
}

func (c *control) exactly(args []string) (map[string]any, error) {
	n, err := numbers(args, 3, 3)
	if err != nil || n[1] == 0 {
		return nil, steer.ErrUsage
	}
	return c.load.exactly(n[0], int(n[1]), n[2]).reply(), nil
}

func (c *control) call(args []string) (map[string]any, error) {
	if len(args) < 3 || !slices.Contains(methods, args[1]) || !slices.Contains(actionNames, args[2]) {
		return nil, steer.ErrUsage
	}
	n, err := numbers(append([]string{args[0]}, args[3:]...), 1, 3)
	if err != nil {
		return nil, err
	}
	n = append(n, 0, 0)
	if n[1] > uint64(len(c.load.payload)) {
		return nil, fmt.Errorf("a payload has at most %d bytes", len(c.load.payload))
	}
	k := kind{method: args[1], action: action(slices.Index(actionNames, args[2])), payload: int(n[1]), sleepUS: int32(n[2])}
	return c.load.same(n[0], k).reply(), nil
}

func (c *control) flow(args []string) (map[string]any, error) {
	n, err := numbers(args, 1, 2)
	if err != nil || n[0] == 0 {
		return nil, steer.ErrUsage
	}
	n = append(n, 0)
	c.load.startFlow(int(n[0]), float64(n[1]))
	return map[string]any{"flowing": true}, nil
}

func (c *control) bench(args []string) (map[string]any, error) {
	if len(args) < 2 {
		return nil, steer.ErrUsage
	}
	seconds, err := strconv.ParseFloat(args[0], 64)
	n, err2 := numbers(append(args[1:], "0"), 2, 3)
	if err != nil || err2 != nil || n[0] == 0 {
		return nil, steer.ErrUsage
	}
	longest := longest{limit: int(n[1])}
	out, values := c.load.bench(time.Duration(seconds*float64(time.Second)), int(n[0]), &longest)
	reply := out.reply()
	if longest.limit > 0 {
		reply["longest"] = longest.calls
	}
	reply["p50_us"], reply["p99_us"], reply["p999_us"] =
		quantile(values, 0.5), quantile(values, 0.99), quantile(values, 0.999)
	return reply, nil
}

func numbers(args []string, least, most int) ([]uint64, error) {
	if len(args) < least || len(args) > most {
		return nil, steer.ErrUsage
	}
	var list []uint64
	for _, arg := range args {
		n, err := strconv.ParseUint(arg, 10, 64)
		if err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	return list, nil
}

func cpu() (map[string]any, error) {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		return nil, err
	}
	return map[string]any{"user_us": use.Utime.Nano() / 1000, "system_us": use.Stime.Nano() / 1000}, nil
}

// become has this process be replaced by another program once that is answered.
func (c *control) become(words []string) (map[string]any, error) {
	if len(words) == 0 {
		return nil, steer.ErrUsage
	}
	path, err := exec.LookPath(words[0])
	if err != nil {
		return nil, err
	}
	words = append([]string{path}, words[1:]...)
	c.steering.EndBy(func() error { return syscall.Exec(path, words, os.Environ()) })
	return map[string]any{"exec": path}, nil
}
