//! Measures what watching costs a server: its processor time per call with nothing attached, with two programs that
//! do nothing at the agent's sites, with the agent, and with the in-process extension instead. Also what it takes the
//! agent to plan, and to scrape a Go runtime.
//!
//! Only numbers of one run are compared. A run that miscounts a single call is worth nothing and fails.

mod empty;
mod kernel;
mod machine;
mod planning;
mod report;
mod scrapes;

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, ValueEnum, value_parser};
use monitor_tests::{
    agent::{self, Agent},
    process::Process,
    scrape::Scrape,
};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    process::{output, root, say},
    setup,
};
use empty::Empty;
use kernel::Statistics;
use machine::{Cores, Times, cpu_time, ended_children, pinned};
use planning::Planning;
use report::{AgentCost, Condition, Report, Round, Sample, Setting, Spread, float};

/// Calls under way at once.
const CONCURRENCY: u32 = 16;
/// Seconds of calls before each measurement: connections, caches and what was just attached settle.
const WARM_UP: f64 = 0.3;
/// How much longer than its calls a measurement may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// When others take more of the machine, the numbers are not worth much.
const IDLE: f64 = 0.05;
const THROUGHPUT: &str = "kitex_server_throughput";
const MIB: f64 = 1_048_576.0;

/// How to measure.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Rounds that count; one more comes first
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of calls for each of the five conditions in a round
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Write docs/overhead.md
    #[arg(long)]
    write: bool,
    /// Measure this part only, and with --write write only its section
    #[arg(long, value_name = "PART", value_enum, conflicts_with = "against")]
    only: Option<Part>,
    /// Measure this executable of another agent too, in turn with the one that is built here
    #[arg(long, value_name = "AGENT")]
    against: Option<PathBuf>,
}

/// What can be measured alone.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Part {
    /// Scrapes of a Go runtime
    Scrapes,
}

impl Options {
    /// The command that repeats it.
    fn command(&self) -> String {
        match self.only {
            Some(Part::Scrapes) => {
                format!("cargo xtask bench --only scrapes --rounds {} --write", self.rounds)
            }
            None => format!("cargo xtask bench --rounds {} --seconds {} --write", self.rounds, self.seconds),
        }
    }
}

/// Measures, shows the result, and writes it down if asked to.
pub(crate) fn run(options: &Options) -> Result<()> {
    match options.only {
        Some(Part::Scrapes) => run_scrapes(options),
        None => run_all(options),
    }
}

fn run_scrapes(options: &Options) -> Result<()> {
    setup::agent_and_go("bench")?;
    let scrapes = scrapes::measure(Cores::choose()?.others, options.rounds)?;
    println!("{}", scrapes.results());
    if options.write {
        scrapes::write(&scrapes, &options.command(), &today()?, &machine::description()?)?;
        say("written: docs/overhead.md");
    }
    Ok(())
}

fn today() -> Result<String> {
    output(Command::new("date").args(["--utc", "+%Y-%m-%d"]))
}

fn run_all(options: &Options) -> Result<()> {
    let executable = setup::agent_and_target("bench")?;
    let cores = Cores::choose()?;
    let plan = Plan::of(&executable)?;
    let mut bench = Bench {
        watched: Pair::start(&executable, cores, "none")?,
        in_process: Pair::start(&executable, cores, "prometheus")?,
        cores,
        plan,
        seconds: options.seconds.into(),
    };
    let (begin, own) = (Times::now()?, bench.cpu_time()?);
    let planning = planning::measure(&executable, cores.others, options.rounds)?;
    let report = Report { planning, ..bench.rounds(options.rounds)? };
    let scrapes = scrapes::measure(cores.others, options.rounds)?;
    if let Some(other) = &options.against {
        bench.compare(other, options.rounds)?;
    }
    let own = bench.cpu_time()?.saturating_sub(own);
    let (others, steal) = Times::now()?.shares_since(begin, own);
    println!("{}\n{}", report.results(), scrapes.results());
    if others + steal > IDLE {
        let percent = (others + steal) * 100.0;
        say(&format!("others took {percent:.0} % of this machine meanwhile: run it again when it is idle"));
    }
    if options.write {
        let setting = Setting {
            command: options.command(),
            date: today()?,
            machine: machine::description()?,
            versions: bench.plan.versions()?,
            seconds: options.seconds,
            concurrency: CONCURRENCY,
            others,
            steal,
        };
        let file = root().join("docs/overhead.md");
        fs::create_dir_all(root().join("docs"))?;
        let document = report.document(&setting);
        let Setting { command, date, machine, .. } = &setting;
        fs::write(&file, scrapes.merged_into(&document, command, date, machine))
            .with_context(|| format!("cannot write {}", file.display()))?;
        say("written: docs/overhead.md");
    }
    Ok(())
}

/// What the agent would do to the server, as it says itself.
struct Plan {
    /// File offsets of its sites, in the order in which it attaches them.
    sites: Vec<u64>,
    inspected: Value,
}

impl Plan {
    fn of(executable: &Path) -> Result<Self> {
        let mut inspect = Command::new(agent::executable()?);
        let text = output(inspect.args(["inspect", "--json", "--exe"]).arg(executable))?;
        let inspected: Value = serde_json::from_str(&text).context("what `monitor-agent inspect` wrote")?;
        let sites = inspected["frameworks"][0]["sites"].as_array().context("no sites")?;
        let attached = sites.iter().filter(|site| site["on_request"] == false);
        let offsets = attached.map(|site| site["file_offset"].as_u64()).collect::<Option<Vec<_>>>();
        Ok(Self { sites: offsets.context("a site without a file offset")?, inspected })
    }

    fn versions(&self) -> Result<String> {
        let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
        let module = root().join("tests/targets/kitex/go.mod");
        let module =
            fs::read_to_string(&module).with_context(|| format!("cannot read {}", module.display()))?;
        let extension = module.lines().find_map(|line| line.split_once("/monitor-prometheus "));
        Ok(format!(
            "{}, Kitex {}, monitor-prometheus {}, {}",
            output(Command::new(agent::executable()?).arg("--version"))?,
            text(&self.inspected["frameworks"][0]["version"]),
            extension.map_or("unknown", |(_, version)| version),
            text(&self.inspected["go_version"]),
        ))
    }
}

/// All that a run works with. The processes live as long as it.
struct Bench {
    /// The server that programs and agent are attached to.
    watched: Pair,
    /// The server with the extension inside.
    in_process: Pair,
    cores: Cores,
    plan: Plan,
    seconds: f64,
}

impl Bench {
    /// The processor time of everything that belongs to this run.
    fn cpu_time(&self) -> Result<Duration> {
        let targets =
            [&self.watched, &self.in_process].into_iter().flat_map(|pair| [&pair.server, &pair.client]);
        let pids = targets.map(Process::pid).chain([std::process::id()]);
        // The agents have ended.
        pids.map(cpu_time).sum::<Result<Duration>>().and_then(|sum| Ok(sum + ended_children()?))
    }

    fn rounds(&mut self, count: u32) -> Result<Report> {
        say("a first round, which does not count");
        let (empty_ns, programs_ns) = self.first_round()?;
        let mut rounds = Vec::new();
        for number in 1..=count {
            let mut round = Round::default();
            let mut order = Condition::ALL;
            order.rotate_left(number as usize % Condition::ALL.len());
            for condition in order {
                self.measure(condition, &mut round)
                    .with_context(|| format!("measuring: {}", condition.name()))?;
            }
            let times = Condition::ALL.map(|condition| format!("{:.2}", round.sample(condition).server_us));
            say(&format!("round {number} of {count}: {} µs per call", times.join(", ")));
            rounds.push(round);
        }
        Ok(Report { rounds, empty_ns, programs_ns, planning: Planning::default() })
    }

    /// Lets everything run once while the kernel times programs; gives the nanoseconds for a call inside the empty
    /// ones and inside the agent's.
    fn first_round(&mut self) -> Result<(f64, f64)> {
        let _statistics = Statistics::enable()?;
        self.in_process.call(self.seconds)?;
        let empty = Empty::attach(self.watched.server.pid(), &self.plan.sites)?;
        let calls = self.watched.call(self.seconds)?.calls;
        self.watched.settle()?;
        let programs = kernel::programs(std::process::id())?;
        if programs.len() != self.plan.sites.len() || programs.iter().any(|program| program.runs != calls) {
            bail!("{calls} calls were made, and the empty programs ran otherwise: {programs:?}");
        }
        drop(empty);
        let agent = self.attach(&agent::executable()?, &[])?;
        let before = self.watched.calls;
        let calls = self.watched.call(self.seconds)?.calls;
        check_counts(&agent.scrape_settled()?, self.watched.calls - before)?;
        let own = kernel::programs(agent.pid())?;
        agent.terminate()?;
        let per_call = |programs: &[kernel::Program], calls| {
            float(programs.iter().map(|program| program.run_time).sum()) / float(calls)
        };
        Ok((per_call(&programs, programs[0].runs), per_call(&own, calls)))
    }

    fn measure(&mut self, condition: Condition, round: &mut Round) -> Result<()> {
        let sample = match condition {
            Condition::Bare => self.watched.measure(self.seconds)?,
            Condition::Empty => {
                let _attached = Empty::attach(self.watched.server.pid(), &self.plan.sites)?;
                self.watched.measure(self.seconds)?
            }
            Condition::Agent => {
                let (sample, cost) = self.measure_agent(&agent::executable()?)?;
                round.agent = cost;
                sample
            }
            Condition::Events => {
                let (sample, cost) = self.measure_events()?;
                round.events = cost;
                sample
            }
            Condition::InProcess => {
                let sample = self.in_process.measure(self.seconds)?;
                self.in_process.settle()?;
                let metrics = self.in_process.server.in_process_metrics()?;
                let (counted, calls) = (metrics.sum(THROUGHPUT, &[]), float(self.in_process.calls));
                check("the in-process extension", counted, calls)?;
                sample
            }
        };
        round.set(condition, sample);
        Ok(())
    }

    /// Says what a call costs the server with this agent and with another, each the median of so many rounds.
    fn compare(&mut self, other: &Path, rounds: u32) -> Result<()> {
        let own = agent::executable()?;
        let mut costs = [Vec::new(), Vec::new()];
        for round in 0..rounds as usize {
            // Whoever is first in a round is second in the next.
            for agent in [round % 2, 1 - round % 2] {
                let (sample, _) = self.measure_agent([&own, other][agent])?;
                costs[agent].push(sample.server_us);
            }
        }
        let [own, others] = costs.map(|costs| Spread::of(costs).median);
        println!(
            "CPU time per call, median of {rounds} rounds in turn: {own:.2} µs with this agent, {others:.2} µs with {}: \
             {:.3} ×",
            other.display(),
            own / others,
        );
        Ok(())
    }

    fn measure_agent(&mut self, executable: &Path) -> Result<(Sample, AgentCost)> {
        let begin = Instant::now();
        let agent = self.attach(executable, &[])?;
        self.measure_with(agent, begin.elapsed())
    }

    /// With a reader of the agent's events, which must get all of them.
    fn measure_events(&mut self) -> Result<(Sample, AgentCost)> {
        let directory = root().join("target");
        let socket = directory.join("bench-events.sock");
        let begin = Instant::now();
        let agent =
            self.attach(&agent::executable()?, &[OsStr::new("--events.socket"), socket.as_os_str()])?;
        let ready = begin.elapsed();
        let before = self.watched.calls;
        let events = UnixStream::connect(&socket).context("cannot read events")?;
        let reader = thread::spawn(move || BufReader::new(events).lines().map_while(Result::ok).count());
        let measured = self.measure_with(agent, ready)?;
        let lines = reader.join().map_err(|_| anyhow!("the reader of events panicked"))?;
        check("the reader of events", float(lines as u64), float(self.watched.calls - before))?;
        Ok(measured)
    }

    /// Measures a server that an agent has been attached to, so long after its start.
    fn measure_with(&mut self, agent: Agent, ready: Duration) -> Result<(Sample, AgentCost)> {
        let before = self.watched.calls;
        self.watched.call(WARM_UP)?;
        let warm = self.watched.calls;
        let cpu = cpu_time(agent.pid())?;
        let sample = self.watched.measure_now(self.seconds)?;
        let cpu = cpu_time(agent.pid())?.saturating_sub(cpu);
        let scrape = agent.scrape_settled()?;
        check_counts(&scrape, self.watched.calls - before)?;
        let maps = kernel::map_bytes(agent.pid())?;
        let (status, end) = agent.terminate()?;
        if !status.success() {
            bail!("the agent ended with {status}");
        }
        let cost = AgentCost {
            cpu_us: micros(cpu) / float(self.watched.calls - warm),
            resident_mib: scrape.sum("monitor_agent_resident_memory_bytes", &[]) / MIB,
            maps_mib: float(maps) / MIB,
            attach_ms: scrape.sum("monitor_attach_seconds", &[]) * 1000.0,
            ready_ms: ready.as_secs_f64() * 1000.0,
            end_ms: end.as_secs_f64() * 1000.0,
        };
        Ok((sample, cost))
    }

    /// Attaches an agent to the watched server.
    fn attach(&self, executable: &Path, args: &[&OsStr]) -> Result<Agent> {
        let mut command = pinned(self.cores.others, executable);
        command.args(["run", "--web.listen-address", "127.0.0.1:0", "--pid"]);
        command.arg(self.watched.server.pid().to_string());
        Agent::start_command(command.args(args))?.wait_ready()
    }
}

/// A server and its client.
struct Pair {
    server: Process,
    client: Process,
    /// All calls so far.
    calls: u64,
}

impl Pair {
    fn start(executable: &Path, cores: Cores, tracer: &str) -> Result<Self> {
        let go = |core| {
            let mut command = pinned(core, executable);
            command.env("GOMAXPROCS", "1");
            command
        };
        let server = Process::start_command(go(cores.server).args(["server", "--tracer", tracer]))?;
        let client = ["client", "--tracer", "none", "--protocol", "ttheader", "--conns", "long", "--connect"];
        let client = Process::start_command(go(cores.others).args(client).arg(server.addr()?))?;
        Ok(Self { server, client, calls: 0 })
    }

    /// Makes calls for so many seconds; none may fail.
    fn call(&mut self, seconds: f64) -> Result<Answer> {
        let patience = PATIENCE + Duration::from_secs_f64(seconds);
        let answer = self.client.command_within(&format!("bench {seconds} {CONCURRENCY}"), patience)?;
        let calls: Answer = serde_json::from_value(answer).context("the client's answer")?;
        if calls.calls == 0 || calls.ok != calls.calls {
            bail!("calls failed: {calls:?}");
        }
        self.calls += calls.calls;
        Ok(calls)
    }

    /// Waits until the server is done with the last calls, whose clients may have their answers already.
    fn settle(&mut self) -> Result<()> {
        self.server.command("settle").map(|_| ())
    }

    fn measure(&mut self, seconds: f64) -> Result<Sample> {
        self.call(WARM_UP)?;
        self.measure_now(seconds)
    }

    fn measure_now(&mut self, seconds: f64) -> Result<Sample> {
        let before = cpu_time(self.server.pid())?;
        let calls = self.call(seconds)?;
        let cpu = cpu_time(self.server.pid())?.saturating_sub(before);
        Ok(Sample {
            server_us: micros(cpu) / float(calls.calls),
            rate: float(calls.calls) / calls.seconds,
            p50_us: float(calls.p50_us),
            p99_us: float(calls.p99_us),
        })
    }
}

/// What a client answers to `bench`.
#[derive(Debug, Deserialize)]
struct Answer {
    calls: u64,
    ok: u64,
    seconds: f64,
    p50_us: u64,
    p99_us: u64,
}

/// Fails unless the agent has counted and timed each of these calls, under the labels that they have.
fn check_counts(scrape: &Scrape, calls: u64) -> Result<()> {
    const LABELS: [(&str, &str); 5] = [
        ("type", "pingpong"),
        ("caller", "shop"),
        ("callee", "stock"),
        ("method", "Lookup"),
        ("status", "succeed"),
    ];
    let calls = float(calls);
    check("the agent", scrape.value(THROUGHPUT, &LABELS).unwrap_or(0.0), calls)?;
    check("the agent, over all labels,", scrape.sum(THROUGHPUT, &[]), calls)?;
    let timed = scrape.histogram("kitex_server_latency_us", &[]).map_or(0.0, |histogram| histogram.count);
    check("the agent's histogram", timed, calls)
}

fn check(who: &str, counted: f64, calls: f64) -> Result<()> {
    if counted.total_cmp(&calls).is_ne() {
        bail!("{who} counted {counted} of {calls} calls");
    }
    Ok(())
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
