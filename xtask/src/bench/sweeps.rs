//! What the agent takes itself as calls, label sets, targets and executables become more: on a target that makes calls
//! without a network, so that its number of calls is a matter of choice.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use monitor_tests::{
    agent::{self, Agent},
    process::Process,
    targets::{Flavour, Program},
};
use serde::Serialize;
use serde_json::json;

use super::{
    MIB, ballast,
    charts::{self, Bar},
    kernel,
    machine::{Cores, cpu_time, pinned},
    report::{Spread, float, ratio, row, show_ratio, table, verdict},
    section::Section,
};
use crate::process::{root, say};

/// Calls a second in all, where that is not what changes.
const USUAL_RATE: f64 = 10_000.0;
/// With room for as many label sets as any sweep has.
const ROOM: [&str; 2] = ["--max-label-sets", "16384"];
/// What changes in a sweep that has ends to compare.
const LABEL_SETS: &str = "label sets";
const OWN_EXECUTABLES: &str = "targets, each its own executable";
const SHARED_EXECUTABLE: &str = "targets that share one executable";
/// Seconds of calls that settle what was just attached.
const WARM_UP: f64 = 0.3;
const PATIENCE: Duration = Duration::from_mins(1);
/// Detaching so many targets takes a while.
const DETACHED_WITHIN: Duration = Duration::from_mins(1);

// What was aimed at.
const AIM_CPU_US: f64 = 0.5;
const AIM_PERCENT: f64 = 5.0;
const AIM_PEAK_MIB: f64 = 60.0;
/// What is meant to be flat may be so many times as much at the far end.
const AIM_FLAT: f64 = 1.25;
/// Whatever ends the agent waits that long.
const AIM_END_MS: f64 = 2_000.0;
/// The rate and the executable that the aims are about.
const AIM_RATE: f64 = 100_000.0;
const AIM_SIZE_MIB: f64 = 30.0;

/// One point of a sweep.
#[derive(Clone, Debug, Serialize)]
struct Point {
    /// What changes.
    what: String,
    /// The number of it.
    number: f64,
    /// Calls a second that were made, over all targets.
    calls_per_second: f64,
    /// Microseconds of the agent's processor time for a call.
    agent_us: f64,
    /// The same as a share of one processor.
    agent_percent: f64,
    /// Microseconds of the targets' processor time for a call, what they do themselves included.
    target_us: f64,
    /// What of that was not there without the agent, just before.
    added_us: f64,
    resident_mib: f64,
    maps_mib: f64,
    /// The most that was resident until it was ready: planning.
    peak_mib: f64,
    /// Milliseconds from its start until it was ready.
    ready_ms: f64,
    /// Milliseconds of loading and attaching, of all targets together.
    attach_ms: f64,
    /// Milliseconds from SIGTERM until it had detached and ended.
    end_ms: f64,
}

/// All sweeps.
pub(super) fn measure(cores: Cores, seconds: u32) -> Result<Section> {
    let executable = Program::Synthetic.build(Flavour::Stripped)?;
    let alone = std::slice::from_ref(&executable);
    let sweep = Sweep { cores, seconds: seconds.into(), args: &[] };
    let mut points = Vec::new();
    for rate in [1_000.0, 10_000.0, 100_000.0] {
        points.push(sweep.point("calls a second", rate, alone, rate, 10)?);
    }
    for methods in [10_u32, 100, 1_000, 10_000] {
        points.push(Sweep { args: &ROOM, ..sweep }.point(
            LABEL_SETS,
            methods.into(),
            alone,
            USUAL_RATE,
            methods,
        )?);
    }
    let copies = Copies::of(&executable, 50)?;
    for count in [1_u32, 10, 50] {
        let count = f64::from(count);
        points.push(sweep.point(OWN_EXECUTABLES, count, copies.first(count), USUAL_RATE, 10)?);
    }
    drop(copies);
    for count in [1_usize, 10, 50] {
        let same = vec![executable.clone(); count];
        points.push(sweep.point(SHARED_EXECUTABLE, float(count as u64), &same, USUAL_RATE, 10)?);
    }
    for executable in [executable.clone(), ballast::build(12_500)?, ballast::build(50_000)?] {
        let size = float(fs::metadata(&executable)?.len()) / MIB;
        points.push(sweep.point("MiB of executable", size.round(), &[executable], USUAL_RATE, 10)?);
    }
    Ok(section(&points))
}

#[derive(Clone, Copy)]
struct Sweep {
    cores: Cores,
    seconds: f64,
    /// More arguments of `run`.
    args: &'static [&'static str],
}

impl Sweep {
    /// Measures an agent that watches a process of each of these executables, with so many calls a second in all.
    fn point(
        self,
        what: &str,
        number: f64,
        executables: &[PathBuf],
        rate: f64,
        methods: u32,
    ) -> Result<Point> {
        let start = |executable: &PathBuf| {
            Process::start_command(pinned(self.cores.server, executable).env("GOMAXPROCS", "1"))
        };
        let mut targets = executables.iter().map(start).collect::<Result<Vec<_>>>()?;
        let measuring = || format!("measuring {number} {what}");
        calls(&mut targets, rate, WARM_UP, methods).with_context(measuring)?;
        let bare = Load::make(&mut targets, rate, self.seconds, methods).with_context(measuring)?;
        let point = self.measure(&mut targets, rate, methods);
        let (agent, point) = point.with_context(measuring)?;
        let begin = Instant::now();
        let status = end(agent)?;
        ensure!(status, "the agent ended badly with {number} {what}");
        let end_ms = begin.elapsed().as_secs_f64() * 1000.0;
        let added_us = point.target_us - bare.target_us;
        let point = Point { what: what.to_owned(), number, added_us, end_ms, ..point };
        say(&format!("{number} {what}: {:.2} µs of the agent's CPU per call", point.agent_us));
        Ok(point)
    }

    fn measure(self, targets: &mut [Process], rate: f64, methods: u32) -> Result<(Agent, Point)> {
        let begin = Instant::now();
        let mut command = pinned(self.cores.others, &agent::executable()?);
        command.args(["run", "--web.listen-address", "127.0.0.1:0"]).args(self.args);
        for target in targets.iter() {
            command.arg("--pid").arg(target.pid().to_string());
        }
        let agent = Agent::start_command(&mut command)?.wait_ready()?;
        let ready_ms = begin.elapsed().as_secs_f64() * 1000.0;
        let peak_mib = peak_mib(agent.pid())?;
        let warm = calls(targets, rate, WARM_UP, methods)?;
        let before = cpu_time(agent.pid())?;
        let Load { made, seconds: elapsed, target_us } = Load::make(targets, rate, self.seconds, methods)?;
        let agent_cpu = cpu_time(agent.pid())?.saturating_sub(before).as_secs_f64();
        let scrape = agent.scrape_settled()?;
        let counted = scrape.sum("kitex_server_throughput", &[]);
        if counted.total_cmp(&float(warm + made)).is_ne() {
            bail!("the agent counted {counted} of {} calls", warm + made);
        }
        let point = Point {
            what: String::new(),
            number: 0.0,
            calls_per_second: float(made) / elapsed,
            agent_us: agent_cpu * 1e6 / float(made),
            agent_percent: agent_cpu / elapsed * 100.0,
            target_us,
            added_us: 0.0,
            resident_mib: scrape.sum("monitor_agent_resident_memory_bytes", &[]) / MIB,
            maps_mib: float(kernel::map_bytes(agent.pid())?) / MIB,
            peak_mib,
            ready_ms,
            attach_ms: scrape.sum("monitor_attach_seconds", &[]) * 1000.0,
            end_ms: 0.0,
        };
        Ok((agent, point))
    }
}

/// Calls that all targets have made together.
struct Load {
    made: u64,
    seconds: f64,
    /// Microseconds of the targets' processor time for a call.
    target_us: f64,
}

impl Load {
    fn make(targets: &mut [Process], rate: f64, seconds: f64, methods: u32) -> Result<Self> {
        let cpu = |targets: &[Process]| {
            targets.iter().map(|target| cpu_time(target.pid())).sum::<Result<Duration>>()
        };
        let (before, begin) = (cpu(targets)?, Instant::now());
        let made = calls(targets, rate, seconds, methods)?;
        let seconds = begin.elapsed().as_secs_f64();
        let target_us = cpu(targets)?.saturating_sub(before).as_secs_f64() * 1e6 / float(made);
        Ok(Self { made, seconds, target_us })
    }
}

/// Has all targets make calls, so many a second together; gives how many there were.
fn calls(targets: &mut [Process], rate: f64, seconds: f64, methods: u32) -> Result<u64> {
    let each = rate / float(targets.len() as u64);
    for target in targets.iter_mut() {
        target.send(&format!("calls {each} {seconds} {methods}"))?;
    }
    let answers = targets.iter_mut().map(|target| {
        let answer = target.answer(PATIENCE)?;
        answer["calls"].as_u64().context("no number of calls")
    });
    answers.sum()
}

/// Ends an agent; whether it ended well.
fn end(mut agent: Agent) -> Result<bool> {
    agent.signal(libc::SIGTERM)?;
    Ok(agent.wait(DETACHED_WITHIN)?.success())
}

/// The most memory that a process has had, in MiB.
fn peak_mib(pid: u32) -> Result<f64> {
    let file = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    let peak: u32 = peak.context("no VmHWM")?.trim().parse()?;
    Ok(f64::from(peak) / 1024.0)
}

/// Copies of a file, which go with their owner.
struct Copies(Vec<PathBuf>);

impl Copies {
    fn of(file: &Path, count: u32) -> Result<Self> {
        let mut copies = Self(Vec::new());
        for number in 0..count {
            let copy = root().join(format!("target/bench-{}-{number}", std::process::id()));
            copies.0.push(copy.clone());
            fs::copy(file, &copy).with_context(|| format!("cannot copy {}", file.display()))?;
        }
        Ok(copies)
    }

    fn first(&self, count: f64) -> &[PathBuf] {
        let count = self.0.iter().zip(1_u32..).take_while(|(_, number)| f64::from(*number) <= count).count();
        &self.0[..count]
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        for copy in &self.0 {
            let _ = fs::remove_file(copy);
        }
    }
}

fn section(points: &[Point]) -> Section {
    let mut rows = vec![row([
        "",
        "calls/s",
        "agent's CPU per call, µs",
        "of one processor, %",
        "targets' CPU per call, µs",
        "of that added, µs",
        "resident, MiB",
        "maps, MiB",
        "peak until ready, MiB",
        "start until ready, ms",
        "loading and attaching, ms",
        "detaching and ending, ms",
    ])];
    rows.extend(points.iter().map(|point| {
        vec![
            format!("{} {}", point.number, point.what),
            format!("{:.0}", point.calls_per_second),
            format!("{:.2}", point.agent_us),
            format!("{:.2}", point.agent_percent),
            format!("{:.2}", point.target_us),
            format!("{:.2}", point.added_us),
            format!("{:.1}", point.resident_mib),
            format!("{:.1}", point.maps_mib),
            format!("{:.1}", point.peak_mib),
            format!("{:.0}", point.ready_ms),
            format!("{:.0}", point.attach_ms),
            format!("{:.0}", point.end_ms),
        ]
    }));
    let text = format!("{}\n{}\n![The agent's own CPU](overhead-agent.svg)\n", table(&rows), aims(points));
    Section {
        part: "sweeps",
        blocks: vec![("sweeps", text)],
        charts: vec![("overhead-agent.svg", chart(points))],
        results: json!(points),
        ..Section::default()
    }
}

fn aims(points: &[Point]) -> String {
    let nearest = |what: &str, to: f64| {
        let of = points.iter().filter(|point| point.what == what);
        of.min_by(|a, b| (a.number - to).abs().total_cmp(&(b.number - to).abs()))
    };
    let mut text = String::new();
    if let Some(point) = nearest("calls a second", AIM_RATE) {
        let _ = writeln!(
            text,
            "- Aim at {AIM_RATE} calls/s: at most {AIM_CPU_US} µs per call ({}) and {AIM_PERCENT} % of one processor ({}).",
            verdict(point.agent_us, AIM_CPU_US),
            verdict(point.agent_percent, AIM_PERCENT)
        );
    }
    if let Some(point) = nearest("MiB of executable", AIM_SIZE_MIB) {
        let _ = writeln!(
            text,
            "- Aim with an executable of {AIM_SIZE_MIB} MiB: at most {AIM_PEAK_MIB} MiB until ready: {}.",
            verdict(point.peak_mib, AIM_PEAK_MIB)
        );
    }
    for what in [LABEL_SETS, OWN_EXECUTABLES] {
        if let Some((few, many)) = ends(points, what) {
            let flat = |few: f64, many: f64| {
                let times = ratio(many, few);
                format!("{} ({})", show_ratio(times), verdict(times.unwrap_or(f64::INFINITY), AIM_FLAT))
            };
            let _ = writeln!(
                text,
                "- Aim with {} {what}: a call takes at most {AIM_FLAT} times what it takes with {}. Added to the targets: {}; \
                 of the agent's own CPU: {}.",
                many.number,
                few.number,
                flat(few.added_us, many.added_us),
                flat(few.agent_us, many.agent_us)
            );
        }
    }
    if let Some((few, many)) = ends(points, SHARED_EXECUTABLE) {
        let _ = writeln!(
            text,
            "- With {} {SHARED_EXECUTABLE} a call takes {} times what it takes with {}, added to the targets, and {} times of \
             the agent's own CPU. No aim: the kernel asks all who watch an executable at each hit.",
            many.number,
            show_ratio(ratio(many.added_us, few.added_us)),
            few.number,
            show_ratio(ratio(many.agent_us, few.agent_us))
        );
    }
    if let Some((few, many)) = ends(points, OWN_EXECUTABLES) {
        let more = many.number - few.number;
        let each = |few: f64, many: f64| (many - few) / more;
        let _ = writeln!(
            text,
            "- Aim with {} {OWN_EXECUTABLES}: at most {AIM_END_MS} ms of detaching and ending: {}. Each target more takes \
             {:.1} MiB of resident memory and {:.1} MiB of maps, which are in the first figure, too: the ring twice.",
            many.number,
            verdict(many.end_ms, AIM_END_MS),
            each(few.resident_mib, many.resident_mib),
            each(few.maps_mib, many.maps_mib)
        );
    }
    text
}

/// The points with the least and the most of what changes.
fn ends<'a>(points: &'a [Point], what: &str) -> Option<(&'a Point, &'a Point)> {
    let of = || points.iter().filter(|point| point.what == what);
    let few = of().min_by(|a, b| a.number.total_cmp(&b.number))?;
    let many = of().max_by(|a, b| a.number.total_cmp(&b.number))?;
    (few.number < many.number).then_some((few, many))
}

fn chart(points: &[Point]) -> String {
    let bars = points.iter().map(|point| Bar {
        label: format!("{} {}", point.number, point.what),
        value: Spread::of([point.agent_us]),
    });
    charts::bars("The agent's own CPU for each call, µs", 2, &bars.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(what: &str, number: f64, agent_us: f64) -> Point {
        Point {
            what: what.to_owned(),
            number,
            calls_per_second: number,
            agent_us,
            agent_percent: number * agent_us / 1e4,
            target_us: 3.0,
            added_us: agent_us,
            resident_mib: 20.0,
            maps_mib: 7.5,
            peak_mib: number,
            ready_ms: 100.0,
            attach_ms: 90.0,
            end_ms: 200.0,
        }
    }

    #[test]
    fn aims_are_about_the_points_that_they_name() {
        let points = [
            point("calls a second", 1_000.0, 2.0),
            point("calls a second", 100_000.0, 0.6),
            point("MiB of executable", 31.0, 1.0),
            point("MiB of executable", 95.0, 1.0),
        ];
        let text = aims(&points);
        assert!(
            text.contains("at most 0.5 µs per call (not met) and 5 % of one processor (not met)"),
            "{text}"
        );
        assert!(text.contains("of 30 MiB: at most 60 MiB until ready: met"), "{text}");
        assert!(!text.contains("label sets"), "{text}");
    }

    #[test]
    fn what_is_flat_is_told_by_the_ends_of_a_sweep() {
        let mut points = vec![
            point(LABEL_SETS, 10.0, 1.0),
            point(LABEL_SETS, 100.0, 9.0),
            point(LABEL_SETS, 1_000.0, 1.2),
            point(OWN_EXECUTABLES, 1.0, 1.0),
            point(OWN_EXECUTABLES, 11.0, 1.5),
        ];
        points[4] = Point { resident_mib: 120.0, end_ms: 2_100.0, ..points[4].clone() };
        let text = aims(&points);
        assert!(
            text.contains("with 10. Added to the targets: 1.20 (met); of the agent's own CPU: 1.20 (met)"),
            "{text}"
        );
        assert!(text.contains("with 1. Added to the targets: 1.50 (not met)"), "{text}");
        assert!(
            text.contains("2000 ms of detaching and ending: not met. Each target more takes 10.0 MiB"),
            "{text}"
        );
    }
}
