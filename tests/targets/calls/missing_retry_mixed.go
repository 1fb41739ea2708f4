//go:build kitex_before_0_11

package main

func init() { missing("mixed retry is new in v0.11", "retry_mixed") }
