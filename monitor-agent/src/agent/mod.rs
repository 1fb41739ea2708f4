//! Brings it all together: opens targets, plans, attaches, drains, serves, detaches.

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

/// What `run` is to do, validated.
#[derive(Debug)]
pub struct RunConfig {
    /// Processes to watch, each once.
    pub pids: Vec<u32>,
    /// How to watch them.
    pub watch: WatchConfig,
    /// Where to serve metrics.
    pub listen: Listen,
    /// Bounds of the latency histograms.
    pub buckets: Buckets,
    /// Labels of the calls.
    pub labels: LabelSelection,
    /// Where OpenTelemetry's metrics are pushed to, if anywhere.
    pub otlp: Option<otlp::Settings>,
    /// Where to let programs read events.
    pub event_socket: Option<PathBuf>,
    /// How many of the slowest and of the failed calls of each label set to keep, if any.
    pub slow_calls: Option<usize>,
    /// How long to go on serving after the last target has ended.
    pub linger: Duration,
}

/// How a target is watched, whoever gets its calls.
#[derive(Debug)]
pub struct WatchConfig {
    /// What to show of it.
    pub metrics: Selection,
    /// OpenTelemetry's metrics are pushed: that alone asks for calls, whatever else was chosen to be shown.
    pub pushes: bool,
    /// Operations to watch that are no framework's.
    pub specs: Specs,
    /// Of which calls durations are taken.
    pub latency: Latency,
    /// What the probes may cost it, if that is limited.
    pub overhead_budget: Option<Budget>,
    /// What the programs are to read beside names and outcome.
    pub wanted: Wanted,
    /// How the places for probes are chosen.
    pub sites: SiteChoosing,
    /// What probes hang on.
    pub links: ProbeLinks,
    /// How the programs read its memory.
    pub reads: MemoryReads,
    /// Calls under way for longer are given up.
    pub max_call_age: Duration,
    /// Bounds of what each framework of it may take in the kernel.
    pub limits: Limits,
    /// How much of its Go runtime to show.
    pub go: Detail,
    /// Names of OpenTelemetry's metrics.
    pub otel: OtelView,
    /// Attributes that the resources of all targets have.
    pub resource: Vec<(String, String)>,
    /// Most verbose level of the eBPF programs' own diagnostics, as `log::Level` counts; 0 for none.
    pub program_log_level: u8,
}
