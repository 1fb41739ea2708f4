//! Agents come and go under full load: no call fails because of it, nothing is left behind, and the agent's memory is
//! steady.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use monitor_tests::{
    agent::Agent,
    chain::{Account, check_calls, check_closed},
    kernel::BpfObjects,
    process::Process,
    tally::{DEFAULT_LABELS, Tally},
    text::Sites,
};
use serde_json::Value;

/// Makes the same calls repeatedly, as fast as it can, and expects the same outcome each time.
struct SteadyLoad {
    stop: Arc<AtomicBool>,
    rounds: JoinHandle<Result<(Process, u64)>>,
}

const ROUND: &str = "load 8000 16 5";
/// The number of agents: a hundred are killed, the others end regularly.
const CYCLES: u32 = 110;

impl SteadyLoad {
    fn start(mut client: Process) -> Result<Self> {
        // Which calls fail depends only on the seed.
        let intended = outcome(&client.command(ROUND)?);
        ensure!(intended[2] != 0 && intended[3] != 0, "calls are meant to fail: {intended:?}");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let rounds = thread::spawn(move || {
            let mut rounds = 1;
            while !stopped.load(Ordering::Relaxed) {
                let found = outcome(&client.command(ROUND)?);
                ensure!(
                    found == intended,
                    "round {rounds}: calls, ok, biz, err: {found:?}, not {intended:?}"
                );
                rounds += 1;
            }
            Ok((client, rounds))
        });
        Ok(Self { stop, rounds })
    }

    /// Ends the load. Returns the client and the number of rounds.
    fn stop(self) -> Result<(Process, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        self.rounds.join().map_err(|_| anyhow!("the load panicked"))?
    }
}

fn outcome(answer: &Value) -> [Value; 4] {
    ["calls", "ok", "biz", "err"].map(|name| answer[name].clone())
}

/// Calls started and finished in a process so far. While calls go on, `started` is read after `finished`.
fn so_far(process: &mut Process) -> Result<[u64; 2]> {
    let counts = process.command("counts")?;
    let number = |name: &str| counts[name].as_u64().with_context(|| format!("no {name} in {counts}"));
    Ok([number("started")?, number("finished")?])
}

/// Fails unless an agent that attached in the middle of the load has counted what the process has counted since: all
/// calls after the agent was ready, none from before it attached, and each call once. All calls must have ended.
fn check_since(process: &mut Process, agent: &Agent, before: [u64; 2], ready: [u64; 2]) -> Result<()> {
    process.command("settle")?;
    let scrape = agent.scrape_settled()?;
    let [started, finished] = so_far(process)?;
    ensure!(started == finished, "{started} calls started, {finished} finished");
    let account = Account::of(&scrape, process.pid());
    let total = Tally::of_agent(&scrape, &DEFAULT_LABELS, Some(process.pid()))?.total();
    ensure!(total == account.timed + account.unpaired, "{total} calls: {account:?}");
    ensure!(account.starts == account.timed && account.in_flight == 0, "{account:?}");
    ensure!(account.found_faults().is_empty(), "{:?}", account.found_faults());
    for (what, number, bounds) in [
        ("starts", account.starts, started - ready[0]..=started - before[0]),
        ("finishes", total, finished - ready[1]..=finished - before[1]),
        ("finishes without a start", account.unpaired, 0..=ready[0] - before[1]),
    ] {
        ensure!(bounds.contains(&number), "{what}: {number} is not in {bounds:?}");
    }
    ensure!(account.starts > 1_000, "no load: this shows nothing: {account:?}");
    check_closed(&scrape, process.pid(), [0, 0])
}

#[test]
fn a_hundred_agents_are_killed() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let client = Process::kitex(&["client", "--connect", server.addr()?, "--nested"])?;
    let pids = [server.pid(), client.pid()];
    let sites = [Sites::of(pids[0])?, Sites::of(pids[1])?];
    let before = BpfObjects::now()?;
    let load = SteadyLoad::start(client)?;
    let began = Instant::now();
    for cycle in 1..=CYCLES {
        // Both targets only now and then, since detaching takes the kernel some time.
        let watched = if cycle % 11 == 0 { &pids[..] } else { &pids[..1] };
        let agent = Agent::attach(watched, &[])?;
        for site in &sites[..watched.len()] {
            ensure!(site.probed()? == site.count(), "cycle {cycle}: not all probes are in place");
        }
        if cycle == 1 {
            let loaded = BpfObjects::now()?.beyond(&before);
            let [programs, maps, links] = loaded.counts();
            let probes = sites[0].count();
            // If these were not visible here, the check that they are gone would prove nothing.
            ensure!(programs >= 2 && maps >= 4 && links >= probes, "one agent has {loaded}");
        }
        // Most agents are killed, and the kernel cleans up by itself.
        let signal = if cycle % 11 == 0 { libc::SIGTERM } else { libc::SIGKILL };
        let (status, _) = agent.end_by(signal)?;
        ensure!(status.success() || signal == libc::SIGKILL, "cycle {cycle}: {status}");
    }
    let cycles = began.elapsed();
    // The targets are not only alive: another agent in the middle of the load sees every call from its attaching on.
    let at_first = so_far(&mut server)?;
    let agent = Agent::attach(&pids, &[])?;
    let ready = so_far(&mut server)?;
    thread::sleep(Duration::from_secs(1));
    let (mut client, rounds) = load.stop()?;
    client.command("settle")?;
    check_since(&mut server, &agent, at_first, ready)?;
    check_closed(&agent.scrape()?, pids[1], [0, 0])?;
    agent.terminate()?;
    eprintln!("{CYCLES} cycles in {:.1} s, {rounds} rounds of calls", cycles.as_secs_f64());
    ensure!(rounds > 10, "{rounds} rounds of calls in {cycles:?} are no load");
    for site in &sites {
        site.check_clean()?;
    }
    BpfObjects::wait_until_back(&before, Duration::from_secs(10))?;
    // An agent attached before the first call has each call with its names and its duration.
    server.command("settle")?;
    for process in [&mut client, &mut server] {
        process.command("reset")?;
    }
    let agent = Agent::attach(&pids, &[])?;
    client.command("load 3000 16 2")?;
    server.command("settle")?;
    let scrape = agent.scrape_settled()?;
    check_calls(&mut client, &scrape, &DEFAULT_LABELS, true)?;
    check_calls(&mut server, &scrape, &DEFAULT_LABELS, true)?;
    agent.terminate()?;
    Ok(())
}

#[test]
fn the_agents_memory_is_steady() -> Result<()> {
    let server = Process::kitex(&["server"])?;
    let client = Process::kitex(&["client", "--connect", server.addr()?])?;
    let agent = Agent::attach(&[server.pid(), client.pid()], &["--latency-buckets", "fine"])?;
    let load = SteadyLoad::start(client)?;
    let resident = || -> Result<f64> {
        // Scrapes are included in the measurement: each allocates and frees a text.
        for _ in 0..20 {
            agent.scrape()?;
        }
        Ok(agent.scrape()?.sum("monitor_agent_resident_memory_bytes", &[]))
    };
    thread::sleep(Duration::from_secs(2));
    let first = resident()?;
    thread::sleep(Duration::from_secs(4));
    let last = resident()?;
    let (_, rounds) = load.stop()?;
    eprintln!("{rounds} rounds of calls, {first} bytes after 2 s, {last} after 6 s");
    ensure!(first > 1e6 && rounds > 5, "{first} bytes, {rounds} rounds");
    ensure!(last - first < 1_048_576.0, "from {first} to {last} bytes in 4 s");
    agent.terminate()?;
    Ok(())
}
