//! The kernel's measurement of how long programs run.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use aya::sys::{Stats, enable_stats};

use super::{BpfError, syscall::program_info};

/// While this is held, the kernel measures the run time of every eBPF program on the machine. This costs each run
/// some 58 ns: hold it for moments only.
pub struct Measuring {
    /// Closing it stops the measurement.
    _held: OwnedFd,
}

impl Measuring {
    /// Starts measuring. Needs `CAP_SYS_ADMIN`.
    pub fn begin() -> Result<Self, BpfError> {
        enable_stats(Stats::RunTime)
            .map(|held| Self { _held: held })
            .map_err(|error| BpfError::from_io("measure the run time of programs", error.io_error))
    }
}

/// How often, and for how long, a program has run while the kernel measured it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunTimes {
    /// Runs since the program was loaded.
    pub runs: u64,
    /// Total time of the runs, including part of the measurement's own cost.
    pub time: Duration,
}

impl RunTimes {
    /// Reads the run times of a program; zeros if the kernel does not report them.
    pub(super) fn of(program: BorrowedFd<'_>) -> Self {
        program_info(program).map_or_else(
            |_| Self::default(),
            |info| Self { runs: info.run_cnt, time: Duration::from_nanos(info.run_time_ns) },
        )
    }

    /// Returns the difference to an earlier reading.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self { runs: self.runs.saturating_sub(earlier.runs), time: self.time.saturating_sub(earlier.time) }
    }

    /// Returns the mean time of a run; `None` if there was no run.
    #[must_use]
    pub fn mean(self) -> Option<Duration> {
        let runs = u32::try_from(self.runs).ok().filter(|runs| *runs > 0)?;
        Some(self.time / runs)
    }

    /// Returns the sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { runs: self.runs + other.runs, time: self.time + other.time }
    }
}
