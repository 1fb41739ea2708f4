package main

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip" // compressed calls
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
)

// stage is the servers and the connections to them.
type stage struct {
	tally   *tally
	way     *way
	address string
	// nowhere is an address at which nobody listens.
	nowhere string
	// plain goes to a server as gRPC makes it, http to one behind net/http's, retrying tries calls again, dead goes
	// nowhere.
	plain, http, retrying, dead *grpc.ClientConn
}

// server is what serves calls.
type server interface {
	RegisterService(*grpc.ServiceDesc, interface{})
	Serve(net.Listener) error
}

// tapped is a method whose calls the transport turns away before they are calls.
const tapped = "/" + service + "/Tapped"

func newStage(t *tally) (*stage, error) {
	way, err := newWay()
	if err != nil {
		return nil, err
	}
	ears := []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(append(others.serverUnary, t.serverUnary)...),
		grpc.ChainStreamInterceptor(append(others.serverStream, t.serverStream)...),
	}
	server, err := way.server(append(ears, grpc.InTapHandle(turnAway))...)
	if err != nil {
		return nil, err
	}
	register(server)
	address, err := listen(server.Serve)
	if err != nil {
		return nil, err
	}
	inside := grpc.NewServer(ears...)
	register(inside)
	other, err := listen((&http.Server{Handler: h2c.NewHandler(inside, &http2.Server{})}).Serve)
	if err != nil {
		return nil, err
	}
	nowhere, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	_ = nowhere.Close()
	s := &stage{tally: t, way: way, address: address, nowhere: nowhere.Addr().String()}
	if err := way.open(address, nowhere.Addr().String()); err != nil {
		return nil, err
	}
	for _, to := range []struct {
		connection **grpc.ClientConn
		target     target
	}{
		{&s.plain, way.plain(address)},
		{&s.http, target{name: other}},
		{&s.retrying, way.retrying(address)},
		{&s.dead, way.dead(nowhere.Addr().String())},
	} {
		if *to.connection, err = s.dial(to.target); err != nil {
			return nil, err
		}
	}
	return s, way.settle(s)
}

// target is what a client dials, and how.
type target struct {
	name    string
	options []grpc.DialOption
}

// dial makes a connection with ears.
func (s *stage) dial(to target) (*grpc.ClientConn, error) {
	options := append(to.options, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithChainUnaryInterceptor(append(others.clientUnary, s.tally.clientUnary)...),
		grpc.WithChainStreamInterceptor(append(others.clientStream, s.tally.clientStream)...))
	return grpc.Dial(to.name, options...)
}

func register(s server) {
	s.RegisterService(describe(service, "Call"), struct{}{})
	s.RegisterService(describe(longService, longMethod), struct{}{})
	s.RegisterService(describe(misrouted, "Call"), struct{}{})
}

func turnAway(ctx context.Context, info *tap.Info) (context.Context, error) {
	if info.FullMethodName == tapped {
		return ctx, status.Error(codes.PermissionDenied, "turned away")
	}
	return ctx, nil
}

func listen(serve func(net.Listener) error) (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go func() { _ = serve(listener) }()
	return listener.Addr().String(), nil
}

func (s *stage) load(n, workers int) error {
	var all sync.WaitGroup
	errs := make(chan error, workers)
	for w := 0; w < workers; w++ {
		mine := n / workers
		if w < n%workers {
			mine++
		}
		all.Add(1)
		go func() {
			defer all.Done()
			for i := 0; i < mine; i++ {
				if err := call(context.Background(), s.plain, "hello"); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	all.Wait()
	close(errs)
	return <-errs
}

// paced is one kind of call, and how long its calls took.
type paced struct {
	method string
	call   func() error
	took   time.Duration
	err    error
}

// pace makes one call of each kind at the same time, n times.
func (s *stage) pace(n int) []*paced {
	kinds := []*paced{
		{method: "Call", call: func() error { return call(context.Background(), s.plain, "hello") }},
		{method: longMethod, call: func() error {
			return s.plain.Invoke(context.Background(), "/"+longService+"/"+longMethod, &text{Value: "sleep"}, new(text))
		}},
		{method: echo.StreamName, call: func() error { return exchange(s.plain, "sleep", codes.OK) }},
	}
	for i := 0; i < n; i++ {
		var all sync.WaitGroup
		for _, kind := range kinds {
			kind := kind
			all.Add(1)
			go func() {
				defer all.Done()
				begin := time.Now()
				if err := kind.call(); err != nil {
					kind.err = err
				}
				kind.took += time.Since(begin)
			}()
		}
		all.Wait()
	}
	return kinds
}
