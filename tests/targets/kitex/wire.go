package main

import (
	"errors"

	"github.com/cloudwego/gopkg/protocol/thrift"
)

// The types that travel, with the part of Thrift's binary protocol that Kitex asks of generated code. As IDL:
//
//	struct Request { 1: i32 action, 2: i32 sleep_us, 3: binary payload }
//	service Target { binary Echo(1: Request req) … }
//
// For brevity the arguments of a call are the request itself.

// action says what the server does with a call.
type action int32

const (
	succeed action = iota
	fail           // the handler returns an error
	biz            // the handler returns a biz status error
	crash          // the handler panics
	flaky          // the handler fails the first attempt and lets a retry succeed
)

var actionNames = []string{"succeed", "fail", "biz", "crash", "flaky"}

func (a action) String() string { return actionNames[a] }

// request is what a call carries: its directive and a payload.
type request struct {
	action  action
	sleepUS int32
	payload []byte
}

// response is what an answered call brings back.
type response struct {
	payload []byte
}

var errWire = errors.New("not a field of this struct")

func (r *request) BLength() int {
	b := thrift.Binary
	return 3*b.FieldBeginLength() + 2*b.I32Length() + b.BinaryLengthNocopy(r.payload) + b.FieldStopLength()
}

func (r *request) FastWriteNocopy(buf []byte, w thrift.NocopyWriter) int {
	b, n := thrift.Binary, 0
	n += b.WriteFieldBegin(buf[n:], thrift.I32, 1)
	n += b.WriteI32(buf[n:], int32(r.action))
	n += b.WriteFieldBegin(buf[n:], thrift.I32, 2)
	n += b.WriteI32(buf[n:], r.sleepUS)
	n += b.WriteFieldBegin(buf[n:], thrift.STRING, 3)
	n += b.WriteBinaryNocopy(buf[n:], w, r.payload)
	return n + b.WriteFieldStop(buf[n:])
}

func (r *request) FastRead(buf []byte) (int, error) {
	return readFields(buf, func(id int16, buf []byte) (l int, err error) {
		switch id {
		case 1:
			var code int32
			code, l, err = thrift.Binary.ReadI32(buf)
			r.action = action(code)
		case 2:
			r.sleepUS, l, err = thrift.Binary.ReadI32(buf)
		case 3:
			r.payload, l, err = thrift.Binary.ReadBinary(buf)
		default:
			err = errWire
		}
		return l, err
	})
}

func (r *response) BLength() int {
	b := thrift.Binary
	return b.FieldBeginLength() + b.BinaryLengthNocopy(r.payload) + b.FieldStopLength()
}

func (r *response) FastWriteNocopy(buf []byte, w thrift.NocopyWriter) int {
	b, n := thrift.Binary, 0
	n += b.WriteFieldBegin(buf[n:], thrift.STRING, 0)
	n += b.WriteBinaryNocopy(buf[n:], w, r.payload)
	return n + b.WriteFieldStop(buf[n:])
}

func (r *response) FastRead(buf []byte) (int, error) {
	return readFields(buf, func(id int16, buf []byte) (l int, err error) {
		if id != 0 {
			return 0, errWire
		}
		r.payload, l, err = thrift.Binary.ReadBinary(buf)
		return l, err
	})
}

// GetResult is asked of every result type by Kitex's middlewares.
func (r *response) GetResult() any { return r.payload }

// readFields hands each field to read, until the stop, and returns how many bytes the struct took.
func readFields(buf []byte, read func(id int16, buf []byte) (int, error)) (int, error) {
	n := 0
	for {
		kind, id, l, err := thrift.Binary.ReadFieldBegin(buf[n:])
		n += l
		if err != nil || kind == thrift.STOP {
			return n, err
		}
		l, err = read(id, buf[n:])
		n += l
		if err != nil {
			return n, err
		}
	}
}
