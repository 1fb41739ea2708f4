//! The kernel's translation of the agent's programs, and the memory of their maps. These numbers are the same in each
//! run on one kernel, so growth shows even where no time can be measured.

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
    /// Its name, here and in earlier runs.
    name: &'static str,
    /// Starts the target, which stays idle.
    target: fn() -> Result<Process>,
    args: &'static [&'static str],
    /// The name of an example in docs/specs.md.
    spec: Option<&'static str>,
    /// The number of programs it loads.
    programs: usize,
}

/// Together they use all programs that watch a target, except `native_return`, which does the same as
/// `native_finish`. Unless a way says otherwise they read by page tables, whichever way is faster here: these are the
/// larger programs.
const WAYS: [Way; 6] = [
    Way { name: "run", target: kitex, args: &[], spec: None, programs: 2 },
    Way {
        name: "run --capture.slow",
        target: kitex,
        args: &["--capture.slow", "1"],
        spec: None,
        programs: 2,
    },
    Way { name: "run --reads kernel", target: kitex, args: &["--reads", "kernel"], spec: None, programs: 2 },
    Way { name: "run --grpc.messages", target: grpc, args: &["--grpc.messages"], spec: None, programs: 5 },
    Way { name: "run --spec jobs", target: operations, args: &[], spec: Some("jobs"), programs: 2 },
    Way { name: "run --spec stock", target: corners, args: &[], spec: Some("stock"), programs: 2 },
];
/// The counts of a program, and the share by which each may exceed an earlier run's, if not the usual one. One more
/// helper call is one more step in every watched call.
const COUNTS: [(&str, Option<f64>); 4] =
    [("instructions", Some(0.05)), ("helper calls", Some(0.0)), ("machine bytes", None), ("verified", None)];
/// Another kernel of the same release may translate the same instructions into slightly more.
const TOLERANCE: f64 = 0.15;
/// How long the measurement of a hit's cost may take.
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
    /// Returns the programs of an agent that runs this way, and the bytes of its maps.
    fn look(&self) -> Result<(Vec<Translated>, u64)> {
        let target = (self.target)()?;
        let spec = self.spec.map(specs::documented).transpose()?;
        let mut args: Vec<&str> = self.args.to_vec();
        if !args.contains(&"--reads") {
            args.extend(["--reads", "tables"]);
        }
        if let Some(spec) = &spec {
            args.extend(["--spec", specs::path(spec)]);
        }
        let agent = Agent::attach(&[target.pid()], &args)?;
        // Until then it has further programs and maps, which measure the cost of a hit.
        let measured = |line: &str| line.contains("a hit of a probe (").then_some(());
        agent.wait_for_log(PATIENCE, measured)?;
        let (programs, bytes) = (kernel::translated(agent.pid())?, kernel::map_bytes(agent.pid())?);
        agent.terminate()?;
        let (name, count) = (self.name, programs.len());
        ensure!(count == self.programs, "`{name}`: the agent has {count} programs, not {}", self.programs);
        Ok((programs, bytes))
    }
}

/// Runs the agent on each idle target and reads the numbers.
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
        let way = way.name;
        map_bytes.insert(way.to_owned(), bytes);
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
