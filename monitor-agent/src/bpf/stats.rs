//! The kernel's own measure of how long programs run.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use aya::sys::{Stats, enable_stats};

use super::{BpfError, syscall::program_info};

/// While this is held the kernel measures how long every eBPF program on the machine runs, which costs each run some
/// 58 ns: it should be held for moments only.
pub struct Measuring {
    /// Closing it ends the measuring.
    _held: OwnedFd,
}

impl Measuring {
    /// Begins to measure. Needs `CAP_SYS_ADMIN`.
    pub fn begin() -> Result<Self, BpfError> {
        enable_stats(Stats::RunTime)
            .map(|held| Self { _held: held })
            .map_err(|error| BpfError::from_io("measure the run time of programs", error.io_error))
    }
}

/// How often a program has run while the kernel measured it, and for how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunTimes {
    /// Runs, since the program was loaded.
    pub runs: u64,
    /// Their time together, a part of what the measuring takes included.
    pub time: Duration,
}

impl RunTimes {
    /// Of a program; zeros if the kernel does not tell.
    pub(super) fn of(program: BorrowedFd<'_>) -> Self {
        program_info(program).map_or_else(
            |_| Self::default(),
            |info| Self { runs: info.run_cnt, time: Duration::from_nanos(info.run_time_ns) },
        )
    }

    /// What has come since an earlier reading.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self { runs: self.runs.saturating_sub(earlier.runs), time: self.time.saturating_sub(earlier.time) }
    }

    /// Time of one run; `None` if there was none.
    #[must_use]
    pub fn mean(self) -> Option<Duration> {
        let runs = u32::try_from(self.runs).ok().filter(|runs| *runs > 0)?;
        Some(self.time / runs)
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { runs: self.runs + other.runs, time: self.time + other.time }
    }
}
