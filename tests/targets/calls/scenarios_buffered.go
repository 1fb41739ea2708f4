//go:build !kitex_before_0_10

package main

import (
	"github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/pkg/remote/codec/thrift"
	"github.com/cloudwego/kitex/server"
	"github.com/cloudwego/kitex/transport"
)

func init() {
	register(scenario{name: "buffered", about: "Thrift without a frame", client: 1, server: 1, setup: buffered})
}

// buffered needs a codec that finds the end of a struct by reading it.
func buffered(s *stage) func() error {
	codec := thrift.NewThriftCodecWithConfig(thrift.FastRead | thrift.FastWrite | thrift.EnableSkipDecoder)
	address := s.serve(obey, server.WithPayloadCodec(codec))
	return s.dial(address, client.WithTransportProtocol(transport.PurePayload), client.WithPayloadCodec(codec)).
		echoes(succeed, ok)
}
