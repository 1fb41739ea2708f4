//go:build kitex_before_0_9

package main

func init() {
	missing("a stream that ends with a biz status error does not end for its client before v0.9", "grpc_biz")
}
