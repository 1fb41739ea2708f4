//! Histograms: from samples, added up, and their quantiles.

use std::collections::BTreeMap;

use super::{Labels, Sample};

/// One series of a histogram.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Upper bound, inclusive, and the number of values up to it; the last bound is infinite.
    pub buckets: Vec<(f64, f64)>,
    /// The sum of all values.
    pub sum: f64,
    /// The number of values.
    pub count: f64,
}

impl Histogram {
    /// Both histograms as one, if their bounds are the same.
    #[must_use]
    pub fn plus(self, other: &Self) -> Option<Self> {
        self.combine(other, |a, b| a + b)
    }

    /// What came to an earlier state of the same histogram, if the bounds are the same.
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

    /// How many values there are up to a bound; `None` if no bucket ends there.
    #[must_use]
    pub fn up_to(&self, bound: f64) -> Option<f64> {
        let bucket = self.buckets.iter().find(|(upper, _)| upper.total_cmp(&bound).is_eq());
        bucket.map(|(_, count)| *count)
    }

    /// The bounds between which the value of a quantile lies: lower, exclusive, and upper, inclusive.
    #[must_use]
    pub fn quantile_bounds(&self, q: f64) -> Option<(f64, f64)> {
        let at = self.bucket_of(q)?;
        let lower = at.checked_sub(1).map_or(f64::NEG_INFINITY, |below| self.buckets[below].0);
        Some((lower, self.buckets[at].0))
    }

    /// A quantile as Prometheus' `histogram_quantile` estimates it: by a line through the bucket; the lower bound
    /// where the upper is infinite.
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

/// The series of the family `name`. Samples that belong to none of its parts were refused when they were read.
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
