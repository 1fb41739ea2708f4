//! Calls that have started and not finished.
//!
//! Nearly all of them are in a table of buckets: a look-up, a claim and a release there touch one cache line and
//! take a fraction of the time of a kernel hash map. Each key has two buckets there: a near one, among few, and a far one,
//! among all, for when the near one is full. Objects that are made anew for each call would else find another line that is in
//! no cache at each. What finds both full, and calls nested in others of their goroutine, go to the spill map.
//!
//! No other program touches a call's entries: an object has one call at a time, and a goroutine runs on one thread
//! at a time. The claim of a free way is contended; and the agent takes out what is too old to be still under way.

use monitor_ebpf::{
    Bucket, Counter, DEPTH_BITS, ENDED_KEYS, MAX_NESTING, Spilled, WAYS, key, sampling, side,
};

use super::{
    asm::{compare_exchange, exchange},
    maps::{ENDED, IN_FLIGHT, OBJECTS, SAMPLING, SPILL, count_hot, count_of, recipe},
    memory::word,
};

/// `BPF_ANY`: insert or replace.
const ANY: u64 = 0;
/// `BPF_NOEXIST`: insert, fail when the key is there.
const NO_EXIST: u64 = 1;
/// `EEXIST`.
const EXISTS: i32 = -17;
/// Spreads the bits of an address over a word: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// Where a goroutine has the end of its stack, `g.stack.hi`: behind its beginning, before the limit at 16 that each function's stack
/// check reads (`runtime/runtime2.go`, Go 1.4 and later).
const STACK_END: u64 = 8;
/// The number of nested calls in a start of a bucket. When it is reached it stays: which finish belongs to which
/// start can't be told any more, so all are unpaired rather than wrong.
const DEPTH: u64 = (1 << DEPTH_BITS) - 1;

/// What tells a call in flight from others: a number that is not 0, with what it is of in its lowest bits. See [`key`].
#[derive(Clone, Copy)]
pub(crate) struct Key(u64);

impl Key {
    /// That of a call by its object.
    #[inline(always)]
    pub(crate) fn of_object(address: u64, side: u8) -> Self {
        Self(address & !key::BITS | if side == side::SERVER { key::SERVER } else { key::CLIENT })
    }

    /// That of a call by its goroutine, which makes it.
    #[inline(always)]
    pub(crate) fn of_goroutine(address: u64) -> Self {
        Self(address & !key::BITS | key::GOROUTINE)
    }

    /// That of a call by its place on the stack of a goroutine, at the entry and at the return of its function: how far it is
    /// from the stack's end, which stays when Go moves the stack. The depth is spread over all bits, so that it meets no other
    /// goroutine's. No address has the highest bit, so it is not 0.
    #[inline(always)]
    pub(crate) fn of_frame(goroutine: u64, stack_pointer: u64, side: u8) -> Self {
        let depth = word(goroutine + STACK_END).wrapping_sub(stack_pointer);
        Self::of_object((goroutine ^ depth.wrapping_mul(SPREAD)) >> 4 | 1 << 63, side)
    }

    /// The same of one among several operations, whose calls may have the same object, number or goroutine at once. No
    /// address has these bits; of a number the highest below the one that is set are mixed with it.
    #[inline(always)]
    pub(crate) fn apart(self, operation: u8) -> Self {
        Self(self.0 ^ u64::from(operation) << key::APART_SHIFT)
    }

    /// Is it a goroutine, whose calls nest?
    #[inline(always)]
    pub(crate) fn is_goroutine(self) -> bool {
        self.0 & key::BITS == key::GOROUTINE
    }

    /// Only calls that the target handles have their object alone as key.
    #[inline(always)]
    fn side(self) -> u8 {
        if self.0 & key::BITS == key::SERVER { side::SERVER } else { side::CLIENT }
    }
}

/// What was remembered of a call. Numbers on every way: the compiler may move around what an `Option` has beside
/// nothing, and the verifier takes that for a read.
#[derive(Clone, Copy)]
pub(crate) struct Started {
    /// When it started, nanoseconds of `CLOCK_MONOTONIC`; 0 where that was not seen.
    pub(crate) at_ns: u64,
    /// What else there is, as [`told`] packs it: in one word, since the stack is nearly full.
    told: u64,
}

/// Kind and label set of a call in one word.
#[inline(always)]
fn told(label_set: u32, kind: u8) -> u64 {
    u64::from(label_set) << DEPTH_BITS | u64::from(kind)
}

impl Started {
    /// Nothing was seen.
    const UNSEEN: Self = Self { at_ns: 0, told: (NO_LABEL_SET as u64) << DEPTH_BITS };

    /// From the start above [`DEPTH_BITS`] bits, which hold the kind of a call that is keyed by its object.
    #[inline(always)]
    fn of_word(word: u64, label_set: u32) -> Self {
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
        return insert_again(key, before.start, word);
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
            // SAFETY: as above.
            unsafe { compare_exchange(way.start, word, word - u64::from(depth != DEPTH)) };
            return take_nested(number, depth);
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

/// The outermost call of a goroutine finishes, while calls nested in it have not, and never will: a panic was caught on its way
/// through them. Gives its start as [`take`] does.
#[inline(never)]
fn take_outermost(number: u64) -> u64 {
    let way = locate(number);
    if !way.is_there() {
        return 0;
    }
    abandon_nested(number);
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
        abandon_nested(number);
        count_hot(Counter::Abandoned, side::CLIENT);
        // SAFETY: a start in a bucket of the table.
        unsafe { way.start.write_volatile(word) }
    }
    0
}

/// Gives up all calls nested in the outermost of a goroutine. Gives nothing of use.
#[inline(never)]
fn abandon_nested(number: u64) -> u32 {
    for depth in 1..=u64::from(MAX_NESTING) {
        if SPILL.remove(number + depth).is_ok() {
            count_hot(Counter::Abandoned, side::CLIENT);
        }
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
        // SAFETY: a start in a bucket of the table.
        unsafe { nest(way.start) }
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
            sampling(sampling::OBJECTS_SPILLED) != 0 && SPILL.remove(number).is_ok()
        };
        if was_there {
            count_hot(Counter::Abandoned, side);
        }
    }
    0
}

/// Where the key of a call is kept once it has ended.
#[inline(always)]
fn ended_at(number: u64) -> u32 {
    (number.wrapping_mul(SPREAD) >> (u64::BITS - ENDED_KEYS.trailing_zeros())) as u32
}

/// A call starts: one of the same key that has ended is another.
#[inline(always)]
pub(crate) fn begin_once(key: Key) {
    let Some(ended) = ENDED.get_ptr_mut(ended_at(key.0)) else { return };
    // SAFETY: the map's values are `u64`.
    unsafe {
        if ended.read_volatile() == key.0 {
            compare_exchange(ended, key.0, 0);
        }
    }
}

/// A call ends: false if it has ended just now. Several threads may end one at the same moment, before the target's own memory
/// says that it has; the first is told here. Others may have taken the place since, so that the call counts once more, if they
/// end within that moment.
#[inline(always)]
pub(crate) fn ends_once(key: Key) -> bool {
    let Some(ended) = ENDED.get_ptr_mut(ended_at(key.0)) else { return true };
    // SAFETY: the map's values are `u64`.
    unsafe { exchange(ended, key.0) != key.0 }
}

/// Stands for no label set.
pub(crate) const NO_LABEL_SET: u32 = super::labels::NO_NUMBER;

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
    let call = Spilled { start_ns, nested: told(label_set, kind) };
    note_spill();
    note(sampling::OBJECTS_SPILLED);
    let Err(error) = SPILL.insert(number, call, NO_EXIST) else { return };
    if error != EXISTS {
        return count_of(Counter::RefusedFull, key.side());
    }
    replace(number, start_ns, call.nested, key.side());
}

/// Puts a start into the spill map in place of one under the same key, which gets no end any more. Where there is no memory for
/// it the old one must not stay: the next finish would take it for its own. Gives nothing of use: see the module on labels.
#[inline(never)]
fn replace(number: u64, start_ns: u64, nested: u64, side: u8) -> u32 {
    count_of(Counter::Abandoned, side);
    if SPILL.insert(number, Spilled { start_ns, nested }, ANY).is_err() {
        let _ = SPILL.remove(number);
        count_of(Counter::RefusedFull, side);
    }
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
    if !has_spilled() {
        return Started::UNSEEN;
    }
    let Some(call) = SPILL.get_ptr(number) else { return Started::UNSEEN };
    // SAFETY: no other call has this key while this one is under way.
    let started = unsafe { Started { at_ns: (*call).start_ns, told: (*call).nested } };
    // The agent may have given it up just now, and counted that.
    if SPILL.remove(number).is_ok() { started } else { Started::UNSEEN }
}

/// Number of a key's far bucket.
#[inline(always)]
fn far(number: u64) -> u32 {
    (number.wrapping_mul(SPREAD) >> recipe!(bucket_shift)) as u32
}

/// Number of its near one.
#[inline(always)]
fn near(number: u64) -> u32 {
    far(number) & recipe!(near_mask)
}

/// A call of an object starts and has a place in the table: one of the same object in the spill map has got no end, and its
/// start must not be taken for that of a later one.
#[inline(always)]
fn displace_spilled(key: Key) {
    if sampling(sampling::OBJECTS_SPILLED) != 0 && SPILL.remove(key.0).is_ok() {
        count_of(Counter::Abandoned, key.side());
    }
}

/// Where the call with this key is, if anywhere in the table: 0, which marks free ways, is nowhere.
#[inline(always)]
fn locate(number: u64) -> Way {
    if number == 0 {
        return Way::NOWHERE;
    }
    let way = search(near(number), number);
    if way.is_there() || !has_spilled() { way } else { Way::at(search_far(number)) }
}

/// Functions that are not inlined give numbers only.
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

/// Takes a free way for this key, if there is one and the key can have one.
#[inline(always)]
fn claim(number: u64) -> Way {
    if number == 0 {
        return Way::NOWHERE;
    }
    let way = claim_in(near(number), number);
    if way.is_there() { way } else { Way::at(claim_far(number)) }
}

/// Rare.
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

/// A way of a bucket in the table, or none, with all fields set: see [`Started`].
#[derive(Clone, Copy)]
struct Way {
    key: *mut u64,
    start: *mut u64,
    /// Number of the bucket times [`WAYS`], plus its number there.
    place: u32,
}

impl Way {
    /// None.
    const NOWHERE: Self = Self { key: core::ptr::null_mut(), start: core::ptr::null_mut(), place: u32::MAX };

    /// # Safety
    /// `ways` must be the bucket of that number, and `index` below [`WAYS`].
    #[inline(always)]
    unsafe fn of(ways: *mut Bucket, bucket: u32, index: usize) -> Self {
        // SAFETY: the caller vouches for it.
        let (key, start) = unsafe { (&raw mut (*ways).keys[index], &raw mut (*ways).starts[index]) };
        Self { key, start, place: bucket * WAYS as u32 + index as u32 }
    }

    /// That at a place, if it is one.
    #[inline(always)]
    fn at(place: u32) -> Self {
        let bucket = place / WAYS as u32;
        let Some(ways) = IN_FLIGHT.get_ptr_mut(bucket) else { return Self::NOWHERE };
        // SAFETY: the bucket of that number.
        unsafe { Self::of(ways, bucket, place as usize % WAYS) }
    }

    #[inline(always)]
    fn is_there(self) -> bool {
        !self.key.is_null()
    }

    /// Gives it back; false if it is no longer the key's: the agent may have given the call up just now, and another may
    /// have taken the way.
    #[inline(always)]
    fn free(self, number: u64) -> bool {
        // SAFETY: a key in a bucket of the table.
        unsafe { compare_exchange(self.key, number, 0) == number }
    }

    /// The word beside it: the object of a call whose key it is not, or the label set that a call had as it started.
    #[inline(always)]
    fn beside(self) -> u64 {
        let words = OBJECTS.get_ptr(self.place / WAYS as u32);
        // SAFETY: an array of as many words as a bucket has ways.
        words.map_or(0, |words| unsafe { (&raw const (*words)[self.place as usize % WAYS]).read_volatile() })
    }

    /// Writes it, for the agent or for the finish. Calls in the spill map have none.
    #[inline(always)]
    fn write_beside(self, word: u64) {
        if let Some(words) = OBJECTS.get_ptr_mut(self.place / WAYS as u32) {
            // SAFETY: as above.
            unsafe { (&raw mut (*words)[self.place as usize % WAYS]).write_volatile(word) }
        }
    }
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

/// Was there ever a call that did not fit into its near bucket? Saves most look-ups elsewhere.
#[inline(always)]
fn has_spilled() -> bool {
    sampling(sampling::SPILLED) != 0
}

/// From now on calls are looked for elsewhere than in their near buckets, too. To be called before one is put there. Gives
/// nothing of use.
#[inline(never)]
fn note_spill() -> u32 {
    note(sampling::SPILLED);
    0
}

/// Sets one of the words of [`sampling`], unless it is.
#[inline(always)]
fn note(index: u32) {
    if sampling(index) == 0
        && let Some(word) = SAMPLING.get_ptr_mut(index)
    {
        // SAFETY: the map's values are `u64`.
        unsafe { word.write_volatile(1) }
    }
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
    start_ns < sampling(sampling::SEEN_SINCE) || (is_stream && sampling(sampling::MODE) == sampling::WINDOWS)
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
            // In line: each function more takes stack.
            count_hot(Counter::StartSampledOut, side::CLIENT);
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

/// A call starts whose key is in its bucket already.
#[inline(always)]
fn insert_again(key: Key, start: *mut u64, word: u64) {
    if key.is_goroutine() {
        // SAFETY: a start in a bucket of the table.
        let depth = unsafe { nest(start) };
        return insert_nested(key, depth, word >> DEPTH_BITS);
    }
    // One object has one call at a time: the one before has been given up.
    count_of(Counter::Abandoned, key.side());
    // SAFETY: as above.
    unsafe { start.write_volatile(word) }
}

/// A call starts for which there is no room in its buckets.
#[inline(always)]
fn spill(key: Key, start_ns: u64, kind: u8) {
    let number = key.0;
    let call = Spilled { start_ns, nested: u64::from(kind) };
    note_spill();
    if !key.is_goroutine() {
        note(sampling::OBJECTS_SPILLED);
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

/// A call starts inside others of its goroutine, so many of them. A start that is not kept is not missed by the
/// others: they are counted all the same.
#[inline(always)]
fn insert_nested(outermost: Key, depth: u64, start_ns: u64) {
    if depth > u64::from(MAX_NESTING) {
        return count_of(Counter::RefusedNested, outermost.side());
    }
    let (number, call) = (outermost.0 + depth, Spilled { start_ns, nested: 0 });
    note_spill();
    let Err(error) = SPILL.insert(number, call, NO_EXIST) else { return };
    if error != EXISTS {
        return count_of(Counter::RefusedFull, outermost.side());
    }
    // What a call left there that was nested in one given up since.
    replace(number, start_ns, call.nested, outermost.side());
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
    // The agent may have given it up just now, and counted that.
    if SPILL.remove(key).is_ok() { word } else { 0 }
}
