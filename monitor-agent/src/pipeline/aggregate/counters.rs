//! Counters of one target's calls that are kept outside of the label sets.

use monitor_ebpf::Counter;

use super::Aggregate;

/// Generates [`CounterValues`] from one list: the field for each counter of the programs, the counters that are read
/// elsewhere, and the values that the agent counts itself.
macro_rules! counter_values {
    (
        programs { $($(#[$doc:meta])* $field:ident = Counter::$counter:ident,)+ }
        elsewhere { $(Counter::$elsewhere:ident,)+ }
        agent |$aggregate:ident| { $($(#[$own_doc:meta])* $own:ident = $value:expr,)+ }
    ) => {
        /// The values of the programs' counters and of the agent's own counters of records.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct CounterValues {
            $($(#[$doc])* pub $field: u64,)+
            $($(#[$own_doc])* pub $own: u64,)+
            /// What became of the finished calls of clients.
            pub client: Outcomes,
            /// What became of the finished calls of servers.
            pub server: Outcomes,
        }

        impl CounterValues {
            /// Collects all values. `counter` returns the value of one of the programs' counters.
            pub(super) fn of(
                $aggregate: &Aggregate,
                counter: &dyn Fn(Counter) -> u64,
                client: Outcomes,
                server: Outcomes,
            ) -> Self {
                Self {
                    $($field: counter(Counter::$counter),)+
                    $($own: $value,)+
                    client,
                    server,
                }
            }

            /// Adds the values of another set of programs in the same target.
            pub fn add(&mut self, other: &Self) {
                $(self.$field += other.$field;)+
                $(self.$own += other.$own;)+
                self.client.add(&other.client);
                self.server.add(&other.server);
            }
        }

        // A counter that is in neither list fails to compile; one that is listed twice causes a warning.
        const _: fn(Counter) = |counter| match counter {
            $(Counter::$counter)|+ $(| Counter::$elsewhere)+ => (),
        };
    };
}

counter_values! {
    programs {
        /// Starts of calls seen.
        starts = Counter::Starts,
        /// Starts of calls whose type was not known.
        starts_unknown_type = Counter::StartUnknownType,
        /// Finishes of calls whose type was not known: in no total.
        finishes_unknown_type = Counter::FinishUnknownType,
        /// Starts where it could not be read what starts, or whether a call starts.
        starts_unread = Counter::StartUnread,
        /// Finishes where it could not be read what ends, or whether a call ends: in no total.
        finishes_unread = Counter::FinishUnread,
        /// Starts not kept because the in-flight map was full.
        refused_full = Counter::RefusedFull,
        /// Starts not kept because too many calls were nested.
        refused_nested = Counter::RefusedNested,
        /// Starts whose finish never came.
        abandoned = Counter::Abandoned,
        /// Finished calls whose start was not seen.
        unpaired = Counter::Unpaired,
        /// Finished calls whose start was not seen because starts are watched in windows.
        sampled_out = Counter::SampledOut,
        /// Starts that no finish can be matched with, since their window is over.
        starts_sampled_out = Counter::StartSampledOut,
        /// Finished calls whose start was seen and whose record did not fit into the ring.
        ring_full = Counter::RingFull,
        /// Finished calls whose start was not seen and whose record did not fit into the ring.
        ring_full_unpaired = Counter::RingFullUnpaired,
        /// Finished calls that recorded their start themselves and whose record did not fit into the ring.
        ring_full_recorded = Counter::RingFullRecorded,
        /// Finished calls counted under `other`.
        label_sets_refused = Counter::LabelSetRefused,
        /// Finished calls in no total, whose start was seen.
        finishes_lost = Counter::FinishLost,
        /// Finished calls in no total, whose start was not seen.
        finishes_lost_unpaired = Counter::FinishLostUnpaired,
        /// Labels whose bytes were not in memory.
        label_faults = Counter::LabelFault,
        /// Labels that could not be read.
        labels_unreadable = Counter::LabelUnreadable,
        /// Hits with an unexpected type whose name is not kept.
        unexpected_not_kept = Counter::UnexpectedNotKept,
        /// Finished calls whose bytes could not be read.
        sizes_unread = Counter::SizeUnread,
        /// Messages of streams that are in no count.
        messages_lost = Counter::MessageLost,
        /// Starts that are not counted under their labels.
        starts_lost = Counter::StartLabelLost,
        /// Finishes of streams that had finished already, or whose start was not seen; and failures reported in the
        /// middle of a call.
        repeated = Counter::FinishRepeated,
    }
    elsewhere {
        // Only events need it: `pipeline/losses.rs`.
        Counter::StartRingFull,
        // Hits, to calculate the overhead: `agent/attached.rs`.
        Counter::MessageEntered,
        Counter::MessageLeft,
    }
    agent |aggregate| {
        /// Finished calls whose duration is based on a start that they recorded themselves.
        recorded = aggregate.timed_by_own_start(),
        /// Finished calls that recorded their start, and since then the target's clock may have been set.
        clock_set = aggregate.clock_set(),
        /// Cut names of finished calls.
        labels_cut = aggregate.labels_cut,
        /// Records received of calls whose start a probe has seen.
        records_timed = aggregate.records_timed,
        /// Records received of calls without a duration.
        records_unpaired = aggregate.records_unpaired,
        /// Label sets in use.
        label_sets = aggregate.label_sets,
        /// Finished calls, summed over all totals.
        finished = aggregate.sums.iter().map(|side| side.finished).sum(),
    }
}

/// What became of the finished calls of one side. Each number is measured independently: while no call is on its way,
/// [`finished`](Self::finished) is the sum of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// All finished calls, from the kernel's totals.
    pub finished: u64,
    /// Calls whose duration is in a histogram.
    pub timed: u64,
    /// Calls whose start was not seen.
    pub unpaired: u64,
    /// Calls whose start was not seen because starts are watched in windows.
    pub sampled_out: u64,
    /// Calls whose duration did not fit into the ring, or whose duration is unknown since the clock was set.
    pub lost: u64,
    /// Calls whose records arrived after the totals were read or just before, or can't be taken out of the ring yet.
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
