// Command plain-go is a Go program without any RPC framework. It lives until the end of stdin.
package main

import (
	"fmt"
	"io"
	"os"
)

func main() {
	fmt.Printf("{\"ready\":true,\"pid\":%d}\n", os.Getpid())
	_, _ = io.Copy(io.Discard, os.Stdin)
}
