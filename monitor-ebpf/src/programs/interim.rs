//! Failures reported in the middle of a call, by code that runs on its behalf: they do not end the call.

use super::{memory::word, registers::Hit, shape::ShapeRef};

/// Returns whether such code, or a function called by it, called the function of this hit.
///
/// At a function's entry its return address is on top of the stack. The frame pointer is still the caller's, and the
/// caller's return address lies above it (Go keeps frame pointers on amd64), or on top if the caller was inlined.
#[inline(always)]
pub(crate) fn is_told(hit: &Hit, shape: ShapeRef) -> bool {
    is_in_between(hit.stack(), hit.frame().wrapping_add(8), shape) != 0
}

/// Not inlined, since it is rare and the stack is nearly full. Such functions return numbers only: 1 for yes.
#[inline(never)]
fn is_in_between(stack: u64, above: u64, shape: ShapeRef) -> u64 {
    u64::from(shape.is_interim(word(stack)) || shape.is_interim(word(above)))
}
