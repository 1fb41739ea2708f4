//go:build kitex_before_0_14

package main

// gonetServed is how many calls a gonet server counts for each call: the end of its connection is one more.
const gonetServed = 2
