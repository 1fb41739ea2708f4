package main

import (
	"fmt"
	"strconv"
	"sync"
	"time"

	"example.com/monitor/steer"
)

// control obeys commands, as package steer reads them.
//
//	scenarios         {"scenarios":[{name,about,finishes,missing}]}; missing says why this release lacks it
//	run SCENARIO N    makes N repetitions and waits until their calls are finished on both sides:
//	                  {"scenario","repeated","client","server"}, the calls that tracers saw finish. An error if a
//	                  client saw another outcome than meant, or if there were more or fewer calls than meant
//	run all N         all scenarios that finish and bear company, at the same time; the answer has, as "failed", the error
//	                  of each that has one, by its name
//	counts            {"counts":[{labels…,count,send_bytes,recv_bytes}],"started","finished"}
//	messages          {"messages":[{labels…,kind,direction,count,failed}]}, of streams
//	settle            answers once no call is under way that will finish, and none has been for 50 ms
//	reset             zero the tally; refused while calls are under way
type control struct {
	tally  *tally
	stages []*stage
}

const quiet = 50 * time.Millisecond

func newControl() *control {
	c := &control{tally: newTally()}
	for _, s := range scenarios {
		c.stages = append(c.stages, &stage{scenario: s, tally: c.tally})
	}
	return c
}

func (c *control) obey(command string, args []string) (map[string]any, error) {
	switch command {
	case "scenarios":
		return c.list(), nil
	case "run":
		return c.run(args)
	case "counts":
		started, finished := c.progress()
		return map[string]any{"counts": c.tally.callRows(), "started": started, "finished": finished}, nil
	case "messages":
		return map[string]any{"messages": c.tally.messageRows()}, nil
	case "settle":
		return c.settle()
	case "reset":
		return c.reset()
	}
	return nil, fmt.Errorf("unknown command %q", command)
}

func (c *control) list() map[string]any {
	rows := []map[string]any{}
	for _, s := range c.stages {
		row := map[string]any{"name": s.scenario.name, "about": s.scenario.about, "finishes": !s.scenario.abandons}
		if s.scenario.missing != "" {
			row["missing"] = s.scenario.missing
		}
		rows = append(rows, row)
	}
	return map[string]any{"scenarios": rows}
}

func (c *control) run(args []string) (map[string]any, error) {
	if len(args) != 2 {
		return nil, steer.ErrUsage
	}
	n, err := strconv.Atoi(args[1])
	if err != nil || n < 1 {
		return nil, steer.ErrUsage
	}
	if args[0] == "all" {
		return c.runAll(n)
	}
	for _, s := range c.stages {
		if s.scenario.name == args[0] {
			seen, err := s.run(n)
			return answerOf(args[0], n, seen), err
		}
	}
	return nil, fmt.Errorf("no scenario %q", args[0])
}

func (c *control) runAll(n int) (map[string]any, error) {
	var (
		all sync.WaitGroup
		mu  sync.Mutex
		sum seen
	)
	failed := map[string]string{}
	for _, s := range c.stages {
		if s.scenario.abandons || s.scenario.alone || s.scenario.missing != "" {
			continue
		}
		s := s
		all.Add(1)
		go func() {
			defer all.Done()
			one, err := s.run(n)
			mu.Lock()
			defer mu.Unlock()
			sum.client += one.client
			sum.server += one.server
			if err != nil {
				failed[s.scenario.name] = err.Error()
			}
		}()
	}
	all.Wait()
	answer := answerOf("all", n, sum)
	answer["failed"] = failed
	return answer, nil
}

func answerOf(name string, n int, all seen) map[string]any {
	return map[string]any{"scenario": name, "repeated": n, "client": all.client, "server": all.server}
}

func (c *control) progress() (started, finished int64) {
	for _, s := range c.stages {
		started += s.client.started.Load() + s.server.started.Load()
		finished += s.client.finished.Load() + s.server.finished.Load()
	}
	return started, finished
}

func (c *control) underWay() int64 {
	var n int64
	for _, s := range c.stages {
		if !s.scenario.abandons {
			n += s.underWay()
		}
	}
	return n
}

func (c *control) settle() (map[string]any, error) {
	begin := time.Now()
	still, last := begin, int64(-1)
	for time.Since(still) < quiet {
		if time.Since(begin) > patience {
			return nil, fmt.Errorf("%d calls are still under way after %v", c.underWay(), patience)
		}
		time.Sleep(time.Millisecond)
		started, finished := c.progress()
		if now := started + finished; now != last || c.underWay() != 0 {
			still, last = time.Now(), now
		}
	}
	started, finished := c.progress()
	return map[string]any{"settled": true, "started": started, "finished": finished}, nil
}

func (c *control) reset() (map[string]any, error) {
	if n := c.underWay(); n != 0 {
		return nil, fmt.Errorf("%d calls are under way: settle first", n)
	}
	c.tally.reset()
	for _, s := range c.stages {
		s.client.forget()
		s.server.forget()
	}
	return map[string]any{"reset": true}, nil
}
