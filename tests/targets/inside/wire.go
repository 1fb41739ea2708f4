package main

import (
	"github.com/cloudwego/gopkg/protocol/thrift"
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.12.0"
)

// number is what travels, with the part of Thrift's binary protocol that Kitex asks of generated code: as IDL, a
// struct with one i32.
type number struct {
	value int32
}

func (n *number) BLength() int {
	return thrift.Binary.FieldBeginLength() + thrift.Binary.I32Length() + thrift.Binary.FieldStopLength()
}

func (n *number) FastWriteNocopy(buf []byte, _ thrift.NocopyWriter) int {
	at := thrift.Binary.WriteFieldBegin(buf, thrift.I32, 0)
	at += thrift.Binary.WriteI32(buf[at:], n.value)
	return at + thrift.Binary.WriteFieldStop(buf[at:])
}

func (n *number) FastRead(buf []byte) (int, error) {
	at := 0
	for {
		kind, _, l, err := thrift.Binary.ReadFieldBegin(buf[at:])
		at += l
		if err != nil || kind == thrift.STOP {
			return at, err
		}
		n.value, l, err = thrift.Binary.ReadI32(buf[at:])
		at += l
		if err != nil {
			return at, err
		}
	}
}

// GetResult is asked of every result type by Kitex's middlewares.
func (n *number) GetResult() any { return n.value }

func serviceName(name string) attribute.KeyValue { return semconv.ServiceNameKey.String(name) }
