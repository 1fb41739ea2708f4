//! Compares the agent's counts of gRPC calls with those of `targets/grpc` itself.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    chain::{Account, check_closed},
    process::Process,
    scrape::{Labels, Scrape, whole},
};

/// The labels that identify a call. The agent has no label `side`: the metric's name has it.
const NAMES: [&str; 4] = ["side", "grpc_type", "grpc_service", "grpc_method"];
/// The label with the code that a call ended with.
const CODE: &str = "grpc_code";
/// Both sides of a call.
pub const SIDES: [&str; 2] = ["client", "server"];
/// The code of a successful call.
const OK: &str = "OK";
/// The type of calls that end without a start: those that the server refused.
const UNPAIRED: &str = "unknown";

/// Counts by label set.
type Sums = BTreeMap<Labels, u64>;

/// Calls and their messages by label set. The counts of ended calls also have their code.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Calls that have started.
    pub started: Sums,
    /// Calls that have ended.
    pub handled: Sums,
    /// Messages received.
    pub received: Sums,
    /// Messages sent.
    pub sent: Sums,
}

impl Calls {
    /// Asks a target for its `counts`.
    pub fn of_target(process: &mut Process) -> Result<Self> {
        Self::of_counts(&process.command("counts")?)
    }

    /// Parses a target's answer to `counts`.
    pub fn of_counts(counts: &Value) -> Result<Self> {
        let mut calls = Self::default();
        for row in counts["counts"].as_array().context("no counts in the target's answer")? {
            let number = |name: &str| row[name].as_u64().with_context(|| format!("no {name} in {row}"));
            for (name, sums) in [
                ("started", &mut calls.started),
                ("received", &mut calls.received),
                ("sent", &mut calls.sent),
            ] {
                add(sums, labels_of(row, &NAMES)?, number(name)?);
            }
            let names = [&NAMES[..], &[CODE]].concat();
            add(&mut calls.handled, labels_of(row, &names)?, number("handled")?);
        }
        Ok(calls)
    }

    /// Keeps only the calls of these sides.
    #[must_use]
    pub fn of_sides(mut self, sides: &[&str]) -> Self {
        for sums in [&mut self.started, &mut self.handled, &mut self.received, &mut self.sent] {
            sums.retain(|labels, _| sides.contains(&labels["side"].as_str()));
        }
        self
    }

    /// Reads the agent's counts from a scrape, for one target if the agent watches several.
    #[must_use]
    pub fn of_agent(scrape: &Scrape, target: Option<u32>) -> Self {
        let mut calls = Self::default();
        for (name, sums) in [
            ("started", &mut calls.started),
            ("handled", &mut calls.handled),
            ("msg_received", &mut calls.received),
            ("msg_sent", &mut calls.sent),
        ] {
            for side in ["client", "server"] {
                for sample in scrape.samples(&format!("grpc_{side}_{name}_total")) {
                    let mut labels = sample.labels.clone();
                    let of = labels.remove("target");
                    if of != target.map(|pid| pid.to_string()) {
                        continue;
                    }
                    labels.insert("side".to_owned(), side.to_owned());
                    add(sums, labels, whole(sample.value));
                }
            }
        }
        calls
    }

    /// Fails, with a list of the differences, unless the agent counted exactly these calls, and at least one.
    pub fn check(&self, agent: &Self) -> Result<()> {
        same(&[(&self.started, &agent.started), (&self.handled, &agent.handled)])?;
        ensure!(!self.handled.is_empty(), "neither the agent nor the target counted anything");
        Ok(())
    }

    /// Like [`Calls::check`], for messages. On each of these sides, bidirectional streams must have some.
    pub fn check_messages(&self, agent: &Self, sides: &[&str]) -> Result<()> {
        same(&[(&self.received, &agent.received), (&self.sent, &agent.sent)]).context("messages")?;
        for side in sides {
            let sums = if *side == "client" { &self.sent } else { &self.received };
            let is_stream = |labels: &Labels| labels["side"] == *side && labels["grpc_type"] == "bidi_stream";
            ensure!(sums.keys().any(is_stream), "no messages of streams on the side of the {side}");
        }
        Ok(())
    }

    /// The number of calls that have ended.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.handled.values().sum()
    }

    /// The number of messages in both directions.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.received.values().chain(self.sent.values()).sum()
    }

    /// The number of messages of one type of call, in both directions.
    #[must_use]
    pub fn messages_of(&self, grpc_type: &str) -> u64 {
        let all = self.received.iter().chain(&self.sent);
        all.filter(|(labels, _)| labels["grpc_type"] == grpc_type).map(|(_, messages)| messages).sum()
    }

    /// The number of calls that ended without a start.
    fn unpaired(&self) -> u64 {
        let refused = self.handled.iter().filter(|(labels, _)| labels["grpc_type"] == UNPAIRED);
        refused.map(|(_, calls)| calls).sum()
    }
}

/// Fails unless the agent counted exactly the calls of a target: starts, ends, durations and the agent's own account of
/// them. The agent must have been attached before the first call. Returns the calls.
pub fn check(process: &mut Process, scrape: &Scrape, several: bool) -> Result<Calls> {
    check_sides(process, scrape, several, &SIDES)
}

/// Like [`check`], if the agent watches only these sides.
pub fn check_sides(process: &mut Process, scrape: &Scrape, several: bool, sides: &[&str]) -> Result<Calls> {
    check_counts(process.pid(), &process.command("counts")?, scrape, several, sides)
}

/// Like [`check_sides`], with a process's answer to `counts`.
pub fn check_counts(
    pid: u32,
    counts: &Value,
    scrape: &Scrape,
    several: bool,
    sides: &[&str],
) -> Result<Calls> {
    let target = several.then_some(pid);
    let own = Calls::of_counts(counts)?.of_sides(sides);
    own.check(&Calls::of_agent(scrape, target)).with_context(|| format!("pid {pid}"))?;
    let account = Account::of(scrape, pid);
    let started: u64 = own.started.values().sum();
    ensure!(account.starts >= started, "{started} calls started: {account:?}");
    for side in sides {
        check_durations(&own, scrape, side, target)?;
    }
    check_closed(scrape, pid, [0, 0])?;
    Ok(own)
}

/// Fails unless the agent counted exactly the messages of a target and lost none.
pub fn check_messages(process: &mut Process, scrape: &Scrape, several: bool) -> Result<()> {
    check_messages_of(process, scrape, several, &SIDES)
}

/// Like [`check_messages`], if the agent watches only these sides.
pub fn check_messages_of(
    process: &mut Process,
    scrape: &Scrape,
    several: bool,
    sides: &[&str],
) -> Result<()> {
    let target = several.then(|| process.pid());
    let pid = process.pid().to_string();
    let agents = Calls::of_agent(scrape, target).of_sides(sides);
    Calls::of_target(process)?.of_sides(sides).check_messages(&agents, sides)?;
    let lost = scrape.value("monitor_events_lost_total", &[("reason", "message"), ("target", pid.as_str())]);
    ensure!(lost == Some(0.0), "messages lost: {lost:?}");
    Ok(())
}

/// Fails unless go-grpc-prometheus, in the process, counted what the agent did, except for known differences: for a
/// client's unary calls it counts a reply for those that failed, and none for those that did not. It counts no end of a
/// client's stream that has a single reply and got it. It does not see calls that the server refuses.
pub fn check_reference(library: &Scrape, agent: &Scrape) -> Result<()> {
    let (own, mut agents) = (Calls::of_agent(library, None), Calls::of_agent(agent, None));
    let is_unary = |labels: &Labels| labels["side"] == "client" && labels["grpc_type"] == "unary";
    agents.received.retain(|labels, _| !is_unary(labels));
    for (labels, calls) in agents.handled.iter().filter(|(labels, _)| is_unary(labels) && labels[CODE] != OK)
    {
        let mut names = labels.clone();
        names.remove(CODE);
        add(&mut agents.received, names, *calls);
    }
    let is_unheard = |labels: &Labels| {
        labels["side"] == "client" && labels["grpc_type"] == "client_stream" && labels[CODE] == OK
    };
    ensure!(agents.handled.keys().any(is_unheard), "no client's stream got its reply");
    agents.handled.retain(|labels, _| !is_unheard(labels) && labels["grpc_type"] != UNPAIRED);
    ensure!(own.total() > 0, "the library counted nothing");
    same(&[
        (&own.started, &agents.started),
        (&own.handled, &agents.handled),
        (&own.received, &agents.received),
        (&own.sent, &agents.sent),
        (&timed(library), &by_names(&agents.handled)),
        (&timed(agent), &by_names(&Calls::of_agent(agent, None).handled)),
    ])
}

/// Counts the calls in the histograms by label set.
fn timed(scrape: &Scrape) -> Sums {
    let mut sums = Sums::new();
    for side in ["client", "server"] {
        for (mut labels, histogram) in scrape.histograms(&format!("grpc_{side}_handling_seconds")) {
            labels.insert("side".to_owned(), side.to_owned());
            add(&mut sums, labels, whole(histogram.count));
        }
    }
    sums
}

/// Counts the calls that have both started and ended by label set, whatever their code.
fn by_names(handled: &Sums) -> Sums {
    let mut sums = Sums::new();
    for (labels, calls) in handled.iter().filter(|(labels, _)| labels["grpc_type"] != UNPAIRED) {
        let mut names = labels.clone();
        names.remove(CODE);
        add(&mut sums, names, *calls);
    }
    sums
}

/// Fails, with a list of the differences, unless each pair of counts is equal.
fn same(pairs: &[(&Sums, &Sums)]) -> Result<()> {
    let mut different = Vec::new();
    for (own, agents) in pairs {
        for labels in own.keys().chain(agents.keys()) {
            let (own, agents) = (own.get(labels), agents.get(labels));
            if own != agents {
                different.push(format!("{labels:?}: the target {own:?}, the agent {agents:?}"));
            }
        }
    }
    ensure!(different.is_empty(), "counted differently:\n{}", different.join("\n"));
    Ok(())
}

/// Fails unless each call whose start was seen is in a histogram.
fn check_durations(own: &Calls, scrape: &Scrape, side: &str, target: Option<u32>) -> Result<()> {
    let target = target.map(|pid| pid.to_string());
    let histograms = scrape.histograms(&format!("grpc_{side}_handling_seconds"));
    let of_target = histograms.iter().filter(|(labels, _)| labels.get("target") == target.as_ref());
    let timed: u64 = of_target.map(|(_, histogram)| whole(histogram.count)).sum();
    let of_side = own.handled.iter().filter(|(labels, _)| labels["side"] == side);
    let ended: u64 = of_side.map(|(_, calls)| calls).sum();
    let refused = if side == "server" { own.unpaired() } else { 0 };
    ensure!(timed + refused == ended, "{side}: {timed} durations, {refused} refused calls, {ended} calls");
    Ok(())
}

fn labels_of(row: &Value, names: &[&str]) -> Result<Labels> {
    let value = |name: &&str| {
        let text = row[*name].as_str().with_context(|| format!("no {name} in {row}"))?;
        Ok(((*name).to_owned(), text.to_owned()))
    };
    names.iter().map(value).collect()
}

fn add(sums: &mut Sums, labels: Labels, calls: u64) {
    if calls > 0 {
        *sums.entry(labels).or_default() += calls;
    }
}
