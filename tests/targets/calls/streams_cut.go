//go:build !kitex_before_0_9

package main

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/pkg/remote"
	"github.com/cloudwego/kitex/pkg/remote/trans/gonet"
	"github.com/cloudwego/kitex/pkg/serviceinfo"
)

func init() {
	register(
		scenario{name: "grpc_canceled", about: "a stream over gRPC that its user cancels and reads to the error", client: 1, server: 1,
			setup: func(s *stage) func() error { return canceledStream(overGRPC(s, serviceinfo.Protobuf), openOld) }},
		scenario{name: "grpc_cut", about: "the connection of a stream over gRPC is closed", client: 1, server: 1,
			setup: grpcCut},
	)
}

// canceledStream cancels in the middle of a stream and reads on until the error.
func canceledStream(c caller, begin open) func() error {
	return func() error {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		s, err := begin(ctx, c, "Chat")
		if err != nil {
			return err
		}
		err = join(s.send(request(succeed)), s.receive(new(message)))
		cancel()
		return join(err, failing("cancel")(exactly(0, s)))
	}
}

// grpcCut closes the connection in the middle of a stream.
func grpcCut(s *stage) func() error {
	address := s.serveAs(s.scenario.name, served(serviceinfo.Protobuf), obey)
	return func() error {
		line := &cutter{Dialer: gonet.NewDialer()}
		c := s.dialAs(s.scenario.name, address, serviceinfo.Protobuf, append(grpc(), client.WithDialer(line))...)
		defer c.close()
		st, err := openOld(context.Background(), c, "Chat")
		if err != nil {
			return err
		}
		err = join(st.send(request(succeed)), st.receive(new(message)))
		line.cut()
		return join(err, failing("")(exactly(0, st)))
	}
}

// cutter is a dialer that can close what it has dialed.
type cutter struct {
	remote.Dialer
	mu    sync.Mutex
	lines []net.Conn
}

func (c *cutter) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	line, err := c.Dialer.DialTimeout(network, address, timeout)
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.lines = append(c.lines, line)
	}
	return line, err
}

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, line := range c.lines {
		_ = line.Close()
	}
}
