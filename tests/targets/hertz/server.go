package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/cloudwego/hertz/pkg/app"
	"github.com/cloudwego/hertz/pkg/app/server"
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

func (t *tally) start(listener net.Listener) {
	h := server.New(
		server.WithListener(listener), server.WithTransport(standard.NewTransporter), server.WithExitWaitTime(0),
	)
	h.Use(t.middleware)
	h.Any("/users/:id", func(_ context.Context, ctx *app.RequestContext) {
		if code, err := strconv.Atoi(ctx.Param("id")); err == nil {
			ctx.SetStatusCode(code)
		}
	})
	go func() { _ = h.Run() }()
}
