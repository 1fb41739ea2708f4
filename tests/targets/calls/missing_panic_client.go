//go:build kitex_before_0_6

package main

func init() { missing("a panic of a client's middleware ends the process before v0.6", "panic_client") }
