//! Calls, one by one, for whoever wants more than sums of them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::Labels;

/// Receives the calls of targets, as Kitex's own `Tracer` does inside of a process. The agent's aggregation is one, the
/// event stream another.
///
/// Calls of one goroutine and one framework, copy or spec come in the order in which they started and finished. Others may
/// come somewhat later than their times say, since they are handed over batch by batch, ring by ring. What is not handed over is
/// told by [`Tracer::lost`]: calls and losses add up to the calls that the target has made.
///
/// All functions run on the agent's own time, while the programs go on filling the ring: one that takes long makes the
/// ring overflow, which is told as a loss.
pub trait Tracer {
    /// A call has started. Only where starts were asked for.
    fn start(&mut self, call: &StartedCall<'_>) {
        let _ = call;
    }

    /// A call has finished.
    fn finish(&mut self, call: &FinishedCall<'_>);

    /// Events were lost: they will never be handed over.
    fn lost(&mut self, lost: &Lost) {
        let _ = lost;
    }

    /// A batch is over: nothing else is there at the moment. Some ten times a second.
    fn flush(&mut self) {}
}

/// A call that has started.
#[derive(Clone, Copy, Debug)]
pub struct StartedCall<'a> {
    /// The target's pid.
    pub target: u32,
    /// What is known of it. Servers start a call before they have read its method and caller, which are then `unknown`;
    /// whether it fails nobody knows.
    pub labels: &'a Arc<Labels>,
    /// When it started, in nanoseconds since 1970, UTC.
    pub time_ns: u64,
    /// The goroutine: see [`Details::goroutine`].
    pub goroutine: u64,
}

/// A call that has finished.
#[derive(Clone, Copy, Debug)]
pub struct FinishedCall<'a> {
    /// The target's pid.
    pub target: u32,
    /// Number of the labels: small, and the same for each call that has them, within one copy of a framework in one
    /// target.
    pub label_set: u32,
    /// Side, type, names, outcome.
    pub labels: &'a Arc<Labels>,
    /// When it finished, in nanoseconds since 1970, UTC.
    pub time_ns: u64,
    /// From start to finish; `None` when the start is not known.
    pub duration: Option<Duration>,
    /// Its start was not seen, but it has recorded it itself. Then a duration is missing only if the clock may have been set
    /// since.
    pub has_own_start: bool,
    /// What only some ask for, since the programs then have more to send.
    pub details: Option<Details>,
}

/// What else is known of a finished call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Details {
    /// The goroutine that finished it: the address of its descriptor in the target, which one goroutine has as long as
    /// it lives, and another may have after it.
    pub goroutine: u64,
    /// Bytes sent for it; `None` where the framework's release does not record them.
    pub sent_bytes: Option<u64>,
    /// Bytes received for it; likewise.
    pub received_bytes: Option<u64>,
    /// The address of the peer's connection, on a server that was reached by TCP; where it was asked for.
    pub peer: Option<SocketAddr>,
}

/// Events that were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The target's pid.
    pub target: u32,
    /// When the agent noticed, in nanoseconds since 1970, UTC.
    pub time_ns: u64,
    /// Which kind.
    pub event: EventKind,
    /// Why.
    pub reason: LossReason,
    /// How many.
    pub count: u64,
}

/// What can happen to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// It starts.
    Start,
    /// It finishes.
    Finish,
}

impl EventKind {
    /// Its name in the event stream.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Finish => "finish",
        }
    }
}

/// Why events are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LossReason {
    /// The ring buffer had no room. The call is in the totals.
    RingFull,
    /// The call's type is not known. It is in no total.
    UnknownType,
    /// The call's object could not be read. It is in no total.
    Unreadable,
    /// There was no room for its labels, not even as `other`. It is in no total.
    LabelTableFailed,
    /// The reader of the stream did not take its lines in time. Other readers have them.
    SlowReader,
}

impl LossReason {
    /// Its name in the event stream.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::UnknownType => "unknown_type",
            Self::Unreadable => "unreadable",
            Self::LabelTableFailed => "label_table_failed",
            Self::SlowReader => "slow_reader",
        }
    }
}

impl Tracer for Vec<Box<dyn Tracer + Send>> {
    fn start(&mut self, call: &StartedCall<'_>) {
        for tracer in self {
            tracer.start(call);
        }
    }

    fn finish(&mut self, call: &FinishedCall<'_>) {
        for tracer in self {
            tracer.finish(call);
        }
    }

    fn lost(&mut self, lost: &Lost) {
        for tracer in self {
            tracer.lost(lost);
        }
    }

    fn flush(&mut self) {
        for tracer in self {
            tracer.flush();
        }
    }
}
