//go:build kitex_before_0_15

package main

func init() {
	missing("generic streams of this API are new in v0.15", "generic_stream")
	missing("a generic client makes no call of a method that it does not know before v0.15", "generic_unknown")
}
