//go:build !kitex_before_0_8

package main

import (
	"context"

	"github.com/cloudwego/kitex/pkg/retry"
)

func isRetry(ctx context.Context) bool { return retry.IsRemoteRetryRequest(ctx) }
