//! How probes are attached: by multi-uprobe links if the kernel has them, else by perf events. Both count the same, and
//! detaching from many targets is fast.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::{Agent, says_multi},
    chain::check_calls,
    process::Process,
    side_by_side,
    tally::DEFAULT_LABELS,
    targets::{Flavour, Program},
    text::Sites,
};

/// Returns the kinds of the agent's links, by the kernel's names.
fn kinds_of_links(agent: &Agent) -> Result<BTreeSet<String>> {
    let mut kinds = BTreeSet::new();
    for descriptor in fs::read_dir(format!("/proc/{}/fdinfo", agent.pid()))? {
        let info = fs::read_to_string(descriptor?.path()).unwrap_or_default();
        kinds.extend(info.lines().find_map(|line| Some(line.strip_prefix("link_type:\t")?.to_owned())));
    }
    Ok(kinds)
}

#[test]
fn both_ways_count_exactly() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?, "--nested"])?;
    let pids = [server.pid(), client.pid()];
    let best = Agent::attach(&pids, &[])?;
    let plain = Agent::attach(&pids, &["--links", "perf"])?;
    let kind = if says_multi(server.pid())? { "uprobe_multi" } else { "perf" };
    ensure!(kinds_of_links(&best)? == BTreeSet::from([kind.to_owned()]), "{:?}", kinds_of_links(&best)?);
    ensure!(kinds_of_links(&plain)? == BTreeSet::from(["perf".to_owned()]), "{:?}", kinds_of_links(&plain)?);
    client.command("load 5000 16 3")?;
    server.command("settle")?;
    for agent in [&best, &plain] {
        let scrape = agent.scrape_settled()?;
        check_calls(&mut server, &scrape, &DEFAULT_LABELS, true)?;
        check_calls(&mut client, &scrape, &DEFAULT_LABELS, true)?;
    }
    best.terminate()?;
    // The other agent's probes are still there and count.
    Sites::of(server.pid())?.check_probed()?;
    client.command("load 1000 16 3")?;
    server.command("settle")?;
    check_calls(&mut server, &plain.scrape_settled()?, &DEFAULT_LABELS, true)?;
    plain.terminate()?;
    Sites::of(server.pid())?.check_clean()
}

/// Copies of an executable, which are removed when dropped.
struct Copies(Vec<PathBuf>);

impl Drop for Copies {
    fn drop(&mut self) {
        for copy in &self.0 {
            let _ = fs::remove_file(copy);
        }
    }
}

#[test]
fn twenty_targets_are_left_within_two_seconds() -> Result<()> {
    let executable = Program::Synthetic.build(Flavour::Stripped)?;
    let copies = (0..20).map(|number| {
        let copy = executable.with_file_name(format!("links-{}-{number}", std::process::id()));
        fs::copy(&executable, &copy).with_context(|| format!("cannot make {}", copy.display()))?;
        Ok(copy)
    });
    let copies = Copies(copies.collect::<Result<_>>()?);
    let start = |copy: &PathBuf| Process::start_command(&mut std::process::Command::new(copy));
    let mut targets = copies.0.iter().map(start).collect::<Result<Vec<_>>>()?;
    let pids: Vec<u32> = targets.iter().map(Process::pid).collect();
    let agent = Agent::attach(&pids, &[])?;
    for target in &mut targets {
        target.send("calls 1000 0.5 10")?;
    }
    let mut made = 0;
    for target in &mut targets {
        made += target.answer(Duration::from_secs(10))?["calls"].as_u64().context("no number of calls")?;
    }
    let counted = agent.scrape_settled()?.sum("kitex_server_throughput", &[]);
    ensure!(
        made > 1_000 && counted.total_cmp(&f64::from(u32::try_from(made)?)).is_eq(),
        "{counted} of {made}"
    );
    // The kernel removes probes on perf events one after the other, which takes a fifth of a second per target.
    let limit = Duration::from_secs(if says_multi(pids[0])? { 2 } else { 8 });
    // Detach under load.
    for target in &mut targets {
        target.send("calls 1000 1 10")?;
    }
    thread::sleep(Duration::from_millis(300));
    let begin = Instant::now();
    let (status, _) = agent.terminate()?;
    let took = begin.elapsed();
    eprintln!("20 targets were left in {took:?}");
    ensure!(status.success() && took < limit, "{status} in {took:?}");
    for target in &mut targets {
        target.answer(Duration::from_secs(10))?;
    }
    side_by_side(pids, |pid| Sites::of(pid)?.check_clean())
}
