package main

import (
	"fmt"

	"github.com/cloudwego/kitex/pkg/kerrors"
	"github.com/cloudwego/kitex/pkg/remote"
)

// errorClass names an error by the outermost of Kitex's basic errors; what others have wrapped is not looked into.
func errorClass(err error) string {
	switch e := err.(type) {
	case nil:
		return "none"
	case *remote.TransError:
		return "protocol"
	case *kerrors.DetailedError:
		return basicClass(e.ErrorType())
	}
	switch fmt.Sprintf("%T", err) {
	// What the codecs make is not exported.
	case "*perrors.protocolException", "*protobuf.pbError":
		return "protocol"
	}
	return basicClass(err)
}

func basicClass(basic error) string {
	switch basic {
	case kerrors.ErrInternalException:
		return "internal"
	case kerrors.ErrServiceDiscovery:
		return "discovery"
	case kerrors.ErrGetConnection:
		return "connection"
	case kerrors.ErrLoadbalance:
		return "loadbalance"
	case kerrors.ErrNoMoreInstance:
		return "no_more_instance"
	case kerrors.ErrRPCTimeout, kerrors.ErrTimeoutByBusiness:
		return "timeout"
	case kerrors.ErrCanceledByBusiness:
		return "canceled"
	case kerrors.ErrACL:
		return "acl"
	case kerrors.ErrCircuitBreak:
		return "circuit_breaker"
	case kerrors.ErrRemoteOrNetwork:
		return "remote"
	case kerrors.ErrOverlimit:
		return "limit"
	case kerrors.ErrPanic:
		return "panic"
	case kerrors.ErrBiz:
		return "biz"
	case kerrors.ErrRetry:
		return "retry"
	case kerrors.ErrRoute:
		return "route"
	}
	if isFinish(basic) {
		return "finish"
	}
	if isValidation(basic) {
		return "validation"
	}
	return "other"
}
