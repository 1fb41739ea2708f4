//! Calls that have started and not finished.
//!
//! Nearly all of them are in a table of buckets: a look-up, a claim and a release there touch one cache line and
//! take a fraction of the time of a kernel hash map. What finds its bucket full, and calls nested in others of
//! their goroutine, go to the spill map.
//!
//! No other program touches a call's entries: an object has one call at a time, and a goroutine runs on one thread
//! at a time. The claim of a free way is contended; and the agent takes out what is too old to be still under way.

use monitor_ebpf::{Bucket, Counter, DEPTH_BITS, MAX_NESTING, Spilled, WAYS, key, sampling, side};

use super::{
    asm::compare_exchange,
    maps::{IN_FLIGHT, OBJECTS, SAMPLING, SPILL, count_of, recipe},
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
        bucket_of(self.number())
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

/// The kind of a call that is in flight, keyed by its object; 0 where it is not, or nobody knows.
#[inline(always)]
pub(crate) fn kind(key: Key) -> u8 {
    let Some(bucket) = key.bucket() else { return 0 };
    if let Some(start) = find(bucket, key.number()) {
        // SAFETY: a start in a bucket of the table.
        return Started::of_word(unsafe { start.read_volatile() }).kind;
    }
    // SAFETY: the entry stays while its call is in flight.
    SPILL.get_ptr(key.number()).map_or(0, |call| unsafe { (*call).nested as u8 })
}

/// Forgets the call that finishes with this object and gives its start, if it was seen and is surely its own.
#[inline(always)]
pub(crate) fn remove(key: Key, object: u64) -> Option<Started> {
    seen(remove_word(key, object))
}

/// As [`remove`], with the start as [`take`] gives it: a number on every way, since the compiler may move around what
/// an `Option` has beside nothing, and the verifier takes that for a read.
#[inline(always)]
fn remove_word(key: Key, object: u64) -> u64 {
    let Some(bucket) = key.bucket() else { return 0 };
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
        if may_be_of_another(key, word >> DEPTH_BITS) {
            return take_own(number, way as u64, object);
        }
        let depth = word & DEPTH;
        if depth != 0 && matches!(key, Key::Goroutine(_)) {
            // SAFETY: as above.
            unsafe { compare_exchange(start, word, word - u64::from(depth != DEPTH)) };
            return take_nested(number, depth);
        }
        // The agent may have given the call up just now, and another may have taken the way.
        // SAFETY: as above.
        let still_there = unsafe { compare_exchange(place, number, 0) } == number;
        return if still_there { word } else { 0 };
    }
    if !has_spilled() {
        return 0;
    }
    if let Key::Goroutine(_) = key {
        return remove_spilled(number);
    }
    let word = take(number);
    if word == 0 || !may_be_of_another(key, word >> DEPTH_BITS) {
        return word;
    }
    count_of(Counter::StartSampledOut, key.side());
    0
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
    if remove(key, 0).is_some() {
        count_of(Counter::Abandoned, key.side());
    }
    0
}

/// Stands for no label set.
pub(crate) const NO_LABEL_SET: u32 = super::labels::NO_NUMBER;

/// What was remembered of an operation that may have its names from its start.
pub(crate) struct Named {
    /// When it started, nanoseconds of `CLOCK_MONOTONIC`; 0 where that was not seen.
    pub(crate) at_ns: u64,
    /// Its label set at the start, or [`NO_LABEL_SET`].
    pub(crate) label_set: u32,
}

/// Remembers the start of an operation that is keyed by an object, and its label set.
#[inline(always)]
pub(crate) fn insert_named(key: Key, label_set: u32, start_ns: u64) {
    let index = key.index();
    let (Some(bucket), Some(label_sets)) = (IN_FLIGHT.get_ptr_mut(index), OBJECTS.get_ptr_mut(index)) else {
        return count_of(Counter::RefusedFull, key.side());
    };
    let number = key.number();
    // First the way that has the key already, then any that is free.
    for is_free in [false, true] {
        for way in 0..WAYS {
            // SAFETY: a way of a bucket in the table, and of the words beside it.
            unsafe {
                let place = &raw mut (*bucket).keys[way];
                let wanted = if is_free { 0 } else { number };
                if place.read_volatile() != wanted || (is_free && compare_exchange(place, 0, number) != 0) {
                    continue;
                }
                (&raw mut (*label_sets)[way]).write_volatile(u64::from(label_set));
                (&raw mut (*bucket).starts[way]).write_volatile(start_ns << DEPTH_BITS);
            }
            if !is_free {
                count_of(Counter::Abandoned, key.side());
            }
            return;
        }
    }
    let call = Spilled { start_ns, nested: u64::from(label_set) << DEPTH_BITS };
    note_spill();
    let Err(error) = SPILL.insert(number, call, NO_EXIST) else { return };
    let is_there = error == EXISTS;
    if is_there {
        count_of(Counter::Abandoned, key.side());
    }
    if !is_there || SPILL.insert(number, call, ANY).is_err() {
        count_of(Counter::RefusedFull, key.side());
    }
}

/// Forgets an operation that finishes and gives what was remembered of it.
#[inline(always)]
pub(crate) fn remove_named(key: Key) -> Named {
    const NOTHING: Named = Named { at_ns: 0, label_set: NO_LABEL_SET };
    let index = key.index();
    let (Some(bucket), Some(label_sets)) = (IN_FLIGHT.get_ptr_mut(index), OBJECTS.get_ptr(index)) else {
        return NOTHING;
    };
    let number = key.number();
    for way in 0..WAYS {
        // SAFETY: a way of a bucket in the table, and of the words beside it.
        unsafe {
            let place = &raw mut (*bucket).keys[way];
            if place.read_volatile() != number {
                continue;
            }
            let at_ns = (&raw const (*bucket).starts[way]).read_volatile() >> DEPTH_BITS;
            let label_set = (&raw const (*label_sets)[way]).read_volatile() as u32;
            // The agent may have given it up just now, and another may have taken the way.
            if compare_exchange(place, number, 0) != number {
                return NOTHING;
            }
            return Named { at_ns, label_set };
        }
    }
    let Some(call) = SPILL.get_ptr(number) else { return NOTHING };
    // SAFETY: no other operation has this key while this one is under way.
    let found =
        unsafe { Named { at_ns: (*call).start_ns, label_set: ((*call).nested >> DEPTH_BITS) as u32 } };
    let _ = SPILL.remove(number);
    found
}

/// Number of a key's bucket.
#[inline(always)]
fn bucket_of(number: u64) -> u32 {
    (number.wrapping_mul(SPREAD) >> recipe!(bucket_shift)) as u32
}

/// One of the words of [`sampling`].
#[inline(always)]
fn sampling(index: u32) -> u64 {
    // SAFETY: the map's values are `u64`.
    SAMPLING.get_ptr(index).map_or(0, |word| unsafe { word.read_volatile() })
}

/// Have starts been watched in windows, so that one that was not seen is nothing unusual?
#[inline(always)]
pub(crate) fn is_sampled() -> bool {
    sampling(sampling::MODE) != sampling::FULL
}

/// Is a call that finishes at this time asked for the start that it has recorded itself?
#[inline(always)]
pub(crate) fn is_asked(now: u64) -> bool {
    now & sampling(sampling::ASKED) == 0
}

/// Was there ever a call that did not fit into its bucket? Saves most look-ups in the spill map.
#[inline(always)]
fn has_spilled() -> bool {
    sampling(sampling::SPILLED) != 0
}

/// From now on calls are looked for in the spill map, too. To be called before one is put there. Gives nothing of use.
#[inline(never)]
fn note_spill() -> u32 {
    if !has_spilled()
        && let Some(word) = SAMPLING.get_ptr_mut(sampling::SPILLED)
    {
        // SAFETY: the map's values are `u64`.
        unsafe { word.write_volatile(1) }
    }
    0
}

/// Can a start under this key be that of another call than the one that finishes? A server's object has one call at a
/// time, whose finish is always seen. Calls of a goroutine nest, which shows as long as all their starts are seen. A
/// client's stream may be dropped without a finish, and its object used for another.
#[inline(always)]
fn may_be_of_another(key: Key, start_ns: u64) -> bool {
    if recipe!(by_site) != 0 || key.side() == side::SERVER {
        return false;
    }
    let is_stream = matches!(key, Key::Object(..));
    start_ns < sampling(sampling::SEEN_SINCE) || (is_stream && sampling(sampling::MODE) == sampling::WINDOWS)
}

/// A call finishes after starts went unseen: gives the start in a way of its bucket as [`take`] does if it is surely its
/// own. That is so if the object is the one it started with, since nobody else can have that before this finish. The
/// start is forgotten in any case: the next finish could not tell either.
#[inline(never)]
fn take_own(number: u64, way: u64, object: u64) -> u64 {
    let (index, way) = (bucket_of(number), way as usize & (WAYS - 1));
    let Some(bucket) = IN_FLIGHT.get_ptr_mut(index) else { return 0 };
    let Some(objects) = OBJECTS.get_ptr(index) else { return 0 };
    // SAFETY: a way of a bucket in the table, and of the objects beside it.
    let (word, started_with, was_there) = unsafe {
        let word = (&raw const (*bucket).starts[way]).read_volatile();
        let started_with = (&raw const (*objects)[way]).read_volatile();
        (word, started_with, compare_exchange(&raw mut (*bucket).keys[way], number, 0) == number)
    };
    if !was_there {
        return 0;
    }
    if number & key::BITS == key::GOROUTINE && word & DEPTH == 0 && started_with == object {
        return word;
    }
    count_of(Counter::StartSampledOut, side::CLIENT);
    if number & key::BITS == key::GOROUTINE && word & DEPTH != 0 {
        forget_spilled(number);
    }
    0
}

/// Forgets all starts of a goroutine in the spill map, since it can't be told any more which finish is whose. Gives
/// nothing of use.
#[inline(never)]
fn forget_spilled(outermost: u64) -> u32 {
    for depth in 0..=u64::from(MAX_NESTING) {
        if SPILL.remove(outermost + depth).is_ok() {
            count_of(Counter::StartSampledOut, side::CLIENT);
        }
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
    note_spill();
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
    note_spill();
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
    let (start_ns, depth) = unsafe { ((*outer).start_ns, (*outer).nested) };
    if start_ns < sampling(sampling::SEEN_SINCE) {
        forget_spilled(outermost);
        return 0;
    }
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
