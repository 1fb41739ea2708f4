// Echo is a gRPC server, or a client that loads it, for the bench: two processes, so that the server's processor time is
// its own. With --monitor prometheus the server has go-grpc-prometheus inside, which `cargo xtask bench` compares the
// agent with.
//
// Both are steered by lines on stdin, each answered by one JSON line on stdout (control.go lists them), and end with it.
package main

import (
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"

	"example.com/monitor/steer"
	monitor "github.com/grpc-ecosystem/go-grpc-prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("usage: echo server|client [flags]")
	}
	flags := flag.NewFlagSet("echo "+args[0], flag.ExitOnError)
	inside := flags.String("monitor", "none", "what a server has inside: none or prometheus")
	connect := flags.String("connect", "", "address of the server that a client calls")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	c := control{ready: steer.Ready()}
	switch args[0] {
	case "server":
		if err := c.startServer(*inside == "prometheus"); err != nil {
			return err
		}
	case "client":
		connection, err := grpc.NewClient(*connect, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		c.connection = connection
	default:
		return fmt.Errorf("unknown role %q: server or client", args[0])
	}
	return steer.Serve(c.ready, c.obey)
}

func (c *control) startServer(isMonitored bool) error {
	var options []grpc.ServerOption
	if isMonitored {
		// As its README has it, latencies included: the agent has them, too.
		monitor.EnableHandlingTimeHistogram()
		options = append(options, grpc.UnaryInterceptor(monitor.UnaryServerInterceptor))
	}
	server := grpc.NewServer(options...)
	server.RegisterService(&description, c)
	if isMonitored {
		monitor.Register(server)
		address, err := listen(func(l net.Listener) error { return http.Serve(l, promhttp.Handler()) })
		if err != nil {
			return err
		}
		c.ready["metrics"] = address
	}
	address, err := listen(server.Serve)
	c.ready["addr"] = address
	return err
}

func listen(serve func(net.Listener) error) (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go func() { _ = serve(listener) }()
	return listener.Addr().String(), nil
}
