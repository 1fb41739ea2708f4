//go:build kitex_before_0_9

package main

func init() {
	missing("a client's stream finishes only when its user ends sending before v0.9", "grpc_canceled", "grpc_cut")
}
