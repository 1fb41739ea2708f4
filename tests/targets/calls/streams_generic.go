//go:build !kitex_before_0_15

package main

import (
	"context"
	"errors"
	"io"

	"github.com/cloudwego/kitex/client/genericclient"
	"github.com/cloudwego/kitex/pkg/generic"
	"github.com/cloudwego/kitex/server/genericserver"
)

const streamIDL = `
namespace go target
struct Message { 1: i32 action, 2: string text }
service Target { Message Chat(1: Message request) (streaming.mode="bidirectional") }
`

func init() {
	register(scenario{name: "generic_stream", about: "generic, JSON stream of both sides over TTHeader", client: 1, server: 1,
		setup: genericStream})
}

func genericStream(s *stage) func() error {
	kind := func() generic.Generic {
		return must(generic.JSONThriftGeneric(must(generic.NewThriftContentProvider(streamIDL, nil))))
	}
	listener := listen()
	address := run(genericserver.NewServerV2(&generic.ServiceV2{BidiStreaming: mirrorAll}, kind(),
		s.serverOptions(s.scenario.name, listener)...), listener)
	c := must(genericclient.NewClient(s.scenario.name, kind(), s.genericOptions(address)...))
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		st, err := c.BidirectionalStreaming(ctx, "Chat")
		if err != nil {
			return err
		}
		for i := 0; i < streamMessages; i++ {
			if err := st.Send(ctx, `{"action":0,"text":"payload"}`); err != nil {
				return err
			}
			if _, err := st.Recv(ctx); err != nil {
				return err
			}
		}
		if err := st.CloseSend(ctx); err != nil {
			return err
		}
		if _, err := st.Recv(ctx); err != io.EOF {
			return join(errors.New("the stream goes on"), err)
		}
		return nil
	}
}

func mirrorAll(ctx context.Context, _, _ string, stream generic.BidiStreamingServer) error {
	for {
		m, err := stream.Recv(ctx)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(ctx, m); err != nil {
			return err
		}
	}
}
