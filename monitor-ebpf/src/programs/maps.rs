//! Every map, the recipe, and the counters.
//!
//! Some sizes here are placeholders, which the agent replaces at load: those of maps with rows for CPUs, and
//! those that a command-line flag sets.

use aya_ebpf::{
    helpers::bpf_get_smp_processor_id,
    macros::map,
    maps::{Array, HashMap, RingBuf},
};
use monitor_ebpf::{
    ALIASES as TYPE_ALIASES, Bucket, COUNTERS as ROW, COUNTERS_OF_SIDE, Counter, ENDED_KEYS, LabelSet, Proof,
    Recipe, Spilled, WAYS, sampling,
};

use super::asm::increment;

/// `BPF_F_NO_PREALLOC`: entries take memory only while they exist.
const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE` (Linux 5.5): the agent reads the array without a system call.
const MMAPABLE: u32 = 1 << 10;

/// Set by the agent before the object is loaded; see [`monitor_ebpf::Recipe`].
#[unsafe(no_mangle)]
pub(crate) static RECIPE: Recipe = Recipe::EMPTY;

#[map]
pub(crate) static IN_FLIGHT: Array<Bucket> = Array::with_max_entries(16_384, MMAPABLE);

#[map]
pub(crate) static OBJECTS: Array<[u64; WAYS]> = Array::with_max_entries(16_384, MMAPABLE);

/// Keys of finished calls that may finish again at the same moment, indexed by a hash of the key: see
/// [`in_flight::ends_once`](super::in_flight::ends_once).
#[map]
pub(crate) static ENDED: Array<u64> = Array::with_max_entries(ENDED_KEYS, 0);

#[map]
pub(crate) static SAMPLING: Array<u64> = Array::with_max_entries(sampling::COUNT, MMAPABLE);

#[map]
pub(crate) static SPILL: HashMap<u64, Spilled> = HashMap::with_max_entries(16_384, NO_PREALLOC);

#[map]
pub(crate) static MESSAGES: HashMap<u64, u32> = HashMap::with_max_entries(16_384, NO_PREALLOC);

#[map]
pub(crate) static LABEL_IDS: HashMap<LabelSet, u32> = HashMap::with_max_entries(4_352, NO_PREALLOC);

#[map]
pub(crate) static LABEL_SETS: Array<[u64; LABEL_SET_WORDS]> = Array::with_max_entries(4_352, MMAPABLE);

/// Label set numbers plus one, indexed by a hash of the set; 0 for none. Saves most look-ups in `LABEL_IDS`, whose
/// hash of a whole set takes longer than all other work on labels except reading them.
#[map]
pub(crate) static LABEL_CACHE: Array<u64> = Array::with_max_entries(16_384, 0);

#[map]
pub(crate) static TOTALS: Array<u64> = Array::with_max_entries(4_352, MMAPABLE);

#[map]
pub(crate) static EXTRAS: Array<u64> = Array::with_max_entries(1, MMAPABLE);

#[map]
pub(crate) static ALIASES: Array<[u64; 2]> = Array::with_max_entries(TYPE_ALIASES, MMAPABLE);

#[map]
pub(crate) static UNEXPECTED: HashMap<u64, u64> = HashMap::with_max_entries(64, 0);

#[map]
pub(crate) static COUNTERS: Array<u64> = Array::with_max_entries(ROW, MMAPABLE);

#[map]
pub(crate) static NEXT_LABEL: Array<u64> = Array::with_max_entries(2, MMAPABLE);

/// Not mappable, so that it takes no page: every target has this map, but only the agent's test of itself reads it.
#[map]
pub(crate) static PROOF: Array<Proof> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static RECORDS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Number of words in a label set: BPF copies and clears memory by words, or else byte by byte.
pub(crate) const LABEL_SET_WORDS: usize = size_of::<LabelSet>() / 8;

/// Reads a field of the recipe.
///
/// Volatile, since the compiler would otherwise use the value that `RECIPE` has here.
macro_rules! recipe {
    ($($field:tt)+) => {
        // SAFETY: the global is valid and only read.
        unsafe { (&raw const $crate::programs::maps::RECIPE.$($field)+).read_volatile() }
    };
}
pub(crate) use recipe;

/// Reads a field of a part of the recipe, through a pointer to that part.
macro_rules! field {
    ($pointer:expr, $($field:tt)+) => {
        // SAFETY: a pointer into the recipe, which is valid and only read.
        unsafe { (&raw const (*$pointer).$($field)+).read_volatile() }
    };
}
pub(crate) use field;

/// Returns the row in which this CPU counts. With many CPUs, some share a row, which is as exact since all additions
/// are atomic.
#[inline(always)]
pub(crate) fn row() -> u32 {
    // SAFETY: a helper without preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    cpu & recipe!(row_mask)
}

/// Counts an event that happens at every call of one [`side`](monitor_ebpf::side).
#[inline(always)]
pub(crate) fn count_hot(counter: Counter, side: u8) {
    let slot = counter as u32 + u32::from(side & 1) * COUNTERS_OF_SIDE;
    if let Some(slot) = COUNTERS.get_ptr_mut(row() * ROW + slot) {
        // SAFETY: the map's values are `u64`.
        unsafe { increment(slot) }
    }
}

/// Counts a rare event. Not inlined, which keeps the programs small.
#[inline(never)]
pub(crate) fn count(counter: Counter) {
    count_hot(counter, 0);
}

/// Counts a rare event of one side.
#[inline(never)]
pub(crate) fn count_of(counter: Counter, side: u8) {
    count_hot(counter, side);
}
