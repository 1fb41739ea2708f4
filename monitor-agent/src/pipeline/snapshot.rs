//! The numbers of a target that a scrape reads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use monitor_ebpf::extra;

use super::{Buckets, CounterValues, Labels, Ladder};

/// A histogram of call durations: counts between the limits of a ladder, and their sums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    ladder: Arc<Ladder>,
    /// Calls between two limits of the ladder, not cumulative. The last count is for durations above all limits.
    counts: Vec<u64>,
    /// The sum of the durations of all counted calls, each cut to whole microseconds.
    pub sum_us: u64,
    /// The sum of the durations in nanoseconds, which exceeds a `u64` after some days of many calls in flight.
    pub sum_ns: u128,
}

impl Histogram {
    /// Creates an empty histogram.
    #[must_use]
    pub fn new(ladder: Arc<Ladder>) -> Self {
        Self { counts: vec![0; ladder.limits() + 1], ladder, sum_us: 0, sum_ns: 0 }
    }

    /// Creates a histogram from counts, one for each limit of the ladder and one more, and the sums in microseconds and
    /// nanoseconds.
    pub(crate) fn of(ladder: Arc<Ladder>, counts: Vec<u64>, sums: (u64, u128)) -> Self {
        Self { ladder, counts, sum_us: sums.0, sum_ns: sums.1 }
    }

    /// Returns the calls in each bucket of a view for which the ladder was made, not cumulative, the infinite bucket
    /// last.
    #[must_use]
    pub fn counts(&self, view: &Buckets) -> Vec<u64> {
        self.ladder.counts_of(&self.counts, view)
    }

    /// Returns the number of calls counted.
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

/// The other numbers of a label set besides its calls, indexed by [`monitor_ebpf::extra`].
pub type Extras = [u64; extra::COUNT as usize];

/// The calls, or the messages, of one label set.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its labels.
    pub labels: Arc<Labels>,
    /// The exact number of finished calls, from the kernel's totals.
    pub total: u64,
    /// The durations of calls whose start is known and whose record arrived.
    pub histogram: Histogram,
    /// The bytes of the calls, or the messages.
    pub extras: Extras,
}

/// A target's numbers at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// One entry for each label set that has calls or messages.
    pub series: Vec<Arc<Series>>,
    /// The entries of `series` whose bytes are counted: on request, and if the copy's release of the framework records
    /// them.
    pub with_bytes: Vec<Arc<Series>>,
    /// The programs' own counters.
    pub counters: CounterValues,
}

/// The changes of one copy of a framework.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// The changed label sets, with their numbers.
    pub series: Vec<(u32, Arc<Series>)>,
    /// Whether the bytes of the copy's calls are counted.
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
    /// The copy's label sets, by number.
    series: Vec<Option<Arc<Series>>>,
    has_bytes: bool,
}

impl NewestOfCopy {
    fn series(&self) -> impl Iterator<Item = Arc<Series>> {
        self.series.iter().flatten().cloned()
    }
}

impl Published {
    /// Returns all numbers at one moment. Blocks the pipeline while one pointer for each label set is copied, or two
    /// where bytes are counted.
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

    /// Applies the changes of each copy.
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
