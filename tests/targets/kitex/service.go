package main

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/cloudwego/kitex/pkg/kerrors"
	"github.com/cloudwego/kitex/pkg/retry"
	"github.com/cloudwego/kitex/pkg/rpcinfo"
	"github.com/cloudwego/kitex/pkg/serviceinfo"
	"github.com/cloudwego/kitex/pkg/stats"
	"github.com/cloudwego/kitex/pkg/transmeta"
	"github.com/cloudwego/kitex/server"
)

// The methods. Relay is handled by a call to the relay's own server, or as Echo where there is none. Missing is
// known to clients only.
var methods = []string{"Echo", "Lookup", "Store", "Notify", "Relay", "Missing"}

const bizCode = 40404

var errAsked = errors.New("failed because the request asks for it")

// serviceInfo says what the kitex tool would have generated from an IDL.
func serviceInfo(methods []string) *serviceinfo.ServiceInfo {
	info := &serviceinfo.ServiceInfo{
		ServiceName:  "Target",
		HandlerType:  (*handler)(nil),
		Methods:      map[string]serviceinfo.MethodInfo{},
		PayloadCodec: serviceinfo.Thrift,
		Extra:        map[string]any{"PackageName": "target"},
	}
	for _, method := range methods {
		serve := func(ctx context.Context, h, args, result any) error {
			return h.(*handler).handle(ctx, method, args.(*request), result)
		}
		info.Methods[method] = serviceinfo.NewMethodInfo(serve,
			func() any { return new(request) }, func() any { return new(response) }, method == "Notify")
	}
	return info
}

// handler is the server's side of all methods.
type handler struct {
	downstream *caller
	inFlight   atomic.Int64
}

func (h *handler) handle(ctx context.Context, method string, req *request, result any) error {
	h.inFlight.Add(1)
	defer h.inFlight.Add(-1)
	if req.sleepUS > 0 {
		time.Sleep(time.Duration(req.sleepUS) * time.Microsecond)
	}
	if method == "Relay" && h.downstream != nil {
		onward := request{action: req.action, payload: req.payload}
		if err := h.downstream.call(ctx, "Echo", &onward); err != nil {
			return err
		}
	} else if err := h.obey(ctx, req); err != nil {
		return err
	}
	if r, ok := result.(*response); ok {
		r.payload = req.payload
	}
	return nil
}

func (h *handler) obey(ctx context.Context, req *request) error {
	switch req.action {
	case fail:
		return errAsked
	case biz:
		return kerrors.NewBizStatusError(bizCode, "no such thing, as the request asks for it")
	case crash:
		panic("panicked because the request asks for it")
	case flaky:
		if !retry.IsRemoteRetryRequest(ctx) {
			return errAsked
		}
	}
	return nil
}

// startServer serves in the background; the process ends with its control, not with the server.
func startServer(o options, listener net.Listener, h *handler, tracers []stats.Tracer) error {
	opts := []server.Option{
		server.WithListener(listener),
		server.WithMetaHandler(transmeta.ServerTTHeaderHandler),
		server.WithServerBasicInfo(&rpcinfo.EndpointBasicInfo{ServiceName: o.service}),
	}
	if o.mux {
		opts = append(opts, server.WithMuxTransport())
	}
	for _, tracer := range tracers {
		opts = append(opts, server.WithTracer(tracer))
	}
	if o.unrecorded {
		opts = append(opts, server.WithStatsLevel(stats.LevelDisabled))
	}
	s := server.NewServer(opts...)
	if err := s.RegisterService(serviceInfo(methods[:len(methods)-1]), h); err != nil {
		return err
	}
	go func() {
		if err := s.Run(); err != nil {
			panic(err)
		}
	}()
	return nil
}
