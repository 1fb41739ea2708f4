//go:build !kitex_before_0_13

package main

import (
	"context"
	"syscall"

	"github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/pkg/serviceinfo"
	"github.com/cloudwego/kitex/pkg/streaming"
	"github.com/cloudwego/kitex/server"
	"github.com/cloudwego/kitex/transport"
)

// Streams made by the API of v0.13, client.Streaming.StreamX, over gRPC and over TTHeader.

func init() {
	register(
		scenario{name: "streamx_client", about: "stream of the client over gRPC, newer API", client: 1, server: 1,
			setup: func(s *stage) func() error { return streamsX(s, overGRPC(s, serviceinfo.Protobuf), "Up", succeed, ok) }},
		scenario{name: "streamx_server", about: "stream of the server over gRPC, newer API", client: 1, server: 1,
			setup: func(s *stage) func() error {
				return streamsX(s, overGRPC(s, serviceinfo.Protobuf), "Down", succeed, ok)
			}},
		scenario{name: "streamx_bidi", about: "stream of both sides over gRPC, newer API", client: 1, server: 1,
			setup: func(s *stage) func() error {
				return streamsX(s, overGRPC(s, serviceinfo.Protobuf), "Chat", succeed, ok)
			}},
		scenario{name: "ttstream_unary", about: "Thrift with a client for streams over TTHeader", client: 1, server: 1,
			setup: func(s *stage) func() error { return overTTHeader(s).echoes(succeed, ok) }},
		scenario{name: "ttstream_client", about: "stream of the client over TTHeader", client: 1, server: 1,
			setup: func(s *stage) func() error { return streamsX(s, overTTHeader(s), "Up", succeed, ok) }},
		scenario{name: "ttstream_server", about: "stream of the server over TTHeader", client: 1, server: 1,
			setup: func(s *stage) func() error { return streamsX(s, overTTHeader(s), "Down", succeed, ok) }},
		scenario{name: "ttstream_bidi", about: "stream of both sides over TTHeader", client: 1, server: 1,
			setup: func(s *stage) func() error { return streamsX(s, overTTHeader(s), "Chat", succeed, ok) }},
		scenario{name: "ttstream_fail", about: "a stream over TTHeader whose handler fails", client: 1, server: 1,
			setup: func(s *stage) func() error {
				return streamsX(s, overTTHeader(s), "Down", fail, failing(errAsked.Error()))
			}},
		scenario{name: "ttstream_biz", about: "a stream over TTHeader that ends with a biz status error", client: 1, server: 1,
			setup: func(s *stage) func() error { return streamsX(s, overTTHeader(s), "Down", biz, bizFailing) }},
		scenario{name: "ttstream_panic", about: "a stream over TTHeader whose handler panics", client: 1, server: 1,
			setup: func(s *stage) func() error {
				return streamsX(s, overTTHeader(s), "Down", crash, failing("panic"))
			}},
		scenario{name: "ttstream_refused", about: "a stream over TTHeader that cannot be created", alone: true, client: 1, abandons: unborn,
			setup: func(s *stage) func() error {
				// An address at which dialing has failed once is locked forever (ttstream/client_trans_pool_muxconn.go @ v0.16.3).
				return func() error {
					socket, address := reserve()
					defer syscall.Close(socket)
					c := s.dial(address, append(ttheader(), client.WithTransportProtocol(transport.TTHeaderStreaming))...)
					defer c.close()
					_, err := openX(context.Background(), c, "Chat")
					return failing("")(err)
				}
			}},
		scenario{name: "ttstream_unknown", about: "a stream over TTHeader of a method that the server doesn't have", client: 1,
			parallel: true, setup: func(s *stage) func() error {
				c := overTTHeader(s)
				return func() error { return cutShort(c, openX, missingStream) }
			}},
		scenario{name: "ttstream_panic_outside", about: "a server's middleware panics in a stream over TTHeader",
			client: 1, server: 1, parallel: true,
			setup: func(s *stage) func() error {
				address := s.serve(obey, server.WithMiddleware(panicking))
				c := s.dial(address, append(ttheader(), client.WithTransportProtocol(transport.TTHeaderStreaming))...)
				return func() error { return cutShort(c, openX, "Down") }
			}},
		scenario{name: "ttstream_finish", about: "a stream over TTHeader that the user finishes", client: 1, server: 1,
			setup: ttstreamFinish},
		scenario{name: "dropped_ttstream", about: "a stream over TTHeader that is canceled and never read",
			client: 1, server: unsure, abandons: true,
			setup: func(s *stage) func() error { return dropped(overTTHeader(s), openX) }},
	)
}

func overTTHeader(s *stage) caller {
	return s.dial(s.serve(obey), append(ttheader(), client.WithTransportProtocol(transport.TTHeaderStreaming))...)
}

// clientStream and handlerStream are the two ends of a stream of the newer API.
type clientStream struct{ streaming.ClientStream }

func (s clientStream) send(m *message) error { return s.SendMsg(s.Context(), m) }

func (s clientStream) receive(m *message) error { return s.RecvMsg(s.Context(), m) }

func (s clientStream) closeSend() error { return s.CloseSend(s.Context()) }

type handlerStream struct {
	streaming.ServerStream
	ctx context.Context
}

func (s handlerStream) send(m *message) error { return s.SendMsg(s.ctx, m) }

func (s handlerStream) receive(m *message) error { return s.RecvMsg(s.ctx, m) }

func (s handlerStream) closeSend() error { return nil }

// serverStream takes the older API where the protocol has it.
func serverStream(ctx context.Context, args *streaming.Args) stream {
	if args.Stream != nil {
		return oldStream{args.Stream}
	}
	return handlerStream{args.ServerStream, ctx}
}

func openX(ctx context.Context, c caller, method string) (stream, error) {
	made, err := c.client.(client.Streaming).StreamX(ctx, method)
	if err != nil {
		return nil, err
	}
	return clientStream{made}, nil
}

func streamsX(s *stage, c caller, method string, a action, is check) func() error {
	return func() error { return is(converse(c, openX, method, a)) }
}

func ttstreamFinish(s *stage) func() error {
	c := overTTHeader(s)
	return func() error {
		st, err := openX(context.Background(), c, "Chat")
		if err != nil {
			return err
		}
		err = join(st.send(request(succeed)), st.receive(new(message)), st.closeSend())
		streaming.FinishClientStream(st.(clientStream).ClientStream, nil)
		return err
	}
}
