//go:build !kitex_before_0_15

package main

import (
	"github.com/cloudwego/kitex/pkg/rpcinfo"
	"github.com/cloudwego/kitex/pkg/serviceinfo"
)

// servedType is the type of a call that a server handles. A server's RPC knows its method since v0.15.
func servedType(ri rpcinfo.RPCInfo) string {
	if streamKind(ri) != "" {
		return "streaming"
	}
	method := ri.Invocation().MethodInfo()
	if _, own := method.(ownMethod); own {
		// Nobody outside can know what such a type says.
		return "pingpong"
	}
	if method != nil && method.OneWay() {
		return "oneway"
	}
	return "pingpong"
}

// streamKind says which sides of a call send more than one message, "" if neither does.
func streamKind(ri rpcinfo.RPCInfo) string {
	switch ri.Invocation().StreamingMode() {
	case serviceinfo.StreamingClient:
		return "client"
	case serviceinfo.StreamingServer:
		return "server"
	case serviceinfo.StreamingBidirectional:
		return "bidirectional"
	}
	return ""
}
