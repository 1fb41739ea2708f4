//! Converts the programs' clock to the time of day.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::bpf::monotonic;

/// How often to try for a reading that nothing interrupted.
const TRIES: usize = 5;
/// A reading with at most this error, in nanoseconds, is good enough.
const CLOSE_NS: u64 = 250;
/// If the distance between the clocks changes by more than this, in nanoseconds, the time of day was set.
const STEP_NS: u64 = 10_000;

/// How far the time of day is ahead of the programs' clock.
///
/// The clocks are compared every 100 ms, and after each batch of records is taken. So an event gets its time of day
/// from the clock at the moment when the event is handed over: some 100 ms later, or five seconds where nobody reads
/// events. If the clock is set in between, these events have times by the new clock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    ahead_ns: u64,
    /// The maximum error of `ahead_ns`.
    error_ns: u64,
    /// The time of the programs' clock since which the time of day was not set. The time before the first comparison is
    /// unknown.
    set_at: u64,
    /// The latest time of day before `set_at`. An earlier one may have been read before the clock was set back.
    latest_ns: u64,
    /// The earliest time of day since the first comparison.
    earliest_ns: u64,
    /// How often the time of day was set, including the first comparison.
    sets: u32,
}

impl Clock {
    /// Compares the clocks. Changes nothing as long as they run at the same rate, so that events keep their order.
    pub(super) fn sync(&mut self) {
        self.take(Self::compare(), nanos(monotonic()));
    }

    fn take(&mut self, now: Self, now_ns: u64) {
        let apart = now.ahead_ns.abs_diff(self.ahead_ns);
        if apart <= self.error_ns + now.error_ns {
            return;
        }
        if apart > STEP_NS {
            self.latest_ns = self.latest_ns.max(self.unix_ns(now_ns));
            self.set_at = now_ns;
            let unix_ns = now.unix_ns(now_ns);
            self.earliest_ns = if self.sets == 0 { unix_ns } else { self.earliest_ns.min(unix_ns) };
            self.sets = self.sets.saturating_add(1);
        }
        (self.ahead_ns, self.error_ns) = (now.ahead_ns, now.error_ns);
    }

    /// Returns the time from a time of day to a time of the programs' clock, both before the last comparison. `None` if
    /// the time of day may have been set in between.
    pub(super) fn between(&self, unix_ns: u64, monotonic_ns: u64) -> Option<Duration> {
        let began_ns = unix_ns.checked_sub(self.ahead_ns)?;
        if began_ns < self.set_at || unix_ns < self.latest_ns {
            return None;
        }
        monotonic_ns.checked_sub(began_ns).map(Duration::from_nanos)
    }

    /// Returns whether a time of day was before the first comparison, or before the only time the clock was set since:
    /// calls that begin now are not like it. A clock that was set more than once may be set again, and calls that begin
    /// now may be before that.
    pub(super) fn is_past(&self, unix_ns: u64) -> bool {
        let was_set_once = self.sets <= 2;
        unix_ns < self.earliest_ns || was_set_once && unix_ns.saturating_sub(self.ahead_ns) < self.set_at
    }

    /// Returns the nanoseconds since 1970 at a time of the programs' clock.
    pub(super) fn unix_ns(&self, monotonic_ns: u64) -> u64 {
        monotonic_ns.saturating_add(self.ahead_ns)
    }

    /// Returns the nanoseconds since 1970 now.
    pub(super) fn now_ns(&self) -> u64 {
        self.unix_ns(nanos(monotonic()))
    }

    /// Returns the most precise of a few readings.
    fn compare() -> Self {
        let mut best = Self { error_ns: u64::MAX, ..Self::default() };
        for _ in 0..TRIES {
            let before = nanos(monotonic());
            let unix = nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
            let error_ns = nanos(monotonic()).saturating_sub(before) / 2;
            if error_ns < best.error_ns {
                let ahead_ns = unix.saturating_sub(before + error_ns);
                best = Self { ahead_ns, error_ns, ..Self::default() };
            }
            if error_ns < CLOSE_NS {
                break;
            }
        }
        best
    }
}

#[cfg(test)]
impl Clock {
    /// Sets the distance between the clocks, as if compared at this time of the programs' clock.
    pub(super) fn sync_at(&mut self, ahead_ns: u64, now_ns: u64) {
        self.take(Self { ahead_ns, ..Self::default() }, now_ns);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_time_of_an_event_is_that_of_the_system_clock() {
        let mut clock = Clock::default();
        clock.sync();
        let first = clock.ahead_ns;
        for _ in 0..100 {
            clock.sync();
            let unix = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
            let apart = Duration::from_nanos(clock.now_ns()).abs_diff(unix);
            assert!(apart < Duration::from_millis(20), "{apart:?}");
        }
        // Changes only as far as the system clock is slewed.
        assert!(first.abs_diff(clock.ahead_ns) < 1_000_000);
    }

    #[test]
    fn no_time_is_taken_across_a_moment_at_which_the_clock_was_set() {
        let at = |ahead_ns| Clock { ahead_ns, error_ns: 100, ..Clock::default() };
        let begun = |clock: &Clock, unix_ns| clock.between(unix_ns, 100 * SECOND).map(|time| time.as_secs());
        let mut clock = Clock::default();
        clock.take(at(1_000 * SECOND), SECOND);
        assert_eq!(begun(&clock, 1_000 * SECOND), None, "before the first comparison");
        assert!(clock.is_past(1_000 * SECOND) && clock.is_past(1), "before the first comparison");
        assert_eq!(begun(&clock, 1_003 * SECOND), Some(97));
        assert_eq!(begun(&clock, 1_101 * SECOND), None, "after its end");
        assert!(!clock.is_past(1_003 * SECOND) && !clock.is_past(1_101 * SECOND));
        // Within the error of a reading, and slewed.
        clock.take(at(1_000 * SECOND + 5_000), 50 * SECOND);
        assert_eq!(begun(&clock, 1_003 * SECOND), Some(97));
        // Set forward by a minute at 50 s: a call that began at 40 s seems to have begun before the first comparison.
        clock.take(at(1_060 * SECOND), 50 * SECOND);
        assert_eq!(begun(&clock, 1_040 * SECOND), None);
        assert_eq!(begun(&clock, 1_109 * SECOND), None);
        assert_eq!(begun(&clock, 1_110 * SECOND), Some(50));
        assert!(clock.is_past(1_109 * SECOND) && !clock.is_past(1_110 * SECOND));
        // Set back by twenty seconds at 60 s: a call that began at 55 s seems to have begun at 75 s.
        clock.take(at(1_040 * SECOND), 60 * SECOND);
        assert_eq!(begun(&clock, 1_115 * SECOND), None);
        assert!(!clock.is_past(1_115 * SECOND), "those that begin now are like it");
        assert!(!clock.is_past(1_099 * SECOND), "set twice, it may be so again");
        assert!(clock.is_past(1_000 * SECOND), "before the first comparison");
        assert_eq!(begun(&clock, 1_120 * SECOND), Some(20));
    }

    #[test]
    fn a_clock_that_is_set_back_and_forward_again_is_as_before() {
        const HOUR: u64 = 3_600 * SECOND;
        let took = |clock: &Clock, began_ns, ended_ns| {
            clock.between(clock.unix_ns(began_ns), ended_ns).map(|time| time.as_secs())
        };
        let mut clock = Clock::default();
        clock.sync_at(10 * HOUR, SECOND);
        clock.sync_at(9 * HOUR, 60 * SECOND);
        // For an hour, the clock shows times of day that may have occurred before.
        assert_eq!(took(&clock, 65 * SECOND, 70 * SECOND), None);
        assert_eq!(took(&clock, HOUR + 59 * SECOND, HOUR + 80 * SECOND), None);
        assert_eq!(took(&clock, HOUR + 61 * SECOND, HOUR + 80 * SECOND), Some(19));
        clock.sync_at(10 * HOUR, 70 * SECOND);
        assert_eq!(took(&clock, 65 * SECOND, 80 * SECOND), None, "before it was set");
        assert_eq!(took(&clock, 75 * SECOND, 80 * SECOND), Some(5));
        // Set back again, by half an hour.
        clock.sync_at(9 * HOUR + HOUR / 2, 90 * SECOND);
        assert_eq!(took(&clock, HOUR / 2, HOUR), None);
        assert_eq!(took(&clock, HOUR / 2 + 91 * SECOND, HOUR), Some(1_709));
    }

    /// A clock that is set back twice is past all earlier times of day only when it has caught up with both.
    #[test]
    fn all_times_of_day_that_ever_were_count() {
        let mut clock = Clock::default();
        clock.sync_at(1_000 * SECOND, SECOND);
        clock.sync_at(900 * SECOND, 10 * SECOND);
        clock.sync_at(890 * SECOND, 20 * SECOND);
        let took = |began_ns| clock.between(clock.unix_ns(began_ns), 200 * SECOND).map(|time| time.as_secs());
        assert_eq!(took(31 * SECOND), None, "the second has passed");
        assert_eq!(took(119 * SECOND), None);
        assert_eq!(took(121 * SECOND), Some(79));
    }
}
