//! What the agent and the programs tell each other about which starts are seen, and where calls may be.

use monitor_ebpf::sampling as words;

use super::super::maps::SAMPLING;

/// One of the words of [`sampling`](words).
#[inline(always)]
pub(super) fn sampling(index: u32) -> u64 {
    // SAFETY: the map's values are `u64`.
    SAMPLING.get_ptr(index).map_or(0, |word| unsafe { word.read_volatile() })
}

/// Have starts been watched in windows, so that one that was not seen is nothing unusual?
#[inline(always)]
pub(crate) fn is_sampled() -> bool {
    sampling(words::MODE) != words::FULL
}

/// Is a call that finishes at this time asked for the start that it has recorded itself?
#[inline(always)]
pub(crate) fn is_asked(now: u64) -> bool {
    now & sampling(words::ASKED) == 0
}

/// Was there ever a call that did not fit into its near bucket? Saves most look-ups elsewhere.
#[inline(always)]
pub(super) fn has_spilled() -> bool {
    sampling(words::SPILLED) != 0
}

/// From now on calls are looked for elsewhere than in their near buckets, too. To be called before one is put there. Gives
/// nothing of use.
#[inline(never)]
pub(super) fn note_spill() -> u32 {
    note(words::SPILLED);
    0
}

/// Sets one of the words of [`sampling`](words), unless it is.
#[inline(always)]
pub(super) fn note(index: u32) {
    if sampling(index) == 0
        && let Some(word) = SAMPLING.get_ptr_mut(index)
    {
        // SAFETY: the map's values are `u64`.
        unsafe { word.write_volatile(1) }
    }
}
