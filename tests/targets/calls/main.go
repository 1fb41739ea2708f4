// Calls makes every kind of Kitex call, as server and client in one process, and counts what it makes. It exists to
// be watched: a monitor outside must count the same. See control.go for how it is steered.
package main

import (
	"fmt"
	"io"
	"os"

	"example.com/monitor/steer"
	"github.com/cloudwego/kitex/pkg/klog"
	"github.com/cloudwego/kitex/pkg/rpctimeout"
	"github.com/cloudwego/netpoll"
)

func main() {
	klog.SetOutput(io.Discard)
	rpctimeout.EnableGlobalNeedFineGrainedErrCode()
	netpoll.SetLoggerOutput(io.Discard)
	err := profiled(func() error { return steer.Serve(steer.Ready(), newControl().obey) })
	if err != nil {
		fmt.Fprintln(os.Stderr, "calls:", err)
		os.Exit(1)
	}
}
