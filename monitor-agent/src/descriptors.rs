//! The limit on open files, and what to do when it is reached.

use std::{fs, io, path::Path};

/// Raises the soft limit to the hard one. A target takes some 40 descriptors, and the usual soft limit of 1,024 exists
/// for programs that use `select(2)`. If this fails, whatever later runs out of descriptors reports it.
pub(crate) fn take_all() {
    let Ok(mut limit) = limits() else { return };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: reads the limit only.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
}

/// Returns the soft limit.
pub(crate) fn limit() -> io::Result<usize> {
    limits().map(|limit| usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

/// Returns the number of entries in a descriptor directory of `/proc`. Since Linux 6.2 it is the directory's size.
/// Before, the entries are counted; for the agent's own directory that includes the descriptor used for counting.
pub(crate) fn count(directory: &Path) -> io::Result<u64> {
    let size = fs::metadata(directory)?.len();
    if size > 0 {
        return Ok(size);
    }
    Ok(fs::read_dir(directory)?.count() as u64)
}

/// Whether a limit on open files was reached.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Returns what a user can do about an error of the operating system, if its text does not say so.
pub(crate) fn advice_on_system(error: &io::Error) -> &'static str {
    if is_out_of_descriptors(error) {
        return "; raise the agent's limit on open files (`ulimit -n`, LimitNOFILE= of systemd)";
    }
    ""
}

fn limits() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes to the limit only.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit)
}
