//! Label sets: reading the labels of a call, and giving each combination of labels a number.
//!
//! Strings are interned by content: the whole set is the key of the map, so two sets never merge.

use aya_ebpf::helpers::generated::bpf_probe_read_user_str;
use monitor_ebpf::{Counter, LABELS, LabelSet, NO_SCRATCH, TEXT_BYTES, by_site, error_class, mark, protocol};

use super::{
    asm::{self, fetch_increment},
    maps::{LABEL_CACHE, LABEL_IDS, LABEL_SET_WORDS, LABEL_SETS, NEXT_LABEL, count, count_hot, recipe},
    memory::{Memory, ask, is_user_address},
    scratch::Scratch,
    shape::ShapeRef,
};

/// No name of a service or method is this long: such a length was misread.
const LENGTH_MAX: u64 = 1 << 20;
/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;
/// Stands for no number.
pub(crate) const NO_NUMBER: u32 = u32::MAX;
/// Spreads bits over a word: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// Index in `NEXT_LABEL` of the next number for a full set.
const FULL: u32 = 0;
/// Index in `NEXT_LABEL` of the next number for a set with `other` in it.
const OTHER: u32 = 1;

/// Number of words of a set before its texts.
const HEAD_WORDS: usize = core::mem::offset_of!(LabelSet, text) / 8;

/// A label set in scratch memory, aligned so that it can be cleared and copied by words.
#[repr(transparent)]
struct Set(LabelSet);

impl Set {
    #[inline(always)]
    fn words(&mut self) -> *mut u64 {
        (&raw mut self.0).cast()
    }

    #[inline(always)]
    fn word(&self, index: usize) -> u64 {
        // SAFETY: inside the set, at a multiple of eight.
        unsafe { (&raw const self.0).cast::<u64>().add(index).read_volatile() }
    }

    /// Returns a hash of the set: good enough for a cache, and quick. Two sums, so that one multiplication need not
    /// wait for the other.
    #[inline(always)]
    fn hash(&self) -> u64 {
        let (mut even, mut odd) = (0_u64, 0_u64);
        for index in 0..LABEL_SET_WORDS / 2 {
            even = (even ^ self.word(index * 2)).wrapping_mul(SPREAD);
            odd = (odd ^ self.word(index * 2 + 1)).wrapping_mul(SPREAD);
        }
        // The last of an odd number of words.
        even = (even ^ self.word(LABEL_SET_WORDS - 1)).wrapping_mul(SPREAD);
        (even ^ odd.rotate_left(32)).wrapping_mul(SPREAD)
    }

    /// Returns whether this is the set with that number.
    #[inline(always)]
    fn has_number(&self, number: u32) -> bool {
        let Some(known) = LABEL_SETS.get_ptr(number) else { return false };
        let known = known.cast::<u64>();
        let mut difference = 0;
        for index in 0..LABEL_SET_WORDS {
            // SAFETY: both have this many words.
            difference |= self.word(index) ^ unsafe { known.add(index).read_volatile() };
            difference = asm::settle(difference);
        }
        difference == 0
    }

    /// Overwrites the set with one of the map.
    #[inline(always)]
    fn copy(&mut self, known: *const u64) {
        for word in 0..LABEL_SET_WORDS {
            // SAFETY: both have this many words.
            unsafe { self.words().add(word).write_volatile(known.add(word).read_volatile()) }
        }
    }

    #[inline(always)]
    fn clear(&mut self, from: usize) {
        let zero = asm::unknown(0);
        for word in from..LABEL_SET_WORDS {
            // SAFETY: inside the set. Volatile keeps the compiler from calling a byte-wise `memset`.
            unsafe { self.words().add(word).write_volatile(zero) }
        }
    }
}

/// What a label set holds besides names.
pub(crate) struct Facts {
    /// Whether the call failed.
    pub(crate) failed: bool,
    /// Class of its error.
    pub(crate) error: u32,
    /// How often it was retried.
    pub(crate) retry: u16,
    /// Kind of stream, in the label sets of messages and of calls whose site selects their shape.
    pub(crate) stream: u8,
    /// The protocol: see [`monitor_ebpf::protocol`].
    pub(crate) protocol: u16,
    /// Whether the target's code panicked in it.
    pub(crate) panicked: bool,
}

impl Facts {
    /// The facts while nothing is known of the call's outcome.
    pub(crate) const NONE: Self = Self {
        failed: false,
        error: error_class::NONE,
        retry: 0,
        stream: 0,
        protocol: protocol::NONE,
        panicked: false,
    };

    /// Returns the first words of their label set, before its texts.
    #[inline(always)]
    fn head(&self, side: u8, call_type: u8) -> [u64; HEAD_WORDS] {
        let bytes = u32::from_le_bytes([side, call_type, u8::from(self.failed), self.stream]);
        [
            u64::from(bytes) | u64::from(self.retry) << 32,
            u64::from(self.error) << 32,
            u64::from(self.protocol) | u64::from(self.panicked) << 16,
        ]
    }
}

/// Returns the number of the label set; `None` if the table has no room, not even for `other`. Overwrites the windows.
#[inline(always)]
pub(crate) fn number(shape: ShapeRef, facts: &Facts, scratch: &mut Scratch) -> Option<u32> {
    let call_type = shape.call_type(facts.stream, scratch);
    let names = [header(shape, 0, scratch), header(shape, 1, scratch), header(shape, 2, scratch)];
    let head = facts.head(shape.side(), call_type);
    with_head(scratch, head);
    let (set, memory) = scratch.label_set_and_memory();
    // SAFETY: `with_head` has written every byte.
    let set = unsafe { &mut *set };
    for (label, (pointer, length)) in names.into_iter().enumerate() {
        read(set, label, memory, pointer, length);
    }
    let number = number_of(scratch);
    (number != NO_NUMBER).then_some(number)
}

/// Returns the address and length of a label's string. A label that the shape does not have is empty.
#[inline(always)]
fn header(shape: ShapeRef, label: usize, scratch: &Scratch) -> (u64, u64) {
    match shape.label_at(label) {
        NO_SCRATCH => (0, 0),
        at => (scratch.word(at), scratch.word(at + 8)),
    }
}

/// Writes a label set with these first words and empty texts to scratch memory.
#[inline(always)]
fn with_head(scratch: &mut Scratch, head: [u64; HEAD_WORDS]) {
    // SAFETY: as long as a set, and every byte is written before it is read.
    let set = unsafe { &mut *scratch.label_set().cast::<Set>() };
    for (index, word) in head.into_iter().enumerate() {
        // SAFETY: inside the set.
        unsafe { set.words().add(index).write_volatile(asm::unknown(word)) }
    }
    set.clear(HEAD_WORDS);
}

/// Writes the label set with this number to scratch memory, or an empty one.
#[inline(always)]
pub(crate) fn base(scratch: &mut Scratch, number: u32) -> &mut LabelSet {
    // SAFETY: as long as a set, and every byte is written before it is read.
    let set = unsafe { &mut *scratch.label_set().cast::<Set>() };
    let known = if number == NO_NUMBER { None } else { LABEL_SETS.get_ptr(number) };
    match known {
        Some(known) => set.copy(known.cast()),
        None => set.clear(0),
    }
    &mut set.0
}

/// Returns the number of the label set in scratch memory, or [`NO_NUMBER`].
#[inline(always)]
pub(crate) fn number_of(scratch: &mut Scratch) -> u32 {
    // SAFETY: a set, made by `base`.
    known_number(unsafe { &mut *scratch.label_set().cast::<Set>() })
}

/// Returns the set's number, or [`NO_NUMBER`]. Functions that are not inlined return plain numbers only.
#[inline(never)]
fn known_number(set: &mut Set) -> u32 {
    let Some(cached) = LABEL_CACHE.get_ptr_mut((set.hash() >> recipe!(cache_shift)) as u32) else {
        return NO_NUMBER;
    };
    // SAFETY: the map's values are `u64`.
    let number = (unsafe { cached.read_volatile() } as u32).wrapping_sub(1);
    if set.has_number(number) {
        return number;
    }
    let number = look_up(set);
    // SAFETY: as above. Readers compare the whole set.
    unsafe { cached.write_volatile(u64::from(number.wrapping_add(1))) }
    number
}

/// Returns the set's number by its whole content, or [`NO_NUMBER`].
#[inline(never)]
fn look_up(set: &mut Set) -> u32 {
    // SAFETY: entries are never removed.
    if let Some(number) = unsafe { LABEL_IDS.get(&set.0) } {
        return *number;
    }
    new_number(set).unwrap_or(NO_NUMBER)
}

/// Copies a Go string into the set.
#[inline(always)]
fn read(set: &mut LabelSet, label: usize, memory: &mut Memory, pointer: u64, length: u64) {
    if length == 0 {
        return;
    }
    if length > LENGTH_MAX || !is_user_address(pointer) {
        count(Counter::LabelUnreadable);
        set.marks[label] = mark::UNREADABLE;
        return;
    }
    let literal = pointer.wrapping_sub(recipe!(literals));
    if literal < recipe!(literals_length) && literal + length <= recipe!(literals_length) {
        return by_address(set, label, mark::LITERAL, pointer, length);
    }
    let room = if recipe!(by_site) == by_site::PATH { LABELS * TEXT_BYTES } else { TEXT_BYTES };
    let kept = if length > room as u64 {
        set.marks[label] = mark::CUT;
        room as u32
    } else {
        length as u32
    };
    set.lengths[label] = kept as u8;
    let text = (&raw mut set.text[label]).cast::<u64>();
    // SAFETY: `kept` is at most the size of a text, or of all of them, of which this is the first.
    if !unsafe { memory.copy_text(text, kept, pointer) } {
        count(Counter::LabelFault);
        // Not in memory: the agent may find the bytes in the file.
        let kept = in_image(pointer);
        by_address(set, label, mark_if(kept, mark::ADDRESS), pointer & kept, length & kept);
        set.lengths[label] &= kept as u8;
    }
}

/// Returns all ones if an address lies in the executable, otherwise 0. An unreadable string elsewhere is in no file,
/// and each of its addresses would take a label set of its own.
///
/// No branch: the verifier would follow each branch through the rest of the program.
#[inline(always)]
fn in_image(address: u64) -> u64 {
    let offset = address.wrapping_sub(recipe!(image));
    // Offset and length are below half of all addresses, except the offset of an address before the executable.
    let is_inside = (offset.wrapping_sub(recipe!(image_length)) & !offset).cast_signed() >> 63;
    asm::unknown(is_inside.cast_unsigned())
}

/// Returns this mark if `kept` is all ones, otherwise [`mark::UNREADABLE`].
#[inline(always)]
fn mark_if(kept: u64, by_place: u8) -> u8 {
    mark::UNREADABLE ^ ((mark::UNREADABLE ^ by_place) & kept as u8)
}

/// Copies into the set a string whose pointer and length lie at an address.
#[inline(always)]
pub(crate) fn read_behind(set: &mut LabelSet, label: usize, address: u64) {
    let mut header = [0_u64; 2];
    // SAFETY: the header has this many bytes.
    let is_read = unsafe { ask((&raw mut header).cast(), size_of_val(&header) as u32, address) };
    if !is_read {
        count(Counter::LabelUnreadable);
        set.marks[label] = mark::UNREADABLE;
        return;
    }
    let mut memory = Memory::uninit();
    memory.ask();
    read(set, label, &mut memory, header[0], header[1]);
}

/// Copies a zero-terminated string into the set. A null pointer gives an empty string.
#[inline(always)]
pub(crate) fn read_c(set: &mut LabelSet, label: usize, pointer: u64) {
    if pointer == 0 {
        return;
    }
    if !is_user_address(pointer) {
        count(Counter::LabelUnreadable);
        set.marks[label] = mark::UNREADABLE;
        return;
    }
    let text = (&raw mut set.text[label]).cast::<u8>();
    // SAFETY: a text has this many bytes.
    let result = unsafe { bpf_probe_read_user_str(text.cast(), TEXT_BYTES as u32, pointer as *const _) };
    if result < 0 {
        count(Counter::LabelFault);
        // Not in memory: the agent may find the bytes in the file.
        let kept = in_image(pointer);
        set.marks[label] = mark_if(kept, mark::C_ADDRESS);
        set.lengths[label] = 8 & kept as u8;
        // SAFETY: a text lies at a multiple of eight in scratch memory. The helper has cleared the rest.
        return unsafe { text.cast::<u64>().write_volatile(pointer & kept) };
    }
    // The helper counts the terminating zero.
    let length = result.cast_unsigned();
    if length < TEXT_BYTES as u64 {
        set.lengths[label] = (length as u8).saturating_sub(1);
        return;
    }
    // The helper has put a 0 into the last place, whatever the string has there.
    let last = TEXT_BYTES as u64 - 1;
    let mut rest = [0_u8; 2];
    // SAFETY: one byte each.
    let is_cut = unsafe {
        let read = |into: *mut u8, at: u64| ask(into, 1, pointer.wrapping_add(at));
        !read(&raw mut rest[0], last) || rest[0] != 0 && (!read(&raw mut rest[1], last + 1) || rest[1] != 0)
    };
    set.text[label][TEXT_BYTES - 1] = rest[0];
    set.lengths[label] = TEXT_BYTES as u8 - u8::from(rest[0] == 0);
    if is_cut {
        set.marks[label] = mark::CUT;
    }
}

/// Stores the string's address and length in place of its bytes.
#[inline(always)]
fn by_address(set: &mut LabelSet, label: usize, mark: u8, pointer: u64, length: u64) {
    set.marks[label] = mark;
    set.lengths[label] = 16;
    let words = (&raw mut set.text[label]).cast::<u64>();
    // SAFETY: a text has room for two words, and lies at a multiple of eight in scratch memory. The rest is
    // zero: nothing was written, or the helper cleared what it could not read.
    unsafe {
        words.write_volatile(asm::unknown(pointer));
        words.add(1).write_volatile(asm::unknown(length));
    }
}

/// Gives a number to a set that is seen for the first time.
#[inline(always)]
fn new_number(set: &mut Set) -> Option<u32> {
    if let Some(number) = take_number(FULL, recipe!(label_limit)) {
        return publish(set, number);
    }
    // Inlined, since each further function takes stack.
    count_hot(Counter::LabelSetRefused, 0);
    for label in 0..LABELS {
        // SAFETY: references. Volatile keeps the compiler from calling `memset`, which takes stack.
        unsafe {
            (&raw mut set.0.lengths[label]).write_volatile(0);
            (&raw mut set.0.marks[label]).write_volatile(mark::OTHER);
        }
    }
    set.clear(core::mem::offset_of!(LabelSet, text) / 8);
    // SAFETY: entries are never removed.
    if let Some(number) = unsafe { LABEL_IDS.get(&set.0) } {
        return Some(*number);
    }
    let limit = recipe!(label_limit);
    let number = limit + take_number(OTHER, recipe!(label_capacity) - limit)?;
    publish(set, number)
}

/// Takes the next free number below `limit`.
#[inline(always)]
fn take_number(kind: u32, limit: u32) -> Option<u32> {
    let next = NEXT_LABEL.get_ptr_mut(kind)?;
    // Checked first, so that refused calls do not advance the counter forever.
    // SAFETY: the map's values are `u64`.
    if unsafe { next.read_volatile() } >= u64::from(limit) {
        return None;
    }
    // SAFETY: as above.
    let number = unsafe { fetch_increment(next) };
    (number < u64::from(limit)).then_some(number as u32)
}

/// Writes the set where the agent reads it, then makes its number known to the programs.
///
/// Two CPUs may meet a new set at once: both numbers are then valid, and the agent adds them up.
#[inline(always)]
fn publish(set: &mut Set, number: u32) -> Option<u32> {
    let copy = LABEL_SETS.get_ptr_mut(number)?.cast::<u64>();
    for word in 0..LABEL_SET_WORDS {
        // SAFETY: both have this many words.
        unsafe { copy.add(word).write_volatile(set.words().add(word).read_volatile()) }
    }
    let _ = LABEL_IDS.insert(&set.0, number, NO_EXIST);
    Some(number)
}
