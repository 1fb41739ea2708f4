//go:build kitex_before_0_13

package main

func init() {
	missing("a generic oneway call disturbs later calls over multiplexed connections before v0.13", "generic_oneway")
}
