//! Demonstrates the agent: it watches a real Kitex server and client while they run, and its counts are shown beside
//! those of the processes themselves.

mod interrupt;
mod table;

use std::{
    net::TcpListener,
    os::unix::process::CommandExt as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, value_parser};
use monitor_tests::{
    agent::{self, Agent},
    process::Process,
    tally::{DEFAULT_LABELS, Tally},
};

use crate::{process::say, setup};
use table::Side;

/// The agent's default address, used with `--keep` if it is free.
const ADDRESS: &str = "127.0.0.1:9790";
const FREE_PORT: &str = "127.0.0.1:0";
/// The calls that are watched, with the number in flight.
const CALLS: &str = "flow 4";
/// The calls that continue with `--keep`: the number in flight, and calls per second.
const GENTLE_CALLS: &str = "flow 2 100";
/// How long calls are made before the agent attaches.
const WARM_UP: Duration = Duration::from_secs(1);
/// How often `--keep` checks that all processes still run.
const CHECK: Duration = Duration::from_secs(1);

/// What to show.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds of calls that are watched
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Leave agent, server and client running until Ctrl-C, and print where to scrape
    #[arg(long)]
    keep: bool,
}

/// Runs the demonstration; fails if the agent's counts differ from the processes' own.
pub(crate) fn run(options: &Options) -> Result<()> {
    let executable = setup::agent_and_target("demo")?;
    interrupt::catch();
    let mut pair = Pair::start(&executable)?;
    pair.warm_up()?;
    let before = pair.counts()?;
    let agent = attach(&pair, options.keep)?;
    let shown = show(&mut pair, &agent, &before, options);
    let ended = end(agent);
    pair.end()?;
    shown.and(ended)
}

/// Attaches one agent to both processes.
fn attach(pair: &Pair, keep: bool) -> Result<Agent> {
    say("attaching the agent to both");
    let begin = Instant::now();
    let address = if keep { listen_address() } else { FREE_PORT };
    let mut command = in_background(&agent::executable()?);
    command.args(["run", "--latency-buckets", "fine", "--web.listen-address", address]);
    for pid in pair.pids() {
        command.arg("--pid").arg(pid.to_string());
    }
    let agent = Agent::start_command(&mut command)?.wait_ready()?;
    say(&format!("attached, {} ms after the agent's start", begin.elapsed().as_millis()));
    Ok(agent)
}

fn listen_address() -> &'static str {
    if TcpListener::bind(ADDRESS).is_ok() { ADDRESS } else { FREE_PORT }
}

/// Returns a command for a program that Ctrl-C does not reach: this task ends it, in order.
fn in_background(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.process_group(0);
    command
}

fn end(agent: Agent) -> Result<()> {
    let (status, took) = agent.terminate()?;
    if !status.success() {
        bail!("the agent ended with {status}");
    }
    say(&format!("the agent has detached and ended, in {} ms", took.as_millis()));
    Ok(())
}

/// Makes calls, shows the counts of the agent and the processes, and continues with `--keep`.
fn show(pair: &mut Pair, agent: &Agent, before: &[Tally; 2], options: &Options) -> Result<()> {
    let seconds = options.seconds;
    say(&format!("{seconds} s of calls: several methods, successes and failures, some oneway"));
    let took = pair.call(CALLS, Duration::from_secs(seconds.into()))?;
    let scrape = agent.scrape_settled()?;
    let mut sides = Vec::new();
    for ((role, pid), (now, before)) in
        ["client", "server"].into_iter().zip(pair.pids()).zip(pair.counts()?.iter().zip(before))
    {
        sides.push(Side::new(role, pid, took, &now.since(before)?, &scrape)?);
    }
    println!(
        "\nWhat the agent saw from outside; `own count` is what the process counted itself meanwhile.\n\
         p50 and p99 are microseconds, interpolated in the agent's histogram."
    );
    for side in &sides {
        print!("\n{side}");
    }
    let verdict = table::verdict(&sides);
    println!("\n{}\n", verdict.as_ref().unwrap_or_else(|differences| differences));
    if options.keep {
        keep(pair, agent)?;
    }
    if verdict.is_err() {
        bail!("the agent and the processes have counted differently");
    }
    Ok(())
}

/// Leaves everything running until a signal arrives.
fn keep(pair: &mut Pair, agent: &Agent) -> Result<()> {
    let address = agent.address();
    let [client, server] = pair.pids();
    pair.client.command(GENTLE_CALLS)?;
    println!(
        "Still running, with 100 calls a second: agent (pid {}), client (pid {client}), server (pid {server})\n\
         \x20 scrape   curl -s http://{address}/metrics\n\
         \x20 open     http://{address}/\n\
         \x20 stop     Ctrl-C here, or kill {}",
        agent.pid(),
        std::process::id(),
    );
    while interrupt::sleep(CHECK).is_ok() {
        for (process, role) in [(&mut pair.client, "client"), (&mut pair.server, "server")] {
            if !process.is_running()? {
                bail!("the {role} has ended");
            }
        }
        agent.status("/healthz").context("the agent does not answer any more")?;
    }
    Ok(())
}

/// A server and its client.
struct Pair {
    server: Process,
    client: Process,
}

impl Pair {
    fn start(executable: &Path) -> Result<Self> {
        let server = Process::start_command(in_background(executable).arg("server"))?;
        let client = ["client", "--connect", server.addr()?];
        let client = Process::start_command(in_background(executable).args(client))?;
        say(&format!(
            "a Kitex server (pid {}) and a Kitex client (pid {}) run and count their calls themselves",
            server.pid(),
            client.pid()
        ));
        Ok(Self { server, client })
    }

    /// Returns the pids of client and server.
    fn pids(&self) -> [u32; 2] {
        [self.client.pid(), self.server.pid()]
    }

    /// Makes calls before the agent attaches, and pauses.
    fn warm_up(&mut self) -> Result<()> {
        self.call(CALLS, WARM_UP)?;
        let [client, _] = self.counts()?;
        say(&format!("{} calls so far; the client pauses, its connections open", client.total()));
        Ok(())
    }

    /// Makes calls for this time and waits until both sides have finished the last one. Returns the seconds it took.
    fn call(&mut self, calls: &str, time: Duration) -> Result<f64> {
        self.client.command(calls)?;
        interrupt::sleep(time)?;
        let answer = self.client.command("pause")?;
        for process in [&mut self.client, &mut self.server] {
            process.command("settle")?;
        }
        answer["seconds"].as_f64().context("the client does not say how long it called")
    }

    /// Returns what client and server have counted so far.
    fn counts(&mut self) -> Result<[Tally; 2]> {
        let counts = |process: &mut Process| Tally::of_target(&process.command("counts")?, &DEFAULT_LABELS);
        Ok([counts(&mut self.client)?, counts(&mut self.server)?])
    }

    fn end(&mut self) -> Result<()> {
        self.client.quit()?;
        self.server.quit()?;
        Ok(())
    }
}
