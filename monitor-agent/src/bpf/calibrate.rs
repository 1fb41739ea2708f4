//! What a hit of a probe costs on this machine, measured on the agent itself: no target pays for it.

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

/// What was tried, in errors.
const ACTION: &str = "measure what a hit of a probe costs";
/// Calls that are timed; their median counts, so that some may be disturbed.
const CALLS: usize = 501;
/// Words that are read before each call: a service does other work between two hits, and the kernel's way to the
/// program then lies in no near cache.
const DISPLACING: usize = (256 << 10) / size_of::<u64>();
/// Words of a cache line.
const LINE: usize = 64 / size_of::<u64>();

/// What the kernel takes for a hit, whatever its program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HitCost {
    /// From the probed instruction to the next, with a program that does nothing.
    pub hit: Duration,
    /// What the kernel measures as the run time of that program: of the measuring itself.
    pub empty_run: Duration,
}

impl HitCost {
    /// Probes a function of the agent's own for some 100 ms, and calls it some hundred times. Not with a return probe where
    /// that could end the agent.
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
            // Its function is probed at its entry as well, and that hit has a class of its own.
            attached.extend(attach(name::NOTHING)?);
        }
        let name = if is_return { name::NOTHING_RETURNED } else { name::NOTHING };
        let bare = call_time(function, &mut memory);
        attached.extend(attach(name)?);
        let hit = call_time(function, &mut memory).saturating_sub(bare);
        let before = object.run_times(name);
        let measuring = Measuring::begin()?;
        call_time(function, &mut memory);
        drop(measuring);
        let empty_run = object.run_times(name).since(before).mean();
        detach_all(attached);
        empty_run
            .map(|empty_run| Self { hit, empty_run })
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

/// Time of one call among other work, the median of many.
fn call_time(function: extern "C" fn(), memory: &mut [u64]) -> Duration {
    let mut times: Vec<Duration> = (0..CALLS)
        .map(|_| {
            displace(memory);
            let begin = Instant::now();
            function();
            begin.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[CALLS / 2]
}

/// Takes the near caches for other data.
fn displace(memory: &mut [u64]) {
    for word in memory.iter_mut().step_by(LINE) {
        *word = std::hint::black_box(*word + 1);
    }
}

/// Begins with an instruction that the kernel emulates.
#[unsafe(naked)]
extern "C" fn emulated() {
    naked_asm!("push rbp", "pop rbp", "ret")
}

/// Begins with one that it single-steps.
#[unsafe(naked)]
extern "C" fn single_stepped() {
    naked_asm!("lea rax, [rdi + 1]", "ret")
}
