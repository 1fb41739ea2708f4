//go:build kitex_before_0_10

package main

func init() { missing("one server has one service before v0.10", "combined") }
