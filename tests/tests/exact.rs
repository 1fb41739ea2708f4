//! The agent's numbers equal the target's own: every call, every label set, and every duration within narrow limits.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use monitor_tests::{
    agent::Agent,
    chain::{Account, Chain, check_calls, check_durations},
    process::Process,
    scrape::Scrape,
    tally::{DEFAULT_LABELS, IN_PROCESS_LABELS, Tally},
    targets::Flavour,
    text::Sites,
};
use serde_json::Value;

const ALL_LABELS: [&str; 6] = ["type", "caller", "callee", "method", "status", "retry"];

/// Bounds two percent apart, from 100 µs to a second, which make quantiles practically exact.
fn dense_buckets() -> String {
    let mut bounds = vec![20, 40, 60, 80, 100];
    while let Some(last) = bounds.last().copied().filter(|last| *last < 1_000_000) {
        bounds.push(last + last / 50);
    }
    bounds.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// Attaches one agent to all three roles, makes calls through the chain, and compares everything.
fn exact(
    flavour: Flavour,
    callers: &[&str],
    client: &[&str],
    labels: &[&str],
    calls: u64,
) -> Result<[Tally; 3]> {
    let mut chain = Chain::start(flavour, callers, client)?;
    chain.warm_up()?;
    let (buckets, names) = (dense_buckets(), labels.join(","));
    let agent = Agent::attach(&chain.pids(), &["--latency-buckets", &buckets, "--kitex.labels", &names])?;
    chain.load(calls, 8, 7)?;
    let scrape = agent.scrape_settled()?;
    let tallies = chain.check_calls(&scrape, labels)?;
    chain.check_durations(&scrape, labels)?;
    agent.terminate()?;
    Ok(tallies)
}

#[test]
fn a_hundred_thousand_calls() -> Result<()> {
    let [client, relay, server] = exact(Flavour::Default, &[], &["--nested"], &DEFAULT_LABELS, 52_000)?;
    assert_eq!(client.total(), 104_000, "each call has another inside it");
    assert!(relay.total() > 104_000 && server.total() > 5_000);
    let types = |tally: &Tally| ["pingpong", "oneway"].map(|kind| tally.sum(&[("type", kind)]) > 0);
    assert_eq!(types(&client), [true, true]);
    assert_eq!(types(&relay), [true, true]);
    Ok(())
}

#[test]
fn framed_and_stripped() -> Result<()> {
    let framed = ["--protocol", "framed"];
    let [_, relay, _] = exact(Flavour::Stripped, &framed, &["--nested"], &DEFAULT_LABELS, 15_000)?;
    assert_eq!(relay.sum(&[("side", "server"), ("caller", "unknown")]), 30_000);
    Ok(())
}

#[test]
fn short_connections_and_position_independent() -> Result<()> {
    let [client, ..] = exact(Flavour::Pie, &["--conns", "short"], &[], &DEFAULT_LABELS, 10_000)?;
    assert_eq!(client.total(), 10_000);
    Ok(())
}

#[test]
fn framed_short_connections() -> Result<()> {
    let callers = ["--protocol", "framed", "--conns", "short"];
    let [client, ..] = exact(Flavour::Default, &callers, &[], &DEFAULT_LABELS, 10_000)?;
    assert_eq!(client.total(), 10_000);
    Ok(())
}

#[test]
fn retries() -> Result<()> {
    let [client, relay, _] = exact(Flavour::Default, &[], &["--retry", "--nested"], &ALL_LABELS, 15_000)?;
    assert!(client.sum(&[("retry", "1"), ("status", "succeed")]) > 100);
    assert_eq!(relay.sum(&[("side", "server"), ("retry", "0")]), relay.sum(&[("side", "server")]));
    Ok(())
}

#[test]
fn the_labels_of_the_in_process_extension() -> Result<()> {
    let [client, ..] = exact(Flavour::Stripped, &[], &["--retry"], &IN_PROCESS_LABELS, 10_000)?;
    assert!(client.sum(&[("retry", "1")]) > 100);
    Ok(())
}

#[test]
fn few_labels_are_sums_of_many() -> Result<()> {
    let [client, relay, server] = exact(Flavour::Default, &[], &[], &["method"], 10_000)?;
    assert_eq!(client.iter().count(), 5);
    assert_eq!(client.total(), 10_000);
    assert_eq!(relay.sum(&[("side", "client")]), server.total());
    Ok(())
}

/// Returns the counts of a load loop, by method and by whether the caller got an error.
fn seen_by_the_callers(counts: &Value) -> Result<BTreeMap<(String, bool), u64>> {
    let mut seen = BTreeMap::new();
    for row in counts["loop"].as_array().into_iter().flatten() {
        let (method, result) = (row["method"].as_str().unwrap_or(""), row["result"].as_str().unwrap_or(""));
        *seen.entry((method.to_owned(), result == "error")).or_default() +=
            row["count"].as_u64().unwrap_or(0);
    }
    ensure!(!seen.is_empty(), "the loop counted nothing: {counts}");
    Ok(seen)
}

#[test]
fn a_process_without_any_tracer() -> Result<()> {
    let server = Process::kitex(&["server", "--tracer", "none"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?, "--tracer", "none"])?;
    let agent = Agent::attach(&[client.pid(), server.pid()], &[])?;
    client.command("load 10000 8 3")?;
    // Oneway calls reach the server later, and nothing there but the agent counts them.
    thread::sleep(Duration::from_millis(200));
    let scrape = agent.scrape_settled()?;
    let callers = Tally::of_agent(&scrape, &DEFAULT_LABELS, Some(client.pid()))?;
    let called = Tally::of_agent(&scrape, &DEFAULT_LABELS, Some(server.pid()))?;
    let mut total = 0;
    for ((method, failed), calls) in seen_by_the_callers(&client.command("counts")?)? {
        let status = if failed { "error" } else { "succeed" };
        let labels =
            [("method", method.as_str()), ("status", status), ("caller", "shop"), ("callee", "stock")];
        assert_eq!(callers.sum(&labels), calls, "{labels:?}");
        total += calls;
    }
    assert_eq!((callers.total(), called.total(), total), (10_000, 10_000, 10_000));
    for method in ["Echo", "Lookup", "Store", "Relay", "Notify"] {
        let of = |tally: &Tally| tally.sum(&[("method", method)]);
        assert_eq!(of(&callers), of(&called), "{method}");
    }
    Account::of(&scrape, client.pid()).check_complete(10_000)?;
    Account::of(&scrape, server.pid()).check_complete(10_000)?;
    agent.terminate()?;
    Ok(())
}

#[test]
fn two_processes_of_one_executable() -> Result<()> {
    let mut servers = [Process::kitex(&["server"])?, Process::kitex(&["server"])?];
    let pids = [servers[0].pid(), servers[1].pid()];
    let agent = Agent::attach(&pids, &[])?;
    for (server, calls) in servers.iter().zip([3_000, 1_700]) {
        let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
        client.command(&format!("load {calls} 8 {calls}"))?;
    }
    for server in &mut servers {
        server.command("settle")?;
    }
    let both = agent.scrape_settled()?;
    for (server, calls) in servers.iter_mut().zip([3_000, 1_700]) {
        assert_eq!(check_calls(server, &both, &DEFAULT_LABELS, true)?.total(), calls);
        // The metrics of a single target have the form of the in-process extension.
        let alone = agent.scrape_path(&format!("/targets/{}/metrics", server.pid()))?;
        assert_eq!(check_calls(server, &alone, &DEFAULT_LABELS, false)?.total(), calls);
        assert_eq!(
            alone.families["kitex_server_throughput"].help,
            both.families["kitex_server_throughput"].help
        );
        assert_eq!(alone.value("monitor_target_up", &[("target", &server.pid().to_string())]), Some(1.0));
        assert_eq!(alone.samples("monitor_target_up").count(), 1, "another target's series");
    }
    assert_eq!(agent.status("/targets/1/metrics")?, 404);
    agent.terminate()?;
    Ok(())
}

#[test]
fn calls_over_mux() -> Result<()> {
    let mut server = Process::kitex(&["server", "--mux"])?;
    let mut client = Process::kitex(&["client", "--protocol", "mux", "--connect", server.addr()?])?;
    let agent = Agent::attach(&[client.pid(), server.pid()], &[])?;
    client.command("load 5000 8 9")?;
    for process in [&mut client, &mut server] {
        process.command("settle")?;
    }
    let scrape = agent.scrape_settled()?;
    for process in [&mut client, &mut server] {
        assert_eq!(check_calls(process, &scrape, &DEFAULT_LABELS, true)?.total(), 5_000);
    }
    agent.terminate()?;
    Ok(())
}

/// The sites that the bench compares with also count calls, though not as exactly.
#[test]
fn naive_sites_count_most_calls_once() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    client.command("load 1000 8 1")?;
    let agent = Agent::attach(&[server.pid()], &["--sites", "naive"])?;
    ensure!(Sites::of(server.pid())?.probed()? == 0, "a probe is at a site that is not naive");
    client.command("load 5000 8 9")?;
    server.command("settle")?;
    let calls = agent.scrape_settled()?.sum("kitex_server_throughput", &[]);
    ensure!((5_000.0..5_050.0).contains(&calls), "{calls} of 5000 calls");
    agent.terminate()?;
    Ok(())
}

#[test]
fn one_target_has_no_target_label() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    let agent = Agent::attach(&[server.pid()], &["--latency-buckets", &dense_buckets()])?;
    client.command("load 5000 8 5")?;
    server.command("settle")?;
    let scrape = agent.scrape_settled()?;
    check_calls(&mut server, &scrape, &DEFAULT_LABELS, false)?;
    check_durations(&mut server, &scrape, &DEFAULT_LABELS, false)?;
    assert!(scrape.families.keys().all(|name| !name.starts_with("kitex_client")), "there is no client here");
    agent.terminate()?;
    Ok(())
}

#[test]
fn a_finished_call_shows_after_a_quarter_of_a_second() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    let agent = Agent::attach(&[client.pid()], &[])?;
    for round in 1..=12 {
        client.command(&format!("load 300 4 {round}"))?;
        let finished = Instant::now();
        // No slack: the scrape begins 250 ms after the last call has finished.
        thread::sleep(Duration::from_millis(250).saturating_sub(finished.elapsed()));
        let scrape = agent.scrape()?;
        let tally = check_calls(&mut client, &scrape, &DEFAULT_LABELS, false)?;
        assert_eq!(tally.total(), 300 * round);
    }
    server.command("settle")?;
    agent.terminate()?;
    Ok(())
}

/// The shortest time between two refreshes, whoever asks for them.
const LOOKS_APART: Duration = Duration::from_millis(50);

/// Rings with few records are left alone for five seconds, but a scrape drains them.
#[test]
fn those_who_scrape_see_the_calls_up_to_then() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    let agent = Agent::attach(&[client.pid()], &["--metrics", "kitex"])?;
    let calls = |scrape: Result<Scrape>| Ok::<_, anyhow::Error>(timed_calls(&scrape?));
    for round in 1..=12 {
        thread::sleep(LOOKS_APART);
        client.command(&format!("load 100 4 {round}"))?;
        let (one, other) = thread::scope(|scope| {
            let other =
                scope.spawn(|| calls(agent.scrape_path(&format!("/targets/{}/metrics", client.pid()))));
            (calls(agent.scrape()), other.join())
        });
        let other = other.map_err(|_| anyhow!("the other one who scrapes has failed"))?;
        assert_eq!([one?, other?], [[100.0 * f64::from(round); 2]; 2], "round {round}");
    }
    // Frequent scrapes are answered, and the agent has time for other work.
    let began = Instant::now();
    let mut scrapes = 0;
    while began.elapsed() < Duration::from_secs(1) {
        agent.scrape()?;
        scrapes += 1;
    }
    assert!(scrapes > 20, "{scrapes} scrapes in a second");
    server.command("settle")?;
    agent.terminate()?;
    Ok(())
}

/// The number of a client's calls in the totals and in the histograms.
fn timed_calls(scrape: &Scrape) -> [f64; 2] {
    let timed = scrape.histograms("kitex_client_latency_us");
    [scrape.sum("kitex_client_throughput", &[]), timed.values().map(|histogram| histogram.count).sum()]
}

#[test]
fn a_scrape_under_load_is_neither_behind_nor_ahead() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    let agent = Agent::attach(&[client.pid(), server.pid()], &[])?;
    client.command("flow 8")?;
    for _ in 0..10 {
        let before = [client.command("counts")?, server.command("counts")?];
        thread::sleep(Duration::from_millis(250));
        let scrape = agent.scrape()?;
        let after = [client.command("counts")?, server.command("counts")?];
        for (process, (before, after)) in [&client, &server].into_iter().zip(before.iter().zip(&after)) {
            let shown = Tally::of_agent(&scrape, &DEFAULT_LABELS, Some(process.pid()))?;
            // `since` fails if a count decreases, so this checks before <= shown <= after for every label set.
            let fresh = shown.since(&Tally::of_target(before, &DEFAULT_LABELS)?)?;
            Tally::of_target(after, &DEFAULT_LABELS)?.since(&shown)?;
            ensure!(fresh.total() > 0, "no call in 250 ms: this shows nothing");
        }
    }
    let calls = client.command("pause")?["calls"].as_u64().unwrap_or(0);
    server.command("settle")?;
    let scrape = agent.scrape_settled()?;
    assert_eq!(check_calls(&mut client, &scrape, &DEFAULT_LABELS, true)?.total(), calls);
    assert_eq!(check_calls(&mut server, &scrape, &DEFAULT_LABELS, true)?.total(), calls);
    agent.terminate()?;
    Ok(())
}
