//! Measures one sweep: each point with nothing attached, with empty programs and with the agent.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use monitor_tests::{
    agent::{self, Agent},
    process::Process,
};

use super::{
    Point, Share, Swept,
    targets::{Load, Made},
};
use crate::{
    bench::{
        MIB,
        empty::Empty,
        kernel,
        machine::{Cores, cpu_time, pinned},
        report::{Spread, float},
        stage::sites,
        wakeups::Sleeps,
    },
    process::say,
};

/// Seconds of an interval. An agent is steady when the processor times of two successive intervals differ by at most
/// `STEADY_WITHIN`, as a share.
const STEADY_SECONDS: f64 = 2.0;
const STEADY_WITHIN: f64 = 0.1;
/// After this many intervals it is measured in any case.
const STEADY_AFTER: usize = 10;
/// Minimum seconds of its measurement: everything that it does periodically happens at least once in this time.
const AGENT_SECONDS: f64 = 10.0;
/// How long detaching from many targets may take.
const DETACHED_WITHIN: Duration = Duration::from_mins(1);

/// A point of a sweep, before it is measured.
#[derive(Clone, Copy)]
pub(super) struct Spot {
    /// How many of the sweep's targets make calls, and the first of them.
    pub(super) targets: usize,
    pub(super) first: usize,
    pub(super) load: Load,
    /// The value that varies.
    pub(super) number: f64,
}

impl Spot {
    /// Returns a spot that uses the first targets.
    pub(super) fn of(targets: u16, load: Load, number: f64) -> Self {
        Self { targets: targets.into(), first: 0, load, number }
    }
}

/// The results of one round for a point.
#[derive(Clone, Copy, Debug)]
struct Costs {
    /// Targets' processor time per call, in microseconds, added by empty programs and by the agent.
    empty_us: f64,
    agent_us: f64,
}

/// How sweeps are measured.
#[derive(Clone, Copy)]
pub(super) struct Sweep {
    pub(super) cores: Cores,
    pub(super) seconds: f64,
    /// Further arguments of `run`.
    pub(super) args: &'static [&'static str],
}

impl Sweep {
    /// Starts a process of each of these executables.
    pub(super) fn start(self, executables: &[PathBuf]) -> Result<Vec<Process>> {
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

    /// Measures each point with empty programs and with the agent, in several rounds.
    pub(super) fn in_rounds(
        self,
        found: &mut Swept,
        what: &str,
        targets: &mut [Process],
        spots: &[Spot],
        rounds: u32,
    ) -> Result<()> {
        let mut samples = vec![Vec::new(); spots.len()];
        for round in 0..rounds {
            for (spot, samples) in spots.iter().zip(&mut samples) {
                let Spot { targets: count, first, load, number } = *spot;
                let targets = &mut targets[first..first + count];
                let measuring = || format!("measuring {number} {what}");
                // Alternates the order between rounds.
                let before = if round % 2 == 0 { Some(self.empty(targets, load)) } else { None };
                let point = self.point(what, number, targets, load)?;
                let empty_us = before.unwrap_or_else(|| self.empty(targets, load)).with_context(measuring)?;
                samples.push((Costs { empty_us, agent_us: point.added_us }, point));
            }
        }
        for (spot, samples) in spots.iter().zip(samples) {
            let of = |of: fn(&(Costs, Point)) -> f64| Spread::of(samples.iter().map(of));
            found.shares.push(Share {
                what: what.to_owned(),
                number: spot.number,
                empty_us: of(|(costs, _)| costs.empty_us),
                added_us: of(|(costs, _)| costs.agent_us),
                beyond_us: of(|(costs, _)| costs.agent_us - costs.empty_us),
                own_us: of(|(_, point)| point.agent_us),
                own_percent: of(|(_, point)| point.agent_percent),
                resident_mib: of(|(_, point)| point.resident_mib),
                maps_mib: of(|(_, point)| point.maps_mib),
                peak_mib: of(|(_, point)| point.peak_mib),
            });
            let points: Vec<_> = samples.into_iter().map(|(_, point)| point).collect();
            found.points.extend(Point::median(&points));
        }
        Ok(())
    }

    /// Returns the targets' processor time per call with nothing attached, in microseconds.
    fn bare(self, targets: &mut [Process], load: Load) -> Result<f64> {
        load.make(targets, load.warm_up())?;
        Ok(load.make(targets, self.seconds)?.target_us)
    }

    /// Returns what empty programs at the agent's sites add to that.
    fn empty(self, targets: &mut [Process], load: Load) -> Result<f64> {
        let bare = self.bare(targets, load)?;
        let sites = sites(&PathBuf::from(format!("/proc/{}/exe", targets[0].pid())))?;
        let attached = targets.iter().map(|target| Empty::attach(target.pid(), &sites));
        let attached = attached.collect::<Result<Vec<_>>>()?;
        let with_empty = self.bare(targets, load);
        // The kernel takes a while for each.
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
        let (before, sleeps) = (cpu_time(agent.pid())?, Sleeps::now(agent.pid())?);
        let seconds = self.seconds.max(AGENT_SECONDS);
        let Made { calls: made, seconds: elapsed, target_us } = load.make(targets, seconds)?;
        let agent_cpu = cpu_time(agent.pid())?.saturating_sub(before).as_secs_f64();
        let wakeups_per_second = Sleeps::now(agent.pid())?.wakeups_since(&sleeps);
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
            wakeups_per_second,
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

/// Makes calls until the agent is steady; returns their number. A new agent first measures what a hit costs, and
/// meets new label sets.
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

/// Ends an agent; returns whether it exited successfully.
fn end(mut agent: Agent) -> Result<bool> {
    agent.signal(libc::SIGTERM)?;
    Ok(agent.wait(DETACHED_WITHIN)?.success())
}

/// Returns a process's peak memory in MiB.
fn peak_mib(pid: u32) -> Result<f64> {
    let file = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    let peak: u32 = peak.context("no VmHWM")?.trim().parse()?;
    Ok(f64::from(peak) / 1024.0)
}
