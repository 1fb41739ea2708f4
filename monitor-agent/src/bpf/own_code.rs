//! File offsets of the agent's own functions: the agent measures and tries probes on itself.

use std::{ffi::c_void, io};

use crate::target::Target;

/// Returns the file offset of a function's first instruction.
pub(super) fn file_offset(function: *const c_void) -> io::Result<u64> {
    let address = function.expose_provenance() as u64;
    let own = Target::open(std::process::id()).map_err(io::Error::other)?;
    let mappings = own.mappings().map_err(io::Error::other)?;
    let holds = mappings.iter().find(|mapping| (mapping.start..mapping.end).contains(&address));
    let offset = holds.map(|mapping| address - mapping.start + mapping.offset);
    offset.ok_or_else(|| io::Error::other("its own code is not mapped from its file"))
}
