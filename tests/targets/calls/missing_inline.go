//go:build kitex_before_0_6

package main

func init() { missing("client.NewServiceInlineClient is new in v0.6", "inline", "inline_panic") }
