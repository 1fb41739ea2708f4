//! What tells calls in flight apart.

use monitor_ebpf::{key, side};

use super::super::memory::word;

/// Spreads the bits of an address over a word: 2^64 divided by the golden ratio.
pub(super) const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// Where a goroutine has the end of its stack, `g.stack.hi`: behind its beginning, before the limit at 16 that each function's stack
/// check reads (`runtime/runtime2.go`, Go 1.4 and later).
const STACK_END: u64 = 8;

/// What tells a call in flight from others: a number that is not 0, with what it is of in its lowest bits. See [`key`].
#[derive(Clone, Copy)]
pub(crate) struct Key(pub(super) u64);

impl Key {
    /// That of a call by its object.
    #[inline(always)]
    pub(crate) fn of_object(address: u64, side: u8) -> Self {
        Self(address & !key::BITS | if side == side::SERVER { key::SERVER } else { key::CLIENT })
    }

    /// That of a call by its goroutine, which makes it.
    #[inline(always)]
    pub(crate) fn of_goroutine(address: u64) -> Self {
        Self(address & !key::BITS | key::GOROUTINE)
    }

    /// That of a call by its place on the stack of a goroutine, at the entry and at the return of its function: how far it is
    /// from the stack's end, which stays when Go moves the stack. The depth is spread over all bits, so that it meets no other
    /// goroutine's. No address has the highest bit, so it is not 0.
    #[inline(always)]
    pub(crate) fn of_frame(goroutine: u64, stack_pointer: u64, side: u8) -> Self {
        let depth = word(goroutine + STACK_END).wrapping_sub(stack_pointer);
        Self::of_object((goroutine ^ depth.wrapping_mul(SPREAD)) >> 4 | 1 << 63, side)
    }

    /// The same of one among several operations, whose calls may have the same object, number or goroutine at once. No
    /// address has these bits; of a number the highest below the one that is set are mixed with it.
    #[inline(always)]
    pub(crate) fn apart(self, operation: u8) -> Self {
        Self(self.0 ^ u64::from(operation) << key::APART_SHIFT)
    }

    /// Is it a goroutine, whose calls nest?
    #[inline(always)]
    pub(crate) fn is_goroutine(self) -> bool {
        self.0 & key::BITS == key::GOROUTINE
    }

    /// Only calls that the target handles have their object alone as key.
    #[inline(always)]
    pub(super) fn side(self) -> u8 {
        if self.0 & key::BITS == key::SERVER { side::SERVER } else { side::CLIENT }
    }
}
