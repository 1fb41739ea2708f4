// Command hertz-target has a server of Hertz, sends requests to it, and counts them by a middleware.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"

	"example.com/monitor/steer"
	"github.com/cloudwego/hertz/pkg/common/hlog"
)

func main() {
	overNetpoll := flag.Bool("netpoll", false, "serve over netpoll, which is Hertz's default, in place of Go's own network")
	flag.Parse()
	hlog.SetOutput(io.Discard)
	control, err := newControl(*overNetpoll)
	if err == nil {
		err = steer.Serve(steer.Ready(), control.obey)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
