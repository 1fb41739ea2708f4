//! The project's tasks, run as `cargo xtask TASK`.

mod bench;
mod demo;
mod ebpf;
mod fuzz;
mod gotable;
mod lint;
mod matrix;
mod process;
mod setup;
mod soak;
mod test;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// The project's tasks. Each installs what it lacks, when it runs as root on Debian.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Measure what watching costs a server (needs root, two processors and an idle machine)
    Bench(bench::Options),
    /// Watch a real Kitex server and client and compare with what they count themselves (needs root)
    Demo(demo::Options),
    /// Build the eBPF object that the agent carries
    Ebpf(Ebpf),
    /// Fuzz the parsers of what others have written
    Fuzz(fuzz::Options),
    /// Write the table of what each Go release's runtime keeps where, from real tool chains that Go fetches
    Gotable {
        /// Compare with the one of the repository instead, and what the agent reads with what programs say (needs root)
        #[arg(long)]
        check: bool,
    },
    /// Check what needs no run: formatting, clippy, documentation, the Go programs of the tests
    Lint,
    /// Try all releases of Kitex and Go and all ways to build, and write docs/compatibility.md (needs root and an hour)
    Matrix {
        /// Try only those whose name (such as v0.16.3-go1.26.8-pie) holds one of these, and write nothing; `kitex` or `grpc`
        /// alone is all of that framework, and writes its part
        filters: Vec<String>,
    },
    /// Load targets for long while agents and targets come and go, and see every count stay exact (needs root)
    Soak(soak::Options),
    /// Run all tests: unit, documentation, and end to end with real probes (needs root)
    Test {
        /// Run only tests whose name holds one of these
        filters: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct Ebpf {
    /// Build it apart and compare it with the one of the repository; where another tool chain makes another one, run the
    /// end-to-end tests with that
    #[arg(long)]
    check: bool,
    /// With --check: of these tests run only those whose name holds one of these
    #[arg(requires = "check")]
    filters: Vec<String>,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Bench(options) => bench::run(&options),
        Task::Demo(options) => demo::run(&options),
        Task::Ebpf(Ebpf { check: true, filters, .. }) => ebpf::check(&filters),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Gotable { check: true } => gotable::check(),
        Task::Gotable { check: false } => gotable::build(),
        Task::Lint => lint::all(),
        Task::Matrix { filters } => matrix::run(&filters),
        Task::Ebpf(_) => ebpf::build(),
        Task::Soak(options) => soak::run(&options),
        Task::Test { filters } => test::all(&filters),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
