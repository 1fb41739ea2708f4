//! The programs' own diagnostics.

use std::os::fd::BorrowedFd;

use aya_log::EbpfLogger;
use log::Log;

use super::syscall;

/// Forwards the programs' own diagnostics to the log.
pub struct ProgramLog(EbpfLogger<&'static dyn Log>);

impl ProgramLog {
    /// Creates the forwarder for a program and those loaded with it; `None` if there is nothing to forward.
    pub(super) fn of(program: BorrowedFd<'_>) -> Option<Self> {
        let info = syscall::program_info(program).ok()?;
        EbpfLogger::init_from_id(info.id).ok().map(Self)
    }

    /// Forwards what was logged since the last call.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}
