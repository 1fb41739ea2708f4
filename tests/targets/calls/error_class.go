package main

import (
	"fmt"

	"github.com/cloudwego/kitex/pkg/kerrors"
	"github.com/cloudwego/kitex/pkg/remote"
)

// errorClass names an error by the outermost of Kitex's basic errors; what others have wrapped is not looked into, but for a
// transport's error, in which servers put whatever went wrong.
func errorClass(err error) string {
	switch e := err.(type) {
	case nil:
		return "none"
	case *remote.TransError:
		if class := ownClass(e.Unwrap()); class != "other" {
			return class
		}
		return "protocol"
	}
	switch fmt.Sprintf("%T", err) {
	// What the codecs make is not exported.
	case "*perrors.protocolException", "*protobuf.pbError":
		return "protocol"
	}
	return ownClass(err)
}

// ownClass names an error that is one of the basic errors or wraps one.
func ownClass(err error) string {
	if detailed, ok := err.(*kerrors.DetailedError); ok {
		return basicClass(detailed.ErrorType())
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
