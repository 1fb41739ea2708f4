//go:build kitex_before_0_9

package main

import "github.com/cloudwego/kitex/pkg/serviceinfo"

// streamMethod says no more than that there is a method: only its service knows that it has streams.
func streamMethod(method string) serviceinfo.MethodInfo {
	return serviceinfo.NewMethodInfo(serveStream(method), newMessage, newMessage, false)
}
