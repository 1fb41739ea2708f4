//! What OpenTelemetry's view of a target needs besides its calls.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tracing::warn;

use super::describe;
use crate::{
    export::otlp::unix_ns,
    goruntime::Readings,
    metrics::{
        otel::{self, Identity, OtelView, Pauses, Runtime, Telemetry},
        process::{ProcessReader, since_boot},
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
    /// When the process was started, in 1/100 s since boot: independent of changes to the time of day.
    start_ticks: u64,
    /// When the watch began, in nanoseconds since 1970.
    since_ns: u64,
}

impl Subject {
    /// Collects what is known of a target. Its resource gets the attributes in `resource`. Leaves out what can't be
    /// read.
    pub(super) fn of(target: &Target, since: SystemTime, resource: &[(String, String)]) -> Self {
        let environment = target.environment(&Identity::VARIABLES).unwrap_or_else(|error| {
            warn!("{}: no OTEL_… variables of its own: {error}", describe(target));
            BTreeMap::new()
        });
        let host = target.host_name();
        let identity = Identity::new(
            target.own_pid(),
            &target.instance(),
            host.as_deref(),
            target.exe_name(),
            &environment,
            resource,
        );
        if identity.left_out() > 0 {
            let (target, number) = (describe(target), identity.left_out());
            warn!("{target}: OTEL_RESOURCE_ATTRIBUTES: too many attributes, {number} are left out");
        }
        let process = ProcessReader::open(target.pid()).ok();
        let started = process.and_then(|mut process| process.read().start_time_seconds);
        let start_ticks = target.identity().start_time;
        Self { identity, pauses: Mutex::default(), started, start_ticks, since_ns: unix_ns(since) }
    }

    /// Returns all telemetry of the target now.
    pub(super) fn telemetry(
        &self,
        snapshot: &Snapshot,
        readings: Option<&Readings>,
        view: OtelView,
    ) -> Telemetry {
        let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cycles) = readings.and_then(|readings| readings.gc.as_ref()) {
            pauses.add_new(cycles, unix_ns(SystemTime::now()));
        }
        let runtime = readings.map(|readings| Runtime {
            readings,
            pauses: &pauses,
            uptime_ms: Some(uptime_ms(self.start_ticks, since_boot())),
            since_ns: self.started.map_or(self.since_ns, nanoseconds),
        });
        otel::telemetry(&self.identity, snapshot, runtime.as_ref(), view, self.since_ns)
    }
}

/// Returns how long a process has been running, in milliseconds, from its start in 1/100 s since boot and the time
/// since boot.
fn uptime_ms(start_ticks: u64, now: Duration) -> u64 {
    let started = Duration::from_millis(start_ticks.saturating_mul(10));
    u64::try_from(now.saturating_sub(started).as_millis()).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds since 1970")]
fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uptime_is_by_the_clock_that_starts_are_told_in() {
        assert_eq!(uptime_ms(150, Duration::from_millis(2_345)), 845);
        assert_eq!(uptime_ms(150, Duration::from_secs(1)), 0);
        let own = Target::open(std::process::id()).expect("this process");
        let start_ticks = own.identity().start_time;
        let now = since_boot();
        assert!(start_ticks > 0 && now >= Duration::from_millis(start_ticks * 10), "{start_ticks} {now:?}");
        assert!(uptime_ms(start_ticks, now) < 3_600_000, "{start_ticks} {now:?}");
        assert!(since_boot() >= now);
    }
}
