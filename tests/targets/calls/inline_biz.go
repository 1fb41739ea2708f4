//go:build !kitex_before_0_9

package main

// bizInline is how a biz status error arrives at a client that is merged with its server.
var bizInline check = bizFailing
