//go:build !kitex_before_0_16_2

package main

import (
	"context"

	"github.com/cloudwego/kitex/server"
)

func init() {
	register(scenario{name: "local", about: "calls of a server's own process without a client", server: 4, setup: local})
}

func local(s *stage) func() error {
	c := must(server.NewLocalCaller(s.scenario.name+"-client", s.unheard()))
	call := func(a action, is check) error {
		return is(c.Call(context.Background(), "Echo", request(a), new(message)))
	}
	return func() error {
		return join(call(succeed, ok), call(fail, failing(errAsked.Error())), call(biz, bizFailing),
			call(crash, failing("panic")))
	}
}
