//! The log: on stderr, as text or JSON.

use std::io::{self, IsTerminal, Write as _};

use tracing::{Level, error};
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::failure::{Failure, printable};

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Verbosity {
    /// What ends the agent.
    Error,
    /// What a user should look into.
    Warn,
    /// What happens to targets.
    Info,
    /// The eBPF programs' own diagnostics too.
    Debug,
    /// Everything.
    Trace,
}

impl From<Verbosity> for Level {
    fn from(verbosity: Verbosity) -> Self {
        match verbosity {
            Verbosity::Error => Self::ERROR,
            Verbosity::Warn => Self::WARN,
            Verbosity::Info => Self::INFO,
            Verbosity::Debug => Self::DEBUG,
            Verbosity::Trace => Self::TRACE,
        }
    }
}

/// Sends the log to stderr from now on: stdout is for data.
pub(super) fn init(verbosity: Verbosity, format: Format) {
    // Libraries' chatter is for those who debug the agent.
    let level = Level::from(verbosity);
    let others = if level == Level::TRACE { level } else { Level::WARN.min(level) };
    let filter =
        Targets::new().with_default(others).with_target("monitor_agent", level).with_target("monitor", level);
    let registry = tracing_subscriber::registry().with(filter);
    let layer = fmt::layer().with_writer(io::stderr);
    match format {
        Format::Text => {
            registry.with(layer.with_ansi(io::stderr().is_terminal()).with_target(false)).init();
        }
        Format::Json => registry.with(layer.json()).init(),
    }
}

/// Says why the agent ends.
pub(super) fn failure(failure: &Failure, format: Format) {
    match format {
        Format::Text => {
            // The kernel's verifier explains itself in many lines.
            let text = failure.text.lines().map(printable).collect::<Vec<_>>().join("\n");
            // Nobody is left to be told when this fails.
            let _ = writeln!(io::stderr(), "monitor-agent: {text}");
        }
        Format::Json => error!("{}", failure.text),
    }
}
