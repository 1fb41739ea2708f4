//go:build old

package main

import (
	otelruntime "go.opentelemetry.io/contrib/instrumentation/runtime"
	sdk "go.opentelemetry.io/otel/sdk/metric"
)

// producers is empty: before v0.56 the instrumentation has nothing beside its instruments.
func producers(otelruntime.Option) []sdk.ManualReaderOption {
	return nil
}
