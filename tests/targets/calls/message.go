package main

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
)

// message is the request and the response of every method, in Thrift and in Protobuf, so that no code has to be
// generated. As IDL, with the arguments of a call left out for brevity:
//
//	struct Message { 1: i32 action, 2: binary payload }
type message struct {
	action  action
	payload []byte
}

// action says what the server does with a call.
type action int32

const (
	succeed action = iota
	fail           // the handler returns an error
	biz            // the handler returns a biz status error
	crash          // the handler panics
	flaky          // the handler fails the first attempt and lets a retry succeed
)

var errWire = errors.New("not a field of this struct")

// GetFirstArgument, GetResult and SetSuccess are what Kitex's middlewares ask of generated arguments and results.
func (m *message) GetFirstArgument() any { return m }

func (m *message) GetResult() any { return m.payload }

func (m *message) SetSuccess(result any) { m.payload = result.([]byte) }

// Marshal and Unmarshal are what Kitex asks of a generated Protobuf message.
func (m *message) Marshal(out []byte) ([]byte, error) {
	out = protowire.AppendVarint(protowire.AppendTag(out, 1, protowire.VarintType), uint64(m.action))
	return protowire.AppendBytes(protowire.AppendTag(out, 2, protowire.BytesType), m.payload), nil
}

func (m *message) Unmarshal(in []byte) error {
	for len(in) > 0 {
		field, _, n := protowire.ConsumeTag(in)
		if n < 0 {
			return protowire.ParseError(n)
		}
		in = in[n:]
		switch field {
		case 1:
			var code uint64
			code, n = protowire.ConsumeVarint(in)
			m.action = action(code)
		case 2:
			var payload []byte
			payload, n = protowire.ConsumeBytes(in)
			m.payload = append([]byte(nil), payload...)
		default:
			return errWire
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		in = in[n:]
	}
	return nil
}

// framedCall is a whole call as it travels over framed Thrift.
func framedCall(method string, m *message) []byte {
	const strictCall = 0x80010001
	call := appendUint32(nil, strictCall)
	call = appendUint32(call, uint32(len(method)))
	call = append(call, method...)
	call = appendUint32(call, 1)
	call = append(call, m.thriftStruct()...)
	return append(appendUint32(nil, uint32(len(call))), call...)
}
