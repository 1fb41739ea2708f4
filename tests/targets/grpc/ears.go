package main

import (
	"context"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// code is the code that gRPC itself makes of an error.
func code(err error) codes.Code {
	if err == nil || err == io.EOF {
		return codes.OK
	}
	return status.Code(err)
}

func (t *tally) serverUnary(
	ctx context.Context, request interface{}, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler,
) (reply interface{}, err error) {
	k := newKind("server", info.FullMethod, false, false)
	t.start(k)
	defer func() {
		if recover() != nil {
			err = status.Error(codes.Internal, "it panicked")
		}
		t.end(k, code(err))
	}()
	return handle(ctx, request)
}

func (t *tally) serverStream(
	server interface{}, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler,
) (err error) {
	k := newKind("server", info.FullMethod, info.IsClientStream, info.IsServerStream)
	t.start(k)
	defer func() {
		if recover() != nil {
			err = status.Error(codes.Internal, "it panicked")
		}
		t.end(k, code(err))
	}()
	return handle(server, stream)
}

func (t *tally) clientUnary(
	ctx context.Context, method string, request, reply interface{},
	connection *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	k := newKind("client", method, false, false)
	t.start(k)
	err := invoke(ctx, method, request, reply, connection, options...)
	t.end(k, code(err))
	return err
}

func (t *tally) clientStream(
	ctx context.Context, desc *grpc.StreamDesc, connection *grpc.ClientConn, method string,
	streamer grpc.Streamer, options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	k := newKind("client", method, desc.ClientStreams, desc.ServerStreams)
	t.start(k)
	stream, err := streamer(ctx, desc, connection, method, options...)
	if err != nil {
		t.end(k, code(err))
		return nil, err
	}
	return &heard{ClientStream: stream, desc: desc, end: func(err error) { t.end(k, code(err)) }}, nil
}

// heard tells the end of a stream, once.
type heard struct {
	grpc.ClientStream
	desc *grpc.StreamDesc
	once sync.Once
	end  func(error)
}

func (h *heard) RecvMsg(message interface{}) error {
	err := h.ClientStream.RecvMsg(message)
	if err != nil || !h.desc.ServerStreams {
		h.once.Do(func() { h.end(err) })
	}
	return err
}
