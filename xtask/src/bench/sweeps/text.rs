//! The results of the sweeps as text: tables, and comparisons with the aims.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde_json::json;

use super::{
    CALLS, DEFAULT_LABEL_SETS, LABEL_SETS, OWN_AT_ONCE, OWN_EXECUTABLES, Point, ROOM, SHARED_EXECUTABLE,
    SIZE, Share, Swept,
};
use crate::bench::{
    charts::{self, Bar},
    maps,
    matrix::{AIM_CPU_US, AIM_RESIDENT_MB},
    report::{megabytes, ratio, row, show_ratio, table, verdict, verdict_of_memory},
    section::Section,
};

// Aims.
const AIM_PERCENT: f64 = 5.0;
const AIM_PEAK_MIB: f64 = 60.0;
/// What should be flat may be at most this many times as much at the far end.
const AIM_FLAT: f64 = 1.25;
/// The most that detaching and exiting should take: whatever ends the agent waits this long.
const AIM_END_MS: f64 = 2_000.0;
/// The share by which the ratio of the agent's own CPU at the two ends of a sweep may exceed an earlier run's. Over
/// single rounds of one run, the highest ratio was at most 1.38 times the lowest.
const TOLERANCE: f64 = 0.4;
/// The executable size that the aim is for.
const AIM_SIZE_MIB: f64 = 30.0;

/// Returns all text and figures about the sweeps.
pub(in crate::bench) fn section(found: &Swept) -> Section {
    let points = &found.points;
    let mut rows = vec![row([
        "",
        "calls/s",
        "agent's CPU per call, µs",
        "of one processor, %",
        "wakeups a second",
        "targets' CPU per call, µs",
        "of that added, µs",
        "resident, MiB",
        "maps, MiB",
        "peak until ready, MiB",
        "start until ready, ms",
        "loading and attaching, ms",
        "detaching and ending, ms",
    ])];
    rows.extend(points.iter().map(|point| {
        vec![
            format!("{} {}", point.number, point.what),
            format!("{:.0}", point.calls_per_second),
            format!("{:.2}", point.agent_us),
            format!("{:.2}", point.agent_percent),
            format!("{:.1}", point.wakeups_per_second),
            format!("{:.2}", point.target_us),
            format!("{:.2}", point.added_us),
            format!("{:.1}", point.resident_mib),
            format!("{:.1}", point.maps_mib),
            format!("{:.1}", point.peak_mib),
            format!("{:.0}", point.ready_ms),
            format!("{:.0}", point.attach_ms),
            format!("{:.0}", point.end_ms),
        ]
    }));
    let text = format!(
        "{}\n{}\n{}\n![The agent's own CPU](overhead-agent.svg)\n",
        table(&rows),
        shares_table(found),
        aims(found)
    );
    let (figures, noise) = figures(&found.shares);
    Section {
        part: "sweeps",
        blocks: vec![("sweeps", text)],
        charts: vec![("overhead-agent.svg", chart(&found.shares))],
        results: json!(found),
        figures,
        tolerance: TOLERANCE,
        noise,
        ..Section::default()
    }
}

/// Returns a table of the kernel's and machine's share of the added time, and the agent's.
fn shares_table(Swept { shares, rounds, .. }: &Swept) -> String {
    let mut rows = vec![row([
        "µs for a call, median (min to max)",
        "added by empty programs",
        "added by the agent",
        "of that beyond the empty ones",
        "agent / empty",
        "agent's own CPU",
    ])];
    rows.extend(shares.iter().map(|share| {
        vec![
            format!("{} {}", share.number, share.what),
            share.empty_us.show(2),
            share.added_us.show(2),
            share.beyond_us.show(2),
            show_ratio(share.to_empty()),
            share.own_us.show(2),
        ]
    }));
    format!("Medians of {rounds} rounds, and in parentheses the lowest and the highest.\n\n{}", table(&rows))
}

impl Share {
    /// Returns what the agent adds, in units of what empty programs add.
    fn to_empty(&self) -> Option<f64> {
        ratio(self.added_us, self.empty_us)
    }
}

/// Formats a ratio of the far end to the near end, and whether it counts as flat.
fn flat(times: Option<f64>) -> String {
    let met = times.map(|times| format!(" ({})", verdict(times, AIM_FLAT)));
    show_ratio(times) + &met.unwrap_or_default()
}

/// Returns the shares at the near and far ends of a sweep.
fn ends_of<'a>(shares: &'a [Share], what: &str) -> Option<(&'a Share, &'a Share)> {
    Some((of(shares, what).next()?, of(shares, what).next_back()?))
}

/// Returns the figures: the agent's own CPU per call at the far end of some sweeps, in units of that at the near end.
/// These are the sweeps that should be flat, and that of targets with a shared executable. Also returns the names of
/// those that are noise.
fn figures(shares: &[Share]) -> (BTreeMap<String, f64>, BTreeSet<String>) {
    let (mut figures, mut noise) = (BTreeMap::new(), BTreeSet::new());
    for what in [LABEL_SETS, OWN_EXECUTABLES, OWN_AT_ONCE, SHARED_EXECUTABLE] {
        let Some((few, many)) = ends_of(shares, what) else { continue };
        let name = format!("{what}: own CPU, {} to {}", many.number, few.number);
        if let Some(ratio) = ratio(many.own_us, few.own_us) {
            figures.insert(name, ratio);
        } else {
            noise.insert(name);
        }
    }
    (figures, noise)
}

/// Compares the ends of a sweep: what the agent adds, and what kernel and machine do.
fn shares_of_ends(shares: &[Share], what: &str) -> Option<String> {
    let (few, many) = ends_of(shares, what)?;
    Some(format!(
        "- {} {what} against {}: what the agent adds, {} times; what empty programs add, {} times, which is the kernel's \
         and the machine's; what the agent adds beyond those, {}; in units of what those add, {}; the agent's own CPU, {}.",
        many.number,
        few.number,
        flat(ratio(many.added_us, few.added_us)),
        show_ratio(ratio(many.empty_us, few.empty_us)),
        flat(ratio(many.beyond_us, few.beyond_us)),
        flat(many.to_empty().zip(few.to_empty()).map(|(many, few)| many / few)),
        flat(ratio(many.own_us, few.own_us)),
    ))
}

/// Returns the shares of a sweep.
fn of<'a>(shares: &'a [Share], what: &str) -> impl DoubleEndedIterator<Item = &'a Share> {
    shares.iter().filter(move |share| share.what == what)
}

/// Formats an aim and its results; empty if there are none.
fn told(aim: &str, cases: impl Iterator<Item = String>) -> String {
    let cases = cases.collect::<Vec<_>>().join("; ");
    if cases.is_empty() { cases } else { format!("- Aim: {aim}: {cases}.\n") }
}

/// Compares the agent's own cost of calls with the aim, at each rate.
fn aim_of_calls(shares: &[Share]) -> String {
    let case = |share: &Share| {
        let Share { number, own_us, own_percent, .. } = share;
        let percent_met = verdict(own_percent.median, AIM_PERCENT);
        let (us_met, us, percent) = (verdict(own_us.median, AIM_CPU_US), own_us.show(2), own_percent.show(2));
        format!("{us} µs ({us_met}) and {percent} % ({percent_met}) at {number} calls/s")
    };
    let aim =
        format!("at most {AIM_CPU_US} µs of the agent's CPU per call, and {AIM_PERCENT} % of one processor");
    told(&aim, of(shares, CALLS).map(case))
}

/// Compares the agent's memory with one target with the aim.
fn aim_of_memory(shares: &[Share]) -> String {
    let case = |share: &Share| {
        let Share { what, number, resident_mib, maps_mib, .. } = share;
        let room = if what == LABEL_SETS { format!(" and room for {}", ROOM[1]) } else { String::new() };
        let resident_met = verdict_of_memory(resident_mib.median, AIM_RESIDENT_MB);
        let maps_met = verdict_of_memory(maps_mib.median, maps::AIM_MB);
        let (resident, maps) = (resident_mib.show(1), maps_mib.show(2));
        format!("{resident} MiB ({resident_met}) and {maps} MiB ({maps_met}) with {number} {what}{room}")
    };
    let (resident, maps) = (megabytes(AIM_RESIDENT_MB), megabytes(maps::AIM_MB));
    let aim = format!("at most {resident} of resident memory, and {maps} of maps, with one target");
    told(&aim, of(shares, DEFAULT_LABEL_SETS).chain(of(shares, LABEL_SETS)).map(case))
}

/// Compares the memory for planning with the aim, for the executable nearest to the aim's size.
fn aim_of_size(shares: &[Share]) -> String {
    let distance = |share: &Share| (share.number - AIM_SIZE_MIB).abs();
    let nearest = of(shares, SIZE).min_by(|a, b| distance(a).total_cmp(&distance(b)));
    let case = |share: &Share| {
        let met = verdict(share.peak_mib.median, AIM_PEAK_MIB);
        format!("{} MiB ({met}) with {} {SIZE}", share.peak_mib.show(1), share.number)
    };
    let aim = format!("at most {AIM_PEAK_MIB} MiB until ready with {AIM_SIZE_MIB} {SIZE}");
    told(&aim, nearest.into_iter().map(case))
}

fn aims(Swept { points, shares, .. }: &Swept) -> String {
    let mut text = aim_of_calls(shares) + &aim_of_memory(shares) + &aim_of_size(shares);
    let _ = writeln!(
        text,
        "- Aim: at the far end of a sweep a call takes at most {AIM_FLAT} times what it takes at the near end."
    );
    for what in [LABEL_SETS, OWN_EXECUTABLES, OWN_AT_ONCE] {
        text.extend(shares_of_ends(shares, what).map(|line| line + "\n"));
    }
    if let Some((few, many)) = ends_of(shares, SHARED_EXECUTABLE) {
        let _ = writeln!(
            text,
            "- With {} {SHARED_EXECUTABLE} a call takes {} times what it takes with {}, added to the targets, and {} times of \
             the agent's own CPU. No aim: the kernel asks all who watch an executable at each hit.",
            many.number,
            show_ratio(ratio(many.added_us, few.added_us)),
            few.number,
            show_ratio(ratio(many.own_us, few.own_us))
        );
    }
    if let Some((few, many)) = ends(points, OWN_EXECUTABLES) {
        let more = many.number - few.number;
        let each = |few: f64, many: f64| (many - few) / more;
        let _ = writeln!(
            text,
            "- Aim with {} {OWN_EXECUTABLES}: at most {AIM_END_MS} ms of detaching and ending: {}. Each target more takes \
             {:.1} MiB of resident memory and {:.1} MiB of maps, which are in the first figure, too: the ring twice.",
            many.number,
            verdict(many.end_ms, AIM_END_MS),
            each(few.resident_mib, many.resident_mib),
            each(few.maps_mib, many.maps_mib)
        );
    }
    text
}

/// Returns the points with the lowest and the highest number.
fn ends<'a>(points: &'a [Point], what: &str) -> Option<(&'a Point, &'a Point)> {
    let of = || points.iter().filter(|point| point.what == what);
    let few = of().min_by(|a, b| a.number.total_cmp(&b.number))?;
    let many = of().max_by(|a, b| a.number.total_cmp(&b.number))?;
    (few.number < many.number).then_some((few, many))
}

fn chart(shares: &[Share]) -> String {
    let bars = shares
        .iter()
        .map(|share| Bar { label: format!("{} {}", share.number, share.what), value: share.own_us });
    charts::bars("The agent's own CPU for each call, µs", 2, &bars.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{
        report::Spread,
        section::{Numbers, Setting},
        sweeps::tests::point,
    };

    fn share(what: &str, number: f64, empty: f64, added: f64) -> Share {
        let of = |number| Spread::of([number]);
        let (empty_us, added_us, beyond_us) = (of(empty), of(added), of(added - empty));
        Share {
            what: what.to_owned(),
            number,
            empty_us,
            added_us,
            beyond_us,
            own_us: of(0.5),
            own_percent: of(0.5),
            resident_mib: of(28.0),
            maps_mib: of(7.5),
            peak_mib: of(28.0),
        }
    }

    #[test]
    fn each_point_tells_how_often_the_agent_wakes_up() {
        let points = [(1_000.0, 41.25), (100_000.0, 58.0)];
        let points = points.map(|(rate, wakeups_per_second)| Point {
            wakeups_per_second,
            ..point("calls a second", rate, 0.5)
        });
        let section = section(&Swept { points: points.to_vec(), ..Swept::default() });
        let (_, text) = &section.blocks[0];
        let column = |line: &str| line.split('|').nth(5).map(|cell| cell.trim().to_owned());
        let column = text.lines().take(4).filter_map(column).collect::<Vec<_>>();
        assert_eq!(column[0], "wakeups a second");
        assert_eq!(column[2..], ["41.2", "58.0"]);
        assert_eq!(section.results["points"][1]["wakeups_per_second"], json!(58.0));
    }

    #[test]
    fn aims_are_about_the_points_that_they_name() {
        let share = |what, number| share(what, number, 2.0, 3.0);
        let peak_mib = Spread::of([58.0, 61.0, 62.0]);
        let shares = vec![
            Share { own_us: Spread::of([0.75, 1.0, 1.25]), ..share(CALLS, 1_000.0) },
            Share { own_percent: Spread::of([5.25]), ..share(CALLS, 100_000.0) },
            share(SIZE, 5.0),
            Share { peak_mib, ..share(SIZE, 31.0) },
            share(SIZE, 95.0),
        ];
        let text = aims(&Swept { shares, ..Swept::default() });
        let expected = "- Aim: at most 0.5 µs of the agent's CPU per call, and 5 % of one processor: \
                        1.00 (0.75 to 1.25) µs (not met) and 0.50 (0.50 to 0.50) % (met) at 1000 calls/s; \
                        0.50 (0.50 to 0.50) µs (met) and 5.25 (5.25 to 5.25) % (not met) at 100000 calls/s.\n";
        assert!(text.contains(expected), "{text}");
        let expected = "- Aim: at most 60 MiB until ready with 30 MiB of executable: \
                        61.0 (58.0 to 62.0) MiB (not met) with 31 MiB of executable.\n";
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains("label sets"), "{text}");
    }

    #[test]
    fn memory_is_told_with_all_label_sets_that_there_may_be() {
        let full = share(DEFAULT_LABEL_SETS, 4_096.0, 2.0, 3.0);
        let (resident_mib, maps_mib) = (Spread::of([29.0]), Spread::of([8.25]));
        let shares = vec![share(LABEL_SETS, 10.0, 2.0, 3.0), Share { resident_mib, maps_mib, ..full }];
        let text = aims(&Swept { shares, ..Swept::default() });
        let expected = "- Aim: at most 30 MB (28.61 MiB) of resident memory, and 8 MB (7.63 MiB) of maps, with one target: \
                        29.0 (29.0 to 29.0) MiB (not met) and 8.25 (8.25 to 8.25) MiB (not met) \
                        with 4096 label sets, as many as by default; \
                        28.0 (28.0 to 28.0) MiB (met) and 7.50 (7.50 to 7.50) MiB (met) \
                        with 10 label sets and room for 16384.\n";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn what_is_flat_is_told_by_the_ends_of_a_sweep() {
        let shares = [
            share(OWN_EXECUTABLES, 1.0, 2.0, 3.0),
            share(OWN_EXECUTABLES, 10.0, 9.0, 9.0),
            share(OWN_EXECUTABLES, 50.0, 10.0, 12.0),
        ];
        let text = shares_of_ends(&shares, OWN_EXECUTABLES).unwrap();
        assert!(text.contains("50 targets, each its own executable against 1"), "{text}");
        assert!(
            text.contains("the agent adds, 4.00 (not met) times; what empty programs add, 5.00 times"),
            "{text}"
        );
        assert!(
            text.contains("beyond those, 2.00 (not met); in units of what those add, 0.80 (met)"),
            "{text}"
        );
        assert!(text.contains("own CPU, 1.00 (met)"), "{text}");
        assert!(shares_of_ends(&shares, LABEL_SETS).is_none());
    }

    /// Returns the section of sweeps with several rounds, given the agent's own cost at their far end.
    fn swept(far_us: [f64; 2]) -> Section {
        let own = |what, number, own_us: [f64; 2]| Share {
            own_us: Spread::of(own_us),
            ..share(what, number, 2.0, 3.0)
        };
        let sweeps = [LABEL_SETS, OWN_EXECUTABLES, OWN_AT_ONCE, SHARED_EXECUTABLE];
        let ends =
            |what| [own(what, 1.0, [0.125, 0.125]), own(what, 7.0, [9.0, 9.0]), own(what, 50.0, far_us)];
        section(&Swept { shares: sweeps.into_iter().flat_map(ends).collect(), ..Swept::default() })
    }

    #[test]
    fn what_the_agent_takes_at_the_ends_of_a_sweep_is_compared_with_an_earlier_run() {
        let numbers = |section: &Section| {
            let mut numbers = Numbers::default();
            numbers.add(section, &Setting::default());
            numbers
        };
        let then = swept([0.25, 0.25]);
        assert_eq!(then.figures.len(), 4, "{:?}", then.figures);
        assert!((then.figures["targets that share one executable: own CPU, 50 to 1"] - 2.0).abs() < 1e-9);
        let then = numbers(&then);
        numbers(&swept([0.34, 0.34])).check_against(&then).unwrap();
        let error = numbers(&swept([0.36, 0.36])).check_against(&then).unwrap_err().to_string();
        let expected =
            "sweeps: label sets: own CPU, 50 to 1 is 2.88, at most 2.80 is allowed (it was 2.00)\n";
        assert!(error.contains(expected), "{error}");
        let unknown = swept([0.0, 0.25]);
        assert_eq!((unknown.figures.len(), unknown.noise.len()), (0, 4));
    }

    #[test]
    fn what_may_be_nothing_has_no_verdict() {
        let mut shares = [share(OWN_EXECUTABLES, 1.0, 2.0, 3.0), share(OWN_EXECUTABLES, 50.0, 10.0, 12.0)];
        shares[1].added_us = Spread::of([-1.0, 12.0, 12.0]);
        let text = shares_of_ends(&shares, OWN_EXECUTABLES).unwrap();
        assert!(text.contains("the agent adds, (not to be told from noise) times; what empty"), "{text}");
        assert!(
            text.contains(
                "beyond those, 2.00 (not met); in units of what those add, (not to be told from noise);"
            ),
            "{text}"
        );
        let table = shares_table(&Swept { rounds: 2, shares: shares.to_vec(), ..Swept::default() });
        assert!(table.starts_with("Medians of 2 rounds, and in parentheses"), "{table}");
        let far = table.lines().last().unwrap_or_default();
        assert!(far.contains("| 12.00 (-1.00 to 12.00) |") && far.contains("| (not to be told"), "{far}");
    }

    #[test]
    fn what_a_target_takes_is_told_by_the_ends_of_a_sweep() {
        let mut points = vec![point(OWN_EXECUTABLES, 1.0, 1.0), point(OWN_EXECUTABLES, 11.0, 1.5)];
        points[1] = Point { resident_mib: 120.0, end_ms: 2_100.0, ..points[1].clone() };
        let text = aims(&Swept { points, ..Swept::default() });
        assert!(
            text.contains("2000 ms of detaching and ending: not met. Each target more takes 10.0 MiB"),
            "{text}"
        );
    }
}
