//! How a target's memory is read: by its page tables, where that was proved to work on this kernel, or by asking the kernel for
//! each read. Both must say the same.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};
use monitor_tests::{
    agent::{Agent, run_to_end},
    chain::check_calls,
    grpc,
    kernel::{SINCE_PAGE_TABLES, page_tables},
    process::Process,
    scrape::Scrape,
    tally::DEFAULT_LABELS,
    targets::{Flavour, Program},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// One agent that reads as agents do by default, and one that asks the kernel.
fn both(pids: &[u32], arguments: &[&str]) -> Result<[Agent; 2]> {
    let asking = [arguments, &["--reads", "kernel"]].concat();
    Ok([Agent::attach(pids, arguments)?, Agent::attach(pids, &asking)?])
}

/// The samples of a metric, with all labels.
fn samples(scrape: &Scrape, metric: &str) -> BTreeSet<String> {
    let samples = scrape.samples(metric);
    samples.map(|sample| format!("{} {:?} {}", sample.name, sample.labels, sample.value)).collect()
}

/// Fails unless both have counted the same under the same labels.
fn compare(agents: &[Agent; 2], metrics: &[&str]) -> Result<()> {
    let [by_tables, by_asking] = [agents[0].scrape_settled()?, agents[1].scrape_settled()?];
    for metric in metrics {
        let (by_tables, by_asking) = (samples(&by_tables, metric), samples(&by_asking, metric));
        ensure!(!by_asking.is_empty(), "no {metric}");
        ensure!(by_tables == by_asking, "{metric}: by page tables {by_tables:#?}\nby asking {by_asking:#?}");
    }
    Ok(())
}

/// Names, statuses, retries, classes of errors, bytes, messages: all that is read of Kitex's calls.
#[test]
fn calls_of_kitex_are_the_same_both_ways() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?, "--nested"])?;
    let labels = "type,caller,callee,method,status,retry,error_class";
    let arguments =
        ["--metrics", "kitex,otel", "--kitex.labels", labels, "--kitex.bytes", "--kitex.stream-messages"];
    let agents = both(&[server.pid(), client.pid()], &arguments)?;
    client.command("load 5000 16 3")?;
    server.command("settle")?;
    let sides = ["server", "client"];
    let names = ["throughput", "send_bytes", "recv_bytes"];
    let metrics: Vec<String> =
        sides.iter().flat_map(|side| names.map(|name| format!("kitex_{side}_{name}"))).collect();
    compare(&agents, &metrics.iter().map(String::as_str).collect::<Vec<_>>())?;
    Ok(())
}

#[test]
fn calls_of_kitex_are_counted_exactly_both_ways() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    let agents = both(&[server.pid(), client.pid()], &[])?;
    client.command("load 5000 16 3")?;
    server.command("settle")?;
    for agent in &agents {
        let scrape = agent.scrape_settled()?;
        check_calls(&mut server, &scrape, &DEFAULT_LABELS, true)?;
        check_calls(&mut client, &scrape, &DEFAULT_LABELS, true)?;
    }
    Ok(())
}

#[test]
fn calls_of_grpc_are_the_same_both_ways() -> Result<()> {
    let mut target = Process::start(Program::Grpc, Flavour::Default, &[])?;
    let agents = both(&[target.pid()], &["--grpc.messages"])?;
    target.command("run all 3")?;
    target.command("load 3000 16")?;
    compare(
        &agents,
        &[
            "grpc_server_started_total",
            "grpc_server_handled_total",
            "grpc_client_handled_total",
            "grpc_server_msg_received_total",
        ],
    )?;
    for agent in &agents {
        grpc::check(&mut target, &agent.scrape_settled()?, false)?;
    }
    Ok(())
}

/// Where the kernel can do it, agents do.
#[test]
fn page_tables_are_used_where_the_kernel_has_what_that_needs() -> Result<()> {
    let process = Process::kitex(&["server"])?;
    let ended = run_to_end(&["inspect", "--json", "--pid", &process.pid().to_string()], PATIENCE)?;
    let (release, reads) = page_tables(&serde_json::from_str(&ended.stdout)?)?;
    ensure!(reads == (release >= SINCE_PAGE_TABLES), "Linux {release:?}: {reads}");
    Ok(())
}
