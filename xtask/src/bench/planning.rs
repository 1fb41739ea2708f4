//! The cost of planning: `monitor-agent inspect` on an executable, with and without the executable in the page cache.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use monitor_tests::{
    agent,
    usage::{self, Usage},
};

use serde_json::{Value, json};

use super::{
    MIB,
    machine::pinned,
    report::{Spread, float, row, table, verdict},
    section::Section,
};
use crate::process::root;

const PATIENCE: Duration = Duration::from_secs(30);
/// The most that planning should take with nothing of the executable in the page cache.
const AIM_MS: f64 = 300.0;
const AIM_MIB: f64 = 60.0;

/// All measurements.
#[derive(Clone, Debug, Default)]
pub(super) struct Planning {
    /// Size of the executable in MiB.
    pub(super) size_mib: f64,
    /// With nothing of the executable in the page cache.
    pub(super) cold: Vec<Plan>,
    /// With everything that planning reads in the page cache.
    pub(super) warm: Vec<Plan>,
}

/// The cost of one plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Plan {
    /// Time from the agent's start to its exit, in milliseconds.
    pub(super) wall_ms: f64,
    /// Its processor time in milliseconds.
    pub(super) cpu_ms: f64,
    /// Read from the disk, in MiB.
    pub(super) read_mib: f64,
    /// Peak resident memory, in MiB.
    pub(super) peak_mib: f64,
}

/// Plans this many times without and with the executable in the page cache, on one processor.
pub(super) fn measure(executable: &Path, core: usize, times: u32) -> Result<Planning> {
    // Uses a copy that no process runs: mapped pages can't be dropped from the page cache.
    let copy = Copy::of(executable)?;
    let mut planning =
        Planning { size_mib: float(fs::metadata(&copy.0)?.len()) / MIB, ..Planning::default() };
    for _ in 0..times {
        usage::forget(&copy.0)?;
        let cold = plan(&copy.0, core)?;
        if cold.read_mib < 1.0 {
            bail!("the executable stays in memory: is {} on a disk?", copy.0.display());
        }
        planning.cold.push(cold);
        planning.warm.push(plan(&copy.0, core)?);
    }
    Ok(planning)
}

impl Planning {
    /// Returns the text and numbers about planning.
    pub(super) fn section(&self) -> Section {
        let Self { size_mib, cold, warm } = self;
        let of = |plans: &[Plan], number: fn(&Plan) -> f64| Spread::of(plans.iter().map(number));
        let line = |what: &str, plans: &[Plan]| {
            let column = |number: fn(&Plan) -> f64| of(plans, number).show(1);
            vec![
                what.to_owned(),
                column(|plan| plan.wall_ms),
                column(|plan| plan.cpu_ms),
                column(|plan| plan.read_mib),
                column(|plan| plan.peak_mib),
            ]
        };
        let head = format!("planning ({size_mib:.1} MiB)");
        let plans = table(&[
            row([&head, "time, ms", "CPU, ms", "read from disk, MiB", "peak memory, MiB"]),
            line("nothing of the executable in memory", cold),
            line("executable in memory", warm),
        ]);
        let (ms, mib) = (of(cold, |plan| plan.wall_ms).median, of(cold, |plan| plan.peak_mib).median);
        let aims = format!(
            "- Aim: at most {AIM_MS} ms ({}) and {AIM_MIB} MiB ({}) with nothing of it in memory.\n",
            verdict(ms, AIM_MS),
            verdict(mib, AIM_MIB)
        );
        let results = |plans: &[Plan]| -> Value {
            json!({
                "wall_ms": of(plans, |plan| plan.wall_ms),
                "cpu_ms": of(plans, |plan| plan.cpu_ms),
                "read_mib": of(plans, |plan| plan.read_mib),
                "peak_mib": of(plans, |plan| plan.peak_mib),
            })
        };
        Section {
            part: "planning",
            blocks: vec![("planning", format!("{plans}\n{aims}"))],
            results: json!({ "size_mib": size_mib, "cold": results(cold), "warm": results(warm) }),
            ..Section::default()
        }
    }
}

fn plan(executable: &Path, core: usize) -> Result<Plan> {
    let mut command = pinned(core, &agent::executable()?);
    let (ended, usage) = usage::run(command.args(["inspect", "--json", "--exe"]).arg(executable), PATIENCE)?;
    if ended.code != Some(0) {
        bail!("`monitor-agent inspect` refuses: {}", ended.stderr);
    }
    let Usage { wall, cpu, peak, read } = usage;
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    Ok(Plan {
        wall_ms: millis(wall),
        cpu_ms: millis(cpu),
        read_mib: float(read) / MIB,
        peak_mib: float(peak) / MIB,
    })
}

/// A copy of a file, deleted when dropped.
struct Copy(PathBuf);

impl Copy {
    fn of(file: &Path) -> Result<Self> {
        let copy = root().join(format!("target/bench-planning-{}", std::process::id()));
        fs::copy(file, &copy).with_context(|| format!("cannot copy {}", file.display()))?;
        Ok(Self(copy))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
