//go:build !kitex_before_0_10

package main

import (
	"github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/pkg/serviceinfo"
	"github.com/cloudwego/kitex/server"
)

func init() {
	register(scenario{name: "combined", about: "two services on one server", client: 2, server: 2, setup: combined})
}

func combined(s *stage) func() error {
	listener := listen()
	srv := server.NewServer(s.serverOptions(s.scenario.name, listener)...)
	for _, info := range []*serviceinfo.ServiceInfo{served(serviceinfo.Thrift), second()} {
		if err := srv.RegisterService(info, &host{obey}, fallbackFor(info)...); err != nil {
			panic(err)
		}
	}
	address := run(srv, listener)
	options := append(s.clientOptions(s.scenario.name, address), ttheader()...)
	one := caller{must(client.NewClient(service(serviceinfo.Thrift), options...))}
	two := caller{must(client.NewClient(second(), options...))}
	return func() error { return join(one.echo(succeed, ok), two.echo(fail, failing(errAsked.Error()))) }
}

// second is the same service under another name.
func second() *serviceinfo.ServiceInfo {
	info := served(serviceinfo.Thrift)
	info.ServiceName = "Second"
	return info
}

// fallbackFor says which of two services takes a method that both have and no service is named for.
func fallbackFor(info *serviceinfo.ServiceInfo) []server.RegisterOption {
	if info.ServiceName == "Second" {
		return nil
	}
	return []server.RegisterOption{server.WithFallbackService()}
}
