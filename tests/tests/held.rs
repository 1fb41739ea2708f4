//! Targets with memory that never comes: whoever reads it waits in the kernel. That holds up what needs it, and nothing else.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use monitor_tests::{
    agent::Agent,
    chain::check_closed,
    process::Process,
    scrape::{Scrape, whole},
    strange::{USUAL, row, tally},
    tally::{DEFAULT_LABELS, Tally},
    targets::{Flavour, Program},
};

/// A scrape may wait once for what doesn't come, and a busy machine takes its time, too.
const ONCE: Duration = Duration::from_secs(3);
/// Then it waits no more.
const LATER: Duration = Duration::from_secs(1);
/// Calls that are under way, with names that never come.
const UNDER_WAY: u64 = 3;

/// A target that holds up whoever reads its memory, one that doesn't, and their agent.
struct Watched {
    held: Process,
    other: Process,
    agent: Agent,
    /// Calls of the other so far.
    calls: u64,
}

impl Watched {
    fn start() -> Result<Self> {
        let start = || Process::start(Program::Strange, Flavour::Default, &[]);
        let (mut held, other) = (start()?, start()?);
        let agent = Agent::attach(&[held.pid(), other.pid()], &[])?;
        held.command(&format!("open {UNDER_WAY} client 1 method=held"))?;
        // The agent looks for what calls come with that it doesn't know.
        held.command("vanish 1")?;
        let is_held_up = |line: &str| line.contains("calls with types").then_some(());
        agent.wait_for_log(Duration::from_secs(5), is_held_up)?;
        Ok(Self { held, other, agent, calls: 0 })
    }

    /// Fails unless a scrape comes in time and has all calls of the other.
    fn scrape_within(&mut self, patience: Duration) -> Result<Scrape> {
        self.other.command("call 100 server")?;
        self.calls += 100;
        thread::sleep(Duration::from_millis(250));
        let began = Instant::now();
        let scrape = self.agent.scrape()?;
        ensure!(began.elapsed() < patience, "{:?}: {}", began.elapsed(), self.agent.log());
        let pid = self.other.pid();
        let found = Tally::of_agent(&scrape, &DEFAULT_LABELS, Some(pid))?;
        tally(&[row("server", USUAL, self.calls)])?.check(&found)?;
        check_closed(&scrape, pid, [0, 0])?;
        Ok(scrape)
    }
}

/// Calls that are under way in a target under this name.
fn in_flight(scrape: &Scrape, pid: u32, method: &str) -> u64 {
    whole(scrape.sum("kitex_client_in_flight", &[("target", &pid.to_string()), ("method", method)]))
}

#[test]
fn memory_that_never_comes_holds_up_neither_scrapes_nor_other_targets() -> Result<()> {
    let mut watched = Watched::start()?;
    let pid = watched.held.pid();
    let name = pid.to_string();
    for patience in [ONCE, LATER, LATER] {
        let scrape = watched.scrape_within(patience)?;
        // They are there all the same.
        ensure!(in_flight(&scrape, pid, "unknown") == UNDER_WAY, "{:?}", scrape.families.keys());
        let unknown = [("target", name.as_str()), ("reason", "finish_unknown_type")];
        ensure!(scrape.value("monitor_events_lost_total", &unknown) == Some(1.0));
        check_closed(&scrape, pid, [0, 0])?;
    }
    let told = watched.agent.log().matches("its memory does not come").count();
    ensure!(told == 2, "told {told} times: {}", watched.agent.log());
    watched.held.signal(libc::SIGKILL)?;
    let up = || -> Result<Option<f64>> {
        let scrape = watched.agent.scrape()?;
        Ok(scrape.value("monitor_target_up", &[("target", &name)]))
    };
    let began = Instant::now();
    while up()? != Some(0.0) {
        ensure!(began.elapsed() < Duration::from_secs(5), "still up: {}", watched.agent.log());
        thread::sleep(Duration::from_millis(20));
    }
    watched.scrape_within(LATER)?;
    ensure!(watched.agent.terminate()?.0.success());
    Ok(())
}

#[test]
fn an_agent_that_is_held_up_ends_when_it_is_told_to() -> Result<()> {
    let mut watched = Watched::start()?;
    watched.scrape_within(ONCE)?;
    let (status, took) = watched.agent.terminate()?;
    ensure!(status.success() && took < Duration::from_secs(3), "{status} after {took:?}");
    for mut target in [watched.held, watched.other] {
        target.command("call 10 client")?;
        target.signal(libc::SIGKILL)?;
    }
    Ok(())
}
