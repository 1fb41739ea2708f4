//! `monitor-agent`: an out-of-process RPC monitor on eBPF.
//!
//! Dependencies point one way: [`cli`] asks the [`agent`], which brings together the [`target`] (a process),
//! its [`image`] (an executable), the [`frameworks`] it may contain, the [`specs`] of its user, the [`plan`] that follows from both, the
//! programs that [`bpf`] attaches, the [`pipeline`] of their records, what [`goruntime`] reads from its memory, the
//! [`metrics`] made of those, and their [`export`]; or single calls and their [`events`]. `docs/ARCHITECTURE.md` tells
//! the whole story.
//!
//! A program that wants the calls themselves implements [`Tracer`] and [watches](watch) processes:
//! `examples/slow_calls.rs` does.

pub mod agent;
pub mod bpf;
pub mod cli;
mod descriptors;
pub mod events;
pub mod export;
pub mod failure;
pub mod frameworks;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod goruntime;
pub mod image;
mod memory;
pub mod metrics;
pub mod pipeline;
pub mod plan;
pub mod specs;
pub mod target;
mod text;
mod threads;
mod time;

pub use agent::{Trace, TraceConfig, watch};
pub use pipeline::{Details, EventKind, FinishedCall, Labels, LossReason, Lost, StartedCall, Tracer};
