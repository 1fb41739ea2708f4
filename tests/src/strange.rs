//! A target that passes the probes other things than Kitex does, and an agent that watches it.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    agent::Agent,
    chain::Account,
    process::Process,
    scrape::{Scrape, whole},
    tally::{DEFAULT_LABELS, Tally},
    targets::{Flavour, Program},
};

/// A target, and an agent that watches only it.
pub struct Watched {
    /// The target.
    pub target: Process,
    /// The agent.
    pub agent: Agent,
}

impl Watched {
    /// Starts a target, and an agent with these arguments.
    pub fn start(args: &[&str]) -> Result<Self> {
        Self::start_with(&[], args)
    }

    /// Like [`Watched::start`], with arguments for the target, too.
    pub fn start_with(target: &[&str], agent: &[&str]) -> Result<Self> {
        let target = Process::start(Program::Strange, Flavour::Default, target)?;
        let agent = Agent::attach(&[target.pid()], agent)?;
        Ok(Self { target, agent })
    }

    /// Has the target run a command that makes this number of calls.
    pub fn calls(&mut self, command: &str, calls: u64) -> Result<()> {
        let answer = self.target.command(command)?;
        ensure!(answer["calls"] == calls, "{command}: {answer}");
        Ok(())
    }

    /// Scrapes the agent after a pause that ensures that all ended calls are in the scrape.
    pub fn seen(&self) -> Result<Seen> {
        Seen::of(&self.agent.scrape_settled()?, self.target.pid())
    }

    /// Ends agent and target. Both must exit successfully.
    pub fn end(mut self) -> Result<()> {
        ensure!(self.agent.terminate()?.0.success());
        ensure!(self.target.quit()?.success(), "the target did not end well");
        Ok(())
    }
}

/// What an agent shows of its only target.
pub struct Seen {
    /// The whole scrape.
    pub scrape: Scrape,
    pid: String,
    /// The calls that the agent has counted.
    pub tally: Tally,
    /// The agent's account of these calls.
    pub account: Account,
}

impl Seen {
    /// Parses a scrape.
    pub fn of(scrape: &Scrape, pid: u32) -> Result<Self> {
        let tally = Tally::of_agent(scrape, &DEFAULT_LABELS, None)?;
        Ok(Self { scrape: scrape.clone(), pid: pid.to_string(), tally, account: Account::of(scrape, pid) })
    }

    /// Returns a metric of the target for one reason.
    ///
    /// # Panics
    /// If there is no such metric.
    #[must_use]
    pub fn by_reason(&self, name: &str, reason: &str) -> u64 {
        let labels = [("target", self.pid.as_str()), ("reason", reason)];
        whole(self.scrape.value(name, &labels).unwrap_or_else(|| panic!("no {name} {labels:?}")))
    }

    /// Counts the calls in the histograms of one side, and those that took at most `most_us` microseconds.
    ///
    /// # Panics
    /// If no bucket ends there.
    #[must_use]
    pub fn timed(&self, side: &str, most_us: f64) -> (u64, u64) {
        let histograms = self.scrape.histograms(&format!("kitex_{side}_latency_us"));
        histograms.values().fold((0, 0), |(all, quick), histogram| {
            let up_to = histogram.up_to(most_us).expect("a bucket");
            (all + whole(histogram.count), quick + whole(up_to))
        })
    }
}

/// A row of a target's counts: `count` calls of one side, with caller, callee and method.
#[must_use]
pub fn row(side: &str, names: [&str; 3], count: u64) -> Value {
    json!({"side": side, "type": "pingpong", "caller": names[0], "callee": names[1], "method": names[2],
           "status": "succeed", "count": count})
}

/// Builds a tally from rows.
pub fn tally(rows: &[Value]) -> Result<Tally> {
    Tally::of_target(&json!({ "counts": rows }), &DEFAULT_LABELS)
}

/// Caller, callee and method of an ordinary call.
pub const USUAL: [&str; 3] = ["shop", "stock", "Echo"];
