//! One executable: from its bytes to values.
//!
//! An [`Image`] answers what a plan asks about a file: which Go release built it, where a function starts and what its
//! first instructions are, how a Go type is laid out. It knows nothing of processes, probes or RPC frameworks. It reads
//! only the parts that a question needs, with `pread`-like calls through a [`Source`]: a mapping of another user's file
//! would end the agent with SIGBUS when the file shrinks.
//!
//! The input is hostile: the agent runs as root and parses other users' binaries. Every length and count is checked
//! against the file or a cap before memory is allocated, arithmetic is checked, and tables are walked forward only. So
//! the size of the file bounds time and memory.
//!
//! All addresses are link-time virtual addresses. In a position-independent executable, the address in a process is the
//! link-time address plus a bias: the start of the lowest mapping of the file minus [`Image::link_base`].

mod buildinfo;
mod bytes;
mod code;
mod contents;
mod dwarf;
mod elf;
mod error;
mod go;
mod native;
mod parameters;
mod places;
mod source;
mod source_names;
mod symbols;
mod tested;
#[cfg(test)]
pub(crate) mod testing;
mod types;
mod version;

pub use buildinfo::{BuildInfo, Module};
pub use code::{
    CodeError, CostClass, Parts, SiteChoice, SiteKind, first_instruction, go_entry_site, go_return_sites,
    return_sites,
};
pub use dwarf::StructLayout;
#[cfg(test)]
pub(crate) use dwarf::tests::files as files_with_dwarf;
pub use elf::{Image, Segment};
pub use error::ImageError;
pub(crate) use go::A_WRAPPER;
pub use go::{Dissolved, Function, GoImage, Itab, StandIn};
pub use native::{NativeFunction, is_native_part, is_native_thunk, native_entry_site, native_original};
pub use parameters::Parameters;
pub use places::RuntimePlaces;
#[cfg(test)]
pub(crate) use places::tests::good_file as file_with_variables;
pub use source::Source;
pub use source_names::Demangler;
pub use tested::{REGISTER_WORDS, TestedCall, WantedError, tested_call};
pub use types::{Field, Kind, Type};
pub use version::GoVersion;
