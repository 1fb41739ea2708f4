// Command inside is a Kitex server or client that has all its monitoring inside: the extensions for Prometheus and for
// OpenTelemetry, and client_golang's collectors. Its numbers, at /metrics, are what those that monitor-agent shows from
// outside are compared with.
//
// It is steered by lines on stdin, each answered by one JSON line on stdout, and ends with the end of stdin.
//
//	load N C    N mixed calls from C goroutines; answers when all have finished
//	both N C    N calls of Kitex and N of gRPC in turn from C goroutines: {"calls","servers":{code: n},"clients":{code: n}}
//	quit        answers, then ends
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/pkg/klog"
	"github.com/cloudwego/kitex/pkg/rpcinfo"
	"github.com/cloudwego/kitex/pkg/serviceinfo"
	"github.com/cloudwego/kitex/server"
	monitor "github.com/kitex-contrib/monitor-prometheus"
	"github.com/kitex-contrib/obs-opentelemetry/provider"
	"github.com/kitex-contrib/obs-opentelemetry/tracing"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel"
	exporter "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

func main() {
	connect := flag.String("connect", "", "address of the server to call; without one this is a server")
	service := flag.String("service", "", "name of this service")
	callee := flag.String("callee", "stock", "name of the service to call")
	flag.Parse()
	// Failures are part of the load; Kitex would log each with its stack.
	klog.SetOutput(io.Discard)
	if err := run(*connect, *service, *callee); err != nil {
		fmt.Fprintln(os.Stderr, "inside:", err)
		os.Exit(1)
	}
}

func run(connect, service, callee string) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := openTelemetry(registry, service); err != nil {
		return err
	}
	metrics, err := serveMetrics(registry)
	if err != nil {
		return err
	}
	ready := map[string]any{"ready": true, "pid": os.Getpid(), "metrics": metrics}
	opts := []monitor.Option{monitor.WithRegistry(registry), monitor.WithDisableServer(true)}
	basic := &rpcinfo.EndpointBasicInfo{ServiceName: service}
	if connect == "" {
		if ready["addr"], err = serve(basic, opts); err != nil {
			return err
		}
		return obey(ready, nil)
	}
	caller, err := client.NewClient(serviceInfo(), client.WithHostPorts(connect), client.WithDestService(callee),
		client.WithSuite(tracing.NewClientSuite()), client.WithClientBasicInfo(basic),
		client.WithTracer(monitor.NewClientTracer("", "", opts...)))
	if err != nil {
		return err
	}
	return obey(ready, caller)
}

// openTelemetry sets up the extension as its documentation says, with the exporter for Prometheus as the reader.
func openTelemetry(registry *prometheus.Registry, service string) error {
	reader, err := exporter.New(exporter.WithRegisterer(registry))
	if err != nil {
		return err
	}
	// As the extension's provider makes it.
	res, err := resource.New(context.Background(), resource.WithHost(), resource.WithFromEnv(),
		resource.WithProcessPID(), resource.WithTelemetrySDK(),
		resource.WithAttributes(serviceName(service)))
	if err != nil {
		return err
	}
	// Without every call sampled its metrics would lack calls.
	tracers := sdktrace.NewTracerProvider(sdktrace.WithResource(res), sdktrace.WithSampler(sdktrace.AlwaysSample()))
	meters := metric.NewMeterProvider(metric.WithReader(reader), metric.WithResource(res))
	otel.SetTracerProvider(tracers)
	provider.NewOpenTelemetryProvider(provider.WithEnableTracing(false), provider.WithMeterProvider(meters))
	return nil
}

func serveMetrics(registry *prometheus.Registry) (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	go func() { panic(http.Serve(listener, mux)) }()
	return listener.Addr().String(), nil
}

func serve(basic *rpcinfo.EndpointBasicInfo, opts []monitor.Option) (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	s := server.NewServer(server.WithListener(listener), server.WithSuite(tracing.NewServerSuite()),
		server.WithServerBasicInfo(basic), server.WithTracer(monitor.NewServerTracer("", "", opts...)))
	if err := s.RegisterService(serviceInfo(), &handler{}); err != nil {
		return "", err
	}
	go func() {
		if err := s.Run(); err != nil {
			panic(err)
		}
	}()
	return listener.Addr().String(), nil
}

type handler struct{}

var methods = []string{"Lookup", "Store", "Report"}

var errAsked = errors.New("failed because the request asks for it")

// serviceInfo says what the kitex tool would have generated from an IDL.
func serviceInfo() *serviceinfo.ServiceInfo {
	info := &serviceinfo.ServiceInfo{
		ServiceName:  "Inside",
		HandlerType:  (*handler)(nil),
		Methods:      map[string]serviceinfo.MethodInfo{},
		PayloadCodec: serviceinfo.Thrift,
		Extra:        map[string]any{"PackageName": "inside"},
	}
	for _, method := range methods {
		info.Methods[method] = serviceinfo.NewMethodInfo(handle,
			func() any { return new(number) }, func() any { return new(number) }, false)
	}
	return info
}

// handle answers a call after some time that its number says; some fail, and some panic.
func handle(_ context.Context, _, args, result any) error {
	n := args.(*number).value
	// Among the bounds of all histograms.
	time.Sleep(time.Duration(n%4) * 3 * time.Millisecond)
	switch {
	case n%41 == 40:
		panic("panicked because the request asks for it")
	case n%13 == 12:
		return errAsked
	}
	result.(*number).value = n
	return nil
}

func obey(ready map[string]any, caller client.Client) error {
	answer := json.NewEncoder(os.Stdout)
	if err := answer.Encode(ready); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		var calls, goroutines int
		reply := map[string]any{}
		var command string
		_, err := fmt.Sscanf(lines.Text(), "%s %d %d", &command, &calls, &goroutines)
		switch {
		case len(words) == 1 && words[0] == "quit":
			reply["quit"] = true
		case err == nil && caller != nil && command == "load":
			reply["failed"] = load(caller, calls, goroutines)
			reply["calls"] = calls
		case err == nil && caller != nil && command == "both":
			other, err := newSecond()
			if err != nil {
				return err
			}
			reply = other.both(caller, calls, goroutines)
		default:
			reply["error"] = fmt.Sprintf("unknown command %q here", lines.Text())
		}
		if err := answer.Encode(reply); err != nil || reply["quit"] != nil {
			return err
		}
	}
	return lines.Err()
}

// load makes so many calls and gives how many of them failed.
func load(caller client.Client, calls, goroutines int) int64 {
	var next, failed atomic.Int64
	var all sync.WaitGroup
	for range goroutines {
		all.Go(func() {
			for n := next.Add(1); n <= int64(calls); n = next.Add(1) {
				method := methods[n%int64(len(methods))]
				err := caller.Call(context.Background(), method, &number{value: int32(n)}, new(number))
				if err != nil {
					failed.Add(1)
				}
			}
		})
	}
	all.Wait()
	return failed.Load()
}
