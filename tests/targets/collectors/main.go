// Command collectors is a Go program with what in-process monitoring of a Go runtime is made of: client_golang's default
// collectors, and its collector of all of runtime/metrics, and OpenTelemetry's runtime instrumentation.
//
// It reads a command a line from stdin and answers each with a line of JSON; the end of stdin ends it. Go releases differ
// in which of the modules they can build: mods/ has those for the older ones.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	otelruntime "go.opentelemetry.io/contrib/instrumentation/runtime"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"example.com/monitor/runtime/load"
)

func main() {
	out := json.NewEncoder(os.Stdout)
	answer := func(value interface{}, err error) {
		if err != nil {
			value = map[string]string{"error": err.Error()}
		}
		if out.Encode(value) != nil {
			os.Exit(1)
		}
	}
	// What the default registry has since the program's start.
	byDefault := promhttp.Handler()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(collectors.MetricsAll)))
	all := promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	// It asks the runtime each time, not every fifteen seconds.
	fresh := otelruntime.WithMinimumReadMemStatsInterval(time.Nanosecond)
	reader := sdk.NewManualReader(producers(fresh)...)
	provider := otelruntime.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader)))
	if err := otelruntime.Start(provider, fresh); err != nil {
		answer(nil, err)
		os.Exit(1)
	}
	answer(map[string]interface{}{"ready": true, "pid": os.Getpid()}, nil)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch line := lines.Text(); {
		case line == "default":
			answer(scrape(byDefault))
		case line == "all":
			answer(scrape(all))
		case line == "otel":
			answer(collect(reader))
		case load.Run(line):
			answer(map[string]bool{"ok": true}, nil)
		default:
			answer(nil, fmt.Errorf("unknown command %s", line))
		}
	}
}

// scrape gives what a handler serves.
func scrape(handler http.Handler) (interface{}, error) {
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if recorder.Code != http.StatusOK {
		return nil, fmt.Errorf("%d: %s", recorder.Code, recorder.Body)
	}
	return map[string]string{"text": recorder.Body.String()}, nil
}

// collect gives the numbers of OpenTelemetry's metrics, by name and attributes; of histograms the counts.
func collect(reader sdk.Reader) (interface{}, error) {
	var collected metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &collected); err != nil {
		return nil, err
	}
	numbers := map[string]float64{}
	for _, scope := range collected.ScopeMetrics {
		for _, metric := range scope.Metrics {
			switch data := metric.Data.(type) {
			case metricdata.Sum[int64]:
				add(numbers, metric.Name, data.DataPoints)
			case metricdata.Gauge[int64]:
				add(numbers, metric.Name, data.DataPoints)
			case metricdata.Histogram[int64]:
				for _, point := range data.DataPoints {
					numbers[metric.Name] += float64(point.Count)
				}
			case metricdata.Histogram[float64]:
				for _, point := range data.DataPoints {
					numbers[metric.Name] += float64(point.Count)
				}
			default:
				return nil, fmt.Errorf("%s is a %T", metric.Name, data)
			}
		}
	}
	return map[string]interface{}{"numbers": numbers}, nil
}

func add(numbers map[string]float64, name string, points []metricdata.DataPoint[int64]) {
	for _, point := range points {
		key := name
		for _, attribute := range point.Attributes.ToSlice() {
			key += " " + attribute.Value.Emit()
		}
		numbers[key] = float64(point.Value)
	}
}
