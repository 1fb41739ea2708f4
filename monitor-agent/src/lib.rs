//! `monitor-agent`: an out-of-process RPC monitor on eBPF.
//!
//! Dependencies point one way. The [`cli`] calls the [`agent`], which brings together the [`target`] (a process), its
//! [`image`] (an executable), the [`frameworks`] it may contain, the user's [`specs`], the [`plan`] that follows from
//! them, the programs that [`bpf`] attaches, the [`pipeline`] of their records, what [`goruntime`] reads from the
//! target's memory, the [`metrics`] made of it all, and their [`export`] or, for single calls, their [`events`]. See
//! `docs/ARCHITECTURE.md`.
//!
//! A program that wants the calls themselves implements [`Tracer`] and [watches](watch) processes, as
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
