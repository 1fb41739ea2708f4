//go:build kitex_before_0_10

package main

func init() { missing("a struct without generated code needs a frame before v0.10", "buffered") }
