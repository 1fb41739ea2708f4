//go:build !kitex_before_0_15

package main

func init() {
	register(scenario{name: "ttstream_canceled", about: "a stream over TTHeader that its user cancels and reads to the error",
		client: 1, server: 1, setup: func(s *stage) func() error { return canceledStream(overTTHeader(s), openX) }})
}
