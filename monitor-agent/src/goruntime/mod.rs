//! The statistics of a process's Go runtime, read from the process's memory.
//!
//! The runtime keeps its statistics in global variables. A [`Reader`] finds them once, from the symbol table, the DWARF
//! or the instructions of functions that use them. It reads them at each scrape, without stopping or changing the
//! process. The offsets of fields differ by Go release. [`Layout`] has a table of them, made from real tool chains by
//! `cargo xtask gotable`. If a program has DWARF, it must agree with the table of its release, or it takes the
//! place of the table of a neighbouring release ([`Known`]). The runtime's structures
//! are not in the Go type metadata, so a stripped program has no other source, and a patched tool chain may differ from
//! the table. So each reading is checked against the memory itself, and no value is served unless the checks pass:
//! pointers must lead back, sums must be equal, lists must end.
//!
//! Nothing here takes the runtime's locks, so the data may change while it is read. It is then read again, a few times,
//! and left out if it does not come to rest. Values have the names of Go's `runtime/metrics`, and are computed as there
//! (runtime/metrics.go @ go1.18 to go1.27).

mod code;
mod globals;
mod heap;
mod histogram;
mod known;
mod layout;
mod memory;
mod pacing;
mod read;
mod values;

pub use globals::{Globals, Sources};
pub use known::{Evidence, Known, Unknown};
pub use layout::{Arch, Layout};
pub use memory::Memory;
pub use read::{Detail, Reader};
pub use values::{Fault, GcCycles, Histogram, Readings, Value};
