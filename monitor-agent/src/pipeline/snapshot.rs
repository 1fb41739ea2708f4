//! What a scrape reads of a target.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

    /// With these counts, one for each limit of the ladder and one more, and the sums in microseconds and in nanoseconds.
    pub(crate) fn of(ladder: Arc<Ladder>, counts: Vec<u64>, sums: (u64, u128)) -> Self {
        Self { ladder, counts, sum_us: sums.0, sum_ns: sums.1 }
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
    /// Those of them whose calls' bytes were counted: asked for, and recorded by the release of their copy of the framework.
    pub with_bytes: Vec<Arc<Series>>,
    /// The programs' own counters.
    pub counters: CounterValues,
}

/// What is new in one copy of a framework.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// The label sets that have changed, by their numbers.
    pub series: Vec<(u32, Arc<Series>)>,
    /// Whether the bytes of its calls are counted.
    pub has_bytes: bool,
    /// The programs' own counters.
    pub counters: CounterValues,
}

/// A target's newest numbers.
#[derive(Debug, Default)]
pub struct Published(Mutex<Newest>);

#[derive(Debug, Default)]
struct Newest {
    /// Each copy of a framework.
    copies: Vec<NewestOfCopy>,
    counters: CounterValues,
}

#[derive(Debug, Default)]
struct NewestOfCopy {
    /// Its label sets by number.
    series: Vec<Option<Arc<Series>>>,
    has_bytes: bool,
}

impl NewestOfCopy {
    fn series(&self) -> impl Iterator<Item = Arc<Series>> {
        self.series.iter().flatten().cloned()
    }
}

impl Published {
    /// All of them at one moment. Holds the pipeline up while a pointer for each label set is copied, and another where bytes
    /// are counted.
    #[must_use]
    pub fn get(&self) -> Arc<Snapshot> {
        let newest = self.lock();
        Arc::new(Snapshot {
            series: newest.copies.iter().flat_map(NewestOfCopy::series).collect(),
            with_bytes: newest
                .copies
                .iter()
                .filter(|copy| copy.has_bytes)
                .flat_map(NewestOfCopy::series)
                .collect(),
            counters: newest.counters,
        })
    }

    /// Takes over what is new in each copy.
    pub fn update(&self, changes: Vec<Changes>) {
        let mut newest = self.lock();
        newest.copies.resize_with(changes.len(), NewestOfCopy::default);
        newest.counters = CounterValues::default();
        for (copy, changes) in changes.into_iter().enumerate() {
            newest.counters.add(&changes.counters);
            let NewestOfCopy { series: known, has_bytes } = &mut newest.copies[copy];
            *has_bytes = changes.has_bytes;
            for (number, series) in changes.series {
                let index = number as usize;
                if index >= known.len() {
                    known.resize(index + 1, None);
                }
                known[index] = Some(series);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Newest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
