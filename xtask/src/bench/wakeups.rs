//! Counts a process's wakeups.

use std::{collections::BTreeMap, fs, time::Instant};

use anyhow::{Context as _, Result};

use super::report::float;

/// How often each thread of a process has gone to sleep until a moment; it was woken up as often.
#[derive(Clone, Debug)]
pub(super) struct Sleeps {
    at: Instant,
    /// By thread id.
    threads: BTreeMap<u32, u64>,
}

impl Sleeps {
    /// Reads the numbers until now.
    pub(super) fn now(pid: u32) -> Result<Self> {
        let directory = format!("/proc/{pid}/task");
        let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))?;
        let threads = entries.filter_map(|entry| {
            let entry = entry.ok()?;
            let thread = entry.file_name().to_str()?.parse::<u32>().ok()?;
            // A thread that has ended since the listing is left out, as if it had ended before.
            let status = fs::read_to_string(entry.path().join("status")).ok()?;
            Some((thread, sleeps(&status)?))
        });
        let threads = threads.collect();
        Ok(Self { at: Instant::now(), threads })
    }

    /// Returns the wakeups per second since `then`, over all threads.
    pub(super) fn wakeups_since(&self, then: &Self) -> f64 {
        let seconds = self.at.duration_since(then.at).as_secs_f64();
        float(sleeps_between(&then.threads, &self.threads)) / seconds
    }
}

/// Returns how often the threads that exist at the end have gone to sleep in between, or since their beginning if
/// they are new. Threads that have ended are left out, with their earlier sleeps.
fn sleeps_between(before: &BTreeMap<u32, u64>, after: &BTreeMap<u32, u64>) -> u64 {
    let since = |(thread, sleeps): (&u32, &u64)| {
        // A new thread may reuse the id of one that has ended.
        sleeps.saturating_sub(before.get(thread).copied().unwrap_or(0))
    };
    after.iter().map(since).sum()
}

/// Parses a thread's number of sleeps from the line `voluntary_ctxt_switches:` (proc(5)).
fn sleeps(status: &str) -> Option<u64> {
    let number = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    number.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    /// Returns a thread's status file with this number of sleeps.
    fn status(sleeps: u64) -> String {
        format!(
            "Name:\tworker\nVmRSS:\t 1234 kB\nvoluntary_ctxt_switches:\t{sleeps}\nnonvoluntary_ctxt_switches:\t99\n"
        )
    }

    fn threads(of: &[(u32, u64)]) -> BTreeMap<u32, u64> {
        of.iter().map(|(thread, number)| (*thread, sleeps(&status(*number)).unwrap())).collect()
    }

    #[test]
    fn a_thread_that_was_preempted_did_not_sleep() {
        assert_eq!(sleeps(&status(17)), Some(17));
        assert_eq!(sleeps("nonvoluntary_ctxt_switches:\t99\n"), None);
        assert_eq!(sleeps("voluntary_ctxt_switches:\tmany\n"), None);
    }

    #[test]
    fn all_threads_count_and_none_makes_it_less() {
        let before = threads(&[(1, 100), (2, 5_000), (3, 70)]);
        let between = |after: &[(u32, u64)]| sleeps_between(&before, &threads(after));
        assert_eq!(between(&[(1, 120), (2, 5_004), (3, 70)]), 24);
        // Thread 2 has ended, 4 is new, and 3 reuses the id of one that has ended.
        assert_eq!(between(&[(1, 120), (3, 2), (4, 6)]), 26);
    }

    #[test]
    fn wakeups_are_those_of_a_second() {
        let at = Instant::now();
        let then = Sleeps { at, threads: threads(&[(1, 10), (2, 20)]) };
        let now = Sleeps { at: at + Duration::from_secs(2), threads: threads(&[(1, 50), (2, 80)]) };
        assert!((now.wakeups_since(&then) - 50.0).abs() < 1e-9);
    }

    #[test]
    fn who_sleeps_is_woken_up() {
        const TIMES: u64 = 20;
        let before = Sleeps::now(std::process::id()).unwrap();
        for _ in 0..TIMES {
            thread::sleep(Duration::from_millis(1));
        }
        let after = Sleeps::now(std::process::id()).unwrap();
        assert!(sleeps_between(&before.threads, &after.threads) >= TIMES);
        assert!(Sleeps::now(u32::MAX).is_err());
    }
}
