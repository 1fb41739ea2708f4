use super::*;
use crate::bench::stage::Watcher;

/// Returns a cell with these times per call for the server, by round and condition.
fn cell(rounds: &[[f64; 10]]) -> Cell {
    let agent = Some(AgentCost::default());
    let sample = |server_us, condition| Sample {
        server_us,
        rate: 50_000.0,
        p50_us: 300.0,
        watcher: matches!(condition, Condition::Agent(_)).then_some(Watcher { cpu_us: 0.1, agent }),
        ..Sample::default()
    };
    let round = |times: &[f64; 10]| -> Vec<Sample> {
        times.iter().zip(Condition::ALL).map(|(us, condition)| sample(*us, condition)).collect()
    };
    Cell {
        protocol: Protocol::TtHeader,
        concurrency: 16,
        conditions: Condition::ALL
            .into_iter()
            .map(|condition| (condition, condition.key().to_owned()))
            .collect(),
        rounds: rounds.iter().map(round).collect(),
        inside: [770.0, 760.0, 890.0].map(|tables| Inside { empty: 120.0, tables, asking: 920.0 }).to_vec(),
    }
}

fn measured() -> Cell {
    cell(&[
        [14.0, 16.0, 17.0, 15.0, 17.2, 18.5, 17.0, 34.0, 17.5, 16.4],
        [20.0, 21.5, 22.5, 21.2, 22.6, 24.0, 22.5, 40.5, 23.5, 22.0],
        [15.0, 17.5, 18.5, 17.0, 18.9, 20.5, 18.5, 35.0, 18.0, 17.6],
    ])
}

#[test]
fn differences_are_taken_within_a_round() {
    // The medians are 15.0, 17.5 and 18.5: their differences would be 2.5 and 3.5.
    let cell = measured();
    assert_eq!(cell.added(1), Spread::of([1.5, 2.0, 2.5]));
    assert_eq!(cell.added(2), Spread::of([2.5, 3.0, 3.5]));
    assert_eq!(cell.added(8), Spread::of([3.0, 3.5, 3.5]));
}

#[test]
fn ratios_are_of_what_is_added() {
    let text = ratios(&measured().found());
    assert!(
        text.contains("adds 1.50 times what the empty programs add (aim: at most 1.3: not met)"),
        "{text}"
    );
    assert!(text.contains("adds 0.86 times what the in-process library adds (aim: less: met)"), "{text}");
    assert!(text.contains("economy it adds 0.60 times what they add (aim: at most 0.75: met)"), "{text}");
    assert!(text.contains("adds 6.67 times what it adds at its own"), "{text}");
    assert!(text.contains("Reading by page tables it adds 0.67 times what it adds where it asks"), "{text}");
    let of_grpc = ratios(&Cell { protocol: Protocol::Grpc, ..measured() }.found());
    assert!(of_grpc.contains("the empty programs add (aim: at most 1.5: met)"), "{of_grpc}");
    assert!(of_grpc.contains("the in-process library adds (aim: no more: met)"), "{of_grpc}");
    let figures = section(&[measured().found()]).figures;
    assert_eq!(figures.len(), 5, "{figures:?}");
    assert!((figures["TTHeader: agent to empty programs"] - 1.5).abs() < 1e-9);
    assert!((figures["TTHeader: agent to naive"] - 0.15).abs() < 1e-9);
}

#[test]
fn ratios_of_what_may_be_nothing_are_no_figures() {
    // In one round the empty programs seemed to save time.
    let mut rounds = [[14.0; 10], [20.0; 10], [15.0; 10]];
    for (round, empty) in rounds.iter_mut().zip([0.28, -0.14, 2.33]) {
        round[1] += empty;
        for added in &mut round[2..] {
            *added += 1.7;
        }
    }
    let cell = cell(&rounds).found();
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
    let blocks: BTreeMap<_, _> = section(&[measured().found()]).blocks.into_iter().collect();
    assert!(
        blocks["matrix"].contains("| bare                  | 15.00 (14.00 to 20.00)  |"),
        "{}",
        blocks["matrix"]
    );
    assert!(
        blocks["agent"].contains("per call, asking the kernel for each read, µs | 0.80 (0.80 to 0.80) ")
            && blocks["agent"].contains("| 0.65 (0.64 to 0.77) "),
        "{}",
        blocks["agent"]
    );
    let services = &blocks["service"];
    assert!(services.contains("TTHeader: agent (3.00 µs)"), "{services}");
    assert!(services.contains("| 30.0 %                   | 3.0 %     | 0.30 %  |"), "{services}");
}

#[test]
fn wakeups_of_the_agent_and_its_time_are_told_with_and_without_a_reader_of_events() {
    let told = |wakeups: [f64; 3]| {
        let mut cell = measured();
        for (mode, more, cpu_us) in [(Mode::Plain, 0.0, 0.1), (Mode::Events, 1000.0, 0.75)] {
            let index = cell.index(Condition::Agent(mode)).unwrap();
            for (round, wakeups) in cell.rounds.iter_mut().zip(wakeups) {
                let cost = AgentCost { wakeups: wakeups + more, ..AgentCost::default() };
                round[index].watcher = Some(Watcher { cpu_us, agent: Some(cost) });
            }
        }
        let found = cell.found();
        (agent(&found), own(&found))
    };
    let row = |text: &str, what: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.starts_with(&format!("| {what} "))).unwrap_or_default();
        line.split('|').skip(2).take(2).map(|cell| cell.trim().to_owned()).collect()
    };
    let (text, sentence) = told([40.0, 50.0, 70.0]);
    let reader = "with a reader of its events";
    assert_eq!(row(&text, "its wakeups a second"), ["50.0 (40.0 to 70.0)", "≤ 50: met"]);
    let with = row(&text, &format!("its wakeups a second {reader}"));
    assert_eq!(with, ["1050.0 (1040.0 to 1070.0)", "≤ 50: not met"]);
    assert_eq!(row(&text, "its own CPU per call, µs"), ["0.10 (0.10 to 0.10)", "≤ 0.5 µs: met"]);
    let with = row(&text, &format!("its own CPU per call {reader}, µs"));
    assert_eq!(with, ["0.75 (0.75 to 0.75)", "≤ 0.5 µs: not met"]);
    let expected = "0.10 µs (met) and 50.0 wakeups (met); \
                    with a reader of its events 0.75 µs (not met) and 1050.0 wakeups (not met).";
    assert!(sentence.contains(expected), "{sentence}");
    let (text, sentence) = told([49.0, 50.4, 51.0]);
    assert_eq!(row(&text, "its wakeups a second"), ["50.4 (49.0 to 51.0)", "≤ 50: not met"]);
    assert!(sentence.contains("0.10 µs (met) and 50.4 wakeups (not met);"), "{sentence}");
}

#[test]
fn memory_is_held_to_aims_in_megabytes() {
    let told = |resident_mib, maps_mib| {
        let mut cell = measured();
        let index = cell.index(Condition::Agent(Mode::Plain)).unwrap();
        let agent_cost = AgentCost { resident_mib, maps_mib, ..AgentCost::default() };
        for round in &mut cell.rounds {
            round[index].watcher = Some(Watcher { cpu_us: 0.1, agent: Some(agent_cost) });
        }
        agent(&cell.found())
    };
    let text = told(28.0, 7.5);
    assert!(
        text.contains("| ≤ 30 MB (28.61 MiB): met") && text.contains("| ≤ 8 MB (7.63 MiB): met"),
        "{text}"
    );
    let text = told(29.0, 7.7);
    assert!(text.contains("(28.61 MiB): not met") && text.contains("(7.63 MiB): not met"), "{text}");
}

#[test]
fn what_is_kept_says_the_same_as_what_was_found() {
    let found = section(&[measured().found()]);
    let kept: Vec<Found> = serde_json::from_value(found.results.clone()).unwrap();
    let again = section(&kept);
    assert_eq!((again.blocks, again.figures), (found.blocks, found.figures));
}

#[test]
fn cells_with_figures_have_all_rounds() {
    let plan = Plan { rounds: 12, seconds: 3, peers: &[], peers_ready_after: Duration::ZERO };
    for protocol in [Protocol::TtHeader, Protocol::Framed, Protocol::Mux, Protocol::Grpc] {
        for concurrency in [1, 16, 100] {
            let has_figures =
                !section(&[Cell { protocol, concurrency, ..measured() }.found()]).figures.is_empty();
            let expected = if has_figures { (12, 3) } else { (3, 2) };
            assert_eq!(length(concurrency, plan), expected, "{protocol:?}, {concurrency} at once");
        }
    }
    assert!(!section(&[Cell { protocol: Protocol::Grpc, ..measured() }.found()]).figures.is_empty());
    assert_eq!(length(1, Plan { rounds: 1, seconds: 1, ..plan }), (1, 1));
}

#[test]
fn only_the_main_cell_has_economy_and_naive_sites_and_grpc_no_events() {
    assert_eq!(conditions(Protocol::TtHeader, true, 1).len(), 11);
    assert_eq!(conditions(Protocol::Mux, false, 0).len(), 5);
    assert_eq!(conditions(Protocol::Grpc, false, 2).len(), 6);
}
