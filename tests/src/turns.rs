//! Operations that start and end on command, to test how policies and keys pair them, and their durations.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{process::Process, scrape::Scrape};

/// The pause between two commands. Durations then differ by more than a busy machine can cause.
const PAUSE: Duration = Duration::from_millis(40);

/// The bounds of a moment in the target: only the target knows it exactly.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    before: Instant,
    after: Instant,
}

impl Moment {
    /// Returns the bounds, in seconds, of the time from this moment to `end`.
    #[must_use]
    pub fn until(self, end: Self) -> [f64; 2] {
        [end.before - self.after, end.after - self.before].map(|time| time.as_secs_f64())
    }
}

/// Starts or ends an operation, after a pause.
pub fn tell(target: &mut Process, command: &str, id: u64) -> Result<Moment> {
    thread::sleep(PAUSE);
    let before = Instant::now();
    target.command(&format!("{command} {id}"))?;
    Ok(Moment { before, after: Instant::now() })
}

/// Fails unless `total` operations of a spec were counted, as many as `times` have a duration, and the sum of the
/// durations is within the bounds in `times`.
pub fn check(scrape: &Scrape, spec: &str, total: f64, times: &[[f64; 2]]) -> Result<()> {
    let counted = scrape.sum(&format!("{spec}_total"), &[]);
    let all = scrape.histograms(&format!("{spec}_duration_seconds"));
    let measured: f64 = all.values().map(|one| one.count).sum();
    let sum: f64 = all.values().map(|one| one.sum).sum();
    let expected: f64 = times.iter().map(|_| 1.0).sum();
    ensure!(
        (counted - total).abs() < 0.5 && (measured - expected).abs() < 0.5,
        "{counted} counted and {measured} timed, not {total} and {expected}"
    );
    // Durations are truncated to whole microseconds.
    let lowest: f64 = times.iter().map(|[lowest, _]| lowest - 1e-6).sum();
    let highest: f64 = times.iter().map(|[_, highest]| highest).sum();
    ensure!((lowest..=highest).contains(&sum), "they took {sum} s, not {lowest} to {highest} s");
    Ok(())
}

/// How a policy pairs an operation that starts twice and then ends twice under one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The second start replaces the first. The second end is counted without a duration.
    Latest,
    /// The first start stays. The second end is counted without a duration.
    First,
    /// Like `Latest`, but the second end is not counted.
    Once,
    /// The second operation is nested in the first.
    Inside,
}

/// The meaning of each policy of a spec.
pub const MEANINGS: [(&str, Meaning); 4] = [
    ("overwrite", Meaning::Latest),
    ("first_start", Meaning::First),
    ("first_finish", Meaning::Once),
    ("nested", Meaning::Inside),
];

/// Starts an operation twice and ends it twice. Returns how many ends should be counted, and the bounds of the
/// durations.
pub fn twice(target: &mut Process, meaning: Meaning) -> Result<(f64, Vec<[f64; 2]>)> {
    let [first, second] = [tell(target, "begin", 7)?, tell(target, "begin", 7)?];
    let [end, last] = [tell(target, "end", 7)?, tell(target, "end", 7)?];
    Ok(match meaning {
        Meaning::Latest => (2.0, vec![second.until(end)]),
        Meaning::First => (2.0, vec![first.until(end)]),
        Meaning::Once => (1.0, vec![second.until(end)]),
        Meaning::Inside => (2.0, vec![second.until(end), first.until(last)]),
    })
}
