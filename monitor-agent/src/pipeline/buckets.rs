//! Bounds of the latency histograms.

use std::str::FromStr;

use thiserror::Error;

/// Buckets of the in-process extension (`kitex-contrib/monitor-prometheus`, `options.go` @ v0.2.0), in µs.
const IN_PROCESS: [f64; 8] =
    [5_000.0, 10_000.0, 25_000.0, 50_000.0, 100_000.0, 250_000.0, 500_000.0, 1_000_000.0];

/// Steps of a decade that grow by a fifth: the E12 series.
const E12: [f64; 12] = [1.0, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 3.9, 4.7, 5.6, 6.8, 8.2];

/// Bounds that a list of one's own may have.
const BOUNDS_MAX: usize = 512;

/// Upper bounds of histogram buckets, in microseconds, without the infinite one.
#[derive(Clone, Debug, PartialEq)]
pub struct Buckets {
    bounds: Vec<f64>,
    /// The same bounds for whole microseconds: `value <= bound` exactly when `value <= floor(bound)`.
    whole: Vec<u64>,
}

/// What is wrong with a bucket specification.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BucketsError {
    /// Not a preset and not a list of numbers.
    #[error("`{0}` is neither `default`, `fine` nor a list of bounds in microseconds such as `100,500,1000`")]
    NotANumber(String),
    /// A bound is not above the one before it.
    #[error("bucket bounds must be positive and increase, and {0} does not")]
    NotIncreasing(String),
    /// More bounds than anyone can use.
    #[error("{0} bucket bounds are too many; at most {BOUNDS_MAX}")]
    TooMany(usize),
}

impl Default for Buckets {
    fn default() -> Self {
        Self::from_bounds(IN_PROCESS.to_vec())
    }
}

impl Buckets {
    /// Bounds that tell microseconds apart: every one up to 10 µs, then steps of a fifth up to 10 s.
    #[must_use]
    pub fn fine() -> Self {
        let single = (1..10).map(f64::from);
        let decades = (1..7).flat_map(|decade| E12.map(|step| (step * 10_f64.powi(decade)).round()));
        Self::from_bounds(single.chain(decades).chain([1e7]).collect())
    }

    fn from_bounds(bounds: Vec<f64>) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bounds are positive, and a bound past 2^64 µs saturates"
        )]
        let whole = bounds.iter().map(|bound| bound.floor() as u64).collect();
        Self { bounds, whole }
    }

    /// The bounds, in microseconds, increasing.
    #[must_use]
    pub fn bounds(&self) -> &[f64] {
        &self.bounds
    }

    /// Index of the bucket for a duration in whole microseconds; the number of bounds for the infinite one.
    #[must_use]
    pub fn index(&self, microseconds: u64) -> usize {
        self.whole.partition_point(|bound| *bound < microseconds)
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
        let buckets: Buckets = "10,20.5".parse().unwrap();
        assert_eq!([0, 10, 11, 20, 21, u64::MAX].map(|us| buckets.index(us)), [0, 0, 1, 1, 2, 2]);
    }

    proptest! {
        #[test]
        fn the_index_is_that_of_the_first_bound_not_below(us in 0_u64..20_000_000) {
            let buckets = Buckets::fine();
            #[expect(clippy::cast_precision_loss, reason = "the values are small")]
            let expected = buckets.bounds().iter().position(|bound| us as f64 <= *bound);
            prop_assert_eq!(buckets.index(us), expected.unwrap_or(buckets.bounds().len()));
        }
    }
}
