//! Calls that have started and not finished.
//!
//! Nearly all of them are in a table of buckets: a look-up, a claim and a release there touch one cache line and
//! take a fraction of the time of a kernel hash map. What finds its bucket full, and calls nested in others of
//! their goroutine, go to the spill map.
//!
//! No other program touches a call's entries: an object has one call at a time, and a goroutine runs on one thread
//! at a time. The claim of a free way is contended; and the agent takes out what is too old to be still under way.

use monitor_ebpf::{Bucket, Counter, DEPTH_BITS, MAX_NESTING, Spilled, WAYS, key, side};

use super::{
    asm::compare_exchange,
    maps::{IN_FLIGHT, OBJECTS, SPILL, count_of, recipe},
    shape::Key,
};

/// `BPF_ANY`: insert or replace.
const ANY: u64 = 0;
/// `BPF_NOEXIST`: insert, fail when the key is there.
const NO_EXIST: u64 = 1;
/// `EEXIST`.
const EXISTS: i32 = -17;
/// Spreads the bits of an address over a word: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// The number of nested calls in a start of a bucket. When it is reached it stays: which finish belongs to which
/// start can't be told any more, so all are unpaired rather than wrong.
const DEPTH: u64 = (1 << DEPTH_BITS) - 1;

impl Key {
    /// The key as a number that is not 0: see [`key`].
    #[inline(always)]
    fn number(self) -> u64 {
        match self {
            Self::Object(address, side::SERVER) => address,
            Self::Object(address, _) => address | key::CLIENT,
            Self::Goroutine(address) => address | key::GOROUTINE,
        }
    }

    /// Goroutines make calls; they don't handle them under this key.
    #[inline(always)]
    fn side(self) -> u8 {
        match self {
            Self::Object(_, side) => side,
            Self::Goroutine(_) => side::CLIENT,
        }
    }

    /// Number of the key's bucket.
    #[inline(always)]
    fn index(self) -> u32 {
        (self.number().wrapping_mul(SPREAD) >> recipe!(bucket_shift)) as u32
    }

    #[inline(always)]
    fn bucket(self) -> Option<*mut Bucket> {
        IN_FLIGHT.get_ptr_mut(self.index())
    }
}

/// What was remembered of a call.
#[derive(Clone, Copy)]
pub(crate) struct Started {
    /// When it started, nanoseconds of `CLOCK_MONOTONIC`.
    pub(crate) at_ns: u64,
    /// What kind of call it is; 0 where nobody said.
    pub(crate) kind: u8,
}

impl Started {
    /// From the start above [`DEPTH_BITS`] bits, which hold the kind of a call that is keyed by its object.
    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self { at_ns: word >> DEPTH_BITS, kind: (word & DEPTH) as u8 }
    }
}

/// Remembers the start of a call of an object, and its kind if the object is the key.
#[inline(always)]
pub(crate) fn insert(key: Key, object: u64, start_ns: u64, kind: u8) {
    let Some(bucket) = key.bucket() else { return count_of(Counter::RefusedFull, key.side()) };
    let word = start_ns << DEPTH_BITS | u64::from(kind);
    if let Some(start) = find(bucket, key.number()) {
        insert_again(key, start, word);
    } else if !claim(bucket, key, object, word) {
        spill(key, start_ns, kind);
    }
}

/// Is a call with this key in flight? One that went to the spill map is looked for as long as its bucket is full; a
/// start that comes later is taken for another call.
#[inline(always)]
pub(crate) fn holds(key: Key) -> bool {
    let Some(bucket) = key.bucket() else { return false };
    let number = key.number();
    if find(bucket, number).is_some() {
        return true;
    }
    find(bucket, 0).is_none() && SPILL.get_ptr(number).is_some()
}

/// Forgets the call and gives its start, if it was seen.
#[inline(always)]
pub(crate) fn remove(key: Key) -> Option<Started> {
    let bucket = key.bucket()?;
    let number = key.number();
    for way in 0..WAYS {
        // SAFETY: a way of a bucket in the table.
        let (place, start) = unsafe { (&raw mut (*bucket).keys[way], &raw mut (*bucket).starts[way]) };
        // SAFETY: as above.
        if unsafe { place.read_volatile() } != number {
            continue;
        }
        // SAFETY: as above.
        let word = unsafe { start.read_volatile() };
        let depth = word & DEPTH;
        if depth != 0 && matches!(key, Key::Goroutine(_)) {
            // SAFETY: as above.
            unsafe { compare_exchange(start, word, word - u64::from(depth != DEPTH)) };
            return seen(take_nested(number, depth));
        }
        // The agent may have given the call up just now, and another may have taken the way.
        // SAFETY: as above.
        let still_there = unsafe { compare_exchange(place, number, 0) } == number;
        return still_there.then(|| Started::of_word(word));
    }
    match key {
        Key::Object(..) => seen(take(number)),
        Key::Goroutine(_) => seen(remove_spilled(number)),
    }
}

/// A call of unknown type starts. Inside another of its goroutine it nests as a known one would, but without a start:
/// its finish must not take that of the call around it. Gives nothing of use.
#[inline(never)]
pub(crate) fn insert_unknown(goroutine: u64) -> u32 {
    let key = Key::Goroutine(goroutine);
    let Some(bucket) = key.bucket() else { return 0 };
    let number = key.number();
    let depth = if let Some(start) = find(bucket, number) {
        // SAFETY: a start in a bucket of the table.
        unsafe { nest(start) }
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
    let key = Key::Goroutine(goroutine);
    if remove(key).is_some() {
        count_of(Counter::Abandoned, key.side());
    }
    0
}

/// Adds one to the number of nested calls in a start of a bucket; gives the depth of the new one. Leaves a start alone
/// that is no longer the call's, since the agent has given it up: the new one is then unpaired when it finishes.
///
/// # Safety
/// `start` must be in a bucket of the table.
#[inline(always)]
unsafe fn nest(start: *mut u64) -> u64 {
    // SAFETY: the caller vouches for it.
    unsafe {
        let word = start.read_volatile();
        compare_exchange(start, word, word + u64::from(word & DEPTH != DEPTH));
        (word & DEPTH) + 1
    }
}

/// Functions that are not inlined give numbers only: 0 is no start.
#[inline(always)]
fn seen(word: u64) -> Option<Started> {
    (word != 0).then(|| Started::of_word(word))
}

/// Where the start of a call in its bucket is kept.
#[inline(always)]
fn find(bucket: *mut Bucket, number: u64) -> Option<*mut u64> {
    for way in 0..WAYS {
        // SAFETY: a way of a bucket in the table.
        unsafe {
            if (&raw const (*bucket).keys[way]).read_volatile() == number {
                return Some(&raw mut (*bucket).starts[way]);
            }
        }
    }
    None
}

/// Takes a free way of the bucket, if there is one.
#[inline(always)]
fn claim(bucket: *mut Bucket, key: Key, object: u64, word: u64) -> bool {
    for way in 0..WAYS {
        // SAFETY: a way of a bucket in the table.
        unsafe {
            let place = &raw mut (*bucket).keys[way];
            if place.read_volatile() == 0 && compare_exchange(place, 0, key.number()) == 0 {
                (&raw mut (*bucket).starts[way]).write_volatile(word);
                if let Key::Goroutine(_) = key {
                    note_object(key.index(), way, object);
                }
                return true;
            }
        }
    }
    false
}

/// Lets the agent find the object of a call whose key it is not. Those in the spill map have no room for it.
#[inline(always)]
fn note_object(bucket: u32, way: usize, object: u64) {
    if let Some(objects) = OBJECTS.get_ptr_mut(bucket) {
        // SAFETY: an array of as many objects as a bucket has ways.
        unsafe { (&raw mut (*objects)[way]).write_volatile(object) }
    }
}

/// A call starts whose key is in its bucket already.
#[inline(always)]
fn insert_again(key: Key, start: *mut u64, word: u64) {
    match key {
        // One object has one call at a time: the one before has been given up.
        Key::Object(_, side) => {
            count_of(Counter::Abandoned, side);
            // SAFETY: a start in a bucket of the table.
            unsafe { start.write_volatile(word) }
        }
        Key::Goroutine(_) => {
            // SAFETY: as above.
            let depth = unsafe { nest(start) };
            insert_nested(key, depth, word >> DEPTH_BITS);
        }
    }
}

/// A call starts for which there is no room in its bucket.
#[inline(always)]
fn spill(key: Key, start_ns: u64, kind: u8) {
    let number = key.number();
    let call = Spilled { start_ns, nested: u64::from(kind) };
    let Err(error) = SPILL.insert(number, call, NO_EXIST) else { return };
    if error != EXISTS {
        return count_of(Counter::RefusedFull, key.side());
    }
    match key {
        Key::Goroutine(_) => {
            let Some(outer) = SPILL.get_ptr_mut(number) else {
                return count_of(Counter::RefusedFull, key.side());
            };
            // SAFETY: the entry is this goroutine's own.
            let depth = unsafe {
                (*outer).nested += 1;
                (*outer).nested
            };
            insert_nested(key, depth, start_ns);
        }
        Key::Object(_, side) => {
            count_of(Counter::Abandoned, side);
            if SPILL.insert(number, call, ANY).is_err() {
                count_of(Counter::RefusedFull, side);
            }
        }
    }
}

/// A call starts inside others of its goroutine, so many of them. A start that is not kept is not missed by the
/// others: they are counted all the same.
#[inline(always)]
fn insert_nested(outermost: Key, depth: u64, start_ns: u64) {
    if depth > u64::from(MAX_NESTING) {
        return count_of(Counter::RefusedNested, outermost.side());
    }
    let (number, call) = (outermost.number() + depth, Spilled { start_ns, nested: 0 });
    let Err(error) = SPILL.insert(number, call, NO_EXIST) else { return };
    if error != EXISTS {
        return count_of(Counter::RefusedFull, outermost.side());
    }
    // What a call left there that was nested in one given up since.
    count_of(Counter::Abandoned, outermost.side());
    if SPILL.insert(number, call, ANY).is_err() {
        count_of(Counter::RefusedFull, outermost.side());
    }
}

/// The innermost call of a goroutine finishes, whose outermost is in the spill map if it was kept at all; gives its
/// start as [`take`] does.
#[inline(never)]
fn remove_spilled(outermost: u64) -> u64 {
    let Some(outer) = SPILL.get_ptr_mut(outermost) else { return 0 };
    // SAFETY: the entry is this goroutine's own.
    let depth = unsafe { (*outer).nested };
    if depth == 0 {
        return take(outermost);
    }
    // SAFETY: as above.
    unsafe { (*outer).nested = depth - 1 };
    take_nested(outermost, depth)
}

/// Takes out the call that is nested so deep; gives its start as [`take`] does.
#[inline(always)]
fn take_nested(outermost: u64, depth: u64) -> u64 {
    if depth > u64::from(MAX_NESTING) { 0 } else { take(outermost + depth) }
}

/// Takes a call out of the spill map; gives its start and its kind as [`Started::of_word`] wants them, or 0.
#[inline(never)]
fn take(key: u64) -> u64 {
    let Some(call) = SPILL.get_ptr(key) else { return 0 };
    // SAFETY: no other call has this key while this one is in flight.
    let word = unsafe { (*call).start_ns << DEPTH_BITS | (*call).nested & DEPTH };
    let _ = SPILL.remove(key);
    word
}
