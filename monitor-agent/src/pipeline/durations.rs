//! Histograms of many label sets, side by side in memory.

use std::sync::Arc;

use super::{Histogram, Ladder};

/// The words of a histogram before its counts: the sum in microseconds, and the two halves of the sum in nanoseconds.
const SUMS: usize = 3;

/// A histogram for each place. A call touches one or two cache lines, since the sums lie right before the counts of
/// short durations.
#[derive(Debug)]
pub(super) struct Durations {
    ladder: Arc<Ladder>,
    words: Vec<u64>,
}

impl Durations {
    /// Creates storage without any place.
    pub(super) fn new(ladder: Arc<Ladder>) -> Self {
        Self { ladder, words: Vec::new() }
    }

    /// Returns the size of a histogram, in words.
    fn size(&self) -> usize {
        SUMS + self.ladder.limits() + 1
    }

    /// Adds a place.
    pub(super) fn make_place(&mut self) {
        self.words.resize(self.words.len() + self.size(), 0);
    }

    /// Records a call's duration.
    pub(super) fn record(&mut self, place: usize, duration_ns: u64) {
        let (size, index) = (self.size(), self.ladder.index(duration_ns));
        let Some([sum_us, low, high, counts @ ..]) = self.words.get_mut(place * size..(place + 1) * size)
        else {
            return;
        };
        *sum_us = sum_us.saturating_add(duration_ns / 1_000);
        let (sum, has_passed) = low.overflowing_add(duration_ns);
        *low = sum;
        *high += u64::from(has_passed);
        if let Some(count) = counts.get_mut(index) {
            *count += 1;
        }
    }

    /// Returns a place's histogram.
    pub(super) fn histogram(&self, place: usize) -> Histogram {
        let ladder = Arc::clone(&self.ladder);
        match self.words.get(place * self.size()..(place + 1) * self.size()) {
            Some([sum_us, low, high, counts @ ..]) => {
                let sum = u128::from(*high) << u64::BITS | u128::from(*low);
                Histogram::of(ladder, counts.to_vec(), (*sum_us, sum))
            }
            _ => Histogram::new(ladder),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Buckets;

    #[test]
    fn places_have_nothing_in_common() {
        let view: Buckets = "10,20".parse().unwrap();
        let mut durations = Durations::new(Arc::new(Ladder::of([&view])));
        for _ in 0..3 {
            durations.make_place();
        }
        for (place, duration_ns) in [(0, 10_999), (2, 11_000), (2, 1_999), (2, u64::MAX)] {
            durations.record(place, duration_ns);
        }
        let histograms = [0, 1, 2, 3].map(|place| durations.histogram(place));
        let counts = histograms.each_ref().map(|histogram| histogram.counts(&view));
        assert_eq!(counts, [vec![1, 0, 0], vec![0, 0, 0], vec![1, 1, 1], vec![0, 0, 0]]);
        assert_eq!(histograms.each_ref().map(|one| one.sum_us), [10, 0, 11 + 1 + u64::MAX / 1_000, 0]);
        assert_eq!(histograms[2].sum_ns, u128::from(u64::MAX) + 12_999);
    }
}
