package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cloudwego/hertz/pkg/app"
	"github.com/cloudwego/hertz/pkg/app/server"
	"github.com/cloudwego/hertz/pkg/network/netpoll"
	"github.com/cloudwego/hertz/pkg/network/standard"
)

// tally counts requests by method, route and status.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
}

func (t *tally) middleware(c context.Context, ctx *app.RequestContext) {
	ctx.Next(c)
	route := ctx.FullPath()
	if route == "" {
		route = "unknown"
	}
	t.mu.Lock()
	// Slashes part the names.
	t.counts[fmt.Sprintf("%s/%s/%d", ctx.Method(), strings.ReplaceAll(route, "/", "|"), ctx.Response.StatusCode())]++
	t.mu.Unlock()
}

// start serves at an address over a transport of Hertz. Releases before v0.10.4 take no listener.
func (t *tally) start(address string, overNetpoll bool) error {
	transport := standard.NewTransporter
	if overNetpoll {
		transport = netpoll.NewTransporter
	}
	h := server.New(server.WithHostPorts(address), server.WithTransport(transport), server.WithExitWaitTime(0))
	h.Use(t.middleware)
	h.Any("/users/:id", func(_ context.Context, ctx *app.RequestContext) {
		if code, err := strconv.Atoi(ctx.Param("id")); err == nil {
			ctx.SetStatusCode(code)
		}
	})
	go func() { _ = h.Run() }()
	return untilOpen(address)
}

// free is an address where nobody listens.
func free() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// untilOpen waits until somebody listens at an address.
func untilOpen(address string) error {
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		connection, err := net.Dial("tcp", address)
		if err == nil {
			return connection.Close()
		}
		if time.Since(begin) > 10*time.Second {
			return err
		}
	}
}
