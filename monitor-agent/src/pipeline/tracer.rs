//! Single calls, for consumers that need more than sums.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::Labels;

/// Receives the calls of targets, as Kitex's own `Tracer` does inside a process. The agent's aggregation is one tracer,
/// the event stream another.
///
/// Calls of one goroutine and one framework, copy or spec arrive in the order in which they started and finished. Other
/// calls may arrive somewhat later than their times suggest, since calls are passed batch by batch, ring by ring.
/// [`Tracer::lost`] reports everything that is not passed: calls and losses add up to the calls that the target has
/// made.
///
/// All functions run on the agent's own thread while the programs keep filling the ring. A slow function lets the ring
/// overflow, which is reported as a loss.
pub trait Tracer {
    /// Called when a call has started, if starts are requested.
    fn start(&mut self, call: &StartedCall<'_>) {
        let _ = call;
    }

    /// Called when a call has finished.
    fn finish(&mut self, call: &FinishedCall<'_>);

    /// Called when events were lost: they will never be passed.
    fn lost(&mut self, lost: &Lost) {
        let _ = lost;
    }

    /// Called at the end of a batch, when nothing else is waiting. Some ten times a second.
    fn flush(&mut self) {}
}

/// A call that has started.
#[derive(Clone, Copy, Debug)]
pub struct StartedCall<'a> {
    /// The target's pid.
    pub target: u32,
    /// The labels known so far. Servers start a call before they have read its method and caller, which are then
    /// `unknown`. Whether the call fails is not known yet.
    pub labels: &'a Arc<Labels>,
    /// When the call started, in nanoseconds since 1970, UTC.
    pub time_ns: u64,
    /// The goroutine: see [`Details::goroutine`].
    pub goroutine: u64,
}

/// A call that has finished.
#[derive(Clone, Copy, Debug)]
pub struct FinishedCall<'a> {
    /// The target's pid.
    pub target: u32,
    /// The number of the label set: small, and the same for each call with these labels, within one copy of a framework
    /// in one target.
    pub label_set: u32,
    /// Side, type, names, outcome.
    pub labels: &'a Arc<Labels>,
    /// When the call finished, in nanoseconds since 1970, UTC.
    pub time_ns: u64,
    /// The time from start to finish; `None` if the start is not known.
    pub duration: Option<Duration>,
    /// Whether the call recorded its start itself, and no probe saw it. Then the duration is missing only if the clock
    /// may have been set since.
    pub has_own_start: bool,
    /// Details that are read only on request, since the programs then have more to send.
    pub details: Option<Details>,
}

/// Further data about a finished call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Details {
    /// The goroutine that finished the call: the address of its descriptor in the target. It is unique while the
    /// goroutine lives, and may be reused afterwards.
    pub goroutine: u64,
    /// Bytes sent for the call; `None` if the framework's release does not record them.
    pub sent_bytes: Option<u64>,
    /// Bytes received for the call; `None` likewise.
    pub received_bytes: Option<u64>,
    /// The address of the peer's connection, on a server reached by TCP, if requested.
    pub peer: Option<SocketAddr>,
}

/// Events that were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The target's pid.
    pub target: u32,
    /// When the agent noticed, in nanoseconds since 1970, UTC.
    pub time_ns: u64,
    /// The kind of the lost events.
    pub event: EventKind,
    /// Why they were lost.
    pub reason: LossReason,
    /// The number of lost events.
    pub count: u64,
}

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// A call starts.
    Start,
    /// A call finishes.
    Finish,
}

impl EventKind {
    /// Returns the name in the event stream.
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
    /// The ring buffer was full. The call is in the totals.
    RingFull,
    /// The call's type is not known. It is in no total.
    UnknownType,
    /// The call's object could not be read. It is in no total.
    Unreadable,
    /// There was no room for the call's labels, not even as `other`. It is in no total.
    LabelTableFailed,
    /// A reader of the stream did not take its lines in time. Other readers have them.
    SlowReader,
}

impl LossReason {
    /// Returns the name in the event stream.
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
