//! Builders for metric families in the model of the `prometheus` crate.

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType, Quantile, Summary,
};

use crate::pipeline::{self, Buckets};

/// A builder for a metric family. A family without series is left out.
#[derive(Debug)]
pub struct FamilyBuilder {
    family: MetricFamily,
    metrics: Vec<Metric>,
}

impl FamilyBuilder {
    /// Creates a counter.
    #[must_use]
    pub fn counter(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::COUNTER)
    }

    /// Creates a gauge.
    #[must_use]
    pub fn gauge(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::GAUGE)
    }

    /// Creates a histogram.
    #[must_use]
    pub fn histogram(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::HISTOGRAM)
    }

    /// Creates a summary.
    #[must_use]
    pub fn summary(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::SUMMARY)
    }

    fn new(name: &str, help: &str, field_type: MetricType) -> Self {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(field_type);
        Self { family, metrics: Vec::new() }
    }

    /// Adds a series to a counter or gauge.
    #[must_use]
    pub fn with(mut self, labels: &[(&str, &str)], value: f64) -> Self {
        self.push(labels, value);
        self
    }

    /// Adds a series to a counter or gauge.
    pub fn push(&mut self, labels: &[(&str, &str)], value: f64) {
        let mut metric = Metric::from_label(pairs(labels));
        if self.family.get_field_type() == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.metrics.push(metric);
    }

    /// Adds a series to a histogram of durations: the counts in these buckets, and the sum in the view's unit.
    pub fn push_histogram(
        &mut self,
        labels: &[(&str, &str)],
        buckets: &Buckets,
        value: &pipeline::Histogram,
        sum: f64,
    ) {
        let buckets = buckets.bounds().iter().copied().zip(value.counts(buckets));
        self.push_buckets(labels, buckets, value.count(), sum);
    }

    /// Adds a series to a histogram: finite upper bounds with the non-cumulative counts of their buckets, the total
    /// count, and the sum of the values.
    pub fn push_buckets(
        &mut self,
        labels: &[(&str, &str)],
        buckets: impl Iterator<Item = (f64, u64)>,
        count: u64,
        sum: f64,
    ) {
        let mut cumulated: u64 = 0;
        let buckets = buckets
            .map(|(bound, count)| {
                cumulated = cumulated.saturating_add(count);
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(bound);
                bucket.set_cumulative_count(cumulated);
                bucket
            })
            .collect();
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(count);
        histogram.set_sample_sum(sum);
        let mut metric = Metric::from_label(pairs(labels));
        metric.set_histogram(histogram);
        self.metrics.push(metric);
    }

    /// Adds a series to a summary: quantiles with their values, the number of values, and their sum.
    pub fn push_summary(
        &mut self,
        labels: &[(&str, &str)],
        quantiles: impl Iterator<Item = (f64, f64)>,
        count: u64,
        sum: f64,
    ) {
        let quantiles = quantiles
            .map(|(rank, value)| {
                let mut quantile = Quantile::default();
                quantile.set_quantile(rank);
                quantile.set_value(value);
                quantile
            })
            .collect();
        let mut summary = Summary::default();
        summary.set_quantile(quantiles);
        summary.set_sample_count(count);
        summary.set_sample_sum(sum);
        let mut metric = Metric::from_label(pairs(labels));
        metric.set_summary(summary);
        self.metrics.push(metric);
    }

    /// Adds the family to `families`, unless it has no series.
    pub fn finish(mut self, families: &mut Vec<MetricFamily>) {
        if self.metrics.is_empty() {
            return;
        }
        self.family.set_metric(self.metrics);
        families.push(self.family);
    }
}

fn pairs(labels: &[(&str, &str)]) -> Vec<LabelPair> {
    let mut labels = labels.to_vec();
    labels.sort_unstable();
    labels
        .into_iter()
        .map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value.to_owned());
            pair
        })
        .collect()
}

/// Converts a count to the number type of Prometheus.
#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers; exact up to 2^53")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

/// Merges the families of several targets: series of one family are put together. If a target has a label, it is added
/// to each series as `target` and replaces a label of that name.
#[must_use]
pub fn merge(targets: Vec<(Option<String>, Vec<MetricFamily>)>) -> Vec<MetricFamily> {
    let mut merged: Vec<MetricFamily> = Vec::new();
    for (target, families) in targets {
        for mut family in families {
            let mut metrics = family.take_metric();
            if let Some(target) = &target {
                for metric in &mut metrics {
                    add_label(metric, "target", target);
                }
            }
            if let Some(other) = merged.iter_mut().find(|other| other.name() == family.name()) {
                other.mut_metric().append(&mut metrics);
            } else {
                family.set_metric(metrics);
                merged.push(family);
            }
        }
    }
    merged
}

fn add_label(metric: &mut Metric, name: &str, value: &str) {
    let mut labels = metric.take_label();
    labels.retain(|label| label.name() != name);
    labels.extend(pairs(&[(name, value)]));
    labels.sort_by(|a, b| a.name().cmp(b.name()));
    metric.set_label(labels);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_says_which_target_it_is() {
        let mut families = Vec::new();
        FamilyBuilder::gauge("target_info", "Target metadata")
            .with(&[("a", "1"), ("target", "of its own"), ("z", "2")], 1.0)
            .finish(&mut families);
        let merged = merge(vec![(Some("7".to_owned()), families)]);
        let labels = merged[0].get_metric()[0].get_label();
        let labels: Vec<_> = labels.iter().map(|label| (label.name(), label.value())).collect();
        assert_eq!(labels, [("a", "1"), ("target", "7"), ("z", "2")]);
    }
}
