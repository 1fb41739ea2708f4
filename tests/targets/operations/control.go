package main

import (
	"fmt"
	"strconv"
	"time"

	"example.com/monitor/steer"
)

// control obeys commands, as package steer reads them.
//
//	jobs N      runs N jobs, all under way at once: {"ran"}
//	tries N     runs N jobs, the first after one try, the second after two, and so on: {"ran"}
//	work N      N goroutines work: {"ran"}
//	requests N  makes N requests of each kind: {"ran"}
//	walk N      walks N times: {"ran"}
//	mark N      sets N marks: {"ran"}
//	toss N      tosses each of three coins N times: {"ran"}
//	begin ID    begins a turn: {"ran"}
//	take ID     is in the middle of it: {"ran"}
//	put ID      is behind that: {"ran"}
//	end ID      ends it: {"ran"}
//	rescue MS   recovers what leaves one inside another, each of which takes so long before: {"ran"}
//	counts      {"jobs":{queue/kind/tries/outcome: n},"work":{done,failed},"requests":{method/code/version: n}}
type control struct {
	queue  *queue
	work   *work
	server *server
	turns  *turns
	trail  place
	marks  *marks
	coins  *coins
}

func (c *control) obey(command string, args []string) (map[string]any, error) {
	switch command {
	case "counts":
		return c.counts(), nil
	}
	if len(args) != 1 {
		return nil, steer.ErrUsage
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, steer.ErrUsage
	}
	switch command {
	case "jobs":
		c.queue.run(n)
	case "tries":
		c.queue.again(n)
	case "work":
		c.work.run(n)
	case "rescue":
		rescue(false, time.Duration(n)*time.Millisecond)
	case "requests":
		err = c.server.run(n)
	case "walk":
		c.trail.walk(n)
	case "mark":
		c.marks.run(n)
	case "toss":
		c.coins.run(n)
	case "begin":
		c.turns.named(n).begin(n)
	case "take":
		c.turns.named(n).take(n)
	case "put":
		c.turns.named(n).put(n)
	case "end":
		c.turns.named(n).end(n)
	default:
		err = fmt.Errorf("no command %q", command)
	}
	return map[string]any{"ran": n}, err
}

func (c *control) counts() map[string]any {
	c.queue.mu.Lock()
	defer c.queue.mu.Unlock()
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	return map[string]any{
		"jobs":     c.queue.counts,
		"work":     map[string]int64{"done": c.work.done.Load(), "failed": c.work.failed.Load()},
		"requests": c.server.counts,
	}
}
