//! The path of a ring's records to a snapshot, without a kernel. This is what the benchmark measures.

use std::sync::Arc;

use monitor_ebpf::LabelSet;

use super::{call::Call, clock::Clock};
use crate::{
    bpf::decode,
    pipeline::{Aggregate, Extras, KnownLabels, Labels, Ladder, NoExecutable, Published, Snapshot},
};

/// Decodes, counts and times records as in a run.
#[derive(Debug)]
pub struct Replay {
    /// Label sets by number, as written by the programs.
    label_sets: Vec<LabelSet>,
    labels: KnownLabels,
    aggregate: Aggregate,
    published: Published,
}

impl Replay {
    /// Creates an empty replay. Records may refer to these label sets by number.
    #[must_use]
    pub fn new(label_sets: Vec<LabelSet>) -> Self {
        let aggregate = Aggregate::new(Arc::new(Ladder::default()));
        Self { label_sets, labels: KnownLabels::default(), aggregate, published: Published::default() }
    }

    /// Takes these records, each as its bytes in a ring, and totals of `calls` calls for each label set.
    pub fn drain<'a>(&mut self, records: impl IntoIterator<Item = &'a [u8]>, calls: u64) {
        let Self { label_sets, labels, aggregate, published } = self;
        let decoded = |number: u32| Labels::decode(&label_sets[number as usize], &NoExecutable);
        let batch: Vec<_> = records.into_iter().filter_map(decode).collect();
        for (record, more) in &batch {
            let labels = labels.get(record.label_set, || decoded(record.label_set));
            let call = Call { target: 0, record, more: *more, labels, clock: Clock::default() };
            call.hand_over(aggregate, &mut Vec::new());
        }
        for number in (0..).take(label_sets.len()) {
            aggregate.total(number, labels.get(number, || decoded(number)), calls, Extras::default());
        }
        published.update(vec![aggregate.changes(&|_, _| 0)]);
    }

    /// Returns what a scrape would read.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.published.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_and_timed() {
        let mut set = LabelSet::EMPTY;
        set.text[2][0] = b'a';
        set.lengths[2] = 1;
        let mut replay = Replay::new(vec![LabelSet::EMPTY, set]);
        // Number 1, no flags, started at 5, took 3000 ns.
        let record = [1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0xb8, 0xb, 0, 0, 0, 0, 0, 0];
        replay.drain([&record[..], &record[..], &record[..20]], 2);
        let snapshot = replay.snapshot();
        assert_eq!(snapshot.counters.records_timed, 2);
        assert_eq!(snapshot.series.iter().map(|series| series.histogram.sum_us).collect::<Vec<_>>(), [0, 6]);
    }
}
