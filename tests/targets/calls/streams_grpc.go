package main

import (
	"context"
	"fmt"
	"io"

	"github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/pkg/serviceinfo"
	"github.com/cloudwego/kitex/pkg/streaming"
	"github.com/cloudwego/kitex/server"
)

// Calls over gRPC. Streams are made by the older API, client.Streaming.Stream.

func init() {
	register(
		scenario{name: "grpc_unary", about: "Protobuf over gRPC", client: 1, server: 1,
			setup: func(s *stage) func() error { return overGRPC(s, serviceinfo.Protobuf).echoes(succeed, ok) }},
		scenario{name: "grpc_thrift", about: "Thrift over gRPC", client: 1, server: 1,
			setup: func(s *stage) func() error { return overGRPC(s, serviceinfo.Thrift).echoes(succeed, ok) }},
		scenario{name: "grpc_unary_fail", about: "the handler returns an error over gRPC", client: 1, server: 1,
			setup: func(s *stage) func() error {
				return overGRPC(s, serviceinfo.Protobuf).echoes(fail, failing(errAsked.Error()))
			}},
		scenario{name: "grpc_unary_biz", about: "biz status error over gRPC", client: 1, server: 1,
			setup: func(s *stage) func() error { return overGRPC(s, serviceinfo.Protobuf).echoes(biz, bizFailing) }},
		scenario{name: "grpc_unknown", about: "a method that the server doesn't have, over gRPC", client: 1, server: 1,
			setup: func(s *stage) func() error {
				c := overGRPC(s, serviceinfo.Protobuf)
				return func() error {
					return failing("unknown ")(c.call(context.Background(), missingMethod, &message{}))
				}
			}},
		scenario{name: "grpc_client", about: "stream of the client over gRPC", client: 1, server: 1,
			setup: func(s *stage) func() error { return grpcStreams(s, "Up", succeed, ok) }},
		scenario{name: "grpc_server", about: "stream of the server over gRPC", client: 1, server: 1,
			setup: func(s *stage) func() error { return grpcStreams(s, "Down", succeed, ok) }},
		scenario{name: "grpc_bidi", about: "stream of both sides over gRPC", client: 1, server: 1,
			setup: func(s *stage) func() error { return grpcStreams(s, "Chat", succeed, ok) }},
		scenario{name: "grpc_fail", about: "a stream over gRPC whose handler fails", client: 1, server: 1,
			setup: func(s *stage) func() error { return grpcStreams(s, "Down", fail, failing(errAsked.Error())) }},
		scenario{name: "grpc_panic", about: "a stream over gRPC whose handler panics", client: 1, server: 1,
			setup: func(s *stage) func() error { return grpcStreams(s, "Down", crash, failing("panic")) }},
		scenario{name: "grpc_panic_outside", about: "a server's middleware panics in a stream over gRPC",
			client: 1, server: 1, parallel: true,
			setup: func(s *stage) func() error {
				address := s.serveAs(s.scenario.name, served(serviceinfo.Protobuf), obey, server.WithMiddleware(panicking))
				c := s.dialAs(s.scenario.name, address, serviceinfo.Protobuf, grpc()...)
				return func() error { return cutShort(c, openOld, "Down") }
			}},
		scenario{name: "grpc_refused", about: "a stream that cannot be created", client: 1, abandons: unborn,
			setup: func(s *stage) func() error {
				c := s.dialAs(s.scenario.name, refused(), serviceinfo.Protobuf, grpc()...)
				return func() error {
					_, err := openOld(context.Background(), c, "Chat")
					return failing("get connection")(err)
				}
			}},
		scenario{name: "grpc_oneway", about: "calls without an answer over gRPC", client: 1, server: 1,
			setup: func(s *stage) func() error { return notifies(overGRPC(s, serviceinfo.Protobuf), succeed) }},
		scenario{name: "grpc_relay", about: "the handler of a stream calls another service", client: 2, server: 2,
			setup: grpcRelay},
		scenario{name: "stream_elsewhere", about: "a stream that another goroutine reads to its end", client: 1, server: 1,
			setup: streamElsewhere},
		scenario{name: "dropped_grpc", about: "a stream over gRPC that is canceled and never read", client: 1, server: unsure,
			abandons: true, setup: func(s *stage) func() error { return dropped(overGRPC(s, serviceinfo.Protobuf), openOld) }},
	)
}

func overGRPC(s *stage, codec serviceinfo.PayloadCodec) caller {
	address := s.serveAs(s.scenario.name, served(codec), obey)
	return s.dialAs(s.scenario.name, address, codec, grpc()...)
}

// oldStream is a stream of the older API.
type oldStream struct{ streaming.Stream }

func (s oldStream) send(m *message) error { return s.SendMsg(m) }

func (s oldStream) receive(m *message) error { return s.RecvMsg(m) }

func (s oldStream) closeSend() error { return s.Close() }

// open begins a stream.
type open func(ctx context.Context, c caller, method string) (stream, error)

func openOld(ctx context.Context, c caller, method string) (stream, error) {
	made := new(streaming.Result)
	if err := c.client.(client.Streaming).Stream(ctx, method, nil, made); err != nil {
		return nil, err
	}
	return oldStream{made.Stream}, nil
}

func grpcStreams(s *stage, method string, a action, is check) func() error {
	c := overGRPC(s, serviceinfo.Protobuf)
	return func() error { return is(converse(c, openOld, method, a)) }
}

// converse is the client's side of a whole stream.
func converse(c caller, begin open, method string, a action) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := begin(ctx, c, method)
	if err != nil {
		return err
	}
	switch method {
	case "Up":
		return up(s, a)
	case "Down":
		return down(s, a)
	}
	return chat(s, a)
}

func request(a action) *message { return &message{action: a, payload: []byte("payload")} }

func up(s stream, a action) error {
	for i := 0; i < streamMessages; i++ {
		if err := s.send(request(a)); err != nil {
			return err
		}
	}
	if err := s.closeSend(); err != nil {
		return err
	}
	return s.receive(new(message))
}

func down(s stream, a action) error {
	if err := s.send(request(a)); err != nil {
		return err
	}
	if err := s.closeSend(); err != nil {
		return err
	}
	return exactly(streamMessages, s)
}

func chat(s stream, a action) error {
	for i := 0; i < streamMessages; i++ {
		if err := s.send(request(a)); err != nil {
			return err
		}
		if err := s.receive(new(message)); err != nil {
			return err
		}
	}
	if err := s.closeSend(); err != nil {
		return err
	}
	return exactly(0, s)
}

// exactly reads a stream to its end.
func exactly(n int, s stream) error {
	for i := 0; ; i++ {
		switch err := s.receive(new(message)); {
		case err == io.EOF && i == n:
			return nil
		case err == io.EOF:
			return fmt.Errorf("%d messages, not %d", i, n)
		case err != nil:
			return err
		}
	}
}

func streamElsewhere(s *stage) func() error {
	c := overGRPC(s, serviceinfo.Protobuf)
	return func() error {
		st, err := openOld(context.Background(), c, "Down")
		if err != nil {
			return err
		}
		ended := make(chan error)
		go func() { ended <- down(st, succeed) }()
		return <-ended
	}
}

// cutShort reads a stream, which its server doesn't serve, until the error or until its time is over.
func cutShort(c caller, begin open, method string) error {
	ctx, cancel := context.WithTimeout(context.Background(), shortTime)
	defer cancel()
	s, err := begin(ctx, c, method)
	if err != nil {
		return err
	}
	return failing("")(down(s, succeed))
}

func grpcRelay(s *stage) func() error {
	behind := s.scenario.name + "-behind"
	next := s.dialAs(behind, s.serveAs(behind, served(serviceinfo.Thrift), obey), serviceinfo.Thrift, ttheader()...)
	address := s.serveAs(s.scenario.name, served(serviceinfo.Protobuf),
		func(ctx context.Context, _ string, request *message) error { return next.call(ctx, "Echo", request) })
	c := s.dialAs(s.scenario.name, address, serviceinfo.Protobuf, grpc()...)
	return func() error { return converse(c, openOld, "Chat", succeed) }
}

// dropped is the beginning of a stream that its user forgets.
func dropped(c caller, begin open) func() error {
	return func() error {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		s, err := begin(ctx, c, "Chat")
		if err != nil {
			return err
		}
		return join(s.send(request(succeed)), s.receive(new(message)))
	}
}
