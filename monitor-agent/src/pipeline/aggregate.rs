//! Aggregation of one target's calls, by label set.

use std::sync::Arc;

use monitor_ebpf::{Counter, side};

use super::{Changes, Durations, Extras, FinishedCall, Labels, Ladder, Series, Side, Tracer};

/// Values of the programs' counters, and what the agent itself counts about records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterValues {
    /// Starts of calls seen.
    pub starts: u64,
    /// Starts of calls whose type was not known.
    pub starts_unknown_type: u64,
    /// Finishes of calls whose type was not known: in no total.
    pub finishes_unknown_type: u64,
    /// Starts of which it could not be read what they start, or whether.
    pub starts_unread: u64,
    /// Finishes of which it could not be read what they end, or whether: in no total.
    pub finishes_unread: u64,
    /// Starts not kept because the in-flight map was full.
    pub refused_full: u64,
    /// Starts not kept because too many calls were nested.
    pub refused_nested: u64,
    /// Starts whose finish never came.
    pub abandoned: u64,
    /// Finished calls whose start was not seen.
    pub unpaired: u64,
    /// Finished calls whose start was not seen because starts are watched in windows.
    pub sampled_out: u64,
    /// Starts that no finish can be matched with, since their window has closed.
    pub starts_sampled_out: u64,
    /// Finished calls whose start was seen and whose record found no room in the ring.
    pub ring_full: u64,
    /// Finished calls that have recorded their start themselves and whose record found no room in the ring.
    pub ring_full_recorded: u64,
    /// Finished calls with a duration from the start that they have recorded themselves.
    pub recorded: u64,
    /// Finished calls that have recorded their start, and since which the target's clock may have been set.
    pub clock_set: u64,
    /// Finished calls whose start was not seen and whose record found no room in the ring.
    pub ring_full_unpaired: u64,
    /// Finished calls counted under `other`.
    pub label_sets_refused: u64,
    /// Finished calls in no total, whose start was seen.
    pub finishes_lost: u64,
    /// Finished calls in no total, whose start was not seen.
    pub finishes_lost_unpaired: u64,
    /// Labels whose bytes were not in memory.
    pub label_faults: u64,
    /// Labels that could not be read.
    pub labels_unreadable: u64,
    /// Names of finished calls that were cut.
    pub labels_cut: u64,
    /// Hits with a type that was not expected and that is not kept by name.
    pub unexpected_not_kept: u64,
    /// Finished calls whose bytes could not be read.
    pub sizes_unread: u64,
    /// Messages of streams that are in no count.
    pub messages_lost: u64,
    /// Starts that are not counted under their labels.
    pub starts_lost: u64,
    /// Finishes of streams that had finished already, or whose start was not seen.
    pub repeated: u64,
    /// Records that arrived of calls whose start was seen by a probe.
    pub records_timed: u64,
    /// Records without one that arrived.
    pub records_unpaired: u64,
    /// Label sets in use.
    pub label_sets: u64,
    /// Finished calls in all totals.
    pub finished: u64,
    /// What became of the finished calls of clients.
    pub client: Outcomes,
    /// The same of servers.
    pub server: Outcomes,
}

/// What became of the finished calls of one side. Each number is measured on its own: as soon as no call is on its way,
/// [`finished`](Self::finished) is the sum of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// All, in the kernel's totals.
    pub finished: u64,
    /// Their durations are in a histogram.
    pub timed: u64,
    /// Their starts were not seen.
    pub unpaired: u64,
    /// Their starts were not seen because starts are watched in windows.
    pub sampled_out: u64,
    /// Their durations found no room in the ring, or the clock was set meanwhile.
    pub lost: u64,
    /// Their records have arrived since the totals were read, or just before, or can't be taken out of the ring yet.
    pub pending: u64,
}

impl Outcomes {
    fn add(&mut self, other: &Self) {
        let Self { finished, timed, unpaired, sampled_out, lost, pending } = other;
        self.finished += finished;
        self.timed += timed;
        self.unpaired += unpaired;
        self.sampled_out += sampled_out;
        self.lost += lost;
        self.pending += pending;
    }
}

impl CounterValues {
    /// Adds the values of another set of programs in the same target.
    pub fn add(&mut self, other: &Self) {
        let Self {
            starts,
            starts_unknown_type,
            finishes_unknown_type,
            starts_unread,
            finishes_unread,
            refused_full,
            refused_nested,
            abandoned,
            unpaired,
            sampled_out,
            starts_sampled_out,
            ring_full,
            ring_full_unpaired,
            ring_full_recorded,
            recorded,
            clock_set,
            label_sets_refused,
            finishes_lost,
            finishes_lost_unpaired,
            label_faults,
            labels_unreadable,
            labels_cut,
            unexpected_not_kept,
            sizes_unread,
            messages_lost,
            starts_lost,
            repeated,
            records_timed,
            records_unpaired,
            label_sets,
            finished,
            client,
            server,
        } = self;
        client.add(&other.client);
        server.add(&other.server);
        for (sum, more) in [
            (starts, other.starts),
            (starts_unknown_type, other.starts_unknown_type),
            (finishes_unknown_type, other.finishes_unknown_type),
            (starts_unread, other.starts_unread),
            (finishes_unread, other.finishes_unread),
            (refused_full, other.refused_full),
            (refused_nested, other.refused_nested),
            (abandoned, other.abandoned),
            (unpaired, other.unpaired),
            (sampled_out, other.sampled_out),
            (starts_sampled_out, other.starts_sampled_out),
            (ring_full, other.ring_full),
            (ring_full_unpaired, other.ring_full_unpaired),
            (ring_full_recorded, other.ring_full_recorded),
            (recorded, other.recorded),
            (clock_set, other.clock_set),
            (label_sets_refused, other.label_sets_refused),
            (finishes_lost, other.finishes_lost),
            (finishes_lost_unpaired, other.finishes_lost_unpaired),
            (label_faults, other.label_faults),
            (labels_unreadable, other.labels_unreadable),
            (labels_cut, other.labels_cut),
            (unexpected_not_kept, other.unexpected_not_kept),
            (sizes_unread, other.sizes_unread),
            (messages_lost, other.messages_lost),
            (starts_lost, other.starts_lost),
            (repeated, other.repeated),
            (records_timed, other.records_timed),
            (records_unpaired, other.records_unpaired),
            (label_sets, other.label_sets),
            (finished, other.finished),
        ] {
            *sum += more;
        }
    }
}

/// Aggregates one target's calls.
///
/// What is done at each drain depends on how many label sets have changed since the last one, not on how many there are. Of
/// ten thousand label sets a call finds little in the processor's caches: so what it needs of its own lies close together,
/// and the rest is made when somebody looks.
#[derive(Debug)]
pub struct Aggregate {
    /// By label set number, where its numbers are below; [`NOWHERE`] until its first call is seen.
    places: Vec<u32>,
    durations: Durations,
    sides: Vec<Side>,
    /// Totals and extras.
    known: Vec<(u64, Extras)>,
    labels: Vec<Arc<Labels>>,
    is_changed: Vec<bool>,
    /// Numbers of the label sets that have changed since the last [`Changes`], each once.
    changed: Vec<u32>,
    /// Label sets that have calls or messages.
    label_sets: u64,
    /// Names that were cut, of all calls in the totals.
    labels_cut: u64,
    /// Sums of clients, and of servers.
    sums: [Sums; 2],
    records_timed: u64,
    records_unpaired: u64,
    /// Records that belong to the next snapshot: those of clients, and of servers.
    waiting: [u64; 2],
    recorded: u64,
    /// Calls of clients, and of servers, whose recorded start means nothing.
    clock_set: [u64; 2],
}

/// Where nothing is.
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
    /// Nothing yet.
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
        }
    }

    /// Takes note of the calls whose records came after the last one that is counted, or wait for one that is being written, by
    /// their sides: they are counted next time.
    pub fn waiting(&mut self, sides: impl Iterator<Item = Side>) {
        self.waiting = [0; 2];
        for side in sides {
            self.waiting[of_side(side)] += 1;
        }
    }

    /// Takes over a label set's exact total and extras.
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

    /// Finished calls that have recorded their start themselves.
    #[must_use]
    pub fn with_own_start(&self) -> u64 {
        self.recorded + self.clock_set.iter().sum::<u64>()
    }

    /// Where a label set's numbers are, if it was met before.
    fn place(&self, label_set: u32) -> Option<usize> {
        self.places.get(label_set as usize).filter(|place| **place != NOWHERE).map(|place| *place as usize)
    }

    /// Takes note that a label set changes; gives its place.
    fn change(&mut self, label_set: u32, labels: &Arc<Labels>) -> usize {
        let place = self.place(label_set).unwrap_or_else(|| self.meet(label_set, labels));
        if !self.is_changed[place] {
            self.is_changed[place] = true;
            self.changed.push(label_set);
        }
        place
    }

    /// Makes a place for a label set.
    #[cold]
    fn meet(&mut self, label_set: u32, labels: &Arc<Labels>) -> usize {
        let (index, place) = (label_set as usize, self.labels.len());
        if index >= self.places.len() {
            self.places.resize(index + 1, NOWHERE);
        }
        // There are no more places than numbers.
        self.places[index] = u32::try_from(place).unwrap_or(NOWHERE);
        self.durations.make_place();
        self.sides.push(labels.side);
        self.known.push(Default::default());
        self.labels.push(Arc::clone(labels));
        self.is_changed.push(false);
        place
    }

    /// What became of one side's calls.
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

    /// The label sets that have changed since this was last asked for.
    fn take_changed(&mut self) -> Vec<(u32, Arc<Series>)> {
        let Self { places, durations, known, labels, is_changed, changed, .. } = self;
        let mut taken = Vec::with_capacity(changed.len());
        // One without a call yet is not shown.
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

    /// What is new for those who scrape. `counter` gives the value of a counter of the programs for a [`side`].
    #[must_use]
    pub fn changes(&mut self, counter: &dyn Fn(Counter, u8) -> u64) -> Changes {
        let of_client = |which| counter(which, side::CLIENT);
        let of_server = |which| counter(which, side::SERVER);
        let (client, server) =
            (self.outcomes(Side::Client, &of_client), self.outcomes(Side::Server, &of_server));
        let counter = |which| of_client(which) + of_server(which);
        let counters = CounterValues {
            starts: counter(Counter::Starts),
            starts_unknown_type: counter(Counter::StartUnknownType),
            finishes_unknown_type: counter(Counter::FinishUnknownType),
            starts_unread: counter(Counter::StartUnread),
            finishes_unread: counter(Counter::FinishUnread),
            refused_full: counter(Counter::RefusedFull),
            refused_nested: counter(Counter::RefusedNested),
            abandoned: counter(Counter::Abandoned),
            unpaired: counter(Counter::Unpaired),
            sampled_out: counter(Counter::SampledOut),
            starts_sampled_out: counter(Counter::StartSampledOut),
            ring_full: counter(Counter::RingFull),
            ring_full_unpaired: counter(Counter::RingFullUnpaired),
            ring_full_recorded: counter(Counter::RingFullRecorded),
            recorded: self.recorded,
            clock_set: self.clock_set.iter().sum(),
            label_sets_refused: counter(Counter::LabelSetRefused),
            finishes_lost: counter(Counter::FinishLost),
            finishes_lost_unpaired: counter(Counter::FinishLostUnpaired),
            label_faults: counter(Counter::LabelFault),
            labels_unreadable: counter(Counter::LabelUnreadable),
            labels_cut: self.labels_cut,
            unexpected_not_kept: counter(Counter::UnexpectedNotKept),
            sizes_unread: counter(Counter::SizeUnread),
            messages_lost: counter(Counter::MessageLost),
            starts_lost: counter(Counter::StartLabelLost),
            repeated: counter(Counter::FinishRepeated),
            records_timed: self.records_timed,
            records_unpaired: self.records_unpaired,
            label_sets: self.label_sets,
            finished: client.finished + server.finished,
            client,
            server,
        };
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

    /// All that has been counted so far.
    fn snapshot(aggregate: &mut Aggregate) -> Arc<Snapshot> {
        let published = Published::default();
        published.update(vec![aggregate.changes(&|_, _| 0)]);
        published.get()
    }

    /// Calls whose records came after the last one that is counted are in the totals already.
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

    /// For each finished call, and for each of its names.
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
        // Nothing new, three calls more, messages of what is no call yet.
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

    /// Both terms of the account are counted: neither is what the other leaves of a sum.
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
        // Its record is there before its total.
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
