//! Operations that begin and end when they are told to: what policies and keys make of their order, and how long they took.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{process::Process, scrape::Scrape};

/// Between one command and the next, so that durations differ by more than a busy machine makes of them.
const PAUSE: Duration = Duration::from_millis(40);

/// Between which bounds a moment in the target lies, which nobody but the target sees exactly.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    before: Instant,
    after: Instant,
}

impl Moment {
    /// The bounds in seconds of the time from this moment until another.
    #[must_use]
    pub fn until(self, end: Self) -> [f64; 2] {
        [end.before - self.after, end.after - self.before].map(|time| time.as_secs_f64())
    }
}

/// Has an operation begin or end, after a pause.
pub fn tell(target: &mut Process, command: &str, id: u64) -> Result<Moment> {
    thread::sleep(PAUSE);
    let before = Instant::now();
    target.command(&format!("{command} {id}"))?;
    Ok(Moment { before, after: Instant::now() })
}

/// Fails unless so many operations of a spec were counted, and those with a duration took these times together.
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
    // Durations are cut to whole microseconds.
    let lowest: f64 = times.iter().map(|[lowest, _]| lowest - 1e-6).sum();
    let highest: f64 = times.iter().map(|[_, highest]| highest).sum();
    ensure!((lowest..=highest).contains(&sum), "they took {sum} s, not {lowest} to {highest} s");
    Ok(())
}

/// What a policy makes of an operation that begins twice and then ends twice, under one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The second start takes the place of the first; the second end is counted without a duration.
    Latest,
    /// The first start stays; the second end is counted without a duration.
    First,
    /// As the latest, but the second end is none.
    Once,
    /// The second operation is inside the first.
    Inside,
}

/// What each policy of a spec means.
pub const MEANINGS: [(&str, Meaning); 4] = [
    ("overwrite", Meaning::Latest),
    ("first_start", Meaning::First),
    ("first_finish", Meaning::Once),
    ("nested", Meaning::Inside),
];

/// Begins an operation twice and ends it twice. Gives how many ends are to be counted, and the times of those that have one.
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
