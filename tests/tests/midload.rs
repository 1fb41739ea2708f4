//! Attached and detached in the middle of the load: what is counted is counted once and only once.

use std::{
    ops::RangeInclusive,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use monitor_tests::{
    agent::Agent,
    chain::{Account, check_calls},
    durations,
    process::Process,
    scrape::{Scrape, whole},
    tally::{DEFAULT_LABELS, Tally},
};
use serde_json::Value;

fn pair() -> Result<(Process, Process)> {
    let server = Process::kitex(&["server"])?;
    let client = Process::kitex(&["client", "--connect", server.addr()?])?;
    Ok((server, client))
}

fn number(answer: &Value, name: &str) -> Result<u64> {
    answer[name].as_u64().with_context(|| format!("no {name} in {answer}"))
}

/// Calls started and finished in a process so far. Read while calls go on: started is read after finished.
fn so_far(process: &mut Process) -> Result<(u64, u64)> {
    let counts = process.command("counts")?;
    Ok((number(&counts, "started")?, number(&counts, "finished")?))
}

/// What the agent says at its end: calls counted, and those of them without a duration.
fn summary(mut agent: Agent) -> Result<(u64, u64)> {
    agent.signal(libc::SIGTERM)?;
    assert_eq!(agent.wait(Duration::from_secs(2))?.code(), Some(0));
    let text = agent.log();
    let numbers = |line: &str| {
        let (_, rest) = line.split_once("detached: ")?;
        let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
        let calls = numbers.next()?;
        Some((calls, numbers.nth(1)?))
    };
    text.lines().find_map(numbers).with_context(|| format!("no summary in\n{text}"))
}

fn assert_within(what: &str, number: u64, bounds: RangeInclusive<u64>) {
    assert!(bounds.contains(&number), "{what}: {number} is not in {bounds:?}");
}

/// With both ends quiet: each call that was under way when the agent came is one finish without a start, and each
/// that is under way when it goes is nothing.
#[test]
fn calls_under_way_at_both_ends() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(Process::kitex(&["client", "--connect", server.addr()?])?);
    }
    // Connections first, so that no other call is under way.
    for client in &mut clients {
        client.command("call 1 Echo succeed")?;
    }
    for client in &mut clients {
        client.send("call 1 Store succeed 64 1500000")?;
    }
    thread::sleep(Duration::from_millis(200));
    let pids = [server.pid(), clients[0].pid()];
    let agent = Agent::attach(&pids, &[])?;
    assert_eq!(Account::of(&agent.scrape()?, pids[0]), quiet(&agent, pids[0])?, "the calls were too short");
    for client in &mut clients {
        assert_eq!(number(&client.answer(Duration::from_secs(10))?, "ok")?, 1);
    }
    for client in &mut clients {
        assert_eq!(number(&client.command("call 25 Echo succeed")?, "ok")?, 25);
    }
    server.command("settle")?;
    let scrape = agent.scrape_settled()?;
    for (pid, unpaired, paired) in [(pids[0], 4, 100), (pids[1], 1, 25)] {
        let account = Account::of(&scrape, pid);
        assert_eq!(
            (account.starts, account.timed, account.unpaired, account.lost),
            (paired, paired, unpaired, 0)
        );
        assert_eq!(account.in_flight, 0);
        assert_eq!(account.found_faults(), []);
        let calls = Tally::of_agent(&scrape, &DEFAULT_LABELS, Some(pid))?;
        assert_eq!((calls.sum(&[("method", "Store")]), calls.sum(&[("method", "Echo")])), (unpaired, paired));
        // An unpaired finish has no latency.
        let timed = durations::of_agent(&scrape, Some(pid));
        assert_eq!(
            timed.values().map(|histogram| histogram.count).sum::<f64>().to_string(),
            paired.to_string()
        );
        assert!(timed.keys().all(|labels| labels["method"] == "Echo"));
    }
    for client in &mut clients {
        client.send("call 1 Store succeed 64 1500000")?;
    }
    thread::sleep(Duration::from_millis(300));
    assert_eq!(Account::of(&agent.scrape()?, pids[0]).in_flight, 4);
    assert_eq!(summary(agent)?, (104 + 26, 5));
    for client in &mut clients {
        assert_eq!(number(&client.answer(Duration::from_secs(10))?, "ok")?, 1);
    }
    Ok(())
}

/// The account of a target in which nothing has started or finished.
fn quiet(agent: &Agent, pid: u32) -> Result<Account> {
    let faults = Account::of(&agent.scrape()?, pid).faults.into_keys().map(|name| (name, 0));
    Ok(Account { faults: faults.collect(), ..Account::default() })
}

/// Under full load: bounds from what the process itself had started and finished around the moment of attaching.
/// Then, with a pause in between, equality to the last call.
#[test]
fn attached_under_full_load() -> Result<()> {
    let (mut server, mut client) = pair()?;
    // Under load the server may have no call under way at the moment of attaching, while it waits for a processor. This
    // one makes sure.
    let mut slow = Process::kitex(&["client", "--connect", server.addr()?])?;
    slow.command("call 1 Echo succeed")?;
    slow.send("call 1 Store succeed 64 2000000")?;
    client.command("flow 16")?;
    thread::sleep(Duration::from_millis(300));
    let before = [so_far(&mut client)?, so_far(&mut server)?];
    let agent = Agent::attach(&[client.pid(), server.pid()], &[])?;
    let after = [so_far(&mut client)?, so_far(&mut server)?];
    thread::sleep(Duration::from_millis(500));
    client.command("pause")?;
    assert_eq!(number(&slow.answer(Duration::from_secs(10))?, "ok")?, 1);
    server.command("settle")?;
    let scrape = agent.scrape_settled()?;
    for ((process, before), after) in [&mut client, &mut server].into_iter().zip(before).zip(after) {
        let (started, finished) = so_far(process)?;
        assert_eq!(started, finished);
        let account = Account::of(&scrape, process.pid());
        // Every start that was seen has found its finish, and every finish is in the throughput once.
        assert_eq!((account.starts, account.lost, account.in_flight), (account.timed, 0, 0), "{account:?}");
        assert_eq!(account.found_faults(), []);
        let total = Tally::of_agent(&scrape, &DEFAULT_LABELS, Some(process.pid()))?.total();
        assert_eq!(total, account.timed + account.unpaired);
        // Nothing before the agent came is counted, everything after it was ready is.
        assert_within("starts", account.starts, started - after.0..=started - before.0);
        assert_within("finishes", total, finished - after.1..=finished - before.1);
        // A finish without a start is of a call that began before the start probes were there and ended after.
        assert_within("unpaired", account.unpaired, 1..=after.0 - before.1);
    }
    let first =
        [&client, &server].map(|process| Tally::of_agent(&scrape, &DEFAULT_LABELS, Some(process.pid())));
    for process in [&mut client, &mut server] {
        process.command("reset")?;
    }
    client.command("load 20000 16 9")?;
    server.command("settle")?;
    let scrape = agent.scrape_settled()?;
    for (process, first) in [&mut client, &mut server].into_iter().zip(first) {
        let now = Tally::of_agent(&scrape, &DEFAULT_LABELS, Some(process.pid()))?;
        Tally::of_target(&process.command("counts")?, &DEFAULT_LABELS)?.check(&now.since(&first?)?)?;
    }
    agent.terminate()?;
    Ok(())
}

/// Agents come and go in the middle of one flow: each counts what happened while it was there, none disturbs a call.
#[test]
fn detached_under_full_load() -> Result<()> {
    let (mut server, mut client) = pair()?;
    client.command("flow 16")?;
    let mut counted = 0;
    for _ in 0..4 {
        let (_, before) = so_far(&mut server)?;
        let agent = Agent::attach(&[server.pid()], &[])?;
        let (started_when_ready, ready) = so_far(&mut server)?;
        thread::sleep(Duration::from_millis(500));
        // Unpaired are calls from before it came, which have ended by now.
        let account = Account::of(&agent.scrape()?, server.pid());
        let (_, leaving) = so_far(&mut server)?;
        let (calls, untimed) = summary(agent)?;
        let (_, after) = so_far(&mut server)?;
        assert!(leaving > ready, "no load: this shows nothing");
        assert_within("calls of one agent", calls, leaving - ready..=after - before);
        assert_within("calls from before it came", account.unpaired, 0..=started_when_ready - before);
        // Start probes go after finish probes: from then on no finish lacks its start, or would take that of another call. What
        // found no room in the ring has no duration either.
        assert_eq!(
            untimed,
            account.unpaired + account.lost,
            "without a duration at the end; before it {account:?}"
        );
        counted += calls;
    }
    let outcome = client.command("pause")?;
    server.command("settle")?;
    let (_, finished) = so_far(&mut server)?;
    assert_eq!(number(&outcome, "calls")?, finished);
    assert!(counted < finished);
    assert_only_intended_errors(&client.command("counts")?)?;
    // Still whole: an agent that stays counts exactly.
    for process in [&mut client, &mut server] {
        process.command("reset")?;
    }
    let agent = Agent::attach(&[server.pid()], &[])?;
    client.command("load 5000 16 4")?;
    server.command("settle")?;
    let scrape = agent.scrape_settled()?;
    assert_eq!(check_calls(&mut server, &scrape, &DEFAULT_LABELS, false)?.total(), 5_000);
    agent.terminate()?;
    Ok(())
}

/// While probes are taken away calls seem to start and never to end: how many are in flight is not shown then.
#[test]
fn no_calls_in_flight_are_made_up_as_the_agent_goes() -> Result<()> {
    const CALLERS: u64 = 16;
    const GAUGES: [&str; 2] = ["kitex_client_in_flight", "kitex_server_in_flight"];
    let (server, mut client) = pair()?;
    client.send(&format!("bench 20 {CALLERS}"))?;
    let mut agent = Agent::attach(&[client.pid(), server.pid()], &[])?;
    let (mut last, began) = (agent.scrape()?, Instant::now());
    while GAUGES.iter().any(|name| last.samples(name).next().is_none()) {
        assert!(began.elapsed() < Duration::from_secs(5), "no calls in flight: this shows nothing");
        last = agent.scrape()?;
    }
    agent.signal(libc::SIGTERM)?;
    let mut was_leaving = false;
    // Until nobody answers any more: the last has waited until the probes were gone, unless it was asked for before they went.
    loop {
        let is_leaving = agent.status("/readyz").is_ok_and(|status| status == 503);
        let Ok(text) = agent.get("/metrics") else { break };
        (last, was_leaving) = (Scrape::parse(&text)?, is_leaving);
        for name in GAUGES {
            // While they are counted one can end, and its caller begin another.
            assert_within(name, whole(last.sum(name, &[])), 0..=2 * CALLERS);
        }
    }
    assert_eq!(agent.wait(Duration::from_secs(2))?.code(), Some(0));
    for name in GAUGES.iter().filter(|_| was_leaving) {
        assert!(last.samples(name).next().is_none(), "{name} is {} at the end", last.sum(name, &[]));
    }
    Ok(())
}

/// A drain at the end: calls that have finished right before the signal are in the last count.
#[test]
fn the_last_calls_before_the_end() -> Result<()> {
    let (mut server, mut client) = pair()?;
    for round in 1..=3 {
        let agent = Agent::attach(&[client.pid(), server.pid()], &[])?;
        client.command(&format!("load 3000 16 {round}"))?;
        let begin = Instant::now();
        server.command("settle")?;
        assert_eq!(summary(agent)?, (6_000, 0), "{:?} after the load", begin.elapsed());
    }
    Ok(())
}

/// Methods of the mixed load that never fail for the caller.
fn assert_only_intended_errors(counts: &Value) -> Result<()> {
    let rows = counts["loop"].as_array().context("no loop")?;
    for row in rows.iter().filter(|row| row["method"] == "Notify" || row["method"] == "Lookup") {
        assert_ne!(row["result"], "error", "{row}");
    }
    assert!(rows.len() > 5, "{rows:?}");
    Ok(())
}
