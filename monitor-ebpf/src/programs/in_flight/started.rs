//! What is stored of a call from its start to its finish.

use monitor_ebpf::DEPTH_BITS;

use super::super::labels;

/// Stands for no label set.
pub(crate) const NO_LABEL_SET: u32 = labels::NO_NUMBER;
/// Bits of a bucket's start with the number of nested calls. At its maximum the number stays: finishes can no longer
/// be matched with starts, so all are unpaired rather than wrong.
pub(super) const DEPTH: u64 = (1 << DEPTH_BITS) - 1;

/// What was stored of a call. Numbers, not an `Option`: the compiler may move the undefined content of a `None`,
/// which the verifier takes for a read.
#[derive(Clone, Copy)]
pub(crate) struct Started {
    /// Time of the start, in nanoseconds of `CLOCK_MONOTONIC`; 0 if it was not seen.
    pub(crate) at_ns: u64,
    /// Kind and label set, packed by [`told`] into one word, since the stack is nearly full.
    pub(super) told: u64,
}

/// Packs kind and label set of a call into one word.
#[inline(always)]
pub(super) fn told(label_set: u32, kind: u8) -> u64 {
    u64::from(label_set) << DEPTH_BITS | u64::from(kind)
}

impl Started {
    /// No start was seen.
    pub(super) const UNSEEN: Self = Self { at_ns: 0, told: (NO_LABEL_SET as u64) << DEPTH_BITS };

    /// Unpacks a start above [`DEPTH_BITS`] bits, which hold the kind of a call that is keyed by its object.
    #[inline(always)]
    pub(super) fn of_word(word: u64, label_set: u32) -> Self {
        Self { at_ns: word >> DEPTH_BITS, told: told(label_set, (word & DEPTH) as u8) }
    }

    /// Returns the kind of the call; 0 if it is unknown.
    #[inline(always)]
    pub(crate) fn kind(self) -> u8 {
        (self.told & DEPTH) as u8
    }

    /// Returns the label set that the call had at its start, or [`NO_LABEL_SET`].
    #[inline(always)]
    pub(crate) fn label_set(self) -> u32 {
        (self.told >> DEPTH_BITS) as u32
    }

    /// Returns whether the start was seen.
    #[inline(always)]
    pub(crate) fn is_seen(self) -> bool {
        self.at_ns != 0
    }
}
