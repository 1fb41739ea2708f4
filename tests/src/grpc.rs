//! Compares what the agent counted of gRPC calls with what `targets/grpc` counted itself.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    chain::{Account, check_closed},
    process::Process,
    scrape::{Labels, Scrape, whole},
};

/// What names a call; `side` is not a label of the agent's.
const NAMES: [&str; 4] = ["side", "grpc_type", "grpc_service", "grpc_method"];
/// What a call ended with.
const CODE: &str = "grpc_code";
/// The sides of calls.
pub const SIDES: [&str; 2] = ["client", "server"];
/// How calls end well.
const OK: &str = "OK";
/// The kind of calls that end without a start: the refused ones.
const UNPAIRED: &str = "unknown";

/// Numbers by what they are of.
type Sums = BTreeMap<Labels, u64>;

/// Calls by their names: those that started, and with their code those that ended; and their messages.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Starts.
    pub started: Sums,
    /// Ends.
    pub handled: Sums,
    /// Messages received.
    pub received: Sums,
    /// Messages sent.
    pub sent: Sums,
}

impl Calls {
    /// What a target answers to `counts`.
    pub fn of_target(process: &mut Process) -> Result<Self> {
        Self::of_counts(&process.command("counts")?)
    }

    /// The same from its answer.
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

    /// Only those of these sides.
    #[must_use]
    pub fn of_sides(mut self, sides: &[&str]) -> Self {
        for sums in [&mut self.started, &mut self.handled, &mut self.received, &mut self.sent] {
            sums.retain(|labels, _| sides.contains(&labels["side"].as_str()));
        }
        self
    }

    /// What the agent counted, for one target where it watches several.
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

    /// Fails, with a list of what differs, unless the agent counted exactly these calls, and any at all.
    pub fn check(&self, agent: &Self) -> Result<()> {
        same(&[(&self.started, &agent.started), (&self.handled, &agent.handled)])?;
        ensure!(!self.handled.is_empty(), "neither the agent nor the target counted anything");
        Ok(())
    }

    /// The same for their messages, of streams in both directions among them.
    pub fn check_messages(&self, agent: &Self, sides: &[&str]) -> Result<()> {
        same(&[(&self.received, &agent.received), (&self.sent, &agent.sent)]).context("messages")?;
        for side in sides {
            let sums = if *side == "client" { &self.sent } else { &self.received };
            let is_stream = |labels: &Labels| labels["side"] == *side && labels["grpc_type"] == "bidi_stream";
            ensure!(sums.keys().any(is_stream), "no messages of streams on the side of the {side}");
        }
        Ok(())
    }

    /// All that ended.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.handled.values().sum()
    }

    /// All messages, in both directions.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.received.values().chain(self.sent.values()).sum()
    }

    /// The messages of calls of a type, in both directions.
    #[must_use]
    pub fn messages_of(&self, grpc_type: &str) -> u64 {
        let all = self.received.iter().chain(&self.sent);
        all.filter(|(labels, _)| labels["grpc_type"] == grpc_type).map(|(_, messages)| messages).sum()
    }

    /// All that ended without a start.
    fn unpaired(&self) -> u64 {
        let refused = self.handled.iter().filter(|(labels, _)| labels["grpc_type"] == UNPAIRED);
        refused.map(|(_, calls)| calls).sum()
    }
}

/// Fails unless the agent counted exactly the calls of a target that it was attached to before the first: starts, ends,
/// durations and its own account of them. Gives the calls.
pub fn check(process: &mut Process, scrape: &Scrape, several: bool) -> Result<Calls> {
    check_sides(process, scrape, several, &SIDES)
}

/// The same where the agent watches these sides only.
pub fn check_sides(process: &mut Process, scrape: &Scrape, several: bool, sides: &[&str]) -> Result<Calls> {
    check_counts(process.pid(), &process.command("counts")?, scrape, several, sides)
}

/// The same by what a process has answered to `counts`.
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

/// The same for the messages of a target that the agent counts messages of. None is lost.
pub fn check_messages(process: &mut Process, scrape: &Scrape, several: bool) -> Result<()> {
    check_messages_of(process, scrape, several, &SIDES)
}

/// The same where the agent watches these sides only.
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

/// Fails unless go-grpc-prometheus, inside, counted what the agent did, but for what it counts otherwise: a reply of each unary
/// call of a client that failed, in place of those that did not; no end of a client's stream that has a single reply and got
/// it. What the server refuses it does not hear.
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

/// Calls in the histograms, by their names.
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

/// Calls that were begun and have ended, whatever their code.
fn by_names(handled: &Sums) -> Sums {
    let mut sums = Sums::new();
    for (labels, calls) in handled.iter().filter(|(labels, _)| labels["grpc_type"] != UNPAIRED) {
        let mut names = labels.clone();
        names.remove(CODE);
        add(&mut sums, names, *calls);
    }
    sums
}

/// Fails, with a list of what differs, unless each pair of sums is the same.
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

/// Each call whose start was seen is in a histogram.
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
