//! What the agent takes itself as calls, label sets, targets and executables become more: on a target that makes calls
//! without a network, so that its number of calls is a matter of choice.

mod run;
mod targets;
mod text;

use std::fs;

use anyhow::Result;
use clap::ValueEnum;
use monitor_tests::targets::{Flavour, Program};
use serde::Serialize;

use super::{
    MIB, ballast,
    machine::Cores,
    report::{Spread, float},
    section::Section,
};
use run::Sweep;
use targets::{Copies, Load};

/// With room for as many label sets as any sweep has.
const ROOM: [&str; 2] = ["--max-label-sets", "16384"];
/// What changes in a sweep that has ends to compare.
const LABEL_SETS: &str = "label sets";
const OWN_EXECUTABLES: &str = "targets, each its own executable";
const OWN_AT_ONCE: &str = "targets, each its own executable, which wake up as often in all as one";
const SHARED_EXECUTABLE: &str = "targets that share one executable";

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
    /// How often a second it was woken up, all its threads together.
    wakeups_per_second: f64,
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
struct Swept {
    /// Of the sweeps that are meant to be flat.
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

/// These sweeps, or all of them; of those that are meant to be flat so many rounds.
pub(super) fn measure(cores: Cores, seconds: u32, rounds: u32, which: &[Which]) -> Result<Section> {
    let is_wanted = |one| which.is_empty() || which.contains(&one);
    let executable = Program::Synthetic.build(Flavour::Stripped)?;
    let sweep = Sweep { cores, seconds: seconds.into(), args: &[] };
    let mut found = Swept { rounds, ..Swept::default() };
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
    Ok(text::section(&found))
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
