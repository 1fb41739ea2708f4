//go:build kitex_before_0_15 && !kitex_before_0_12

package main

import (
	"github.com/cloudwego/kitex/pkg/rpcinfo"
	"github.com/cloudwego/kitex/pkg/serviceinfo"
)

// servedType is the type of a call that a server handles. Its RPC knows since v0.12 whether it is a stream, and not
// before v0.15 whether it is oneway.
func servedType(ri rpcinfo.RPCInfo) string {
	switch ri.Invocation().StreamingMode() {
	case serviceinfo.StreamingClient, serviceinfo.StreamingServer, serviceinfo.StreamingBidirectional:
		return "streaming"
	}
	return "pingpong"
}
