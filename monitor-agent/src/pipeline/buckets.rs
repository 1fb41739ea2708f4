//! Bounds of the latency histograms.
//!
//! Durations are counted once, between the limits of all views together: see [`Ladder`]. So each view is exact,
//! although views differ in unit, rounding and bounds.

use std::str::FromStr;

use thiserror::Error;

/// Buckets of the in-process extension (`kitex-contrib/monitor-prometheus`, `options.go` @ v0.2.0), in µs.
const IN_PROCESS: [f64; 8] =
    [5_000.0, 10_000.0, 25_000.0, 50_000.0, 100_000.0, 250_000.0, 500_000.0, 1_000_000.0];

/// The steps of a decade, each about a fifth above the last: the E12 series.
const E12: [f64; 12] = [1.0, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 3.9, 4.7, 5.6, 6.8, 8.2];

/// The maximum number of bounds in a user's list.
const BOUNDS_MAX: usize = 512;

/// Upper bounds of histogram buckets, in the unit of a view, without infinity.
#[derive(Clone, Debug, PartialEq)]
pub struct Buckets {
    bounds: Vec<f64>,
    /// For each bound, the longest duration that is not above it, in nanoseconds.
    limits: Vec<u64>,
}

/// An error in a bucket specification.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BucketsError {
    /// Not a preset and not a list of numbers.
    #[error("`{0}` is neither `default`, `fine` nor a list of bounds in microseconds such as `100,500,1000`")]
    NotANumber(String),
    /// A bound is not above the one before it.
    #[error("bucket bounds must be positive and increase, and {0} does not")]
    NotIncreasing(String),
    /// More than the maximum number of bounds.
    #[error("{0} bucket bounds are too many; at most {BOUNDS_MAX}")]
    TooMany(usize),
}

impl Default for Buckets {
    fn default() -> Self {
        Self::from_bounds(IN_PROCESS.to_vec())
    }
}

impl Buckets {
    /// Returns bounds with a resolution of microseconds: every microsecond up to 10 µs, then steps of a fifth up to 10
    /// s.
    #[must_use]
    pub fn fine() -> Self {
        let single = (1..10).map(f64::from);
        let decades = (1..7).flat_map(|decade| E12.map(|step| (step * 10_f64.powi(decade)).round()));
        Self::from_bounds(single.chain(decades).chain([1e7]).collect())
    }

    /// Creates bounds in microseconds, for durations that are cut to whole microseconds: `cut <= bound` exactly when
    /// `cut` is not above `floor(bound)`.
    fn from_bounds(bounds: Vec<f64>) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bounds are positive, and a bound past 2^64 µs saturates"
        )]
        let longest = |bound: &f64| (bound.floor() as u64).saturating_add(1).saturating_mul(1_000) - 1;
        let limits = bounds.iter().map(longest).collect();
        Self { bounds, limits }
    }

    /// Creates bounds that are given in milliseconds and shown in a unit of `unit` milliseconds, for durations that are
    /// not cut.
    #[must_use]
    pub fn of_milliseconds(bounds: &[u32], unit: u32) -> Self {
        Self {
            bounds: bounds.iter().map(|bound| f64::from(*bound) / f64::from(unit)).collect(),
            limits: bounds.iter().map(|bound| u64::from(*bound) * 1_000_000).collect(),
        }
    }

    /// Returns the bounds, in the view's unit, increasing.
    #[must_use]
    pub fn bounds(&self) -> &[f64] {
        &self.bounds
    }
}

/// The limits of all views, in nanoseconds. Durations between two neighboring limits are in the same bucket of every
/// view.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ladder(Vec<u64>);

impl Ladder {
    /// Creates the ladder of these views.
    #[must_use]
    pub fn of<'a>(views: impl IntoIterator<Item = &'a Buckets>) -> Self {
        let mut limits: Vec<u64> = views.into_iter().flat_map(|view| view.limits.iter().copied()).collect();
        limits.sort_unstable();
        limits.dedup();
        Self(limits)
    }

    /// Returns the number of limits. There is one more count, for durations above all of them.
    #[must_use]
    pub fn limits(&self) -> usize {
        self.0.len()
    }

    /// Returns the index of the count for a duration: the number of limits if the duration is above all of them.
    #[must_use]
    pub fn index(&self, nanoseconds: u64) -> usize {
        self.0.partition_point(|limit| *limit < nanoseconds)
    }

    /// Converts counts between the ladder's limits to counts of a view's buckets, the infinite one last.
    #[must_use]
    pub fn counts_of(&self, counts: &[u64], view: &Buckets) -> Vec<u64> {
        let mut of_view = vec![0; view.limits.len() + 1];
        let limits = self.0.iter().copied().chain([u64::MAX]);
        for (limit, count) in limits.zip(counts) {
            let index = view.limits.partition_point(|other| *other < limit);
            if let Some(sum) = of_view.get_mut(index) {
                *sum += count;
            }
        }
        of_view
    }
}

impl FromStr for Buckets {
    type Err = BucketsError;

    fn from_str(text: &str) -> Result<Self, BucketsError> {
        match text {
            "default" => return Ok(Self::default()),
            "fine" => return Ok(Self::fine()),
            _ => {}
        }
        let count = text.split(',').count();
        if count > BOUNDS_MAX {
            return Err(BucketsError::TooMany(count));
        }
        let mut bounds: Vec<f64> = Vec::with_capacity(count);
        for word in text.split(',') {
            let word = word.trim();
            let bound: f64 = word.parse().map_err(|_| BucketsError::NotANumber(word.to_owned()))?;
            if !bound.is_finite() || bound <= bounds.last().copied().unwrap_or(0.0) {
                return Err(BucketsError::NotIncreasing(word.to_owned()));
            }
            bounds.push(bound);
        }
        Ok(Self::from_bounds(bounds))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn presets_are_known() {
        assert_eq!("default".parse(), Ok(Buckets::default()));
        assert_eq!("5000,10000,25000,50000,100000,250000,500000,1000000".parse(), Ok(Buckets::default()));
        let fine: Buckets = "fine".parse().unwrap();
        assert_eq!(fine.bounds()[..12], [1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 12., 15.]);
        assert_eq!(fine.bounds().last(), Some(&1e7));
        assert!(fine.bounds().is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn bad_lists_are_refused() {
        assert_eq!("coarse".parse::<Buckets>(), Err(BucketsError::NotANumber("coarse".into())));
        assert_eq!("".parse::<Buckets>(), Err(BucketsError::NotANumber(String::new())));
        assert_eq!("5,5".parse::<Buckets>(), Err(BucketsError::NotIncreasing("5".into())));
        assert_eq!("0,5".parse::<Buckets>(), Err(BucketsError::NotIncreasing("0".into())));
        assert_eq!("1,inf".parse::<Buckets>(), Err(BucketsError::NotIncreasing("inf".into())));
        let many = (1..=513).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        assert_eq!(many.parse::<Buckets>(), Err(BucketsError::TooMany(513)));
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let ladder = Ladder::of([&"10,20.5".parse().unwrap()]);
        let nanoseconds = [0, 10_000, 10_999, 11_000, 20_999, 21_000, u64::MAX];
        assert_eq!(nanoseconds.map(|ns| ladder.index(ns)), [0, 0, 0, 1, 1, 2, 2]);
        let ladder = Ladder::of([&Buckets::of_milliseconds(&[0, 5], 1)]);
        let nanoseconds = [0, 1, 5_000_000, 5_000_001];
        assert_eq!(nanoseconds.map(|ns| ladder.index(ns)), [0, 1, 1, 2]);
    }

    #[test]
    fn bounds_are_shown_in_their_unit() {
        assert_eq!(Buckets::of_milliseconds(&[5, 75], 1).bounds(), [5.0, 75.0]);
        assert_eq!(Buckets::of_milliseconds(&[5, 75], 1_000).bounds(), [0.005, 0.075]);
    }

    proptest! {
        /// A duration that is counted between the limits of all views is in the bucket that each view's own arithmetic
        /// gives.
        #[test]
        #[expect(clippy::cast_precision_loss, reason = "the values are small")]
        fn each_view_is_exact(ns in prop_oneof![
            0_u64..30_000_000_000,
            (0_u64..12_000, 0_u64..3).prop_map(|(ms, beside)| (ms * 1_000_000 + beside).saturating_sub(1)),
            (0_u64..100, 0_u64..3).prop_map(|(us, beside)| (us * 1_000 + beside).saturating_sub(1)),
        ]) {
            let cut: [(Buckets, f64); 2] =
                [(Buckets::fine(), (ns / 1_000) as f64), ("0.5,7.25,1000".parse().unwrap(), (ns / 1_000) as f64)];
            let milliseconds = [0, 5, 10, 75, 1_000, 10_000];
            let whole = [
                (Buckets::of_milliseconds(&milliseconds, 1), ns as f64 / 1e6),
                (Buckets::of_milliseconds(&milliseconds, 1_000), ns as f64 / 1e9),
            ];
            let views: Vec<_> = cut.into_iter().chain(whole).collect();
            let ladder = Ladder::of(views.iter().map(|(view, _)| view));
            let mut counts = vec![0; ladder.limits() + 1];
            counts[ladder.index(ns)] = 1;
            for (view, value) in &views {
                let expected = view.bounds().iter().position(|bound| value <= bound);
                let of_view = ladder.counts_of(&counts, view);
                prop_assert_eq!(of_view.iter().sum::<u64>(), 1);
                prop_assert_eq!(of_view[expected.unwrap_or(view.bounds().len())], 1);
            }
        }
    }
}
