//! Failures that are told in the middle of a call, by code that runs on its behalf: they are not its end.

use super::{memory::word, registers::Hit, shape::ShapeRef};

/// Is the function of this hit called by such code, or by what such code calls?
///
/// At a function's entry its return address is on top of the stack, and the frame pointer is still the caller's, above
/// which that one's return address lies (Go keeps frame pointers on amd64). Where the caller was inlined the first is it.
#[inline(always)]
pub(crate) fn is_told(hit: &Hit, shape: ShapeRef) -> bool {
    is_in_between(hit.stack(), hit.frame().wrapping_add(8), shape) != 0
}

/// Rare, and not inlined, since the stack is nearly full. Functions that are not inlined give numbers only: 1 for yes.
#[inline(never)]
fn is_in_between(stack: u64, above: u64, shape: ShapeRef) -> u64 {
    u64::from(shape.is_interim(word(stack)) || shape.is_interim(word(above)))
}
