//! Servers of one protocol with their clients, and single measurements of them.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use monitor_tests::{
    agent::{self, Agent},
    process::Process,
    scrape::Scrape,
    targets::{Flavour, Program},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    MIB,
    condition::{Condition, Mode},
    empty::Empty,
    kernel::{self, Statistics},
    machine::{Cores, cpu_time, pinned},
    peers::{Peer, Running},
    report::float,
    wakeups::Sleeps,
};
use crate::process::{output, root};

/// Seconds of calls before each measurement, in which connections, caches and new probes settle.
const WARM_UP: f64 = 0.3;
/// How much longer than its calls a measurement may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Seconds between two samples of durations.
const PERIOD: f64 = 10.0;
/// The share of calls that may be miscounted where the sites do not allow exact counts.
const INEXACT: f64 = 0.01;

/// The protocol of the calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Protocol {
    TtHeader,
    Framed,
    Mux,
    Grpc,
}

impl Protocol {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::TtHeader => "TTHeader",
            Self::Framed => "framed",
            Self::Mux => "mux",
            Self::Grpc => "gRPC",
        }
    }

    fn program(self) -> Program {
        if self == Self::Grpc { Program::Echo } else { Program::Kitex }
    }

    fn server_args(self, is_monitored: bool) -> Vec<&'static str> {
        let inside = if is_monitored { "prometheus" } else { "none" };
        match self {
            Self::TtHeader | Self::Framed => vec!["server", "--tracer", inside],
            Self::Mux => vec!["server", "--mux", "--tracer", inside],
            Self::Grpc => vec!["server", "--monitor", inside],
        }
    }

    fn client_args(self) -> Vec<&'static str> {
        let kitex = |protocol| vec!["client", "--tracer", "none", "--protocol", protocol, "--connect"];
        match self {
            Self::TtHeader => kitex("ttheader"),
            Self::Framed => kitex("framed"),
            Self::Mux => kitex("mux"),
            Self::Grpc => vec!["client", "--connect"],
        }
    }

    /// Returns the counter of finished calls, which has the same name in the agent and in the in-process library.
    fn counter(self) -> &'static str {
        if self == Self::Grpc { "grpc_server_handled_total" } else { "kitex_server_throughput" }
    }

    fn histogram(self) -> &'static str {
        if self == Self::Grpc { "grpc_server_handling_seconds" } else { "kitex_server_latency_us" }
    }

    /// Returns the labels that all calls have.
    fn labels(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Grpc => &[
                ("grpc_type", "unary"),
                ("grpc_service", "monitor.bench.Echo"),
                ("grpc_method", "Call"),
                ("grpc_code", "OK"),
            ],
            // Only TTHeader carries the caller's name.
            Self::Framed => {
                &[("type", "pingpong"), ("callee", "stock"), ("method", "Lookup"), ("status", "succeed")]
            }
            Self::TtHeader | Self::Mux => &[
                ("type", "pingpong"),
                ("caller", "shop"),
                ("callee", "stock"),
                ("method", "Lookup"),
                ("status", "succeed"),
            ],
        }
    }
}

/// One measurement of a server under one condition.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sample {
    /// The server's processor time per call, in microseconds.
    pub(super) server_us: f64,
    /// Calls per second.
    pub(super) rate: f64,
    /// The median duration of a call as measured by the client, in microseconds.
    pub(super) p50_us: f64,
    /// The 99th percentile.
    pub(super) p99_us: f64,
    /// The 99.9th percentile.
    pub(super) p999_us: f64,
    /// The own cost of the agent or peer.
    pub(super) watcher: Option<Watcher>,
}

/// The own cost of an agent or a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Watcher {
    /// Its processor time per call, in microseconds.
    pub(super) cpu_us: f64,
    /// Further numbers, for the agent only.
    pub(super) agent: Option<AgentCost>,
}

/// Further numbers about the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct AgentCost {
    /// Calls counted too many (positive) or too few (negative), as a share.
    pub(super) miscounted: f64,
    /// The share of the calls whose durations it has.
    pub(super) timed: f64,
    /// Wakeups per second, over all its threads.
    pub(super) wakeups: f64,
    /// Its resident memory in MiB.
    pub(super) resident_mib: f64,
    /// Kernel memory of its maps in MiB.
    pub(super) maps_mib: f64,
    /// Time for loading and attaching, in milliseconds.
    pub(super) attach_ms: f64,
    /// Time from its start until it was ready, in milliseconds.
    pub(super) ready_ms: f64,
    /// Time from SIGTERM until it had detached and exited, in milliseconds.
    pub(super) end_ms: f64,
}

/// Run time of programs per call, in nanoseconds, as measured by the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Inside {
    /// Of empty programs: the part of the other numbers that is due to the measurement.
    pub(super) empty: f64,
    /// Of the agent's programs when they read by page tables.
    pub(super) tables: f64,
    /// Of the agent's programs when each read uses the kernel's helper.
    pub(super) asking: f64,
}

/// Servers of one protocol. Dropping this ends them.
pub(super) struct Stage<'a> {
    protocol: Protocol,
    /// The server that empty programs, agent and peers attach to.
    watched: Pair,
    /// The server that contains the library.
    in_process: Pair,
    cores: Cores,
    /// File offsets of the agent's sites, in the order in which it attaches to them.
    sites: Vec<u64>,
    peers: &'a [Peer],
    /// How long a peer takes until it is ready.
    peers_ready_after: Duration,
}

/// How long and how heavily a server is loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) seconds: f64,
    /// Calls in flight.
    pub(super) concurrency: u32,
}

impl<'a> Stage<'a> {
    pub(super) fn start(
        protocol: Protocol,
        cores: Cores,
        peers: &'a [Peer],
        peers_ready_after: Duration,
    ) -> Result<Self> {
        let executable = protocol.program().build(Flavour::Default)?;
        Ok(Self {
            protocol,
            watched: Pair::start(&executable, protocol, cores, false)?,
            in_process: Pair::start(&executable, protocol, cores, true)?,
            cores,
            sites: sites(&executable)?,
            peers,
            peers_ready_after,
        })
    }

    /// Returns the name of a peer.
    pub(super) fn peer_name(&self, peer: usize) -> &str {
        &self.peers[peer].name
    }

    /// Runs everything once.
    pub(super) fn warm_up(&mut self, load: Load) -> Result<()> {
        self.in_process.call(load)?;
        self.look_inside(load).map(|_| ())
    }

    /// Measures the run time of programs: empty ones, and the agent's with both ways to read.
    pub(super) fn look_inside(&mut self, load: Load) -> Result<Inside> {
        let _statistics = Statistics::enable()?;
        // The rest of earlier calls would run the programs, too.
        self.watched.settle()?;
        let empty = Empty::attach(self.watched.server.pid(), &self.sites)?;
        let calls = self.watched.call(load)?.calls;
        self.watched.settle()?;
        let programs = kernel::programs(std::process::id())?;
        if programs.len() != self.sites.len() || programs.iter().any(|program| program.runs != calls) {
            bail!("{calls} calls were made, and the empty programs ran otherwise: {programs:?}");
        }
        drop(empty);
        let tables = self.time_programs(Mode::Tables, &agent::executable()?, load)?;
        let asking = self.time_programs(Mode::Asking, &agent::executable()?, load)?;
        Ok(Inside { empty: per_call(&programs, calls), tables, asking })
    }

    /// Returns the run time of an agent's programs, in nanoseconds per call.
    pub(super) fn measure_programs(&mut self, executable: &Path, load: Load) -> Result<f64> {
        let _statistics = Statistics::enable()?;
        self.time_programs(Mode::Plain, executable, load)
    }

    /// The same when the kernel's statistics are already enabled.
    fn time_programs(&mut self, mode: Mode, executable: &Path, load: Load) -> Result<f64> {
        let agent = self.attach(mode, executable)?;
        let before = self.watched.calls;
        let calls = self.watched.call(load)?.calls;
        self.check_counts(&agent.scrape_settled()?, self.watched.calls - before)?;
        let programs = kernel::programs(agent.pid())?;
        agent.terminate()?;
        Ok(per_call(&programs, calls))
    }

    /// Measures under one condition.
    pub(super) fn measure(&mut self, condition: Condition, load: Load) -> Result<Sample> {
        match condition {
            Condition::Bare => self.watched.measure(load),
            Condition::EmptyByPerfEvents => {
                let _attached = Empty::attach_by_perf_events(self.watched.server.pid(), &self.sites)?;
                self.watched.measure(load)
            }
            Condition::Empty => {
                let _attached = Empty::attach(self.watched.server.pid(), &self.sites)?;
                self.watched.measure(load)
            }
            Condition::Agent(Mode::Events) => self.measure_events(load),
            Condition::Agent(Mode::Economy) => {
                let load = Load { seconds: load.seconds.max(PERIOD), ..load };
                self.measure_agent(Mode::Economy, &agent::executable()?, load)
            }
            Condition::Agent(mode) => self.measure_agent(mode, &agent::executable()?, load),
            Condition::InProcess => self.measure_in_process(load),
            Condition::Peer(peer) => self.measure_peer(peer, load),
        }
    }

    fn measure_in_process(&mut self, load: Load) -> Result<Sample> {
        let sample = self.in_process.measure(load)?;
        self.in_process.settle()?;
        let metrics = self.in_process.server.in_process_metrics()?;
        let counted = metrics.sum(self.protocol.counter(), &[]);
        check("the in-process library", counted, float(self.in_process.calls))?;
        Ok(sample)
    }

    fn measure_peer(&mut self, peer: usize, load: Load) -> Result<Sample> {
        let peer = &self.peers[peer];
        let running =
            Running::start(peer, self.watched.server.pid(), self.cores.others, self.peers_ready_after)?;
        self.watched.call(Load { seconds: WARM_UP, ..load })?;
        let (calls, cpu) = (self.watched.calls, running.cpu_time()?);
        let mut sample = self.watched.measure_now(load)?;
        let cpu = running.cpu_time()?.saturating_sub(cpu);
        let cpu_us = micros(cpu) / float(self.watched.calls - calls);
        sample.watcher = Some(Watcher { cpu_us, agent: None });
        Ok(sample)
    }

    /// Measures with this executable of an agent.
    pub(super) fn measure_agent(&mut self, mode: Mode, executable: &Path, load: Load) -> Result<Sample> {
        let begin = Instant::now();
        let agent = self.attach(mode, executable)?;
        self.measure_with(agent, begin.elapsed(), mode, load)
    }

    /// Measures with a reader of the agent's events, which must receive all of them.
    fn measure_events(&mut self, load: Load) -> Result<Sample> {
        let socket = root().join("target/bench-events.sock");
        let begin = Instant::now();
        let mut command = self.command(Mode::Events, &agent::executable()?);
        let agent = Agent::start_command(command.arg("--events.socket").arg(&socket))?.wait_ready()?;
        let ready = begin.elapsed();
        let before = self.watched.calls;
        let events = UnixStream::connect(&socket).context("cannot read events")?;
        let reader = thread::spawn(move || BufReader::new(events).lines().map_while(Result::ok).count());
        let sample = self.measure_with(agent, ready, Mode::Events, load)?;
        let lines = reader.join().map_err(|_| anyhow!("the reader of events panicked"))?;
        check("the reader of events", float(lines as u64), float(self.watched.calls - before))?;
        Ok(sample)
    }

    /// Measures a server with an attached agent; `ready` is the time from its start until it was ready.
    fn measure_with(&mut self, agent: Agent, ready: Duration, mode: Mode, load: Load) -> Result<Sample> {
        let before = self.watched.calls;
        self.watched.call(Load { seconds: WARM_UP, ..load })?;
        let warm = self.watched.calls;
        let (cpu, sleeps) = (cpu_time(agent.pid())?, Sleeps::now(agent.pid())?);
        let mut sample = self.watched.measure_now(load)?;
        let cpu = cpu_time(agent.pid())?.saturating_sub(cpu);
        // Before the scrape, which causes wakeups.
        let wakeups = Sleeps::now(agent.pid())?.wakeups_since(&sleeps);
        let scrape = agent.scrape_settled()?;
        let calls = self.watched.calls - before;
        if mode.counts_all() {
            self.check_counts(&scrape, calls)?;
        }
        let timed = self.timed(&scrape) / float(calls);
        if mode.times_all() {
            check("the agent's histogram", timed, 1.0)?;
        }
        let miscounted = scrape.sum(self.protocol.counter(), &[]) / float(calls) - 1.0;
        if miscounted.abs() > INEXACT {
            bail!("the agent counted {:.2} % more calls than there were", miscounted * 100.0);
        }
        let maps = kernel::map_bytes(agent.pid())?;
        let (status, end) = agent.terminate()?;
        if !status.success() {
            bail!("the agent ended with {status}");
        }
        let cost = AgentCost {
            miscounted,
            timed,
            wakeups,
            resident_mib: scrape.sum("monitor_agent_resident_memory_bytes", &[]) / MIB,
            maps_mib: float(maps) / MIB,
            attach_ms: scrape.sum("monitor_attach_seconds", &[]) * 1000.0,
            ready_ms: ready.as_secs_f64() * 1000.0,
            end_ms: end.as_secs_f64() * 1000.0,
        };
        let cpu_us = micros(cpu) / float(self.watched.calls - warm);
        sample.watcher = Some(Watcher { cpu_us, agent: Some(cost) });
        Ok(sample)
    }

    /// Attaches an agent to the watched server.
    fn attach(&self, mode: Mode, executable: &Path) -> Result<Agent> {
        Agent::start_command(&mut self.command(mode, executable))?.wait_ready()
    }

    fn command(&self, mode: Mode, executable: &Path) -> Command {
        let mut command = pinned(self.cores.others, executable);
        command.args(["run", "--web.listen-address", "127.0.0.1:0", "--pid"]);
        command.arg(self.watched.server.pid().to_string()).args(mode.args());
        command
    }

    /// Returns the number of calls whose durations the agent has.
    fn timed(&self, scrape: &Scrape) -> f64 {
        scrape.histogram(self.protocol.histogram(), &[]).map_or(0.0, |histogram| histogram.count)
    }

    /// Fails unless the agent has counted each of these calls, with the right labels.
    fn check_counts(&self, scrape: &Scrape, calls: u64) -> Result<()> {
        let (counter, calls) = (self.protocol.counter(), float(calls));
        check("the agent", scrape.sum(counter, self.protocol.labels()), calls)?;
        check("the agent, over all labels,", scrape.sum(counter, &[]), calls)
    }
}

/// Returns the file offsets of the sites in an executable, as reported by the agent.
pub(super) fn sites(executable: &Path) -> Result<Vec<u64>> {
    let mut inspect = Command::new(agent::executable()?);
    let text = output(inspect.args(["inspect", "--json", "--exe"]).arg(executable))?;
    let inspected: Value = serde_json::from_str(&text).context("what `monitor-agent inspect` wrote")?;
    let frameworks = inspected["frameworks"].as_array().context("no frameworks")?;
    let sites = frameworks.iter().filter_map(|framework| framework["sites"].as_array()).flatten();
    let attached = sites.filter(|site| site["on_request"] == false);
    attached.map(|site| site["file_offset"].as_u64().context("a site without a file offset")).collect()
}

/// A server and its client.
pub(super) struct Pair {
    pub(super) server: Process,
    client: Process,
    /// All calls so far.
    calls: u64,
}

impl Pair {
    /// Starts a server on the servers' processor and its client on the other.
    fn start(executable: &Path, protocol: Protocol, cores: Cores, is_monitored: bool) -> Result<Self> {
        let mut server = go(executable, cores.server);
        let server = Process::start_command(server.args(protocol.server_args(is_monitored)))?;
        let mut client = go(executable, cores.others);
        let client = Process::start_command(client.args(protocol.client_args()).arg(server.addr()?))?;
        Ok(Self { server, client, calls: 0 })
    }

    /// Starts a Kitex server and its client on one processor.
    pub(super) fn together(core: usize) -> Result<Self> {
        let executable = Program::Kitex.build(Flavour::Default)?;
        Self::start(&executable, Protocol::TtHeader, Cores { server: core, others: core }, false)
    }

    /// Makes calls for the load's duration; fails if one fails.
    fn call(&mut self, load: Load) -> Result<Answer> {
        self.send(load, 0)?;
        self.answer(load)
    }

    /// Starts making calls. The client's answer will include at least this many of the longest calls.
    pub(super) fn send(&mut self, Load { seconds, concurrency }: Load, longest: u32) -> Result<()> {
        let longest = if longest > 0 { format!(" {longest}") } else { String::new() };
        self.client.send(&format!("bench {seconds} {concurrency}{longest}"))
    }

    /// Waits for the end of these calls.
    pub(super) fn answer(&mut self, load: Load) -> Result<Answer> {
        let answer = self.client.answer(PATIENCE + Duration::from_secs_f64(load.seconds))?;
        let calls: Answer = serde_json::from_value(answer).context("the client's answer")?;
        if calls.calls == 0 || calls.ok != calls.calls {
            bail!("calls failed: {calls:?}");
        }
        self.calls += calls.calls;
        Ok(calls)
    }

    /// Waits until the server has finished the last calls; their client may already have its answers.
    fn settle(&mut self) -> Result<()> {
        self.server.command("settle").map(|_| ())
    }

    fn measure(&mut self, load: Load) -> Result<Sample> {
        self.call(Load { seconds: WARM_UP, ..load })?;
        self.measure_now(load)
    }

    fn measure_now(&mut self, load: Load) -> Result<Sample> {
        let before = cpu_time(self.server.pid())?;
        let calls = self.call(load)?;
        let cpu = cpu_time(self.server.pid())?.saturating_sub(before);
        Ok(Sample {
            server_us: micros(cpu) / float(calls.calls),
            rate: float(calls.calls) / calls.seconds,
            p50_us: float(calls.p50_us),
            p99_us: float(calls.p99_us),
            p999_us: float(calls.p999_us),
            watcher: None,
        })
    }
}

/// Returns a command for a Go program on one processor, as if there were no others.
fn go(executable: &Path, core: usize) -> Command {
    let mut command = pinned(core, executable);
    command.env("GOMAXPROCS", "1");
    command
}

/// A client's answer to `bench`.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    calls: u64,
    ok: u64,
    seconds: f64,
    p50_us: u64,
    p99_us: u64,
    pub(super) p999_us: u64,
    /// Some of the longest calls, if requested.
    #[serde(default)]
    pub(super) longest: Vec<Timed>,
}

/// One call, with its start and duration.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Timed {
    /// Nanoseconds since 1970.
    pub(super) begin_ns: u64,
    pub(super) us: u64,
}

fn check(who: &str, counted: f64, calls: f64) -> Result<()> {
    if counted.total_cmp(&calls).is_ne() {
        bail!("{who} counted {counted} of {calls} calls");
    }
    Ok(())
}

/// Returns the run time of the programs, in nanoseconds per call.
fn per_call(programs: &[kernel::Program], calls: u64) -> f64 {
    float(programs.iter().map(|program| program.run_time).sum()) / float(calls)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
