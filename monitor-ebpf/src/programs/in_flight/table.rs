//! The table of buckets, which holds nearly all calls.

use monitor_ebpf::{Bucket, WAYS};

use super::{
    super::{
        asm::compare_exchange,
        maps::{IN_FLIGHT, OBJECTS, recipe},
    },
    key::SPREAD,
    sampling::{has_spilled, note_spill},
    started::DEPTH,
};

/// Returns the number of a key's far bucket.
#[inline(always)]
fn far(number: u64) -> u32 {
    (number.wrapping_mul(SPREAD) >> recipe!(bucket_shift)) as u32
}

/// Returns the number of a key's near bucket.
#[inline(always)]
fn near(number: u64) -> u32 {
    far(number) & recipe!(near_mask)
}

/// Returns the way of the call with this key, if it is in the table. 0, the key of free ways, is nowhere.
#[inline(always)]
pub(super) fn locate(number: u64) -> Way {
    if number == 0 {
        return Way::NOWHERE;
    }
    let way = search(near(number), number);
    if way.is_there() || !has_spilled() { way } else { Way::at(search_far(number)) }
}

/// Searches the far bucket. Functions that are not inlined return numbers only.
#[inline(never)]
fn search_far(number: u64) -> u32 {
    search(far(number), number).place
}

#[inline(always)]
fn search(bucket: u32, number: u64) -> Way {
    let Some(ways) = IN_FLIGHT.get_ptr_mut(bucket) else { return Way::NOWHERE };
    for index in 0..WAYS {
        // SAFETY: a bucket of the table.
        let way = unsafe { Way::of(ways, bucket, index) };
        // SAFETY: a key in it.
        if unsafe { way.key.read_volatile() } == number {
            return way;
        }
    }
    Way::NOWHERE
}

/// Claims a free way for this key, if there is one and the key can have one.
#[inline(always)]
pub(super) fn claim(number: u64) -> Way {
    if number == 0 {
        return Way::NOWHERE;
    }
    let way = claim_in(near(number), number);
    if way.is_there() { way } else { Way::at(claim_far(number)) }
}

/// Not inlined, since it is rare.
#[inline(never)]
fn claim_far(number: u64) -> u32 {
    note_spill();
    claim_in(far(number), number).place
}

#[inline(always)]
fn claim_in(bucket: u32, number: u64) -> Way {
    let Some(ways) = IN_FLIGHT.get_ptr_mut(bucket) else { return Way::NOWHERE };
    for index in 0..WAYS {
        // SAFETY: a bucket of the table.
        let way = unsafe { Way::of(ways, bucket, index) };
        // SAFETY: a key in it.
        if unsafe { way.key.read_volatile() == 0 && compare_exchange(way.key, 0, number) == 0 } {
            return way;
        }
    }
    Way::NOWHERE
}

/// A way of a bucket in the table, or none. All fields are always set: see [`Started`](super::Started).
#[derive(Clone, Copy)]
pub(super) struct Way {
    key: *mut u64,
    pub(super) start: *mut u64,
    /// Number of the bucket times [`WAYS`], plus the index of the way in it.
    place: u32,
}

impl Way {
    /// No way.
    const NOWHERE: Self = Self { key: core::ptr::null_mut(), start: core::ptr::null_mut(), place: u32::MAX };

    /// # Safety
    /// `ways` must be the bucket of that number, and `index` below [`WAYS`].
    #[inline(always)]
    unsafe fn of(ways: *mut Bucket, bucket: u32, index: usize) -> Self {
        // SAFETY: the caller guarantees it.
        let (key, start) = unsafe { (&raw mut (*ways).keys[index], &raw mut (*ways).starts[index]) };
        Self { key, start, place: bucket * WAYS as u32 + index as u32 }
    }

    /// Returns the way at a place, if there is one.
    #[inline(always)]
    fn at(place: u32) -> Self {
        let bucket = place / WAYS as u32;
        let Some(ways) = IN_FLIGHT.get_ptr_mut(bucket) else { return Self::NOWHERE };
        // SAFETY: the bucket of that number.
        unsafe { Self::of(ways, bucket, place as usize % WAYS) }
    }

    #[inline(always)]
    pub(super) fn is_there(self) -> bool {
        !self.key.is_null()
    }

    /// Frees the way. Returns false if it no longer has this key: the agent may have given the call up just now, and
    /// another call may have taken the way.
    #[inline(always)]
    pub(super) fn free(self, number: u64) -> bool {
        // SAFETY: a key in a bucket of the table.
        unsafe { compare_exchange(self.key, number, 0) == number }
    }

    /// Adds one to the number of calls nested in the way's call. Returns the depth of the new one. Leaves the start
    /// alone if the agent has given its call up, and the key is gone: the new call is then unpaired when it finishes.
    #[inline(always)]
    pub(super) fn nest(self, number: u64) -> u64 {
        // SAFETY: a start and its key in a bucket of the table.
        unsafe {
            let word = self.start.read_volatile();
            // Read after the start: if another call has taken the way, its start is left alone as well.
            if self.key.read_volatile() == number {
                compare_exchange(self.start, word, word + u64::from(word & DEPTH != DEPTH));
            }
            (word & DEPTH) + 1
        }
    }

    /// Subtracts one from the number of nested calls in `word`, the start as read. Returns false if the key is gone.
    #[inline(always)]
    pub(super) fn unnest(self, number: u64, word: u64) -> bool {
        // SAFETY: as above.
        unsafe {
            // Read after the start, as above.
            let is_own = self.key.read_volatile() == number;
            if is_own {
                compare_exchange(self.start, word, word - u64::from(word & DEPTH != DEPTH));
            }
            is_own
        }
    }

    /// Returns the word beside the way: the object of a call that is not keyed by it, or the label set of its start.
    #[inline(always)]
    pub(super) fn beside(self) -> u64 {
        let words = OBJECTS.get_ptr(self.place / WAYS as u32);
        // SAFETY: an array of as many words as a bucket has ways.
        words.map_or(0, |words| unsafe { (&raw const (*words)[self.place as usize % WAYS]).read_volatile() })
    }

    /// Writes the word beside the way, for the agent or for the finish. Calls in the spill map have none.
    #[inline(always)]
    pub(super) fn write_beside(self, word: u64) {
        if let Some(words) = OBJECTS.get_ptr_mut(self.place / WAYS as u32) {
            // SAFETY: as above.
            unsafe { (&raw mut (*words)[self.place as usize % WAYS]).write_volatile(word) }
        }
    }
}
