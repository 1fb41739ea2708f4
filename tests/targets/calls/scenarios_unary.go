package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/pkg/connpool"
	"github.com/cloudwego/kitex/pkg/endpoint"
	"github.com/cloudwego/kitex/pkg/remote/trans/gonet"
	"github.com/cloudwego/kitex/pkg/serviceinfo"
	"github.com/cloudwego/kitex/server"
	"github.com/cloudwego/kitex/transport"
)

func init() {
	register(
		scenario{name: "framed", about: "Thrift over framed", client: 1, server: 1,
			setup: func(s *stage) func() error { return s.dial(s.serve(obey)).echoes(succeed, ok) }},
		scenario{name: "ttheader", about: "Thrift over TTHeader", client: 1, server: 1,
			setup: func(s *stage) func() error { return s.dial(s.serve(obey), ttheader()...).echoes(succeed, ok) }},
		scenario{name: "ttheader_framed", about: "Thrift over TTHeader and framed", client: 1, server: 1,
			setup: func(s *stage) func() error {
				return s.dial(s.serve(obey), append(ttheader(), client.WithTransportProtocol(transport.TTHeaderFramed))...).
					echoes(succeed, ok)
			}},
		scenario{name: "mux", about: "Thrift over multiplexed connections", alone: true, client: 1, server: 1,
			setup: func(s *stage) func() error {
				return s.dial(s.serve(obey, server.WithMuxTransport()), mux()...).echoes(succeed, ok)
			}},
		scenario{name: "protobuf", about: "Kitex Protobuf over TTHeader", client: 1, server: 1,
			setup: func(s *stage) func() error { return protobuf(s, ttheader()) }},
		scenario{name: "protobuf_mux", about: "Kitex Protobuf over multiplexed connections", alone: true, client: 1, server: 1,
			setup: func(s *stage) func() error { return protobuf(s, mux(), server.WithMuxTransport()) }},
		scenario{name: "long", about: "connections kept for the next call", client: 1, server: 1,
			setup: func(s *stage) func() error { return s.dial(s.serve(obey), keep()).echoes(succeed, ok) }},
		scenario{name: "short", about: "a connection for each call", client: 1, server: 1,
			setup: func(s *stage) func() error {
				return s.dial(s.serve(obey), client.WithShortConnection()).echoes(succeed, ok)
			}},
		scenario{name: "gonet", about: "server on Go's net instead of netpoll", client: 1, server: gonetServed,
			setup: func(s *stage) func() error {
				return s.dial(s.serve(obey, onGonet()...), append(ttheader(), client.WithShortConnection())...).
					echoes(succeed, ok)
			}},
		scenario{name: "oneway", about: "calls without an answer", client: 1, server: 1,
			setup: func(s *stage) func() error { return notifies(s.dial(s.serve(obey), ttheader()...), succeed) }},
		scenario{name: "oneway_fail", about: "calls without an answer that fail", client: 1, server: 1,
			setup: func(s *stage) func() error { return notifies(s.dial(s.serve(obey), ttheader()...), fail) }},
		scenario{name: "relay", about: "the handler calls another service", client: 2, server: 2,
			setup: func(s *stage) func() error { return relay(s, false) }},
		scenario{name: "relay_go", about: "the handler calls another service from another goroutine", client: 2, server: 2,
			setup: func(s *stage) func() error { return relay(s, true) }},
		scenario{name: "nested", about: "a client's middleware calls with another client", client: 2, server: 2,
			setup: nested},
		scenario{name: "two_services", about: "two servers and two clients", client: 2, server: 2, setup: twoServices},
		scenario{name: "churn", about: "many goroutines, few connections kept", client: churnCalls, server: churnCalls,
			setup: churn},
	)
}

func mux() []client.Option { return append(ttheader(), client.WithMuxConnection(2)) }

func onGonet() []server.Option {
	return []server.Option{
		server.WithTransServerFactory(gonet.NewTransServerFactory()),
		server.WithTransHandlerFactory(gonet.NewSvrTransHandlerFactory()),
	}
}

func protobuf(s *stage, protocol []client.Option, opts ...server.Option) func() error {
	address := s.serveAs(s.scenario.name, served(serviceinfo.Protobuf), obey, opts...)
	return s.dialAs(s.scenario.name, address, serviceinfo.Protobuf, protocol...).echoes(succeed, ok)
}

func notifies(c caller, a action) func() error {
	return func() error {
		return c.call(context.Background(), "Notify", &message{action: a, payload: []byte("payload")})
	}
}

func relay(s *stage, elsewhere bool) func() error {
	behind := s.scenario.name + "-behind"
	next := s.dialAs(behind, s.serveAs(behind, served(serviceinfo.Thrift), obey), serviceinfo.Thrift, ttheader()...)
	onward := func(ctx context.Context, method string, request *message) error {
		return next.call(ctx, method, request)
	}
	front := onward
	if elsewhere {
		front = func(ctx context.Context, method string, request *message) error {
			answer := make(chan error)
			go func() { answer <- onward(ctx, method, request) }()
			return <-answer
		}
	}
	return s.dial(s.serve(front), ttheader()...).echoes(succeed, ok)
}

func nested(s *stage) func() error {
	address := s.serve(obey)
	audit := s.dialAs(s.scenario.name+"-audit", address, serviceinfo.Thrift)
	return s.dial(address, client.WithMiddleware(func(next endpoint.Endpoint) endpoint.Endpoint {
		return func(ctx context.Context, request, reply any) error {
			if err := audit.call(context.Background(), "Echo", &message{payload: []byte("audit")}); err != nil {
				return err
			}
			return next(ctx, request, reply)
		}
	})).echoes(succeed, ok)
}

func twoServices(s *stage) func() error {
	var callers []caller
	for i := 0; i < 2; i++ {
		callee := fmt.Sprint(s.scenario.name, "-", i)
		address := s.serveAs(callee, served(serviceinfo.Thrift), obey)
		callers = append(callers, s.dialAs(callee, address, serviceinfo.Thrift, ttheader()...))
	}
	return func() error {
		for _, c := range callers {
			if err := c.echo(succeed, ok); err != nil {
				return err
			}
		}
		return nil
	}
}

const (
	churnGoroutines = 16
	churnEach       = 4
	churnCalls      = churnGoroutines * churnEach
)

// churn closes most connections right after their call, since the pool has room for two.
func churn(s *stage) func() error {
	c := s.dial(s.serve(obey), client.WithLongConnection(connpool.IdleConfig{
		MaxIdlePerAddress: 2, MaxIdleGlobal: 2, MaxIdleTimeout: 2 * time.Second}))
	return func() error {
		return inParallel(churnGoroutines, func() error {
			for i := 0; i < churnEach; i++ {
				if err := c.echo(succeed, ok); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// inParallel does the same in n goroutines and returns one of the errors.
func inParallel(n int, do func() error) error {
	var (
		all  sync.WaitGroup
		errs = make(chan error, n)
	)
	for i := 0; i < n; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			errs <- do()
		}()
	}
	all.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
