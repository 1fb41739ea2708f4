//go:build kitex_before_0_15

package main

func init() {
	missing("the server of a stream over TTHeader does not hear that it is canceled before v0.15", "ttstream_canceled")
}
