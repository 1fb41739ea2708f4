package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/pkg/discovery"
	"github.com/cloudwego/kitex/pkg/endpoint"
	"github.com/cloudwego/kitex/pkg/rpcinfo"
	"github.com/cloudwego/kitex/pkg/serviceinfo"
	"github.com/cloudwego/kitex/server"
)

func init() {
	register(
		scenario{name: "biz", about: "biz status error", client: 1, server: 1,
			setup: func(s *stage) func() error { return s.dial(s.serve(obey), ttheader()...).echoes(biz, bizFailing) }},
		scenario{name: "biz_framed", about: "biz status error that the protocol doesn't carry", client: 1, server: 1,
			setup: func(s *stage) func() error { return s.dial(s.serve(obey)).echoes(biz, failing(errReply.Error())) }},
		scenario{name: "fail", about: "the handler returns an error", client: 1, server: 1,
			setup: func(s *stage) func() error { return s.dial(s.serve(obey)).echoes(fail, failing(errAsked.Error())) }},
		scenario{name: "fail_mux", about: "the handler returns an error over a multiplexed connection", alone: true, client: 1, server: 1,
			setup: func(s *stage) func() error {
				return s.dial(s.serve(obey, server.WithMuxTransport()), mux()...).echoes(fail, failing(errAsked.Error()))
			}},
		scenario{name: "panic", about: "the handler panics", client: 1, server: 1,
			setup: func(s *stage) func() error { return s.dial(s.serve(obey)).echoes(crash, failing("panic")) }},
		scenario{name: "panic_mux", about: "the handler panics over a multiplexed connection", alone: true, client: 1, server: 1,
			setup: func(s *stage) func() error {
				return s.dial(s.serve(obey, server.WithMuxTransport()), mux()...).echoes(crash, failing("panic"))
			}},
		scenario{name: "panic_outside", about: "a server's middleware panics", client: 1, server: 1,
			setup: func(s *stage) func() error {
				return s.dial(s.serve(obey, server.WithMiddleware(panicking))).echoes(succeed, failing(""))
			}},
		scenario{name: "panic_outside_mux", about: "a server's middleware panics over a multiplexed connection", alone: true,
			client: 1, server: 1, parallel: true, setup: func(s *stage) func() error {
				// The panic takes the connection with it, so no two calls may share one.
				address := s.serve(obey, server.WithMuxTransport(), server.WithMiddleware(panicking))
				return func() error {
					return s.fresh(func(c caller) error { return c.echo(succeed, failing("")) }, address,
						append(mux(), client.WithRPCTimeout(shortTime))...)
				}
			}},
		scenario{name: "unknown_method", about: "a method that the server doesn't have", client: 1, server: 1,
			setup: func(s *stage) func() error {
				c := s.dial(s.serve(obey))
				return func() error {
					return failing("")(c.call(context.Background(), missingMethod, &message{}))
				}
			}},
		scenario{name: "garbage", about: "bytes that are no protocol", server: 1,
			setup: func(s *stage) func() error { return raw(s.serve(obey), []byte("GARBAGE 0123456789 0123456789"), true) }},
		scenario{name: "truncated", about: "half a frame, then the connection is closed", server: 1,
			setup: func(s *stage) func() error {
				whole := framedCall("Echo", &message{payload: make([]byte, 100)})
				return raw(s.serve(obey), whole[:len(whole)/2], false)
			}},
		scenario{name: "client_gone", about: "the client is gone before the answer", server: 1, setup: clientGone},
		scenario{name: "refused", about: "nobody listens", client: 1,
			setup: func(s *stage) func() error {
				return s.dial(refused()).echoes(succeed, failing("get connection"))
			}},
		scenario{name: "no_instance", about: "the resolver fails", client: 1,
			setup: func(s *stage) func() error {
				return s.dial("", client.WithResolver(nowhere)).
					echoes(succeed, failing("service discovery"))
			}},
		scenario{name: "acl_client", about: "the client's rules forbid the call", client: 1,
			setup: func(s *stage) func() error {
				return s.dial(s.serve(obey), client.WithACLRules(forbid)).echoes(succeed, failing("forbidden"))
			}},
		scenario{name: "acl_server", about: "the server's rules forbid the call", client: 1, server: 1,
			setup: func(s *stage) func() error {
				return s.dial(s.serve(obey, server.WithACLRules(forbid))).echoes(succeed, failing("forbidden"))
			}},
		scenario{name: "hidden", about: "the handler fails since nobody listens where it calls", client: 2, server: 1,
			setup: hidden},
		scenario{name: "custom_method", about: "methods described by a type of the user's own", client: 2, server: 2,
			setup: customMethod},
	)
}

func panicking(endpoint.Endpoint) endpoint.Endpoint {
	return func(context.Context, any, any) error { panic("a middleware that panics") }
}

func forbid(context.Context, any) error { return errors.New("not allowed") }

var nowhere = discovery.SynthesizedResolver{
	TargetFunc:  func(context.Context, rpcinfo.EndpointInfo) string { return "nowhere" },
	ResolveFunc: func(context.Context, string) (discovery.Result, error) { return discovery.Result{}, errAsked },
	NameFunc:    func() string { return "nowhere" },
}

// refused is an address at which nobody listens.
func refused() string {
	_, address := reserve()
	return address
}

// reserve binds a port without listening at it, so that no other server gets it while the socket is open.
func reserve() (socket int, address string) {
	socket = must(syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0))
	if err := syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		panic(err)
	}
	bound := must(syscall.Getsockname(socket)).(*syscall.SockaddrInet4)
	return socket, fmt.Sprint("127.0.0.1:", bound.Port)
}

// raw writes bytes to a connection of its own and closes it, at once or when the server has.
func raw(address string, bytes []byte, wait bool) func() error {
	return func() error {
		conn, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write(bytes); err != nil {
			return err
		}
		if !wait {
			return nil
		}
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		var timeout net.Error
		if _, err := io.Copy(io.Discard, conn); errors.As(err, &timeout) && timeout.Timeout() {
			return errors.New("the server kept the connection")
		}
		return nil
	}
}

// clientGone leaves while its handler stands at a gate.
func clientGone(s *stage) func() error {
	address := s.serve(s.gates.pass)
	return func() error {
		g := s.gates.shut()
		defer close(g.open)
		conn, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			return err
		}
		_, err = conn.Write(framedCall("Echo", g.request()))
		err = join(err, g.reached(), conn.Close())
		time.Sleep(10 * time.Millisecond) // so that the server has seen it
		return err
	}
}

func hidden(s *stage) func() error {
	next := s.dialAs(s.scenario.name+"-nobody", refused(), serviceinfo.Thrift)
	address := s.serve(func(ctx context.Context, method string, request *message) error {
		return next.call(ctx, method, request)
	})
	return s.dial(address).echoes(succeed, failing("get connection"))
}

// ownMethod is a description of a method that is not Kitex's.
type ownMethod struct {
	serviceinfo.MethodInfo
	oneway bool
}

func (m ownMethod) OneWay() bool { return m.oneway }

func customMethod(s *stage) func() error {
	own := func(info *serviceinfo.ServiceInfo) *serviceinfo.ServiceInfo {
		for name, method := range info.Methods {
			info.Methods[name] = ownMethod{method, name == "Notify"}
		}
		return info
	}
	address := s.serveAs(s.scenario.name, own(served(serviceinfo.Thrift)), obey)
	options := append(s.clientOptions(s.scenario.name, address), framed()...)
	c := caller{must(client.NewClient(own(service(serviceinfo.Thrift)), options...))}
	return func() error { return join(c.echo(succeed, ok), notifies(c, succeed)()) }
}
