//! What the programs say of themselves.

use std::os::fd::BorrowedFd;

use aya_log::EbpfLogger;
use log::Log;

use super::syscall;

/// Forwards the programs' own diagnostics to the log.
pub struct ProgramLog(EbpfLogger<&'static dyn Log>);

impl ProgramLog {
    /// Of a program, and of those loaded with it; `None` when there is nothing to forward.
    pub(super) fn of(program: BorrowedFd<'_>) -> Option<Self> {
        let info = syscall::program_info(program).ok()?;
        EbpfLogger::init_from_id(info.id).ok().map(Self)
    }

    /// Forwards what has come since the last time.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}
