// Command collector is an OpenTelemetry Collector: its own service and its own receiver for OTLP, over gRPC and HTTP,
// with an exporter that writes what was received to stdout, one line of OTLP's JSON for each request.
//
// It serves until stdin ends. The addresses that it listens on are in its configuration, a file named on the command
// line; the first line on stdout says that it is ready.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/confmap/provider/fileprovider"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/otelcol"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/service/telemetry/otelconftelemetry"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "collector:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: collector CONFIGURATION")
	}
	collector, err := otelcol.NewCollector(otelcol.CollectorSettings{
		BuildInfo: component.BuildInfo{Command: "collector", Version: "test"},
		Factories: factories,
		ConfigProviderSettings: otelcol.ConfigProviderSettings{ResolverSettings: confmap.ResolverSettings{
			URIs:              []string{"file:" + os.Args[1]},
			ProviderFactories: []confmap.ProviderFactory{fileprovider.NewFactory()},
		}},
	})
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		collector.Shutdown()
	}()
	go func() {
		for collector.GetState() != otelcol.StateRunning {
			time.Sleep(10 * time.Millisecond)
		}
		write([]byte(fmt.Sprintf(`{"ready":true,"pid":%d}`, os.Getpid())))
	}()
	return collector.Run(context.Background())
}

func factories() (otelcol.Factories, error) {
	receivers, err := otelcol.MakeFactoryMap[receiver.Factory](otlpreceiver.NewFactory())
	if err != nil {
		return otelcol.Factories{}, err
	}
	exporters, err := otelcol.MakeFactoryMap[exporter.Factory](exporter.NewFactory(
		component.MustNewType("lines"),
		func() component.Config { return &struct{}{} },
		exporter.WithMetrics(newLines, component.StabilityLevelDevelopment),
	))
	return otelcol.Factories{
		Receivers: receivers,
		Exporters: exporters,
		Telemetry: otelconftelemetry.NewFactory(),
	}, err
}

// lines writes each request as a line.
type lines struct{}

func newLines(context.Context, exporter.Settings, component.Config) (exporter.Metrics, error) {
	return lines{}, nil
}

func (lines) Start(context.Context, component.Host) error { return nil }

func (lines) Shutdown(context.Context) error { return nil }

func (lines) Capabilities() consumer.Capabilities { return consumer.Capabilities{} }

func (lines) ConsumeMetrics(_ context.Context, metrics pmetric.Metrics) error {
	line, err := (&pmetric.JSONMarshaler{}).MarshalMetrics(metrics)
	if err != nil {
		return err
	}
	return write(line)
}

var stdout sync.Mutex

func write(line []byte) error {
	stdout.Lock()
	defer stdout.Unlock()
	_, err := os.Stdout.Write(bytes.Join([][]byte{line, nil}, []byte("\n")))
	return err
}
