//! Calls over each protocol, with few and with many at once, with one thing after the other at work in the server.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    charts::{self, Bar},
    condition::{Condition, Mode},
    machine::Cores,
    maps,
    peers::Peer,
    report::{Spread, ratio, row, show_ratio, table, verdict},
    section::Section,
    stage::{AgentCost, Inside, Load, Protocol, Sample, Stage},
};
use crate::process::say;

/// The most that the agent should add, in units of what two empty programs add.
const AIM: f64 = 1.3;
/// The same for gRPC, whose calls have a longer name to read and a status to look for.
const AIM_GRPC: f64 = 1.5;
/// The same with durations of a sample.
const AIM_ECONOMY: f64 = 0.75;
/// The most that the agent itself should take for a call, in microseconds; of memory, in MiB; of time, in milliseconds.
const AIM_CPU_US: f64 = 0.5;
const AIM_RESIDENT_MIB: f64 = 30.0;
const AIM_ATTACH_MS: f64 = 300.0;
/// How often it should be woken up in a second at most, however many calls there are.
const AIM_WAKEUPS: f64 = 50.0;
/// Ratios differ that much between runs on one machine.
const TOLERANCE: f64 = 0.3;
/// Calls under way at once in the cells that are measured at length: those whose ratios are compared with an earlier run's.
/// Of three rounds one that is not above zero makes a ratio noise, of twelve it takes two.
const USUAL: u32 = 16;
/// Another cell has the rounds divided by this, and at most so many seconds for each measurement.
const BRIEF: u32 = 4;
const BRIEF_SECONDS: u32 = 2;
/// Seconds of calls in which the kernel times programs: it times each run, and there are tens of thousands.
const INSIDE_SECONDS: f64 = 1.0;
/// What a call of a service takes of processor time, in microseconds, in the table of what it all means.
const SERVICES_US: [f64; 3] = [10.0, 100.0, 1000.0];

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan<'a> {
    /// Rounds of a cell that is measured at length.
    pub(super) rounds: u32,
    pub(super) seconds: u32,
    pub(super) peers: &'a [Peer],
    pub(super) peers_ready_after: Duration,
}

/// Chooses what was spent inside of programs.
type OfInside = fn(&Inside) -> f64;

/// One protocol with so many calls at once.
#[derive(Debug)]
struct Cell {
    protocol: Protocol,
    concurrency: u32,
    /// Each thing that the server was measured with, and its name.
    conditions: Vec<(Condition, String)>,
    /// What was measured, in the order of the conditions. At least one.
    rounds: Vec<Vec<Sample>>,
    /// What programs took, of each round; nothing where that was not looked at.
    inside: Vec<Inside>,
}

/// Measures all cells.
pub(super) fn measure(plan: Plan<'_>, cores: Cores) -> Result<Section> {
    let mut cells = Vec::new();
    for protocol in [Protocol::TtHeader, Protocol::Framed, Protocol::Mux, Protocol::Grpc] {
        let mut stage = Stage::start(protocol, cores, plan.peers, plan.peers_ready_after)?;
        // The one that everything is compared by comes first.
        let concurrencies: &[u32] = if protocol == Protocol::Grpc { &[USUAL] } else { &[USUAL, 1, 100] };
        for concurrency in concurrencies {
            cells.push(measure_cell(&mut stage, protocol, *concurrency, plan)?);
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
        // Each in turn is the first.
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

/// The rounds of a cell, and the seconds of calls in each of its measurements.
fn length(concurrency: u32, plan: Plan<'_>) -> (u32, u32) {
    if concurrency == USUAL {
        return (plan.rounds, plan.seconds);
    }
    ((plan.rounds / BRIEF).max(1), plan.seconds.min(BRIEF_SECONDS))
}

fn conditions(protocol: Protocol, is_main: bool, peers: usize) -> Vec<Condition> {
    let wanted = |condition: &Condition| match condition {
        Condition::Agent(Mode::Naive | Mode::Asking | Mode::Economy) | Condition::EmptyByPerfEvents => {
            is_main
        }
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

    /// What something adds to the bare server's time for a call in the same round, in microseconds.
    fn added(&self, index: usize) -> Spread {
        let bare = self.index(Condition::Bare).unwrap_or_default();
        Spread::of(self.rounds.iter().map(|round| round[index].server_us - round[bare].server_us))
    }

    fn added_by(&self, condition: Condition) -> Option<Spread> {
        Some(self.added(self.index(condition)?))
    }

    /// What one thing adds in units of what another does.
    fn ratio(&self, of: Condition, to: Condition) -> Option<f64> {
        ratio(self.added_by(of)?, self.added_by(to)?)
    }

    /// Nanoseconds of a call inside of programs.
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
        for (index, (condition, name)) in self.conditions.iter().enumerate() {
            let column = |number: fn(&Sample) -> f64, digits| self.spread(index, number).show(digits);
            let watches = self.rounds[0][index].watcher.is_some();
            rows.push(vec![
                name.clone(),
                column(|sample| sample.server_us, 2),
                if *condition == Condition::Bare { String::new() } else { self.added(index).show(2) },
                column(|sample| sample.rate, 0),
                column(|sample| sample.p50_us, 0),
                column(|sample| sample.p99_us, 0),
                column(|sample| sample.p999_us, 0),
                if watches {
                    column(|sample| sample.watcher.map_or(0.0, |watcher| watcher.cpu_us), 2)
                } else {
                    String::new()
                },
            ]);
        }
        table(&rows)
    }

    fn results(&self) -> Value {
        let mut conditions = serde_json::Map::new();
        for (index, (condition, name)) in self.conditions.iter().enumerate() {
            let key = if let Condition::Peer(_) = condition { name } else { condition.key() };
            let watcher = self.rounds[0][index].watcher;
            let of_agent = watcher.and_then(|watcher| watcher.agent);
            conditions.insert(
                key.to_owned(),
                json!({
                    "name": name,
                    "server_us": self.spread(index, |sample| sample.server_us),
                    "added_us": self.added(index),
                    "calls_per_second": self.spread(index, |sample| sample.rate),
                    "p50_us": self.spread(index, |sample| sample.p50_us),
                    "p99_us": self.spread(index, |sample| sample.p99_us),
                    "p999_us": self.spread(index, |sample| sample.p999_us),
                    "watcher_us": watcher.map(|_| self.spread(index, |sample| sample.watcher.map_or(0.0, |watcher| watcher.cpu_us))),
                    "wakeups_per_second": of_agent.map(|_| self.cost(index, |cost| cost.wakeups)),
                    "miscounted": of_agent.map(|_| self.cost(index, |cost| cost.miscounted)),
                }),
            );
        }
        let inside = self.inside(|inside| inside.empty).map(|empty| {
            json!({
                "empty": empty,
                "agent": self.inside(|inside| inside.agent),
                "asking": self.inside(|inside| inside.asking),
            })
        });
        json!({
            "protocol": self.protocol,
            "concurrency": self.concurrency,
            "rounds": self.rounds.len(),
            "inside": inside,
            "conditions": conditions,
        })
    }

    /// A number of the agent itself.
    fn cost(&self, index: usize, number: impl Fn(&AgentCost) -> f64) -> Spread {
        self.spread(index, |sample| {
            let cost = sample.watcher.and_then(|watcher| watcher.agent);
            number(&cost.unwrap_or_default())
        })
    }
}

/// Ratios of what is added that are comparable between runs.
const RATIOS: [(&str, Condition, Condition); 5] = [
    ("agent to empty programs", Condition::Agent(Mode::Plain), Condition::Empty),
    ("agent to in process", Condition::Agent(Mode::Plain), Condition::InProcess),
    ("economy to empty programs", Condition::Agent(Mode::Economy), Condition::Empty),
    ("events to agent", Condition::Agent(Mode::Events), Condition::Agent(Mode::Plain)),
    ("agent to naive", Condition::Agent(Mode::Plain), Condition::Agent(Mode::Naive)),
];

fn section(cells: &[Cell]) -> Section {
    // The first is the main one.
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
        results: cells.iter().map(Cell::results).collect(),
        figures,
        tolerance: TOLERANCE,
        noise,
        ..Section::default()
    }
}

fn matrix(cells: &[Cell]) -> String {
    let mut text = String::new();
    for (number, cell) in cells.iter().enumerate() {
        let rounds = cell.rounds.len();
        let heading = format!(
            "### {}\n\nMedians of {rounds} rounds, and in parentheses the lowest and the highest.\n\n",
            cell.title()
        );
        let _ = writeln!(text, "{heading}{}\n{}", cell.table(), ratios(cell));
        if number == 0 {
            text += "![What watching adds to a call](overhead-added.svg)\n\n";
        }
    }
    text
}

fn ratios(cell: &Cell) -> String {
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
    if let Some(economy) = cell.index(Condition::Agent(Mode::Economy)) {
        let ratio = cell.ratio(Condition::Agent(Mode::Economy), Condition::Empty);
        let met = ratio.map_or("not to be told", |ratio| verdict(ratio, AIM_ECONOMY));
        let _ = writeln!(
            text,
            "- With economy it adds {} times what they add (aim: at most {AIM_ECONOMY}: {met}), and had the durations of {} % \
             of the calls.",
            show_ratio(ratio),
            cell.cost(economy, |cost| cost.timed * 100.0).show(1)
        );
    }
    if let Some(ratio) = cell.ratio(Condition::Agent(Mode::Asking), agent) {
        let _ = writeln!(
            text,
            "- Where it can't go by page tables, and asks the kernel for each read, it adds {ratio:.2} times what it adds by them."
        );
    }
    if let Some(naive) = cell.index(Condition::Agent(Mode::Naive)) {
        let ratio = cell.ratio(Condition::Agent(Mode::Naive), agent);
        let miscounted = cell.cost(naive, |cost| cost.miscounted * 100.0);
        let _ = writeln!(
            text,
            "- At naive sites it adds {} times what it adds at its own; it then counted {} % too many calls.",
            show_ratio(ratio),
            miscounted.show(4)
        );
    }
    text
}

/// What the agent itself takes.
fn agent(cell: &Cell) -> String {
    let Some(index) = cell.index(Condition::Agent(Mode::Plain)) else { return String::new() };
    let cpu = |index| cell.spread(index, |sample| sample.watcher.map_or(0.0, |watcher| watcher.cpu_us));
    let mut rows = vec![row(["the agent itself", "median (min to max)", "aim"])];
    let mut add = |what: &str, spread: Spread, digits, aim: Option<(f64, &str)>| {
        let aim = aim.map(|(aim, unit)| format!("≤ {aim}{unit}: {}", verdict(spread.median, aim)));
        rows.push(vec![what.to_owned(), spread.show(digits), aim.unwrap_or_default()]);
    };
    let cost = |number: fn(&AgentCost) -> f64| cell.cost(index, number);
    add("its own CPU per call, µs", cpu(index), 2, Some((AIM_CPU_US, " µs")));
    add("its wakeups a second", cost(|cost| cost.wakeups), 1, Some((AIM_WAKEUPS, "")));
    if let Some(events) = cell.index(Condition::Agent(Mode::Events)) {
        add("its own CPU per call with a reader of its events, µs", cpu(events), 2, None);
    }
    add("its resident memory, MiB", cost(|cost| cost.resident_mib), 1, Some((AIM_RESIDENT_MIB, " MiB")));
    add("kernel memory of its maps, MiB", cost(|cost| cost.maps_mib), 1, Some((maps::AIM_MIB, " MiB")));
    add("loading and attaching, ms", cost(|cost| cost.attach_ms), 0, Some((AIM_ATTACH_MS, " ms")));
    add("from its start until ready, ms", cost(|cost| cost.ready_ms), 0, None);
    add(
        "from SIGTERM until detached and ended, ms",
        cost(|cost| cost.end_ms),
        0,
        Some((AIM_ATTACH_MS, " ms")),
    );
    let insides: [(&str, OfInside); 2] = [
        ("inside its eBPF programs per call, µs", |inside| (inside.agent - inside.empty) / 1000.0),
        ("the same, asking the kernel for each read, µs", |inside| (inside.asking - inside.empty) / 1000.0),
    ];
    for (what, of) in insides {
        rows.extend(cell.inside(of).map(|spread| vec![what.to_owned(), spread.show(2), String::new()]));
    }
    table(&rows)
}

/// What is added, as a share of what calls of services take.
fn service(cells: &[Cell]) -> String {
    let mut rows = vec![row(["at work in the server", "at 10 µs of CPU per call", "at 100 µs", "at 1 ms"])];
    for cell in cells.iter().filter(|cell| cell.concurrency == USUAL) {
        for (index, (_, name)) in cell.conditions.iter().enumerate().skip(1) {
            let added = cell.added(index).median;
            let share = |us: f64| format!("{:.*} %", if us > 100.0 { 2 } else { 1 }, 100.0 * added / us);
            let name = format!("{}: {name} ({added:.2} µs)", cell.protocol.name());
            rows.push([name].into_iter().chain(SERVICES_US.map(share)).collect());
        }
    }
    table(&rows)
}

fn chart(cell: &Cell) -> String {
    let bars = cell
        .conditions
        .iter()
        .enumerate()
        .skip(1)
        .map(|(index, (_, name))| Bar { label: name.clone(), value: cell.added(index) });
    let title = format!("Server CPU that is added to each call, µs ({})", cell.title());
    charts::bars(&title, 2, &bars.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::stage::Watcher;

    /// A cell in which a call takes the server so long under each condition.
    fn cell(rounds: &[[f64; 9]]) -> Cell {
        let sample = |server_us| Sample { server_us, rate: 50_000.0, p50_us: 300.0, ..Sample::default() };
        Cell {
            protocol: Protocol::TtHeader,
            concurrency: 16,
            conditions: Condition::ALL
                .into_iter()
                .map(|condition| (condition, condition.key().to_owned()))
                .collect(),
            rounds: rounds.iter().map(|round| round.map(sample).to_vec()).collect(),
            inside: [770.0, 760.0, 890.0].map(|agent| Inside { empty: 120.0, agent, asking: 920.0 }).to_vec(),
        }
    }

    fn measured() -> Cell {
        cell(&[
            [14.0, 16.0, 17.0, 15.0, 17.2, 18.5, 34.0, 17.5, 16.4],
            [20.0, 21.5, 22.5, 21.2, 22.6, 24.0, 40.5, 23.5, 22.0],
            [15.0, 17.5, 18.5, 17.0, 18.9, 20.5, 35.0, 18.0, 17.6],
        ])
    }

    #[test]
    fn differences_are_taken_within_a_round() {
        // The medians are 15.0, 17.5 and 18.5: their differences would be 2.5 and 3.5.
        let cell = measured();
        assert_eq!(cell.added(1), Spread::of([1.5, 2.0, 2.5]));
        assert_eq!(cell.added(2), Spread::of([2.5, 3.0, 3.5]));
        assert_eq!(cell.added(7), Spread::of([3.0, 3.5, 3.5]));
    }

    #[test]
    fn ratios_are_of_what_is_added() {
        let text = ratios(&measured());
        assert!(
            text.contains("adds 1.50 times what the empty programs add (aim: at most 1.3: not met)"),
            "{text}"
        );
        assert!(text.contains("adds 0.86 times what the in-process library adds (aim: less: met)"), "{text}");
        assert!(text.contains("economy it adds 0.60 times what they add (aim: at most 0.75: met)"), "{text}");
        assert!(text.contains("adds 6.67 times what it adds at its own"), "{text}");
        assert!(
            text.contains("asks the kernel for each read, it adds 1.50 times what it adds by them"),
            "{text}"
        );
        let of_grpc = ratios(&Cell { protocol: Protocol::Grpc, ..measured() });
        assert!(of_grpc.contains("the empty programs add (aim: at most 1.5: met)"), "{of_grpc}");
        assert!(of_grpc.contains("the in-process library adds (aim: no more: met)"), "{of_grpc}");
        let figures = section(&[measured()]).figures;
        assert_eq!(figures.len(), 5, "{figures:?}");
        assert!((figures["TTHeader: agent to empty programs"] - 1.5).abs() < 1e-9);
        assert!((figures["TTHeader: agent to naive"] - 0.15).abs() < 1e-9);
    }

    #[test]
    fn ratios_of_what_may_be_nothing_are_no_figures() {
        // In one round the empty programs seemed to give time back.
        let mut rounds = [[14.0; 9], [20.0; 9], [15.0; 9]];
        for (round, empty) in rounds.iter_mut().zip([0.28, -0.14, 2.33]) {
            round[1] += empty;
            for added in &mut round[2..] {
                *added += 1.7;
            }
        }
        let cell = cell(&rounds);
        let text = ratios(&cell);
        let expected = "adds (not to be told from noise) times what the empty programs add (aim: at most 1.3: not to be told)";
        assert!(text.contains(expected), "{text}");
        let section = section(&[cell]);
        assert_eq!(section.figures.len(), 3, "{:?}", section.figures);
        let noise = ["TTHeader: agent to empty programs", "TTHeader: economy to empty programs"];
        assert!(section.noise.iter().eq(noise), "{:?}", section.noise);
    }

    #[test]
    fn results_in_markdown() {
        let blocks: BTreeMap<_, _> = section(&[measured()]).blocks.into_iter().collect();
        assert!(
            blocks["matrix"].contains("| bare                  | 15.00 (14.00 to 20.00)  |"),
            "{}",
            blocks["matrix"]
        );
        assert!(
            blocks["agent"].contains("inside its eBPF programs per call, µs ")
                && blocks["agent"].contains("| 0.65 (0.64 to 0.77) ")
                && blocks["agent"].contains("| 0.80 (0.80 to 0.80) "),
            "{}",
            blocks["agent"]
        );
        let services = &blocks["service"];
        assert!(services.contains("TTHeader: agent (3.00 µs)"), "{services}");
        assert!(services.contains("| 30.0 %                   | 3.0 %     | 0.30 %  |"), "{services}");
    }

    #[test]
    fn wakeups_of_the_agent_are_those_without_a_reader_of_events() {
        let told = |wakeups: [f64; 3]| {
            let mut cell = measured();
            for (mode, more) in [(Mode::Plain, 0.0), (Mode::Events, 1000.0)] {
                let index = cell.index(Condition::Agent(mode)).unwrap();
                for (round, wakeups) in cell.rounds.iter_mut().zip(wakeups) {
                    let cost = AgentCost { wakeups: wakeups + more, ..AgentCost::default() };
                    round[index].watcher = Some(Watcher { cpu_us: 0.1, agent: Some(cost) });
                }
            }
            (agent(&cell), cell.results()["conditions"]["agent"]["wakeups_per_second"]["median"].clone())
        };
        let (text, median) = told([40.0, 50.0, 70.0]);
        assert!(text.contains("| its wakeups a second "), "{text}");
        assert!(text.contains("| 50.0 (40.0 to 70.0) ") && text.contains("| ≤ 50: met "), "{text}");
        assert_eq!(median, json!(50.0));
        let (text, _) = told([49.0, 50.4, 51.0]);
        assert!(text.contains("| 50.4 (49.0 to 51.0) ") && text.contains("| ≤ 50: not met "), "{text}");
    }

    #[test]
    fn cells_with_figures_have_all_rounds() {
        let plan = Plan { rounds: 12, seconds: 3, peers: &[], peers_ready_after: Duration::ZERO };
        for protocol in [Protocol::TtHeader, Protocol::Framed, Protocol::Mux, Protocol::Grpc] {
            for concurrency in [1, 16, 100] {
                let has_figures =
                    !section(&[Cell { protocol, concurrency, ..measured() }]).figures.is_empty();
                let expected = if has_figures { (12, 3) } else { (3, 2) };
                assert_eq!(length(concurrency, plan), expected, "{protocol:?}, {concurrency} at once");
            }
        }
        assert!(!section(&[Cell { protocol: Protocol::Grpc, ..measured() }]).figures.is_empty());
        assert_eq!(length(1, Plan { rounds: 1, seconds: 1, ..plan }), (1, 1));
    }

    #[test]
    fn only_the_main_cell_has_economy_and_naive_sites_and_grpc_no_events() {
        assert_eq!(conditions(Protocol::TtHeader, true, 1).len(), 10);
        assert_eq!(conditions(Protocol::Mux, false, 0).len(), 5);
        assert_eq!(conditions(Protocol::Grpc, false, 2).len(), 6);
    }
}
