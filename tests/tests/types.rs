//! Objects of other types than Kitex's own, and other itabs: nothing is mistaken for something else, and unexpected
//! types are named.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    scrape::{Scrape, whole},
    side_by_side,
    strange::{Seen, USUAL, Watched, row, tally},
};

#[test]
fn objects_of_other_types_are_not_taken_for_kitexs() -> Result<()> {
    let mut watched = Watched::start(&[])?;
    watched.calls("call 50 client", 50)?;
    for (shape, calls) in [("my-rpcinfo", 30), ("my-to", 40), ("no-rpcinfo", 5), ("no-to", 6)] {
        watched.calls(&format!("call {calls} {shape}"), calls)?;
        watched.calls("call 10 server", 10)?;
        watched.calls("call 10 separate", 10)?;
    }
    let seen = watched.seen()?;
    tally(&[row("client", USUAL, 50), row("server", USUAL, 80)])?.check(&seen.tally)?;
    ensure!(seen.by_reason("monitor_unpaired_starts_total", "unknown_type") == 81, "{:?}", seen.account);
    ensure!(seen.by_reason("monitor_events_lost_total", "finish_unknown_type") == 81, "{:?}", seen.account);
    let account = &seen.account;
    ensure!(
        (account.starts, account.timed, account.unpaired, account.in_flight) == (130, 130, 0, 0),
        "{account:?}"
    );
    ensure!(!watched.agent.get("/metrics")?.contains("disguised"), "names of other types are shown");
    watched.end()
}

#[test]
fn a_part_of_another_type_takes_only_its_own_label() -> Result<()> {
    let mut watched = Watched::start(&[])?;
    for (shape, calls) in
        [("my-from", 30), ("no-from", 5), ("client", 3), ("my-invocation", 20), ("my-method-info", 10)]
    {
        watched.calls(&format!("call {calls} {shape}"), calls)?;
    }
    let seen = watched.seen()?;
    let unreadable = row("client", ["unreadable", "stock", "Echo"], 35);
    tally(&[unreadable, row("client", USUAL, 3), row("server", USUAL, 30)])?.check(&seen.tally)?;
    ensure!(seen.by_reason("monitor_labels_unreadable_total", "implausible") == 35, "{:?}", seen.account);
    ensure!((seen.account.starts, seen.account.timed) == (68, 68), "{:?}", seen.account);
    ensure!(!watched.agent.get("/metrics")?.contains("disguised"), "names of other types are shown");
    watched.end()
}

/// Returns the hits of unexpected types, by interface and type.
fn unexpected(scrape: &Scrape) -> Vec<(String, String, u64)> {
    let samples = scrape.samples("monitor_unexpected_types_total");
    samples
        .map(|sample| {
            let label = |name: &str| sample.labels[name].rsplit('/').next().unwrap_or("").to_owned();
            (label("interface"), label("type"), whole(sample.value))
        })
        .collect()
}

/// Waits until the agent has reported exactly these types.
fn wait_for(watched: &Watched, expected: &[(String, String, u64)]) -> Result<()> {
    let begin = Instant::now();
    loop {
        let mut found = unexpected(&watched.agent.scrape()?);
        found.sort_unstable();
        if found == expected {
            return Ok(());
        }
        ensure!(begin.elapsed() < LOOKED_AT_WITHIN, "{found:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// The type of an object is seen at the start and at the finish, the type of a part where the part is read.
#[test]
fn other_types_are_named_once() -> Result<()> {
    let cases = [
        ("my-rpcinfo", "rpcinfo.RPCInfo", "main.myRPCInfo", 2),
        ("my-to", "rpcinfo.EndpointInfo", "main.myEndpointInfo", 2),
        ("my-from", "rpcinfo.EndpointInfo", "main.myEndpointInfo", 1),
        ("my-invocation", "rpcinfo.Invocation", "main.myInvocation", 1),
        ("my-method-info", "serviceinfo.MethodInfo", "main.myMethodInfo", 1),
    ];
    side_by_side(cases, |(shape, interface, concrete, hits)| {
        let mut watched = Watched::start(&[])?;
        // None of these has an unexpected type, and a missing part has no type.
        for usual in ["server", "separate", "client", "no-rpcinfo", "no-to", "no-from"] {
            watched.calls(&format!("call 10 {usual}"), 10)?;
        }
        let met = |hits: u64| [(interface.to_owned(), format!("*{concrete}"), hits)];
        watched.calls(&format!("call 30 {shape}"), 30)?;
        wait_for(&watched, &met(30 * hits)).context(shape)?;
        watched.calls(&format!("call 30 {shape}"), 30)?;
        // The type must not be named again.
        thread::sleep(LOOKED_AT_WITHIN);
        let found = unexpected(&watched.agent.scrape()?);
        ensure!(found == met(60 * hits), "{shape}: {found:?}");
        let log = watched.agent.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains(concrete)).collect();
        ensure!(lines.len() == 1 && lines[0].contains("WARN"), "{shape}: {log}");
        watched.end()
    })
}

/// Types beyond the number that is kept are only counted together.
#[test]
fn more_types_than_are_kept_are_counted_together() -> Result<()> {
    const KEPT: u64 = 64;
    const CALLS: u64 = KEPT + 36;
    let mut watched = Watched::start(&[])?;
    watched.calls(&format!("tabs {CALLS}"), CALLS)?;
    // Each type is seen at the start and at the finish.
    let of = |name: &str, types: u64| (name.to_owned(), name.to_owned(), 2 * types);
    wait_for(&watched, &[of("other", CALLS - KEPT), of("unknown", KEPT)])?;
    let seen = watched.seen()?;
    ensure!(
        seen.by_reason("monitor_events_lost_total", "finish_unknown_type") == CALLS,
        "{:?}",
        seen.account
    );
    watched.end()
}

/// How long the agent may take to look at an unexpected type.
const LOOKED_AT_WITHIN: Duration = Duration::from_secs(2);

/// Waits until the log has this many lines with these words, but at most `LOOKED_AT_WITHIN`.
fn wait_for_lines(watched: &Watched, words: &str, lines: usize) {
    let begin = Instant::now();
    while watched.agent.log().matches(words).count() < lines && begin.elapsed() < LOOKED_AT_WITHIN {
        thread::sleep(Duration::from_millis(50));
    }
}

/// The log lines for an itab that is equivalent to another, and for one that there is no room for.
const STANDS: &str = "calls come with another table";
const NO_ROOM: &str = "which was not expected";
const PLACES: [&str; 5] = ["server", "client", "to-server", "to-client", "from"];

/// A copy of an itab is used in its place once it is proven equivalent. Before that, it is unknown.
#[test]
fn a_second_itab_of_a_known_type_is_used() -> Result<()> {
    let mut watched = Watched::start(&[])?;
    for place in PLACES {
        watched.calls(&format!("call 1 copied-{place}"), 1)?;
    }
    let before = watched.seen()?;
    wait_for_lines(&watched, STANDS, PLACES.len());
    let hits = unexpected(&watched.agent.scrape_settled()?);
    for place in PLACES {
        watched.calls(&format!("call 100 copied-{place}"), 100)?;
    }
    let after = watched.seen()?;
    let counted = after.tally.since(&before.tally)?;
    tally(&[row("server", USUAL, 200), row("client", USUAL, 300)])?.check(&counted)?;
    ensure!(after.account.timed - before.account.timed == 500, "{:?}", after.account);
    // Known types are not reported as unexpected.
    thread::sleep(LOOKED_AT_WITHIN);
    let later = unexpected(&watched.agent.scrape()?);
    ensure!(later == hits && !hits.is_empty(), "{hits:?}, then {later:?}");
    watched.end()
}

/// Only so many itabs can stand for others. Calls with further itabs are not counted, and each of these itabs is named.
#[test]
fn more_second_itabs_than_there_is_room_for_are_named() -> Result<()> {
    const ROOM: u64 = 8;
    const MORE: u64 = 4;
    let mut watched = Watched::start(&[])?;
    for (first, itabs, words) in [(0, ROOM, STANDS), (ROOM, MORE, NO_ROOM)] {
        watched.calls(&format!("numbered {itabs} {first}"), itabs)?;
        wait_for_lines(&watched, words, usize::try_from(itabs)?);
    }
    let lost = |seen: &Seen| seen.by_reason("monitor_events_lost_total", "finish_unknown_type");
    let before = watched.seen()?;
    watched.calls(&format!("numbered {} 0", ROOM + MORE), ROOM + MORE)?;
    let after = watched.seen()?;
    tally(&[row("server", USUAL, ROOM)])?.check(&after.tally.since(&before.tally)?)?;
    ensure!(lost(&after) - lost(&before) == MORE, "{:?}", after.account);
    let log = watched.agent.log();
    let is_named = |line: &&str| line.contains("WARN") && line.contains(NO_ROOM);
    ensure!(log.lines().filter(is_named).count() as u64 == MORE, "{log}");
    watched.end()
}

#[test]
fn an_itab_that_lies_is_not_believed() -> Result<()> {
    side_by_side(["wrong-interface", "wrong-type", "wrong-known", "nowhere"], |lie| {
        let mut watched = Watched::start(&[])?;
        for calls in [1, 100] {
            for place in PLACES {
                watched.calls(&format!("call {calls} {lie}-{place}"), calls)?;
            }
            thread::sleep(LOOKED_AT_WITHIN);
        }
        watched.calls("call 10 server", 10)?;
        let seen = watched.seen()?;
        let unreadable = row("client", ["unreadable", "stock", "Echo"], 101);
        let expected = tally(&[unreadable, row("server", USUAL, 10)])?;
        expected.check(&seen.tally).with_context(|| lie)?;
        let lost = seen.by_reason("monitor_events_lost_total", "finish_unknown_type");
        ensure!(lost == 4 * 101, "{lie}: {lost} finishes of unknown type");
        watched.end()
    })
}
