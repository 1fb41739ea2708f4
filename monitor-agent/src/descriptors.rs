//! How many files the agent may have open.

use std::io;

/// Raises the soft limit to the hard one: a target takes some 40 descriptors, and the usual soft limit of 1,024 is there for
/// programs that use `select(2)`. Where that is not possible, what runs out of them says so.
pub(crate) fn take_all() {
    let Ok(mut limit) = limits() else { return };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: reads the limit only.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
}

/// How many it may have.
pub(crate) fn limit() -> io::Result<usize> {
    limits().map(|limit| usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

fn limits() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes to the limit only.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit)
}
