//go:build kitex_before_0_11

package main

// isValidation says no: Kitex validates payloads since v0.11.
func isValidation(error) bool { return false }
