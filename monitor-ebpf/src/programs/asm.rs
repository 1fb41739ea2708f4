//! Operations that need assembly.

use core::arch::asm;

/// Adds one to the counter at `place`.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn increment(place: *mut u64) {
    // SAFETY: the caller guarantees that the place is valid.
    unsafe { add(place, 1) }
}

/// Adds `value` to the counter at `place`. The BPF target has no `fetch_add` in `core`.
///
/// # Safety
/// `place` must point to a map value of at least eight bytes, aligned to eight.
#[inline(always)]
pub(crate) unsafe fn add(place: *mut u64, value: u64) {
    // SAFETY: one atomic instruction (Linux 3.18) on memory that the caller guarantees to be valid.
    unsafe {
        asm!("lock *(u64 *)({place} + 0) += {value}", place = in(reg) place, value = in(reg) value,
            options(nostack));
    }
}

/// Adds one to the number at `place` and returns the previous value.
///
/// # Safety
/// As for [`increment`].
#[inline(always)]
pub(crate) unsafe fn fetch_increment(place: *mut u64) -> u64 {
    let mut value = 1u64;
    // SAFETY: one atomic instruction (Linux 5.12) on memory that the caller guarantees to be valid.
    unsafe {
        asm!("{value} = atomic_fetch_add((u64 *)({place} + 0), {value})", place = in(reg) place,
            value = inout(reg) value, options(nostack));
    }
    value
}

/// Makes the compiler compute the value here. It would otherwise load all terms of a sum before it adds them, and the
/// loaded values take stack.
#[inline(always)]
pub(crate) fn settle(mut value: u64) -> u64 {
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {0} */", inout(reg) value, options(nostack, nomem, preserves_flags)) }
    value
}

/// Returns the value, of which the verifier knows nothing from here on. If paths through a program differ only in what
/// the verifier knows of a word that is written to the stack, it follows the rest of the program for each of them: on
/// Linux 6.1 even where a byte is zero on one path and not on another.
///
/// Negates twice, since the verifiers of 6.1 and 6.12 forget a number that is negated. That of 6.18 needs it less.
#[inline(always)]
pub(crate) fn unknown(mut value: u64) -> u64 {
    // SAFETY: two instructions on a register.
    unsafe {
        asm!("{0} = -{0}", "{0} = -{0}", inout(reg) value, options(pure, nomem, nostack));
    }
    value
}

/// Writes `value` to `place` and returns the previous value.
///
/// # Safety
/// As for [`increment`].
#[inline(always)]
pub(crate) unsafe fn exchange(place: *mut u64, mut value: u64) -> u64 {
    // SAFETY: one atomic instruction (Linux 5.12) on memory that the caller guarantees to be valid.
    unsafe {
        asm!("{value} = xchg_64({place} + 0, {value})", place = in(reg) place, value = inout(reg) value,
            options(nostack));
    }
    value
}

/// Writes `new` to `place` if the value there is `old`, and returns the previous value.
///
/// # Safety
/// As for [`increment`].
#[inline(always)]
pub(crate) unsafe fn compare_exchange(place: *mut u64, old: u64, new: u64) -> u64 {
    let mut value = old;
    // SAFETY: one atomic instruction (Linux 5.12) on memory that the caller guarantees to be valid.
    unsafe {
        asm!("r0 = cmpxchg_64({place} + 0, r0, {new})", place = in(reg) place, new = in(reg) new,
            inout("r0") value, options(nostack));
    }
    value
}
