//! The spill map: calls that found both their buckets full, and calls nested in others of their goroutine. These have
//! the key of the outermost call plus their depth.

use monitor_ebpf::{Counter, DEPTH_BITS, MAX_NESTING, Spilled, sampling as words, side};

use super::{
    super::maps::{SPILL, count_hot, count_of},
    key::Key,
    sampling::{note, note_spill, sampling},
    started::{DEPTH, Started, told},
};

/// `BPF_ANY`: insert or replace.
const ANY: u64 = 0;
/// `BPF_NOEXIST`: insert, fail when the key is there.
const NO_EXIST: u64 = 1;
/// `EEXIST`.
const EXISTS: i32 = -17;

/// Stores the start of a call for which its buckets have no room.
#[inline(always)]
pub(super) fn spill(key: Key, start_ns: u64, kind: u8) {
    let number = key.0;
    let call = Spilled { start_ns, nested: u64::from(kind) };
    note_spill();
    if !key.is_goroutine() {
        note(words::OBJECTS_SPILLED);
    }
    let Err(error) = SPILL.insert(number, call, NO_EXIST) else { return };
    if error != EXISTS {
        return count_of(Counter::RefusedFull, key.side());
    }
    if key.is_goroutine() {
        let Some(outer) = SPILL.get_ptr_mut(number) else {
            return count_of(Counter::RefusedFull, key.side());
        };
        // SAFETY: the entry is this goroutine's own.
        let depth = unsafe {
            (*outer).nested += 1;
            (*outer).nested
        };
        return insert_nested(key, depth, start_ns);
    }
    replace(number, start_ns, call.nested, key.side());
}

/// Stores the start, kind and label set of a call keyed by its object, for which its buckets have no room.
#[inline(always)]
pub(super) fn spill_told(key: Key, label_set: u32, start_ns: u64, kind: u8) {
    let call = Spilled { start_ns, nested: told(label_set, kind) };
    note_spill();
    note(words::OBJECTS_SPILLED);
    let Err(error) = SPILL.insert(key.0, call, NO_EXIST) else { return };
    if error != EXISTS {
        return count_of(Counter::RefusedFull, key.side());
    }
    replace(key.0, start_ns, call.nested, key.side());
}

/// Stores the start of a call nested in `depth` others of its goroutine. If it cannot be kept, the others lose
/// nothing: they are counted all the same.
#[inline(always)]
pub(super) fn insert_nested(outermost: Key, depth: u64, start_ns: u64) {
    if depth > u64::from(MAX_NESTING) {
        return count_of(Counter::RefusedNested, outermost.side());
    }
    let (number, call) = (outermost.0 + depth, Spilled { start_ns, nested: 0 });
    note_spill();
    let Err(error) = SPILL.insert(number, call, NO_EXIST) else { return };
    if error != EXISTS {
        return count_of(Counter::RefusedFull, outermost.side());
    }
    // The entry is left from a call nested in one that was given up since.
    replace(number, start_ns, call.nested, outermost.side());
}

/// Replaces a start under the same key, which gets no finish any more. If there is no memory for the new one, the old
/// one must not stay: the next finish would take it for its own. The return value has no meaning.
#[inline(never)]
pub(super) fn replace(number: u64, start_ns: u64, nested: u64, side: u8) -> u32 {
    count_of(Counter::Abandoned, side);
    if SPILL.insert(number, Spilled { start_ns, nested }, ANY).is_err() {
        let _ = SPILL.remove(number);
        count_of(Counter::RefusedFull, side);
    }
    0
}

/// Removes a call from the spill map when another of the same object has a place in the table: the old one never
/// finished, and its start must not be taken for that of a later call.
#[inline(always)]
pub(super) fn displace_spilled(key: Key) {
    if sampling(words::OBJECTS_SPILLED) != 0 && SPILL.remove(key.0).is_ok() {
        count_of(Counter::Abandoned, key.side());
    }
}

/// Removes the innermost call of a goroutine whose outermost is in the spill map, if it was kept at all. Returns its
/// start as [`take`] does.
#[inline(never)]
pub(super) fn remove_spilled(outermost: u64) -> u64 {
    let Some(outer) = SPILL.get_ptr_mut(outermost) else { return 0 };
    // SAFETY: the entry is this goroutine's own.
    let (start_ns, depth) = unsafe { ((*outer).start_ns, (*outer).nested) };
    if start_ns < sampling(words::SEEN_SINCE) {
        // Finishes can no longer be matched with starts.
        give_up(outermost, 0, Counter::StartSampledOut);
        return 0;
    }
    if depth == 0 {
        return take(outermost);
    }
    // SAFETY: as above.
    unsafe { (*outer).nested = depth - 1 };
    take_nested(outermost, depth)
}

/// Removes the call that is nested this deep. Returns its start as [`take`] does.
#[inline(always)]
pub(super) fn take_nested(outermost: u64, depth: u64) -> u64 {
    if depth > u64::from(MAX_NESTING) { 0 } else { take(outermost + depth) }
}

/// Removes a call from the spill map. Returns its start and kind in the form of [`Started::of_word`], or 0.
#[inline(never)]
pub(super) fn take(key: u64) -> u64 {
    let Some(call) = SPILL.get_ptr(key) else { return 0 };
    // SAFETY: no other call has this key while this one is in flight.
    let word = unsafe { (*call).start_ns << DEPTH_BITS | (*call).nested & DEPTH };
    // The agent may have given the call up just now, and counted that.
    if SPILL.remove(key).is_ok() { word } else { 0 }
}

/// Removes a call that [`spill_told`] stored.
#[inline(always)]
pub(super) fn take_told(number: u64) -> Started {
    let Some(call) = SPILL.get_ptr(number) else { return Started::UNSEEN };
    // SAFETY: no other call has this key while this one is in flight.
    let started = unsafe { Started { at_ns: (*call).start_ns, told: (*call).nested } };
    // The agent may have given the call up just now, and counted that.
    if SPILL.remove(number).is_ok() { started } else { Started::UNSEEN }
}

/// Removes all calls of a goroutine from this depth on, and counts each. The return value has no meaning.
#[inline(never)]
pub(super) fn give_up(outermost: u64, from: u64, counter: Counter) -> u32 {
    for depth in from..=u64::from(MAX_NESTING) {
        if SPILL.remove(outermost + depth).is_ok() {
            // Inlined, since each further function takes stack.
            count_hot(counter, side::CLIENT);
        }
    }
    0
}
