//! What the end-to-end tests, `cargo xtask demo` and `cargo xtask bench` share: real Kitex processes to watch, the
//! agent as a process, and the comparison of what both counted.
//!
//! - [`targets`] builds the Go programs under `tests/targets`; [`process`] runs one and talks to it.
//! - [`agent`] runs the agent and scrapes it; [`scrape`] reads the text strictly.
//! - [`http`] asks for pages, each over a connection of its own.
//! - [`tally`] compares the agent's counters with the target's own, label set by label set.

pub mod agent;
pub mod http;
pub mod process;
pub mod scrape;
pub mod tally;
pub mod targets;

mod capture;
mod paths;
