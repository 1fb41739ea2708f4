//! All targets of a run, looked after together: what is the same for all of them is asked once.

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

/// How often rings are passed by: the ring of the default size holds what a target does at 1.3 million calls a second in
/// that time.
const PASS_EVERY: Duration = Duration::from_millis(100);
/// The same, as long as one of them fills.
const PASS_SOON: Duration = Duration::from_millis(25);
/// How often the targets are checked.
pub(super) const CHECK_EVERY: Duration = Duration::from_millis(200);

/// How long programs may still be running that were entered before their probe was taken away.
const LAST_RECORDS: Duration = Duration::from_millis(10);

/// See the [module](self).
pub(super) struct Watches {
    all: Vec<Watch>,
    /// Its clock was first read before any probe was in place: calls that start after that can have a duration.
    tools: Tools,
    /// Of all of them, in their order.
    exits: Exits,
}

impl Watches {
    /// Attaches to every target; whatever fails leaves nothing attached.
    ///
    /// The kernel's part is done for several targets side by side, everything that is written to the log in their order.
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

    /// In the order in which they were given.
    pub(super) fn all(&self) -> &[Watch] {
        &self.all
    }

    /// The same, to change them.
    pub(super) fn all_mut(&mut self) -> &mut [Watch] {
        &mut self.all
    }

    /// Whether calls may still come in.
    pub(super) fn any_up(&self) -> bool {
        self.all.iter().any(Watch::is_up)
    }

    /// Takes everything out of the rings of the targets that are there.
    pub(super) fn drain(&mut self, tracer: &mut dyn Tracer) {
        for watch in self.all.iter_mut().filter(|watch| watch.is_up()) {
            watch.drain(&mut self.tools, tracer);
        }
        tracer.flush();
    }

    /// Passes by: drains the rings in which much waits, or which were left alone for so long. What a visit takes is much the
    /// same for one call and for a hundred. Gives how soon to come again.
    pub(super) fn pass(&mut self, leave_alone: Duration, tracer: &mut dyn Tracer) -> Duration {
        // So that it is noticed whenever somebody sets it.
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

    /// Drains all rings and publishes what there is.
    pub(super) fn publish(&mut self, tracer: &mut dyn Tracer) {
        for watch in self.all.iter_mut().filter(|watch| watch.is_up()) {
            watch.publish(&mut self.tools, tracer);
        }
        tracer.flush();
    }

    /// Does for every target what is to be done from time to time, and notices which have ended.
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

    /// Detaches everything at once, takes what is left, and says what it came to.
    pub(super) fn finish(&mut self, tracer: &mut dyn Tracer) {
        thread::scope(|scope| {
            for watch in self.all.iter_mut().filter(|watch| watch.is_up()) {
                // Where there can be no thread it is done below.
                let _ = thread::Builder::new().spawn_scoped(scope, || watch.detach());
            }
        });
        self.all.iter_mut().for_each(Watch::detach);
        thread::sleep(LAST_RECORDS);
        // What was down before has nothing more to show.
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

/// Says so where the kernel may stop this process while a target waits for it.
fn warn_of_quota() {
    // Since then it stops a process only where that holds nothing (`throttle_cfs_rq_work` in kernel/sched/fair.c @ v6.18).
    let Some(quota) = own_cpu_quota().filter(|_| is_kernel_before((6, 18))) else { return };
    warn!(
        "the agent's CPU time has a quota (cpu.max: {quota}): while it puts probes in place or takes them away the kernel may \
         stop it, and its targets with it; a weight (cpu.weight) in place of the quota does not do that"
    );
}

/// Does a job for each of these on a few threads; gives the results in their order, or the first failure in that order.
/// What was not begun when a job failed is left undone.
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
        // Looked at first: a job that was taken is done, so none before the first failure is missed.
        while !has_failed.load(Ordering::Relaxed) {
            let Some((index, job)) = next() else { break };
            let result = work(job);
            has_failed.fetch_or(result.is_err(), Ordering::Relaxed);
            keep(index, result);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Where there can be no more threads the others do it all: this one is there.
            let _ = thread::Builder::new().spawn_scoped(scope, do_all);
        }
        do_all();
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}

/// However many processors there are: since Linux 6.17 what the verifier takes for each counts towards the memory that the
/// agent's cgroup may have. For some of the time of attaching the kernel waits, so these keep more than one processor busy.
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
            // The second to fail is there first.
            thread::sleep(Duration::from_millis(if job == 2 { 20 } else { 1 }));
            if job < 2 { Ok(job) } else { Err(job) }
        };
        assert_eq!(side_by_side((0..1_000).collect(), work), Err(2));
        assert!(begun.into_inner().unwrap().len() < 1_000);
    }
}
