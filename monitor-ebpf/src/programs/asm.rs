//! What can only be said in assembly.

use core::arch::asm;

/// Adds one to the counter at `place`.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn increment(place: *mut u64) {
    // SAFETY: the caller vouches for the place.
    unsafe { add(place, 1) }
}

/// Adds to the counter at `place`. The BPF target has no `fetch_add` in `core`.
///
/// # Safety
/// `place` must point to a map value of at least eight bytes, aligned to eight.
#[inline(always)]
pub(crate) unsafe fn add(place: *mut u64, value: u64) {
    // SAFETY: one atomic instruction (Linux 3.18) on memory that the caller vouches for.
    unsafe {
        asm!("lock *(u64 *)({place} + 0) += {value}", place = in(reg) place, value = in(reg) value,
            options(nostack));
    }
}

/// Adds one to the number at `place` and gives what it was before.
///
/// # Safety
/// As for [`increment`].
#[inline(always)]
pub(crate) unsafe fn fetch_increment(place: *mut u64) -> u64 {
    let mut value = 1u64;
    // SAFETY: one atomic instruction (Linux 5.12) on memory that the caller vouches for.
    unsafe {
        asm!("{value} = atomic_fetch_add((u64 *)({place} + 0), {value})", place = in(reg) place,
            value = inout(reg) value, options(nostack));
    }
    value
}

/// Makes the compiler have the value by now. It would else load all that goes into a sum before it adds, and what waits takes
/// stack.
#[inline(always)]
pub(crate) fn settle(mut value: u64) -> u64 {
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {0} */", inout(reg) value, options(nostack, nomem, preserves_flags)) }
    value
}

/// The value, of which the verifier knows nothing from here on. What it knows of a word that is then written to the stack
/// keeps ways through a program apart that differ in nothing else, and it goes through all that follows for each of them: on
/// Linux 6.1 even where a byte is zero on one way and not on another.
///
/// By two negations, since the verifiers of 6.1 and 6.12 forget a number that is negated. That of 6.18 needs it less.
#[inline(always)]
pub(crate) fn unknown(mut value: u64) -> u64 {
    // SAFETY: two instructions on a register.
    unsafe {
        asm!("{0} = -{0}", "{0} = -{0}", inout(reg) value, options(pure, nomem, nostack));
    }
    value
}

/// Writes `value` to `place`; gives what was there.
///
/// # Safety
/// As for [`increment`].
#[inline(always)]
pub(crate) unsafe fn exchange(place: *mut u64, mut value: u64) -> u64 {
    // SAFETY: one atomic instruction (Linux 5.12) on memory that the caller vouches for.
    unsafe {
        asm!("{value} = xchg_64({place} + 0, {value})", place = in(reg) place, value = inout(reg) value,
            options(nostack));
    }
    value
}

/// Writes `new` to `place` if `old` is there; gives what was there.
///
/// # Safety
/// As for [`increment`].
#[inline(always)]
pub(crate) unsafe fn compare_exchange(place: *mut u64, old: u64, new: u64) -> u64 {
    let mut value = old;
    // SAFETY: one atomic instruction (Linux 5.12) on memory that the caller vouches for.
    unsafe {
        asm!("r0 = cmpxchg_64({place} + 0, r0, {new})", place = in(reg) place, new = in(reg) new,
            inout("r0") value, options(nostack));
    }
    value
}
