// Command web has servers of net/http, of HTTP/1 and of HTTP/2, sends requests to them, and counts them in the handler. It can
// be built by any Go since 1.18.
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
//	requests N  makes N requests of each kind: {"ran"}
//	counts      {"requests":{method/code/version: n}}
//	quit        answers, then ends; the end of stdin does the same
type control struct{ tally *tally }

var errUsage = errors.New("wrong or missing arguments")

func main() {
	if err := (&control{newTally()}).serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

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
		c.tally.mu.Lock()
		defer c.tally.mu.Unlock()
		return map[string]any{"requests": c.tally.counts}, nil
	case "quit":
		return map[string]any{"quit": true}, nil
	case "requests":
		if len(args) != 1 {
			return nil, errUsage
		}
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return nil, errUsage
		}
		return map[string]any{"ran": n}, c.tally.requests(n)
	}
	return nil, fmt.Errorf("no command %q", command)
}
