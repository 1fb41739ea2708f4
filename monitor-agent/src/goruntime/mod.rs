//! What the Go runtime of a process says about itself, read from the process's memory.
//!
//! The runtime keeps its statistics in global variables. A [`Reader`] finds them once, by the symbol table, the DWARF or
//! the instructions of functions that use them, and reads them at each scrape, without stopping or changing the process.
//! Where the fields lie in a variable differs by Go release: [`Layout`] has a table, made from real tool chains by
//! `cargo xtask gotable`, and where a program has DWARF it must say the same ([`Known`]). The runtime's structures are
//! not in the Go type metadata, so a table is all there is in a stripped program, and a patched tool chain may differ
//! from it. So no value is served unless the memory itself agrees with the table, each time: pointers that must lead
//! back, sums that must be equal, lists that must end.
//!
//! Nothing here takes the runtime's locks, so what is read may be moving: it is then read again, a few times, and left
//! out when it does not come to rest. Values have the names of Go's `runtime/metrics`, and are computed as there
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
