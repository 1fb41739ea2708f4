package main

import (
	"fmt"
	"net"
	"net/http"

	"github.com/cloudwego/kitex/pkg/stats"
	monitor "github.com/kitex-contrib/monitor-prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// tracers are what is registered at each side of the process.
type tracers struct {
	client, server []stats.Tracer
	metricsAddr    string
	// log has every call, if it is one of the tracers.
	log *callLog
}

func newTracers(o options, tally *tally) (tracers, error) {
	var t tracers
	for _, kind := range o.tracers {
		switch kind {
		case "tally":
			t.client = append(t.client, tracer{tally, "client", o.unrecorded})
			t.server = append(t.server, tracer{tally, "server", o.unrecorded})
		case "log":
			t.log = new(callLog)
			t.client = append(t.client, logger{t.log, "client"})
			t.server = append(t.server, logger{t.log, "server"})
		case "prometheus":
			if err := t.addPrometheus(o); err != nil {
				return t, err
			}
		default:
			return t, fmt.Errorf("unknown tracer %q: none, tally, log or prometheus", kind)
		}
	}
	return t, nil
}

// addPrometheus registers the in-process extension, both sides in one registry that is served at /metrics.
func (t *tracers) addPrometheus(o options) error {
	listener, err := net.Listen("tcp", o.metrics)
	if err != nil {
		return err
	}
	t.metricsAddr = listener.Addr().String()
	registry, mux := prometheus.NewRegistry(), http.NewServeMux()
	opts := []monitor.Option{monitor.WithRegistry(registry), monitor.WithDisableServer(true)}
	if o.role != "server" {
		t.client = append(t.client, monitor.NewClientTracer("", "", opts...))
	}
	if o.role != "client" {
		t.server = append(t.server, monitor.NewServerTracer("", "", opts...))
	}
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	go func() { panic(http.Serve(listener, mux)) }()
	return nil
}
