//go:build kitex_before_0_9

package main

func init() { missing("a user cannot finish a stream before v0.9", "stream_finish") }
