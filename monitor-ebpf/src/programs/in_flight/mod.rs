//! Calls that have started and not finished.
//!
//! Nearly all are in a table of buckets, where a look-up, a claim or a release touches one cache line and takes a
//! fraction of the time of a kernel hash map. Each key has two buckets: a near one, among few, and a far one, among
//! all, for when the near one is full. Far buckets alone would not stay in the caches, since many objects are new for
//! each call. Calls that find both full, and calls nested in others of their goroutine, go to the spill map.
//!
//! No other program touches a call's entries: an object has one call at a time, and a goroutine runs on one thread
//! at a time. Only the claim of a free way is contended, and the agent removes calls too old to be still in flight.

mod ended;
mod key;
mod sampling;
mod spill;
mod started;
mod table;

use monitor_ebpf::{Counter, DEPTH_BITS, MAX_NESTING, key as bits, sampling as words, side};

use super::maps::{SPILL, count_hot, count_of, recipe};
pub(crate) use ended::{begin_once, ends_once};
pub(crate) use key::Key;
use sampling::{has_spilled, sampling};
pub(crate) use sampling::{is_asked, is_sampled};
use spill::{
    displace_spilled, give_up, insert_nested, remove_spilled, spill, spill_told, take, take_nested, take_told,
};
use started::DEPTH;
pub(crate) use started::{NO_LABEL_SET, Started};
use table::{Way, claim, locate};

/// Stores the start of a call of an object, and its kind if the object is the key.
#[inline(always)]
pub(crate) fn insert(key: Key, object: u64, start_ns: u64, kind: u8) {
    let word = start_ns << DEPTH_BITS | u64::from(kind);
    let before = locate(key.0);
    if before.is_there() {
        if recipe!(by_site) == 0 && key.is_goroutine() && object != 0 && before.beside() == object {
            begin_anew(key.0, word);
            return;
        }
        return insert_again(key, before, word);
    }
    let way = claim(key.0);
    if !way.is_there() {
        return spill(key, start_ns, kind);
    }
    // SAFETY: a start in a bucket of the table.
    unsafe { way.start.write_volatile(word) }
    if !key.is_goroutine() {
        displace_spilled(key);
    }
    if key.is_goroutine() {
        way.write_beside(object);
    }
}

/// Stores the start of a call whose key is in its bucket already.
#[inline(always)]
fn insert_again(key: Key, way: Way, word: u64) {
    if key.is_goroutine() {
        return insert_nested(key, way.nest(key.0), word >> DEPTH_BITS);
    }
    // An object has one call at a time, so the previous one was given up.
    count_of(Counter::Abandoned, key.side());
    // SAFETY: a start in a bucket of the table.
    unsafe { way.start.write_volatile(word) }
}

/// Stores the start of a call that is keyed by an object, its kind, and its label set.
#[inline(always)]
pub(crate) fn insert_told(key: Key, label_set: u32, start_ns: u64, kind: u8) {
    let number = key.0;
    let before = locate(number);
    let way = if before.is_there() { before } else { claim(number) };
    if way.is_there() {
        way.write_beside(u64::from(label_set));
        // SAFETY: a start in a bucket of the table.
        unsafe { way.start.write_volatile(start_ns << DEPTH_BITS | u64::from(kind)) }
        if before.is_there() {
            return count_of(Counter::Abandoned, key.side());
        }
        return displace_spilled(key);
    }
    spill_told(key, label_set, start_ns, kind);
}

/// Returns whether a call with this key is in flight.
#[inline(always)]
pub(crate) fn holds(key: Key) -> bool {
    locate(key.0).is_there() || (has_spilled() && SPILL.get_ptr(key.0).is_some())
}

/// Returns the kind of a call in flight that is keyed by its object; 0 if there is no such call or its kind is unknown.
#[inline(always)]
pub(crate) fn kind(key: Key) -> u8 {
    let way = locate(key.0);
    if way.is_there() {
        // SAFETY: a start in a bucket of the table.
        return unsafe { (way.start.read_volatile() & DEPTH) as u8 };
    }
    // SAFETY: the entry stays while its call is in flight.
    SPILL.get_ptr(key.0).map_or(0, |call| unsafe { ((*call).nested & DEPTH) as u8 })
}

/// Removes the call that finishes with this object. Returns its start if it was seen and certainly is its own.
#[inline(always)]
pub(crate) fn remove(key: Key, object: u64) -> Started {
    Started::of_word(remove_word(key, object), NO_LABEL_SET)
}

/// Does what [`remove`] does, and returns the start in the form of [`take`].
#[inline(always)]
fn remove_word(key: Key, object: u64) -> u64 {
    let number = key.0;
    let way = locate(number);
    if way.is_there() {
        // SAFETY: a start in a bucket of the table.
        let word = unsafe { way.start.read_volatile() };
        if may_be_of_another(key, word >> DEPTH_BITS) {
            return take_own(number, object);
        }
        let depth = word & DEPTH;
        if depth != 0 && key.is_goroutine() {
            if recipe!(by_site) == 0 && object != 0 && way.beside() == object {
                return take_outermost(number);
            }
            return if way.unnest(number, word) { take_nested(number, depth) } else { 0 };
        }
        return if way.free(number) { word } else { 0 };
    }
    if !has_spilled() {
        return 0;
    }
    if key.is_goroutine() {
        return remove_spilled(number);
    }
    let word = take(number);
    if word == 0 || !may_be_of_another(key, word >> DEPTH_BITS) {
        return word;
    }
    count_of(Counter::StartSampledOut, key.side());
    0
}

/// Removes a call that finishes, and returns what [`insert_told`] stored.
#[inline(always)]
pub(crate) fn remove_told(key: Key) -> Started {
    let number = key.0;
    let way = locate(number);
    if way.is_there() {
        // SAFETY: a start in a bucket of the table.
        let word = unsafe { way.start.read_volatile() };
        let label_set = way.beside() as u32;
        return if way.free(number) { Started::of_word(word, label_set) } else { Started::UNSEEN };
    }
    if has_spilled() { take_told(number) } else { Started::UNSEEN }
}

/// Returns whether a start under this key may belong to another call than the one that finishes. A server's object has
/// one call at a time, whose finish is always seen. Calls of a goroutine nest, which shows as long as all starts are
/// seen. A client's stream may be dropped without a finish, and its object used for another call.
#[inline(always)]
fn may_be_of_another(key: Key, start_ns: u64) -> bool {
    if recipe!(by_site) != 0 || key.side() == side::SERVER {
        return false;
    }
    let is_stream = !key.is_goroutine();
    start_ns < sampling(words::SEEN_SINCE) || (is_stream && sampling(words::MODE) == words::WINDOWS)
}

/// Removes the start in a way of its bucket when a call finishes after starts went unseen. Returns it as [`take`] does
/// if it certainly is the call's own: the object is the one of the start, which no other call can have before this
/// finish. The start is removed in any case, since the next finish could not be matched with it either.
#[inline(never)]
fn take_own(number: u64, object: u64) -> u64 {
    let way = locate(number);
    if !way.is_there() {
        return 0;
    }
    // SAFETY: a start in a bucket of the table.
    let word = unsafe { way.start.read_volatile() };
    let started_with = way.beside();
    if !way.free(number) {
        return 0;
    }
    if number & bits::BITS == bits::GOROUTINE && word & DEPTH == 0 && started_with == object {
        return word;
    }
    count_of(Counter::StartSampledOut, side::CLIENT);
    if number & bits::BITS == bits::GOROUTINE && word & DEPTH != 0 {
        // Finishes can no longer be matched with starts.
        give_up(number, 0, Counter::StartSampledOut);
    }
    0
}

/// Removes the outermost call of a goroutine, which finishes while calls nested in it have not, and never will: a panic
/// on its way through them was caught. Returns its start as [`take`] does.
#[inline(never)]
fn take_outermost(number: u64) -> u64 {
    let way = locate(number);
    if !way.is_there() {
        return 0;
    }
    give_up(number, 1, Counter::Abandoned);
    // SAFETY: a start in a bucket of the table.
    let word = unsafe { way.start.read_volatile() };
    if way.free(number) { word & !DEPTH } else { 0 }
}

/// Stores the start of a goroutine's call that has the object of its outermost call. That call, and those nested in it,
/// will not finish any more: goroutine and object are used again. The return value has no meaning.
#[inline(never)]
fn begin_anew(number: u64, word: u64) -> u32 {
    let way = locate(number);
    if way.is_there() {
        give_up(number, 1, Counter::Abandoned);
        count_hot(Counter::Abandoned, side::CLIENT);
        // SAFETY: a start in a bucket of the table.
        unsafe { way.start.write_volatile(word) }
    }
    0
}

/// Nests a call of unknown type in another of its goroutine, as a known one would be, but without a start: its finish
/// must not take the start of the call around it. The return value has no meaning.
#[inline(never)]
pub(crate) fn insert_unknown(goroutine: u64) -> u32 {
    let key = Key::of_goroutine(goroutine);
    let number = key.0;
    let way = locate(number);
    let depth = if way.is_there() {
        way.nest(number)
    } else if let Some(outer) = SPILL.get_ptr_mut(number) {
        // SAFETY: the entry is this goroutine's own.
        unsafe {
            (*outer).nested += 1;
            (*outer).nested
        }
    } else {
        return 0;
    };
    // The entry is left from a call nested in one that was given up since.
    if depth <= u64::from(MAX_NESTING) && SPILL.remove(number + depth).is_ok() {
        count_of(Counter::Abandoned, key.side());
    }
    0
}

/// Handles the finish of a call of unknown type. The innermost start of its goroutine is its own, or that of a call
/// which can no longer be distinguished from it. The return value has no meaning.
#[inline(never)]
pub(crate) fn remove_unknown(goroutine: u64) -> u32 {
    let key = Key::of_goroutine(goroutine);
    if remove(key, 0).is_seen() {
        count_of(Counter::Abandoned, key.side());
    }
    0
}

/// Handles the finish of a call whose type could not be read. A start under the object's own key is of no further use,
/// and the object's next call must not get it. The return value has no meaning.
#[inline(never)]
pub(crate) fn remove_object(object: u64) -> u32 {
    for side in [side::SERVER, side::CLIENT] {
        let number = Key::of_object(object, side).0;
        let way = locate(number);
        let was_there = if way.is_there() {
            way.free(number)
        } else {
            sampling(words::OBJECTS_SPILLED) != 0 && SPILL.remove(number).is_ok()
        };
        if was_there {
            count_hot(Counter::Abandoned, side);
        }
    }
    0
}
