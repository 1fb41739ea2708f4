//go:build !kitex_before_0_9

package main

func init() {
	register(
		scenario{name: "grpc_biz", about: "a stream over gRPC that ends with a biz status error", client: 1, server: 1,
			setup: func(s *stage) func() error { return grpcStreams(s, "Down", biz, bizFailing) }},
	)
}
