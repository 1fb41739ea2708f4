//! Command-line arguments, and their validation.

use std::{collections::BTreeSet, env::VarError, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::log::{Format, Verbosity};
use crate::{
    agent::{EventsConfig, Latency, RunConfig, TraceConfig, WatchConfig},
    bpf::{Limits, MemoryReads, ProbeLinks},
    events::{self, Condition, Filter},
    export::{
        http::{Listen, parse_listen},
        otlp,
    },
    failure::{Failure, Kind},
    goruntime::Detail,
    metrics::{
        Family, Label, LabelSelection, Selection,
        otel::{Conventions, GoNames, OtelView, pairs},
    },
    pipeline::{Buckets, Budget},
    plan::{SiteChoosing, Wanted},
    specs::Specs,
};

/// Watches the RPCs of running processes from outside: no change to the service, no rebuild, no restart.
#[derive(Debug, Parser)]
#[command(name = "monitor-agent", version, max_term_width = 100)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Attach to running processes and serve their metrics until they end or a signal comes.
    Run(RunArguments),
    /// Attach to running processes and write a line for each call on stdout, until they end or a signal comes.
    Events(EventsArguments),
    /// Show what would be attached to a process or executable, and the evidence for it; touches nothing.
    Inspect(InspectArguments),
    /// Descriptions of operations that no framework knows of.
    #[command(subcommand)]
    Spec(SpecCommand),
}

#[derive(Debug, Subcommand)]
pub(super) enum SpecCommand {
    /// Say what is wrong with a spec and where, or else what it would attach.
    Check(SpecArguments),
}

#[derive(Debug, Args)]
pub(super) struct SpecArguments {
    /// File, or the name of a spec that the agent has.
    #[arg(value_name = "FILE")]
    pub(super) spec: String,

    /// Executable in which everything that it names must be proven; needs no root and no process.
    #[arg(long, value_name = "PATH")]
    pub(super) exe: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is one choice of the user's")]
pub(super) struct RunArguments {
    /// Process to watch, as this host's /proc numbers it. Repeat it for several.
    #[arg(long = "pid", value_name = "PID", required = true, allow_negative_numbers = true, value_parser = pid)]
    pids: Vec<u32>,

    /// Where to serve metrics: HOST:PORT or :PORT, an IPv6 host in brackets. Port 0 takes a free one and logs it.
    #[arg(
        long = "web.listen-address",
        value_name = "ADDRESS",
        default_value_t = Listen::default(),
        value_parser = parse_listen
    )]
    listen_address: Listen,

    /// Families of metrics to show, of kitex, otel, grpc, go, process. Without one that tells of calls (kitex, otel,
    /// grpc) no probe is attached, and any Go process can be watched; but with `--spec`, `--otlp` or
    /// `OTEL_METRICS_EXPORTER=otlp` there are probes all the same.
    #[arg(long, value_name = "LIST", default_value_t)]
    metrics: Selection,

    /// Also watch the operations that a spec describes: a file, or the name of one that the agent has (net-http, hertz). Repeat
    /// it for several.
    #[arg(long = "spec", value_name = "FILE")]
    specs: Vec<String>,

    /// Bounds of the latency histograms of kitex_* in microseconds: `default` (as the in-process extension: 5 ms to 1 s;
    /// the same without this flag), `fine` (tells microseconds apart) or a list such as 100,500,1000.
    #[arg(long, value_name = "SPEC", allow_negative_numbers = true)]
    latency_buckets: Option<Buckets>,

    /// Calls whose durations are taken: of all, or of a sample, at a lower cost for the target. Calls are counted
    /// exactly in both.
    #[arg(long, value_name = "MODE", value_enum, default_value_t = LatencyMode::Full)]
    latency: LatencyMode,

    /// With `--latency economy`: length of a period in seconds (2 to 3600, default 10). In each, starts are watched for
    /// one second, at a random time.
    #[arg(
        long = "latency.every", value_name = "SECONDS",
        allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(2..=3_600)
    )]
    latency_every: Option<u32>,

    /// Part of each target's CPU time that watching may cost it, such as 1%. Past it durations are given up, of more and
    /// more calls; every call is counted all the same. They come back when they fit.
    #[arg(long, value_name = "PERCENT", allow_hyphen_values = true)]
    overhead_budget: Option<Budget>,

    /// Labels of kitex_* metrics, of type, caller, callee, method, status, retry, `error_class`; by default
    /// type,caller,callee,method,status. The in-process extension's released code has caller,callee,method,status,retry.
    #[arg(long = "kitex.labels", value_name = "LIST")]
    kitex_labels: Option<LabelSelection>,

    /// Also count the bytes that RPCs sent and received, as their own statistics have them; costs each call up to
    /// two more reads.
    #[arg(long = "kitex.bytes")]
    kitex_bytes: bool,

    /// Also count the messages of streams (Kitex v0.16.0 and later); costs each message a probe.
    #[arg(long = "kitex.stream-messages")]
    kitex_stream_messages: bool,

    /// Also count the messages of gRPC-Go's calls; costs each message of a stream two probes, one of which is dear, and
    /// in some releases those of unary calls, too.
    #[arg(long = "grpc.messages")]
    grpc_messages: bool,

    /// Metrics of the target's Go runtime: what its own Prometheus client would show by
    /// default, or all that can be read.
    #[arg(long = "go.metrics", value_name = "DETAIL", value_enum, default_value_t = GoMetrics::Default)]
    go_metrics: GoMetrics,

    /// Also let programs read each call, as `events` writes it, from a Unix socket at this path. Only the agent's own
    /// user may connect.
    #[arg(long = "events.socket", value_name = "PATH")]
    events_socket: Option<PathBuf>,

    /// Also keep the N slowest and the N last failed calls of each combination of labels, for /api/v1/calls.
    #[arg(
        long = "capture.slow", value_name = "N",
        allow_negative_numbers = true, value_parser = clap::value_parser!(u8).range(1..=100)
    )]
    capture_slow: Option<u8>,

    /// Names of the Go runtime's metrics with `--metrics otel`: `new` (go.*), `old` (process.runtime.go.* and
    /// runtime.uptime) or `both`. By default as Go's instrumentation library: new, and both where
    /// `OTEL_GO_X_DEPRECATED_RUNTIME_METRICS` is true.
    #[arg(long = "otel.go", value_name = "NAMES")]
    otel_go: Option<GoNames>,

    /// Also push the metrics of the family otel by OTLP, as the variables `OTEL_EXPORTER_OTLP_*` and `OTEL_METRIC_*`
    /// say. `OTEL_METRICS_EXPORTER=otlp` does the same.
    #[arg(long)]
    otlp: bool,

    /// Combinations of labels kept for each framework and spec of a target (1 to 1048576). Past them `other` stands in for
    /// the names, in 256 combinations more; calls past those too are in no total, and are counted as lost.
    #[arg(
        long, value_name = "N", default_value_t = Limits::default().label_sets,
        allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=1 << 20)
    )]
    max_label_sets: u32,

    /// Calls in flight kept for each framework and spec of a target (1 to 16777216), rounded up to a power of two, 8 at
    /// least. Those past it are counted and not timed; but streams of gRPC-Go's clients, and operations whose policy is
    /// `first_finish`, are in no total then. Of calls nested in others of their goroutine a quarter as many are kept, 64
    /// at least.
    #[arg(
        long, value_name = "N", default_value_t = Limits::default().in_flight,
        allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=1 << 24)
    )]
    max_in_flight: u32,

    /// Seconds after which a call that has not finished is given up: a stream that was dropped never does.
    #[arg(
        long, value_name = "SECONDS", default_value_t = 86_400,
        allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..)
    )]
    max_call_age: u32,

    /// Bytes of the ring buffer for each framework and spec of a target, a power of two from 65536 to 1073741824; when it
    /// overflows, durations are lost and counted.
    #[arg(
        long, value_name = "BYTES", default_value_t = Limits::default().ring_bytes,
        allow_negative_numbers = true, value_parser = ring_bytes
    )]
    ring_bytes: u32,

    /// Where in their functions probes go: `best`, or `naive` for the first instruction, to measure what that costs.
    #[arg(long, value_enum, default_value_t = Sites::Best, hide = true)]
    sites: Sites,

    /// What probes hang on: `best`, or `perf` for a perf event each, as on kernels that have nothing better, to test that.
    #[arg(long, value_enum, default_value_t = Links::Best, hide = true)]
    links: Links,

    /// How a target's memory is read: by its page tables, which must be proved to work on this kernel and costs calls less
    /// on some processors, or by asking the kernel for each read.
    #[arg(long, value_enum, default_value_t = Reads::Best)]
    reads: Reads,

    /// Seconds to go on serving after the last target has ended.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, allow_negative_numbers = true)]
    linger: u32,

    /// How much to log on stderr.
    #[arg(long, value_enum, default_value_t = Verbosity::Info)]
    pub(super) log_level: Verbosity,

    /// How log lines look.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(super) log_format: Format,
}

/// The calls whose durations are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LatencyMode {
    /// Of all: a probe at the start of each call and one at its finish
    Full,
    /// A probe at each finish. Durations of calls that record their start, else of those in one second of every ten
    Economy,
}

/// Where in a function a probe goes.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sites {
    /// Where one call is one hit, and a hit costs least
    Best,
    /// At the first instruction
    Naive,
}

impl From<Sites> for SiteChoosing {
    fn from(sites: Sites) -> Self {
        match sites {
            Sites::Best => Self::Best,
            Sites::Naive => Self::Naive,
        }
    }
}

/// What a probe is attached by.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Links {
    /// What the kernel has
    Best,
    /// A perf event each
    Perf,
}

impl From<Links> for ProbeLinks {
    fn from(links: Links) -> Self {
        match links {
            Links::Best => Self::Best,
            Links::Perf => Self::Perf,
        }
    }
}

/// How a target's memory is read.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Reads {
    /// By page tables, where that was proved to work and is found to be much faster
    Best,
    /// By page tables, wherever that was proved to work
    Tables,
    /// By asking the kernel
    Kernel,
}

impl From<Reads> for MemoryReads {
    fn from(reads: Reads) -> Self {
        match reads {
            Reads::Best => Self::Best,
            Reads::Tables => Self::Tables,
            Reads::Kernel => Self::Kernel,
        }
    }
}

/// How much of the Go runtime's metrics to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GoMetrics {
    /// What Go's Prometheus client shows by default
    Default,
    /// All of Go's runtime/metrics that can be read from memory
    All,
}

impl From<GoMetrics> for Detail {
    fn from(metrics: GoMetrics) -> Self {
        match metrics {
            GoMetrics::Default => Self::Default,
            GoMetrics::All => Self::All,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct EventsArguments {
    /// Process to watch, as this host's /proc numbers it. Repeat it for several.
    #[arg(long = "pid", value_name = "PID", required = true, allow_negative_numbers = true, value_parser = pid)]
    pids: Vec<u32>,

    /// Also a line for each operation that a spec describes: a file, or the name of one that the agent has (net-http, hertz).
    /// Repeat it for several.
    #[arg(long = "spec", value_name = "FILE")]
    specs: Vec<String>,

    /// How lines look.
    #[arg(long, value_enum, default_value_t = EventFormat::Ndjson)]
    format: EventFormat,

    /// Only calls for which this holds: side=client or side=server, method=NAME, status=succeed or status=error,
    /// `min_duration=5ms` (us, ms, s). Several values with commas: one must fit. Repeat it: all must hold.
    #[arg(long = "filter", value_name = "FIELD=VALUE")]
    filters: Vec<Condition>,

    /// Also a line for each start of a call; costs each call about as much as its finish does. Not with a filter by status
    /// or `min_duration`, which no start passes.
    #[arg(long)]
    starts: bool,

    /// How much to log on stderr.
    #[arg(long, value_enum, default_value_t = Verbosity::Warn)]
    pub(super) log_level: Verbosity,

    /// How log lines look.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(super) log_format: Format,
}

/// The format of an event's line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum EventFormat {
    /// One JSON object a line
    Ndjson,
    /// For people
    Pretty,
}

#[derive(Debug, Args)]
pub(super) struct InspectArguments {
    #[command(flatten)]
    pub(super) subject: Subject,

    /// Also look for the operations that a spec describes: a file, or the name of one that the agent has (net-http, hertz).
    /// Repeat it for several.
    #[arg(long = "spec", value_name = "FILE")]
    pub(super) specs: Vec<String>,

    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Subject {
    /// Running process.
    #[arg(long, value_name = "PID", allow_negative_numbers = true, value_parser = pid)]
    pub(super) pid: Option<u32>,

    /// Executable file; needs no root and no process.
    #[arg(long, value_name = "PATH")]
    pub(super) exe: Option<PathBuf>,
}

impl EventsArguments {
    /// Validates the arguments. Touches nothing else.
    pub(super) fn validate(self) -> Result<EventsConfig, Failure> {
        each_once(&self.pids)?;
        let filter = Filter::all(self.filters);
        if self.starts && !filter.may_take_starts() {
            return Err(Failure::new(
                Kind::Usage,
                "--starts beside a --filter by status or min_duration has no line to show, since those are known at a \
                 call's end: leave out one of them",
            ));
        }
        let trace = TraceConfig {
            specs: Specs::load(&self.specs)?,
            starts: self.starts,
            program_log_level: program_log_level(self.log_level),
            ..TraceConfig::new(&self.pids)
        };
        let format = match self.format {
            EventFormat::Ndjson => events::Format::Ndjson,
            EventFormat::Pretty => events::Format::Pretty,
        };
        Ok(EventsConfig { trace, format, filter })
    }
}

/// Refuses duplicate pids.
fn each_once(pids: &[u32]) -> Result<(), Failure> {
    let mut seen = BTreeSet::new();
    let Some(twice) = pids.iter().find(|pid| !seen.insert(**pid)) else { return Ok(()) };
    Err(Failure::new(Kind::Usage, format!("--pid {twice} is given twice: give each process once")))
}

/// The default period in seconds. In each, starts are watched for one second.
const LATENCY_EVERY: u32 = 10;

impl RunArguments {
    /// Refuses flags that have no effect in this combination: a user who gives one expects one.
    fn refuse_without_effect(&self, metrics: &Selection) -> Result<(), Failure> {
        let usage = |text: String| Err(Failure::new(Kind::Usage, text));
        for (is_given, flag, family) in [
            (self.latency_buckets.is_some(), "--latency-buckets", Family::Kitex),
            (self.kitex_labels.is_some(), "--kitex.labels", Family::Kitex),
            (self.kitex_bytes, "--kitex.bytes", Family::Kitex),
            (self.kitex_stream_messages, "--kitex.stream-messages", Family::Kitex),
            (self.grpc_messages, "--grpc.messages", Family::Grpc),
            (self.go_metrics == GoMetrics::All, "--go.metrics all", Family::Go),
            (self.otel_go.is_some(), "--otel.go", Family::Otel),
        ] {
            if is_given && !metrics.contains(family) {
                let family = family.name();
                return usage(format!(
                    "{flag} is for metrics of the family {family}, which --metrics {metrics} leaves out: add {family}, \
                     or leave out {flag}"
                ));
            }
        }
        if self.latency_every.is_some() && self.latency != LatencyMode::Economy {
            return usage("--latency.every is for --latency economy: add that, or leave it out".to_owned());
        }
        if self.capture_slow.is_some() && !metrics.wants_calls() {
            return usage(format!(
                "--capture.slow keeps calls, and --metrics {metrics} wants none: add kitex or grpc"
            ));
        }
        if self.events_socket.is_some() && !metrics.wants_calls() && self.specs.is_empty() {
            return usage(format!(
                "--events.socket tells of calls, and --metrics {metrics} wants none: add kitex or grpc"
            ));
        }
        self.refuse_where_nothing_is_sampled(metrics)
    }

    /// Refuses sampling without Kitex calls. Only these can do without a probe at each start: gRPC-Go's calls are
    /// counted by it, and operations of specs are timed.
    fn refuse_where_nothing_is_sampled(&self, metrics: &Selection) -> Result<(), Failure> {
        let sampled = if self.latency == LatencyMode::Economy {
            "--latency economy".to_owned()
        } else if let Some(budget) = self.overhead_budget {
            format!("--overhead-budget {budget}")
        } else {
            return Ok(());
        };
        if [Family::Kitex, Family::Otel].into_iter().any(|family| metrics.contains(family)) {
            return Ok(());
        }
        Err(Failure::new(
            Kind::Usage,
            format!(
                "{sampled} takes durations of fewer calls of Kitex, and --metrics {metrics} wants no such calls: leave it \
                 out, or add kitex"
            ),
        ))
    }

    /// Validates the arguments. Touches nothing else.
    pub(super) fn validate(self) -> Result<RunConfig, Failure> {
        each_once(&self.pids)?;
        let specs = Specs::load(&self.specs)?;
        let otlp = self.pushes()?;
        let metrics = self.metrics.clone();
        let metrics = if otlp.is_some() { metrics.with(Family::Otel) } else { metrics };
        self.refuse_without_effect(&metrics)?;
        let otel = self.otel()?;
        let has_otel = metrics.contains(Family::Otel);
        let resource = if has_otel { resource()? } else { Vec::new() };
        let labels = self.kitex_labels.clone().unwrap_or_default();
        let watch = WatchConfig {
            wanted: self.wanted(&labels, otel.conventions, has_otel),
            latency: self.latency(),
            overhead_budget: self.overhead_budget,
            limits: Limits {
                label_sets: self.max_label_sets,
                in_flight: self.max_in_flight,
                ring_bytes: self.ring_bytes,
            },
            metrics,
            pushes: otlp.is_some(),
            specs,
            sites: self.sites.into(),
            links: self.links.into(),
            reads: self.reads.into(),
            max_call_age: Duration::from_secs(self.max_call_age.into()),
            go: self.go_metrics.into(),
            otel,
            resource,
            program_log_level: program_log_level(self.log_level),
        };
        Ok(RunConfig {
            pids: self.pids,
            watch,
            listen: self.listen_address,
            buckets: self.latency_buckets.unwrap_or_default(),
            labels,
            otlp,
            event_socket: self.events_socket,
            slow_calls: self.capture_slow.map(usize::from),
            linger: Duration::from_secs(self.linger.into()),
        })
    }

    /// Reads the settings of pushing, if metrics are pushed.
    fn pushes(&self) -> Result<Option<otlp::Settings>, Failure> {
        let pushes = self.otlp || otlp::Settings::chosen_by(&variable("OTEL_METRICS_EXPORTER")?);
        if !pushes {
            return Ok(None);
        }
        let read = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        let settings = otlp::Settings::of(&read);
        settings.map(Some).map_err(|error| Failure::new(Kind::Usage, error.to_string()))
    }

    /// Selects the names of metrics in the family otel.
    fn otel(&self) -> Result<OtelView, Failure> {
        Ok(OtelView {
            conventions: Conventions::of_opt_in(&variable("OTEL_SEMCONV_STABILITY_OPT_IN")?),
            go: match self.otel_go {
                Some(names) => names,
                None => GoNames::of_variable(&variable("OTEL_GO_X_DEPRECATED_RUNTIME_METRICS")?),
            },
        })
    }

    /// Selects what the programs must read for everything that is shown.
    fn wanted(&self, labels: &LabelSelection, conventions: Conventions, has_otel: bool) -> Wanted {
        Wanted {
            retries: labels.contains(Label::Retry),
            errors: labels.contains(Label::ErrorClass) || (has_otel && conventions.new),
            sizes: self.kitex_bytes,
            messages: self.kitex_stream_messages,
            grpc_messages: self.grpc_messages,
            events: self.events_socket.is_some() || self.capture_slow.is_some(),
            starts: false,
            peers: self.capture_slow.is_some(),
            protocol: has_otel,
            panics: has_otel,
            recorded: self.latency == LatencyMode::Economy,
        }
    }

    fn latency(&self) -> Latency {
        match self.latency {
            LatencyMode::Full => Latency::Full,
            LatencyMode::Economy => {
                let every = self.latency_every.unwrap_or(LATENCY_EVERY);
                Latency::Economy { every: Duration::from_secs(every.into()) }
            }
        }
    }
}

/// Reads the attributes that the agent's environment adds to the resources of all targets.
fn resource() -> Result<Vec<(String, String)>, Failure> {
    let list = variable("OTEL_RESOURCE_ATTRIBUTES")?;
    let attributes = pairs(&list).collect::<Result<Vec<_>, _>>();
    attributes.map_err(|part| {
        Failure::new(Kind::Usage, format!("OTEL_RESOURCE_ATTRIBUTES: `{part}` is not of the form NAME=VALUE"))
    })
}

/// Reads a variable of the agent's own environment. It is empty if it is not set.
fn variable(name: &str) -> Result<String, Failure> {
    match std::env::var(name) {
        Ok(value) => Ok(value),
        Err(VarError::NotPresent) => Ok(String::new()),
        Err(VarError::NotUnicode(_)) => Err(Failure::new(Kind::Usage, format!("{name} is not UTF-8"))),
    }
}

/// Returns the log level of the eBPF programs. Their diagnostics cost the target time, so they are off by default.
fn program_log_level(verbosity: Verbosity) -> u8 {
    match verbosity {
        Verbosity::Debug | Verbosity::Trace => ::log::Level::Debug as u8,
        _ => 0,
    }
}

/// Parses a pid. Whether the process exists is checked later.
fn pid(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|pid| *pid > 0);
    number.ok_or_else(|| "not a process id: give a number from 1 on, as `ps -e` lists them".to_owned())
}

/// Parses the ring's size. The kernel requires a power of two of whole pages.
fn ring_bytes(text: &str) -> Result<u32, String> {
    let bytes = text.parse::<u32>().ok();
    let bytes = bytes.filter(|bytes| bytes.is_power_of_two() && (1 << 16..=1 << 30).contains(bytes));
    bytes.ok_or_else(|| "must be a power of two from 65536 to 1073741824".to_owned())
}
