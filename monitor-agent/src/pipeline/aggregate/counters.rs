//! What is counted of one target's calls beside their label sets.

use monitor_ebpf::Counter;

use super::Aggregate;

/// Makes [`CounterValues`] of one list: the name that each counter of the programs has here, those that are read elsewhere,
/// and what the agent counts itself, with where that lies.
macro_rules! counter_values {
    (
        programs { $($(#[$doc:meta])* $field:ident = Counter::$counter:ident,)+ }
        elsewhere { $(Counter::$elsewhere:ident,)+ }
        agent |$aggregate:ident| { $($(#[$own_doc:meta])* $own:ident = $value:expr,)+ }
    ) => {
        /// Values of the programs' counters, and what the agent itself counts about records.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct CounterValues {
            $($(#[$doc])* pub $field: u64,)+
            $($(#[$own_doc])* pub $own: u64,)+
            /// What became of the finished calls of clients.
            pub client: Outcomes,
            /// The same of servers.
            pub server: Outcomes,
        }

        impl CounterValues {
            /// `counter` gives the value of a counter of the programs.
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

        // Does not compile with a counter that is in neither list, and warns of one that is there twice.
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
        /// Starts of which it could not be read what they start, or whether.
        starts_unread = Counter::StartUnread,
        /// Finishes of which it could not be read what they end, or whether: in no total.
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
        /// Starts that no finish can be matched with, since their window has closed.
        starts_sampled_out = Counter::StartSampledOut,
        /// Finished calls whose start was seen and whose record found no room in the ring.
        ring_full = Counter::RingFull,
        /// Finished calls whose start was not seen and whose record found no room in the ring.
        ring_full_unpaired = Counter::RingFullUnpaired,
        /// Finished calls that have recorded their start themselves and whose record found no room in the ring.
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
        /// Hits with a type that was not expected and that is not kept by name.
        unexpected_not_kept = Counter::UnexpectedNotKept,
        /// Finished calls whose bytes could not be read.
        sizes_unread = Counter::SizeUnread,
        /// Messages of streams that are in no count.
        messages_lost = Counter::MessageLost,
        /// Starts that are not counted under their labels.
        starts_lost = Counter::StartLabelLost,
        /// Finishes of streams that had finished already, or whose start was not seen.
        repeated = Counter::FinishRepeated,
    }
    elsewhere {
        // Of events only: `pipeline/losses.rs`.
        Counter::StartRingFull,
        // Hits, for what they cost: `agent/attached.rs`.
        Counter::MessageEntered,
        Counter::MessageLeft,
    }
    agent |aggregate| {
        /// Finished calls with a duration from the start that they have recorded themselves.
        recorded = aggregate.timed_by_own_start(),
        /// Finished calls that have recorded their start, and since which the target's clock may have been set.
        clock_set = aggregate.clock_set(),
        /// Names of finished calls that were cut.
        labels_cut = aggregate.labels_cut,
        /// Records that arrived of calls whose start was seen by a probe.
        records_timed = aggregate.records_timed,
        /// Records without one that arrived.
        records_unpaired = aggregate.records_unpaired,
        /// Label sets in use.
        label_sets = aggregate.label_sets,
        /// Finished calls in all totals.
        finished = aggregate.sums.iter().map(|side| side.finished).sum(),
    }
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
