//go:build kitex_before_0_8

package main

import (
	"context"

	"github.com/bytedance/gopkg/cloud/metainfo"
	"github.com/cloudwego/kitex/pkg/retry"
)

func isRetry(ctx context.Context) bool {
	_, is := metainfo.GetPersistentValue(ctx, retry.TransitKey)
	return is
}
