// Command web has servers of net/http, of HTTP/1 and of HTTP/2, sends requests to them, and counts them in the handler. It can
// be built by any Go since 1.18.
package main

import (
	"fmt"
	"os"
	"strconv"

	"example.com/monitor/steer"
)

// control obeys commands, as package steer reads them.
//
//	requests N  makes N requests of each kind: {"ran"}
//	counts      {"requests":{method/code/version: n}}
type control struct{ tally *tally }

func main() {
	if err := steer.Serve(steer.Ready(), (&control{newTally()}).obey); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (c *control) obey(command string, args []string) (map[string]any, error) {
	switch command {
	case "counts":
		c.tally.mu.Lock()
		defer c.tally.mu.Unlock()
		return map[string]any{"requests": c.tally.counts}, nil
	case "requests":
		if len(args) != 1 {
			return nil, steer.ErrUsage
		}
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return nil, steer.ErrUsage
		}
		return map[string]any{"ran": n}, c.tally.requests(n)
	}
	return nil, fmt.Errorf("no command %q", command)
}
