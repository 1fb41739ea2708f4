//go:build !old

package main

import (
	otelruntime "go.opentelemetry.io/contrib/instrumentation/runtime"
	sdk "go.opentelemetry.io/otel/sdk/metric"
)

// producers is what the instrumentation has beside its instruments: how long goroutines waited for a processor.
func producers(fresh otelruntime.Option) []sdk.ManualReaderOption {
	return []sdk.ManualReaderOption{sdk.WithProducer(otelruntime.NewProducer(fresh.(otelruntime.ProducerOption)))}
}
