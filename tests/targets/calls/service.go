package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/cloudwego/kitex/pkg/kerrors"
	"github.com/cloudwego/kitex/pkg/serviceinfo"
	"github.com/cloudwego/kitex/pkg/streaming"
)

// The methods of every service that is not generic. Notify is oneway, Up, Down and Chat are streams: of the
// client, of the server, of both. The missing ones are known to clients only.
var (
	unaryMethods  = []string{"Echo", "Notify", missingMethod}
	streamMethods = []string{"Up", "Down", "Chat", missingStream}
)

const (
	missingMethod = "Missing"
	missingStream = "MissingStream"
)

// streamMessages is how many messages the side of a stream sends that sends more than one.
const streamMessages = 3

const bizCode = 40404

var (
	errAsked = errors.New("failed because the request asks for it")
	errArgs  = errors.New("arguments of an unexpected type")
)

// handle is a server's side of the unary methods; the reply is the request.
type handle func(ctx context.Context, method string, request *message) error

// host is what the methods of a service are called on.
type host struct{ handle handle }

// stream is one end of a stream, whichever API it was made by.
type stream interface {
	send(m *message) error
	receive(m *message) error
	closeSend() error
}

// service says what the kitex tool would have generated from an IDL.
func service(codec serviceinfo.PayloadCodec) *serviceinfo.ServiceInfo {
	info := &serviceinfo.ServiceInfo{
		ServiceName:  "Target",
		HandlerType:  (*host)(nil),
		Methods:      map[string]serviceinfo.MethodInfo{},
		PayloadCodec: codec,
		Extra:        map[string]any{"PackageName": "target", "streaming": true},
	}
	for _, method := range unaryMethods {
		info.Methods[method] = serviceinfo.NewMethodInfo(serveUnary(method), newMessage, newMessage, method == "Notify")
	}
	for _, method := range streamMethods {
		info.Methods[method] = streamMethod(method)
	}
	return info
}

// served is the service without the methods that only clients know.
func served(codec serviceinfo.PayloadCodec) *serviceinfo.ServiceInfo {
	info := service(codec)
	delete(info.Methods, missingMethod)
	delete(info.Methods, missingStream)
	return info
}

func newMessage() any { return new(message) }

// serveUnary calls the host. Over gRPC a unary method is a stream of one message each way.
func serveUnary(method string) serviceinfo.MethodHandler {
	return func(ctx context.Context, on, args, result any) error {
		h := on.(*host)
		switch request := args.(type) {
		case *message:
			if err := h.handle(ctx, method, request); err != nil {
				return err
			}
			if reply, ok := result.(*message); ok {
				reply.payload = request.payload
			}
			return nil
		case *streaming.Args:
			m := new(message)
			if err := request.Stream.RecvMsg(m); err != nil {
				return err
			}
			if err := h.handle(ctx, method, m); err != nil {
				return err
			}
			return request.Stream.SendMsg(m)
		}
		return errArgs
	}
}

func serveStream(method string) serviceinfo.MethodHandler {
	return func(ctx context.Context, on, args, _ any) error {
		st, ok := args.(*streaming.Args)
		if !ok {
			return errArgs
		}
		return talk(ctx, on.(*host), method, serverStream(ctx, st))
	}
}

// talk is the server's side of the streams. The first message is handled as that of a unary method.
func talk(ctx context.Context, h *host, method string, s stream) error {
	first := new(message)
	if err := s.receive(first); err != nil {
		return err
	}
	if err := h.handle(ctx, method, first); err != nil {
		return err
	}
	switch method {
	case "Up":
		if err := receiveAll(s); err != nil {
			return err
		}
		return s.send(first)
	case "Down":
		for i := 0; i < streamMessages; i++ {
			if err := s.send(first); err != nil {
				return err
			}
		}
		return nil
	}
	for m := first; ; m = new(message) {
		if m != first {
			if err := s.receive(m); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
		}
		if err := s.send(m); err != nil {
			return err
		}
	}
}

func receiveAll(s stream) error {
	for {
		if err := s.receive(new(message)); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// obey does what the request asks for.
func obey(ctx context.Context, _ string, request *message) error {
	switch request.action {
	case fail:
		return errAsked
	case biz:
		return kerrors.NewBizStatusError(bizCode, "no such thing, as the request asks for it")
	case crash:
		panic("panicked because the request asks for it")
	case flaky:
		if !isRetry(ctx) {
			return errAsked
		}
	}
	return nil
}

// A check says whether a call ended as it was meant to.
type check func(error) error

func ok(err error) error { return err }

// failing expects an error that says so, with this text in it.
func failing(text string) check {
	return func(err error) error {
		if err == nil {
			return errors.New("succeeded, where an error was meant: " + text)
		}
		if !strings.Contains(err.Error(), text) {
			return errors.New("another error than " + text + ": " + err.Error())
		}
		return nil
	}
}

func bizFailing(err error) error {
	status, is := kerrors.FromBizStatusError(err)
	if !is || status.BizStatusCode() != bizCode {
		return errors.New("not the biz status error that was meant")
	}
	return nil
}

// patience is how long one step of a scenario may take before it counts as stuck.
const patience = 10 * time.Second
