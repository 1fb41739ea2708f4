//go:build !kitex_before_0_16

package main

import (
	"context"

	"github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/pkg/rpcinfo"
	"github.com/cloudwego/kitex/server"
)

// clientEvents makes a client tell the tally of each message of its streams.
func clientEvents(t *tally) []client.Option {
	return []client.Option{client.WithStreamOptions(client.WithStreamEventHandler(rpcinfo.ClientStreamEventHandler{
		HandleStreamRecvEvent: func(_ context.Context, ri rpcinfo.RPCInfo, e rpcinfo.StreamRecvEvent) {
			t.addMessage(flowOf("client", "received", ri), e.Err)
		},
		HandleStreamSendEvent: func(_ context.Context, ri rpcinfo.RPCInfo, e rpcinfo.StreamSendEvent) {
			t.addMessage(flowOf("client", "sent", ri), e.Err)
		},
	}))}
}

// serverEvents makes a server tell the tally of each message of its streams.
func serverEvents(t *tally) []server.Option {
	return []server.Option{server.WithStreamOptions(server.WithStreamEventHandler(rpcinfo.ServerStreamEventHandler{
		HandleStreamRecvEvent: func(_ context.Context, ri rpcinfo.RPCInfo, e rpcinfo.StreamRecvEvent) {
			t.addMessage(flowOf("server", "received", ri), e.Err)
		},
		HandleStreamSendEvent: func(_ context.Context, ri rpcinfo.RPCInfo, e rpcinfo.StreamSendEvent) {
			t.addMessage(flowOf("server", "sent", ri), e.Err)
		},
	}))}
}

func flowOf(side, direction string, ri rpcinfo.RPCInfo) flow {
	kind := streamKind(ri)
	if kind == "" {
		kind = "unary"
	}
	return flow{
		Side:      side,
		Type:      callType(side, ri),
		Caller:    orUnknown(ri.From().ServiceName()),
		Callee:    orUnknown(ri.To().ServiceName()),
		Method:    orUnknown(ri.To().Method()),
		Kind:      kind,
		Direction: direction,
	}
}
