//! Attaching and detaching under load: every call that is counted is counted exactly once.

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

/// Calls started and finished in a process so far. While calls go on, `started` is read after `finished`.
fn so_far(process: &mut Process) -> Result<(u64, u64)> {
    let counts = process.command("counts")?;
    Ok((number(&counts, "started")?, number(&counts, "finished")?))
}

/// Ends an agent. Returns the counts in its summary: all calls, and those without a duration.
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

/// No calls start or finish while the agent attaches or detaches. Each call in flight at attaching becomes one finish
/// without a start, and each call in flight at detaching is not counted.
#[test]
fn calls_under_way_at_both_ends() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(Process::kitex(&["client", "--connect", server.addr()?])?);
    }
    // Opens connections first, so that no other call is in flight.
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
        // A finish without a start has no latency.
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

/// Returns the account of a target in which nothing has started or finished.
fn quiet(agent: &Agent, pid: u32) -> Result<Account> {
    let faults = Account::of(&agent.scrape()?, pid).faults.into_keys().map(|name| (name, 0));
    Ok(Account { faults: faults.collect(), ..Account::default() })
}

/// Attaching under full load: the counts are within bounds from what the process had started and finished just before
/// and after. After a pause, they are exact.
#[test]
fn attached_under_full_load() -> Result<()> {
    let (mut server, mut client) = pair()?;
    // Under load the server may have no call in flight at the moment of attaching, if it waits for a processor. This
    // call ensures that it has one.
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
        // Every start seen has its finish, and every finish is in the throughput once.
        assert_eq!((account.starts, account.lost, account.in_flight), (account.timed, 0, 0), "{account:?}");
        assert_eq!(account.found_faults(), []);
        let total = Tally::of_agent(&scrape, &DEFAULT_LABELS, Some(process.pid()))?.total();
        assert_eq!(total, account.timed + account.unpaired);
        // Nothing from before the agent attached is counted, and everything after it was ready.
        assert_within("starts", account.starts, started - after.0..=started - before.0);
        assert_within("finishes", total, finished - after.1..=finished - before.1);
        // A finish without a start is of a call that began before the start probes were attached and ended after that.
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

/// Agents come and go during one flow of calls. Each counts what happened while it was attached, and none disturbs a
/// call.
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
        // Unpaired calls began before the agent attached, and have ended by now.
        let account = Account::of(&agent.scrape()?, server.pid());
        let (_, leaving) = so_far(&mut server)?;
        let (calls, untimed) = summary(agent)?;
        let (_, after) = so_far(&mut server)?;
        assert!(leaving > ready, "no load: this shows nothing");
        assert_within("calls of one agent", calls, leaving - ready..=after - before);
        assert_within("calls from before it came", account.unpaired, 0..=started_when_ready - before);
        // Finish probes are removed before start probes, so that no finish lacks its start or takes the start of
        // another call. Calls whose records found no room in the ring have no duration, either.
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
    // Nothing is damaged: an agent that stays counts exactly.
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

/// While probes are removed, calls would seem to start and never finish, so the number of calls in flight is not shown
/// then.
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
    // Scrapes until the agent no longer answers. The last scrape has waited until the probes were gone, unless it was
    // requested before they were removed.
    loop {
        let is_leaving = agent.status("/readyz").is_ok_and(|status| status == 503);
        let Ok(text) = agent.get("/metrics") else { break };
        (last, was_leaving) = (Scrape::parse(&text)?, is_leaving);
        for name in GAUGES {
            // While calls are counted, one can end and its caller begin another.
            assert_within(name, whole(last.sum(name, &[])), 0..=2 * CALLERS);
        }
    }
    assert_eq!(agent.wait(Duration::from_secs(2))?.code(), Some(0));
    for name in GAUGES.iter().filter(|_| was_leaving) {
        assert!(last.samples(name).next().is_none(), "{name} is {} at the end", last.sum(name, &[]));
    }
    Ok(())
}

/// Rings are drained at the end: calls that finish right before the signal are in the last count.
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

/// Fails if a method that never fails for the caller has returned an error.
fn assert_only_intended_errors(counts: &Value) -> Result<()> {
    let rows = counts["loop"].as_array().context("no loop")?;
    for row in rows.iter().filter(|row| row["method"] == "Notify" || row["method"] == "Lookup") {
        assert_ne!(row["result"], "error", "{row}");
    }
    assert!(rows.len() > 5, "{rows:?}");
    Ok(())
}
