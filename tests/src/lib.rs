//! What the end-to-end tests, `cargo xtask demo` and `cargo xtask bench` share: real Kitex processes to watch, the
//! agent as a process, and the comparison of what both counted.
//!
//! - [`targets`] builds the Go programs under `tests/targets`; [`process`] runs one and talks to it.
//! - [`native`] builds those that are not Go's.
//! - [`agent`] runs the agent and scrapes it; [`scrape`] reads the text strictly.
//! - [`http`] asks for pages, each over a connection of its own.
//! - [`tally`] compares the agent's counters with the target's own, label set by label set; [`durations`] its
//!   latencies; [`chain`] does both for a client, a relay and a server.
//! - [`pace`] says how many calls may be between two numbers of a scrape under load.
//! - [`events`] runs `monitor-agent events` and compares its lines with each call that a target has logged.
//! - [`refusals`] looks at how the agent refuses what can't be watched.
//! - [`seccomp`] puts commands under filters of system calls.
//! - [`specs`] makes files of the examples in `docs/specs.md`.
//! - [`strange`] watches a target that puts other things before the probes than Kitex does.
//! - [`turns`] has operations begin and end one by one, to see what policies and keys make of that.
//! - [`side_by_side()`] does at once what only takes time.
//! - [`usage`] tells what a command takes.
//! - [`collector`] runs an OpenTelemetry Collector, [`prometheus`] a Prometheus.
//! - [`matrix`] tries releases of Kitex and Go and ways to build, as `tests/matrix.json` lists them.
//! - [`machine`] boots other kernels in virtual machines.
//! - [`kernel`] tells what is loaded in the kernel, [`text`] whether a target's code has probes in it; [`tracefs`] puts
//!   others there.

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
