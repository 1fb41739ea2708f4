//! Calls that have finished and may finish again at the same moment.

use monitor_ebpf::ENDED_KEYS;

use super::{
    super::{
        asm::{compare_exchange, exchange},
        maps::ENDED,
    },
    key::{Key, SPREAD},
};

/// Returns the index at which the key of a finished call is kept.
#[inline(always)]
fn ended_at(number: u64) -> u32 {
    (number.wrapping_mul(SPREAD) >> (u64::BITS - ENDED_KEYS.trailing_zeros())) as u32
}

/// Forgets a finished call with the same key as one that starts: they are different calls.
#[inline(always)]
pub(crate) fn begin_once(key: Key) {
    let Some(ended) = ENDED.get_ptr_mut(ended_at(key.0)) else { return };
    // SAFETY: the map's values are `u64`.
    unsafe {
        if ended.read_volatile() == key.0 {
            compare_exchange(ended, key.0, 0);
        }
    }
}

/// Marks a call as finished. Returns false if it has finished just now. Several threads may finish a call at the same
/// moment, before the target's own memory says that it has ended; only the first gets true here. If another call has
/// taken the place since, within that moment, the call counts once more.
#[inline(always)]
pub(crate) fn ends_once(key: Key) -> bool {
    let Some(ended) = ENDED.get_ptr_mut(ended_at(key.0)) else { return true };
    // SAFETY: the map's values are `u64`.
    unsafe { exchange(ended, key.0) != key.0 }
}
