//go:build !kitex_before_0_9

package main

import "github.com/cloudwego/kitex/pkg/serviceinfo"

var streamModes = map[string]serviceinfo.StreamingMode{
	"Up":          serviceinfo.StreamingClient,
	"Down":        serviceinfo.StreamingServer,
	"Chat":        serviceinfo.StreamingBidirectional,
	missingStream: serviceinfo.StreamingBidirectional,
}

func streamMethod(method string) serviceinfo.MethodInfo {
	return serviceinfo.NewMethodInfo(serveStream(method), newMessage, newMessage, false,
		serviceinfo.WithStreamingMode(streamModes[method]))
}
