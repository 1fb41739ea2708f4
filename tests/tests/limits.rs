//! Past a limit the throughput stays exact, and what is lost is counted by its reason.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use monitor_tests::{
    agent::Agent,
    chain::Account,
    durations,
    process::Process,
    scrape::Scrape,
    tally::{DEFAULT_LABELS, Tally},
};

fn pair() -> Result<(Process, Process)> {
    let server = Process::kitex(&["server"])?;
    let client = Process::kitex(&["client", "--connect", server.addr()?])?;
    Ok((server, client))
}

/// The process's own counts and the agent's, by these labels.
fn both(process: &mut Process, scrape: &Scrape, labels: &[&str]) -> Result<[Tally; 2]> {
    let own = Tally::of_target(&process.command("counts")?, labels)?;
    Ok([own, Tally::of_agent(scrape, labels, None)?])
}

fn timed_calls(scrape: &Scrape) -> f64 {
    durations::of_agent(scrape, None).values().map(|histogram| histogram.count).sum()
}

/// The named fault, which must be the only one.
fn only_fault(account: &Account, part: &str) -> Result<u64> {
    let found = account.found_faults();
    ensure!(found.len() == 1 && found[0].0.contains(part), "not {part} alone: {found:?}");
    Ok(*found[0].1)
}

#[test]
#[allow(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn a_full_ring_loses_durations_only() -> Result<()> {
    let (_server, mut client) = pair()?;
    let agent = Agent::attach(&[client.pid()], &["--ring-bytes", "65536"])?;
    // An agent that gets no processor can't empty the ring.
    agent.signal(libc::SIGSTOP)?;
    client.command("load 6000 8 1")?;
    agent.signal(libc::SIGCONT)?;
    let scrape = agent.scrape_settled()?;
    let [own, agents] = both(&mut client, &scrape, &DEFAULT_LABELS)?;
    own.check(&agents)?;
    let account = Account::of(&scrape, client.pid());
    assert_eq!((account.starts, account.unpaired, account.in_flight), (6_000, 0, 0));
    assert_eq!(account.timed + account.lost, 6_000);
    // 2048 records of 32 bytes, one of which the kernel keeps free.
    ensure!((3_000..6_000).contains(&account.lost), "{} durations lost", account.lost);
    assert_eq!(only_fault(&account, "ring_full")?, account.lost);
    assert_eq!(timed_calls(&scrape).to_string(), account.timed.to_string());
    // It recovers.
    client.command("load 500 4 2")?;
    let later = Account::of(&agent.scrape_settled()?, client.pid());
    assert_eq!((later.timed, later.lost), (account.timed + 500, account.lost));
    agent.terminate()?;
    Ok(())
}

#[test]
fn more_calls_in_flight_than_are_kept() -> Result<()> {
    let (_server, mut client) = pair()?;
    let agent = Agent::attach(&[client.pid()], &["--max-in-flight", "4"])?;
    client.command("load 6000 32 1")?;
    let scrape = agent.scrape_settled()?;
    let [own, agents] = both(&mut client, &scrape, &DEFAULT_LABELS)?;
    own.check(&agents)?;
    let account = Account::of(&scrape, client.pid());
    let refused = only_fault(&account, "in_flight_full")?;
    ensure!(refused > 100, "{refused} calls were past the limit");
    assert_eq!((account.starts, account.unpaired, account.lost), (6_000, refused, 0));
    assert_eq!((account.timed, account.in_flight), (6_000 - refused, 0));
    assert_eq!(timed_calls(&scrape).to_string(), account.timed.to_string());
    // Past the limit is not for ever: one call at a time is within it.
    client.command("load 300 1 2")?;
    let later = Account::of(&agent.scrape_settled()?, client.pid());
    assert_eq!((later.timed, later.unpaired), (account.timed + 300, refused));
    agent.terminate()?;
    Ok(())
}

#[test]
fn more_label_sets_than_are_kept() -> Result<()> {
    let (_server, mut client) = pair()?;
    let agent = Agent::attach(&[client.pid()], &["--max-label-sets", "3"])?;
    client.command("load 6000 8 1")?;
    let scrape = agent.scrape_settled()?;
    // Type and status are right for every call; the names are kept for some, and `other` for the rest.
    let [own, agents] = both(&mut client, &scrape, &DEFAULT_LABELS)?;
    let kinds = ["pingpong", "oneway"].into_iter().flat_map(|kind| [(kind, "succeed"), (kind, "error")]);
    for (kind, status) in kinds {
        let labels = [("type", kind), ("status", status)];
        assert_eq!(agents.sum(&labels), own.sum(&labels), "{labels:?}");
    }
    assert_eq!(agents.total(), 6_000);
    let other = agents.sum(&[("caller", "other"), ("callee", "other"), ("method", "other")]);
    let account = Account::of(&scrape, client.pid());
    assert_eq!(only_fault(&account, "monitor_label_sets_refused_total")?, other);
    assert_eq!((account.timed, account.unpaired), (6_000, 0));
    let mut named = 0;
    for (labels, calls) in agents.iter().filter(|(labels, _)| labels["method"] != "other") {
        assert_eq!(own.get(labels), calls, "{labels:?}");
        named += 1;
    }
    ensure!((1..=3).contains(&named) && other > 100, "{named} label sets with names, {other} calls without");
    agent.terminate()?;
    Ok(())
}

/// Far more in flight than anyone expects: nothing is refused at the defaults.
#[test]
fn a_thousand_calls_in_flight() -> Result<()> {
    let (mut server, mut client) = pair()?;
    let agent = Agent::attach(&[client.pid()], &[])?;
    client.command("load 20000 1000 1")?;
    server.command("settle")?;
    thread::sleep(Duration::from_millis(50));
    let scrape = agent.scrape_settled()?;
    let [own, agents] = both(&mut client, &scrape, &DEFAULT_LABELS)?;
    own.check(&agents)?;
    Account::of(&scrape, client.pid()).check_complete(20_000)?;
    agent.terminate()?;
    Ok(())
}
