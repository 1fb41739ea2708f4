// Grpc makes every kind of gRPC call, as server and client in one process, and counts what it makes. It exists to be
// watched: a monitor outside must count the same. See control.go for how it is steered.
package main

import (
	"fmt"
	"os"
)

func main() {
	c, err := newControl()
	if err == nil {
		err = c.serve(os.Stdin, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "grpc:", err)
		os.Exit(1)
	}
}
