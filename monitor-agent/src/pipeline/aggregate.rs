//! Aggregation of one target's calls, by label set.

mod counters;

use std::sync::Arc;

use monitor_ebpf::{Counter, side};

pub use counters::{CounterValues, Outcomes};

use super::{Changes, Durations, Extras, FinishedCall, Labels, Ladder, Series, Side, Tracer};

/// Aggregates one target's calls.
///
/// The work at each drain depends on how many label sets have changed since the last drain, not on how many there are.
/// With ten thousand label sets, little of what a call needs is in the processor's caches. So what is needed for each
/// call lies close together, and the rest is made only when it is read.
#[derive(Debug)]
pub struct Aggregate {
    /// The index into the vectors below, by label set number; [`NOWHERE`] until the label set's first call.
    places: Vec<u32>,
    durations: Durations,
    sides: Vec<Side>,
    /// The total and the extras of each label set.
    known: Vec<(u64, Extras)>,
    labels: Vec<Arc<Labels>>,
    is_changed: Vec<bool>,
    /// The numbers of the label sets that have changed since the last [`Changes`], each once.
    changed: Vec<u32>,
    /// The number of label sets that have calls or messages.
    label_sets: u64,
    /// The number of cut names, over all calls in the totals.
    labels_cut: u64,
    /// The sums of clients and of servers.
    sums: [Sums; 2],
    records_timed: u64,
    records_unpaired: u64,
    /// Records that belong to the next snapshot, of clients and of servers.
    waiting: [u64; 2],
    recorded: u64,
    /// Calls whose recorded start can't be used, of clients and of servers.
    clock_set: [u64; 2],
    /// The calls in `clock_set` that began before the first look at the clock, or before it was first set after that.
    from_before: u64,
}

/// Marks a label set that has no place yet.
const NOWHERE: u32 = u32::MAX;

/// Sums over all label sets of one side.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    /// Calls, by the totals.
    finished: u64,
    /// Calls in histograms.
    timed: u64,
}

impl Aggregate {
    /// Creates an empty aggregation.
    #[must_use]
    pub fn new(ladder: Arc<Ladder>) -> Self {
        Self {
            places: Vec::new(),
            durations: Durations::new(ladder),
            sides: Vec::new(),
            known: Vec::new(),
            labels: Vec::new(),
            is_changed: Vec::new(),
            changed: Vec::new(),
            label_sets: 0,
            labels_cut: 0,
            sums: [Sums::default(); 2],
            records_timed: 0,
            records_unpaired: 0,
            waiting: [0; 2],
            recorded: 0,
            clock_set: [0; 2],
            from_before: 0,
        }
    }

    /// Notes that the last call, which had no duration although it recorded its start, began before the first look at
    /// the clock, or before the clock was first set after that. Calls that begin later are not affected.
    pub fn came_from_before(&mut self) {
        self.from_before += 1;
    }

    /// Sets the calls that are counted next time, by side: their records came after the last counted one, or wait for a
    /// record that is still being written.
    pub fn waiting(&mut self, sides: impl Iterator<Item = Side>) {
        self.waiting = [0; 2];
        for side in sides {
            self.waiting[of_side(side)] += 1;
        }
    }

    /// Sets a label set's exact total and extras.
    pub fn total(&mut self, label_set: u32, labels: &Arc<Labels>, total: u64, extras: Extras) {
        let before = self.place(label_set).map(|place| self.known[place]).unwrap_or_default();
        if before == (total, extras) {
            return;
        }
        let place = self.change(label_set, labels);
        self.known[place] = (total, extras);
        self.label_sets += u64::from(before == Default::default());
        // Totals only rise.
        let calls = total.saturating_sub(before.0);
        self.sums[of_side(labels.side)].finished += calls;
        self.labels_cut += calls * u64::from(labels.cut_names);
    }

    /// Returns the number of finished calls that have recorded their start themselves.
    #[must_use]
    pub fn with_own_start(&self) -> u64 {
        self.timed_by_own_start() + self.clock_set()
    }

    /// Returns the number of finished calls whose duration is based on a start that they recorded themselves.
    #[must_use]
    pub fn timed_by_own_start(&self) -> u64 {
        self.recorded
    }

    /// Returns the number of finished calls that recorded their start but have no duration, since the clock may have
    /// been set in between.
    #[must_use]
    pub fn clock_set(&self) -> u64 {
        self.clock_set.iter().sum()
    }

    /// Returns the part of [`Self::clock_set`] that may keep growing: calls that began when the time of day had been as
    /// late before, or that claim to have begun after their end.
    #[must_use]
    pub fn clock_set_since(&self) -> u64 {
        self.clock_set().saturating_sub(self.from_before)
    }

    /// Returns a label set's place, if the label set is known.
    fn place(&self, label_set: u32) -> Option<usize> {
        self.places.get(label_set as usize).filter(|place| **place != NOWHERE).map(|place| *place as usize)
    }

    /// Marks a label set as changed and returns its place.
    fn change(&mut self, label_set: u32, labels: &Arc<Labels>) -> usize {
        let place = self.place(label_set).unwrap_or_else(|| self.meet(label_set, labels));
        if !self.is_changed[place] {
            self.is_changed[place] = true;
            self.changed.push(label_set);
        }
        place
    }

    /// Creates a place for a new label set.
    #[cold]
    fn meet(&mut self, label_set: u32, labels: &Arc<Labels>) -> usize {
        let (index, place) = (label_set as usize, self.labels.len());
        if index >= self.places.len() {
            self.places.resize(index + 1, NOWHERE);
        }
        // There are never more places than label set numbers.
        self.places[index] = u32::try_from(place).unwrap_or(NOWHERE);
        self.durations.make_place();
        self.sides.push(labels.side);
        self.known.push(Default::default());
        self.labels.push(Arc::clone(labels));
        self.is_changed.push(false);
        place
    }

    /// Returns what became of one side's calls.
    fn outcomes(&self, side: Side, counter: &dyn Fn(Counter) -> u64) -> Outcomes {
        let Sums { finished, timed } = self.sums[of_side(side)];
        Outcomes {
            finished,
            timed,
            unpaired: counter(Counter::Unpaired),
            sampled_out: counter(Counter::SampledOut),
            lost: counter(Counter::RingFull)
                + counter(Counter::RingFullRecorded)
                + self.clock_set[of_side(side)],
            pending: self.waiting[of_side(side)],
        }
    }

    /// Returns the label sets that have changed since the last call of this function.
    fn take_changed(&mut self) -> Vec<(u32, Arc<Series>)> {
        let Self { places, durations, known, labels, is_changed, changed, .. } = self;
        let mut taken = Vec::with_capacity(changed.len());
        // A label set without a call in the totals is not shown yet.
        changed.retain(|number| {
            let place = places[*number as usize] as usize;
            if known[place] == Default::default() {
                return true;
            }
            is_changed[place] = false;
            let (total, extras) = known[place];
            let labels = Arc::clone(&labels[place]);
            let series = Series { labels, total, histogram: durations.histogram(place), extras };
            taken.push((*number, Arc::new(series)));
            false
        });
        taken
    }

    /// Returns what has changed since the last refresh. `counter` returns the value of one of the programs' counters
    /// for a [`side`].
    #[must_use]
    pub fn changes(&mut self, counter: &dyn Fn(Counter, u8) -> u64) -> Changes {
        let of_client = |which| counter(which, side::CLIENT);
        let of_server = |which| counter(which, side::SERVER);
        let (client, server) =
            (self.outcomes(Side::Client, &of_client), self.outcomes(Side::Server, &of_server));
        let counter = |which| of_client(which) + of_server(which);
        let counters = CounterValues::of(self, &counter, client, server);
        Changes { series: self.take_changed(), has_bytes: false, counters }
    }
}

fn of_side(side: Side) -> usize {
    usize::from(side == Side::Server)
}

impl Tracer for Aggregate {
    fn finish(&mut self, call: &FinishedCall<'_>) {
        let Some(duration) = call.duration else {
            self.records_unpaired += 1;
            self.clock_set[of_side(call.labels.side)] += u64::from(call.has_own_start);
            return;
        };
        let timed_by = if call.has_own_start { &mut self.recorded } else { &mut self.records_timed };
        *timed_by += 1;
        let place = self.change(call.label_set, call.labels);
        self.sums[of_side(self.sides[place])].timed += 1;
        self.durations.record(place, u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use monitor_ebpf::LabelSet;
    use proptest::prelude::*;

    use super::*;
    use crate::pipeline::{Buckets, Published, Snapshot};

    fn labels(number: u32) -> Arc<Labels> {
        let mut set = LabelSet::EMPTY;
        set.text[2][0] = b'a' + u8::try_from(number).unwrap();
        set.lengths[2] = 1;
        Arc::new(Labels::decode(&set, &crate::pipeline::NoExecutable))
    }

    fn finish(aggregate: &mut Aggregate, label_set: u32, duration_ns: Option<u64>) {
        aggregate.finish(&call(label_set, &labels(label_set), duration_ns));
    }

    fn call(label_set: u32, labels: &Arc<Labels>, duration_ns: Option<u64>) -> FinishedCall<'_> {
        FinishedCall {
            target: 1,
            label_set,
            labels,
            time_ns: 1,
            duration: duration_ns.map(Duration::from_nanos),
            has_own_start: false,
            details: None,
        }
    }

    fn total(aggregate: &mut Aggregate, label_set: u32, total: u64) {
        aggregate.total(label_set, &labels(label_set), total, Extras::default());
    }

    /// Everything counted so far.
    fn snapshot(aggregate: &mut Aggregate) -> Arc<Snapshot> {
        let published = Published::default();
        published.update(vec![aggregate.changes(&|_, _| 0)]);
        published.get()
    }

    /// Each counter is summed over both sides and all copies; outcomes are kept by side.
    #[test]
    fn counters_of_the_programs_are_added_up() {
        const BOTH: u64 = 0x1_0000_0001;
        let values = |times: u64| {
            // One bit for each counter: clients in the low half, servers in the high half.
            let counter = |which: Counter, side: u8| times << (which as u32 + 32 * u32::from(side));
            Aggregate::new(Arc::default()).changes(&counter).counters
        };
        let mut counters = values(1);
        let sums = [counters.starts, counters.unpaired, counters.finishes_unread];
        let expected = [Counter::Starts, Counter::Unpaired, Counter::FinishUnread];
        assert_eq!(sums, expected.map(|which| BOTH << which as u32));
        let unpaired = 1_u64 << Counter::Unpaired as u32;
        assert_eq!((counters.client.unpaired, counters.server.unpaired), (unpaired, unpaired << 32));
        counters.add(&values(1));
        assert_eq!(counters, values(2));
    }

    /// The totals already contain calls whose records came after the last counted record.
    #[test]
    fn records_that_wait_are_pending() {
        let mut aggregate = Aggregate::new(Arc::default());
        total(&mut aggregate, 0, 3);
        aggregate.waiting([Side::Client, Side::Server, Side::Client].into_iter());
        let counters = aggregate.changes(&|_, _| 0).counters;
        let of = |outcomes: Outcomes| (outcomes.finished, outcomes.timed, outcomes.pending);
        assert_eq!((of(counters.client), of(counters.server)), ((3, 0, 2), (0, 0, 1)));
        finish(&mut aggregate, 0, Some(1_000));
        aggregate.waiting(std::iter::empty());
        let counters = aggregate.changes(&|_, _| 0).counters;
        assert_eq!((of(counters.client), of(counters.server)), ((3, 1, 0), (0, 0, 0)));
    }

    /// Counted for each finished call and each of its names.
    #[test]
    fn cut_names_are_counted_by_call() {
        let mut aggregate = Aggregate::new(Arc::default());
        let mut cut = |label_set: u32, cut_names: u8, total: u64, extra: u64| {
            let labels = Arc::new(Labels { cut_names, ..Labels::clone(&labels(label_set)) });
            let mut extras = Extras::default();
            extras[0] = extra;
            aggregate.total(label_set, &labels, total, extras);
            aggregate.changes(&|_, _| 0).counters.labels_cut
        };
        assert_eq!(cut(0, 0, 5, 0), 0);
        assert_eq!(cut(1, 1, 5, 0), 5);
        assert_eq!(cut(2, 3, 2, 0), 11);
        // Nothing new, three more calls, messages of a stream that is no call yet.
        assert_eq!(cut(1, 1, 5, 0), 11);
        assert_eq!(cut(1, 1, 8, 0), 14);
        assert_eq!(cut(3, 1, 0, 7), 14);
    }

    #[test]
    fn durations_are_cut_to_whole_microseconds() {
        let buckets = "1,2".parse().unwrap();
        let mut aggregate = Aggregate::new(Arc::new(Ladder::of([&buckets])));
        for duration_ns in [1_999, 2_999, 3_000] {
            finish(&mut aggregate, 0, Some(duration_ns));
        }
        total(&mut aggregate, 0, 3);
        let snapshot = snapshot(&mut aggregate);
        let histogram = &snapshot.series[0].histogram;
        assert_eq!(histogram.counts(&buckets), [1, 1, 1]);
        assert_eq!((histogram.sum_us, histogram.sum_ns), (6, 7_998));
        assert_eq!(snapshot.series[0].total, 3);
    }

    #[test]
    fn an_unpaired_finish_is_in_no_histogram() {
        let mut aggregate = Aggregate::new(Arc::default());
        finish(&mut aggregate, 1, None);
        total(&mut aggregate, 1, 1);
        let snapshot = snapshot(&mut aggregate);
        assert_eq!(snapshot.series[0].total, 1);
        assert_eq!(snapshot.series[0].histogram.count(), 0);
        assert_eq!(snapshot.counters.records_unpaired, 1);
    }

    /// Both terms are counted: neither is calculated as the remainder of a sum.
    #[test]
    fn calls_that_recorded_their_start_are_not_timed_by_probes() {
        let mut aggregate = Aggregate::new(Arc::default());
        let labels = labels(0);
        for duration_ns in [Some(1_000), None] {
            let call = call(0, &labels, duration_ns);
            aggregate.finish(&FinishedCall { has_own_start: true, ..call });
        }
        assert_eq!(aggregate.changes(&|_, _| 0).counters.records_timed, 0);
        finish(&mut aggregate, 0, Some(1_000));
        let counters = aggregate.changes(&|_, _| 0).counters;
        let timed = counters.client.timed + counters.server.timed;
        assert_eq!((counters.records_timed, counters.recorded, counters.clock_set, timed), (1, 1, 1, 2));
    }

    #[test]
    fn a_snapshot_does_not_change_afterwards() {
        let mut aggregate = Aggregate::new(Arc::default());
        let published = Published::default();
        total(&mut aggregate, 0, 1);
        published.update(vec![aggregate.changes(&|_, _| 0)]);
        let before = published.get();
        total(&mut aggregate, 0, 2);
        published.update(vec![aggregate.changes(&|_, _| 0)]);
        assert_eq!(before.series[0].total, 1);
        assert_eq!(published.get().series[0].total, 2);
    }

    #[test]
    fn only_what_has_changed_is_handed_on() {
        let mut aggregate = Aggregate::new(Arc::default());
        let numbers = |aggregate: &mut Aggregate| {
            let changes = aggregate.changes(&|_, _| 0);
            changes.series.iter().map(|(number, _)| *number).collect::<Vec<_>>()
        };
        for number in 0..5 {
            total(&mut aggregate, number, 1);
        }
        assert_eq!(numbers(&mut aggregate), [0, 1, 2, 3, 4]);
        finish(&mut aggregate, 3, Some(1));
        finish(&mut aggregate, 3, Some(1));
        total(&mut aggregate, 1, 1);
        total(&mut aggregate, 2, 7);
        assert_eq!(numbers(&mut aggregate), [3, 2]);
        assert!(numbers(&mut aggregate).is_empty());
        // The record arrives before the total.
        finish(&mut aggregate, 9, Some(1));
        assert!(numbers(&mut aggregate).is_empty());
        total(&mut aggregate, 9, 1);
        assert_eq!(numbers(&mut aggregate), [9]);
        let counters = aggregate.changes(&|_, _| 0).counters;
        let sums = (counters.label_sets, counters.finished, counters.client.timed + counters.server.timed);
        assert_eq!(sums, (6, 12, 3));
    }

    proptest! {
        #[test]
        fn count_and_sum_are_those_of_the_records(durations in prop::collection::vec(0_u64..1 << 40, 0..200)) {
            let mut aggregate = Aggregate::new(Arc::new(Ladder::of([&Buckets::fine()])));
            for duration in &durations {
                finish(&mut aggregate, 3, Some(*duration));
            }
            total(&mut aggregate, 3, 1);
            let snapshot = snapshot(&mut aggregate);
            prop_assert_eq!(snapshot.series[0].histogram.count(), durations.len() as u64);
            prop_assert_eq!(snapshot.series[0].histogram.sum_us, durations.iter().map(|ns| ns / 1_000).sum::<u64>());
        }
    }
}
