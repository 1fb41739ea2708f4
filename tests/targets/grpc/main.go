// Grpc makes every kind of gRPC call, as server and client in one process, and counts what it makes. It exists to be
// watched: a monitor outside must count the same. See control.go for how it is steered.
//
// With the build tag `xds` servers and clients find each other by xDS, with `reference` go-grpc-prometheus counts beside.
package main

import (
	"fmt"
	"os"
	"runtime/pprof"
)

func main() {
	err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "grpc:", err)
		os.Exit(1)
	}
}

func run() error {
	if path := os.Getenv("CALLS_PROFILE"); path != "" {
		file, err := os.Create(path)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := pprof.StartCPUProfile(file); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	c, err := newControl()
	if err != nil {
		return err
	}
	return c.serve()
}
