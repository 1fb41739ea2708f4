//! Histograms: built from samples, added up, and their quantiles.

use std::collections::BTreeMap;

use super::{Labels, Sample};

/// One series of a histogram.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Upper bounds, inclusive, each with the number of values up to it. The last bound is infinite.
    pub buckets: Vec<(f64, f64)>,
    /// The sum of all values.
    pub sum: f64,
    /// The number of values.
    pub count: f64,
}

impl Histogram {
    /// Adds another histogram. `None` if the bounds differ.
    #[must_use]
    pub fn plus(self, other: &Self) -> Option<Self> {
        self.combine(other, |a, b| a + b)
    }

    /// Returns the difference from an earlier state of the same histogram. `None` if the bounds differ.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        self.clone().combine(earlier, |now, then| now - then)
    }

    fn combine(mut self, other: &Self, with: fn(f64, f64) -> f64) -> Option<Self> {
        if self.buckets.len() != other.buckets.len() {
            return None;
        }
        for ((bound, count), (other_bound, other_count)) in self.buckets.iter_mut().zip(&other.buckets) {
            if bound.total_cmp(other_bound).is_ne() {
                return None;
            }
            *count = with(*count, *other_count);
        }
        self.sum = with(self.sum, other.sum);
        self.count = with(self.count, other.count);
        Some(self)
    }

    /// Returns the number of values up to a bound. `None` if no bucket ends there.
    #[must_use]
    pub fn up_to(&self, bound: f64) -> Option<f64> {
        let bucket = self.buckets.iter().find(|(upper, _)| upper.total_cmp(&bound).is_eq());
        bucket.map(|(_, count)| *count)
    }

    /// Returns the bounds of the bucket that has a quantile: lower, exclusive, and upper, inclusive.
    #[must_use]
    pub fn quantile_bounds(&self, q: f64) -> Option<(f64, f64)> {
        let at = self.bucket_of(q)?;
        let lower = at.checked_sub(1).map_or(f64::NEG_INFINITY, |below| self.buckets[below].0);
        Some((lower, self.buckets[at].0))
    }

    /// Estimates a quantile like Prometheus' `histogram_quantile`: by linear interpolation in the bucket, or the lower
    /// bound if the upper is infinite.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let at = self.bucket_of(q)?;
        let (upper, up_to) = self.buckets[at];
        let (lower, below) = at.checked_sub(1).map_or((0.0, 0.0), |below| self.buckets[below]);
        if upper.is_infinite() {
            return Some(lower);
        }
        if at == 0 && upper <= 0.0 {
            return Some(upper);
        }
        Some(lower + (upper - lower) * (q * self.count - below) / (up_to - below))
    }

    fn bucket_of(&self, q: f64) -> Option<usize> {
        let rank = q * self.count;
        self.buckets.iter().position(|(_, up_to)| *up_to > 0.0 && *up_to >= rank)
    }
}

/// Builds the series of the family `name`. The parser has already refused samples that are no part of it.
pub(super) fn of<'a>(name: &str, samples: impl Iterator<Item = &'a Sample>) -> BTreeMap<Labels, Histogram> {
    let mut series = BTreeMap::<Labels, Histogram>::new();
    for sample in samples {
        let mut labels = sample.labels.clone();
        let bound = labels.remove("le");
        let histogram = series.entry(labels).or_default();
        match sample.name.strip_prefix(name) {
            Some("_sum") => histogram.sum = sample.value,
            Some("_count") => histogram.count = sample.value,
            _ => {
                let bound = bound.and_then(|bound| bound.parse().ok()).unwrap_or(f64::NAN);
                histogram.buckets.push((bound, sample.value));
            }
        }
    }
    series
}
