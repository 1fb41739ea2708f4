package main

import (
	"context"
	"net"
	"net/http"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip" // compressed calls
)

// stage is the servers and the connections to them.
type stage struct {
	tally   *tally
	address string
	// plain goes to a server as gRPC makes it, http to one behind net/http's, retrying tries calls again, dead goes
	// nowhere.
	plain, http, retrying, dead *grpc.ClientConn
}

// retries is a service config with which calls are tried again.
const retries = `{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.001s",
	"maxBackoff": "0.002s", "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"]}}]}`

func newStage(t *tally) (*stage, error) {
	server := grpc.NewServer(grpc.UnaryInterceptor(t.serverUnary), grpc.StreamInterceptor(t.serverStream))
	server.RegisterService(describe(service, "Call"), struct{}{})
	server.RegisterService(describe(longService, longMethod), struct{}{})
	address, err := listen(func(l net.Listener) { _ = server.Serve(l) })
	if err != nil {
		return nil, err
	}
	behind := &http.Server{Handler: h2c.NewHandler(server, &http2.Server{})}
	other, err := listen(func(l net.Listener) { _ = behind.Serve(l) })
	if err != nil {
		return nil, err
	}
	nowhere, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	_ = nowhere.Close()
	s := &stage{tally: t, address: address}
	for _, to := range []struct {
		connection **grpc.ClientConn
		address    string
		options    []grpc.DialOption
	}{
		{&s.plain, address, nil},
		{&s.http, other, nil},
		{&s.retrying, address, []grpc.DialOption{grpc.WithDefaultServiceConfig(retries)}},
		{&s.dead, nowhere.Addr().String(), nil},
	} {
		options := append(to.options, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithUnaryInterceptor(t.clientUnary), grpc.WithStreamInterceptor(t.clientStream))
		if *to.connection, err = grpc.Dial(to.address, options...); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func listen(serve func(net.Listener)) (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go serve(listener)
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
