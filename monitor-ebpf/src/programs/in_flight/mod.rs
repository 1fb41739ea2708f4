//! Calls that have started and not finished.
//!
//! Nearly all of them are in a table of buckets: a look-up, a claim and a release there touch one cache line and
//! take a fraction of the time of a kernel hash map. Each key has two buckets there: a near one, among few, and a far one,
//! among all, for when the near one is full. Objects that are made anew for each call would else find another line that is in
//! no cache at each. What finds both full, and calls nested in others of their goroutine, go to the spill map.
//!
//! No other program touches a call's entries: an object has one call at a time, and a goroutine runs on one thread
//! at a time. The claim of a free way is contended; and the agent takes out what is too old to be still under way.

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

/// Remembers the start of a call of an object, and its kind if the object is the key.
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

/// A call starts whose key is in its bucket already.
#[inline(always)]
fn insert_again(key: Key, way: Way, word: u64) {
    if key.is_goroutine() {
        return insert_nested(key, way.nest(key.0), word >> DEPTH_BITS);
    }
    // One object has one call at a time: the one before has been given up.
    count_of(Counter::Abandoned, key.side());
    // SAFETY: a start in a bucket of the table.
    unsafe { way.start.write_volatile(word) }
}

/// Remembers the start of a call that is keyed by an object, its kind, and the label set that it has.
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

/// Is a call with this key in flight?
#[inline(always)]
pub(crate) fn holds(key: Key) -> bool {
    locate(key.0).is_there() || (has_spilled() && SPILL.get_ptr(key.0).is_some())
}

/// The kind of a call that is in flight, keyed by its object; 0 where it is not, or nobody knows.
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

/// Forgets the call that finishes with this object and gives its start, if it was seen and is surely its own.
#[inline(always)]
pub(crate) fn remove(key: Key, object: u64) -> Started {
    Started::of_word(remove_word(key, object), NO_LABEL_SET)
}

/// As [`remove`], with the start as [`take`] gives it.
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

/// Forgets a call that finishes and gives what [`insert_told`] remembered of it.
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

/// Can a start under this key be that of another call than the one that finishes? A server's object has one call at a
/// time, whose finish is always seen. Calls of a goroutine nest, which shows as long as all their starts are seen. A
/// client's stream may be dropped without a finish, and its object used for another.
#[inline(always)]
fn may_be_of_another(key: Key, start_ns: u64) -> bool {
    if recipe!(by_site) != 0 || key.side() == side::SERVER {
        return false;
    }
    let is_stream = !key.is_goroutine();
    start_ns < sampling(words::SEEN_SINCE) || (is_stream && sampling(words::MODE) == words::WINDOWS)
}

/// A call finishes after starts went unseen: gives the start in a way of its bucket as [`take`] does if it is surely its
/// own. That is so if the object is the one it started with, since nobody else can have that before this finish. The
/// start is forgotten in any case: the next finish could not tell either.
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
        // It can't be told any more which finish is whose.
        give_up(number, 0, Counter::StartSampledOut);
    }
    0
}

/// The outermost call of a goroutine finishes, while calls nested in it have not, and never will: a panic was caught on its way
/// through them. Gives its start as [`take`] does.
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

/// A call of a goroutine starts with the object that its outermost began with: that one, and what is nested in it, gets no end
/// any more, and goroutine and object are used again. Gives nothing of use.
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

/// A call of unknown type starts. Inside another of its goroutine it nests as a known one would, but without a start:
/// its finish must not take that of the call around it. Gives nothing of use.
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
    // What a call left there that was nested in one given up since.
    if depth <= u64::from(MAX_NESTING) && SPILL.remove(number + depth).is_ok() {
        count_of(Counter::Abandoned, key.side());
    }
    0
}

/// A call of unknown type finishes: the innermost start of its goroutine is its own, or that of a call which can no
/// longer be told from it. Gives nothing of use.
#[inline(never)]
pub(crate) fn remove_unknown(goroutine: u64) -> u32 {
    let key = Key::of_goroutine(goroutine);
    if remove(key, 0).is_seen() {
        count_of(Counter::Abandoned, key.side());
    }
    0
}

/// A call finishes whose type could not be read: a start under the object's own key is of no use to anybody any more, and the
/// object's next call must not get it. Gives nothing of use.
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
