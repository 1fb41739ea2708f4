//! Settings of the process's memory allocator.

/// The initial value of both glibc thresholds, in bytes: the size from which an allocation is a mapping of its own, and
/// the free memory that may remain at the end of a heap.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const THRESHOLD: libc::c_int = 128 << 10;

/// Makes glibc return memory to the system after planning and loading.
///
/// By default it adapts its thresholds to the largest freed allocations, and then keeps up to 64 MiB for each heap
/// (`mallopt(3)`): an agent with one target stays at 48 MiB instead of 25. Thresholds that are set explicitly do not
/// adapt.
pub(crate) fn keep_little() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for parameter in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: sets a parameter of the allocator; no other thread runs yet. A value that it rejects changes nothing.
        unsafe { libc::mallopt(parameter, THRESHOLD) };
    }
}

/// Returns all free memory to the system. glibc otherwise keeps small free pieces between used ones: with ten thousand
/// label sets a scrape leaves 16 MiB behind. Takes about a millisecond.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: touches only free memory, with the allocator's own locks held.
    unsafe {
        libc::malloc_trim(0)
    };
}
