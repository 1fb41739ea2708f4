//! What OpenTelemetry's view of a target needs beside its calls.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use tracing::warn;

use super::{RunConfig, describe};
use crate::{
    export::otlp::unix_ns,
    goruntime::Readings,
    metrics::{
        otel::{self, Identity, OtelView, Pauses, Runtime, Telemetry},
        process::ProcessReader,
    },
    pipeline::Snapshot,
    target::Target,
};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Subject {
    identity: Identity,
    pauses: Mutex<Pauses>,
    /// When the process was started, in seconds since 1970.
    started: Option<f64>,
    /// Since when it is watched, in nanoseconds since 1970.
    since_ns: u64,
}

impl Subject {
    /// What can be found out about a target. What can't be read is left out.
    pub(super) fn of(target: &Target, since: SystemTime, config: &RunConfig) -> Self {
        let environment = target.environment(&Identity::VARIABLES).unwrap_or_else(|error| {
            warn!("{}: no OTEL_… variables of its own: {error}", describe(target));
            BTreeMap::new()
        });
        let more = config.resource.clone();
        let identity =
            Identity::new(target.own_pid(), target.host_name(), target.exe_name(), environment, more);
        let process = ProcessReader::open(target.pid()).ok();
        let started = process.and_then(|mut process| process.read().start_time_seconds);
        Self { identity, pauses: Mutex::default(), started, since_ns: unix_ns(since) }
    }

    /// All that is known of the target now.
    pub(super) fn telemetry(
        &self,
        snapshot: &Snapshot,
        readings: Option<&Readings>,
        view: OtelView,
    ) -> Telemetry {
        let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cycles) = readings.and_then(|readings| readings.gc.as_ref()) {
            pauses.look(cycles);
        }
        let runtime = readings.map(|readings| Runtime {
            readings,
            pauses: &pauses,
            uptime_ms: self.uptime_ms(),
            since_ns: self.started.map_or(self.since_ns, nanoseconds),
        });
        otel::telemetry(&self.identity, snapshot, runtime.as_ref(), view, self.since_ns)
    }

    fn uptime_ms(&self) -> Option<u64> {
        let now = unix_ns(SystemTime::now());
        Some(now.saturating_sub(nanoseconds(self.started?)) / 1_000_000)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds since 1970")]
fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}
