//! What a scrape of a Go runtime takes: of the agent's processor time, and of the target's.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::{self, Agent},
    process::Process,
    targets::{Flavour, Program},
};

use super::{
    machine::{cpu_time, pinned},
    report::{Spread, table},
};
use crate::process::root;

/// Goroutines of the target.
const GOROUTINES: [u32; 3] = [10, 10_000, 100_000];
/// How much of the runtime is shown.
const DETAILS: [&str; 2] = ["default", "all"];
/// Scrapes in a round.
const SCRAPES: u32 = 100;
/// What a scrape may take of the agent's processor time with the most goroutines, in milliseconds.
const AIM_MS: f64 = 5.0;
const HEADING: &str = "## Scrapes of a Go runtime\n";

/// Every scrape that was measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Scrapes(Vec<Row>);

/// Scrapes of one kind: milliseconds of processor time for one, in each round.
#[derive(Clone, Debug)]
struct Row {
    goroutines: u32,
    detail: &'static str,
    agent_ms: Vec<f64>,
    target_ms: Vec<f64>,
}

/// Scrapes a target that is at rest, by an agent on one processor.
pub(super) fn measure(core: usize, rounds: u32) -> Result<Scrapes> {
    let mut target = Process::start_command(&mut Command::new(Program::Runtime.build(Flavour::Default)?))?;
    let mut rows = Vec::new();
    for goroutines in GOROUTINES {
        target.command(&format!("goroutines {goroutines}"))?;
        target.command("gc 2")?;
        for detail in DETAILS {
            rows.push(row(&target, goroutines, detail, core, rounds)?);
        }
    }
    Ok(Scrapes(rows))
}

fn row(target: &Process, goroutines: u32, detail: &'static str, core: usize, rounds: u32) -> Result<Row> {
    let mut command = pinned(core, &agent::executable()?);
    command.args(["run", "--web.listen-address", "127.0.0.1:0", "--metrics", "go", "--go.metrics", detail]);
    let agent = Agent::start_command(command.arg("--pid").arg(target.pid().to_string()))?.wait_ready()?;
    let mut row = Row { goroutines, detail, agent_ms: Vec::new(), target_ms: Vec::new() };
    // One round more comes first.
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
    /// The table, in Markdown, and whether the aim was met.
    pub(super) fn results(&self) -> String {
        let heads = ["goroutines", "`--go.metrics`", "agent's CPU, ms", "target's CPU, ms"];
        let rows = self.0.iter().map(|row| {
            let spread = |numbers: &[f64]| Spread::of(numbers.iter().copied()).show(3);
            vec![
                row.goroutines.to_string(),
                row.detail.to_owned(),
                spread(&row.agent_ms),
                spread(&row.target_ms),
            ]
        });
        let rows: Vec<_> = [heads.map(str::to_owned).to_vec()].into_iter().chain(rows).collect();
        format!("{}\n- Aim: at most {AIM_MS} ms of the agent's.\n", table(&rows))
    }

    /// The document with this section, the last, in place of the one that it had.
    pub(super) fn merged_into(&self, document: &str, command: &str, day: &str, machine: &str) -> String {
        let before = document.split_once(HEADING).map_or(document, |(before, _)| before).trim_end();
        let results = self.results();
        let rounds = self.0.first().map_or(0, |row| row.agent_ms.len());
        format!(
            "{before}\n\n{HEADING}\n\
             Written by `{command}` on {day}, on: {machine}.\n\n\
             Processor time for one scrape; medians of {rounds} rounds of {SCRAPES} scrapes, and in parentheses the lowest \
             and the highest.\n\n\
             {results}\
             - `monitor-agent run --metrics go` on a Go program that is at rest, with nothing attached to it; whole scrapes \
               over HTTP, all that the agent does meanwhile included.\n\
             - What the target takes is its own doing: the agent reads its pages and nothing else.\n"
        )
    }
}

/// Writes the section into the document that is there.
pub(super) fn write(scrapes: &Scrapes, command: &str, day: &str, machine: &str) -> Result<()> {
    let file = root().join("docs/overhead.md");
    let document = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    fs::write(&file, scrapes.merged_into(&document, command, day, machine))
        .with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_takes_the_place_of_the_old_one() {
        let row = Row { goroutines: 10, detail: "all", agent_ms: vec![1.5, 2.5], target_ms: vec![0.0, 0.0] };
        let scrapes = Scrapes(vec![row]);
        let once = scrapes.merged_into("# What watching costs\n", "cargo xtask bench", "2026-01-02", "one");
        let twice = scrapes.merged_into(&once, "cargo xtask bench", "2026-01-03", "one");
        assert_eq!(twice.matches(HEADING).count(), 1, "{twice}");
        assert!(twice.contains("| 10         | all            | 2.000 (1.500 to 2.500) |"), "{twice}");
        assert!(twice.starts_with("# What watching costs\n\n## ") && twice.contains("2026-01-03"), "{twice}");
    }
}
