//go:build kitex_before_0_11

package main

import (
	"github.com/apache/thrift/lib/go/thrift"
	"github.com/cloudwego/kitex/pkg/protocol/bthrift"
)

// The part of Thrift's binary protocol that Kitex asks of generated code, for message.

func (m *message) BLength() int {
	b := bthrift.Binary
	return b.FieldBeginLength("", thrift.I32, 1) + b.I32Length(int32(m.action)) +
		b.FieldBeginLength("", thrift.STRING, 2) + b.BinaryLengthNocopy(m.payload) + b.FieldStopLength()
}

func (m *message) FastWriteNocopy(buf []byte, w bthrift.BinaryWriter) int {
	b, n := bthrift.Binary, 0
	n += b.WriteFieldBegin(buf[n:], "", thrift.I32, 1)
	n += b.WriteI32(buf[n:], int32(m.action))
	n += b.WriteFieldBegin(buf[n:], "", thrift.STRING, 2)
	n += b.WriteBinaryNocopy(buf[n:], w, m.payload)
	return n + b.WriteFieldStop(buf[n:])
}

func (m *message) FastRead(buf []byte) (int, error) {
	n := 0
	for {
		_, kind, id, l, err := bthrift.Binary.ReadFieldBegin(buf[n:])
		n += l
		if err != nil || kind == thrift.STOP {
			return n, err
		}
		l, err = m.readField(id, buf[n:])
		n += l
		if err != nil {
			return n, err
		}
	}
}

func (m *message) readField(id int16, buf []byte) (l int, err error) {
	switch id {
	case 1:
		var code int32
		code, l, err = bthrift.Binary.ReadI32(buf)
		m.action = action(code)
	case 2:
		m.payload, l, err = bthrift.Binary.ReadBinary(buf)
	default:
		err = errWire
	}
	return l, err
}

// thriftStruct encodes the message as Thrift.
func (m *message) thriftStruct() []byte {
	buf := make([]byte, m.BLength())
	return buf[:m.FastWriteNocopy(buf, nil)]
}
