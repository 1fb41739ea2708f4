//go:build !xds

package main

import "google.golang.org/grpc"

// way is how clients find servers: here by their addresses.
type way struct{}

// more is what calls meet whose other side can't be reached, or no longer.
var more = []scenario{
	{"client gone before the reply", goneBeforeReply},
	{"left unprocessed", leftUnprocessed},
	{"tried again with nobody there", func(s *stage) error { return strand(s, 3) }},
	{"closed while they wait", func(s *stage) error { return closedWhileWaiting(s, 3) }},
}

// retries is a service config with which calls are tried again.
const retries = `{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.001s",
	"maxBackoff": "0.002s", "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"]}}]}`

func newWay() (*way, error) { return &way{}, nil }

func (*way) server(options ...grpc.ServerOption) (server, error) {
	return grpc.NewServer(options...), nil
}

// open says where the servers are.
func (*way) open(_, _ string) error { return nil }

func (*way) plain(address string) target { return target{name: address} }

func (*way) dead(address string) target { return target{name: address} }

func (*way) retrying(address string) target {
	return target{address, []grpc.DialOption{grpc.WithDefaultServiceConfig(retries)}}
}

// settle waits until the servers are found.
func (*way) settle(*stage) error { return nil }
