//go:build kitex_before_0_12

package main

import "github.com/cloudwego/kitex/pkg/rpcinfo"

// servedType is the type of a call that a server handles. Its RPC knows nothing about that before v0.12.
func servedType(rpcinfo.RPCInfo) string { return "pingpong" }
