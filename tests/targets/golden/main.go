// Command golden writes the metric families of a JSON file in the Prometheus text format, with client_golang
// itself: what the agent's own encoder is compared with. Numbers are strings in the file where JSON has no word for
// them (NaN, +Inf) or readers disagree on them.
//
// With `go-collector` it writes what client_golang's collector for the Go runtime gives, with all of its metrics but
// those of GODEBUG settings; with `runtime-metrics` what Go itself says of the metrics that this is made of.
package main

import (
	"encoding/json"
	"log"
	"os"
	"regexp"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"
)

type family struct {
	Name   string   `json:"name"`
	Help   string   `json:"help"`
	Type   string   `json:"type"`
	Series []series `json:"series"`
}

type series struct {
	Labels  map[string]string `json:"labels"`
	Value   string            `json:"value"`
	Buckets []bucket          `json:"buckets"`
	Sum     string            `json:"sum"`
	Count   uint64            `json:"count"`
}

type bucket struct {
	LE    string `json:"le"`
	Count uint64 `json:"count"`
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: golden families.json | go-collector | runtime-metrics")
	}
	registry := prometheus.NewPedanticRegistry()
	switch os.Args[1] {
	case "runtime-metrics":
		describe()
		return
	case "go-collector":
		registry.MustRegister(collectors.NewGoCollector(
			collectors.WithGoCollectorRuntimeMetrics(collectors.MetricsAll),
			collectors.WithoutGoCollectorRuntimeMetrics(regexp.MustCompile("^/godebug/")),
		))
	default:
		registerFile(registry, os.Args[1])
	}
	gathered, err := registry.Gather()
	if err != nil {
		log.Fatal(err)
	}
	encoder := expfmt.NewEncoder(os.Stdout, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range gathered {
		if err := encoder.Encode(f); err != nil {
			log.Fatal(err)
		}
	}
}

func registerFile(registry *prometheus.Registry, path string) {
	text, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	var families []family
	if err := json.Unmarshal(text, &families); err != nil {
		log.Fatalf("%s: %v", path, err)
	}
	for _, f := range families {
		registry.MustRegister(f)
	}
}

// describe writes one line for each metric, in the order of their names.
func describe() {
	type description struct {
		Name       string `json:"name"`
		Cumulative bool   `json:"cumulative"`
		Text       string `json:"text"`
	}
	separator := "[\n"
	for _, d := range metrics.All() {
		if strings.HasPrefix(d.Name, "/godebug/") {
			continue
		}
		line, err := json.Marshal(description{d.Name, d.Cumulative, d.Description})
		if err != nil {
			log.Fatal(err)
		}
		os.Stdout.WriteString(separator + string(line))
		separator = ",\n"
	}
	os.Stdout.WriteString("\n]\n")
}

func (f family) desc() *prometheus.Desc {
	return prometheus.NewDesc(f.Name, f.Help, f.labelNames(), nil)
}

// The names in the order in which the values are handed over; client_golang sorts them itself.
func (f family) labelNames() []string {
	var names []string
	if len(f.Series) > 0 {
		for name := range f.Series[0].Labels {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (f family) Describe(descs chan<- *prometheus.Desc) {
	descs <- f.desc()
}

func (f family) Collect(metrics chan<- prometheus.Metric) {
	desc, names := f.desc(), f.labelNames()
	for _, s := range f.Series {
		var values []string
		for _, name := range names {
			values = append(values, s.Labels[name])
		}
		switch f.Type {
		case "counter":
			metrics <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, number(s.Value), values...)
		case "gauge":
			metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, number(s.Value), values...)
		case "histogram":
			buckets := make(map[float64]uint64)
			for _, b := range s.Buckets {
				buckets[number(b.LE)] = b.Count
			}
			metrics <- prometheus.MustNewConstHistogram(desc, s.Count, number(s.Sum), buckets, values...)
		default:
			log.Fatalf("%s: unknown type %q", f.Name, f.Type)
		}
	}
}

func number(text string) float64 {
	value, err := strconv.ParseFloat(text, 64)
	if err != nil {
		log.Fatal(err)
	}
	return value
}
