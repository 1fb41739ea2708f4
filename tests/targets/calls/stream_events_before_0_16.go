//go:build kitex_before_0_16

package main

import (
	"github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/server"
)

// clientEvents and serverEvents have nothing to listen to: Kitex tells of single messages since v0.16.

func clientEvents(*tally) []client.Option { return nil }

func serverEvents(*tally) []server.Option { return nil }
