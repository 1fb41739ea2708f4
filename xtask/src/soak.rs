//! A long run under full load, while agents come and go, targets end and restart, and scrapes continue. The account
//! of one long-lived agent must close at every check, and its counts must equal the targets' own whenever the load
//! pauses. Neither its memory nor its descriptors nor the BPF objects in the kernel may grow.

use std::{
    fmt::Write as _,
    fs,
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::{Args, value_parser};
use monitor_tests::{
    agent::Agent,
    chain::{Account, check_calls, check_closed, check_results},
    http,
    kernel::BpfObjects,
    pace::Pace,
    process::Process,
    scrape::Scrape,
    tally::DEFAULT_LABELS,
};

use crate::{
    process::{output, root, say},
    setup,
};

/// Calls in flight.
const CALLERS: u64 = 16;
/// Limits on the calls between two numbers of one scrape under load: those of a quarter of a second, unless the
/// measured rate implies fewer, and those that finish during the scrape.
const SLACK: [u64; 2] = [100_000, 4 * CALLERS];
/// Maximum time between two scrapes at random moments, in milliseconds.
const SCRAPE_WITHIN_MS: u64 = 700;
/// Time between two checks of the agent.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Checks between two pauses of the load.
const PAUSE_EVERY: u32 = 15;
/// How much the agent's memory may grow after the first quarter of the run.
const GROWTH_MIB: f64 = 1.0;
const MIB: f64 = 1_048_576.0;
/// An agent that has watched a pair under load for this long has seen calls of it.
const SEES_CALLS_WITHIN: Duration = Duration::from_millis(300);

/// How long.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Minutes of load
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = value_parser!(u32).range(1..=10_000))]
    minutes: u32,
    /// Seed of what happens when
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Write docs/soak.md
    #[arg(long)]
    write: bool,
}

/// Runs the soak test, shows the result, and writes it down on request.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::agent_and_target("soak")?;
    let before = BpfObjects::now()?;
    let mut soak = Soak::start(options.seed)?;
    let end = Instant::now() + Duration::from_secs(u64::from(options.minutes) * 60);
    while Instant::now() < end {
        soak.step().with_context(|| format!("after {} looks, seed {}", soak.done.looks, options.seed))?;
    }
    let report = soak.finish(options)?;
    BpfObjects::wait_until_back(&before, Duration::from_secs(20))?;
    println!("{report}");
    if options.write {
        let text = format!(
            "# A long run under load\n\nWritten by `cargo xtask soak --minutes {} --seed {} --write` on {}, at commit {}. It \
             ends with an error when an account does not close, a count differs from the target's own, a call fails that \
             should not, memory or descriptors grow, or anything is left in the kernel.\n\n{report}",
            options.minutes,
            options.seed,
            output(Command::new("date").args(["--utc", "+%Y-%m-%d"]))?,
            output(Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(root()))?,
        );
        let file = root().join("docs/soak.md");
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        say("written: docs/soak.md");
    }
    Ok(())
}

/// Counts of what has happened.
#[derive(Debug, Default)]
struct Done {
    looks: u32,
    pauses: u32,
    guests: u32,
    killed: u32,
    restarts: u32,
    calls: u64,
}

/// The long-lived processes, and those that come and go.
struct Soak {
    server: Process,
    client: Process,
    agent: Agent,
    scraper: Scraper,
    paces: Paces,
    /// A pair that ends and restarts, with its agent.
    visitors: Option<(Process, Process, Agent)>,
    /// Resident memory of the agent at each check, in MiB.
    memory: Vec<f64>,
    descriptors: usize,
    random: Random,
    done: Done,
}

impl Soak {
    fn start(seed: u64) -> Result<Self> {
        let (server, mut client) = pair()?;
        let agent = Agent::attach(&[server.pid(), client.pid()], &[])?;
        client.command(&format!("flow {CALLERS}"))?;
        agent.scrape()?;
        let descriptors = descriptors(agent.pid())?;
        let paces = Paces::new([server.pid(), client.pid()]);
        let scraper = Scraper::start(agent.address(), paces.clone(), Random(seed.rotate_left(32) | 1));
        Ok(Self {
            server,
            client,
            agent,
            scraper,
            paces,
            visitors: None,
            memory: Vec::new(),
            descriptors,
            random: Random(seed | 1),
            done: Done::default(),
        })
    }

    /// Lets one random thing happen, then checks everything.
    fn step(&mut self) -> Result<()> {
        match self.random.below(4) {
            0 | 1 => self.guest()?,
            2 => self.restart()?,
            _ => {}
        }
        thread::sleep(LOOK_EVERY);
        self.look()?;
        if self.scraper.has_ended() {
            self.scraper.stop()?;
        }
        if self.done.looks.is_multiple_of(PAUSE_EVERY) {
            self.pause()?;
        }
        Ok(())
    }

    /// Lets another agent watch the same targets for a moment, then ends or kills it.
    fn guest(&mut self) -> Result<()> {
        let guest = Agent::attach(&[self.server.pid(), self.client.pid()], &[])?;
        let stay = Duration::from_millis(self.random.below(1_000));
        thread::sleep(stay);
        let scrape = guest.scrape()?;
        self.paces.check_closed(&scrape)?;
        if stay >= SEES_CALLS_WITHIN {
            check_seen(&scrape, [self.server.pid(), self.client.pid()])?;
        }
        self.done.guests += 1;
        if self.random.below(2) == 0 {
            self.done.killed += 1;
            guest.end_by(libc::SIGKILL)?;
        } else {
            let (status, _) = guest.terminate()?;
            ensure!(status.success(), "an agent ended with {status}");
        }
        Ok(())
    }

    /// Ends the visitors in the middle of their calls and replaces them.
    fn restart(&mut self) -> Result<()> {
        self.done.restarts += u32::from(self.visitors.is_some());
        if let Some((server, mut client, agent)) = self.visitors.take() {
            let pids = [server.pid(), client.pid()];
            check_results(&mut client)?;
            drop((client, server));
            // Time for the agent to notice both exits and to remove its probes.
            thread::sleep(Duration::from_secs(1));
            let scrape = agent.scrape()?;
            for pid in pids {
                check_closed(&scrape, pid, [0, 0])?;
            }
            check_seen(&scrape, pids)?;
            agent.terminate()?;
        }
        let (server, mut client) = pair()?;
        let agent = Agent::attach(&[server.pid(), client.pid()], &[])?;
        client.command("flow 2 2000")?;
        self.visitors = Some((server, client, agent));
        Ok(())
    }

    fn look(&mut self) -> Result<()> {
        let scrape = self.agent.scrape()?;
        self.paces.look(&scrape)?;
        self.memory.push(scrape.sum("monitor_agent_resident_memory_bytes", &[]) / MIB);
        self.done.looks += 1;
        Ok(())
    }

    /// Pauses the load: all counts since the very first call must be exact.
    fn pause(&mut self) -> Result<()> {
        let turn = self.scraper.turn();
        let _no_other_scrape = turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.client.command("pause")?;
        check_results(&mut self.client)?;
        self.server.command("settle")?;
        let scrape = self.agent.scrape_settled()?;
        for process in [&mut self.client, &mut self.server] {
            self.done.calls = check_calls(process, &scrape, &DEFAULT_LABELS, true)?.total();
        }
        let descriptors = descriptors(self.agent.pid())?;
        // A scrape's connection may still be open.
        ensure!(
            descriptors <= self.descriptors + 2,
            "the agent had {} descriptors, and now {descriptors}",
            self.descriptors
        );
        self.done.pauses += 1;
        self.client.command(&format!("flow {CALLERS}"))?;
        Ok(())
    }

    fn finish(mut self, options: &Options) -> Result<String> {
        let scrapes = self.scraper.stop()?;
        self.pause()?;
        self.client.command("pause")?;
        check_results(&mut self.client)?;
        let growth = growth(&self.memory);
        ensure!(growth <= GROWTH_MIB, "the agent's memory has grown by {growth:.2} MiB: {:?}", self.memory);
        let (status, _) = self.agent.terminate()?;
        ensure!(status.success(), "the agent ended with {status}");
        let Done { looks, pauses, guests, killed, restarts, calls } = self.done;
        let mut report = String::new();
        let mut row = |what: &str, value: String| writeln!(report, "| {what} | {value} |");
        row("what", "number".to_owned())?;
        row("---", "---".to_owned())?;
        row("minutes of load", options.minutes.to_string())?;
        row(
            "calls, each counted by the agent on both sides as by the targets themselves",
            calls.to_string(),
        )?;
        row("looks under load at which the account closed", looks.to_string())?;
        row("scrapes at random moments, in the middle of all that, at which it closed", scrapes.to_string())?;
        row("pauses at which every count was exact", pauses.to_string())?;
        row("other agents that came and went", format!("{guests}, {killed} of them killed"))?;
        row("targets that ended in the middle of calls", (2 * restarts).to_string())?;
        row("growth of the agent's memory after the first quarter, MiB", format!("{growth:.2}"))?;
        Ok(report)
    }
}

/// The long-lived targets and their call rates, shared by everything that scrapes.
#[derive(Clone)]
struct Paces(Arc<Mutex<[(u32, Pace); 2]>>);

impl Paces {
    fn new(pids: [u32; 2]) -> Self {
        Self(Arc::new(Mutex::new(pids.map(|pid| (pid, Pace::default())))))
    }

    /// Adds a scrape of the long-lived agent; its account must close.
    fn look(&self, scrape: &Scrape) -> Result<()> {
        for (pid, pace) in &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            pace.look(scrape, *pid);
        }
        self.check_closed(scrape)
    }

    /// Fails unless the account of both targets closes, within the slack.
    fn check_closed(&self, scrape: &Scrape) -> Result<()> {
        let [starts, finishes] = SLACK;
        let paces = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        paces
            .into_iter()
            .try_for_each(|(pid, pace)| check_closed(scrape, pid, [pace.slack(CALLERS, starts), finishes]))
    }
}

/// Scrapes the long-lived agent at random moments, so that some scrapes coincide with other events.
struct Scraper {
    stop: Arc<AtomicBool>,
    /// Held by whoever may scrape.
    turn: Arc<Mutex<()>>,
    /// Returns the number of scrapes.
    thread: Option<JoinHandle<Result<u32>>>,
}

impl Scraper {
    fn start(address: &str, paces: Paces, mut random: Random) -> Self {
        let (stop, turn) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(())));
        let (stopped, turns, address) = (Arc::clone(&stop), Arc::clone(&turn), address.to_owned());
        let scrapes = move || -> Result<u32> {
            let mut count = 0;
            while !stopped.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(random.below(SCRAPE_WITHIN_MS)));
                let _alone = turns.lock().unwrap_or_else(PoisonError::into_inner);
                let text = http::get(&address, "/metrics")?.ok_body()?;
                paces.look(&Scrape::parse(&text)?).with_context(|| format!("at random scrape {count}"))?;
                count += 1;
            }
            Ok(count)
        };
        Self { stop, turn, thread: Some(thread::spawn(scrapes)) }
    }

    fn turn(&self) -> Arc<Mutex<()>> {
        Arc::clone(&self.turn)
    }

    /// Whether the thread has ended early: something was wrong.
    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the thread; returns the number of scrapes, or what was wrong.
    fn stop(&mut self) -> Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it was stopped before")?;
        thread.join().map_err(|_| anyhow!("the scraper panicked"))?
    }
}

fn pair() -> Result<(Process, Process)> {
    let server = Process::kitex(&["server"])?;
    let client = Process::kitex(&["client", "--connect", server.addr()?])?;
    Ok((server, client))
}

/// Fails unless the agent has seen calls of both processes.
fn check_seen(scrape: &Scrape, pids: [u32; 2]) -> Result<()> {
    for pid in pids {
        ensure!(Account::of(scrape, pid).starts > 0, "no call of pid {pid} was seen");
    }
    Ok(())
}

fn descriptors(pid: u32) -> Result<usize> {
    let directory = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))?.count())
}

/// Returns how much a regression line rises from the end of the numbers' first quarter to the last.
fn growth(numbers: &[f64]) -> f64 {
    let numbers = &numbers[numbers.len() / 4..];
    let count = numbers.iter().map(|_| 1.0).sum::<f64>();
    let places = (0_u32..).map(f64::from).zip(numbers);
    let (place_mean, mean) = ((count - 1.0) / 2.0, numbers.iter().sum::<f64>() / count);
    let (mut together, mut alone) = (0.0, 0.0);
    for (place, number) in places {
        together += (place - place_mean) * (number - mean);
        alone += (place - place_mean).powi(2);
    }
    if alone > 0.0 { together / alone * (count - 1.0) } else { 0.0 }
}

/// A pseudorandom number generator (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_that_of_the_line_after_the_first_quarter() {
        assert!(growth(&[1.0, 9.0, 9.0, 9.0]).abs() < 1e-9);
        assert!((growth(&[0.0, 1.0, 2.0, 3.0]) - 2.0).abs() < 1e-9);
        assert!(growth(&[5.0]).abs() < 1e-9);
    }
}
