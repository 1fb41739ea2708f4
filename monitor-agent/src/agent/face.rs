//! What readers see of a target that is watched.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Instant, SystemTime},
};

use tracing::info;

use super::{
    WatchConfig,
    aside::Awaited,
    attached::{Attached, Place},
    go::{GoRuntime, Read},
    in_flight::{CallsInFlight, Unnamed},
    subject::Subject,
};
use crate::{
    goruntime::Readings,
    metrics::{Family, TargetStats, UnderwayCalls, process::ProcessReader},
    pipeline::Published,
};

/// What readers see of a watch. Shared with the server. No lock is held while the target's memory is read: the loop
/// that drains the rings takes the same locks.
#[derive(Debug)]
pub(super) struct Face {
    /// The target's pid.
    pub(super) pid: u32,
    /// When the watch began.
    pub(super) since: SystemTime,
    /// The calls.
    pub(super) published: Published,
    /// All other statistics.
    stats: Mutex<TargetStats>,
    /// The process in `/proc`; `None` once it has ended, or if not requested.
    pub(super) process: Mutex<Option<ProcessReader>>,
    /// Its Go runtime, if requested.
    go: Mutex<Option<GoRuntime>>,
    /// Its calls in flight now, and those of the last scrape.
    in_flight: Mutex<(CallsInFlight, UnderwayCalls)>,
    /// Its probes are being removed, finish probes first, so calls in flight seem to accumulate. Outside the lock, so
    /// that removing the probes does not wait for it.
    is_leaving: AtomicBool,
    /// What OpenTelemetry's view needs besides the calls, if requested.
    pub(super) subject: Option<Subject>,
}

impl Face {
    /// Creates the face of a target that is watched since `since`.
    pub(super) fn open(
        place: &Place,
        attached: &[Attached],
        stats: TargetStats,
        since: SystemTime,
        config: &WatchConfig,
    ) -> Self {
        let wanted = |family| config.metrics.contains(family);
        let process = wanted(Family::Process).then(|| ProcessReader::open(stats.pid).ok()).flatten();
        let wants_go = wanted(Family::Go) || wanted(Family::Otel);
        if wants_go && stats.go_version.is_empty() {
            info!("{}: Go has not built it, so there is no Go runtime to read", place.name);
        }
        let runtime = place.executable.runtime.as_ref();
        let go = runtime.map(|known| GoRuntime::open(place, known.as_ref(), config));
        let copies = attached.iter().map(Attached::in_flight).collect();
        let in_flight = CallsInFlight::open(&place.target, &place.name, copies);
        let subject = wanted(Family::Otel).then(|| Subject::of(&place.target, since, &config.resource));
        Self {
            pid: stats.pid,
            since,
            published: Published::default(),
            process: Mutex::new(process),
            stats: Mutex::new(stats),
            go: Mutex::new(go),
            in_flight: Mutex::new((in_flight, UnderwayCalls::default())),
            is_leaving: AtomicBool::new(false),
            subject,
        }
    }

    /// Begins to read the Go runtime's statistics, if requested and readable.
    pub(super) fn begin_go(&self) -> Option<Awaited<Read>> {
        self.lock_go().as_ref()?.begin()
    }

    /// Returns the Go runtime's statistics, if they come by `until`.
    pub(super) fn take_go(&self, begun: Option<Awaited<Read>>, until: Instant) -> Option<Readings> {
        let read = begun?.take(until);
        self.lock_go().as_mut()?.take_over(read)
    }

    /// Locks the Go runtime, if requested.
    pub(super) fn lock_go(&self) -> MutexGuard<'_, Option<GoRuntime>> {
        self.go.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the statistics, to read or change them.
    pub(super) fn lock_stats(&self) -> MutexGuard<'_, TargetStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the calls in flight now, and begins to read their names.
    pub(super) fn begin_underway(&self) -> Unnamed {
        self.lock_in_flight().0.begin(&self.is_leaving)
    }

    /// Returns the calls in flight, with the names that come by `until`.
    pub(super) fn take_underway(&self, begun: Unnamed, until: Instant) -> UnderwayCalls {
        let was_leaving = begun.was_leaving;
        let mut calls = begun.named(until);
        // Finishes are no longer seen: a name just read may belong to another call, and a name without calls may still
        // have some. The names of the scrape before stay, for a target that has ended.
        if was_leaving || self.is_leaving.load(Ordering::SeqCst) {
            calls.hide_kitex();
            return calls;
        }
        let mut in_flight = self.lock_in_flight();
        calls.keep_names(&in_flight.1);
        in_flight.1.clone_from(&calls);
        calls
    }

    /// Marks that its probes are being removed from now on.
    pub(super) fn begin_to_leave(&self) {
        self.is_leaving.store(true, Ordering::SeqCst);
    }

    /// Marks the target as ended: calls still in flight never finish, and their number is kept.
    pub(super) fn close_in_flight(&self) {
        self.lock_in_flight().0.close();
        self.is_leaving.store(false, Ordering::SeqCst);
    }

    fn lock_in_flight(&self) -> MutexGuard<'_, (CallsInFlight, UnderwayCalls)> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Side;

    /// Returns one call of this method.
    fn one_call(method: &str) -> UnderwayCalls {
        let mut calls = UnderwayCalls::default();
        calls.add(Side::Client, ["caller", "callee", method].map(str::to_owned), 1);
        calls
    }

    /// Returns the face of a target whose last scrape found a call of `Echo`.
    fn face() -> Face {
        Face {
            pid: 1,
            since: SystemTime::now(),
            published: Published::default(),
            stats: Mutex::default(),
            process: Mutex::default(),
            go: Mutex::default(),
            in_flight: Mutex::new((CallsInFlight::always(UnderwayCalls::default()), one_call("Echo"))),
            is_leaving: AtomicBool::new(false),
            subject: None,
        }
    }

    fn shows(calls: &UnderwayCalls, method: &str) -> bool {
        format!("{calls:?}").contains(method)
    }

    #[test]
    fn the_names_of_calls_outlive_a_scrape_as_the_probes_go() {
        let (face, now) = (face(), Instant::now());
        // As if one of the copies were no longer looked at.
        let mut sample = UnderwayCalls::default();
        sample.hide_kitex();
        face.lock_in_flight().0 = CallsInFlight::always(sample);
        face.begin_to_leave();
        let begun = face.begin_underway();
        // The target is down when the scrape ends.
        face.lock_in_flight().0 = CallsInFlight::always(UnderwayCalls::default());
        face.is_leaving.store(false, Ordering::SeqCst);
        assert!(!shows(&face.take_underway(begun, now), "Echo"));
        assert!(shows(&face.take_underway(face.begin_underway(), now), "Echo"), "its series go on");
    }

    #[test]
    fn names_that_are_read_as_the_probes_go_are_not_shown() {
        let (face, now) = (face(), Instant::now());
        face.lock_in_flight().0 = CallsInFlight::always(one_call("Store"));
        let begun = face.begin_underway();
        face.begin_to_leave();
        let calls = face.take_underway(begun, now);
        assert!(calls.is_sample && !shows(&calls, "Store") && !shows(&calls, "Echo"), "{calls:?}");
        assert_eq!(calls.count(), 1);
        // They are not kept either.
        face.lock_in_flight().0 = CallsInFlight::always(UnderwayCalls::default());
        face.is_leaving.store(false, Ordering::SeqCst);
        let calls = face.take_underway(face.begin_underway(), now);
        assert!(shows(&calls, "Echo") && !shows(&calls, "Store"), "{calls:?}");
    }
}
