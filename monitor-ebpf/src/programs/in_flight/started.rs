//! What is remembered of a call from its start to its finish.

use monitor_ebpf::DEPTH_BITS;

use super::super::labels;

/// Stands for no label set.
pub(crate) const NO_LABEL_SET: u32 = labels::NO_NUMBER;
/// The number of nested calls in a start of a bucket. When it is reached it stays: which finish belongs to which
/// start can't be told any more, so all are unpaired rather than wrong.
pub(super) const DEPTH: u64 = (1 << DEPTH_BITS) - 1;

/// What was remembered of a call. Numbers on every way: the compiler may move around what an `Option` has beside
/// nothing, and the verifier takes that for a read.
#[derive(Clone, Copy)]
pub(crate) struct Started {
    /// When it started, nanoseconds of `CLOCK_MONOTONIC`; 0 where that was not seen.
    pub(crate) at_ns: u64,
    /// What else there is, as [`told`] packs it: in one word, since the stack is nearly full.
    pub(super) told: u64,
}

/// Kind and label set of a call in one word.
#[inline(always)]
pub(super) fn told(label_set: u32, kind: u8) -> u64 {
    u64::from(label_set) << DEPTH_BITS | u64::from(kind)
}

impl Started {
    /// Nothing was seen.
    pub(super) const UNSEEN: Self = Self { at_ns: 0, told: (NO_LABEL_SET as u64) << DEPTH_BITS };

    /// From the start above [`DEPTH_BITS`] bits, which hold the kind of a call that is keyed by its object.
    #[inline(always)]
    pub(super) fn of_word(word: u64, label_set: u32) -> Self {
        Self { at_ns: word >> DEPTH_BITS, told: told(label_set, (word & DEPTH) as u8) }
    }

    /// What kind of call it is; 0 where nobody said.
    #[inline(always)]
    pub(crate) fn kind(self) -> u8 {
        (self.told & DEPTH) as u8
    }

    /// The label set that it had then, or [`NO_LABEL_SET`].
    #[inline(always)]
    pub(crate) fn label_set(self) -> u32 {
        (self.told >> DEPTH_BITS) as u32
    }

    /// Was the start seen?
    #[inline(always)]
    pub(crate) fn is_seen(self) -> bool {
        self.at_ns != 0
    }
}
