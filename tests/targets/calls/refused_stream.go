//go:build !kitex_before_0_14

package main

// unborn says that a stream which cannot be created never finishes.
const unborn = false
