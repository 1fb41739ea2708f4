//! The cost of a scrape of a Go runtime: processor time of the agent and of the target.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::{self, Agent},
    process::Process,
    targets::{Flavour, Program},
};

use serde_json::json;

use super::{
    machine::{cpu_time, pinned},
    report::{Spread, row, table, verdict},
    section::Section,
};

/// Goroutines of the target.
const GOROUTINES: [u32; 3] = [10, 10_000, 100_000];
/// Values of `--go.metrics`.
const DETAILS: [&str; 2] = ["default", "all"];
/// Scrapes per round.
const SCRAPES: u32 = 100;
/// The most processor time that a scrape with the most goroutines should take in the agent, in milliseconds.
const AIM_MS: f64 = 5.0;

/// All measurements.
#[derive(Clone, Debug, Default)]
pub(super) struct Scrapes(Vec<Row>);

/// Scrapes of one kind: processor time of one scrape in milliseconds, for each round.
#[derive(Clone, Debug)]
struct Row {
    goroutines: u32,
    detail: &'static str,
    agent_ms: Vec<f64>,
    target_ms: Vec<f64>,
}

/// Scrapes an idle target with an agent on one processor.
pub(super) fn measure(core: usize, rounds: u32) -> Result<Scrapes> {
    let mut target = Process::start_command(&mut Command::new(Program::Runtime.build(Flavour::Default)?))?;
    let mut rows = Vec::new();
    for goroutines in GOROUTINES {
        target.command(&format!("goroutines {goroutines}"))?;
        target.command("gc 2")?;
        for detail in DETAILS {
            rows.push(one(&target, goroutines, detail, core, rounds)?);
        }
    }
    Ok(Scrapes(rows))
}

fn one(target: &Process, goroutines: u32, detail: &'static str, core: usize, rounds: u32) -> Result<Row> {
    let mut command = pinned(core, &agent::executable()?);
    command.args(["run", "--web.listen-address", "127.0.0.1:0", "--metrics", "go", "--go.metrics", detail]);
    let agent = Agent::start_command(command.arg("--pid").arg(target.pid().to_string()))?.wait_ready()?;
    let mut row = Row { goroutines, detail, agent_ms: Vec::new(), target_ms: Vec::new() };
    // The first round does not count.
    for round in 0..=rounds {
        let before = (cpu_time(agent.pid())?, cpu_time(target.pid())?);
        for _ in 0..SCRAPES {
            let text = agent.get("/metrics")?;
            let count = text.lines().find_map(|line| line.strip_prefix("go_goroutines "));
            let count: u32 = count.context("no go_goroutines")?.parse()?;
            ensure!(count > goroutines, "{count} goroutines instead of {goroutines}");
        }
        let each =
            |now: Duration, before| now.saturating_sub(before).as_secs_f64() * 1e3 / f64::from(SCRAPES);
        if round > 0 {
            row.agent_ms.push(each(cpu_time(agent.pid())?, before.0));
            row.target_ms.push(each(cpu_time(target.pid())?, before.1));
        }
    }
    agent.terminate()?;
    Ok(row)
}

impl Scrapes {
    /// Returns the text and numbers about the scrapes.
    pub(super) fn section(&self) -> Section {
        let heads = row(["goroutines", "`--go.metrics`", "agent's CPU, ms", "target's CPU, ms"]);
        let spread = |numbers: &[f64]| Spread::of(numbers.iter().copied());
        let rows = self.0.iter().map(|row| {
            vec![
                row.goroutines.to_string(),
                row.detail.to_owned(),
                spread(&row.agent_ms).show(3),
                spread(&row.target_ms).show(3),
            ]
        });
        let table = table(&[heads].into_iter().chain(rows).collect::<Vec<_>>());
        let rounds = self.0.first().map_or(0, |row| row.agent_ms.len());
        let worst = self.0.iter().map(|row| spread(&row.agent_ms).median).fold(0.0, f64::max);
        let results = self.0.iter().map(|row| {
            json!({
                "goroutines": row.goroutines,
                "detail": row.detail,
                "agent_ms": spread(&row.agent_ms),
                "target_ms": spread(&row.target_ms),
            })
        });
        let text = format!(
            "Processor time for one scrape; medians of {rounds} rounds of {SCRAPES} scrapes, and in parentheses the lowest \
             and the highest.\n\n{table}\n- Aim: at most {AIM_MS} ms of the agent's: {}.\n",
            verdict(worst, AIM_MS)
        );
        Section {
            part: "scrapes",
            blocks: vec![("scrapes", text)],
            results: results.collect(),
            ..Section::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_is_compared_with_the_aim() {
        let row = |agent_ms: f64| Row {
            goroutines: 10,
            detail: "all",
            agent_ms: vec![agent_ms, agent_ms + 1.0],
            target_ms: vec![0.0],
        };
        let (_, text) = Scrapes(vec![row(1.5), row(5.0)]).section().blocks.remove(0);
        assert!(text.contains("| 10         | all            | 2.000 (1.500 to 2.500) |"), "{text}");
        assert!(text.contains("agent's: not met."), "{text}");
    }
}
