//! The two ways to read a target's memory: by its page tables, if that was proven to work on this kernel, or by asking
//! the kernel for each read. Both must yield the same.

use std::{collections::BTreeSet, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::{Agent, run_to_end},
    chain::check_calls,
    grpc,
    kernel::{SINCE_PAGE_TABLES, page_tables},
    native::{Build, corners},
    process::Process,
    scrape::Scrape,
    specs::{self, path},
    tally::DEFAULT_LABELS,
    targets::{Flavour, Program},
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);

/// Starts one agent that reads by page tables, and one that asks the kernel.
fn both(pids: &[u32], arguments: &[&str]) -> Result<[Agent; 2]> {
    let reading = |way| Agent::attach(pids, &[arguments, &["--reads", way]].concat());
    Ok([reading("tables")?, reading("kernel")?])
}

/// Returns the samples of a counter, or the number of values in each series of a histogram. Durations are not compared,
/// since each agent measures its own.
fn samples(scrape: &Scrape, metric: &str) -> BTreeSet<String> {
    let counts = |name: &str| name == metric || name.strip_prefix(metric) == Some("_count");
    let samples = scrape.samples(metric).filter(|sample| counts(&sample.name));
    samples.map(|sample| format!("{} {:?} {}", sample.name, sample.labels, sample.value)).collect()
}

/// Fails unless both agents have the same counts with the same labels.
fn compare(agents: &[Agent; 2], metrics: &[&str]) -> Result<()> {
    let [by_tables, by_asking] = [agents[0].scrape_settled()?, agents[1].scrape_settled()?];
    for metric in metrics {
        let (by_tables, by_asking) = (samples(&by_tables, metric), samples(&by_asking, metric));
        ensure!(!by_asking.is_empty(), "no {metric}");
        ensure!(by_tables == by_asking, "{metric}: by page tables {by_tables:#?}\nby asking {by_asking:#?}");
    }
    Ok(())
}

/// Fails unless the agent has the peer of each call that it has kept.
fn check_peers(agent: &Agent) -> Result<()> {
    let report: Value = serde_json::from_str(&agent.get("/api/v1/calls?side=server&method=Store")?)?;
    let sets = report["calls"].as_array().context("no calls")?;
    let kept: Vec<_> = sets.iter().flat_map(|set| set["slowest"].as_array().into_iter().flatten()).collect();
    ensure!(!kept.is_empty(), "no calls are kept: {report}");
    for call in kept {
        ensure!(call["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{call}");
    }
    Ok(())
}

/// Names, statuses, retries (in a Go map), classes of errors and bytes, under Kitex's names and OpenTelemetry's.
#[test]
fn calls_of_kitex_are_the_same_both_ways() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?, "--nested", "--retry"])?;
    let labels = "type,caller,callee,method,status,retry,error_class";
    let arguments =
        ["--metrics", "kitex,otel", "--kitex.labels", labels, "--kitex.bytes", "--kitex.stream-messages"];
    let agents = both(&[server.pid(), client.pid()], &arguments)?;
    client.command("load 5000 16 3")?;
    server.command("settle")?;
    let sides = ["server", "client"];
    let names = ["throughput", "latency_us", "send_bytes", "recv_bytes"];
    let mut metrics: Vec<String> =
        sides.iter().flat_map(|side| names.map(|name| format!("kitex_{side}_{name}"))).collect();
    metrics.extend(sides.map(|side| format!("rpc_{side}_duration")));
    compare(&agents, &metrics.iter().map(String::as_str).collect::<Vec<_>>())?;
    let retried = agents[1].scrape()?.sum("kitex_client_throughput", &[("retry", "1")]);
    ensure!(retried > 0.0, "no call has a second attempt: this shows nothing of maps");
    Ok(())
}

#[test]
fn calls_of_kitex_are_counted_exactly_both_ways() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    let agents = both(&[server.pid(), client.pid()], &["--capture.slow", "3"])?;
    client.command("load 5000 16 3")?;
    server.command("settle")?;
    for agent in &agents {
        let scrape = agent.scrape_settled()?;
        check_calls(&mut server, &scrape, &DEFAULT_LABELS, true)?;
        check_calls(&mut client, &scrape, &DEFAULT_LABELS, true)?;
        check_peers(agent)?;
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

/// Names, numbers and outcomes, from arguments of Go functions.
#[test]
fn operations_of_specs_are_the_same_both_ways() -> Result<()> {
    let mut target = Process::start(Program::Operations, Flavour::Default, &[])?;
    let (jobs, work) = (specs::documented("jobs")?, specs::documented("work")?);
    let agents = both(
        &[target.pid()],
        &["--spec", path(&jobs), "--spec", path(&work), "--spec", "net-http", "--metrics", "go,kitex"],
    )?;
    for line in ["jobs 500", "work 200", "requests 10"] {
        target.command(line)?;
    }
    compare(
        &agents,
        &[
            "jobs_total",
            "jobs_duration_seconds",
            "work_total",
            "work_duration_seconds",
            "http_server_requests_total",
            "http_server_requests_duration_seconds",
        ],
    )
}

/// C strings, and numbers that are passed and returned.
#[test]
fn operations_of_native_functions_are_the_same_both_ways() -> Result<()> {
    let mut target = Process::start_command(&mut Command::new(corners(Build::Default)?))?;
    let agents = both(&[target.pid()], &["--spec", path(&specs::documented("stock")?)])?;
    target.command("lookups 200")?;
    compare(&agents, &["stock_total", "stock_duration_seconds"])
}

/// Whether some of this machine's mapped memory may not be there yet, or may be taken away by a hypervisor.
fn may_lack_memory() -> Result<bool> {
    let memory = fs::read_to_string("/proc/meminfo")?;
    let unaccepted = memory.lines().find_map(|line| line.strip_prefix("Unaccepted:"));
    let has_device = |driver: &str| {
        let entries = fs::read_dir(Path::new("/sys/bus").join(driver));
        // The entry of a device has a link to its driver.
        entries.is_ok_and(|entries| entries.flatten().any(|entry| entry.path().join("driver").exists()))
    };
    Ok(unaccepted.is_some_and(|size| size.trim() != "0 kB")
        || has_device("virtio/drivers/virtio_mem")
        || has_device("vmbus/drivers/hv_balloon"))
}

/// If the kernel supports it and nothing is against it, agents can read by page tables.
#[test]
fn page_tables_can_be_used_where_the_kernel_has_what_that_needs() -> Result<()> {
    let process = Process::kitex(&["server"])?;
    let ended = run_to_end(&["inspect", "--json", "--pid", &process.pid().to_string()], PATIENCE)?;
    let (release, reads) = page_tables(&serde_json::from_str(&ended.stdout)?)?;
    let expected = release >= SINCE_PAGE_TABLES && !may_lack_memory()?;
    ensure!(reads == expected, "Linux {release:?}: {reads}");
    Ok(())
}
