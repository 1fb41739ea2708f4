// Command golden writes the metric families of a JSON file in the Prometheus text format, with client_golang
// itself: what the agent's own encoder is compared with.
//
// Numbers are strings in the file where JSON has no word for them (NaN, +Inf) or readers disagree on them.
package main

import (
	"encoding/json"
	"log"
	"os"
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
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
		log.Fatal("usage: golden families.json")
	}
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	var families []family
	if err := json.Unmarshal(text, &families); err != nil {
		log.Fatalf("%s: %v", os.Args[1], err)
	}
	registry := prometheus.NewPedanticRegistry()
	for _, f := range families {
		registry.MustRegister(f)
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
