//go:build !kitex_before_0_6

package main

import "github.com/cloudwego/kitex/client"

func init() {
	register(
		scenario{name: "panic_client", about: "a client's middleware panics", client: 1,
			setup: func(s *stage) func() error {
				return s.dial(s.serve(obey), client.WithMiddleware(panicking)).echoes(succeed, failing("panic"))
			}},
	)
}
