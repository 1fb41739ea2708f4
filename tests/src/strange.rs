//! A target that puts other things before the probes than Kitex does, and an agent that watches it.

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

/// A target, and an agent that watches nothing else.
pub struct Watched {
    /// The target.
    pub target: Process,
    /// Its agent.
    pub agent: Agent,
}

impl Watched {
    /// Starts a target, and an agent with these arguments.
    pub fn start(args: &[&str]) -> Result<Self> {
        Self::start_with(&[], args)
    }

    /// The same with arguments for the target, too.
    pub fn start_with(target: &[&str], agent: &[&str]) -> Result<Self> {
        let target = Process::start(Program::Strange, Flavour::Default, target)?;
        let agent = Agent::attach(&[target.pid()], agent)?;
        Ok(Self { target, agent })
    }

    /// Has the target make so many calls.
    pub fn calls(&mut self, command: &str, calls: u64) -> Result<()> {
        let answer = self.target.command(command)?;
        ensure!(answer["calls"] == calls, "{command}: {answer}");
        Ok(())
    }

    /// What the agent shows once all calls that have ended are in it.
    pub fn seen(&self) -> Result<Seen> {
        Seen::of(&self.agent.scrape_settled()?, self.target.pid())
    }

    /// Fails unless both end well.
    pub fn end(mut self) -> Result<()> {
        ensure!(self.agent.terminate()?.0.success());
        ensure!(self.target.quit()?.success(), "the target did not end well");
        Ok(())
    }
}

/// What an agent shows about its only target.
pub struct Seen {
    /// All of it.
    pub scrape: Scrape,
    pid: String,
    /// The calls that it has counted.
    pub tally: Tally,
    /// What has become of them.
    pub account: Account,
}

impl Seen {
    /// Reads it from a scrape.
    pub fn of(scrape: &Scrape, pid: u32) -> Result<Self> {
        let tally = Tally::of_agent(scrape, &DEFAULT_LABELS, None)?;
        Ok(Self { scrape: scrape.clone(), pid: pid.to_string(), tally, account: Account::of(scrape, pid) })
    }

    /// A number about the target, by reason.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn by_reason(&self, name: &str, reason: &str) -> u64 {
        let labels = [("target", self.pid.as_str()), ("reason", reason)];
        whole(self.scrape.value(name, &labels).unwrap_or_else(|| panic!("no {name} {labels:?}")))
    }

    /// Calls in the histograms of one side, and those of them that took at most so many microseconds.
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

/// So many calls of one side, with the caller, the callee and the method.
#[must_use]
pub fn row(side: &str, names: [&str; 3], count: u64) -> Value {
    json!({"side": side, "type": "pingpong", "caller": names[0], "callee": names[1], "method": names[2],
           "status": "succeed", "count": count})
}

/// The tally of such rows.
pub fn tally(rows: &[Value]) -> Result<Tally> {
    Tally::of_target(&json!({ "counts": rows }), &DEFAULT_LABELS)
}

/// The names of a usual call: caller, callee, method.
pub const USUAL: [&str; 3] = ["shop", "stock", "Echo"];
