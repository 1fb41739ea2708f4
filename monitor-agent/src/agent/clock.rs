//! From the programs' clock to the time of day.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::bpf::monotonic;

/// Readings tried for one in which nothing came between.
const TRIES: usize = 5;
/// A reading that can't be wrong by more nanoseconds is good enough.
const CLOSE_NS: u64 = 250;

/// How far the time of day is ahead of the programs' clock.
///
/// It is looked at again before each batch of records: an event has the time of day as the clock had it when the event
/// was handed over, some 50 ms later. When the clock is set in between, those events have times by the new clock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    ahead_ns: u64,
    /// By how much it may be wrong.
    error_ns: u64,
}

impl Clock {
    /// Compares the clocks. As long as they run at one pace nothing changes, so that events keep their order.
    pub(super) fn look(&mut self) {
        let now = Self::compare();
        if now.ahead_ns.abs_diff(self.ahead_ns) > self.error_ns + now.error_ns {
            *self = now;
        }
    }

    /// The nanoseconds since 1970 at a moment of the programs' clock.
    pub(super) fn unix_ns(&self, monotonic_ns: u64) -> u64 {
        monotonic_ns.saturating_add(self.ahead_ns)
    }

    /// The nanoseconds since 1970 now.
    pub(super) fn now_ns(&self) -> u64 {
        self.unix_ns(nanos(monotonic()))
    }

    /// The best of a few readings.
    fn compare() -> Self {
        let mut best = Self { ahead_ns: 0, error_ns: u64::MAX };
        for _ in 0..TRIES {
            let before = nanos(monotonic());
            let unix = nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
            let error_ns = nanos(monotonic()).saturating_sub(before) / 2;
            if error_ns < best.error_ns {
                best = Self { ahead_ns: unix.saturating_sub(before + error_ns), error_ns };
            }
            if error_ns < CLOSE_NS {
                break;
            }
        }
        best
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_an_event_is_that_of_the_system_clock() {
        let mut clock = Clock::default();
        clock.look();
        let first = clock.ahead_ns;
        for _ in 0..100 {
            clock.look();
            let unix = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
            let apart = Duration::from_nanos(clock.now_ns()).abs_diff(unix);
            assert!(apart < Duration::from_millis(20), "{apart:?}");
        }
        // It moves only as far as the system clock is steered.
        assert!(first.abs_diff(clock.ahead_ns) < 1_000_000);
    }
}
