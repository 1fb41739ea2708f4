//go:build !kitex_before_0_11

package main

import (
	"github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/pkg/retry"
)

func init() {
	register(scenario{name: "retry_mixed", about: "a retry policy that is both, the first attempt fails", client: 1, server: 2,
		setup: func(s *stage) func() error {
			return retried(s, flaky, ok,
				client.WithMixedRetry(retry.NewMixedPolicyWithResultRetry(uint32(patience.Milliseconds()), retry.AllErrorRetry())))
		}})
}
