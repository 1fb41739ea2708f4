//! Calls that have ended and may end once more at the same moment.

use monitor_ebpf::ENDED_KEYS;

use super::{
    super::{
        asm::{compare_exchange, exchange},
        maps::ENDED,
    },
    key::{Key, SPREAD},
};

/// Where the key of a call is kept once it has ended.
#[inline(always)]
fn ended_at(number: u64) -> u32 {
    (number.wrapping_mul(SPREAD) >> (u64::BITS - ENDED_KEYS.trailing_zeros())) as u32
}

/// A call starts: one of the same key that has ended is another.
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

/// A call ends: false if it has ended just now. Several threads may end one at the same moment, before the target's own memory
/// says that it has; the first is told here. Others may have taken the place since, so that the call counts once more, if they
/// end within that moment.
#[inline(always)]
pub(crate) fn ends_once(key: Key) -> bool {
    let Some(ended) = ENDED.get_ptr_mut(ended_at(key.0)) else { return true };
    // SAFETY: the map's values are `u64`.
    unsafe { exchange(ended, key.0) != key.0 }
}
