//! What the end-to-end tests, `cargo xtask demo` and `cargo xtask bench` share: real Kitex processes to watch, the
//! agent as a process, and the comparison of what both counted.
//!
//! - [`targets`] builds the Go programs under `tests/targets`; [`process`] runs one and talks to it.
//! - [`native`] builds the programs that are not written in Go.
//! - [`agent`] runs the agent and scrapes it; [`scrape`] parses the text strictly.
//! - [`http`] requests pages, each over a new connection.
//! - [`tally`] compares the agent's counters with the target's own by label set; [`durations`] compares latencies;
//!   [`chain`] does both for a client, a relay and a server.
//! - [`pace`] estimates by how many calls two numbers of a scrape may differ under load.
//! - [`events`] runs `monitor-agent events` and compares its lines with a target's log of its calls.
//! - [`refusals`] checks how the agent refuses what can't be watched.
//! - [`seccomp`] runs commands under filters of system calls.
//! - [`specs`] writes the examples of `docs/specs.md` to files.
//! - [`strange`] watches a target that passes the probes other things than Kitex does.
//! - [`turns`] starts and ends operations one by one, to test policies and keys.
//! - [`side_by_side()`] runs things in parallel that mostly wait.
//! - [`usage`] measures the resources that a command uses.
//! - [`collector`] runs an OpenTelemetry Collector, [`prometheus`] a Prometheus.
//! - [`matrix`] tests the releases of Kitex and Go and the ways to build that `tests/matrix.json` lists.
//! - [`machine`] boots other kernels in virtual machines.
//! - [`kernel`] lists the BPF objects in the kernel; [`text`] checks a target's code for probes; [`tracefs`] places
//!   another tool's probes.

pub mod agent;
pub mod chain;
pub mod collector;
pub mod durations;
pub mod events;
pub mod grpc;
pub mod http;
pub mod kernel;
pub mod machine;
pub mod matrix;
pub mod native;
pub mod pace;
pub mod process;
pub mod prometheus;
pub mod refusals;
pub mod scrape;
pub mod seccomp;
pub mod specs;
pub mod strange;
pub mod tally;
pub mod targets;
pub mod text;
pub mod tracefs;
pub mod turns;
pub mod usage;

mod capture;
mod cargo;
mod paths;
mod side_by_side;
mod whose_turn;

pub use cargo::cargo;
pub use side_by_side::side_by_side;
