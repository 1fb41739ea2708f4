package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// control obeys lines on stdin. Each is answered by one JSON line; {"error": text} says why it could not be done.
//
//	jobs N      runs N jobs, all under way at once: {"ran"}
//	tries N     runs N jobs, the first after one try, the second after two, and so on: {"ran"}
//	work N      N goroutines work: {"ran"}
//	requests N  makes N requests of each kind: {"ran"}
//	begin ID    begins a turn: {"ran"}
//	end ID      ends it: {"ran"}
//	counts      {"jobs":{queue/kind/tries/outcome: n},"work":{done,failed},"requests":{method/code/version: n}}
//	quit        answers, then ends; the end of stdin does the same
type control struct {
	queue  *queue
	work   *work
	server *server
	turns  *turns
}

var errUsage = errors.New("wrong or missing arguments")

func (c *control) serve(in io.Reader, out io.Writer) error {
	answer := json.NewEncoder(out)
	if err := answer.Encode(map[string]any{"ready": true, "pid": os.Getpid()}); err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 0 {
			continue
		}
		reply, err := c.obey(words[0], words[1:])
		if err != nil {
			reply = map[string]any{"error": err.Error()}
		}
		if err := answer.Encode(reply); err != nil || words[0] == "quit" {
			return err
		}
	}
	return lines.Err()
}

func (c *control) obey(command string, args []string) (map[string]any, error) {
	switch command {
	case "counts":
		return c.counts(), nil
	case "quit":
		return map[string]any{"quit": true}, nil
	}
	if len(args) != 1 {
		return nil, errUsage
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, errUsage
	}
	switch command {
	case "jobs":
		c.queue.run(n)
	case "tries":
		c.queue.again(n)
	case "work":
		c.work.run(n)
	case "requests":
		err = c.server.run(n)
	case "begin":
		c.turns.named(n).begin(n)
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
