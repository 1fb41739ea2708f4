package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/pkg/connpool"
	"github.com/cloudwego/kitex/pkg/rpcinfo"
	"github.com/cloudwego/kitex/pkg/serviceinfo"
	"github.com/cloudwego/kitex/pkg/transmeta"
	"github.com/cloudwego/kitex/server"
	"github.com/cloudwego/kitex/transport"
)

// scenario is one kind of call. Its set-up makes servers and clients and returns one repetition of its calls.
type scenario struct {
	name, about string
	// client and server say how many calls a tracer sees finish for each repetition.
	client, server int
	// parallel repetitions wait for something and are made at the same time.
	parallel bool
	// alone says that others at the same time would break its calls, or it theirs: Kitex closes a multiplexed
	// connection under a call now and then, and keeps a lock of its pool when a stream can't be created.
	alone bool
	// abandons says that calls are left in flight.
	abandons bool
	// missing says why this release of Kitex cannot do it.
	missing string
	setup   func(s *stage) func() error
}

// unsure is the number of calls where it depends on more than the scenario.
const unsure = -1

var scenarios []*scenario

func register(list ...scenario) {
	for i := range list {
		scenarios = append(scenarios, &list[i])
	}
}

// stage holds what a scenario has made: servers and clients named after it, and how far their calls are.
type stage struct {
	scenario       *scenario
	tally          *tally
	client, server progress
	gates          gates

	once       sync.Once
	repetition func() error
	broken     error
}

// prepare sets the scenario up, at its first run.
func (s *stage) prepare() error {
	s.once.Do(func() {
		defer func() {
			if reason := recover(); reason != nil {
				s.broken = fmt.Errorf("set-up: %v", reason)
			}
		}()
		s.repetition = s.scenario.setup(s)
	})
	return s.broken
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// serverOptions are what every server of the scenario has.
func (s *stage) serverOptions(callee string, listener net.Listener) []server.Option {
	return append(serverEvents(s.tally),
		server.WithListener(listener),
		server.WithServerBasicInfo(&rpcinfo.EndpointBasicInfo{ServiceName: callee}),
		server.WithMetaHandler(transmeta.ServerTTHeaderHandler),
		server.WithMetaHandler(transmeta.ServerHTTP2Handler),
		server.WithTracer(tracer{s.tally, &s.server, "server"}))
}

// clientOptions are what every client of the scenario has. One that finds its server otherwise has no address.
func (s *stage) clientOptions(callee, address string) []client.Option {
	return append(s.genericOptions(address), client.WithDestService(callee))
}

// genericOptions are those of a client that is told otherwise whom it calls.
func (s *stage) genericOptions(address string) []client.Option {
	opts := append(clientEvents(s.tally),
		client.WithClientBasicInfo(&rpcinfo.EndpointBasicInfo{ServiceName: s.scenario.name + "-client"}),
		client.WithTracer(tracer{s.tally, &s.client, "client"}))
	if address != "" {
		opts = append(opts, client.WithHostPorts(address))
	}
	return opts
}

func listen() net.Listener { return must(net.Listen("tcp", "127.0.0.1:0")) }

// serve starts a server of the scenario's own name with Thrift.
func (s *stage) serve(h handle, opts ...server.Option) string {
	return s.serveAs(s.scenario.name, served(serviceinfo.Thrift), h, opts...)
}

func (s *stage) serveAs(callee string, info *serviceinfo.ServiceInfo, h handle, opts ...server.Option) string {
	listener := listen()
	srv := server.NewServer(append(s.serverOptions(callee, listener), opts...)...)
	if err := srv.RegisterService(info, &host{h}); err != nil {
		panic(err)
	}
	return run(srv, listener)
}

// run serves in the background; the process ends with its control, not with its servers.
func run(srv server.Server, listener net.Listener) string {
	go func() {
		if err := srv.Run(); err != nil {
			panic(err)
		}
	}()
	return listener.Addr().String()
}

var errReply = errors.New("the reply is not the request")

// caller makes calls and checks how they end.
type caller struct{ client client.Client }

// dial makes a client of the scenario's server with Thrift, over framed unless the options say otherwise.
func (s *stage) dial(address string, opts ...client.Option) caller {
	return s.dialAs(s.scenario.name, address, serviceinfo.Thrift, opts...)
}

func (s *stage) dialAs(callee, address string, codec serviceinfo.PayloadCodec, opts ...client.Option) caller {
	options := append(s.clientOptions(callee, address), framed()...)
	return caller{must(client.NewClient(service(codec), append(options, opts...)...))}
}

// fresh makes a client, uses it and closes it: for what a client would remember from one repetition to the next.
func (s *stage) fresh(use func(caller) error, address string, opts ...client.Option) error {
	c := s.dial(address, append([]client.Option{client.WithShortConnection()}, opts...)...)
	defer c.close()
	return use(c)
}

func (c caller) close() {
	if closer, is := c.client.(io.Closer); is {
		_ = closer.Close()
	}
}

func (c caller) call(ctx context.Context, method string, request *message) error {
	if method == "Notify" {
		return c.client.Call(ctx, method, request, nil)
	}
	reply := new(message)
	if err := c.client.Call(ctx, method, request, reply); err != nil {
		return err
	}
	if string(reply.payload) != string(request.payload) {
		return errReply
	}
	return nil
}

func (c caller) echo(a action, is check) error {
	return is(c.call(context.Background(), "Echo", &message{action: a, payload: []byte("payload")}))
}

// echoes is a repetition of one call.
func (c caller) echoes(a action, is check) func() error {
	return func() error { return c.echo(a, is) }
}

func framed() []client.Option {
	return []client.Option{client.WithTransportProtocol(transport.Framed)}
}

func ttheader() []client.Option {
	return []client.Option{client.WithTransportProtocol(transport.TTHeader),
		client.WithMetaHandler(transmeta.ClientTTHeaderHandler)}
}

func grpc() []client.Option {
	return []client.Option{client.WithTransportProtocol(transport.GRPC),
		client.WithMetaHandler(transmeta.ClientHTTP2Handler)}
}

// keep makes connections outlive every pause.
func keep() client.Option {
	return client.WithLongConnection(connpool.IdleConfig{
		MaxIdlePerAddress: 1000, MaxIdleGlobal: 1000, MaxIdleTimeout: time.Hour})
}

// gates hold handlers until the scenario lets them go on. Each has a name, which is a request's payload.
type gates struct {
	last counter
	all  sync.Map
}

type gate struct {
	name    string
	entered chan struct{}
	open    chan struct{}
}

func (g *gates) shut() *gate {
	made := &gate{name: fmt.Sprint(g.last.Add(1)), entered: make(chan struct{}, 8), open: make(chan struct{})}
	g.all.Store(made.name, made)
	return made
}

// pass is a handler that waits at the gate that the request names.
func (g *gates) pass(_ context.Context, _ string, request *message) error {
	found, is := g.all.Load(string(request.payload))
	if !is {
		return errors.New("no such gate")
	}
	at := found.(*gate)
	at.entered <- struct{}{}
	<-at.open
	return nil
}

func (g *gate) request() *message { return &message{payload: []byte(g.name)} }

// reached waits until a handler stands at the gate.
func (g *gate) reached() error {
	select {
	case <-g.entered:
		return nil
	case <-time.After(patience):
		return errors.New("the handler was not reached")
	}
}
