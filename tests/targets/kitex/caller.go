package main

import (
	"context"
	"time"

	"github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/pkg/connpool"
	"github.com/cloudwego/kitex/pkg/endpoint"
	"github.com/cloudwego/kitex/pkg/retry"
	"github.com/cloudwego/kitex/pkg/rpcinfo"
	"github.com/cloudwego/kitex/pkg/stats"
	"github.com/cloudwego/kitex/pkg/transmeta"
	"github.com/cloudwego/kitex/transport"
)

// muxConnections is how many connections all calls share with the protocol mux.
const muxConnections = 2

// caller is a client of one server.
type caller struct {
	client client.Client
}

// newCaller makes the client that the options describe. With nested calls, a middleware of this client calls the
// same server through a second client, named "audit", while the first call is under way on the same goroutine.
func newCaller(o options, tracers []stats.Tracer) (*caller, error) {
	if !o.nested {
		return newClient(o, o.callee, tracers)
	}
	inner := o
	inner.retry = false
	audit, err := newClient(inner, "audit", tracers)
	if err != nil {
		return nil, err
	}
	return newClient(o, o.callee, tracers, client.WithMiddleware(func(next endpoint.Endpoint) endpoint.Endpoint {
		return func(ctx context.Context, req, resp any) error {
			if err := audit.call(context.Background(), "Echo", &request{payload: []byte("audit")}); err != nil {
				return err
			}
			return next(ctx, req, resp)
		}
	}))
}

func newClient(o options, callee string, tracers []stats.Tracer, opts ...client.Option) (*caller, error) {
	opts = append(opts,
		client.WithHostPorts(o.connect),
		client.WithDestService(callee),
		client.WithClientBasicInfo(&rpcinfo.EndpointBasicInfo{ServiceName: o.caller}),
	)
	if o.protocol == "framed" {
		opts = append(opts, client.WithTransportProtocol(transport.Framed))
	} else {
		opts = append(opts, client.WithTransportProtocol(transport.TTHeader),
			client.WithMetaHandler(transmeta.ClientTTHeaderHandler))
	}
	if o.protocol == "mux" {
		opts = append(opts, client.WithMuxConnection(muxConnections))
	} else if o.shortConn {
		opts = append(opts, client.WithShortConnection())
	} else {
		// Connections outlive every pause between two phases of a test.
		opts = append(opts, client.WithLongConnection(connpool.IdleConfig{
			MaxIdlePerAddress: 1000, MaxIdleGlobal: 1000, MaxIdleTimeout: time.Hour,
		}))
	}
	if o.retry {
		policy := retry.NewFailurePolicyWithResultRetry(retry.AllErrorRetry())
		policy.WithMaxRetryTimes(2)
		policy.WithRetryBreaker(0.3)
		opts = append(opts, client.WithFailureRetry(policy))
	}
	for _, tracer := range tracers {
		opts = append(opts, client.WithTracer(tracer))
	}
	if o.unrecorded {
		opts = append(opts, client.WithStatsLevel(stats.LevelDisabled))
	}
	c, err := client.NewClient(serviceInfo(methods), opts...)
	if err != nil {
		return nil, err
	}
	return &caller{client: c}, nil
}

func (c *caller) call(ctx context.Context, method string, req *request) error {
	if method == "Notify" {
		return c.client.Call(ctx, method, req, nil)
	}
	return c.client.Call(ctx, method, req, new(response))
}
