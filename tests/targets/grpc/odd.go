package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// odd is what few programs do with calls.
var odd = []scenario{
	{"messages from another goroutine", fromElsewhere},
	{"without a network", withoutNetwork},
	{"a service that nobody registered", unknownService},
	{"after its end", afterItsEnd},
	{"the server stops", serverStops},
	{"waiting for a stream", waitingForStream},
	{"too large for the server", tooLargeForServer},
	{"tried again when the server has gone", goneBeforeRetry},
	{"names that are none", func(s *stage) error { return refuses(s, "/"+service+"/", "//Call", "/nonsense") }},
	{"unary, by a stream", func(s *stage) error {
		stream, err := open(context.Background(), s.plain, &grpc.StreamDesc{StreamName: "Call"}, "hello")
		if err != nil {
			return err
		}
		if err := stream.CloseSend(); err != nil {
			return err
		}
		return fails(codes.OK, stream.RecvMsg(new(text)))
	}},
	{"unary, by streams that end twice", endTwice},
	{"too large to send", func(s *stage) error {
		stream, err := open(context.Background(), s.plain, &echo, "hello")
		if err != nil {
			return err
		}
		_ = stream.SendMsg(&text{Value: string(make([]byte, 5<<20))})
		return drain(stream, codes.ResourceExhausted)
	}},
}

// endTwice has calls that get no reply, and that whoever waits for it and whoever watches the context end at the same moment.
func endTwice(s *stage) error {
	const callers, times = 16, 60
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go serveFrames(listener, func(*http2.Framer) {})
	connection, err := s.dial(target{name: listener.Addr().String()})
	if err != nil {
		return err
	}
	defer connection.Close()
	ended := make(chan error, callers)
	for i := 0; i < callers; i++ {
		go func() {
			var err error
			for n := 0; n < times && err == nil; n++ {
				err = endWithContext(connection, n%2 == 0)
			}
			ended <- err
		}()
	}
	for i := 0; i < callers; i++ {
		if e := <-ended; e != nil {
			err = e
		}
	}
	return err
}

// ending is a context that ends when it is told to, not before all is sent, however busy the machine is.
type ending struct {
	context.Context
	done chan struct{}
	err  error
}

func (e ending) Done() <-chan struct{} { return e.done }

func (e ending) Err() error {
	select {
	case <-e.done:
		return e.err
	default:
		return nil
	}
}

func endWithContext(connection *grpc.ClientConn, byDeadline bool) error {
	ctx, wanted := ending{context.Background(), make(chan struct{}), context.Canceled}, codes.Canceled
	if byDeadline {
		ctx.err, wanted = context.DeadlineExceeded, codes.DeadlineExceeded
	}
	stream, err := connection.NewStream(ctx, &grpc.StreamDesc{StreamName: "Call"}, "/"+service+"/Call")
	if err != nil {
		return err
	}
	if err := stream.SendMsg(&text{Value: "hello"}); err != nil {
		return err
	}
	_ = stream.CloseSend()
	time.AfterFunc(time.Millisecond, func() { close(ctx.done) })
	return fails(wanted, stream.RecvMsg(new(text)))
}

// serving is another server with ears, and a connection to it.
func serving(s *stage, options ...grpc.ServerOption) (*grpc.Server, *grpc.ClientConn, error) {
	server := grpc.NewServer(append(options,
		grpc.UnaryInterceptor(s.tally.serverUnary), grpc.StreamInterceptor(s.tally.serverStream))...)
	register(server)
	address, err := listen(server.Serve)
	if err != nil {
		return nil, nil, err
	}
	connection, err := s.dial(target{name: address})
	return server, connection, err
}

func fromElsewhere(s *stage) error {
	stream, err := open(context.Background(), s.plain, &echo, "hello")
	if err != nil {
		return err
	}
	ended := make(chan error)
	go func() { ended <- drain(stream, codes.OK) }()
	for i := 0; i < 5; i++ {
		if err := stream.SendMsg(&text{Value: "hello"}); err != nil {
			return err
		}
	}
	_ = stream.CloseSend()
	return <-ended
}

// withoutNetwork has both sides of each call in this process, and no socket in between.
func withoutNetwork(s *stage) error {
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer(
		grpc.UnaryInterceptor(s.tally.serverUnary), grpc.StreamInterceptor(s.tally.serverStream))
	register(server)
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	connection, err := s.dial(target{"passthrough:///nowhere", []grpc.DialOption{
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return listener.Dial() }),
	}})
	if err != nil {
		return err
	}
	defer connection.Close()
	if err := call(context.Background(), connection, "hello"); err != nil {
		return err
	}
	return exchange(connection, "hello", codes.OK)
}

// unknownService is handled as proxies do it: by one handler for whatever comes.
func unknownService(s *stage) error {
	server, connection, err := serving(s, grpc.UnknownServiceHandler(func(_ interface{}, stream grpc.ServerStream) error {
		message := new(text)
		if err := stream.RecvMsg(message); err != nil {
			return err
		}
		if message.Value == "fail" {
			return status.Error(codes.DataLoss, message.Value)
		}
		return stream.SendMsg(message)
	}))
	if err != nil {
		return err
	}
	defer server.Stop()
	defer connection.Close()
	invoke := func(words string) error {
		return connection.Invoke(context.Background(), "/monitor.test.Nobody/Call", &text{Value: words}, new(text))
	}
	if err := invoke("hello"); err != nil {
		return err
	}
	return fails(codes.DataLoss, invoke("fail"))
}

// afterItsEnd has a handler leave behind a goroutine that goes on with the stream.
func afterItsEnd(s *stage) error {
	ended := make(chan struct{})
	server := grpc.NewServer(grpc.StreamInterceptor(s.tally.serverStream))
	handler := func(_ interface{}, stream grpc.ServerStream) error {
		go func() {
			defer close(ended)
			<-stream.Context().Done()
			_ = stream.SendMsg(new(text))
			_ = stream.RecvMsg(new(text))
		}()
		return nil
	}
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: service,
		HandlerType: (*interface{})(nil),
		Streams:     []grpc.StreamDesc{{StreamName: echo.StreamName, Handler: handler, ServerStreams: true, ClientStreams: true}},
	}, struct{}{})
	address, err := listen(server.Serve)
	if err != nil {
		return err
	}
	defer server.Stop()
	connection, err := s.dial(target{name: address})
	if err != nil {
		return err
	}
	defer connection.Close()
	stream, err := connection.NewStream(context.Background(), &echo, "/"+service+"/"+echo.StreamName)
	if err != nil {
		return err
	}
	if err := stream.RecvMsg(new(text)); err != io.EOF {
		return fmt.Errorf("not ended well: %v", err)
	}
	<-ended
	return nil
}

// entered waits until so many handlers more have begun to wait.
func entered(more, before int64) error {
	for begin := time.Now(); waits.Load() < before+more; time.Sleep(time.Millisecond) {
		if time.Since(begin) > patience {
			return fmt.Errorf("%d handlers wait, not %d", waits.Load()-before, more)
		}
	}
	return nil
}

func serverStops(s *stage) error {
	server, connection, err := serving(s)
	if err != nil {
		return err
	}
	defer connection.Close()
	before := waits.Load()
	ended := make(chan error, 2)
	go func() { ended <- call(context.Background(), connection, "wait") }()
	go func() {
		stream, err := open(context.Background(), connection, &echo, "wait")
		if err == nil {
			err = stream.RecvMsg(new(text))
		}
		ended <- err
	}()
	if err := entered(2, before); err != nil {
		return err
	}
	server.Stop()
	for i := 0; i < 2; i++ {
		if err := fails(codes.Unavailable, <-ended); err != nil {
			return err
		}
	}
	return nil
}

// waitingForStream cancels calls that a connection has no stream for.
func waitingForStream(s *stage) error {
	server, connection, err := serving(s, grpc.MaxConcurrentStreams(1))
	if err != nil {
		return err
	}
	defer server.Stop()
	defer connection.Close()
	if err := call(context.Background(), connection, "hello"); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	before := waits.Load()
	var all sync.WaitGroup
	for i := 0; i < 3; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			_ = call(ctx, connection, "wait")
		}()
	}
	err = entered(1, before)
	time.Sleep(5 * time.Millisecond)
	cancel()
	all.Wait()
	return err
}

// tooLargeForServer is a call that no interceptor of the server hears of.
func tooLargeForServer(s *stage) error {
	k := newKind("server", "/"+service+"/Call", false, false)
	s.tally.begunAndRefused(k, codes.ResourceExhausted)
	return fails(codes.ResourceExhausted, call(context.Background(), s.plain, string(make([]byte, 5<<20))))
}

// strand makes calls that are tried again until there are no attempts left, and for which there never is a connection.
func strand(s *stage, calls int) error {
	connection, err := s.dial(s.way.retrying(s.nowhere))
	if err != nil {
		return err
	}
	defer connection.Close()
	errs := make(chan error, calls)
	for i := 0; i < calls; i++ {
		go func() { errs <- call(context.Background(), connection, "hello") }()
	}
	for i := 0; i < calls; i++ {
		if err := fails(codes.Unavailable, <-errs); err != nil {
			return err
		}
	}
	return nil
}

// exhaust sends on streams until there are no attempts left, and then receives what has become of them.
func exhaust(s *stage, calls int) error {
	for i := 0; i < calls; i++ {
		stream, err := open(context.Background(), s.retrying, &echo, "codeo")
		for err == nil {
			time.Sleep(time.Millisecond)
			err = stream.SendMsg(&text{Value: "codeo"})
		}
		if stream == nil {
			return err
		}
		if err := drain(stream, codes.Unavailable); err != nil {
			return err
		}
	}
	return nil
}

// closedWhileWaiting closes a connection that there never is, while calls wait for it.
func closedWhileWaiting(s *stage, calls int) error {
	connection, err := s.dial(s.way.dead(s.nowhere))
	if err != nil {
		return err
	}
	errs, begun := make(chan error, calls), make(chan struct{}, calls)
	for i := 0; i < calls; i++ {
		go func() {
			begun <- struct{}{}
			errs <- connection.Invoke(context.Background(), "/"+service+"/Call",
				&text{Value: "hello"}, new(text), grpc.WaitForReady(true))
		}()
	}
	for i := 0; i < calls; i++ {
		<-begun
	}
	time.Sleep(100 * time.Millisecond)
	if err := connection.Close(); err != nil {
		return err
	}
	for i := 0; i < calls; i++ {
		if err := fails(codes.Canceled, <-errs); err != nil {
			return err
		}
	}
	return nil
}

// statistics counts calls of a server as gRPC itself tells of them, with the code that it makes of what becomes of them.
type statistics struct{ tally *tally }

type kindKey struct{}

func (s statistics) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	return context.WithValue(ctx, kindKey{}, newKind("server", info.FullMethodName, false, false))
}

func (s statistics) HandleRPC(ctx context.Context, event stats.RPCStats) {
	k := ctx.Value(kindKey{}).(kind)
	switch event := event.(type) {
	case *stats.Begin:
		s.tally.start(k)
	case *stats.InPayload:
		s.tally.message(s.tally.received, k, nil)
	case *stats.OutPayload:
		s.tally.message(s.tally.sent, k, nil)
	case *stats.End:
		s.tally.end(k, status.Code(event.Error))
	}
}

func (statistics) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (statistics) HandleConn(context.Context, stats.ConnStats) {}

// goneBeforeReply is calls that succeed on a server after it has lost the connection: there is nobody to reply to.
func goneBeforeReply(s *stage) error {
	if len(others.serverUnary) > 0 {
		// Interceptors take it for a success: to compare with theirs it must not happen.
		return nil
	}
	const calls = 3
	var reached counter
	late := func(ctx context.Context, _ interface{}, _ *grpc.UnaryServerInfo, _ grpc.UnaryHandler) (interface{}, error) {
		reached.Add(1)
		<-ctx.Done()
		return new(text), nil
	}
	server := grpc.NewServer(grpc.StatsHandler(statistics{s.tally}), grpc.UnaryInterceptor(late))
	register(server)
	address, err := listen(server.Serve)
	if err != nil {
		return err
	}
	defer server.Stop()
	connection, lose, err := cut(s, address)
	if err != nil {
		return err
	}
	defer connection.Close()
	called := make(chan error, calls)
	for i := 0; i < calls; i++ {
		go func() { called <- call(context.Background(), connection, "hello") }()
	}
	for begin := time.Now(); reached.Load() != calls; time.Sleep(time.Millisecond) {
		if time.Since(begin) > patience {
			return fmt.Errorf("%d handlers were reached", reached.Load())
		}
	}
	if err := lose(); err != nil {
		return err
	}
	for i := 0; i < calls; i++ {
		if err := fails(codes.Unavailable, <-called); err != nil {
			return err
		}
	}
	return nil
}

// goneBeforeRetry is a call whose first attempt is answered, and for whose others there is no connection.
func goneBeforeRetry(s *stage) error {
	var server *grpc.Server
	var once sync.Once
	leave := func(ctx context.Context, request interface{}, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (interface{}, error) {
		once.Do(func() { go server.GracefulStop() })
		return handler(ctx, request)
	}
	server = grpc.NewServer(grpc.ChainUnaryInterceptor(s.tally.serverUnary, leave))
	register(server)
	address, err := listen(server.Serve)
	if err != nil {
		return err
	}
	defer server.Stop()
	connection, err := s.dial(s.way.retrying(address))
	if err != nil {
		return err
	}
	defer connection.Close()
	return fails(codes.Unavailable, call(context.Background(), connection, "codeo"))
}

// leftUnprocessed is a call that gets a stream, which the server goes away without looking at, and for whose next attempt there is
// no connection.
func leftUnprocessed(s *stage) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	go serveFrames(listener, func(framer *http2.Framer) { _ = framer.WriteGoAway(0, http2.ErrCodeNo, nil) })
	connection, err := s.dial(target{name: listener.Addr().String()})
	if err != nil {
		return err
	}
	defer connection.Close()
	return fails(codes.Unavailable, call(context.Background(), connection, "hello"))
}

// serveFrames serves one connection as a server that does nothing but what it is told to do as a call comes.
func serveFrames(listener net.Listener, onCall func(*http2.Framer)) {
	conn, err := listener.Accept()
	_ = listener.Close()
	if err != nil {
		return
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	framer := http2.NewFramer(conn, conn)
	_ = framer.WriteSettings()
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return
		}
		if _, isCall := frame.(*http2.HeadersFrame); isCall {
			onCall(framer)
		}
	}
}
