//! The life of a run: opens targets, plans, attaches, drains, serves and detaches.

mod aside;
mod asking;
mod attached;
mod board;
mod call;
mod clock;
mod events;
mod face;
mod go;
mod in_flight;
mod life;
mod names;
mod overhead;
mod prepare;
mod probes;
mod refreshes;
mod replay;
mod sites;
mod subject;
mod trace;
mod unexpected;
mod verify;
mod watch;
mod watches;

use std::{path::PathBuf, time::Duration};

pub use events::{EventsConfig, events};
pub use life::run;
pub use prepare::{describe, no_framework, unattachable};
pub use probes::Latency;
pub use replay::Replay;
pub use trace::{Trace, TraceConfig, watch};
pub use verify::{check_return_probes, check_texts, probe_in_place};

use crate::{
    bpf::{Limits, MemoryReads, ProbeLinks},
    export::{http::Listen, otlp},
    goruntime::Detail,
    metrics::{LabelSelection, Selection, otel::OtelView},
    pipeline::{Buckets, Budget},
    plan::{SiteChoosing, Wanted},
    specs::Specs,
};

/// The validated configuration of `run`.
#[derive(Debug)]
pub struct RunConfig {
    /// Pids of the processes to watch, each once.
    pub pids: Vec<u32>,
    /// How to watch them.
    pub watch: WatchConfig,
    /// Where metrics are served.
    pub listen: Listen,
    /// Bounds of the latency histograms.
    pub buckets: Buckets,
    /// Labels of calls in the metrics.
    pub labels: LabelSelection,
    /// Where OpenTelemetry's metrics are pushed, if anywhere.
    pub otlp: Option<otlp::Settings>,
    /// The socket on which programs read events.
    pub event_socket: Option<PathBuf>,
    /// How many of the slowest and of the failed calls to keep per label set, if any.
    pub slow_calls: Option<usize>,
    /// How long to serve after the last target has ended.
    pub linger: Duration,
}

/// How a target is watched, independent of who gets its calls.
#[derive(Debug)]
pub struct WatchConfig {
    /// The metric families to show.
    pub metrics: Selection,
    /// OpenTelemetry's metrics are pushed. This needs calls, whichever families are shown.
    pub pushes: bool,
    /// Operations to watch besides the calls of frameworks.
    pub specs: Specs,
    /// The calls whose durations are taken.
    pub latency: Latency,
    /// The limit for what the probes may cost the target, if any.
    pub overhead_budget: Option<Budget>,
    /// What the programs read besides names and outcome.
    pub wanted: Wanted,
    /// How the sites are chosen.
    pub sites: SiteChoosing,
    /// How probes are attached.
    pub links: ProbeLinks,
    /// How the programs read the target's memory.
    pub reads: MemoryReads,
    /// Calls in flight for longer than this are given up.
    pub max_call_age: Duration,
    /// Limits of each framework's tables and ring in the kernel.
    pub limits: Limits,
    /// How much of the Go runtime to show.
    pub go: Detail,
    /// The names of OpenTelemetry's metrics.
    pub otel: OtelView,
    /// Attributes of the resources of all targets.
    pub resource: Vec<(String, String)>,
    /// Most verbose level of the eBPF programs' own diagnostics, numbered like `log::Level`; 0 for none.
    pub program_log_level: u8,
}
