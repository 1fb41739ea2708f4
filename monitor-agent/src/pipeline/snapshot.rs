//! What a scrape reads of a target.

use std::sync::{Arc, Mutex, PoisonError};

use monitor_ebpf::extra;

use super::{Buckets, CounterValues, Labels, Ladder};

/// Durations of calls: counts between the limits of a ladder, and their sums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    ladder: Arc<Ladder>,
    /// Calls between two limits of the ladder, the last count above all of them; not cumulated.
    counts: Vec<u64>,
    /// Sum of the durations of all counted calls, each cut to whole microseconds.
    pub sum_us: u64,
    /// Sum of the durations in nanoseconds: more than a `u64` holds after some days of many calls in flight.
    pub sum_ns: u128,
}

impl Histogram {
    /// An empty histogram.
    #[must_use]
    pub fn new(ladder: Arc<Ladder>) -> Self {
        Self { counts: vec![0; ladder.limits() + 1], ladder, sum_us: 0, sum_ns: 0 }
    }

    /// Counts a call.
    pub fn record(&mut self, duration_ns: u64) {
        if let Some(count) = self.counts.get_mut(self.ladder.index(duration_ns)) {
            *count += 1;
        }
        self.sum_us = self.sum_us.saturating_add(duration_ns / 1_000);
        self.sum_ns += u128::from(duration_ns);
    }

    /// Calls in each bucket of a view that the ladder was made for, not cumulated, the infinite one last.
    #[must_use]
    pub fn counts(&self, view: &Buckets) -> Vec<u64> {
        self.ladder.counts_of(&self.counts, view)
    }

    /// Calls counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds another histogram of the same ladder.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.sum_us += other.sum_us;
        self.sum_ns += other.sum_ns;
    }
}

/// What is counted of a label set beside its calls, by [`monitor_ebpf::extra`].
pub type Extras = [u64; extra::COUNT as usize];

/// The calls of one label set, or the messages of one.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its labels.
    pub labels: Arc<Labels>,
    /// Finished calls, exactly: from the kernel's totals.
    pub total: u64,
    /// Durations of those whose start was seen and whose record arrived.
    pub histogram: Histogram,
    /// Bytes of the calls, or messages.
    pub extras: Extras,
}

/// A target's numbers at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// One entry for each label set that has calls or messages.
    pub series: Vec<Arc<Series>>,
    /// Whether the bytes of the calls were counted: asked for, and recorded by the framework's release.
    pub has_bytes: bool,
    /// The programs' own counters.
    pub counters: CounterValues,
}

impl Snapshot {
    /// Adds what another framework's copy counted in the same target.
    pub fn add(&mut self, other: Self) {
        self.series.extend(other.series);
        self.has_bytes |= other.has_bytes;
        self.counters.add(&other.counters);
    }
}

/// The newest snapshot. Taking it and replacing it are a pointer each: no reader holds up the pipeline.
#[derive(Debug, Default)]
pub struct Published(Mutex<Arc<Snapshot>>);

impl Published {
    /// The newest snapshot.
    #[must_use]
    pub fn get(&self) -> Arc<Snapshot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces it.
    pub fn set(&self, snapshot: Snapshot) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }
}
