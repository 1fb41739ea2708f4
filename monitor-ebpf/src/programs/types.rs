//! Types that the recipe does not expect. None of this runs for calls whose types are as planned.

use monitor_ebpf::{ALIASES as TYPE_ALIASES, Counter};

use super::{
    asm::increment,
    maps::{ALIASES, UNEXPECTED, count},
    memory::is_user_address,
};

/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;

/// Returns whether the type word is the expected one, or the agent has proven that it stands for that one.
#[inline(always)]
pub(crate) fn is(word: u64, expected: u64) -> bool {
    word == expected || (word != 0 && resolve(word) == expected)
}

/// Returns what a type word stands for; 0 if nothing is known of it.
#[inline(never)]
pub(crate) fn resolve(word: u64) -> u64 {
    for index in 0..TYPE_ALIASES {
        let Some(pair) = ALIASES.get_ptr(index) else { return 0 };
        // SAFETY: the map's values are two words.
        let [alias, meaning] = unsafe { pair.read_volatile() };
        if alias == word {
            return meaning;
        }
        if alias == 0 {
            return 0;
        }
    }
    0
}

/// Reports a type word to the agent, which finds out what it is. The return value has no meaning.
#[inline(never)]
pub(crate) fn report(word: u64) -> u32 {
    if !is_user_address(word) {
        return 0;
    }
    if UNEXPECTED.get_ptr(word).is_none() {
        let _ = UNEXPECTED.insert(word, 0, NO_EXIST);
    }
    match UNEXPECTED.get_ptr_mut(word) {
        // SAFETY: the map's values are `u64`.
        Some(times) => unsafe { increment(times) },
        None => count(Counter::UnexpectedNotKept),
    }
    0
}
