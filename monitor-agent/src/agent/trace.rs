//! Targets whose single calls go to a tracer and nowhere else: for Rust programs, and for `events`.

use std::{
    slice,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use monitor_ebpf::Counter;
use tracing::warn;

use super::{
    Latency, WatchConfig,
    prepare::prepare,
    watches::{CHECK_EVERY, Watches},
};
use crate::{
    bpf::{Limits, MemoryReads, ProbeLinks},
    failure::{Failure, Kind},
    goruntime::Detail,
    metrics::{Selection, otel::OtelView},
    pipeline::{Ladder, Tracer},
    plan::{SiteChoosing, Wanted},
    specs::Specs,
};

/// What to trace.
#[derive(Clone, Debug)]
pub struct TraceConfig {
    /// Pids of the processes to watch, each once.
    pub pids: Vec<u32>,
    /// Operations to trace besides the calls. [`Labels::operation`](crate::pipeline::Labels::operation) returns which
    /// one a call is of.
    pub specs: Specs,
    /// Trace starts of calls, too. Each costs the target about as much as a finish.
    pub starts: bool,
    /// Calls in flight for longer than this are given up: they have no duration.
    pub max_call_age: Duration,
    /// Limits of each framework's tables and ring in the kernel. Calls past them are handed over with less data, or
    /// lost. What [`Tracer::lost`] does not report is logged as a warning.
    pub limits: Limits,
    /// Most verbose level of the eBPF programs' own diagnostics, numbered like `log::Level`; 0 for none.
    pub program_log_level: u8,
}

impl TraceConfig {
    /// Traces the finished calls of these processes, with defaults for everything else.
    #[must_use]
    pub fn new(pids: &[u32]) -> Self {
        Self {
            pids: pids.to_vec(),
            specs: Specs::default(),
            starts: false,
            max_call_age: Duration::from_hours(24),
            limits: Limits::default(),
            program_log_level: 0,
        }
    }

    fn watch(&self) -> WatchConfig {
        WatchConfig {
            metrics: Selection::calls(),
            pushes: false,
            specs: self.specs.clone(),
            latency: Latency::Full,
            overhead_budget: None,
            wanted: Wanted { events: true, starts: self.starts, ..Wanted::default() },
            sites: SiteChoosing::Best,
            links: ProbeLinks::Best,
            reads: MemoryReads::Best,
            max_call_age: self.max_call_age,
            limits: self.limits,
            go: Detail::Default,
            otel: OtelView::default(),
            resource: Vec::new(),
            program_log_level: self.program_log_level,
        }
    }
}

/// A limit past which a call is handed over with less data or not at all, without a [`Lost`](crate::pipeline::Lost).
struct Limit {
    /// Counts how often the limit was passed.
    counter: Counter,
    /// What is limited.
    on: &'static str,
    /// The consequence of passing the limit.
    then: &'static str,
}

const LIMITS: [Limit; 3] = [
    Limit {
        counter: Counter::LabelSetRefused,
        on: "combinations of labels",
        then: "`other` stands in for the names of further ones, as long as 256 combinations of those suffice",
    },
    Limit {
        counter: Counter::RefusedFull,
        on: "calls in flight",
        then: "further ones have no duration, and streams of gRPC-Go's clients and operations of policy first_finish \
               are not told",
    },
    Limit {
        counter: Counter::RefusedNested,
        on: "calls nested in one on a goroutine",
        then: "deeper ones have no duration",
    },
];

/// The limits that a target is known to have passed.
#[derive(Clone, Copy, Default)]
struct Passed([bool; LIMITS.len()]);

impl Passed {
    /// Calls `passed` for each limit that was not known to be passed. `counter` returns the value of a program counter.
    fn tell_new(&mut self, counter: impl Fn(Counter) -> u64, mut passed: impl FnMut(&Limit)) {
        for (is_known, limit) in self.0.iter_mut().zip(&LIMITS) {
            if !*is_known && counter(limit.counter) > 0 {
                *is_known = true;
                passed(limit);
            }
        }
    }
}

/// Targets with probes attached. Dropping it removes the probes.
pub struct Trace {
    watches: Watches,
    /// One for each target, in the same order.
    passed: Vec<Passed>,
    checked: Instant,
}

impl Trace {
    /// How often to poll. The ring's capacity limits it, and lines that are read live must not be older.
    pub const POLL_EVERY: Duration = Duration::from_millis(50);

    /// Attaches to all of these processes. If one can't be watched, fails with nothing attached.
    pub fn attach(config: &TraceConfig) -> Result<Self, Failure> {
        if config.pids.is_empty() {
            return Err(Failure::new(Kind::Usage, "no process to watch: give the pid of one"));
        }
        let watch = config.watch();
        let prepared = prepare(&config.pids, &watch)?;
        let watches = Watches::attach(prepared, &watch, &Arc::new(Ladder::default()))?;
        let passed = vec![Passed::default(); watches.all().len()];
        Ok(Self { watches, passed, checked: Instant::now() })
    }

    /// Hands over the calls since the last poll. Returns false once no target is left.
    pub fn poll(&mut self, tracer: &mut dyn Tracer) -> bool {
        self.watches.drain(tracer);
        if self.checked.elapsed() >= CHECK_EVERY {
            self.checked = Instant::now();
            self.watches.check(tracer);
            self.say_what_is_passed();
        }
        self.watches.any_up()
    }

    /// Logs once for each limit that a target has passed it.
    fn say_what_is_passed(&mut self) {
        for (watch, passed) in self.watches.all().iter().zip(&mut self.passed) {
            passed.tell_new(
                |counter| watch.counter(counter),
                |Limit { on, then, .. }| warn!("{}: the limit on {on} is passed: {then}", watch.name()),
            );
        }
    }

    /// Logs how often each of these limits was passed in all.
    fn say_what_was_passed(&self, limits: &[Limit]) {
        for watch in self.watches.all() {
            for Limit { counter, on, then } in limits {
                let times = watch.counter(*counter);
                if times > 0 {
                    warn!("{}: the limit on {on} was passed {times} times: {then}", watch.name());
                }
            }
        }
    }

    /// Removes the probes and hands over the remaining calls. Takes about a quarter of a second.
    pub fn detach(mut self, tracer: &mut dyn Tracer) {
        let [label_sets, in_flight @ ..] = &LIMITS;
        // Before the probes are removed: the last starts are seen without their finishes, which fills the tables of
        // calls in flight.
        self.say_what_was_passed(in_flight);
        self.watches.finish(tracer);
        // Afterwards, since the last calls have been handed over only now.
        self.say_what_was_passed(slice::from_ref(label_sets));
    }
}

/// Hands the finished calls of these processes to a tracer, until the last of them has ended.
///
/// [`Trace`] leaves the loop to the caller.
pub fn watch(pids: &[u32], tracer: &mut dyn Tracer) -> Result<(), Failure> {
    let mut trace = Trace::attach(&TraceConfig::new(pids))?;
    while trace.poll(tracer) {
        thread::sleep(Trace::POLL_EVERY);
    }
    trace.detach(tracer);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_said_to_be_passed_once() {
        let mut passed = Passed::default();
        let mut said = Vec::new();
        for (refused, nested) in [(0, 0), (3, 0), (4, 1), (4, 2)] {
            let counter = |counter| match counter {
                Counter::LabelSetRefused => refused,
                Counter::RefusedNested => nested,
                _ => 0,
            };
            passed.tell_new(counter, |limit| said.push((limit.on, refused)));
        }
        assert_eq!(said, [("combinations of labels", 3), ("calls nested in one on a goroutine", 4)]);
    }
}
