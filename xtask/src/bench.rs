//! Measures the cost of watching: a server's processor time per call under different conditions, the agent's own cost
//! as calls, targets and executables increase, and how long calls are held up.
//!
//! Except for ratios, numbers are compared only within one run. A run that miscounts a single call fails.

mod ballast;
mod charts;
mod condition;
mod empty;
mod kernel;
mod machine;
mod maps;
mod matrix;
mod peers;
mod pipeline;
mod planning;
mod programs;
mod recorded;
mod report;
mod scrapes;
mod section;
mod stage;
mod stalls;
mod steps;
mod sweeps;
mod wakeups;

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum, value_parser};
use monitor_tests::{
    agent,
    targets::{Flavour, Program},
};

use crate::{
    process::{output, root, say},
    setup,
};
use condition::Mode;
use machine::{Cores, Times, cpu_time, ended_children};
use peers::Peer;
use report::Spread;
use section::{Numbers, Section, Setting};
use stage::{Load, Protocol, Stage};

/// If other processes use more than this share of the machine, the numbers are unreliable.
const IDLE: f64 = 0.05;
const MIB: f64 = 1_048_576.0;
const MB: f64 = 1e6;
/// Calls in flight in the comparison of two agents.
const CONCURRENCY: u32 = 16;

/// How to measure.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Rounds of planning, of scrapes and of the matrix's cells with 16 calls at once; other cells have a quarter of them,
    /// sweeps half
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of calls in each measurement
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Measure this part only; repeat it for several
    #[arg(long, value_name = "PART", value_enum, conflicts_with = "against")]
    only: Vec<Part>,
    /// Of the sweeps measure this one only; repeat it for several
    #[arg(long, value_name = "SWEEP", value_enum, conflicts_with_all = ["against", "write", "check"])]
    sweep: Vec<sweeps::Which>,
    /// Write what was measured to docs/overhead.md, docs/overhead.json and the charts beside them
    #[arg(long)]
    write: bool,
    /// Write all numbers to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fail where a ratio, a count of instructions or the memory of maps is higher than in this file of an earlier run by
    /// more than its tolerance, and where nothing can be compared. Programs and their maps are compared with those of the
    /// same kernel only
    #[arg(long, value_name = "BASELINE")]
    check: Option<PathBuf>,
    /// Another tool to measure in the matrix: a command for the shell, {pid} stands for the server's process. It is ended
    /// with all that it has started. Repeat it for several
    #[arg(long = "peer", value_name = "NAME=COMMAND")]
    peers: Vec<Peer>,
    /// Seconds that a peer takes until it is ready
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = value_parser!(u32).range(1..=600))]
    peer_ready_after: u32,
    /// Measure this executable of another agent too, in turn with the one that is built here, and nothing else
    #[arg(long, value_name = "AGENT", conflicts_with_all = ["write", "json", "check", "peers"])]
    against: Option<PathBuf>,
}

/// Parts that can be measured alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What the kernel makes of the agent's programs, and their maps: counts, which need no idle machine
    Programs,
    /// What the kernel takes for a hit, and for what programs ask of it
    Steps,
    /// Planning
    Planning,
    /// Servers over each protocol, with one thing after the other at work in them
    Matrix,
    /// The agent itself as calls, label sets, targets and executables become more
    Sweeps,
    /// How long calls are held up when it attaches and detaches
    Stalls,
    /// How many records the agent takes out of a ring in a second
    Pipeline,
    /// Scrapes of a Go runtime
    Scrapes,
}

impl Part {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether this part pins processes to two processors.
    fn pins(self) -> bool {
        !matches!(self, Self::Programs | Self::Steps)
    }
}

impl Options {
    /// Returns the command that measures these parts again.
    fn command(&self) -> String {
        let mut words = vec!["cargo xtask bench".to_owned()];
        words.extend(self.only.iter().map(|part| format!("--only {}", part.name())));
        words.extend(self.peers.iter().map(|peer| format!("--peer {}", peer.quoted())));
        if !self.peers.is_empty() {
            words.push(format!("--peer-ready-after {}", self.peer_ready_after));
        }
        words.push(format!("--rounds {} --seconds {} --write", self.rounds, self.seconds));
        words.join(" ")
    }

    fn parts(&self) -> &[Part] {
        if self.only.is_empty() { Part::value_variants() } else { &self.only }
    }

    /// Whether one of the parts pins processes.
    fn pins(&self) -> bool {
        self.parts().iter().any(|part| part.pins())
    }
}

/// Measures, shows the result, and writes or compares it on request.
pub(crate) fn run(options: &Options) -> Result<()> {
    let baseline = options.check.as_deref().map(Numbers::read).transpose()?;
    setup::agent_and_go("bench")?;
    if options.pins() {
        // Fail now if the machine has only one processor, and not after the first parts.
        Cores::choose()?;
    }
    if let Some(other) = &options.against {
        return compare(options, other, Cores::choose()?);
    }
    let (versions, commit) = (versions()?, commit());
    // Published results must name the commit.
    let commit = if options.write { commit? } else { commit.unwrap_or_else(|_| "unknown".to_owned()) };
    let mut sections = Vec::new();
    let mut numbers = Numbers::default();
    for part in options.parts() {
        let (begin, own) = (Times::now()?, own_time()?);
        let section = measure(*part, options)?;
        let (others, steal) = Times::now()?.shares_since(begin, own_time()?.saturating_sub(own));
        for (_, block) in &section.blocks {
            println!("{}\n", block.trim());
        }
        if *part != Part::Programs && others + steal > IDLE {
            let percent = (others + steal) * 100.0;
            say(&format!(
                "others took {percent:.0} % of this machine meanwhile: run it again when it is idle"
            ));
        }
        let setting = Setting {
            command: options.command(),
            date: output(Command::new("date").args(["--utc", "+%Y-%m-%d"]))?,
            commit: commit.clone(),
            machine: machine::description()?,
            versions: versions.clone(),
            others,
            steal,
        };
        numbers.add(&section, &setting);
        sections.push((section, setting));
    }
    if let Some(file) = &options.json {
        numbers.write(file)?;
    }
    if options.write {
        section::write(&sections)?;
    }
    baseline.map_or(Ok(()), |baseline| numbers.check_against(&baseline))
}

fn measure(part: Part, options: &Options) -> Result<Section> {
    match part {
        Part::Programs => programs::measure(),
        Part::Steps => steps::measure(options.rounds),
        Part::Planning => {
            let executable = Program::Kitex.build(Flavour::Default)?;
            Ok(planning::measure(&executable, Cores::choose()?.others, options.rounds)?.section())
        }
        Part::Matrix => {
            let plan = matrix::Plan {
                rounds: options.rounds,
                seconds: options.seconds,
                peers: &options.peers,
                peers_ready_after: Duration::from_secs(options.peer_ready_after.into()),
            };
            matrix::measure(plan, Cores::choose()?)
        }
        Part::Sweeps => {
            let rounds = options.rounds.div_ceil(2);
            sweeps::measure(Cores::choose()?, options.seconds, rounds, &options.sweep)
        }
        Part::Stalls => stalls::measure(Cores::choose()?, options.rounds),
        Part::Pipeline => pipeline::measure(Cores::choose()?),
        Part::Scrapes => Ok(scrapes::measure(Cores::choose()?.others, options.rounds)?.section()),
    }
}

/// Returns the processor time of this process and of all its ended descendants.
fn own_time() -> Result<Duration> {
    Ok(cpu_time(std::process::id())? + ended_children()?)
}

/// Compares this agent with another: the server's cost of a call, and the run time of each agent's programs. Prints
/// medians over all rounds.
fn compare(options: &Options, other: &PathBuf, cores: Cores) -> Result<()> {
    let own = agent::executable()?;
    let mut stage = Stage::start(Protocol::TtHeader, cores, &[], Duration::ZERO)?;
    let load = Load { seconds: options.seconds.into(), concurrency: CONCURRENCY };
    let (mut costs, mut programs) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..options.rounds as usize {
        // Alternates the order between rounds.
        for agent in [round % 2, 1 - round % 2] {
            let executable = [&own, other][agent];
            costs[agent].push(stage.measure_agent(Mode::Plain, executable, load)?.server_us);
            programs[agent].push(stage.measure_programs(executable, load)?);
        }
    }
    println!("{} rounds in turn, this agent and {}:", options.rounds, other.display());
    for (what, unit, values) in [("CPU time of the server", "µs", costs), ("programs", "ns", programs)] {
        let [own, others] = values.map(|values| Spread::of(values).median);
        println!("{what} per call: {own:.2} {unit} and {others:.2} {unit}, {:.3} ×", own / others);
    }
    Ok(())
}

/// Returns the current commit, and whether the code differs from it. Ignores documents: the bench writes some.
fn commit() -> Result<String> {
    let git = |args: &[&str]| output(Command::new("git").args(args).current_dir(root()));
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    let status = ["status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)docs"];
    Ok(if git(&status)?.is_empty() { commit } else { format!("{commit} and changes to it") })
}

/// Returns the releases of what is measured.
fn versions() -> Result<String> {
    let of = |target: &str, module: &str| -> Result<String> {
        let file = root().join(format!("tests/targets/{target}/go.mod"));
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let version = text.lines().find_map(|line| line.trim().strip_prefix(module)?.strip_prefix(' '));
        Ok(version.unwrap_or("of unknown release").to_owned())
    };
    let go = output(Command::new(monitor_tests::targets::go()?).args(["env", "GOVERSION"]))?;
    Ok(format!(
        "{}, Kitex {}, monitor-prometheus {}, gRPC-Go {}, go-grpc-prometheus {}, {go}",
        output(Command::new(agent::executable()?).arg("--version"))?,
        of("kitex", "github.com/cloudwego/kitex")?,
        of("kitex", "github.com/kitex-contrib/monitor-prometheus")?,
        of("echo", "google.golang.org/grpc")?,
        of("echo", "github.com/grpc-ecosystem/go-grpc-prometheus")?,
    ))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(args: &[&str]) -> Options {
        Line::parse_from([&["bench"][..], args].concat()).options
    }

    fn command(args: &[&str]) -> String {
        options(args).command()
    }

    #[test]
    fn counts_want_no_second_processor() {
        assert!(!options(&["--only", "programs"]).pins());
        assert!(options(&["--only", "programs", "--only", "stalls"]).pins());
        assert!(options(&[]).pins());
    }

    #[test]
    fn the_command_that_is_written_down_repeats_it() {
        assert_eq!(command(&["--write"]), "cargo xtask bench --rounds 8 --seconds 3 --write");
        let args =
            ["--only", "matrix", "--peer", "a=b --pid {pid}", "--peer", "c=d", "--rounds", "2", "--write"];
        assert_eq!(
            command(&args),
            "cargo xtask bench --only matrix --peer 'a=b --pid {pid}' --peer 'c=d' --peer-ready-after 10 \
             --rounds 2 --seconds 3 --write"
        );
    }
}
