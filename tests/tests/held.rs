//! Targets with memory that never arrives: readers of it block in the kernel. This delays only what needs the memory,
//! and nothing else.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::Agent,
    chain::check_closed,
    events::{SocketReader, of_kind},
    http,
    process::Process,
    scrape::{Scrape, whole},
    strange::{USUAL, row, tally},
    tally::{DEFAULT_LABELS, Tally},
    targets::{Flavour, Program},
};

/// How long the first scrape may take: it may wait once for the memory, and a machine may be busy.
const ONCE: Duration = Duration::from_secs(3);
/// How long later scrapes may take: they no longer wait.
const LATER: Duration = Duration::from_secs(1);
/// How long a call's line may take. Readers of events get it after a tenth of a second; the rest is slack for a busy
/// machine.
const TOLD_WITHIN: Duration = Duration::from_millis(600);
/// Calls in flight whose names never arrive.
const UNDER_WAY: u64 = 3;

/// Targets that block readers of their memory, one that does not, and an agent that watches all of them.
struct Watched {
    held: Vec<Process>,
    other: Process,
    agent: Agent,
    /// Calls of `other` so far.
    calls: u64,
}

impl Watched {
    /// Starts `number` targets that block readers, another one, and an agent with these arguments.
    fn start(number: usize, args: &[&str]) -> Result<Self> {
        let start = || Process::start(Program::Strange, Flavour::Default, &[]);
        let mut held = (0..number).map(|_| start()).collect::<Result<Vec<_>>>()?;
        let other = start()?;
        let pids: Vec<_> = held.iter().chain([&other]).map(Process::pid).collect();
        let agent = Agent::attach(&pids, args)?;
        for target in &mut held {
            target.command(&format!("open {UNDER_WAY} client 1 method=held"))?;
            // Makes the agent read the memory for the call's unknown type.
            target.command("vanish 1")?;
        }
        for target in &held {
            let name = format!("pid {} ", target.pid());
            let is_held_up = |line: &str| line.contains("calls with types") && line.contains(&name);
            agent.wait_for_log(Duration::from_secs(5), |line| is_held_up(line).then_some(()))?;
        }
        Ok(Self { held, other, agent, calls: 0 })
    }

    /// Fails unless a scrape is answered in time and has all calls of `other`.
    fn scrape_within(&mut self, patience: Duration) -> Result<Scrape> {
        self.other.command("call 100 server")?;
        self.calls += 100;
        thread::sleep(Duration::from_millis(100));
        let began = Instant::now();
        let scrape = self.agent.scrape()?;
        ensure!(began.elapsed() < patience, "{:?}: {}", began.elapsed(), self.agent.log());
        let pid = self.other.pid();
        let found = Tally::of_agent(&scrape, &DEFAULT_LABELS, Some(pid))?;
        tally(&[row("server", USUAL, self.calls)])?.check(&found)?;
        check_closed(&scrape, pid, [0, 0])?;
        Ok(scrape)
    }

    /// Fails unless the line of a new call of `other` soon reaches a reader that has had all lines so far.
    fn call_is_told(&mut self, reader: &SocketReader) -> Result<()> {
        self.other.command("call 1 server")?;
        self.calls += 1;
        let called = Instant::now();
        while (of_kind(&reader.lines()?, "finish").len() as u64) < self.calls {
            ensure!(called.elapsed() < TOLD_WITHIN, "{:?}: {}", called.elapsed(), self.agent.log());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Returns the first scrape that shows a target as ended.
    fn scrape_of_the_end(&self, pid: u32) -> Result<Scrape> {
        let began = Instant::now();
        loop {
            let scrape = self.agent.scrape()?;
            if scrape.value("monitor_target_up", &[("target", &pid.to_string())]) == Some(0.0) {
                return Ok(scrape);
            }
            ensure!(began.elapsed() < Duration::from_secs(5), "still up: {}", self.agent.log());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Takes over the userfaultfds that block a process's memory: as long as this process holds them, they block readers
/// even after the target's end.
fn holders(pid: u32) -> Result<Vec<OwnedFd>> {
    let number = libc::pid_t::try_from(pid)?;
    // SAFETY: touches no memory.
    let process = opened(unsafe { libc::syscall(libc::SYS_pidfd_open, number, 0) })?;
    let mut holders = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        if !fs::read_link(entry.path()).is_ok_and(|link| link.ends_with("anon_inode:[userfaultfd]")) {
            continue;
        }
        let descriptor: libc::c_int = entry.file_name().to_str().context("a number")?.parse()?;
        // SAFETY: touches no memory.
        let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), descriptor, 0) };
        holders.push(opened(taken)?);
    }
    Ok(holders)
}

/// Converts the result of a system call into a descriptor, or into its error.
fn opened(descriptor: libc::c_long) -> Result<OwnedFd> {
    if descriptor < 0 {
        return Err(io::Error::last_os_error().into());
    }
    let descriptor = libc::c_int::try_from(descriptor)?;
    // SAFETY: it was opened right before, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Returns the calls of this method in flight in a target.
fn in_flight(scrape: &Scrape, pid: u32, method: &str) -> u64 {
    whole(scrape.sum("kitex_client_in_flight", &[("target", &pid.to_string()), ("method", method)]))
}

#[test]
fn memory_that_never_comes_holds_up_neither_scrapes_nor_other_targets() -> Result<()> {
    let mut watched = Watched::start(1, &[])?;
    let pid = watched.held[0].pid();
    let name = pid.to_string();
    for patience in [ONCE, LATER, LATER] {
        let scrape = watched.scrape_within(patience)?;
        // The calls are counted all the same.
        ensure!(in_flight(&scrape, pid, "unknown") == UNDER_WAY, "{:?}", scrape.families.keys());
        let unknown = [("target", name.as_str()), ("reason", "finish_unknown_type")];
        ensure!(scrape.value("monitor_events_lost_total", &unknown) == Some(1.0));
        check_closed(&scrape, pid, [0, 0])?;
    }
    let told = watched.agent.log().matches("its memory does not come").count();
    ensure!(told == 2, "told {told} times: {}", watched.agent.log());
    watched.held[0].signal(libc::SIGKILL)?;
    watched.scrape_of_the_end(pid)?;
    watched.scrape_within(LATER)?;
    ensure!(watched.agent.terminate()?.0.success());
    Ok(())
}

#[test]
fn many_targets_that_are_held_up_take_a_scrape_no_more_time_than_one() -> Result<()> {
    let mut watched = Watched::start(6, &[])?;
    for patience in [ONCE, LATER, LATER] {
        let scrape = watched.scrape_within(patience)?;
        for held in &watched.held {
            ensure!(in_flight(&scrape, held.pid(), "unknown") == UNDER_WAY, "{:?}", scrape.families.keys());
        }
    }
    ensure!(watched.agent.terminate()?.0.success());
    Ok(())
}

/// The agent handles a target's end without waiting for a scrape that waits for the target's memory.
#[test]
fn a_target_that_ends_while_a_scrape_waits_for_it_keeps_no_other_waiting() -> Result<()> {
    let socket = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("held.sock");
    // As left behind by a test that was killed.
    let _ = fs::remove_file(&socket);
    let path = socket.to_str().context("a path that is text")?;
    let mut watched = Watched::start(1, &["--events.socket", path])?;
    let reader = SocketReader::of(UnixStream::connect(&socket)?);
    // Waits until the reader is admitted.
    thread::sleep(Duration::from_millis(500));
    watched.call_is_told(&reader)?;
    let pid = watched.held[0].pid();
    let holders = holders(pid)?;
    ensure!(!holders.is_empty(), "nothing holds its memory up");

    let address = watched.agent.address().to_owned();
    let scraping = thread::spawn(move || {
        let began = Instant::now();
        (http::get(&address, "/metrics"), began.elapsed())
    });
    // Waits until the scrape is blocked.
    thread::sleep(Duration::from_millis(100));
    watched.held[0].signal(libc::SIGKILL)?;
    let killed = Instant::now();
    while killed.elapsed() < Duration::from_millis(1_500) {
        watched.call_is_told(&reader)?;
    }
    let (scrape, took) = scraping.join().expect("the thread runs to its end");
    scrape?.ok_body()?;
    ensure!(took > Duration::from_millis(900), "it waited for nothing, so this shows nothing: {took:?}");
    ensure!(took < ONCE, "{took:?}");

    // A scrape that shows the target as ended also has the outcome of its calls.
    let scrape = watched.scrape_of_the_end(pid)?;
    let name = pid.to_string();
    let ended = [("target", name.as_str()), ("reason", "target_ended")];
    ensure!(whole(scrape.sum("monitor_unpaired_starts_total", &ended)) == UNDER_WAY);
    ensure!(scrape.value("monitor_calls_in_flight", &ended[..1]) == Some(0.0));
    check_closed(&scrape, pid, [0, 0])?;
    watched.scrape_within(LATER)?;
    ensure!(watched.agent.terminate()?.0.success());
    drop(holders);
    Ok(())
}

/// The code at which calls start becomes memory that never arrives. The agent can't verify its probes there, and so
/// does not count the starts as watched.
#[test]
fn starts_whose_memory_never_comes_do_not_pass_for_seen() -> Result<()> {
    let mut target = Process::start(Program::Strange, Flavour::Default, &[])?;
    let agent = Agent::attach(&[target.pid()], &["--latency", "economy", "--latency.every", "2"])?;
    target.command("bury")?;
    let says_why = |line: &str| line.contains("its memory did not say in time").then_some(());
    agent.wait_for_log(Duration::from_secs(10), says_why)?;
    let (status, took) = agent.terminate()?;
    ensure!(status.success() && took < Duration::from_secs(2), "{status} after {took:?}");
    Ok(())
}

#[test]
fn an_agent_that_is_held_up_ends_when_it_is_told_to() -> Result<()> {
    let mut watched = Watched::start(1, &[])?;
    watched.scrape_within(ONCE)?;
    let (status, took) = watched.agent.terminate()?;
    ensure!(status.success() && took < Duration::from_secs(3), "{status} after {took:?}");
    for mut target in watched.held.into_iter().chain([watched.other]) {
        target.command("call 10 client")?;
        target.signal(libc::SIGKILL)?;
    }
    Ok(())
}
