//go:build reference

package main

import (
	"net"
	"net/http"

	monitor "github.com/grpc-ecosystem/go-grpc-prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// The library that the agent's names are from counts too, with the time that calls take, as its README has it.
func init() {
	monitor.EnableHandlingTimeHistogram()
	monitor.EnableClientHandlingTimeHistogram()
	others.serverUnary = append(others.serverUnary, monitor.UnaryServerInterceptor)
	others.serverStream = append(others.serverStream, monitor.StreamServerInterceptor)
	others.clientUnary = append(others.clientUnary, monitor.UnaryClientInterceptor)
	others.clientStream = append(others.clientStream, monitor.StreamClientInterceptor)
	address, err := listen(func(l net.Listener) error { return http.Serve(l, promhttp.Handler()) })
	if err != nil {
		panic(err)
	}
	others.metrics = address
}
