//! How the process's memory is had.

/// Pieces of at least so many bytes are mappings of their own, and so much may lie unused at the end of a heap: what both
/// are at first.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const THRESHOLD: libc::c_int = 128 << 10;

/// Has what planning and loading take given back to the system when they are done with it.
///
/// glibc does so at first, but keeps all the more, up to 64 MiB for each heap, the larger the pieces that have been freed
/// (`mallopt(3)`): an agent with one target then stays at 48 MiB in place of 25. Numbers that are set stay as they are.
pub(crate) fn keep_little() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for parameter in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: sets a number of the allocator; no other thread runs yet. What it does not want it leaves as it is.
        unsafe { libc::mallopt(parameter, THRESHOLD) };
    }
}

/// Gives back all that is free. What was had piece by piece and lies between pieces that are still used glibc keeps
/// otherwise: with ten thousand label sets a scrape leaves 16 MiB behind. Takes a millisecond or so.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: touches only what is free, with the allocator's own locks held.
    unsafe {
        libc::malloc_trim(0)
    };
}
