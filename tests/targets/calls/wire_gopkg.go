//go:build !kitex_before_0_11

package main

import "github.com/cloudwego/gopkg/protocol/thrift"

// The part of Thrift's binary protocol that Kitex asks of generated code, for message.

func (m *message) BLength() int {
	b := thrift.Binary
	return 2*b.FieldBeginLength() + b.I32Length() + b.BinaryLengthNocopy(m.payload) + b.FieldStopLength()
}

func (m *message) FastWriteNocopy(buf []byte, w thrift.NocopyWriter) int {
	b, n := thrift.Binary, 0
	n += b.WriteFieldBegin(buf[n:], thrift.I32, 1)
	n += b.WriteI32(buf[n:], int32(m.action))
	n += b.WriteFieldBegin(buf[n:], thrift.STRING, 2)
	n += b.WriteBinaryNocopy(buf[n:], w, m.payload)
	return n + b.WriteFieldStop(buf[n:])
}

func (m *message) FastRead(buf []byte) (int, error) {
	n := 0
	for {
		kind, id, l, err := thrift.Binary.ReadFieldBegin(buf[n:])
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
		code, l, err = thrift.Binary.ReadI32(buf)
		m.action = action(code)
	case 2:
		m.payload, l, err = thrift.Binary.ReadBinary(buf)
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
