// Command hertz-target has a server of Hertz, sends requests to it, and counts them by a middleware.
package main

import (
	"fmt"
	"io"
	"net"
	"os"

	"example.com/monitor/steer"
	"github.com/cloudwego/hertz/pkg/common/hlog"
)

func main() {
	hlog.SetOutput(io.Discard)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		err = steer.Serve(steer.Ready(), newControl(listener).obey)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
