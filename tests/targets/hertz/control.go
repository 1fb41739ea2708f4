package main

import (
	"fmt"
	"io"
	"net/http"
	"strconv"

	"example.com/monitor/steer"
)

// control obeys commands, as package steer reads them.
//
//	requests N  makes N requests of each kind: {"ran"}
//	counts      {"requests":{method/route/code: n}}, with | in place of the slashes of routes
type control struct {
	tally   *tally
	address string
}

func newControl(overNetpoll bool) (*control, error) {
	address, err := free()
	if err != nil {
		return nil, err
	}
	c := &control{tally: &tally{counts: map[string]int{}}, address: address}
	return c, c.tally.start(address, overNetpoll)
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
		return map[string]any{"ran": n}, c.requests(n)
	}
	return nil, fmt.Errorf("no command %q", command)
}

// requests makes n requests of each kind, some on connections of their own.
func (c *control) requests(n int) error {
	for _, method := range []string{"GET", "POST", "BREW"} {
		for _, path := range []string{"/users/me", "/users/201", "/users/503", "/other", "/"} {
			for i := range n {
				if err := c.request(method, path, i%3 == 0); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (c *control) request(method, path string, closes bool) error {
	request, err := http.NewRequest(method, "http://"+c.address+path, nil)
	if err != nil {
		return err
	}
	request.Close = closes
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err
}
