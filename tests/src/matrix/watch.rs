//! Runs the agent on one cell's program while it makes every kind of call, and compares the counts of both.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{Cell, Framework, Matrix, Racy};
use crate::{
    agent::{self, Agent},
    chain::Account,
    grpc,
    process::Process,
    scrape::{Labels, Scrape, whole},
    tally::Tally,
};

/// The labels compared: all that exist.
pub const LABELS: [&str; 7] = ["type", "caller", "callee", "method", "status", "retry", "error_class"];
/// How often each scenario is run by itself, and how often together with all others.
const ALONE: u32 = 2;
const TOGETHER: u32 = 3;
/// A load of unary gRPC calls, many of them concurrent.
const LOAD: &str = "load 2000 16";
/// Why scenarios whose calls never finish are not compared.
const ENDLESS: &str = "its calls never finish, so no counter shows them";
/// How often a scenario of [`MAY_END_OTHERWISE`] is tried.
const TRIES: u32 = 3;
/// Parts of the names of scenarios whose calls may end otherwise than intended, and the reason.
const MAY_END_OTHERWISE: [(&str, &str); 5] = [
    ("mux", "Kitex closes a multiplexed connection under a call now and then"),
    ("timeout", BUSY),
    ("deadline", BUSY),
    ("panic_outside", BUSY),
    ("ttstream_unknown", BUSY),
];
/// The reason for scenarios that depend on the speed of the machine.
const BUSY: &str = "on a busy machine its time may be over before the call is as far as is meant";
/// How often a program is watched until the bytes of all calls could be read. An object that nobody has written to yet
/// may lie on a page that the kernel has not allocated yet, which the programs can't read. This is counted, and rare:
/// about one call in ten thousand if memory comes in small pages.
const WATCHES: u32 = 5;
/// The reason under which a call whose bytes could not be read is counted. Nothing else of such a call is lost.
const UNREAD: &str = "size_unreadable";
/// How long the agent may take to inspect a file.
const INSPECTION: Duration = Duration::from_secs(20);

/// Why scenarios are not compared whose handlers return another error than the failure that gRPC-Go has reported
/// before.
const TOLD_BEFORE: &str = "what its handlers make of a failure is told to nobody";
/// The notes about calls that can't be compared: how the note begins, the scenarios that make such calls, and the
/// reason.
const LEFT_OUT_BY_NOTE: [(&str, &[&str], &str); 3] = [
    ("client, without a stream: ", &["tried again with nobody there", "closed while they wait"], ENDLESS),
    ("server, unary: not all of their ends", &["client gone before the reply"], ENDLESS),
    (
        "server: a call that can't receive or send ends with that",
        &[
            "client gone, and the server fails otherwise",
            "client gone, and the server takes it well",
            "canceled, and the server fails otherwise",
        ],
        TOLD_BEFORE,
    ),
];
/// The note about Kitex's servers that don't mark the streams of gRPC, and the releases that have it.
const UNMARKED: (&str, &str) =
    ("servers of v0.12 don't mark streams over gRPC: they count as pingpong", "v0.12.");
/// The note in executables where messages can't be counted.
const NO_MESSAGES: &str = "the messages of streams can't be counted";

/// The result of a cell.
#[derive(Debug)]
pub enum Verdict {
    /// The agent counted exactly what the program counted.
    Supported(Report),
    /// The agent refused to watch the program, with this reason.
    Refused(String),
    /// There is no such program, for this reason.
    NotBuildable(String),
    /// Anything else: the counts differ, or the agent or the program misbehaved.
    Failed(String),
}

/// The result of a comparison.
#[derive(Debug)]
pub struct Report {
    /// Finished calls, of clients and servers.
    pub calls: u64,
    /// Messages of streams.
    pub messages: u64,
    /// The side that was watched, if only one was.
    pub only: Option<&'static str>,
    /// Why a scenario could not be run on this release, by name. `None` if it was run.
    pub scenarios: BTreeMap<String, Option<String>>,
    /// The agent's notes about what it cannot distinguish in this program.
    pub notes: Vec<String>,
}

/// Held while a cell is watched: calls with deadlines of some milliseconds end differently if another cell takes the
/// processors.
static WATCHING: Mutex<()> = Mutex::new(());

/// Builds a cell's program and watches it. Several cells may be built at once, and one is watched meanwhile.
#[must_use]
pub fn cell(matrix: &Matrix, cell: &Cell) -> Verdict {
    if let Some(reason) = &cell.not_buildable {
        return Verdict::NotBuildable(reason.clone());
    }
    let watched = cell.build(matrix).and_then(|executable| {
        let _watching = WATCHING.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match inspect(&executable)? {
            Inspection::Refused(reason) => Verdict::Refused(reason),
            Inspection::Attachable(notes) => Verdict::Supported(match cell.framework {
                Framework::Kitex => {
                    let (note, series) = UNMARKED;
                    let is_noted = notes.iter().any(|one| one == note);
                    ensure!(is_noted == cell.release.starts_with(series), "{cell}: {notes:?}");
                    watch_until_read(matrix, &executable, &notes)?
                }
                Framework::Grpc => watch_grpc(&executable, notes)?,
            }),
        })
    });
    watched.unwrap_or_else(|error| Verdict::Failed(format!("{error:#}")))
}

enum Inspection {
    Attachable(Vec<String>),
    Refused(String),
}

/// Runs `inspect` on a file.
fn inspect(executable: &Path) -> Result<Inspection> {
    let path = executable.to_str().context("a path that is not UTF-8")?;
    let ended = agent::run_to_end(&["inspect", "--json", "--exe", path], INSPECTION)?;
    let said: Value = serde_json::from_str(&ended.stdout).with_context(|| ended.stderr.clone())?;
    let frameworks = said["frameworks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let texts = |of: &str| -> Vec<String> {
        let all = frameworks.iter().chain([&said]);
        let all = all.filter_map(|part| part[of].as_array()).flatten();
        all.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    match said["attachable"].as_bool() {
        Some(true) => Ok(Inspection::Attachable(texts("notes"))),
        _ => Ok(Inspection::Refused(texts("reasons").join("; "))),
    }
}

/// Has a gRPC program make every kind of call, and then many concurrent ones.
fn watch_grpc(executable: &Path, notes: Vec<String>) -> Result<Report> {
    // Up to v1.40, gRPC-Go retries calls only if the environment enables it.
    let mut command = std::process::Command::new(executable);
    let mut calls = Process::start_command(command.env("GRPC_GO_RETRY", "on"))?;
    let flags = ["--grpc.messages", "--metrics", "grpc,otel,go,process"];
    let agent = Agent::attach(&[calls.pid()], &flags)?;
    let listed = calls.command("scenarios")?;
    let names = listed["scenarios"].as_array().context("no scenarios")?.iter().filter_map(Value::as_str);
    let left_out = |name: &str| {
        let is_noted = |begins: &str| notes.iter().any(|note| note.starts_with(begins));
        let mut reasons = LEFT_OUT_BY_NOTE.iter();
        let (.., why) = reasons.find(|(begins, names, _)| names.contains(&name) && is_noted(begins))?;
        Some((*why).to_owned())
    };
    let mut scenarios = BTreeMap::new();
    for name in names {
        let reason = left_out(name);
        if reason.is_none() {
            calls.command(&format!("run {name} {ALONE}"))?;
        }
        scenarios.insert(name.to_owned(), reason);
    }
    calls.command(LOAD)?;
    let scrape = agent.scrape_settled()?;
    let sides = watched_sides(&notes);
    let counted = grpc::check_sides(&mut calls, &scrape, false, &sides)?;
    check_grpc_otel(&counted, &scrape)?;
    let only = if let [side] = sides[..] { Some(side) } else { None };
    let without = |side: &&str| notes.iter().any(|note| note.starts_with(&format!("{side}: {NO_MESSAGES}")));
    let sides: Vec<_> = sides.into_iter().filter(|side| !without(side)).collect();
    if !sides.is_empty() {
        grpc::check_messages_of(&mut calls, &scrape, false, &sides)?;
    }
    agent.terminate()?;
    Ok(Report { calls: counted.total(), messages: counted.messages(), only, scenarios, notes })
}

/// Returns the sides that no note excludes.
fn watched_sides(notes: &[String]) -> Vec<&'static str> {
    let is_watched = |(calls, _): &(&str, &str)| {
        !notes.iter().any(|note| note.starts_with(&format!("{calls} are not watched")))
    };
    let sides = [("calls that it makes", "client"), ("calls that it serves", "server")];
    sides.into_iter().filter(is_watched).map(|(_, side)| side).collect()
}

/// Watches a program repeatedly until the bytes of all calls could be read. Everything else must agree each time.
fn watch_until_read(matrix: &Matrix, executable: &Path, notes: &[String]) -> Result<Report> {
    for _ in 0..WATCHES {
        if let Some(report) = watch(matrix, executable, notes.to_vec())? {
            return Ok(report);
        }
        eprintln!("some calls' bytes were on pages that were not there yet: once more");
    }
    bail!("in each of {WATCHES} tries some calls' bytes could not be read")
}

/// Runs every scenario that the program has, first one after the other, then concurrently those that can be.
///
/// Returns `None` if the bytes of some calls could not be read but everything else agrees.
fn watch(matrix: &Matrix, executable: &Path, notes: Vec<String>) -> Result<Option<Report>> {
    let mut calls = Process::start_command(&mut std::process::Command::new(executable))?;
    let labels = LABELS.join(",");
    let flags = ["--kitex.labels", &labels, "--kitex.bytes", "--kitex.stream-messages"];
    let agent = Agent::attach(&[calls.pid()], &flags)?;
    let otel = Agent::attach(&[calls.pid()], &["--metrics", "otel"])?;
    let scenarios = run_all(&mut calls)?;
    let settled = calls.command("settle")?;
    let scrape = agent.scrape_settled()?;
    let counts = calls.command("counts")?;
    let messages = calls.command("messages")?;
    let tally = Tally::of_target(&counts, &LABELS)?;
    tally.check(&Tally::of_agent(&scrape, &LABELS, None)?)?;
    let unread = check_account(&Account::of(&scrape, calls.pid()), &settled)?;
    if unread == 0 {
        check_bytes(&counts, &scrape, &matrix.racy)?;
    }
    check_otel(&counts, &otel.scrape_settled()?)?;
    otel.terminate()?;
    let messages = check_messages(&messages, &scrape)?;
    agent.terminate()?;
    Ok((unread == 0).then(|| Report { calls: tally.total(), messages, only: None, scenarios, notes }))
}

fn run_all(calls: &mut Process) -> Result<BTreeMap<String, Option<String>>> {
    let listed = calls.command("scenarios")?;
    let mut scenarios = BTreeMap::new();
    for scenario in listed["scenarios"].as_array().context("no scenarios")? {
        let name = scenario["name"].as_str().context("a scenario without a name")?;
        let missing = scenario["missing"].as_str().map(str::to_owned);
        let endless = (scenario["finishes"] == false).then(|| ENDLESS.to_owned());
        scenarios.insert(name.to_owned(), missing.or(endless));
    }
    for (name, _) in scenarios.iter().filter(|(_, missing)| missing.is_none()) {
        run_alone(calls, name)?;
    }
    let together = calls.command(&format!("run all {TOGETHER}"))?;
    let failed =
        together["failed"].as_object().with_context(|| format!("nothing of failures: {together}"))?;
    for (name, error) in failed {
        let why =
            why_otherwise(name).with_context(|| format!("with all others at the same time: {error}"))?;
        eprintln!("{name} has failed with all others at the same time ({why}): {error}");
    }
    Ok(scenarios)
}

/// Returns why the calls of a scenario may end otherwise than intended.
fn why_otherwise(name: &str) -> Option<&'static str> {
    MAY_END_OTHERWISE.iter().find(|(part, _)| name.contains(part)).map(|(_, why)| *why)
}

/// Runs a scenario. If its calls may end otherwise than intended, repeats it until they end as intended.
fn run_alone(calls: &mut Process, name: &str) -> Result<()> {
    let mut run = || calls.command(&format!("run {name} {ALONE}")).map(drop);
    let Some(why) = why_otherwise(name) else { return run() };
    for again in 1..TRIES {
        let Err(error) = run() else { return Ok(()) };
        eprintln!("{name} is tried again, {again} of {} times ({why}): {error:#}", TRIES - 1);
    }
    run()
}

/// Fails unless the agent has seen every start and finish that the tracer saw, and has lost nothing but bytes. Returns
/// how often it could not read bytes.
fn check_account(account: &Account, settled: &Value) -> Result<u64> {
    let seen = |what: &str| settled[what].as_u64().with_context(|| format!("no {what} in {settled}"));
    let (started, finished) = (seen("started")?, seen("finished")?);
    ensure!(account.starts == started, "{started} calls started: {account:?}");
    ensure!(account.timed == finished, "{finished} calls finished: {account:?}");
    ensure!(account.in_flight == started - finished, "{started} started, {finished} finished: {account:?}");
    let (unread, others): (Vec<_>, Vec<_>) =
        account.found_faults().into_iter().partition(|(name, _)| name.contains(UNREAD));
    ensure!(others.is_empty(), "{others:?}");
    Ok(unread.into_iter().map(|(_, times)| times).sum())
}

/// Fails unless the agent's bytes equal those in the RPCs' own statistics.
fn check_bytes(counts: &Value, scrape: &Scrape, racy: &[Racy]) -> Result<()> {
    let rows = counts["counts"].as_array().context("no counts")?;
    for number in ["send_bytes", "recv_bytes"] {
        let own = sums(rows, &LABELS, number)?;
        check_sums(&own, scrape, number, racy)?;
    }
    Ok(())
}

/// Fails unless the agent's OpenTelemetry metrics have the calls by protocol and outcome.
fn check_otel(counts: &Value, scrape: &Scrape) -> Result<()> {
    const NAMES: [(&str, &str); 4] = [
        ("callee", "rpc_service"),
        ("method", "rpc_method"),
        ("protocol", "request_protocol"),
        ("status_code", "status_code"),
    ];
    let rows = counts["counts"].as_array().context("no counts")?;
    let own = sums(rows, &NAMES.map(|(name, _)| name), "count")?;
    let mut agents = BTreeMap::<Labels, u64>::new();
    for side in ["client", "server"] {
        for (labels, histogram) in scrape.histograms(&format!("rpc_{side}_duration")) {
            let mut of = Labels::from([("side".to_owned(), side.to_owned())]);
            for (name, label) in NAMES {
                of.insert(name.to_owned(), labels.get(label).with_context(|| format!("no {label}"))?.clone());
            }
            *agents.entry(of).or_default() += whole(histogram.count);
        }
    }
    check_equal("rpc_…_duration", &own, &agents, |_| false)
}

/// Like [`check_otel`], for gRPC: calls are named by service and method, and have a code instead of a protocol. Calls
/// that the server refuses have no start, and so no duration.
fn check_grpc_otel(calls: &grpc::Calls, scrape: &Scrape) -> Result<()> {
    let named = |side: &str, service: &str, method: &str, status: &str| {
        let pairs = [("side", side), ("service", service), ("method", method), ("status", status)];
        Labels::from(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())))
    };
    let mut own = BTreeMap::<Labels, u64>::new();
    for (labels, count) in calls.handled.iter().filter(|(labels, _)| labels["grpc_type"] != "unknown") {
        let status = if labels["grpc_code"] == "OK" { "Unset" } else { "Error" };
        let of = named(&labels["side"], &labels["grpc_service"], &labels["grpc_method"], status);
        *own.entry(of).or_default() += count;
    }
    let mut agents = BTreeMap::<Labels, u64>::new();
    for side in ["client", "server"] {
        for (labels, histogram) in scrape.histograms(&format!("rpc_{side}_duration")) {
            let label = |name: &str| labels.get(name).with_context(|| format!("no {name} in {labels:?}"));
            ensure!(label("rpc_system")? == "grpc", "{labels:?}");
            let of = named(side, label("rpc_service")?, label("rpc_method")?, label("status_code")?);
            *agents.entry(of).or_default() += whole(histogram.count);
        }
    }
    check_equal("rpc_…_duration", &own, &agents, |_| false)
}

/// Fails unless the agent's messages equal those of the stream events. Returns how many there are.
fn check_messages(messages: &Value, scrape: &Scrape) -> Result<u64> {
    let names = ["type", "caller", "callee", "method", "kind", "direction"];
    let rows = messages["messages"].as_array().context("no messages")?;
    let own = sums(rows, &names, "count")?;
    check_sums(&own, scrape, "stream_messages", &[])?;
    Ok(own.values().sum())
}

/// Sums one number of the program's answer by the labels and `side`.
fn sums(rows: &[Value], labels: &[&str], number: &str) -> Result<BTreeMap<Labels, u64>> {
    let mut sums = BTreeMap::new();
    for row in rows {
        let mut of = Labels::new();
        for name in labels.iter().chain(&["side"]) {
            let value = row[name].as_str().with_context(|| format!("no {name} in {row}"))?;
            of.insert((*name).to_owned(), value.to_owned());
        }
        *sums.entry(of).or_default() +=
            row[number].as_u64().with_context(|| format!("no {number}: {row}"))?;
    }
    Ok(sums)
}

impl Racy {
    fn covers(&self, labels: &Labels, number: &str) -> bool {
        let is = |name: &str, value: &str| labels.get(name).is_some_and(|of| of == value);
        self.number == number && is("callee", &self.callee) && is("side", &self.side)
    }
}

fn check_sums(own: &BTreeMap<Labels, u64>, scrape: &Scrape, metric: &str, racy: &[Racy]) -> Result<()> {
    let mut agents = BTreeMap::<Labels, u64>::new();
    for side in ["client", "server"] {
        for sample in scrape.samples(&format!("kitex_{side}_{metric}")) {
            let mut of = sample.labels.clone();
            of.insert("side".to_owned(), side.to_owned());
            agents.insert(of, whole(sample.value));
        }
    }
    check_equal(metric, own, &agents, |labels| racy.iter().any(|racy| racy.covers(labels, metric)))
}

fn check_equal(
    metric: &str,
    own: &BTreeMap<Labels, u64>,
    agents: &BTreeMap<Labels, u64>,
    may_differ: impl Fn(&Labels) -> bool,
) -> Result<()> {
    let mut differing = Vec::new();
    for labels in own.keys().chain(agents.keys()).collect::<BTreeSet<_>>() {
        let (own, agents) = (own.get(labels).unwrap_or(&0), agents.get(labels).unwrap_or(&0));
        if own != agents && !may_differ(labels) {
            differing.push(format!("{labels:?}: the program {own}, the agent {agents}"));
        }
    }
    ensure!(differing.is_empty(), "{metric}:\n{}", differing.join("\n"));
    Ok(())
}
