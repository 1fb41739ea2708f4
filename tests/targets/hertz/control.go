package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// control obeys lines on stdin. Each is answered by one JSON line; {"error": text} says why it could not be done.
//
//	requests N  makes N requests of each kind: {"ran"}
//	counts      {"requests":{method/route/code: n}}, with | in place of the slashes of routes
//	quit        answers, then ends; the end of stdin does the same
type control struct {
	tally   *tally
	address string
}

var errUsage = errors.New("wrong or missing arguments")

func newControl(listener net.Listener) *control {
	c := &control{tally: &tally{counts: map[string]int{}}, address: listener.Addr().String()}
	c.tally.start(listener)
	return c
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
