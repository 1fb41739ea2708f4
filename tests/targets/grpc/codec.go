package main

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/protobuf/proto"
)

// reversed is a codec of the service's own: what protobuf writes, backwards.
type reversed struct{}

func init() { encoding.RegisterCodec(reversed{}) }

func (reversed) Name() string { return "reversed" }

func (reversed) Marshal(message interface{}) ([]byte, error) {
	bytes, err := proto.Marshal(message.(proto.Message))
	return backwards(bytes), err
}

func (reversed) Unmarshal(bytes []byte, message interface{}) error {
	return proto.Unmarshal(backwards(bytes), message.(proto.Message))
}

func backwards(bytes []byte) []byte {
	turned := make([]byte, len(bytes))
	for i, b := range bytes {
		turned[len(bytes)-1-i] = b
	}
	return turned
}
