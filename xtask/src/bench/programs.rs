//! What the kernel makes of the agent's programs, and what their maps take: numbers that are the same in each run on one
//! kernel, so that a program that grows is noticed where no time can be measured.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use monitor_tests::{agent::Agent, process::Process};
use serde_json::{Value, json};

use super::{
    kernel::{self, Translated},
    machine::possible_processors,
    maps::MapMemory,
    report::{float, row, table},
    section::Section,
};

/// Ways to run the agent, with their arguments.
const WAYS: [(&str, &[&str]); 2] = [("run", &[]), ("run --capture.slow", &["--capture.slow", "1"])];
/// Another compiler or kernel may make a few instructions more of the same.
const TOLERANCE: f64 = 0.15;
/// How long it may take to measure what a hit costs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Attaches to a Kitex server at rest and looks.
pub(super) fn measure() -> Result<Section> {
    let server = Process::kitex(&["server"])?;
    let mut rows = vec![row([
        "the agent's",
        "program",
        "instructions",
        "calls of helpers in them",
        "bytes of machine code",
        "instructions that the verifier went through",
    ])];
    let mut figures = BTreeMap::new();
    let mut map_bytes = BTreeMap::new();
    let mut results = Vec::new();
    for (way, args) in WAYS {
        let agent = Agent::attach(&[server.pid()], args)?;
        // Until then it has programs and maps that measure what a hit costs.
        let measured = |line: &str| line.contains("a hit of a probe (").then_some(());
        agent.wait_for_log(PATIENCE, measured)?;
        let programs = kernel::translated(agent.pid())?;
        map_bytes.insert(way.to_owned(), kernel::map_bytes(agent.pid())?);
        agent.terminate()?;
        ensure!(programs.len() == 2, "the agent has {} programs instead of two", programs.len());
        for program in programs {
            let Translated { name, instructions, helper_calls, machine_bytes, verified } = &program;
            let numbers = [instructions, helper_calls, machine_bytes, verified];
            rows.push(
                [way.to_owned(), name.clone()].into_iter().chain(numbers.map(u64::to_string)).collect(),
            );
            for (what, number) in
                ["instructions", "helper calls", "machine bytes", "verified"].into_iter().zip(numbers)
            {
                figures.insert(format!("{way}: {name}: {what}"), float(*number));
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
        part: "programs",
        blocks: vec![("programs", format!("{}\n{}", table(&rows), maps.table()))],
        results: Value::Array(results),
        figures,
        tolerance: TOLERANCE,
        maps: Some(maps),
        ..Section::default()
    })
}
