//! What the agent takes itself as calls, label sets, targets and executables become more: on a target that makes calls
//! without a network, so that its number of calls is a matter of choice.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
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
    empty::Empty,
    kernel,
    machine::{Cores, cpu_time, pinned},
    report::{Spread, float, ratio, row, show_ratio, table, verdict},
    section::Section,
    stage::sites,
};
use crate::process::{root, say};

/// Calls a second in all, where that is not what changes.
const USUAL_RATE: f64 = 10_000.0;
/// With room for as many label sets as any sweep has.
const ROOM: [&str; 2] = ["--max-label-sets", "16384"];
/// What changes in a sweep that has ends to compare.
const LABEL_SETS: &str = "label sets";
const OWN_EXECUTABLES: &str = "targets, each its own executable";
const OWN_AT_ONCE: &str = "targets, each its own executable, which wake up as often in all as one";
const SHARED_EXECUTABLE: &str = "targets that share one executable";
/// Seconds of calls that settle what was just attached, at least.
const WARM_UP: f64 = 0.3;
/// An agent is steady when it has taken as much in so many seconds as in as many before, but for this part of it.
const STEADY_SECONDS: f64 = 2.0;
const STEADY_WITHIN: f64 = 0.1;
/// After so many such times it is measured as it is.
const STEADY_AFTER: usize = 10;
/// Seconds in which it is measured, at least: all that it does by itself now and then it does once in so many.
const AGENT_SECONDS: f64 = 10.0;
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

/// What one round has found of a point of a sweep that is meant to be flat.
#[derive(Clone, Copy, Debug)]
struct Costs {
    /// Microseconds of the targets' processor time for a call that empty programs add, and that the agent adds.
    empty_us: f64,
    agent_us: f64,
}

/// A point of a sweep that is meant to be flat, of several rounds.
#[derive(Clone, Debug, Serialize)]
struct Share {
    what: String,
    number: f64,
    /// What empty programs at the same sites add: that is the kernel's and the machine's.
    empty_us: Spread,
    /// What the agent adds.
    added_us: Spread,
    /// What of that is not there with empty programs.
    beyond_us: Spread,
    /// Microseconds of the agent's own processor time for a call.
    own_us: Spread,
}

/// All points.
#[derive(Debug, Default, Serialize)]
struct Points {
    points: Vec<Point>,
    shares: Vec<Share>,
}

/// One sweep: what changes in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Which {
    /// Calls a second
    Calls,
    /// Label sets
    LabelSets,
    /// Targets with executables of their own
    Own,
    /// The same, which wake up as often in all as one
    OwnAtOnce,
    /// Targets that share one executable
    Shared,
    /// The size of the executable
    Size,
}

/// These sweeps, or all of them; of those that are meant to be flat so many rounds.
pub(super) fn measure(cores: Cores, seconds: u32, rounds: u32, which: &[Which]) -> Result<Section> {
    let is_wanted = |one| which.is_empty() || which.contains(&one);
    let executable = Program::Synthetic.build(Flavour::Stripped)?;
    let sweep = Sweep { cores, seconds: seconds.into(), args: &[] };
    let mut found = Points::default();
    if is_wanted(Which::Calls) {
        let mut alone = sweep.start(std::slice::from_ref(&executable))?;
        for rate in [1_000.0, 10_000.0, 100_000.0] {
            let load = Load { rate, ..Load::USUAL };
            found.points.push(sweep.point("calls a second", rate, &mut alone, load)?);
        }
    }
    if is_wanted(Which::LabelSets) {
        let with_room = Sweep { args: &ROOM, ..sweep };
        let label_sets = [10, 1_000, 10_000];
        let label_sets = label_sets.map(|methods| (1, Load { methods, ..Load::USUAL }, f64::from(methods)));
        let mut alone = sweep.start(std::slice::from_ref(&executable))?;
        with_room.flat(&mut found, LABEL_SETS, &mut alone, &label_sets, rounds)?;
    }

    let many = [1_u16, 10, 50];
    let in_all = many.map(|count| (count.into(), Load::USUAL, f64::from(count)));
    // Each target makes its calls at once and then sleeps, so that all of them wake up as often as one alone does.
    let at_once = |count| Load { tick_ms: count, ..Load::USUAL };
    let at_once = [1, 50].map(|count| (count.into(), at_once(count), f64::from(count)));
    if is_wanted(Which::Own) || is_wanted(Which::OwnAtOnce) {
        let copies = Copies::of(&executable, 50)?;
        let mut own = sweep.start(&copies.0)?;
        if is_wanted(Which::Own) {
            sweep.flat(&mut found, OWN_EXECUTABLES, &mut own, &in_all, rounds)?;
        }
        if is_wanted(Which::OwnAtOnce) {
            sweep.flat(&mut found, OWN_AT_ONCE, &mut own, &at_once, rounds)?;
        }
    }
    if is_wanted(Which::Shared) {
        let mut shared = sweep.start(&vec![executable.clone(); 50])?;
        sweep.flat(&mut found, SHARED_EXECUTABLE, &mut shared, &in_all, rounds)?;
    }

    if is_wanted(Which::Size) {
        for executable in [executable.clone(), ballast::build(12_500)?, ballast::build(50_000)?] {
            let size = float(fs::metadata(&executable)?.len()) / MIB;
            let mut target = sweep.start(&[executable])?;
            found.points.push(sweep.point("MiB of executable", size.round(), &mut target, Load::USUAL)?);
        }
    }
    Ok(section(&found))
}

#[derive(Clone, Copy)]
struct Sweep {
    cores: Cores,
    seconds: f64,
    /// More arguments of `run`.
    args: &'static [&'static str],
}

impl Sweep {
    /// A process of each of these executables.
    fn start(self, executables: &[PathBuf]) -> Result<Vec<Process>> {
        let start = |executable: &PathBuf| {
            Process::start_command(pinned(self.cores.server, executable).env("GOMAXPROCS", "1"))
        };
        executables.iter().map(start).collect()
    }

    /// Measures an agent that watches these targets.
    fn point(self, what: &str, number: f64, targets: &mut [Process], load: Load) -> Result<Point> {
        let measuring = || format!("measuring {number} {what}");
        let bare = self.bare(targets, load).with_context(measuring)?;
        let (agent, point) = self.measure(targets, load).with_context(measuring)?;
        let begin = Instant::now();
        let status = end(agent)?;
        ensure!(status, "the agent ended badly with {number} {what}");
        let end_ms = begin.elapsed().as_secs_f64() * 1000.0;
        let added_us = point.target_us - bare;
        let point = Point { what: what.to_owned(), number, added_us, end_ms, ..point };
        say(&format!("{number} {what}: {:.2} µs of the agent's CPU per call", point.agent_us));
        Ok(point)
    }

    /// Measures each point with empty programs and with the agent, in so many rounds. A point is a number of targets, a
    /// load, and the number that changes.
    fn flat(
        self,
        found: &mut Points,
        what: &str,
        targets: &mut [Process],
        points: &[(usize, Load, f64)],
        rounds: u32,
    ) -> Result<()> {
        let mut samples = vec![Vec::new(); points.len()];
        for round in 0..rounds {
            for ((count, load, number), samples) in points.iter().zip(&mut samples) {
                let targets = &mut targets[..*count];
                let measuring = || format!("measuring {number} {what}");
                // Whoever is first in a round is second in the next.
                let before = if round % 2 == 0 { Some(self.empty(targets, *load)) } else { None };
                let point = self.point(what, *number, targets, *load)?;
                let empty_us =
                    before.unwrap_or_else(|| self.empty(targets, *load)).with_context(measuring)?;
                samples.push((Costs { empty_us, agent_us: point.added_us }, point));
            }
        }
        for ((_, _, number), samples) in points.iter().zip(samples) {
            let of = |of: fn(&(Costs, Point)) -> f64| Spread::of(samples.iter().map(of));
            found.shares.push(Share {
                what: what.to_owned(),
                number: *number,
                empty_us: of(|(costs, _)| costs.empty_us),
                added_us: of(|(costs, _)| costs.agent_us),
                beyond_us: of(|(costs, _)| costs.agent_us - costs.empty_us),
                own_us: of(|(_, point)| point.agent_us),
            });
            let points: Vec<_> = samples.into_iter().map(|(_, point)| point).collect();
            found.points.extend(Point::median(&points));
        }
        Ok(())
    }

    /// Microseconds of the targets' processor time for a call, with nothing attached.
    fn bare(self, targets: &mut [Process], load: Load) -> Result<f64> {
        load.make(targets, load.warm_up())?;
        Ok(load.make(targets, self.seconds)?.target_us)
    }

    /// What empty programs add to that, at the sites where the agent puts its own.
    fn empty(self, targets: &mut [Process], load: Load) -> Result<f64> {
        let bare = self.bare(targets, load)?;
        let sites = sites(&PathBuf::from(format!("/proc/{}/exe", targets[0].pid())))?;
        let attached = targets.iter().map(|target| Empty::attach(target.pid(), &sites));
        let attached = attached.collect::<Result<Vec<_>>>()?;
        let with_empty = self.bare(targets, load);
        // The kernel takes its time for each.
        thread::scope(|scope| {
            for empty in attached {
                scope.spawn(move || drop(empty));
            }
        });
        Ok(with_empty? - bare)
    }

    fn measure(self, targets: &mut [Process], load: Load) -> Result<(Agent, Point)> {
        let begin = Instant::now();
        let mut command = pinned(self.cores.others, &agent::executable()?);
        command.args(["run", "--web.listen-address", "127.0.0.1:0"]).args(self.args);
        for target in targets.iter() {
            command.arg("--pid").arg(target.pid().to_string());
        }
        let agent = Agent::start_command(&mut command)?.wait_ready()?;
        let ready_ms = begin.elapsed().as_secs_f64() * 1000.0;
        let peak_mib = peak_mib(agent.pid())?;
        let warm = load.make(targets, load.warm_up())?.calls + settle(&agent, targets, load)?;
        let before = cpu_time(agent.pid())?;
        let seconds = self.seconds.max(AGENT_SECONDS);
        let Made { calls: made, seconds: elapsed, target_us } = load.make(targets, seconds)?;
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

impl Point {
    /// Of the same point of several rounds: the median of each number.
    fn median(rounds: &[Self]) -> Option<Self> {
        let of = |of: fn(&Self) -> f64| Spread::of(rounds.iter().map(of)).median;
        Some(Self {
            what: rounds.first()?.what.clone(),
            number: of(|point| point.number),
            calls_per_second: of(|point| point.calls_per_second),
            agent_us: of(|point| point.agent_us),
            agent_percent: of(|point| point.agent_percent),
            target_us: of(|point| point.target_us),
            added_us: of(|point| point.added_us),
            resident_mib: of(|point| point.resident_mib),
            maps_mib: of(|point| point.maps_mib),
            peak_mib: of(|point| point.peak_mib),
            ready_ms: of(|point| point.ready_ms),
            attach_ms: of(|point| point.attach_ms),
            end_ms: of(|point| point.end_ms),
        })
    }
}

/// Calls that targets are to make.
#[derive(Clone, Copy)]
struct Load {
    /// A second, over all targets.
    rate: f64,
    /// Of so many methods in turn.
    methods: u32,
    /// Each target makes those that are due once in so many milliseconds, or more rarely.
    tick_ms: u16,
}

/// Calls that all targets have made together.
struct Made {
    calls: u64,
    seconds: f64,
    /// Microseconds of the targets' processor time for a call.
    target_us: f64,
}

impl Load {
    const USUAL: Self = Self { rate: USUAL_RATE, methods: 10, tick_ms: 1 };

    /// Seconds of calls that settle what was just attached: each method is called, since a label set takes something of
    /// its own when it is met.
    fn warm_up(self) -> f64 {
        WARM_UP.max(f64::from(self.methods) / self.rate * 1.1)
    }

    /// Has all targets make calls for so long.
    fn make(self, targets: &mut [Process], seconds: f64) -> Result<Made> {
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

/// Makes calls until the agent takes as much for them as it did just before; gives how many there were. At first it measures
/// what a hit costs, and meets label sets.
fn settle(agent: &Agent, targets: &mut [Process], load: Load) -> Result<u64> {
    let (mut calls, mut last) = (0, 0.0);
    for _ in 0..STEADY_AFTER {
        let before = cpu_time(agent.pid())?;
        calls += load.make(targets, STEADY_SECONDS)?.calls;
        let taken = cpu_time(agent.pid())?.saturating_sub(before).as_secs_f64();
        if (taken - last).abs() <= last * STEADY_WITHIN {
            break;
        }
        last = taken;
    }
    Ok(calls)
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
}

impl Drop for Copies {
    fn drop(&mut self) {
        for copy in &self.0 {
            let _ = fs::remove_file(copy);
        }
    }
}

fn section(found: &Points) -> Section {
    let points = &found.points;
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
    let text = format!(
        "{}\n{}\n{}\n![The agent's own CPU](overhead-agent.svg)\n",
        table(&rows),
        shares_table(&found.shares),
        aims(found)
    );
    Section {
        part: "sweeps",
        blocks: vec![("sweeps", text)],
        charts: vec![("overhead-agent.svg", chart(points))],
        results: json!(found),
        ..Section::default()
    }
}

/// What is the kernel's and the machine's, and what is ours.
fn shares_table(shares: &[Share]) -> String {
    let mut rows = vec![row([
        "µs for a call, median (min to max)",
        "added by empty programs",
        "added by the agent",
        "of that beyond the empty ones",
        "agent / empty",
        "agent's own CPU",
    ])];
    rows.extend(shares.iter().map(|share| {
        vec![
            format!("{} {}", share.number, share.what),
            share.empty_us.show(2),
            share.added_us.show(2),
            share.beyond_us.show(2),
            show_ratio(share.to_empty()),
            share.own_us.show(2),
        ]
    }));
    table(&rows)
}

impl Share {
    /// What the agent adds, in units of what empty programs add.
    fn to_empty(&self) -> Option<f64> {
        ratio(self.added_us.median, self.empty_us.median)
    }
}

/// Whether a number is about as large at the far end of a sweep, in words.
fn flat(few: f64, many: f64) -> String {
    let times = ratio(many, few);
    format!("{} ({})", show_ratio(times), verdict(times.unwrap_or(f64::INFINITY), AIM_FLAT))
}

/// What of a sweep's ends is ours.
fn shares_of_ends(shares: &[Share], what: &str) -> Option<String> {
    let of = || shares.iter().filter(|share| share.what == what);
    let (few, many) = (of().next()?, of().next_back()?);
    let to_empty = |share: &Share| share.to_empty().unwrap_or(0.0);
    Some(format!(
        "- {} {what} against {}: what the agent adds, {} times; what empty programs add, {} times, which is the kernel's \
         and the machine's; what the agent adds beyond those, {}; in units of what those add, {}; the agent's own CPU, {}.",
        many.number,
        few.number,
        flat(few.added_us.median, many.added_us.median),
        show_ratio(ratio(many.empty_us.median, few.empty_us.median)),
        flat(few.beyond_us.median, many.beyond_us.median),
        flat(to_empty(few), to_empty(many)),
        flat(few.own_us.median, many.own_us.median),
    ))
}

fn aims(Points { points, shares }: &Points) -> String {
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
    let _ = writeln!(
        text,
        "- Aim: at the far end of a sweep a call takes at most {AIM_FLAT} times what it takes at the near end."
    );
    for what in [LABEL_SETS, OWN_EXECUTABLES, OWN_AT_ONCE] {
        text.extend(shares_of_ends(shares, what).map(|line| line + "\n"));
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

    fn share(what: &str, number: f64, empty: f64, added: f64) -> Share {
        let of = |number| Spread::of([number]);
        let (empty_us, added_us, beyond_us) = (of(empty), of(added), of(added - empty));
        Share { what: what.to_owned(), number, empty_us, added_us, beyond_us, own_us: of(0.5) }
    }

    #[test]
    fn aims_are_about_the_points_that_they_name() {
        let points = vec![
            point("calls a second", 1_000.0, 2.0),
            point("calls a second", 100_000.0, 0.6),
            point("MiB of executable", 31.0, 1.0),
            point("MiB of executable", 95.0, 1.0),
        ];
        let text = aims(&Points { points, shares: Vec::new() });
        assert!(
            text.contains("at most 0.5 µs per call (not met) and 5 % of one processor (not met)"),
            "{text}"
        );
        assert!(text.contains("of 30 MiB: at most 60 MiB until ready: met"), "{text}");
        assert!(!text.contains("label sets"), "{text}");
    }

    #[test]
    fn what_is_flat_is_told_by_the_ends_of_a_sweep() {
        let shares = [
            share(OWN_EXECUTABLES, 1.0, 2.0, 3.0),
            share(OWN_EXECUTABLES, 10.0, 9.0, 9.0),
            share(OWN_EXECUTABLES, 50.0, 10.0, 12.0),
        ];
        let text = shares_of_ends(&shares, OWN_EXECUTABLES).unwrap();
        assert!(text.contains("50 targets, each its own executable against 1"), "{text}");
        assert!(
            text.contains("the agent adds, 4.00 (not met) times; what empty programs add, 5.00 times"),
            "{text}"
        );
        assert!(
            text.contains("beyond those, 2.00 (not met); in units of what those add, 0.80 (met)"),
            "{text}"
        );
        assert!(text.contains("own CPU, 1.00 (met)"), "{text}");
        assert!(shares_of_ends(&shares, LABEL_SETS).is_none());
    }

    #[test]
    fn what_a_target_takes_is_told_by_the_ends_of_a_sweep() {
        let mut points = vec![point(OWN_EXECUTABLES, 1.0, 1.0), point(OWN_EXECUTABLES, 11.0, 1.5)];
        points[1] = Point { resident_mib: 120.0, end_ms: 2_100.0, ..points[1].clone() };
        let text = aims(&Points { points, shares: Vec::new() });
        assert!(
            text.contains("2000 ms of detaching and ending: not met. Each target more takes 10.0 MiB"),
            "{text}"
        );
    }

    #[test]
    fn rounds_of_a_point_are_one_point() {
        let rounds = [1.0, 9.0, 2.0].map(|agent_us| point(LABEL_SETS, 10.0, agent_us));
        let point = Point::median(&rounds).unwrap();
        assert_eq!(
            (point.agent_us.to_bits(), point.number.to_bits()),
            (2.0_f64.to_bits(), 10.0_f64.to_bits())
        );
        assert!(Point::median(&[]).is_none());
    }
}
