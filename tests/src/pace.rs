//! How many calls may be between two numbers of a scrape while calls go on.

use std::time::Instant;

use crate::scrape::{Scrape, whole};

/// Calls in flight are counted at the scrape, all else when the agent looked last: so many seconds before, at most.
const STALE: f64 = 0.25;

/// How fast a target's calls start, by the scrapes of one agent: the most of all times from one to the next, of those that are
/// no shorter than what numbers may be apart.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// The last scrape, and the starts in it.
    last: Option<(Instant, f64)>,
    calls_per_second: Option<f64>,
}

impl Pace {
    /// Takes a scrape in.
    pub fn look(&mut self, scrape: &Scrape, pid: u32) {
        let pid = pid.to_string();
        self.add(Instant::now(), scrape.sum("monitor_starts_total", &[("target", &pid)]));
    }

    fn add(&mut self, now: Instant, starts: f64) {
        let Some((then, before)) = self.last else {
            self.last = Some((now, starts));
            return;
        };
        let seconds = now.saturating_duration_since(then).as_secs_f64();
        if seconds < STALE {
            return;
        }
        self.last = Some((now, starts));
        // Of two scrapes at once the older may come last.
        let rate = (starts - before).max(0.0) / seconds;
        self.calls_per_second = Some(self.calls_per_second.map_or(rate, |most| most.max(rate)));
    }

    /// Calls that may be between two numbers: those of the time between, and as many as are under way at once. Never more than
    /// `most`, which is all that is known before two scrapes have told more.
    #[must_use]
    pub fn slack(&self, callers: u64, most: u64) -> u64 {
        let of_rate = |rate: f64| whole((STALE * rate).ceil()).saturating_add(callers);
        self.calls_per_second.map_or(most, |rate| most.min(of_rate(rate)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_highest_rate_counts_and_no_more_than_is_allowed() {
        let (mut pace, began) = (Pace::default(), Instant::now());
        let at = |tenths: u64| began + Duration::from_millis(100 * tenths);
        pace.add(at(0), 500.0);
        assert_eq!(pace.slack(16, 50_000), 50_000);
        // Too soon to tell.
        pace.add(at(1), 600.0);
        assert_eq!(pace.slack(16, 50_000), 50_000);
        pace.add(at(10), 10_500.0);
        assert_eq!(pace.slack(16, 50_000), 2_516);
        pace.add(at(20), 10_600.0);
        assert_eq!(pace.slack(16, 50_000), 2_516);
        pace.add(at(30), 1_010_600.0);
        assert_eq!(pace.slack(16, 50_000), 50_000);
    }
}
