//! The door to the kernel: loads the programs, attaches them to sites, reads their maps.
//!
//! The only module that uses aya or bpf(2). One loaded object serves one framework in one target. The recipe is part
//! of its read-only data, so the verifier removes what the target doesn't need. Its maps are its own, so a target can
//! exhaust only its own limits, and calls of two targets can't mix.

mod calibrate;
mod clock;
mod error;
mod features;
mod filters;
mod in_flight;
mod kernel_types;
mod load;
mod mapped;
mod maps;
mod multi;
mod object;
mod own_code;
mod page_tables;
mod perf;
mod program_log;
mod sampling;
#[cfg(test)]
mod stack;
mod stats;
mod syscall;

pub use calibrate::HitCost;
pub use clock::monotonic;
pub use error::BpfError;
pub use features::{KernelFeature, is_kernel_before, kernel_features, kernel_release};
pub use filters::return_probes_pass_filters;
pub use in_flight::{InFlight, Underway};
pub use load::{Limits, Programs};
pub(crate) use maps::decode;
pub use maps::{Maps, More};
pub use object::ProbeLinks;
pub use page_tables::MemoryReads;
pub use program_log::ProgramLog;
pub use sampling::{Asked, Sampling};
pub use stats::{Measuring, RunTimes};
