//! All targets of a run, handled together: what is the same for all of them is done once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{
    WatchConfig,
    prepare::Prepared,
    watch::{Checked, Tools, Watch},
};
use crate::{
    bpf::is_kernel_before,
    descriptors::advice_on_system,
    failure::{Failure, Kind},
    pipeline::{Ladder, Tracer},
    target::{Exits, own_cpu_quota},
};

/// How often rings are passed. In this time, a ring of the default size can hold the records of 1.3 million calls a
/// second.
const PASS_EVERY: Duration = Duration::from_millis(100);
/// The same, while a ring fills.
const PASS_SOON: Duration = Duration::from_millis(25);
/// How often the targets are checked.
pub(super) const CHECK_EVERY: Duration = Duration::from_millis(200);

/// How long programs that were entered before their probe was removed may still run.
const LAST_RECORDS: Duration = Duration::from_millis(10);

/// See the [module](self).
pub(super) struct Watches {
    all: Vec<Watch>,
    /// The clock was first read before any probe was attached: calls that start after that can have a duration.
    tools: Tools,
    /// One for each watch, in the same order.
    exits: Exits,
}

impl Watches {
    /// Attaches to every target. On failure nothing stays attached.
    ///
    /// The kernel's part runs for several targets side by side. Everything is logged in the order of the targets.
    pub(super) fn attach(
        prepared: Vec<Prepared>,
        config: &WatchConfig,
        ladder: &Arc<Ladder>,
    ) -> Result<Self, Failure> {
        let mut tools = Tools::default();
        tools.clock.sync();
        let checked = prepared.into_iter().map(|prepared| Checked::new(prepared, config));
        let checked = checked.collect::<Result<Vec<_>, _>>()?;
        let begun = side_by_side(checked, |checked| checked.attach(config))?;
        let all = begun.into_iter().map(|begun| Watch::new(begun, config, ladder));
        let all = all.collect::<Result<Vec<_>, _>>()?;
        let exits = Exits::of(all.iter().map(Watch::target)).map_err(|error| {
            let advice = advice_on_system(&error);
            Failure::new(Kind::Running, format!("can't wait for the end of the targets: {error}{advice}"))
        })?;
        if all.iter().any(Watch::has_calls) {
            warn_of_quota();
        }
        Ok(Self { all, tools, exits })
    }

    /// Returns the watches, in the order in which the targets were given.
    pub(super) fn all(&self) -> &[Watch] {
        &self.all
    }

    /// Returns the watches, to change them.
    pub(super) fn all_mut(&mut self) -> &mut [Watch] {
        &mut self.all
    }

    /// Returns whether calls may still come in.
    pub(super) fn any_up(&self) -> bool {
        self.all.iter().any(Watch::is_up)
    }

    /// Drains the rings of all targets that are up, for one short turn each.
    pub(super) fn drain(&mut self, tracer: &mut dyn Tracer) {
        for watch in self.all.iter_mut().filter(|watch| watch.is_up()) {
            watch.drain(&mut self.tools, tracer);
        }
        tracer.flush();
    }

    /// Drains the rings that hold many records or were left alone for `leave_alone`: a visit takes about the same time
    /// for one call as for a hundred. Returns the time until the next pass.
    pub(super) fn pass(&mut self, leave_alone: Duration, tracer: &mut dyn Tracer) -> Duration {
        // At every pass, to notice each change of the time of day.
        self.tools.clock.sync();
        let now = Instant::now();
        let mut again = PASS_EVERY;
        for watch in self.all.iter_mut().filter(|watch| watch.is_up()) {
            if watch.is_filling() || watch.left_alone_for(now) >= leave_alone {
                watch.drain(&mut self.tools, tracer);
            }
            if watch.has_been_filling() {
                again = PASS_SOON;
            }
        }
        tracer.flush();
        again
    }

    /// Drains all rings and publishes the result.
    pub(super) fn publish(&mut self, tracer: &mut dyn Tracer) {
        for watch in self.all.iter_mut().filter(|watch| watch.is_up()) {
            watch.publish(&mut self.tools, tracer);
        }
        tracer.flush();
    }

    /// Checks and maintains every target, and notices which have ended.
    pub(super) fn check(&mut self, tracer: &mut dyn Tracer) {
        for ended in self.exits.take() {
            if let Some(watch) = self.all.get_mut(ended) {
                watch.suspect_end();
            }
        }
        let now = Instant::now();
        for watch in &mut self.all {
            watch.check(now, &mut self.tools, tracer);
        }
    }

    /// Removes all probes at once, takes the remaining calls, and logs the result of the run.
    pub(super) fn finish(&mut self, tracer: &mut dyn Tracer) {
        thread::scope(|scope| {
            for watch in self.all.iter_mut().filter(|watch| watch.is_up()) {
                // If there can be no thread, it is done below.
                let _ = thread::Builder::new().spawn_scoped(scope, || watch.detach());
            }
        });
        self.all.iter_mut().for_each(Watch::detach);
        thread::sleep(LAST_RECORDS);
        // Targets that were down before have nothing more to show.
        for watch in self.all.iter_mut().filter(|watch| watch.is_up()) {
            watch.publish(&mut self.tools, tracer);
            watch.leave();
        }
        tracer.flush();
        let sums = self.all.iter().map(Watch::summary);
        let (calls, untimed) = sums.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let targets = match self.all.len() {
            1 => "1 target".to_owned(),
            several => format!("{several} targets"),
        };
        if self.all.iter().any(Watch::has_calls) {
            info!("detached: {calls} calls counted in {targets}, {untimed} of them without a duration");
        } else {
            info!("done: no calls were watched in {targets}");
        }
    }
}

/// Warns if the kernel may stop this process while a target waits for it.
fn warn_of_quota() {
    // Linux 6.18 and later stop a process only where it holds nothing (`throttle_cfs_rq_work` in kernel/sched/fair.c @
    // v6.18).
    let Some(quota) = own_cpu_quota().filter(|_| is_kernel_before((6, 18))) else { return };
    warn!(
        "the agent's CPU time has a quota (cpu.max: {quota}): while it puts probes in place or takes them away the kernel may \
         stop it, and its targets with it; a weight (cpu.weight) in place of the quota does not do that"
    );
}

/// Runs all jobs on a few threads. Returns the results in the jobs' order, or the first failure in that order. Jobs
/// that had not begun when one failed are dropped.
fn side_by_side<T: Send, R: Send, E: Send>(
    jobs: Vec<T>,
    work: impl Fn(T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let threads = AT_ONCE.min(jobs.len());
    let queue = Mutex::new(jobs.into_iter().enumerate());
    let results = Mutex::new(BTreeMap::new());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let keep = |index, result| results.lock().unwrap_or_else(PoisonError::into_inner).insert(index, result);
    let has_failed = AtomicBool::new(false);
    let do_all = || {
        // Checked before a job is taken: a job that was taken is done, so no failure before the first one is missed.
        while !has_failed.load(Ordering::Relaxed) {
            let Some((index, job)) = next() else { break };
            let result = work(job);
            has_failed.fetch_or(result.is_err(), Ordering::Relaxed);
            keep(index, result);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // If there can be no more threads, the others do all jobs: this thread is always there.
            let _ = thread::Builder::new().spawn_scoped(scope, do_all);
        }
        do_all();
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}

/// Number of threads, whatever the number of CPUs: since Linux 6.17 the verifier's memory for each counts towards the
/// memory limit of the agent's cgroup. The kernel waits for part of the time of attaching, so these threads keep more
/// than one CPU busy.
const AT_ONCE: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_keep_their_order_whoever_is_done_first() {
        let work = |job: u64| {
            thread::sleep(Duration::from_millis(10 - job));
            Ok::<_, u64>(job * 2)
        };
        assert_eq!(side_by_side((0..10).collect(), work), Ok((0..10).map(|job| job * 2).collect()));
        assert_eq!(side_by_side(Vec::new(), work), Ok(Vec::new()));
    }

    #[test]
    fn the_first_failure_counts_and_ends_it() {
        let begun = Mutex::new(Vec::new());
        let work = |job: u64| {
            begun.lock().unwrap().push(job);
            // The second failure comes first.
            thread::sleep(Duration::from_millis(if job == 2 { 20 } else { 1 }));
            if job < 2 { Ok(job) } else { Err(job) }
        };
        assert_eq!(side_by_side((0..1_000).collect(), work), Err(2));
        assert!(begun.into_inner().unwrap().len() < 1_000);
    }
}
