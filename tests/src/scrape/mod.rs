//! A strict parser of the Prometheus text format: what a lenient reader would accept is an error here.

mod histogram;
mod parse;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use histogram::Histogram;
pub use parse::ParseError;

/// The labels of a series, by name.
pub type Labels = BTreeMap<String, String>;

/// Converts a count, which is written as a float.
///
/// # Panics
/// If it is not a count: negative, with a fraction, or so large that floats have gaps.
#[must_use]
#[track_caller]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
pub fn whole(count: f64) -> u64 {
    let is_count = count.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(&count);
    assert!(is_count, "{count} is no count");
    count as u64
}

/// A scrape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    /// The families by name.
    pub families: BTreeMap<String, Family>,
}

/// The type in a family's TYPE line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `counter`.
    Counter,
    /// `gauge`.
    Gauge,
    /// `histogram`.
    Histogram,
    /// `summary`.
    Summary,
    /// `untyped`.
    Untyped,
}

/// A metric family.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// The HELP text, unescaped.
    pub help: String,
    /// The TYPE.
    pub kind: Kind,
    /// The samples in their order in the text.
    pub samples: Vec<Sample>,
}

/// One line with a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The name, with the suffix of a histogram or summary.
    pub name: String,
    /// The labels, `le` and `quantile` included.
    pub labels: Labels,
    /// The value.
    pub value: f64,
}

impl Scrape {
    /// Parses a scrape and checks it: syntax, HELP before TYPE before samples, no family or series twice, label names,
    /// and histograms whose buckets rise and end in `+Inf` with the value of `_count`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        parse::scrape(text)
    }

    /// Returns the value of the series with exactly these labels.
    #[must_use]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let exact = |sample: &&Sample| sample.labels.len() == labels.len() && sample.has(labels);
        self.samples(name).find(exact).map(|sample| sample.value)
    }

    /// Sums all series of a counter or gauge that have these labels, whatever other labels they have.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.samples(name).filter(|sample| sample.has(labels)).map(|sample| sample.value).sum()
    }

    /// Whether a counter or gauge has a series with these labels, whatever other labels it has.
    #[must_use]
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.samples(name).any(|sample| sample.has(labels))
    }

    /// Returns the samples of a family, or none if there is no such family.
    pub fn samples(&self, name: &str) -> impl Iterator<Item = &Sample> {
        self.families.get(name).into_iter().flat_map(|family| &family.samples)
    }

    /// Returns the series of a histogram, without `le`, ordered by their labels.
    #[must_use]
    pub fn histograms(&self, name: &str) -> BTreeMap<Labels, Histogram> {
        histogram::of(name, self.samples(name))
    }

    /// Adds up all series of a histogram that have these labels. `None` if there is none, or if their bounds differ.
    #[must_use]
    pub fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Option<Histogram> {
        let all = self.histograms(name);
        let mut chosen = all.into_iter().filter(|(of, _)| has(of, labels)).map(|(_, histogram)| histogram);
        let first = chosen.next()?;
        chosen.try_fold(first, |sum, next| sum.plus(&next))
    }
}

impl Sample {
    fn has(&self, labels: &[(&str, &str)]) -> bool {
        has(&self.labels, labels)
    }
}

fn has(labels: &Labels, wanted: &[(&str, &str)]) -> bool {
    wanted.iter().all(|(name, value)| labels.get(*name).is_some_and(|found| found == value))
}
