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

/// What readers see of a watch. Shared with the server. Nobody waits for the target's memory with one of its locks held: the
/// loop that empties the rings takes them, too.
#[derive(Debug)]
pub(super) struct Face {
    /// The target's pid.
    pub(super) pid: u32,
    /// Since when it is watched.
    pub(super) since: SystemTime,
    /// The calls.
    pub(super) published: Published,
    /// All else.
    stats: Mutex<TargetStats>,
    /// The process in `/proc`; `None` once it has ended, or if it is not asked for.
    pub(super) process: Mutex<Option<ProcessReader>>,
    /// Its Go runtime, if it is asked for.
    go: Mutex<Option<GoRuntime>>,
    /// Its calls in flight, and those of the last scrape.
    in_flight: Mutex<(CallsInFlight, UnderwayCalls)>,
    /// Its probes are taken away, those at finishes first: there seem to be more and more calls in flight. Outside the lock, which
    /// who takes them away must not wait for.
    is_leaving: AtomicBool,
    /// What OpenTelemetry's view of it needs beside, if that is asked for.
    pub(super) subject: Option<Subject>,
}

impl Face {
    /// What readers see from now on of a target that is watched since then.
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

    /// Begins to read what the Go runtime says now, if it is asked for and can be read.
    pub(super) fn begin_go(&self) -> Option<Awaited<Read>> {
        self.lock_go().as_ref()?.begin()
    }

    /// What it said, if that has come until then.
    pub(super) fn take_go(&self, begun: Option<Awaited<Read>>, until: Instant) -> Option<Readings> {
        let read = begun?.take(until);
        self.lock_go().as_mut()?.take_over(read)
    }

    /// The Go runtime, if it is asked for.
    pub(super) fn lock_go(&self) -> MutexGuard<'_, Option<GoRuntime>> {
        self.go.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The numbers, to read or to change.
    pub(super) fn lock_stats(&self) -> MutexGuard<'_, TargetStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The calls in flight now; begins to read their names.
    pub(super) fn begin_underway(&self) -> Unnamed {
        self.lock_in_flight().0.begin(&self.is_leaving)
    }

    /// The same with the names that have come until then.
    pub(super) fn take_underway(&self, begun: Unnamed, until: Instant) -> UnderwayCalls {
        let was_leaving = begun.was_leaving;
        let mut calls = begun.named(until);
        // Ends are not seen then: names that were read may be another call's, and of those that have none now it is not known
        // whether they have calls. The earlier ones stay, for a target that has ended.
        if was_leaving || self.is_leaving.load(Ordering::SeqCst) {
            calls.hide_kitex();
            return calls;
        }
        let mut in_flight = self.lock_in_flight();
        calls.keep_names(&in_flight.1);
        in_flight.1.clone_from(&calls);
        calls
    }

    /// Its probes are taken away from now on.
    pub(super) fn begin_to_leave(&self) {
        self.is_leaving.store(true, Ordering::SeqCst);
    }

    /// It has ended: what is in flight never finishes, and is counted for good.
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

    /// A call of this method.
    fn one_call(method: &str) -> UnderwayCalls {
        let mut calls = UnderwayCalls::default();
        calls.add(Side::Client, ["caller", "callee", method].map(str::to_owned), 1);
        calls
    }

    /// Of a target whose last scrape has found a call of `Echo`.
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
        // As where one of the copies is not looked at any more.
        let mut sample = UnderwayCalls::default();
        sample.hide_kitex();
        face.lock_in_flight().0 = CallsInFlight::always(sample);
        face.begin_to_leave();
        let begun = face.begin_underway();
        // The target is down by the time the scrape is over.
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
        // Nor are they kept.
        face.lock_in_flight().0 = CallsInFlight::always(UnderwayCalls::default());
        face.is_leaving.store(false, Ordering::SeqCst);
        let calls = face.take_underway(face.begin_underway(), now);
        assert!(shows(&calls, "Echo") && !shows(&calls, "Store"), "{calls:?}");
    }
}
