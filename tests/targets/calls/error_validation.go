//go:build !kitex_before_0_11

package main

import "github.com/cloudwego/kitex/pkg/kerrors"

func isValidation(basic error) bool { return basic == kerrors.ErrPayloadValidation }
