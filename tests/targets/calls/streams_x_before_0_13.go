//go:build kitex_before_0_13

package main

import (
	"context"

	"github.com/cloudwego/kitex/pkg/streaming"
)

func init() {
	missing("client.Streaming has no StreamX before v0.13", "streamx_client", "streamx_server", "streamx_bidi")
	missing("no streams over TTHeader by this API before v0.13", "ttstream_unary", "ttstream_client",
		"ttstream_server", "ttstream_bidi", "ttstream_fail", "ttstream_biz", "ttstream_panic",
		"ttstream_refused", "ttstream_unknown", "ttstream_panic_outside", "ttstream_finish", "dropped_ttstream")
}

func serverStream(_ context.Context, args *streaming.Args) stream { return oldStream{args.Stream} }
