//! Targets that make a chosen number of calls, and separate executables for them.

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

/// Calls per second over all targets, unless that varies.
const USUAL_RATE: f64 = 10_000.0;
/// Minimum seconds of calls in which new probes settle.
const WARM_UP: f64 = 0.3;
const PATIENCE: Duration = Duration::from_mins(1);

/// The calls that targets make.
#[derive(Clone, Copy)]
pub(super) struct Load {
    /// Per second, over all targets.
    pub(super) rate: f64,
    /// Number of methods, called in turn.
    pub(super) methods: u32,
    /// Each target makes its due calls in a batch, at intervals of at least this many milliseconds.
    pub(super) tick_ms: u16,
}

/// The calls that all targets together have made.
pub(super) struct Made {
    pub(super) calls: u64,
    pub(super) seconds: f64,
    /// The targets' processor time per call, in microseconds.
    pub(super) target_us: f64,
}

impl Load {
    pub(super) const USUAL: Self = Self { rate: USUAL_RATE, methods: 10, tick_ms: 1 };

    /// Returns the seconds of calls in which new probes settle: enough to call each method, since a new label set has
    /// a cost of its own.
    pub(super) fn warm_up(self) -> f64 {
        WARM_UP.max(f64::from(self.methods) / self.rate * 1.1)
    }

    /// Makes all targets call for this many seconds.
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

/// Copies of a file, deleted when dropped.
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
