package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/cloudwego/kitex/client/genericclient"
	"github.com/cloudwego/kitex/pkg/generic"
	"github.com/cloudwego/kitex/server/genericserver"
)

// Calls without types of their own.

const idl = `
namespace go target
struct Message { 1: i32 action, 2: string text }
service Target {
	Message Echo(1: Message request)
	oneway void Notify(1: Message request)
}
`

func init() {
	register(
		scenario{name: "generic_binary", about: "generic, whole messages as bytes", client: 1, server: 1,
			setup: func(s *stage) func() error {
				// The request is the call without its length; the reply comes as it was sent.
				call := framedCall("Echo", request(succeed))[4:]
				return generics(s, generic.BinaryThriftGeneric, "Echo", call)
			}},
		scenario{name: "generic_json", about: "generic, JSON", client: 1, server: 1,
			setup: func(s *stage) func() error {
				return generics(s, inJSON, "Echo", `{"action":0,"text":"payload"}`)
			}},
		scenario{name: "generic_map", about: "generic, maps", client: 1, server: 1,
			setup: func(s *stage) func() error {
				return generics(s, inMaps, "Echo", map[string]any{"action": int32(0), "text": "payload"})
			}},
	)
}

func inJSON() generic.Generic { return must(generic.JSONThriftGeneric(parsed())) }

func inMaps() generic.Generic { return must(generic.MapThriftGeneric(parsed())) }

func parsed() *generic.ThriftContentProvider { return must(generic.NewThriftContentProvider(idl, nil)) }

// mirror answers with the request.
type mirror struct{}

func (*mirror) GenericCall(_ context.Context, _ string, request any) (any, error) {
	return request, nil
}

func generics(s *stage, kind func() generic.Generic, method string, request any) func() error {
	listener := listen()
	address := run(genericserver.NewServer(new(mirror), kind(), s.serverOptions(s.scenario.name, listener)...), listener)
	c := must(genericclient.NewClient(s.scenario.name, kind(),
		append(s.genericOptions(address), ttheader()...)...))
	return func() error {
		reply, err := c.GenericCall(context.Background(), method, request)
		if err != nil {
			return err
		}
		if method == "Echo" && fmt.Sprint(reply) == "" {
			return errors.New("the reply is empty")
		}
		return nil
	}
}
