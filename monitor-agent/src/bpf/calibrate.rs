//! Measures what a probe hit costs on this machine, on the agent itself: no target pays for it.

use std::{
    arch::naked_asm,
    ffi::c_void,
    io,
    path::Path,
    process,
    time::{Duration, Instant},
};

use monitor_ebpf::name;

use super::{BpfError, Measuring, ProbeLinks, load::load_nothing, object::detach_all, own_code::file_offset};
use crate::{image::CostClass, target::own_return_hazard};

/// The action named in errors.
const ACTION: &str = "measure what a hit of a probe costs";
/// Timed calls. Their median counts, so some may be disturbed.
const CALLS: usize = 501;
/// Batches of calls in which the kernel measures the program's runs. The median of their means counts: a preempted
/// run takes as long as thousands of others, and would distort a single mean.
const BATCHES: usize = 9;
/// Calls in a batch.
const CALLS_OF_BATCH: usize = 56;
/// Words read before each call. A service does other work between two hits, so the kernel's code for a hit is in no
/// near cache.
pub(super) const DISPLACING: usize = (256 << 10) / size_of::<u64>();
/// Words of a cache line.
const LINE: usize = 64 / size_of::<u64>();

/// The kernel's cost of a hit, whatever the program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HitCost {
    /// From the probed instruction to the next, with a program that does nothing.
    pub hit: Duration,
    /// The kernel's measured run time of that program: the cost of measuring.
    pub empty_run: Duration,
}

impl HitCost {
    /// Probes a function of the agent for some 100 ms and calls it some 1,500 times. Refuses a return probe that could
    /// end the agent.
    pub fn measure(class: CostClass, links: ProbeLinks) -> Result<Self, BpfError> {
        let failed = |error| BpfError::from_io(ACTION, error);
        let function = match class {
            CostClass::Emulated | CostClass::Returned => emulated,
            CostClass::SingleStepped => single_stepped,
        };
        let is_return = class == CostClass::Returned;
        if is_return {
            check_return_probe()?;
        }
        let offset = file_offset(function as *const c_void).map_err(failed)?;
        let object = load_nothing(links)?;
        let mut memory = vec![1; DISPLACING];
        let attach = |name| {
            let exe = Path::new("/proc/self/exe");
            object.attach(name, exe, process::id(), &[offset]).map_err(failed)
        };
        let mut attached = Vec::new();
        if is_return {
            // A return probe's function is also probed at its entry, and that hit has a class of its own.
            attached.extend(attach(name::NOTHING)?);
        }
        let name = if is_return { name::NOTHING_RETURNED } else { name::NOTHING };
        let bare = median(call_times(function, &mut memory, CALLS));
        attached.extend(attach(name)?);
        let hit = median(call_times(function, &mut memory, CALLS)).saturating_sub(bare);
        let measuring = Measuring::begin()?;
        let means: Option<Vec<_>> = (0..BATCHES)
            .map(|_| {
                let before = object.run_times(name);
                call_times(function, &mut memory, CALLS_OF_BATCH);
                object.run_times(name).since(before).mean()
            })
            .collect();
        drop(measuring);
        detach_all(attached);
        means
            .map(|means| Self { hit, empty_run: median(means) })
            .ok_or_else(|| failed(io::Error::other("the probe on the agent itself was not hit")))
    }
}

/// Refuses a return probe that could end the agent.
fn check_return_probe() -> Result<(), BpfError> {
    match own_return_hazard().map_err(|error| BpfError::from_io(ACTION, error))? {
        Some(why) => Err(BpfError::Hazard { action: ACTION, why }),
        None => Ok(()),
    }
}

/// Times this many calls, each after other work.
fn call_times(function: extern "C" fn(), memory: &mut [u64], calls: usize) -> Vec<Duration> {
    let call = |_| {
        displace(memory);
        let begin = Instant::now();
        function();
        begin.elapsed()
    };
    (0..calls).map(call).collect()
}

/// Returns the median; zero if there are no times.
pub(super) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Evicts the near caches.
pub(super) fn displace(memory: &mut [u64]) {
    for word in memory.iter_mut().step_by(LINE) {
        *word = std::hint::black_box(*word + 1);
    }
}

/// Begins with an instruction that the kernel emulates.
#[unsafe(naked)]
extern "C" fn emulated() {
    naked_asm!("push rbp", "pop rbp", "ret")
}

/// Begins with an instruction that the kernel single-steps.
#[unsafe(naked)]
extern "C" fn single_stepped() {
    naked_asm!("lea rax, [rdi + 1]", "ret")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_with_a_run_that_was_preempted_changes_nothing() {
        let nanoseconds =
            |means: &[u64]| -> Vec<Duration> { means.iter().copied().map(Duration::from_nanos).collect() };
        let means = [58, 57, 53_600, 58, 60, 59, 59, 107_000, 58];
        assert_eq!(means.len(), BATCHES);
        assert_eq!(median(nanoseconds(&means)), Duration::from_nanos(59));
        assert_eq!(median(nanoseconds(&[7])), Duration::from_nanos(7));
        assert_eq!(median(nanoseconds(&[])), Duration::ZERO);
    }
}
