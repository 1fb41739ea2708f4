package main

import (
	"context"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// text is every message.
type text = wrapperspb.StringValue

const (
	service = "monitor.test.Echo"
	// longService and longMethod are as long as names are in large companies.
	longService = "monitor.test.of.a.package.with.a.long.name.v1alpha1.WhoseServiceHasOneToo"
	longMethod  = "AndAMethodWhoseNameCantBeSaidInOneBreathEither"
	// misrouted is a service that xDS has no route to.
	misrouted = "monitor.test.Misrouted"
)

var (
	echo   = grpc.StreamDesc{StreamName: "Chat", Handler: chat, ServerStreams: true, ClientStreams: true}
	count  = grpc.StreamDesc{StreamName: "Count", Handler: counted, ServerStreams: true}
	gather = grpc.StreamDesc{StreamName: "Gather", Handler: gathered, ClientStreams: true}
)

// waits is how often a handler has begun to wait.
var waits counter

// counter counts, for releases of Go that have no atomic.Int64.
type counter struct{ value int64 }

func (c *counter) Add(n int64) { atomic.AddInt64(&c.value, n) }

func (c *counter) Load() int64 { return atomic.LoadInt64(&c.value) }

// attempts says how often a call that is tried again was tried.
var attempts sync.Map

func describe(name, method string) *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: name,
		HandlerType: (*interface{})(nil),
		Methods:     []grpc.MethodDesc{{MethodName: method, Handler: unary(name, method)}},
		Streams:     []grpc.StreamDesc{echo, count, gather},
	}
}

func unary(name, method string) func(interface{}, context.Context, func(interface{}) error, grpc.UnaryServerInterceptor) (interface{}, error) {
	info := &grpc.UnaryServerInfo{FullMethod: "/" + name + "/" + method}
	return func(_ interface{}, ctx context.Context, decode func(interface{}) error, ear grpc.UnaryServerInterceptor) (interface{}, error) {
		request := new(text)
		if err := decode(request); err != nil {
			return nil, err
		}
		return ear(ctx, request, info, func(ctx context.Context, request interface{}) (interface{}, error) {
			return obey(ctx, request.(*text))
		})
	}
}

// obey does what a request says.
func obey(ctx context.Context, request *text) (*text, error) {
	words := request.Value
	switch {
	case words == "wait":
		waits.Add(1)
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	case words == "panic":
		panic(words)
	case words == "sleep":
		time.Sleep(20 * time.Millisecond)
	case words == "large":
		return &text{Value: string(make([]byte, 64<<10))}, nil
	case words == "again":
		return again(ctx)
	case strings.HasPrefix(words, "code"):
		letter, _ := utf8.DecodeRuneInString(words[4:])
		return nil, status.Error(codes.Code(letter-'a'), words)
	}
	return request, nil
}

// again fails twice and then doesn't.
func again(ctx context.Context) (*text, error) {
	incoming, _ := metadata.FromIncomingContext(ctx)
	name := incoming.Get("name")[0]
	before, _ := attempts.LoadOrStore(name, new(int))
	times := before.(*int)
	*times++
	if *times <= 2 {
		return nil, status.Error(codes.Unavailable, "again")
	}
	return &text{}, nil
}

func chat(_ interface{}, stream grpc.ServerStream) error {
	last := ""
	for {
		message := new(text)
		if err := stream.RecvMsg(message); err == io.EOF {
			return nil
		} else if err != nil {
			return bear(last, err)
		}
		last = message.Value
		reply, err := obey(stream.Context(), message)
		if err != nil {
			return err
		}
		if err := stream.SendMsg(reply); err != nil {
			return err
		}
	}
}

// bear is what a handler makes of it that it can't receive after these words.
func bear(words string, err error) error {
	switch words {
	case "fails anyway":
		return status.Error(codes.DataLoss, words)
	case "takes it well":
		return nil
	}
	return err
}

func counted(_ interface{}, stream grpc.ServerStream) error {
	message := new(text)
	if err := stream.RecvMsg(message); err != nil {
		return err
	}
	for i := 0; i < 3; i++ {
		reply, err := obey(stream.Context(), message)
		if err != nil {
			return err
		}
		if err := stream.SendMsg(reply); err != nil {
			return err
		}
	}
	return nil
}

func gathered(_ interface{}, stream grpc.ServerStream) error {
	message := new(text)
	for {
		if err := stream.RecvMsg(message); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		if _, err := obey(stream.Context(), message); err != nil {
			return err
		}
	}
	if err := stream.SendMsg(message); err != nil || message.Value != "late" {
		return err
	}
	return status.Error(codes.Aborted, "after the reply")
}
