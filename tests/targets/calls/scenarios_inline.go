//go:build !kitex_before_0_6

package main

import (
	"github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/pkg/serviceinfo"
	"github.com/cloudwego/kitex/server"
)

func init() {
	register(
		scenario{name: "inline", about: "a client merged with its server", client: 4, server: 4, setup: inline},
		scenario{name: "inline_panic", about: "a middleware panics in a server merged with its client, which never finishes",
			client: 1, abandons: true, setup: inlinePanic},
	)
}

func inline(s *stage) func() error {
	c := s.merged(s.unheard())
	return func() error {
		return join(c.echo(succeed, ok), c.echo(fail, failing(errAsked.Error())), c.echo(biz, bizInline),
			c.echo(crash, failing("panic")))
	}
}

// inlinePanic is an error to the client's tracer, and a success without a reply to its caller.
func inlinePanic(s *stage) func() error {
	return s.merged(s.unheard(server.WithMiddleware(panicking))).echoes(succeed, failing(errReply.Error()))
}

func (s *stage) merged(srv server.Server) caller {
	return caller{must(client.NewServiceInlineClient(service(serviceinfo.Thrift), srv.(client.ServerInitialInfo),
		s.clientOptions(s.scenario.name, "")...))}
}

// unheard is a server that listens nowhere.
func (s *stage) unheard(opts ...server.Option) server.Server {
	srv := server.NewServer(append(s.serverOptions(s.scenario.name, nil), opts...)...)
	if err := srv.RegisterService(served(serviceinfo.Thrift), &host{obey}); err != nil {
		panic(err)
	}
	return srv
}
