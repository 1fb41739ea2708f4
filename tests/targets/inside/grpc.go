package main

import (
	"context"
	"net"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	kitex "github.com/cloudwego/kitex/client"
)

// second is another framework in the same process: gRPC's own health service and a client of it, with an interceptor on
// each side that counts calls by their codes.
type second struct {
	health           grpc_health_v1.HealthClient
	mu               sync.Mutex
	servers, clients map[string]int
}

func newSecond() (*second, error) {
	s := &second{servers: map[string]int{}, clients: map[string]int{}}
	server := grpc.NewServer(grpc.UnaryInterceptor(s.serverEar))
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() { panic(server.Serve(listener)) }()
	connection, err := grpc.Dial(listener.Addr().String(), grpc.WithUnaryInterceptor(s.clientEar),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	s.health = grpc_health_v1.NewHealthClient(connection)
	return s, nil
}

func (s *second) serverEar(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	reply, err := handler(ctx, req)
	s.count(s.servers, err)
	return reply, err
}

func (s *second) clientEar(ctx context.Context, method string, req, reply any, connection *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, connection, opts...)
	s.count(s.clients, err)
	return err
}

func (s *second) count(calls map[string]int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls[status.Code(err).String()]++
}

// both makes calls of both frameworks in turn on each of some goroutines. Of gRPC's every third is for a service that
// is not known, and fails.
func (s *second) both(caller kitex.Client, calls, goroutines int) map[string]any {
	var next atomic.Int64
	var all sync.WaitGroup
	for range goroutines {
		all.Go(func() {
			for n := next.Add(1); n <= int64(calls); n = next.Add(1) {
				_ = caller.Call(context.Background(), "Lookup", &number{value: int32(n)}, new(number))
				request := &grpc_health_v1.HealthCheckRequest{}
				if n%3 == 0 {
					request.Service = "missing"
				}
				_, _ = s.health.Check(context.Background(), request)
			}
		})
	}
	all.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return map[string]any{"calls": calls, "servers": s.servers, "clients": s.clients}
}
