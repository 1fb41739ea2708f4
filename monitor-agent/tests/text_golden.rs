//! The text encoder against `client_golang`: the same families, byte for byte the same text.
//!
//! `tests/targets/golden` wrote the expected text from the same JSON with the real library.

use std::{collections::BTreeMap, fs, path::Path};

use monitor_agent::export::text;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Family {
    name: String,
    help: String,
    r#type: String,
    series: Vec<Series>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Series {
    #[serde(default)]
    labels: BTreeMap<String, String>,
    value: Option<String>,
    #[serde(default)]
    buckets: Vec<Bound>,
    sum: Option<String>,
    count: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bound {
    le: String,
    count: u64,
}

fn number(text: Option<&str>) -> f64 {
    text.expect("the field is there").parse().expect("a number")
}

fn metric(kind: MetricType, series: &Series) -> Metric {
    // Backwards, so that the order of the labels is the encoder's own work.
    let labels = series.labels.iter().rev().map(|(name, value)| {
        let mut label = LabelPair::default();
        label.set_name(name.clone());
        label.set_value(value.clone());
        label
    });
    let mut metric = Metric::from_label(labels.collect());
    match kind {
        MetricType::COUNTER => {
            let mut counter = Counter::default();
            counter.set_value(number(series.value.as_deref()));
            metric.set_counter(counter);
        }
        MetricType::GAUGE => {
            let mut gauge = Gauge::default();
            gauge.set_value(number(series.value.as_deref()));
            metric.set_gauge(gauge);
        }
        _ => metric.set_histogram(histogram(series)),
    }
    metric
}

fn histogram(series: &Series) -> Histogram {
    let buckets = series.buckets.iter().map(|bound| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(number(Some(&bound.le)));
        bucket.set_cumulative_count(bound.count);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_sum(number(series.sum.as_deref()));
    histogram.set_sample_count(series.count.expect("a histogram has a count"));
    histogram
}

fn convert(family: Family) -> MetricFamily {
    let kind = match family.r#type.as_str() {
        "counter" => MetricType::COUNTER,
        "gauge" => MetricType::GAUGE,
        "histogram" => MetricType::HISTOGRAM,
        other => panic!("{}: type {other}", family.name),
    };
    let mut result = MetricFamily::default();
    result.set_metric(family.series.iter().map(|series| metric(kind, series)).collect());
    result.set_name(family.name);
    result.set_help(family.help);
    result.set_field_type(kind);
    result
}

#[test]
fn text_is_what_client_golang_writes() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let json = fs::read_to_string(here.join("../tests/targets/golden/families.json")).expect("the families");
    let expected = fs::read_to_string(here.join("tests/golden/client_golang.txt")).expect("the golden text");
    let families: Vec<Family> = serde_json::from_str(&json).expect("the families' form");
    let families: Vec<MetricFamily> = families.into_iter().map(convert).collect();
    let text = text::encode(&families);
    for (number, (ours, theirs)) in (1..).zip(text.lines().zip(expected.lines())) {
        assert_eq!(ours, theirs, "line {number}");
    }
    assert_eq!(text, expected);
}
