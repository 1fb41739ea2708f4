//! The agent's own cost as calls, label sets, targets and executables increase: on a target that makes calls without
//! a network, so that their number can be chosen.

mod run;
mod targets;
mod text;

use std::fs;

use anyhow::Result;
use clap::ValueEnum;
use monitor_tests::targets::{Flavour, Program};
use serde::{Deserialize, Serialize};

use super::{
    MIB, ballast,
    machine::Cores,
    report::{Spread, float},
    section::Section,
};
use run::{Spot, Sweep};
use targets::{Copies, Load};
pub(super) use text::section;

/// Arguments with room for the label sets of every sweep.
const ROOM: [&str; 2] = ["--max-label-sets", "16384"];
/// The agent's default limit on label sets.
const DEFAULT_ROOM: u32 = 4_096;
/// What a sweep varies.
const CALLS: &str = "calls a second";
const LABEL_SETS: &str = "label sets";
const DEFAULT_LABEL_SETS: &str = "label sets, as many as by default";
const OWN_EXECUTABLES: &str = "targets, each its own executable";
const OWN_AT_ONCE: &str = "targets, each its own executable, which wake up as often in all as one";
const SHARED_EXECUTABLE: &str = "targets that share one executable";
const SIZE: &str = "MiB of executable";

/// One point of a sweep.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Point {
    /// What varies.
    what: String,
    /// Its value.
    number: f64,
    /// Calls made per second, over all targets.
    calls_per_second: f64,
    /// The agent's processor time per call, in microseconds.
    agent_us: f64,
    /// The same as a percentage of one processor.
    agent_percent: f64,
    /// Wakeups per second, over all the agent's threads.
    wakeups_per_second: f64,
    /// The targets' processor time per call, in microseconds, including their own work.
    target_us: f64,
    /// How much of that the agent added, compared with a measurement just before.
    added_us: f64,
    resident_mib: f64,
    maps_mib: f64,
    /// Peak resident memory until it was ready: planning.
    peak_mib: f64,
    /// Time from its start until it was ready, in milliseconds.
    ready_ms: f64,
    /// Time for loading and attaching, over all targets, in milliseconds.
    attach_ms: f64,
    /// Time from SIGTERM until it had detached and exited, in milliseconds.
    end_ms: f64,
}

impl Point {
    /// Combines one point of several rounds: the median of each number.
    fn median(rounds: &[Self]) -> Option<Self> {
        let of = |of: fn(&Self) -> f64| Spread::of(rounds.iter().map(of)).median;
        Some(Self {
            what: rounds.first()?.what.clone(),
            number: of(|point| point.number),
            calls_per_second: of(|point| point.calls_per_second),
            agent_us: of(|point| point.agent_us),
            agent_percent: of(|point| point.agent_percent),
            wakeups_per_second: of(|point| point.wakeups_per_second),
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

/// The numbers of a point whose spread over the rounds is shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Share {
    what: String,
    number: f64,
    /// What empty programs at the same sites add: the cost of kernel and machine.
    empty_us: Spread,
    /// What the agent adds.
    added_us: Spread,
    /// What the agent adds beyond the empty programs.
    beyond_us: Spread,
    /// The agent's own processor time per call, in microseconds.
    own_us: Spread,
    /// The same as a percentage of one processor.
    own_percent: Spread,
    resident_mib: Spread,
    maps_mib: Spread,
    /// Peak resident memory until it was ready.
    peak_mib: Spread,
}

/// The points of all sweeps.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Swept {
    rounds: u32,
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

/// Measures the given sweeps, or all if none are given, in this many rounds.
pub(super) fn measure(cores: Cores, seconds: u32, rounds: u32, which: &[Which]) -> Result<Section> {
    let is_wanted = |one| which.is_empty() || which.contains(&one);
    let executable = Program::Synthetic.build(Flavour::Stripped)?;
    let sweep = Sweep { cores, seconds: seconds.into(), args: &[] };
    let mut found = Swept { rounds, ..Swept::default() };
    if is_wanted(Which::Calls) {
        let mut alone = sweep.start(std::slice::from_ref(&executable))?;
        let rates = [1_000.0, 10_000.0, 100_000.0];
        let rates = rates.map(|rate| Spot::of(1, Load { rate, ..Load::USUAL }, rate));
        sweep.in_rounds(&mut found, CALLS, &mut alone, &rates, rounds)?;
    }
    if is_wanted(Which::LabelSets) {
        let with_room = Sweep { args: &ROOM, ..sweep };
        let spot = |methods| Spot::of(1, Load { methods, ..Load::USUAL }, f64::from(methods));
        let mut alone = sweep.start(std::slice::from_ref(&executable))?;
        with_room.in_rounds(&mut found, LABEL_SETS, &mut alone, &[10, 1_000, 10_000].map(spot), rounds)?;
        sweep.in_rounds(&mut found, DEFAULT_LABEL_SETS, &mut alone, &[spot(DEFAULT_ROOM)], rounds)?;
    }

    let many = [1_u16, 10, 50];
    let in_all = many.map(|count| Spot::of(count, Load::USUAL, f64::from(count)));
    // Each target makes its calls in a batch and then sleeps, so that all targets together wake up as often as a
    // single one.
    let at_once = |count| Load { tick_ms: count, ..Load::USUAL };
    let at_once = [1, 50].map(|count| Spot::of(count, at_once(count), f64::from(count)));
    if is_wanted(Which::Own) || is_wanted(Which::OwnAtOnce) {
        let copies = Copies::of(&executable, 50)?;
        let mut own = sweep.start(&copies.0)?;
        if is_wanted(Which::Own) {
            sweep.in_rounds(&mut found, OWN_EXECUTABLES, &mut own, &in_all, rounds)?;
        }
        if is_wanted(Which::OwnAtOnce) {
            sweep.in_rounds(&mut found, OWN_AT_ONCE, &mut own, &at_once, rounds)?;
        }
    }
    if is_wanted(Which::Shared) {
        let mut shared = sweep.start(&vec![executable.clone(); 50])?;
        sweep.in_rounds(&mut found, SHARED_EXECUTABLE, &mut shared, &in_all, rounds)?;
    }

    if is_wanted(Which::Size) {
        let executables = [executable, ballast::build(12_500)?, ballast::build(50_000)?];
        let mut each = sweep.start(&executables)?;
        let mut sizes = Vec::new();
        for (first, executable) in executables.iter().enumerate() {
            let size = float(fs::metadata(executable)?.len()) / MIB;
            sizes.push(Spot { first, ..Spot::of(1, Load::USUAL, size.round()) });
        }
        sweep.in_rounds(&mut found, SIZE, &mut each, &sizes, rounds)?;
    }
    Ok(section(&found))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn point(what: &str, number: f64, agent_us: f64) -> Point {
        Point {
            what: what.to_owned(),
            number,
            calls_per_second: number,
            agent_us,
            agent_percent: number * agent_us / 1e4,
            wakeups_per_second: 25.0,
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
