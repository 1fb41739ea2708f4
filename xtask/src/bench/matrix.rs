//! Measures servers of each protocol, with few and with many calls in flight, under all conditions.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    charts::{self, Bar},
    condition::{Condition, Mode},
    machine::Cores,
    maps,
    peers::Peer,
    report::{Spread, at_most, megabytes, ratio, row, show_ratio, table, verdict, verdict_of_memory},
    section::Section,
    stage::{AgentCost, Inside, Load, Protocol, Sample, Stage},
};
use crate::process::say;

/// The most that the agent should add, in units of what two empty programs add.
const AIM: f64 = 1.3;
/// The same for gRPC, whose calls have a longer name to read and a status to look for.
const AIM_GRPC: f64 = 1.5;
/// The same for a sample of durations.
const AIM_ECONOMY: f64 = 0.75;
/// The most processor time that the agent itself should need per call, in microseconds; memory in MB; time in
/// milliseconds.
pub(super) const AIM_CPU_US: f64 = 0.5;
pub(super) const AIM_RESIDENT_MB: f64 = 30.0;
const AIM_ATTACH_MS: f64 = 300.0;
/// The most wakeups per second, however many calls there are.
const AIM_WAKEUPS: f64 = 50.0;
/// How much ratios may differ between runs on one machine.
const TOLERANCE: f64 = 0.3;
/// Calls in flight in the cells that are measured at length: those whose ratios are compared with an earlier run's.
/// In three rounds, one that is not above zero makes a ratio noise; in twelve rounds, it takes two.
const USUAL: u32 = 16;
/// Other cells have the rounds divided by this, and at most this many seconds per measurement.
const BRIEF: u32 = 4;
const BRIEF_SECONDS: u32 = 2;
/// Seconds of calls while the kernel times programs: it times each run, and there are tens of thousands.
const INSIDE_SECONDS: f64 = 1.0;
/// Processor time that a service's call may take, in microseconds, in the table of shares.
const SERVICES_US: [f64; 3] = [10.0, 100.0, 1000.0];

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan<'a> {
    /// Rounds of a cell that is measured at length.
    pub(super) rounds: u32,
    pub(super) seconds: u32,
    pub(super) peers: &'a [Peer],
    pub(super) peers_ready_after: Duration,
}

/// Selects the run time of some programs.
type OfInside = fn(&Inside) -> f64;

/// One protocol with a fixed number of calls in flight.
#[derive(Debug)]
struct Cell {
    protocol: Protocol,
    concurrency: u32,
    /// The conditions under which the server was measured, with their names.
    conditions: Vec<(Condition, String)>,
    /// The samples of each round, in the order of the conditions. At least one round.
    rounds: Vec<Vec<Sample>>,
    /// The run times of programs, for each round; empty if they were not measured.
    inside: Vec<Inside>,
}

/// The results of a cell as stored in JSON. All text about the cell is derived from them.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Found {
    protocol: Protocol,
    concurrency: u32,
    rounds: usize,
    /// The run times of programs, for each round; empty if they were not measured.
    inside: Vec<Inside>,
    /// In the order in which they are shown. The bare server is the first.
    conditions: Vec<Measured>,
}

/// The results under one condition.
#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    /// The condition's key.
    condition: String,
    name: String,
    server_us: Spread,
    /// What it adds to the bare server's time in the same round.
    added_us: Spread,
    calls_per_second: Spread,
    p50_us: Spread,
    p99_us: Spread,
    p999_us: Spread,
    /// The own processor time of agent or peer per call.
    watcher_us: Option<Spread>,
    /// Further numbers about the agent.
    agent: Option<OfAgent>,
}

/// The agent's own cost, see [`AgentCost`].
#[derive(Debug, Serialize, Deserialize)]
struct OfAgent {
    miscounted: Spread,
    timed: Spread,
    wakeups_per_second: Spread,
    resident_mib: Spread,
    maps_mib: Spread,
    attach_ms: Spread,
    ready_ms: Spread,
    end_ms: Spread,
}

/// Measures all cells.
pub(super) fn measure(plan: Plan<'_>, cores: Cores) -> Result<Section> {
    let mut cells = Vec::new();
    for protocol in [Protocol::TtHeader, Protocol::Framed, Protocol::Mux, Protocol::Grpc] {
        let mut stage = Stage::start(protocol, cores, plan.peers, plan.peers_ready_after)?;
        // Starts with the one that everything is compared with.
        let concurrencies: &[u32] = if protocol == Protocol::Grpc { &[USUAL] } else { &[USUAL, 1, 100] };
        for concurrency in concurrencies {
            cells.push(measure_cell(&mut stage, protocol, *concurrency, plan)?.found());
        }
    }
    Ok(section(&cells))
}

fn measure_cell(stage: &mut Stage<'_>, protocol: Protocol, concurrency: u32, plan: Plan<'_>) -> Result<Cell> {
    let is_main = protocol == Protocol::TtHeader && concurrency == USUAL;
    let (count, seconds) = length(concurrency, plan);
    let load = Load { seconds: seconds.into(), concurrency };
    let title = format!("{}, {concurrency} at once", protocol.name());
    if is_main {
        say(&format!("{title}: a first round, which does not count"));
        stage.warm_up(load)?;
    }
    let conditions = conditions(protocol, is_main, plan.peers.len());
    let named = |condition| (condition, name(condition, protocol, stage));
    let mut cell = Cell {
        protocol,
        concurrency,
        conditions: conditions.into_iter().map(named).collect(),
        rounds: Vec::new(),
        inside: Vec::new(),
    };
    for number in 1..=count {
        // Rotates the order between rounds.
        let mut order: Vec<usize> = (0..cell.conditions.len()).collect();
        order.rotate_left(number as usize % cell.conditions.len());
        let mut round = vec![Sample::default(); cell.conditions.len()];
        for index in order {
            let (condition, name) = &cell.conditions[index];
            let sample = stage.measure(*condition, load);
            round[index] = sample.with_context(|| format!("measuring {title}: {name}"))?;
        }
        let times = round.iter().map(|sample| format!("{:.2}", sample.server_us)).collect::<Vec<_>>();
        say(&format!("{title}, round {number} of {count}: {} µs per call", times.join(", ")));
        cell.rounds.push(round);
        if is_main {
            cell.inside.push(stage.look_inside(Load { seconds: INSIDE_SECONDS, ..load })?);
        }
    }
    Ok(cell)
}

/// Returns a cell's rounds, and the seconds of calls in each of its measurements.
fn length(concurrency: u32, plan: Plan<'_>) -> (u32, u32) {
    if concurrency == USUAL {
        return (plan.rounds, plan.seconds);
    }
    ((plan.rounds / BRIEF).max(1), plan.seconds.min(BRIEF_SECONDS))
}

fn conditions(protocol: Protocol, is_main: bool, peers: usize) -> Vec<Condition> {
    let wanted = |condition: &Condition| match condition {
        Condition::Agent(Mode::Naive | Mode::Asking | Mode::Tables | Mode::Economy)
        | Condition::EmptyByPerfEvents => is_main,
        Condition::Agent(Mode::Events) => protocol != Protocol::Grpc,
        _ => true,
    };
    Condition::ALL.into_iter().filter(wanted).chain((0..peers).map(Condition::Peer)).collect()
}

fn name(condition: Condition, protocol: Protocol, stage: &Stage<'_>) -> String {
    match condition {
        Condition::Bare => "bare".to_owned(),
        Condition::Empty if protocol == Protocol::Grpc => "empty programs at the same sites".to_owned(),
        Condition::Empty => "two empty programs at the same sites".to_owned(),
        Condition::EmptyByPerfEvents => "two empty programs there, by perf events".to_owned(),
        Condition::Agent(Mode::Plain) => "the agent".to_owned(),
        Condition::Agent(Mode::Events) => "the agent, and a reader of its events".to_owned(),
        Condition::Agent(Mode::Economy) => "the agent, economy".to_owned(),
        Condition::Agent(Mode::Asking) => "the agent, asking the kernel for each read".to_owned(),
        Condition::Agent(Mode::Tables) => "the agent, reading by page tables".to_owned(),
        Condition::Agent(Mode::Naive) => "the agent, at naive sites".to_owned(),
        Condition::InProcess if protocol == Protocol::Grpc => "go-grpc-prometheus in process".to_owned(),
        Condition::InProcess => "monitor-prometheus in process".to_owned(),
        Condition::Peer(peer) => stage.peer_name(peer).to_owned(),
    }
}

impl Cell {
    fn spread(&self, index: usize, number: impl Fn(&Sample) -> f64) -> Spread {
        Spread::of(self.rounds.iter().map(|round| number(&round[index])))
    }

    fn index(&self, condition: Condition) -> Option<usize> {
        self.conditions.iter().position(|(other, _)| *other == condition)
    }

    /// Returns what a condition adds to the bare server's time per call in the same round, in microseconds.
    fn added(&self, index: usize) -> Spread {
        let bare = self.index(Condition::Bare).unwrap_or_default();
        Spread::of(self.rounds.iter().map(|round| round[index].server_us - round[bare].server_us))
    }

    fn found(&self) -> Found {
        Found {
            protocol: self.protocol,
            concurrency: self.concurrency,
            rounds: self.rounds.len(),
            inside: self.inside.clone(),
            conditions: (0..self.conditions.len()).map(|index| self.measured(index)).collect(),
        }
    }

    fn measured(&self, index: usize) -> Measured {
        let (condition, name) = &self.conditions[index];
        let watcher = self.rounds[0][index].watcher;
        let watcher_us = |sample: &Sample| sample.watcher.map_or(0.0, |watcher| watcher.cpu_us);
        Measured {
            condition: condition.key().to_owned(),
            name: name.clone(),
            server_us: self.spread(index, |sample| sample.server_us),
            added_us: self.added(index),
            calls_per_second: self.spread(index, |sample| sample.rate),
            p50_us: self.spread(index, |sample| sample.p50_us),
            p99_us: self.spread(index, |sample| sample.p99_us),
            p999_us: self.spread(index, |sample| sample.p999_us),
            watcher_us: watcher.map(|_| self.spread(index, watcher_us)),
            agent: watcher.and_then(|watcher| watcher.agent).map(|_| self.of_agent(index)),
        }
    }

    fn of_agent(&self, index: usize) -> OfAgent {
        OfAgent {
            miscounted: self.cost(index, |cost| cost.miscounted),
            timed: self.cost(index, |cost| cost.timed),
            wakeups_per_second: self.cost(index, |cost| cost.wakeups),
            resident_mib: self.cost(index, |cost| cost.resident_mib),
            maps_mib: self.cost(index, |cost| cost.maps_mib),
            attach_ms: self.cost(index, |cost| cost.attach_ms),
            ready_ms: self.cost(index, |cost| cost.ready_ms),
            end_ms: self.cost(index, |cost| cost.end_ms),
        }
    }

    /// Returns the spread of one of the agent's own numbers.
    fn cost(&self, index: usize, number: impl Fn(&AgentCost) -> f64) -> Spread {
        self.spread(index, |sample| {
            let cost = sample.watcher.and_then(|watcher| watcher.agent);
            number(&cost.unwrap_or_default())
        })
    }
}

impl Found {
    fn find(&self, condition: Condition) -> Option<&Measured> {
        self.conditions.iter().find(|one| one.condition == condition.key())
    }

    fn added_by(&self, condition: Condition) -> Option<Spread> {
        Some(self.find(condition)?.added_us)
    }

    /// Returns what one condition adds, in units of what another adds.
    fn ratio(&self, of: Condition, to: Condition) -> Option<f64> {
        ratio(self.added_by(of)?, self.added_by(to)?)
    }

    /// Returns the agent's own cost: processor time per call in microseconds, and the other numbers.
    fn own(&self, mode: Mode) -> Option<(Spread, &OfAgent)> {
        let agent = self.find(Condition::Agent(mode))?;
        Some((agent.watcher_us?, agent.agent.as_ref()?))
    }

    /// Returns the spread of some programs' run time.
    fn inside(&self, of: OfInside) -> Option<Spread> {
        (!self.inside.is_empty()).then(|| Spread::of(self.inside.iter().map(of)))
    }

    fn title(&self) -> String {
        format!("{}, {} calls at once", self.protocol.name(), self.concurrency)
    }

    fn table(&self) -> String {
        let mut rows = vec![row([
            "at work in the server",
            "server CPU per call, µs",
            "added, µs",
            "calls/s",
            "p50, µs",
            "p99, µs",
            "p99.9, µs",
            "watcher's own CPU per call, µs",
        ])];
        rows.extend(self.conditions.iter().map(|one| {
            let is_bare = one.condition == Condition::Bare.key();
            vec![
                one.name.clone(),
                one.server_us.show(2),
                if is_bare { String::new() } else { one.added_us.show(2) },
                one.calls_per_second.show(0),
                one.p50_us.show(0),
                one.p99_us.show(0),
                one.p999_us.show(0),
                one.watcher_us.map_or_else(String::new, |spread| spread.show(2)),
            ]
        }));
        table(&rows)
    }
}

/// Ratios of added time that are comparable between runs.
const RATIOS: [(&str, Condition, Condition); 5] = [
    ("agent to empty programs", Condition::Agent(Mode::Plain), Condition::Empty),
    ("agent to in process", Condition::Agent(Mode::Plain), Condition::InProcess),
    ("economy to empty programs", Condition::Agent(Mode::Economy), Condition::Empty),
    ("events to agent", Condition::Agent(Mode::Events), Condition::Agent(Mode::Plain)),
    ("agent to naive", Condition::Agent(Mode::Plain), Condition::Agent(Mode::Naive)),
];

/// Returns all text and figures about the cells. The first is the main one.
pub(super) fn section(cells: &[Found]) -> Section {
    let main = &cells[0];
    let (mut figures, mut noise) = (BTreeMap::new(), BTreeSet::new());
    for cell in cells.iter().filter(|cell| cell.concurrency == USUAL) {
        for (what, of, to) in RATIOS {
            let Some((of, to)) = cell.added_by(of).zip(cell.added_by(to)) else { continue };
            let name = format!("{}: {what}", cell.protocol.name());
            if let Some(ratio) = ratio(of, to) {
                figures.insert(name, ratio);
            } else {
                noise.insert(name);
            }
        }
    }
    Section {
        part: "matrix",
        blocks: vec![("matrix", matrix(cells)), ("agent", agent(main)), ("service", service(cells))],
        charts: vec![("overhead-added.svg", chart(main))],
        results: json!(cells),
        figures,
        tolerance: TOLERANCE,
        noise,
        ..Section::default()
    }
}

fn matrix(cells: &[Found]) -> String {
    let mut text = String::new();
    for (number, cell) in cells.iter().enumerate() {
        let heading = format!(
            "### {}\n\nMedians of {} rounds, and in parentheses the lowest and the highest.\n\n",
            cell.title(),
            cell.rounds
        );
        let _ = writeln!(text, "{heading}{}\n{}{}", cell.table(), ratios(cell), own(cell));
        if number == 0 {
            text += "![What watching adds to a call](overhead-added.svg)\n\n";
        }
    }
    text
}

fn ratios(cell: &Found) -> String {
    let mut text = String::new();
    let agent = Condition::Agent(Mode::Plain);
    let (aim, inside) = if cell.protocol == Protocol::Grpc { (AIM_GRPC, "no more") } else { (AIM, "less") };
    let to_empty = cell.ratio(agent, Condition::Empty);
    let met = to_empty.map_or("not to be told", |ratio| verdict(ratio, aim));
    let _ = writeln!(
        text,
        "- The agent adds {} times what the empty programs add (aim: at most {aim}: {met}).",
        show_ratio(to_empty)
    );
    let to_inside = cell.ratio(agent, Condition::InProcess);
    let met = to_inside.map_or("not to be told", |ratio| verdict(ratio, 1.0));
    let _ = writeln!(
        text,
        "- The agent adds {} times what the in-process library adds (aim: {inside}: {met}).",
        show_ratio(to_inside)
    );
    if let Some(by_events) = cell.added_by(Condition::EmptyByPerfEvents) {
        let to = |condition| show_ratio(cell.added_by(condition).and_then(|added| ratio(added, by_events)));
        let _ = writeln!(
            text,
            "- Empty programs that are attached by perf events, as other tools do, add {} times what they add so; the agent {} \
             times what those add, and with economy {} times.",
            show_ratio(cell.added_by(Condition::Empty).and_then(|added| ratio(by_events, added))),
            to(agent),
            to(Condition::Agent(Mode::Economy))
        );
    }
    if let Some((_, economy)) = cell.own(Mode::Economy) {
        let ratio = cell.ratio(Condition::Agent(Mode::Economy), Condition::Empty);
        let met = ratio.map_or("not to be told", |ratio| verdict(ratio, AIM_ECONOMY));
        let _ = writeln!(
            text,
            "- With economy it adds {} times what they add (aim: at most {AIM_ECONOMY}: {met}), and had the durations of {} % \
             of the calls.",
            show_ratio(ratio),
            economy.timed.percent().show(1)
        );
    }
    if let Some(tables) = cell.added_by(Condition::Agent(Mode::Tables)) {
        let ratio = cell.added_by(Condition::Agent(Mode::Asking)).and_then(|asking| ratio(tables, asking));
        let _ = writeln!(
            text,
            "- Reading by page tables it adds {} times what it adds where it asks the kernel for each read.",
            show_ratio(ratio)
        );
    }
    if let Some((_, naive)) = cell.own(Mode::Naive) {
        let ratio = cell.ratio(Condition::Agent(Mode::Naive), agent);
        let _ = writeln!(
            text,
            "- At naive sites it adds {} times what it adds at its own; it then counted {} % too many calls.",
            show_ratio(ratio),
            naive.miscounted.percent().show(4)
        );
    }
    text
}

/// Compares the agent's own cost per call and its wakeups with the aims.
fn own(cell: &Found) -> String {
    let told = |mode| {
        let (cpu_us, cost) = cell.own(mode)?;
        let (cpu_us, wakeups) = (cpu_us.median, cost.wakeups_per_second.median);
        let met = verdict(wakeups, AIM_WAKEUPS);
        Some(format!("{cpu_us:.2} µs ({}) and {wakeups:.1} wakeups ({met})", verdict(cpu_us, AIM_CPU_US)))
    };
    let Some(plain) = told(Mode::Plain) else { return String::new() };
    let events = told(Mode::Events).map(|events| format!("; with a reader of its events {events}"));
    format!(
        "- The agent's own CPU for a call and its wakeups a second (aim: at most {AIM_CPU_US} µs and {AIM_WAKEUPS}): \
         {plain}{}.\n",
        events.unwrap_or_default()
    )
}

/// Returns a table of the agent's own cost.
fn agent(cell: &Found) -> String {
    let mut rows = vec![row(["the agent itself", "median (min to max)", "aim"])];
    let mut add = |what: &str, spread: Spread, digits, aim: String| {
        rows.push(vec![what.to_owned(), spread.show(digits), aim]);
    };
    for (mode, with) in [(Mode::Plain, ""), (Mode::Events, " with a reader of its events")] {
        let Some((cpu_us, cost)) = cell.own(mode) else { continue };
        let aim = at_most(cpu_us.median, AIM_CPU_US, " µs");
        add(&format!("its own CPU per call{with}, µs"), cpu_us, 2, aim);
        let wakeups = cost.wakeups_per_second;
        add(&format!("its wakeups a second{with}"), wakeups, 1, at_most(wakeups.median, AIM_WAKEUPS, ""));
    }
    if let Some((_, cost)) = cell.own(Mode::Plain) {
        for (what, mib, aim) in [
            ("its resident memory with one label set, MiB", cost.resident_mib, AIM_RESIDENT_MB),
            ("kernel memory of its maps with one label set, MiB", cost.maps_mib, maps::AIM_MB),
        ] {
            let met = verdict_of_memory(mib.median, aim);
            add(what, mib, 1, format!("≤ {}: {met}", megabytes(aim)));
        }
        let within = |spread: Spread| at_most(spread.median, AIM_ATTACH_MS, " ms");
        add("loading and attaching, ms", cost.attach_ms, 0, within(cost.attach_ms));
        add("from its start until ready, ms", cost.ready_ms, 0, String::new());
        add("from SIGTERM until detached and ended, ms", cost.end_ms, 0, within(cost.end_ms));
    }
    let insides: [(&str, OfInside); 2] = [
        ("inside its eBPF programs per call, asking the kernel for each read, µs", |inside| {
            (inside.asking - inside.empty) / 1000.0
        }),
        ("the same, reading by page tables, µs", |inside| (inside.tables - inside.empty) / 1000.0),
    ];
    for (what, of) in insides {
        rows.extend(cell.inside(of).map(|spread| vec![what.to_owned(), spread.show(2), String::new()]));
    }
    table(&rows)
}

/// Returns a table of the added time as a share of a service's time per call.
fn service(cells: &[Found]) -> String {
    let mut rows = vec![row(["at work in the server", "at 10 µs of CPU per call", "at 100 µs", "at 1 ms"])];
    for cell in cells.iter().filter(|cell| cell.concurrency == USUAL) {
        for Measured { name, added_us, .. } in cell.conditions.iter().skip(1) {
            let added = added_us.median;
            let share = |us: f64| format!("{:.*} %", if us > 100.0 { 2 } else { 1 }, 100.0 * added / us);
            let name = format!("{}: {name} ({added:.2} µs)", cell.protocol.name());
            rows.push([name].into_iter().chain(SERVICES_US.map(share)).collect());
        }
    }
    table(&rows)
}

fn chart(cell: &Found) -> String {
    let bars = cell.conditions.iter().skip(1);
    let bars = bars.map(|one| Bar { label: one.name.clone(), value: one.added_us });
    let title = format!("Server CPU that is added to each call, µs ({})", cell.title());
    charts::bars(&title, 2, &bars.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests;
