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

// others count beside these, and outside of them.
var others struct {
	serverUnary  []grpc.UnaryServerInterceptor
	serverStream []grpc.StreamServerInterceptor
	clientUnary  []grpc.UnaryClientInterceptor
	clientStream []grpc.StreamClientInterceptor
	// metrics is the address that shows what they counted.
	metrics string
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
		t.message(t.sent, k, err)
	}()
	t.message(t.received, k, nil)
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
	return handle(server, &served{stream, t, k})
}

// served counts the messages of a stream that is handled.
type served struct {
	grpc.ServerStream
	tally *tally
	kind  kind
}

func (s *served) SendMsg(message interface{}) error {
	err := s.ServerStream.SendMsg(message)
	s.tally.message(s.tally.sent, s.kind, err)
	return err
}

func (s *served) RecvMsg(message interface{}) error {
	err := s.ServerStream.RecvMsg(message)
	s.tally.message(s.tally.received, s.kind, err)
	return err
}

func (t *tally) clientUnary(
	ctx context.Context, method string, request, reply interface{},
	connection *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	k := newKind("client", method, false, false)
	t.start(k)
	t.message(t.sent, k, nil)
	err := invoke(ctx, method, request, reply, connection, options...)
	t.message(t.received, k, err)
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
	return &heard{ClientStream: stream, tally: t, kind: k, desc: desc}, nil
}

// heard counts the messages of a stream that was opened, and tells its end, once.
type heard struct {
	grpc.ClientStream
	tally *tally
	kind  kind
	desc  *grpc.StreamDesc
	once  sync.Once
}

func (h *heard) SendMsg(message interface{}) error {
	err := h.ClientStream.SendMsg(message)
	h.tally.message(h.tally.sent, h.kind, err)
	return err
}

func (h *heard) RecvMsg(message interface{}) error {
	err := h.ClientStream.RecvMsg(message)
	h.tally.message(h.tally.received, h.kind, err)
	if err != nil || !h.desc.ServerStreams {
		h.once.Do(func() { h.tally.end(h.kind, code(err)) })
	}
	return err
}
