package main

import (
	"context"
	"fmt"
	"time"

	"github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/pkg/circuitbreak"
	"github.com/cloudwego/kitex/pkg/fallback"
	"github.com/cloudwego/kitex/pkg/limit"
	"github.com/cloudwego/kitex/pkg/retry"
	"github.com/cloudwego/kitex/pkg/rpcinfo"
	"github.com/cloudwego/kitex/pkg/serviceinfo"
	"github.com/cloudwego/kitex/pkg/utils"
	"github.com/cloudwego/kitex/server"
)

func init() {
	register(
		scenario{name: "retry", about: "the first attempt fails, its retry succeeds", client: 1, server: 2,
			setup: func(s *stage) func() error { return retried(s, flaky, ok, failurePolicy()) }},
		scenario{name: "retry_exhausted", about: "all three attempts fail", client: 1, server: 3,
			setup: func(s *stage) func() error { return retried(s, fail, failing(errAsked.Error()), failurePolicy()) }},
		scenario{name: "retry_method", about: "a retry policy for one method", client: 1, server: 2,
			setup: func(s *stage) func() error {
				return retried(s, flaky, ok, client.WithRetryMethodPolicies(map[string]retry.Policy{
					"Echo": {Enable: true, Type: retry.FailureType, FailurePolicy: newFailurePolicy()}}))
			}},
		scenario{name: "retry_timeout", about: "the first attempt outlasts its time, its retry succeeds", client: 1, server: 2,
			parallel: true, setup: func(s *stage) func() error {
				return overtaken(s, client.WithRPCTimeout(shortTime), client.WithFailureRetry(retry.NewFailurePolicy()))
			}},
		scenario{name: "backup", about: "a backup request overtakes the first, which ends later", client: 1, server: 2,
			parallel: true, setup: func(s *stage) func() error {
				return overtaken(s, client.WithBackupRequest(retry.NewBackupPolicy(50)))
			}},
		scenario{name: "fallback", about: "a fallback hides the error from the caller only", client: 1, server: 1,
			setup: func(s *stage) func() error { return fallenBack(s, fallback.NewFallbackPolicy(instead)) }},
		scenario{name: "fallback_reported", about: "a fallback that is reported as the outcome", client: 1, server: 1,
			setup: func(s *stage) func() error {
				return fallenBack(s, fallback.NewFallbackPolicy(instead).EnableReportAsFallback())
			}},
		scenario{name: "timeout", about: "the client's deadline passes, the server goes on", client: 1, server: 1,
			parallel: true, setup: func(s *stage) func() error {
				return outlasted(s.dial(s.serve(s.gates.pass), append(ttheader(), client.WithRPCTimeout(shortTime))...),
					&s.gates, context.WithCancel, "rpc timeout")
			}},
		scenario{name: "timeout_mux", about: "the client's deadline passes over a multiplexed connection", alone: true, client: 1, server: 1,
			parallel: true, setup: func(s *stage) func() error {
				address := s.serve(s.gates.pass, server.WithMuxTransport())
				return outlasted(s.dial(address, append(mux(), client.WithRPCTimeout(shortTime))...),
					&s.gates, context.WithCancel, "rpc timeout")
			}},
		scenario{name: "timeout_grpc", about: "the client's deadline passes over gRPC", client: 1, server: 1,
			parallel: true, setup: func(s *stage) func() error {
				address := s.serveAs(s.scenario.name, served(serviceinfo.Protobuf), s.gates.pass)
				c := s.dialAs(s.scenario.name, address, serviceinfo.Protobuf, append(grpc(), client.WithRPCTimeout(shortTime))...)
				return outlasted(c, &s.gates, context.WithCancel, "timeout")
			}},
		scenario{name: "deadline", about: "the caller's own deadline passes, the server goes on", client: 1, server: 1,
			parallel: true, setup: func(s *stage) func() error {
				return outlasted(s.dial(s.serve(s.gates.pass), ttheader()...), &s.gates, soon, "timeout")
			}},
		scenario{name: "canceled", about: "the caller cancels, the server goes on", client: 1, server: 1,
			parallel: true, setup: canceled},
		scenario{name: "breaker", about: "a circuit breaker forbids calls after two that found nobody", client: 4,
			setup: breaker},
		scenario{name: "limit_rate", about: "the server's own rate limit refuses before decoding", client: 1,
			setup: func(s *stage) func() error {
				// The limiter grants whole calls each 100 ms: of 1 a second none.
				address := s.serve(obey, server.WithLimit(&limit.Option{MaxConnections: 1000, MaxQPS: 1}))
				return s.dial(address).echoes(succeed, failing(""))
			}},
		scenario{name: "limit_connections", about: "the server's own connection limit refuses the second", client: 2, server: 1,
			setup: limitConnections},
		scenario{name: "limit_late", about: "a limiter of the user's own refuses after decoding", client: 1, server: 1,
			setup: func(s *stage) func() error {
				return s.dial(s.serve(obey, server.WithQPSLimiter(closed{}))).echoes(succeed, failing("request over limit"))
			}},
	)
}

// shortTime is long enough for a request to reach its handler, and as long as a call that waits for it takes.
const shortTime = 150 * time.Millisecond

func newFailurePolicy() *retry.FailurePolicy {
	policy := retry.NewFailurePolicyWithResultRetry(retry.AllErrorRetry())
	policy.WithMaxRetryTimes(2)
	return policy
}

func failurePolicy() client.Option { return client.WithFailureRetry(newFailurePolicy()) }

// retried makes each call with a client of its own: the retries of one client are limited to a tenth of its calls.
func retried(s *stage, a action, is check, policy client.Option) func() error {
	address := s.serve(obey)
	return func() error {
		return s.fresh(func(c caller) error { return c.echo(a, is) }, address, append(ttheader(), policy)...)
	}
}

// overtaken holds the first attempt at a gate until the second has brought the reply. Each call has a client of its own:
// the retries of one client are limited to a tenth of its calls.
func overtaken(s *stage, opts ...client.Option) func() error {
	address := s.serve(func(ctx context.Context, method string, request *message) error {
		if isRetry(ctx) {
			return nil
		}
		return s.gates.pass(ctx, method, request)
	})
	return func() error {
		g := s.gates.shut()
		defer close(g.open)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		err := s.fresh(func(c caller) error { return c.call(ctx, "Echo", g.request()) }, address,
			append(ttheader(), opts...)...)
		return join(err, g.reached())
	}
}

func instead(_ context.Context, _ utils.KitexArgs, result utils.KitexResult, err error) error {
	if err != nil {
		result.SetSuccess([]byte("payload"))
	}
	return nil
}

func fallenBack(s *stage, policy *fallback.Policy) func() error {
	return s.dial(s.serve(obey), append(ttheader(), client.WithFallback(policy))...).echoes(fail, ok)
}

func soon(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, shortTime)
}

// outlasted keeps the handler until the client has given up.
func outlasted(c caller, at *gates, limited func(context.Context) (context.Context, context.CancelFunc),
	text string) func() error {
	return func() error {
		g := at.shut()
		defer close(g.open)
		ctx, cancel := limited(context.Background())
		defer cancel()
		err := failing(text)(c.call(ctx, "Echo", g.request()))
		return join(err, g.reached())
	}
}

func canceled(s *stage) func() error {
	c := s.dial(s.serve(s.gates.pass), ttheader()...)
	return func() error {
		g := s.gates.shut()
		defer close(g.open)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- c.call(ctx, "Echo", g.request()) }()
		err := g.reached()
		cancel()
		return join(err, failing("canceled")(<-ended))
	}
}

// breaker gives each repetition a key of its own, since a breaker stays open for seconds.
func breaker(s *stage) func() error {
	address := refused()
	var turn counter
	return func() error {
		key := fmt.Sprint(turn.Add(1))
		suite := circuitbreak.NewCBSuite(func(rpcinfo.RPCInfo) string { return key })
		suite.UpdateServiceCBConfig(key, circuitbreak.CBConfig{Enable: true, ErrRate: 0.5, MinSample: 2})
		return s.fresh(func(c caller) error {
			for _, text := range []string{"get connection", "get connection", "circuitbreak", "circuitbreak"} {
				if err := c.echo(succeed, failing(text)); err != nil {
					return err
				}
			}
			return nil
		}, address, client.WithCircuitBreaker(suite))
	}
}

// limitConnections has one client hold the only connection that the server allows.
func limitConnections(s *stage) func() error {
	address := s.serve(obey, server.WithLimit(&limit.Option{MaxConnections: 1, MaxQPS: 1000000}))
	holder := s.dial(address, keep())
	other := s.dial(address, client.WithShortConnection())
	return func() error {
		return join(holder.echo(succeed, ok), other.echo(succeed, failing("")))
	}
}

// closed is a rate limiter that lets nothing pass.
type closed struct{}

func (closed) Acquire(context.Context) bool { return false }

func (closed) Status(context.Context) (most, current int, interval time.Duration) {
	return 0, 0, time.Second
}
