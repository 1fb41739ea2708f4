//! What a scrape reads of a target.

use std::sync::{Arc, Mutex, PoisonError};

use monitor_ebpf::extra;

use super::{CounterValues, Labels};

/// A latency histogram: counts per bucket, the infinite one last, and the sum of whole microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Calls in each bucket, not cumulated.
    pub counts: Vec<u64>,
    /// Sum of the durations of all counted calls, each cut to whole microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// An empty histogram with this many finite bounds.
    #[must_use]
    pub fn new(bounds: usize) -> Self {
        Self { counts: vec![0; bounds + 1], sum_us: 0 }
    }

    /// Calls counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds another histogram of the same bounds.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.sum_us += other.sum_us;
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
