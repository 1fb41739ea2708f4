//! Keys that distinguish calls in flight.

use monitor_ebpf::{key, side};

use super::super::memory::word;

/// Spreads the bits of an address over a word: 2^64 divided by the golden ratio.
pub(super) const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// Offset of the end of a goroutine's stack, `g.stack.hi`: behind the stack's beginning, before the limit at 16 that
/// each function's stack check reads (`runtime/runtime2.go`, Go 1.4 and later).
const STACK_END: u64 = 8;

/// The key of a call in flight: a number that is not 0, whose lowest bits say what identifies the call. See [`key`].
#[derive(Clone, Copy)]
pub(crate) struct Key(pub(super) u64);

impl Key {
    /// Returns the key of a call that is keyed by its object.
    #[inline(always)]
    pub(crate) fn of_object(address: u64, side: u8) -> Self {
        Self(address & !key::BITS | if side == side::SERVER { key::SERVER } else { key::CLIENT })
    }

    /// Returns the key of a call that is keyed by the goroutine that makes it.
    #[inline(always)]
    pub(crate) fn of_goroutine(address: u64) -> Self {
        Self(address & !key::BITS | key::GOROUTINE)
    }

    /// Returns the key of a call by its depth on a goroutine's stack, at the entry and at the return of its function:
    /// the distance from the stack's end, which stays the same when Go moves the stack. The depth is spread over all
    /// bits, so that it meets no other goroutine's. No address has the highest bit, so the key is not 0.
    #[inline(always)]
    pub(crate) fn of_frame(goroutine: u64, stack_pointer: u64, side: u8) -> Self {
        let depth = word(goroutine + STACK_END).wrapping_sub(stack_pointer);
        Self::of_object((goroutine ^ depth.wrapping_mul(SPREAD)) >> 4 | 1 << 63, side)
    }

    /// Returns the key for one of several operations, whose calls may have the same object, number or goroutine at
    /// once. No address has these bits. Of a number, the highest bits below the one that is set are mixed with them.
    #[inline(always)]
    pub(crate) fn apart(self, operation: u8) -> Self {
        Self(self.0 ^ u64::from(operation) << key::APART_SHIFT)
    }

    /// Returns whether the key is a goroutine, whose calls nest.
    #[inline(always)]
    pub(crate) fn is_goroutine(self) -> bool {
        self.0 & key::BITS == key::GOROUTINE
    }

    /// Returns the side of the call. Only calls that the target handles have their object alone as key.
    #[inline(always)]
    pub(super) fn side(self) -> u8 {
        if self.0 & key::BITS == key::SERVER { side::SERVER } else { side::CLIENT }
    }
}
