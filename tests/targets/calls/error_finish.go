//go:build kitex_before_0_15 || !kitex_before_0_16_2

package main

import "github.com/cloudwego/kitex/pkg/kerrors"

func isFinish(basic error) bool { return basic == kerrors.ErrRPCFinish }
