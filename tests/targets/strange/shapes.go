package main

import (
	"fmt"
	"net"
	"strconv"

	"example.com/monitor/steer"
	"github.com/cloudwego/kitex/pkg/rpcinfo"
	"github.com/cloudwego/kitex/pkg/rpcinfo/remoteinfo"
	"github.com/cloudwego/kitex/pkg/serviceinfo"
)

// names are the strings of a call.
type names struct{ caller, callee, method string }

// usual names are those of a call that nothing is said about.
var usual = names{caller: "shop", callee: "stock", method: "Echo"}

// disguised lies in objects of other types where Kitex's own have their names.
const disguised = "disguised"

// A shape makes the RPCInfo of a call.
type shape func(names) rpcinfo.RPCInfo

// Shapes that Kitex makes itself: server, separate (as server up to v0.16.1), client, and stream, which is a client's. The
// others have a part of another type, none, or one whose itab is a copy (see [tab]).
var shapes = map[string]shape{
	"server":         server,
	"separate":       func(n names) rpcinfo.RPCInfo { return whole(calling(n), called(n), n) },
	"client":         client,
	"stream":         stream,
	"my-rpcinfo":     myWhole,
	"my-to":          func(n names) rpcinfo.RPCInfo { return whole(calling(n), disguise(), n) },
	"my-from":        func(n names) rpcinfo.RPCInfo { return whole(disguise(), remote(n), n) },
	"my-invocation":  withMyInvocation,
	"my-method-info": withMyMethodInfo,
	"no-rpcinfo":     func(names) rpcinfo.RPCInfo { return nil },
	"no-to":          func(n names) rpcinfo.RPCInfo { return whole(calling(n), nil, n) },
	"no-from":        func(n names) rpcinfo.RPCInfo { return whole(nil, remote(n), n) },
}

func init() {
	for _, t := range []tab{honest, wrongInterface, wrongType, wrongKnown, nowhere} {
		shapes[string(t)+"-server"] = func(n names) rpcinfo.RPCInfo { return copied(server(n), t) }
		shapes[string(t)+"-client"] = func(n names) rpcinfo.RPCInfo { return copied(client(n), t) }
		shapes[string(t)+"-to-server"] = func(n names) rpcinfo.RPCInfo { return whole(calling(n), copied(called(n), t), n) }
		shapes[string(t)+"-to-client"] = func(n names) rpcinfo.RPCInfo { return whole(calling(n), copied(remote(n), t), n) }
		shapes[string(t)+"-from"] = func(n names) rpcinfo.RPCInfo { return whole(copied(calling(n), t), remote(n), n) }
	}
}

func shapeNamed(name string) (shape, error) {
	if s := shapes[name]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("no shape %q", name)
}

// shapeAndNumber reads the arguments of a command that has these two.
func shapeAndNumber(args []string) (shape, int, error) {
	if len(args) != 2 {
		return nil, 0, steer.ErrUsage
	}
	s, err := shapeNamed(args[0])
	if err != nil {
		return nil, 0, err
	}
	number, err := strconv.Atoi(args[1])
	return s, number, err
}

func server(n names) rpcinfo.RPCInfo {
	ri := rpcinfo.NewRPCInfoWithInlineFields()
	from, to := rpcinfo.AsMutableEndpointInfo(ri.From()), rpcinfo.AsMutableEndpointInfo(ri.To())
	_ = from.SetServiceName(n.caller)
	_ = to.SetServiceName(n.callee)
	_ = to.SetMethod(n.method)
	return ri
}

func client(n names) rpcinfo.RPCInfo { return whole(calling(n), remote(n), n) }

func stream(n names) rpcinfo.RPCInfo {
	ri := client(n)
	_ = rpcinfo.AsMutableRPCConfig(ri.Config()).SetInteractionMode(rpcinfo.Streaming)
	return ri
}

func calling(n names) rpcinfo.EndpointInfo { return rpcinfo.NewEndpointInfo(n.caller, "", nil, nil) }

func called(n names) rpcinfo.EndpointInfo {
	return rpcinfo.NewEndpointInfo(n.callee, n.method, nil, nil)
}

func remote(n names) rpcinfo.EndpointInfo {
	return remoteinfo.NewRemoteInfo(&rpcinfo.EndpointBasicInfo{ServiceName: n.callee}, n.method)
}

// whole is an RPCInfo of separate parts.
func whole(from, to rpcinfo.EndpointInfo, n names) rpcinfo.RPCInfo {
	invocation := rpcinfo.NewInvocation(n.callee, n.method)
	return rpcinfo.NewRPCInfo(from, to, invocation, rpcinfo.NewRPCConfig(), rpcinfo.NewRPCStats())
}

// myRPCInfo has the same layout as Kitex's own, so that reading it as that would give names.
type myRPCInfo struct {
	from, to   rpcinfo.EndpointInfo
	invocation rpcinfo.Invocation
	config     rpcinfo.RPCConfig
	stats      rpcinfo.RPCStats
}

func (r *myRPCInfo) From() rpcinfo.EndpointInfo     { return r.from }
func (r *myRPCInfo) To() rpcinfo.EndpointInfo       { return r.to }
func (r *myRPCInfo) Invocation() rpcinfo.Invocation { return r.invocation }
func (r *myRPCInfo) Config() rpcinfo.RPCConfig      { return r.config }
func (r *myRPCInfo) Stats() rpcinfo.RPCStats        { return r.stats }

func myWhole(n names) rpcinfo.RPCInfo {
	n = names{disguised, disguised, disguised}
	ri := client(n)
	return &myRPCInfo{ri.From(), ri.To(), ri.Invocation(), ri.Config(), ri.Stats()}
}

// myEndpointInfo has names where Kitex's own types have theirs: the first two strings those of endpointInfo, the
// next two those of remoteInfo.
type myEndpointInfo struct {
	serviceName, method string
	_                   uint64
	more, evenMore      string
}

func (e *myEndpointInfo) ServiceName() string                  { return e.serviceName }
func (e *myEndpointInfo) Method() string                       { return e.method }
func (e *myEndpointInfo) Address() net.Addr                    { return nil }
func (e *myEndpointInfo) Tag(string) (string, bool)            { return "", false }
func (e *myEndpointInfo) DefaultTag(_ string, d string) string { return d }

func disguise() rpcinfo.EndpointInfo {
	return &myEndpointInfo{serviceName: disguised, method: disguised, more: disguised, evenMore: disguised}
}

// myInvocation and myMethodInfo are Kitex's own in other clothes.
type myInvocation struct{ rpcinfo.Invocation }

type myMethodInfo struct{ serviceinfo.MethodInfo }

func withMyInvocation(n names) rpcinfo.RPCInfo {
	invocation := &myInvocation{rpcinfo.NewInvocation(n.callee, n.method)}
	return rpcinfo.NewRPCInfo(calling(n), called(n), invocation, rpcinfo.NewRPCConfig(), rpcinfo.NewRPCStats())
}

func withMyMethodInfo(n names) rpcinfo.RPCInfo {
	ri := server(n)
	method := serviceinfo.NewMethodInfo(nil, nil, nil, true)
	ri.Invocation().(rpcinfo.InvocationSetter).SetMethodInfo(&myMethodInfo{method})
	return ri
}
