//go:build !kitex_before_0_6

package main

import (
	"github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/pkg/serviceinfo"
	"github.com/cloudwego/kitex/server"
)

func init() {
	register(
		scenario{name: "inline", about: "a client merged with its server", client: 3, server: 3, setup: inline},
	)
}

func inline(s *stage) func() error {
	srv := s.unheard()
	c := caller{must(client.NewServiceInlineClient(service(serviceinfo.Thrift), srv.(client.ServerInitialInfo),
		s.clientOptions(s.scenario.name, "")...))}
	return func() error {
		return join(c.echo(succeed, ok), c.echo(fail, failing(errAsked.Error())), c.echo(biz, bizInline))
	}
}

// unheard is a server that listens nowhere.
func (s *stage) unheard() server.Server {
	srv := server.NewServer(s.serverOptions(s.scenario.name, nil)...)
	if err := srv.RegisterService(served(serviceinfo.Thrift), &host{obey}); err != nil {
		panic(err)
	}
	return srv
}
