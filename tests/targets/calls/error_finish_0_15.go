//go:build !kitex_before_0_15 && kitex_before_0_16_2

package main

// isFinish says no: the error was gone from v0.15 until v0.16.2.
func isFinish(error) bool { return false }
