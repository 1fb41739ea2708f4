// Command strange-target makes RPCs that no ordinary service makes: it enters the two functions of Kitex's trace
// controller itself, with objects of its own making, so that anything can be put in front of a probe.
//
// It is steered by lines on stdin, each answered by one JSON line on stdout (control.go lists them), and ends with
// the end of stdin.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"

	"example.com/monitor/steer"
	"github.com/cloudwego/kitex/pkg/klog"
)

func main() {
	account := flag.String("account", "", "file that holds the number of calls begun and ended, also after this process")
	flag.Parse()
	// Kitex logs each fault that it recovers from, with its stack.
	klog.SetOutput(io.Discard)
	if err := run(*account); err != nil {
		fmt.Fprintln(os.Stderr, "strange-target:", err)
		os.Exit(1)
	}
}

func run(account string) error {
	counted, err := openAccount(account)
	if err != nil {
		return err
	}
	c := control{caller: &caller{account: counted}}
	return c.steering.Serve(steer.Ready(), c.obey)
}
