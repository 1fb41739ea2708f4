//! Targets that make as many calls as they are told to, and executables of their own for them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use monitor_tests::process::Process;

use crate::{
    bench::{machine::cpu_time, report::float},
    process::root,
};

/// Calls a second in all, where that is not what changes.
const USUAL_RATE: f64 = 10_000.0;
/// Seconds of calls that settle what was just attached, at least.
const WARM_UP: f64 = 0.3;
const PATIENCE: Duration = Duration::from_mins(1);

/// Calls that targets are to make.
#[derive(Clone, Copy)]
pub(super) struct Load {
    /// A second, over all targets.
    pub(super) rate: f64,
    /// Of so many methods in turn.
    pub(super) methods: u32,
    /// Each target makes those that are due once in so many milliseconds, or more rarely.
    pub(super) tick_ms: u16,
}

/// Calls that all targets have made together.
pub(super) struct Made {
    pub(super) calls: u64,
    pub(super) seconds: f64,
    /// Microseconds of the targets' processor time for a call.
    pub(super) target_us: f64,
}

impl Load {
    pub(super) const USUAL: Self = Self { rate: USUAL_RATE, methods: 10, tick_ms: 1 };

    /// Seconds of calls that settle what was just attached: each method is called, since a label set takes something of
    /// its own when it is met.
    pub(super) fn warm_up(self) -> f64 {
        WARM_UP.max(f64::from(self.methods) / self.rate * 1.1)
    }

    /// Has all targets make calls for so long.
    pub(super) fn make(self, targets: &mut [Process], seconds: f64) -> Result<Made> {
        let cpu = |targets: &[Process]| {
            targets.iter().map(|target| cpu_time(target.pid())).sum::<Result<Duration>>()
        };
        let Self { rate, methods, tick_ms } = self;
        let (before, begin) = (cpu(targets)?, Instant::now());
        let each = rate / float(targets.len() as u64);
        for target in targets.iter_mut() {
            target.send(&format!("calls {each} {seconds} {methods} {tick_ms}"))?;
        }
        let answers = targets.iter_mut().map(|target| {
            let answer = target.answer(PATIENCE)?;
            answer["calls"].as_u64().context("no number of calls")
        });
        let made = answers.sum::<Result<u64>>()?;
        let seconds = begin.elapsed().as_secs_f64();
        let target_us = cpu(targets)?.saturating_sub(before).as_secs_f64() * 1e6 / float(made);
        Ok(Made { calls: made, seconds, target_us })
    }
}

/// Copies of a file, which go with their owner.
pub(super) struct Copies(pub(super) Vec<PathBuf>);

impl Copies {
    pub(super) fn of(file: &Path, count: u32) -> Result<Self> {
        let mut copies = Self(Vec::new());
        for number in 0..count {
            let copy = root().join(format!("target/bench-{}-{number}", std::process::id()));
            copies.0.push(copy.clone());
            fs::copy(file, &copy).with_context(|| format!("cannot copy {}", file.display()))?;
        }
        Ok(copies)
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        for copy in &self.0 {
            let _ = fs::remove_file(copy);
        }
    }
}
