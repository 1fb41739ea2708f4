//! The agent's account closes: exactly at rest, and under load except for calls of the last moment, whatever happens to
//! the agent. A call that hangs is visible while it hangs.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use monitor_tests::{
    agent::Agent,
    chain::{Account, check_closed, check_results},
    pace::Pace,
    process::Process,
    scrape::Scrape,
    tally::{DEFAULT_LABELS, Tally},
};

/// How long the agent is stopped.
const STOPPED: Duration = Duration::from_secs(30);
/// Calls in flight at once.
const CALLERS: u64 = 16;

fn pair() -> Result<(Process, Process)> {
    let server = Process::kitex(&["server"])?;
    let client = Process::kitex(&["client", "--connect", server.addr()?])?;
    Ok((server, client))
}

/// A gauge of the calls of one method that the target makes or handles.
fn of_method(scrape: &Scrape, name: &str, pid: u32, method: &str) -> f64 {
    let pid = pid.to_string();
    scrape.sum(name, &[("target", &pid), ("caller", "shop"), ("callee", "stock"), ("method", method)])
}

#[test]
fn a_call_that_hangs_is_seen_while_it_hangs() -> Result<()> {
    let (server, mut client) = pair()?;
    client.command("call 1 Echo succeed")?;
    let pids = [server.pid(), client.pid()];
    let agent = Agent::attach(&pids, &[])?;
    // Practically forever.
    client.send("call 1 Store succeed 64 2000000000")?;
    thread::sleep(Duration::from_millis(1_500));
    let first = agent.scrape()?;
    thread::sleep(Duration::from_secs(1));
    let second = agent.scrape()?;
    for (pid, side) in pids.into_iter().zip(["server", "client"]) {
        let count = format!("kitex_{side}_in_flight");
        let age = format!("kitex_{side}_oldest_call_age_seconds");
        for scrape in [&first, &second] {
            assert_eq!(of_method(scrape, &count, pid, "Store").to_string(), "1", "{side}");
            check_closed(scrape, pid, [0, 0])?;
        }
        let ages = [&first, &second].map(|scrape| of_method(scrape, &age, pid, "Store"));
        assert!(ages[0] > 1.0 && ages[0] < 30.0, "{side}: {ages:?}");
        let between = ages[1] - ages[0];
        assert!((1.0..5.0).contains(&between), "{side}: {ages:?}");
    }
    agent.terminate()?;
    Ok(())
}

#[test]
fn series_of_calls_in_flight_go_on_at_zero() -> Result<()> {
    let (server, mut client) = pair()?;
    client.command("call 1 Echo succeed")?;
    let agent = Agent::attach(&[server.pid(), client.pid()], &[])?;
    client.send("call 1 Store succeed 64 1000000")?;
    thread::sleep(Duration::from_millis(500));
    assert_eq!(of_method(&agent.scrape()?, "kitex_server_in_flight", server.pid(), "Store").to_string(), "1");
    client.answer(Duration::from_secs(10))?;
    let scrape = agent.scrape_settled()?;
    let pid = server.pid().to_string();
    for name in ["kitex_server_in_flight", "kitex_server_oldest_call_age_seconds"] {
        let labels = [("target", pid.as_str()), ("caller", "shop"), ("callee", "stock"), ("method", "Store")];
        assert_eq!(
            scrape.value(name, &labels).map(|value| value.to_string()).as_deref(),
            Some("0"),
            "{name}"
        );
    }
    agent.terminate()?;
    Ok(())
}

#[test]
fn under_load_the_account_closes_but_for_the_calls_of_a_moment() -> Result<()> {
    let (server, mut client) = pair()?;
    client.command("call 1 Echo succeed")?;
    let pids = [server.pid(), client.pid()];
    let agent = Agent::attach(&pids, &[])?;
    client.command("flow 16")?;
    let mut paces = [Pace::default(); 2];
    for _ in 0..40 {
        thread::sleep(Duration::from_millis(60));
        let scrape = agent.scrape()?;
        for (pid, pace) in pids.into_iter().zip(&mut paces) {
            pace.look(&scrape, pid);
            // Totals are read before the last records are drained from the ring. Only few calls finish in between.
            check_closed(&scrape, pid, [pace.slack(CALLERS, 50_000), 4 * CALLERS])?;
        }
    }
    client.command("pause")?;
    check_results(&mut client)?;
    let scrape = agent.scrape_settled()?;
    for pid in pids {
        check_closed(&scrape, pid, [0, 0])?;
        let starts = Account::of(&scrape, pid).starts;
        ensure!(starts > 1_000, "{starts} calls are no load: this shows nothing");
    }
    agent.terminate()?;
    Ok(())
}

#[test]
fn stopped_for_long_the_agent_loses_durations_only() -> Result<()> {
    let (mut server, mut client) = pair()?;
    let agent = Agent::attach(&[server.pid()], &[])?;
    client.command("flow 16")?;
    thread::sleep(Duration::from_millis(500));
    agent.signal(libc::SIGSTOP)?;
    thread::sleep(STOPPED);
    agent.signal(libc::SIGCONT)?;
    thread::sleep(Duration::from_millis(500));
    client.command("pause")?;
    server.command("settle")?;
    let scrape = agent.scrape_settled()?;
    Tally::of_target(&server.command("counts")?, &DEFAULT_LABELS)?.check(&Tally::of_agent(
        &scrape,
        &DEFAULT_LABELS,
        None,
    )?)?;
    check_closed(&scrape, server.pid(), [0, 0])?;
    let pid = server.pid().to_string();
    let lost =
        scrape.sum("monitor_calls_total", &[("target", &pid), ("side", "server"), ("outcome", "lost")]);
    assert!(lost > 0.0, "the ring was never full: this shows nothing");
    agent.terminate()?;
    Ok(())
}

#[test]
fn calls_that_were_under_way_when_the_target_ended_are_counted() -> Result<()> {
    let (server, mut client) = pair()?;
    client.command("call 1 Echo succeed")?;
    let agent = Agent::attach(&[server.pid()], &[])?;
    client.command("call 10 Echo succeed")?;
    client.send("call 1 Store succeed 64 2000000000")?;
    thread::sleep(Duration::from_millis(500));
    let pid = server.pid();
    drop(server);
    agent.wait_for_log(Duration::from_secs(5), |log| log.contains("its totals are kept").then_some(()))?;
    // The probes are removed before the calls are counted.
    thread::sleep(Duration::from_secs(1));
    let scrape = agent.scrape()?;
    assert_eq!(scrape.sum("monitor_target_up", &[]).to_string(), "0");
    let target = pid.to_string();
    let ended = [("target", target.as_str()), ("reason", "target_ended")];
    assert_eq!(
        scrape.value("monitor_unpaired_starts_total", &ended).map(|n| n.to_string()).as_deref(),
        Some("1")
    );
    check_closed(&scrape, pid, [0, 0])?;
    agent.terminate()?;
    Ok(())
}
