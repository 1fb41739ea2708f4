//go:build kitex_before_0_16_2

package main

func init() { missing("server.NewLocalCaller is new in v0.16.2", "local") }
