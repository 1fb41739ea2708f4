//! What watching costs a target is known, and kept within a budget.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{agent::Agent, process::Process, scrape::Scrape};

/// What the ratio is of.
const WINDOW: Duration = Duration::from_secs(5);

fn pair() -> Result<(Process, Process)> {
    let server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    client.command("call 1 Echo succeed")?;
    Ok((server, client))
}

/// The one value of a metric with these labels.
fn value(scrape: &Scrape, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    scrape.value(name, labels).with_context(|| format!("no {name} {labels:?}"))
}

#[test]
fn what_watching_costs_is_what_its_parts_add_up_to() -> Result<()> {
    let (server, mut client) = pair()?;
    let agent = Agent::attach(&[server.pid()], &[])?;
    client.command("flow 16")?;
    std::thread::sleep(Duration::from_millis(1_500));
    let (before, began) = (agent.scrape()?, Instant::now());
    std::thread::sleep(WINDOW + Duration::from_millis(500));
    let (after, seconds) = (agent.scrape()?, began.elapsed().as_secs_f64());
    client.command("pause")?;
    agent.terminate()?;

    let pid = server.pid().to_string();
    let of = |role: &str| value(&after, "monitor_program_run_seconds", &[("target", &pid), ("role", role)]);
    let hit = value(&after, "monitor_probe_hit_cost_seconds", &[("cost_class", "emulated")])?;
    let (start, finish) = (of("start")?, of("finish")?);
    // Wide enough for any machine, and too narrow for a unit that is wrong.
    ensure!((1e-7..2e-5).contains(&hit), "a hit takes {hit} s");
    ensure!((2e-8..1e-5).contains(&start) && start < finish && finish < 2e-5, "{start} s, {finish} s");

    let rate = |name| (after.sum(name, &[]) - before.sum(name, &[])) / seconds;
    let calls = rate("kitex_server_throughput");
    let added = calls * (hit + start + hit + finish);
    let expected = added / rate("process_cpu_seconds_total");
    let ratio = value(&after, "monitor_target_overhead_ratio", &[("target", &pid)])?;
    ensure!(calls > 1_000.0, "{calls} calls a second");
    ensure!((ratio / expected - 1.0).abs() < 0.3, "the ratio is {ratio}, its parts give {expected}");
    Ok(())
}
