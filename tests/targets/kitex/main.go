// Command kitex-target is a real Kitex process for tests, demonstration and benchmark of monitor-agent: a server,
// a client, or a relay (a server that calls another one while it handles a call).
//
// The process counts its own calls with a tracer inside and is steered by lines on stdin, each answered by one
// JSON line on stdout (control.go lists them). It ends with the end of stdin, so that no process outlives its test.
package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"

	"example.com/monitor/steer"
	"github.com/cloudwego/kitex/pkg/klog"
)

// options holds what the command line says; each role uses its part.
type options struct {
	role      string
	listen    string
	service   string
	connect   string
	callee    string
	caller    string
	protocol  string
	shortConn bool
	retry     bool
	nested    bool
	mux       bool
	// unrecorded calls have no events in their statistics.
	unrecorded bool
	tracers    []string
	metrics    string
}

func main() {
	o, err := parse(os.Args[1:])
	if err == nil {
		err = run(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kitex-target:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	if len(args) == 0 {
		return o, fmt.Errorf("usage: kitex-target server|client|relay [flags]")
	}
	o.role = args[0]
	flags := flag.NewFlagSet("kitex-target "+o.role, flag.ExitOnError)
	serves, calls := o.role == "server" || o.role == "relay", o.role == "client" || o.role == "relay"
	if !serves && !calls {
		return o, fmt.Errorf("unknown role %q: server, client or relay", o.role)
	}
	if serves {
		flags.StringVar(&o.listen, "listen", "127.0.0.1:0", "address to listen on")
		flags.StringVar(&o.service, "service", "stock", "name of this service, the callee of its calls; may be empty")
		flags.BoolVar(&o.mux, "mux", false, "serve clients with --protocol mux, and no others")
	}
	if calls {
		flags.StringVar(&o.connect, "connect", "", "address of the server to call")
		flags.StringVar(&o.callee, "callee", "stock", "name of the service to call")
		flags.StringVar(&o.caller, "caller", "shop", "name of this client; may be empty")
		flags.StringVar(&o.protocol, "protocol", "ttheader", "framed, ttheader (carries the caller's name) or mux (ttheader, many calls on one connection)")
		conns := flags.String("conns", "long", "long or short connections")
		flags.BoolVar(&o.retry, "retry", false, "retry failed calls, up to twice, until Kitex's breaker stops it")
		flags.BoolVar(&o.nested, "nested", false, "make a second client's call in a middleware of each call")
		defer func() { o.shortConn = *conns == "short" }()
	}
	tracers := flags.String("tracer", "tally", "none, or some of tally, log (every call by itself) and prometheus, with commas")
	flags.BoolVar(&o.unrecorded, "unrecorded", false, "keep Kitex from recording when calls start; the tally takes the time itself")
	flags.StringVar(&o.metrics, "metrics-address", "127.0.0.1:0", "where the prometheus tracer is scraped, at /metrics")
	if err := flags.Parse(args[1:]); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if calls && o.connect == "" {
		return o, fmt.Errorf("%s needs --connect ADDR", o.role)
	}
	if calls && !slices.Contains([]string{"framed", "ttheader", "mux"}, o.protocol) {
		return o, fmt.Errorf("unknown protocol %q: framed, ttheader or mux", o.protocol)
	}
	if *tracers != "none" {
		o.tracers = strings.Split(*tracers, ",")
	}
	return o, nil
}

func run(o options) error {
	// Failures are part of the load; Kitex would log each with its stack.
	klog.SetOutput(io.Discard)
	tally := newTally()
	tracers, err := newTracers(o, tally)
	if err != nil {
		return err
	}
	c := control{tally: tally, log: tracers.log, ready: steer.Ready()}
	if tracers.metricsAddr != "" {
		c.ready["metrics"] = tracers.metricsAddr
	}
	var downstream *caller
	if o.role != "server" {
		if downstream, err = newCaller(o, tracers.client); err != nil {
			return err
		}
	}
	if o.role == "client" {
		c.load = newLoad(downstream, o.retry)
		return c.steering.Serve(c.ready, c.obey)
	}
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	c.ready["addr"] = listener.Addr().String()
	c.handler = &handler{downstream: downstream}
	if err := startServer(o, listener, c.handler, tracers.server); err != nil {
		return err
	}
	return c.steering.Serve(c.ready, c.obey)
}
