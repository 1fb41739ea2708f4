package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
)

// scenario is one kind of call.
type scenario struct {
	name string
	run  func(*stage) error
}

var scenarios = []scenario{
	{"unary", func(s *stage) error { return call(context.Background(), s.plain, "hello") }},
	{"long names", longNames},
	{"every code", everyCode},
	{"panic", func(s *stage) error { return fails(codes.Internal, call(context.Background(), s.plain, "panic")) }},
	{"compressed", func(s *stage) error {
		return call(context.Background(), s.plain, "hello", grpc.UseCompressor("gzip"))
	}},
	{"custom codec", func(s *stage) error {
		return call(context.Background(), s.plain, "hello", grpc.CallContentSubtype(reversed{}.Name()))
	}},
	{"too large for the client", func(s *stage) error {
		return fails(codes.ResourceExhausted, call(context.Background(), s.plain, "large", grpc.MaxCallRecvMsgSize(1024)))
	}},
	{"deadline", deadline},
	{"canceled", canceled},
	{"unimplemented", unimplemented},
	{"nobody there", nobodyThere},
	{"tried again", triedAgain},
	{"tried in vain", triedInVain},
	{"bidirectional", func(s *stage) error { return exchange(s.plain, "hello", codes.OK) }},
	{"bidirectional with an error", func(s *stage) error { return exchange(s.plain, "codel", codes.OutOfRange) }},
	{"from the server", func(s *stage) error { return receive(s.plain, "hello", codes.OK) }},
	{"from the server with an error", func(s *stage) error { return receive(s.plain, "codef", codes.NotFound) }},
	{"from the client", func(s *stage) error { return send(s.plain, "hello", codes.OK) }},
	{"from the client with an error", func(s *stage) error { return send(s.plain, "codeh", codes.PermissionDenied) }},
	{"from the client with a reply and an error", func(s *stage) error { return send(s.plain, "late", codes.Aborted) }},
	{"stream canceled", streamCanceled},
	{"stream with a deadline", streamDeadline},
	{"behind net/http", behindHTTP},
	{"turned away by a tap", turnedAway},
	{"client gone", clientGone},
	{"client gone while the server receives", func(s *stage) error { return goneWhileReceiving(s, "hello") }},
	{"client gone, and the server fails otherwise", func(s *stage) error { return goneWhileReceiving(s, "fails anyway") }},
	{"client gone, and the server takes it well", func(s *stage) error { return goneWhileReceiving(s, "takes it well") }},
	{"canceled, and the server fails otherwise", canceledWhileReceiving},
}

func call(ctx context.Context, connection *grpc.ClientConn, request string, options ...grpc.CallOption) error {
	return connection.Invoke(ctx, "/"+service+"/Call", &text{Value: request}, new(text), options...)
}

// fails gives an error unless another error has this code.
func fails(wanted codes.Code, err error) error {
	if code(err) == wanted {
		return nil
	}
	return fmt.Errorf("%v, not %v", err, wanted)
}

func longNames(s *stage) error {
	return s.plain.Invoke(context.Background(), "/"+longService+"/"+longMethod, &text{}, new(text))
}

func everyCode(s *stage) error { return codesUpTo(s, codes.Unauthenticated+1) }

func codesUpTo(s *stage, last codes.Code) error {
	for c := codes.Canceled; c <= last; c++ {
		if err := fails(c, call(context.Background(), s.plain, "code"+string('a'+rune(c)))); err != nil {
			return err
		}
	}
	return nil
}

func deadline(s *stage) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	return fails(codes.DeadlineExceeded, call(ctx, s.plain, "wait"))
}

func canceled(s *stage) error {
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(10*time.Millisecond, cancel)
	return fails(codes.Canceled, call(ctx, s.plain, "wait"))
}

func unimplemented(s *stage) error {
	return refuses(s, "/"+service+"/Missing", "/monitor.test.Missing/Call")
}

// refuses calls what the server refuses before it asks an interceptor. Nothing there says what kind of call it was.
func refuses(s *stage, methods ...string) error {
	for _, method := range methods {
		err := s.plain.Invoke(context.Background(), method, &text{}, new(text))
		if err := fails(codes.Unimplemented, err); err != nil {
			return err
		}
		k := newKind("server", method, false, false)
		k.Type = "unknown"
		s.tally.refused(k, codes.Unimplemented)
	}
	return nil
}

func nobodyThere(s *stage) error {
	if err := fails(codes.Unavailable, call(context.Background(), s.dead, "hello")); err != nil {
		return err
	}
	_, err := s.dead.NewStream(context.Background(), &echo, "/"+service+"/Chat")
	if err := fails(codes.Unavailable, err); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	return fails(codes.DeadlineExceeded, call(ctx, s.dead, "hello", grpc.WaitForReady(true)))
}

func triedAgain(s *stage) error {
	name := fmt.Sprint(time.Now().UnixNano())
	ctx := metadata.AppendToOutgoingContext(context.Background(), "name", name)
	return call(ctx, s.retrying, "again")
}

func triedInVain(s *stage) error {
	return fails(codes.Unavailable, call(context.Background(), s.retrying, "codeo"))
}

func open(ctx context.Context, connection *grpc.ClientConn, desc *grpc.StreamDesc, first string) (grpc.ClientStream, error) {
	stream, err := connection.NewStream(ctx, desc, "/"+service+"/"+desc.StreamName)
	if err != nil {
		return nil, err
	}
	return stream, stream.SendMsg(&text{Value: first})
}

// drain receives until the end.
func drain(stream grpc.ClientStream, wanted codes.Code) error {
	for {
		err := stream.RecvMsg(new(text))
		if err == io.EOF {
			err = nil
		} else if err == nil {
			continue
		}
		return fails(wanted, err)
	}
}

func exchange(connection *grpc.ClientConn, word string, wanted codes.Code) error {
	stream, err := open(context.Background(), connection, &echo, "hello")
	if err != nil {
		return err
	}
	if err := stream.RecvMsg(new(text)); err != nil {
		return err
	}
	_ = stream.SendMsg(&text{Value: word})
	_ = stream.CloseSend()
	return drain(stream, wanted)
}

func receive(connection *grpc.ClientConn, word string, wanted codes.Code) error {
	stream, err := open(context.Background(), connection, &count, word)
	if err != nil {
		return err
	}
	_ = stream.CloseSend()
	return drain(stream, wanted)
}

func send(connection *grpc.ClientConn, word string, wanted codes.Code) error {
	stream, err := open(context.Background(), connection, &gather, word)
	if err != nil {
		return err
	}
	_ = stream.CloseSend()
	return fails(wanted, stream.RecvMsg(new(text)))
}

func streamCanceled(s *stage) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := open(ctx, s.plain, &echo, "hello")
	if err != nil {
		return err
	}
	if err := stream.RecvMsg(new(text)); err != nil {
		return err
	}
	time.AfterFunc(time.Millisecond, cancel)
	return fails(codes.Canceled, stream.RecvMsg(new(text)))
}

func streamDeadline(s *stage) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	stream, err := open(ctx, s.plain, &echo, "wait")
	if err != nil {
		return err
	}
	return fails(codes.DeadlineExceeded, stream.RecvMsg(new(text)))
}

func behindHTTP(s *stage) error {
	if err := call(context.Background(), s.http, "hello"); err != nil {
		return err
	}
	if err := fails(codes.DataLoss, call(context.Background(), s.http, "codep")); err != nil {
		return err
	}
	return exchange(s.http, "hello", codes.OK)
}

// turnedAway calls what the server's transport refuses: a call of the client's only. With which code it ends, releases
// differ in.
func turnedAway(s *stage) error {
	if err := s.plain.Invoke(context.Background(), tapped, &text{}, new(text)); code(err) == codes.OK {
		return errors.New("not turned away")
	}
	return nil
}

// cut is a connection to the server, and what cuts it.
func cut(s *stage, address string) (*grpc.ClientConn, func() error, error) {
	wire := make(chan net.Conn, 1)
	connection, err := s.dial(target{address, []grpc.DialOption{
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			if err == nil {
				select {
				case wire <- conn:
				default:
				}
			}
			return conn, err
		}),
	}})
	return connection, func() error { return (<-wire).Close() }, err
}

// clientGone loses the connection while a call and a stream are in what their handlers do.
func clientGone(s *stage) error {
	connection, lose, err := cut(s, s.address)
	if err != nil {
		return err
	}
	defer connection.Close()
	before := waits.Load()
	called := make(chan error, 1)
	go func() { called <- call(context.Background(), connection, "wait") }()
	stream, err := open(context.Background(), connection, &echo, "wait")
	if err != nil {
		return err
	}
	for begin := time.Now(); waits.Load() != before+2; time.Sleep(time.Millisecond) {
		if time.Since(begin) > patience {
			return errors.New("the handlers were not reached")
		}
	}
	if err := lose(); err != nil {
		return err
	}
	if err := fails(codes.Unavailable, stream.RecvMsg(new(text))); err != nil {
		return err
	}
	return fails(codes.Unavailable, <-called)
}

// goneWhileReceiving loses the connection while a handler receives. gRPC writes a status when the handler can't receive,
// and another when it returns, which is the end of the call.
func goneWhileReceiving(s *stage, words string) error {
	connection, lose, err := cut(s, s.address)
	if err != nil {
		return err
	}
	defer connection.Close()
	stream, err := open(context.Background(), connection, &echo, words)
	if err != nil {
		return err
	}
	if err := stream.RecvMsg(new(text)); err != nil {
		return err
	}
	if err := lose(); err != nil {
		return err
	}
	return fails(codes.Unavailable, stream.RecvMsg(new(text)))
}

// canceledWhileReceiving is the same, but that the connection goes on.
func canceledWhileReceiving(s *stage) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := open(ctx, s.plain, &echo, "fails anyway")
	if err != nil {
		return err
	}
	if err := stream.RecvMsg(new(text)); err != nil {
		return err
	}
	cancel()
	return fails(codes.Canceled, stream.RecvMsg(new(text)))
}
