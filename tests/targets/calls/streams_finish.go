//go:build !kitex_before_0_9

package main

import (
	"context"

	"github.com/cloudwego/kitex/pkg/serviceinfo"
	"github.com/cloudwego/kitex/pkg/streaming"
)

func init() {
	register(scenario{name: "stream_finish", about: "a stream that the user finishes, in another goroutine", client: 1, server: 1,
		setup: streamFinish})
}

func streamFinish(s *stage) func() error {
	c := overGRPC(s, serviceinfo.Protobuf)
	return func() error {
		st, err := openOld(context.Background(), c, "Chat")
		if err != nil {
			return err
		}
		err = join(st.send(request(succeed)), st.receive(new(message)), st.closeSend())
		ended := make(chan struct{})
		go func() {
			streaming.FinishStream(st.(oldStream).Stream, nil)
			close(ended)
		}()
		<-ended
		return err
	}
}
