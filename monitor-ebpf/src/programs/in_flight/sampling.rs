//! Words shared by the agent and the programs: which starts are seen, and where calls may be.

use monitor_ebpf::sampling as words;

use super::super::maps::SAMPLING;

/// Returns one of the words of [`sampling`](words).
#[inline(always)]
pub(super) fn sampling(index: u32) -> u64 {
    // SAFETY: the map's values are `u64`.
    SAMPLING.get_ptr(index).map_or(0, |word| unsafe { word.read_volatile() })
}

/// Returns whether starts have been watched in windows, so that an unseen start is nothing unusual.
#[inline(always)]
pub(crate) fn is_sampled() -> bool {
    sampling(words::MODE) != words::FULL
}

/// Returns whether the program looks for the recorded start of a call that finishes at this time.
#[inline(always)]
pub(crate) fn is_asked(now: u64) -> bool {
    now & sampling(words::ASKED) == 0
}

/// Returns whether a call ever did not fit into its near bucket. Saves most look-ups elsewhere.
#[inline(always)]
pub(super) fn has_spilled() -> bool {
    sampling(words::SPILLED) != 0
}

/// Makes look-ups search outside the near buckets, too. Must be called before a call is put there. The return value has
/// no meaning.
#[inline(never)]
pub(super) fn note_spill() -> u32 {
    note(words::SPILLED);
    0
}

/// Sets one of the words of [`sampling`](words) unless it is set.
#[inline(always)]
pub(super) fn note(index: u32) {
    if sampling(index) == 0
        && let Some(word) = SAMPLING.get_ptr_mut(index)
    {
        // SAFETY: the map's values are `u64`.
        unsafe { word.write_volatile(1) }
    }
}
