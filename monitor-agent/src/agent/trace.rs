//! Targets whose calls go to a tracer, one by one, and nowhere else: for Rust programs, and for `events`.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    Latency, RunConfig,
    prepare::prepare,
    watches::{CHECK_EVERY, Watches},
};
use crate::{
    bpf::{Limits, MemoryReads, ProbeLinks},
    export::http::Listen,
    failure::{Failure, Kind},
    goruntime::Detail,
    metrics::{LabelSelection, Selection, otel::OtelView},
    pipeline::{Buckets, Ladder, Tracer},
    plan::{SiteChoosing, Wanted},
    specs::Specs,
};

/// What to trace.
#[derive(Clone, Debug)]
pub struct TraceConfig {
    /// Processes to watch, each once.
    pub pids: Vec<u32>,
    /// Operations to trace beside the calls: [`Labels::operation`](crate::pipeline::Labels::operation) tells which one it was.
    pub specs: Specs,
    /// Starts of calls are wanted too. Each costs the target about as much as a finish.
    pub starts: bool,
    /// Calls under way for longer are given up: they have no duration.
    pub max_call_age: Duration,
    /// Bounds of what a target may take in the kernel.
    pub limits: Limits,
    /// Most verbose level of the eBPF programs' own diagnostics, as `log::Level` counts; 0 for none.
    pub program_log_level: u8,
}

impl TraceConfig {
    /// The finished calls of these processes.
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

    fn as_run(&self) -> RunConfig {
        RunConfig {
            pids: self.pids.clone(),
            listen: Listen::default(),
            metrics: Selection::calls(),
            specs: self.specs.clone(),
            buckets: Buckets::default(),
            labels: LabelSelection::default(),
            otel: OtelView::default(),
            resource: Vec::new(),
            otlp: None,
            latency: Latency::Full,
            wanted: Wanted { events: true, starts: self.starts, ..Wanted::default() },
            sites: SiteChoosing::Best,
            links: ProbeLinks::Best,
            reads: MemoryReads::Best,
            event_socket: None,
            slow_calls: None,
            max_call_age: self.max_call_age,
            go: Detail::Default,
            limits: self.limits,
            linger: Duration::ZERO,
            overhead_budget: None,
            program_log_level: self.program_log_level,
        }
    }
}

/// Targets with probes attached. Dropping it takes the probes away.
pub struct Trace {
    watches: Watches,
    checked: Instant,
}

impl Trace {
    /// How often to poll: the ring holds so much, and lines that are read live shall not be older.
    pub const POLL_EVERY: Duration = Duration::from_millis(50);

    /// Attaches to all of these processes. One that can't be watched is the result, with nothing attached.
    pub fn attach(config: &TraceConfig) -> Result<Self, Failure> {
        if config.pids.is_empty() {
            return Err(Failure::new(Kind::Usage, "no process to watch: give the pid of one"));
        }
        let config = config.as_run();
        let watches = Watches::attach(prepare(&config)?, &config, &Arc::new(Ladder::default()))?;
        Ok(Self { watches, checked: Instant::now() })
    }

    /// Hands over the calls since the last time; false once no target is left.
    pub fn poll(&mut self, tracer: &mut dyn Tracer) -> bool {
        self.watches.drain(tracer);
        if self.checked.elapsed() >= CHECK_EVERY {
            self.checked = Instant::now();
            self.watches.check(tracer);
        }
        self.watches.any_up()
    }

    /// Takes the probes away and hands over what is left. Takes a quarter of a second or so.
    pub fn detach(mut self, tracer: &mut dyn Tracer) {
        self.watches.finish(tracer);
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
