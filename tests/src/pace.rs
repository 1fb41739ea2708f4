//! Estimates by how many calls two numbers of a scrape may differ while calls go on.

use std::time::Instant;

use crate::scrape::{Scrape, whole};

/// How old numbers may be at a scrape, in seconds. Calls in flight are counted at the scrape, everything else when the
/// agent last refreshed.
const STALE: f64 = 0.25;

/// How fast a target's calls start, according to the scrapes of one agent: the highest rate between two scrapes that
/// are at least `STALE` seconds apart.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// The last scrape, and its number of starts.
    last: Option<(Instant, f64)>,
    calls_per_second: Option<f64>,
}

impl Pace {
    /// Adds a scrape.
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
        // Of two concurrent scrapes, the older one may be added last.
        let rate = (starts - before).max(0.0) / seconds;
        self.calls_per_second = Some(self.calls_per_second.map_or(rate, |most| most.max(rate)));
    }

    /// By how many calls two numbers may differ: by those that start in the time between, and by those in flight at
    /// once. Never more than `most`, which is returned until two scrapes are known.
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
        // Too soon for an estimate.
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
