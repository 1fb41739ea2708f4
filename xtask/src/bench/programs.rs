//! What the kernel makes of the agent's programs, and what their maps take: numbers that are the same in each run on one
//! kernel, so that a program that grows is noticed where no time can be measured.

use std::{collections::BTreeMap, process::Command, time::Duration};

use anyhow::{Result, ensure};
use monitor_tests::{
    agent::Agent,
    native::{self, Build},
    process::Process,
    specs,
    targets::{Flavour, Program},
};
use serde_json::{Value, json};

use super::{
    kernel::{self, Translated},
    machine::possible_processors,
    maps::MapMemory,
    report::{float, row, table},
    section::{PROGRAMS, Section},
};
use crate::setup::{self, Need};

/// A way to run the agent.
struct Way {
    /// How it is called, here and in earlier runs.
    name: &'static str,
    /// What is watched, at rest.
    target: fn() -> Result<Process>,
    args: &'static [&'static str],
    /// The name of an example in docs/specs.md.
    spec: Option<&'static str>,
    /// How many programs it has.
    programs: usize,
    /// Whether the memory of its maps is one of those that are compared.
    has_maps: bool,
}

/// All programs that watch a target are in one of them, but `native_return`, which does what `native_finish` does.
const WAYS: [Way; 5] = [
    Way { name: "run", target: kitex, args: &[], spec: None, programs: 2, has_maps: true },
    Way {
        name: "run --capture.slow",
        target: kitex,
        args: &["--capture.slow", "1"],
        spec: None,
        programs: 2,
        has_maps: true,
    },
    Way {
        name: "run --grpc.messages",
        target: grpc,
        args: &["--grpc.messages"],
        spec: None,
        programs: 5,
        has_maps: false,
    },
    Way {
        name: "run --spec jobs",
        target: operations,
        args: &[],
        spec: Some("jobs"),
        programs: 2,
        has_maps: false,
    },
    Way {
        name: "run --spec stock",
        target: corners,
        args: &[],
        spec: Some("stock"),
        programs: 2,
        has_maps: false,
    },
];
/// What is counted of a program, and by what share it may be more than in an earlier run, if that is not the usual one.
/// A call of a helper more is a step more at every call that is watched.
const COUNTS: [(&str, Option<f64>); 4] =
    [("instructions", Some(0.05)), ("helper calls", Some(0.0)), ("machine bytes", None), ("verified", None)];
/// Another kernel of the same release may make a little more of the same instructions.
const TOLERANCE: f64 = 0.15;
/// How long it may take to measure what a hit costs.
const PATIENCE: Duration = Duration::from_secs(30);

fn kitex() -> Result<Process> {
    Process::kitex(&["server"])
}

fn grpc() -> Result<Process> {
    Process::start(Program::Echo, Flavour::Default, &["server"])
}

fn operations() -> Result<Process> {
    Process::start(Program::Operations, Flavour::Default, &[])
}

fn corners() -> Result<Process> {
    Process::start_command(&mut Command::new(native::corners(Build::Default)?))
}

impl Way {
    /// The programs of an agent that runs so, and the bytes of its maps.
    fn look(&self) -> Result<(Vec<Translated>, u64)> {
        let target = (self.target)()?;
        let spec = self.spec.map(specs::documented).transpose()?;
        let mut args: Vec<&str> = self.args.to_vec();
        if let Some(spec) = &spec {
            args.extend(["--spec", specs::path(spec)]);
        }
        let agent = Agent::attach(&[target.pid()], &args)?;
        // Until then it has programs and maps that measure what a hit costs.
        let measured = |line: &str| line.contains("a hit of a probe (").then_some(());
        agent.wait_for_log(PATIENCE, measured)?;
        let (programs, bytes) = (kernel::translated(agent.pid())?, kernel::map_bytes(agent.pid())?);
        agent.terminate()?;
        let (name, count) = (self.name, programs.len());
        ensure!(count == self.programs, "`{name}`: the agent has {count} programs, not {}", self.programs);
        Ok((programs, bytes))
    }
}

/// Attaches to each target at rest and looks.
pub(super) fn measure() -> Result<Section> {
    setup::packages(&[Need::Native])?;
    let mut rows = vec![row([
        "the agent's",
        "program",
        "instructions",
        "calls of helpers in them",
        "bytes of machine code",
        "instructions that the verifier went through",
    ])];
    let (mut figures, mut tolerances) = (BTreeMap::new(), BTreeMap::<String, f64>::new());
    let mut map_bytes = BTreeMap::new();
    let mut results = Vec::new();
    for way in &WAYS {
        let (programs, bytes) = way.look()?;
        let Way { name: way, has_maps, .. } = *way;
        if has_maps {
            map_bytes.insert(way.to_owned(), bytes);
        }
        for program in programs {
            let Translated { name, instructions, helper_calls, machine_bytes, verified } = &program;
            let numbers = [instructions, helper_calls, machine_bytes, verified];
            rows.push(
                [way.to_owned(), name.clone()].into_iter().chain(numbers.map(u64::to_string)).collect(),
            );
            for ((what, tolerance), number) in COUNTS.into_iter().zip(numbers) {
                let figure = format!("{way}: {name}: {what}");
                tolerances.extend(tolerance.map(|tolerance| (figure.clone(), tolerance)));
                figures.insert(figure, float(*number));
            }
            results.push(json!({
                "way": way,
                "program": name,
                "instructions": instructions,
                "helper_calls": helper_calls,
                "machine_bytes": machine_bytes,
                "verified": verified,
            }));
        }
    }
    let maps = MapMemory::new(possible_processors()?, map_bytes);
    Ok(Section {
        part: PROGRAMS,
        blocks: vec![("programs", format!("{}\n{}", table(&rows), maps.table()))],
        results: Value::Array(results),
        figures,
        tolerance: TOLERANCE,
        tolerances,
        maps: Some(maps),
        ..Section::default()
    })
}
