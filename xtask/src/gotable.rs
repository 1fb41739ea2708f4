//! The table of the Go runtime's field offsets, from the DWARF of programs built by real tool chains.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    process::{cargo, output, root, run, say, shown},
    setup::{self, Need},
    test::Counts,
};

/// One bug-fix release of each series, in order of age. If a fix moved fields within a series, both the first release
/// and that fix are listed. Other releases use the nearest earlier one, and newer ones use the newest: the agent
/// checks what it reads, and a program's own DWARF overrides the table.
const RELEASES: [&str; 12] = [
    "go1.18.10",
    "go1.19.13",
    "go1.20.14",
    "go1.21.13",
    "go1.22.12",
    "go1.23.0",
    "go1.23.12",
    "go1.24.0",
    "go1.24.6",
    "go1.25.5",
    "go1.26.8",
    "go1.27.3",
];
const PROCESSORS: [&str; 2] = ["amd64", "arm64"];
const TABLE: &str = "monitor-agent/src/goruntime/layouts.json";

/// The fields that the agent reads: see its `Layout`.
const PATHS: &str = "\
cpuStats#
g.goid
g.m
gcCPULimiter.lastEnabledCycle
gcCleanups.executed
gcCleanups.queued
gcController#
gcController.gcPercent
gcController.gcPercentHeapGoal
gcController.globalsScan
gcController.heapFree
gcController.heapGoal
gcController.heapInUse
gcController.heapMarked
gcController.heapMinimum
gcController.heapScan
gcController.lastStackScan
gcController.mappedReady
gcController.memoryLimit
gcController.sweepDistMinTrigger
gcController.totalAlloc
gcController.totalFree
gcController.triggered
heapStatsDelta#
heapStatsDelta.committed
heapStatsDelta.inHeap
heapStatsDelta.inPtrScalarBits
heapStatsDelta.inStacks
heapStatsDelta.inWorkBufs
heapStatsDelta.largeAlloc
heapStatsDelta.largeAllocCount
heapStatsDelta.largeFree
heapStatsDelta.largeFreeCount
heapStatsDelta.released
heapStatsDelta.smallAllocCount
heapStatsDelta.smallAllocCount#
heapStatsDelta.smallFreeCount
heapStatsDelta.tinyAllocCount
m.alllink
m.g0
m.mLockProfile.waitTime
m.ncgocall
memstats#
memstats.buckhash_sys
memstats.gcMiscSys
memstats.gcPauseDist
memstats.heapStats.gen
memstats.heapStats.stats
memstats.heap_inuse
memstats.last_gc_unix
memstats.mcache_sys
memstats.mspan_sys
memstats.numforcedgc
memstats.numgc
memstats.other_sys
memstats.pause_ns
memstats.pause_total_ns
memstats.stacks_sys
mheap_.cachealloc.inuse
mheap_.cachealloc.stat
mheap_.spanalloc.inuse
mheap_.spanalloc.stat
p.cleanupsQueued
p.gFree.n
p.gFree.size
p.goroutinesCreated
p.id
sched#
sched.gFree.n
sched.gFree.noStack.size
sched.gFree.stack.size
sched.goroutinesCreated
sched.maxmcount
sched.mnext
sched.ngsys
sched.nmfreed
sched.stwStoppingTimeGC
sched.stwStoppingTimeOther
sched.stwTotalTimeGC
sched.stwTotalTimeOther
sched.timeToRun
sched.totalMutexWaitTime
sched.totalRuntimeLockWaitTime
timeHistogram.overflow
timeHistogram.underflow
work.cpuStats
work.markDoneSema
work.startSema
";

/// Offsets of one release, by path.
type Offsets = BTreeMap<String, u32>;

/// Writes the table.
pub(crate) fn build() -> Result<()> {
    fs::write(root().join(TABLE), table()?).with_context(|| format!("cannot write {TABLE}"))
}

/// Fails unless the repository's table matches the tool chains, and what the agent reads with it matches what
/// programs of all these releases report about themselves.
pub(crate) fn check() -> Result<()> {
    setup::agent_and_go("gotable --check")?;
    let kept = fs::read_to_string(root().join(TABLE)).with_context(|| format!("cannot read {TABLE}"))?;
    ensure!(kept == table()?, "{TABLE} is not what the tool chains give: run `cargo xtask gotable`");
    say(&format!("{TABLE} is what the tool chains give; comparing values"));
    let begin = Instant::now();
    let mut tests = cargo();
    tests
        .args(["test", "--locked", "--package", "monitor-tests", "--test", "end_to_end"])
        .args(["--", "--test-threads=1"])
        .env("MONITOR_ALL_GO", "1");
    let mut counts = Counts::default();
    counts.run(&mut tests, &["goruntime::".to_owned()])?;
    counts.verdict(begin)
}

fn table() -> Result<String> {
    setup::packages(&[Need::Targets])?;
    let go = setup::go()?;
    let scratch = root().join("target/gotable");
    fs::create_dir_all(&scratch)?;
    let reader = scratch.join("offsets");
    run(Command::new(&go).args(["build", "-o"]).arg(&reader).arg(".").current_dir(targets("offsets")))?;
    let mut text = format!("{{\n\"releases\": {}", serde_json::to_string(&RELEASES)?);
    for processor in PROCESSORS {
        let mut columns = Vec::new();
        for release in RELEASES {
            say(&format!("{release}, {processor}"));
            columns.push(offsets(&go, &reader, &scratch, release, processor)?);
        }
        write!(text, ",\n\"{processor}\": {{{}\n}}", rows(&columns)?)?;
    }
    text.push_str("\n}\n");
    Ok(text)
}

/// Returns one line for each path.
fn rows(columns: &[Offsets]) -> Result<String> {
    let mut lines = Vec::new();
    for path in PATHS.lines() {
        let row: Vec<_> = columns.iter().map(|column| column.get(path)).collect();
        ensure!(row.iter().any(Option::is_some), "no release has {path}");
        lines.push(format!("\n{}: {}", serde_json::to_string(path)?, serde_json::to_string(&row)?));
    }
    Ok(lines.join(","))
}

/// Builds the program that uses every needed part of the runtime, and reads the offsets from its DWARF.
fn offsets(go: &Path, reader: &Path, scratch: &Path, release: &str, processor: &str) -> Result<Offsets> {
    let program = scratch.join(format!("{release}-{processor}"));
    output(
        Command::new(go)
            .args(["build", "-trimpath", "-buildvcs=false", "-o"])
            .arg(&program)
            .arg(".")
            .current_dir(targets("runtime"))
            .env("GOTOOLCHAIN", release)
            .env("GOARCH", processor)
            .env("CGO_ENABLED", "0"),
    )?;
    let mut command = Command::new(reader);
    let mut child = command.arg(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(PATHS.as_bytes())?;
    let answer = child.wait_with_output()?;
    if !answer.status.success() {
        bail!("{} failed", shown(&command));
    }
    serde_json::from_slice(&answer.stdout).context("the offsets")
}

fn targets(name: &str) -> PathBuf {
    root().join("tests/targets").join(name)
}
