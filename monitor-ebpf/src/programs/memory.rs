//! Reading the target's memory.
//!
//! By its page tables where the agent has proved that this works: see [`monitor_ebpf::PageTables`]. Whatever they don't
//! lead to is asked of the kernel, as everything is where it doesn't: a page that is not there, one of 1 GiB, bytes on two
//! pages, more than a word that are all zero (which is what a fault gives).
//!
//! Nothing holds pages and tables still meanwhile: another thread of the target may take one away, and the kernel may move
//! it. Before it uses such memory for anything else, it must flush what processors know of it, and it counts that first
//! (`mm_context_t.tlb_gen`). So bytes were the target's, and where the tables say, if that count is the same
//! after they were read as before the first table was. Loads are not reordered on x86-64, nor are stores.

use core::{arch::asm, mem::MaybeUninit};

use aya_ebpf::helpers::{bpf_get_current_task, generated::bpf_probe_read_user};
use monitor_ebpf::{PROOF_WORDS, Proof, SCRATCH_BYTES, TEXT_BYTES, patched};

use super::{asm::unknown, maps::recipe};

/// Addresses below are never mapped (`vm.mmap_min_addr`).
const USER_MIN: u64 = 4_096;
/// First address that user space can't have, with four-level page tables.
const USER_MAX: u64 = 0x7fff_ffff_f000;
/// Bytes of a page.
const PAGE: u64 = 4_096;
/// Bytes of a large one, of which the table before the last one tells.
const LARGE_PAGE: u64 = 2 << 20;
/// Bits of an entry: something is there, and user space may read it.
const READABLE: u64 = 1 << 0 | 1 << 2;
/// It is no page like others: memory of a device, or the one page of zeros (`_PAGE_SPECIAL`).
const IS_SPECIAL: u64 = 1 << 9;
/// It stands for a large page, not for a table.
const IS_LARGE: u64 = 1 << 7;

/// Is this an address of user space? Reading at any other costs a fault.
#[inline(always)]
pub(crate) fn is_user_address(address: u64) -> bool {
    address.wrapping_sub(USER_MIN) < USER_MAX - USER_MIN
}

/// The memory of the process that runs. They are words that stay where they are: kept as values they would take stack, which
/// is nearly full.
pub(crate) struct Memory(MaybeUninit<[u64; 3]>);

/// Word with the place where the kernel describes the memory; or [`LATER`], or [`ASKED`]. The others mean something
/// when it is a place.
const OWN: usize = 0;
/// In the upper half how often translations of its addresses had been flushed as that was found out, which goes round long
/// after a program has ended; in the lower half the part of memory of 1 GiB that [`TABLE`] is of.
const FLUSHES: usize = 1;
/// Word with the place of the table that all addresses of that part go through: what lies side by side is looked for
/// from there on.
const TABLE: usize = 2;
/// How far an address is shifted to have the number of its part.
const PART: u32 = 30;
/// No part has this number.
const NOWHERE: u64 = u32::MAX as u64;
/// Not found out yet.
const LATER: u64 = 2;
/// Not wanted.
const ASKED: u64 = 1;

impl Memory {
    /// Before anything is known of it, which must be changed before anything is read.
    #[inline(always)]
    pub(crate) fn uninit() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// Has each read asked of the kernel.
    #[inline(always)]
    pub(crate) fn ask(&mut self) {
        self.set(OWN, ASKED);
    }

    /// Has it read by page tables, if they are known, and finds out at the first read where they are.
    #[inline(always)]
    pub(crate) fn find_later(&mut self) {
        self.set(OWN, if recipe!(tables.memory) == 0 { ASKED } else { LATER });
    }

    /// The same, and finds out now.
    #[inline(always)]
    pub(crate) fn find(&mut self) {
        if recipe!(tables.memory) == 0 {
            return self.ask();
        }
        let own = own();
        self.set(OWN, own);
        // Before anything else is read.
        self.set(FLUSHES, flushes(own) << 32 | NOWHERE);
    }

    #[inline(always)]
    fn set(&mut self, index: usize, word: u64) {
        // SAFETY: one of the words.
        unsafe { self.0.as_mut_ptr().cast::<u64>().add(index).write_volatile(word) }
    }

    #[inline(always)]
    fn get(&self, index: usize) -> u64 {
        // SAFETY: one of the words, which has been written.
        unsafe { self.0.as_ptr().cast::<u64>().add(index).read_volatile() }
    }

    /// Copies `length` bytes, and of these at least the words of the mask; false if they can't be read. The verifier
    /// must know both.
    ///
    /// # Safety
    /// `to` must be valid for so many bytes, and aligned to eight.
    #[inline(always)]
    pub(crate) unsafe fn copy(&mut self, to: *mut u64, length: usize, words: u32, address: u64) -> bool {
        // SAFETY: the caller vouches for the place.
        unsafe { copy(self, to, length as u64 | u64::from(words) << 32, address) != 0 }
    }

    /// # Safety
    /// As for [`Self::copy`].
    #[inline(always)]
    unsafe fn copy_by_tables(&mut self, to: *mut u64, length: usize, words: u32, address: u64) -> bool {
        let place = self.place(address, length as u64);
        if place == 0 {
            return false;
        }
        let mut from = pointer(place);
        let mut all = 0;
        // Not a loop: each step is left out by the verifier where its word is not wanted.
        macro_rules! copy {
            ($($index:literal)+) => { $(
                if words & 1 << $index != 0 && ($index + 1) * 8 <= length {
                    // SAFETY: the caller vouches for the place; the verifier for what is read.
                    all |= unsafe { copied(to.add($index), from.add($index % patched::WORDS)) };
                }
            )+ };
        }
        copy!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        if length > patched::WORDS * 8 {
            from = pointer(place + patched::WORDS as u64 * 8);
            copy!(16 17 18 19 20 21 22 23);
        }
        // What is left are less than eight bytes.
        let (rest, done) = (length & 7, length & !7);
        if rest != 0 {
            let from = pointer(place + done as u64).cast::<u8>();
            // SAFETY: as above.
            unsafe {
                let to = to.cast::<u8>().add(done);
                if rest & 4 != 0 {
                    all |= u64::from(copied::<u32>(to.cast(), from.cast()));
                }
                if rest & 2 != 0 {
                    all |= u64::from(copied::<u16>(to.add(rest & 4).cast(), from.add(rest & 4).cast()));
                }
                if rest & 1 != 0 {
                    all |= u64::from(copied::<u8>(to.add(rest & 6), from.add(rest & 6)));
                }
            }
        }
        // Flags and numbers of one word often are.
        (all != 0 || length <= 8) && self.stands()
    }

    /// Copies `length` bytes of text, at least one and at most [`TEXT_BYTES`], where zeros lie; false if that can't be
    /// done, and then all is zero still.
    ///
    /// # Safety
    /// `to` must be valid for a whole text, and aligned to eight.
    #[inline(always)]
    pub(crate) unsafe fn copy_text(&mut self, to: *mut u64, length: u32, address: u64) -> bool {
        // SAFETY: the caller vouches for the place.
        unsafe { copy_text(self, to, length, address) != 0 }
    }

    /// # Safety
    /// As for [`Self::copy_text`].
    #[inline(always)]
    unsafe fn copy_text_by_tables(&mut self, to: *mut u64, length: u64, address: u64) -> bool {
        // The last word has bytes behind the text.
        if length > TEXT_BYTES as u64 {
            return false;
        }
        let place = self.place(address, length + 7);
        if place == 0 {
            return false;
        }
        let from = pointer(place);
        let mut all = 0;
        macro_rules! copy {
            ($($index:literal)+) => { 'text: { $(
                // SAFETY: the caller vouches for the place; the verifier for what is read.
                unsafe {
                    let word = from.add($index).read_volatile();
                    let is_last = length <= ($index + 1) * 8;
                    let wanted = if is_last { u64::MAX >> ((($index + 1) * 8 - length) * 8) } else { u64::MAX };
                    all |= word;
                    to.add($index).write_volatile(unknown(word & wanted));
                    if is_last {
                        break 'text;
                    }
                }
            )+ } };
        }
        copy!(0 1 2 3 4 5 6 7);
        all != 0 && self.stands()
    }

    /// Where bytes lie in the kernel's memory; 0 if tables don't lead there, or they are on two pages.
    #[inline(always)]
    fn place(&mut self, address: u64, length: u64) -> u64 {
        if recipe!(tables.memory) == 0 || self.get(OWN) == ASKED {
            return 0;
        }
        if !is_user_address(address) || (address & (PAGE - 1)) + length > PAGE {
            return 0;
        }
        if self.get(OWN) == LATER {
            self.find();
        }
        // Wherever the way ends: else the verifier follows each end through all that comes later.
        unknown(self.place_of(address))
    }

    /// Where an address lies in the kernel's memory; 0 if tables don't lead there.
    #[inline(always)]
    fn place_of(&mut self, address: u64) -> u64 {
        let all = All::known();
        let known = self.get(FLUSHES);
        let part = address >> PART;
        if known & u64::from(u32::MAX) != part {
            self.set(FLUSHES, known >> 32 << 32 | part);
            self.set(TABLE, table_of(root(self.get(OWN)), all, address));
        }
        place_in(self.get(TABLE), all, address)
    }

    /// Has no page been taken away since that was found out?
    #[inline(always)]
    fn stands(&self) -> bool {
        flushes(self.get(OWN)) as u32 == (self.get(FLUSHES) >> 32) as u32
    }
}

/// Not inlined, as what follows: what it has in its hands would take stack. Gives 1 for yes.
///
/// # Safety
/// As for [`Memory::copy`]. In the number are the length, and above it the words.
#[inline(never)]
unsafe fn copy(memory: &mut Memory, to: *mut u64, what: u64, address: u64) -> u64 {
    let (length, words) = (what as u32, (what >> 32) as u32);
    // SAFETY: the caller vouches for the place.
    unsafe {
        (memory.copy_by_tables(to, length as usize, words, address) || ask(to.cast(), length, address)).into()
    }
}

/// # Safety
/// As for [`Memory::copy_text`].
#[inline(never)]
unsafe fn copy_text(memory: &mut Memory, to: *mut u64, length: u32, address: u64) -> u64 {
    // SAFETY: the caller vouches for the place.
    unsafe {
        (memory.copy_text_by_tables(to, length.into(), address) || ask(to.cast(), length, address)).into()
    }
}

/// Asks the kernel for bytes of the target; false if they can't be read.
///
/// # Safety
/// `to` must be valid for so many bytes.
#[inline(always)]
pub(crate) unsafe fn ask(to: *mut u8, length: u32, address: u64) -> bool {
    // SAFETY: the caller vouches for the place.
    is_user_address(address) && unsafe { bpf_probe_read_user(to.cast(), length, address as *const _) } >= 0
}

/// The byte at an address; all ones when it can't be read.
#[inline(always)]
pub(crate) fn byte(address: u64) -> u8 {
    let mut byte = 0_u8;
    // SAFETY: the byte is one.
    if unsafe { ask(&raw mut byte, 1, address) } { byte } else { u8::MAX }
}

/// The word at an address; 0 when it can't be read.
#[inline(always)]
pub(crate) fn word(address: u64) -> u64 {
    let mut word = 0_u64;
    // SAFETY: the word has eight bytes. The helper clears it when it fails.
    unsafe { ask((&raw mut word).cast(), 8, address) };
    word
}

/// Reads words by page tables as if so much memory were mapped at `start`; with none as programs do, as if so many flushes
/// had been missed.
#[inline(always)]
pub(crate) fn prove(address: u64, start: u64, length: u64) -> Proof {
    let own = own();
    let mut proof = Proof { root: root(own), flushes: flushes(own), ..Proof::NONE };
    if length == 0 {
        let mut memory = Memory::uninit();
        memory.find();
        memory.set(FLUSHES, memory.get(FLUSHES).wrapping_sub(start << 32));
        let to = proof.words.as_mut_ptr();
        // SAFETY: a place for as many words.
        proof.is_read = unsafe { memory.copy_by_tables(to, PROOF_WORDS * 8, u32::MAX, address) }.into();
        return proof;
    }
    let place = place_of(proof.root, All { start, length }, address);
    if place != 0 {
        let from = pointer(place);
        for (index, word) in proof.words.iter_mut().enumerate() {
            // SAFETY: the verifier vouches for it.
            *word = unsafe { from.add(index).read_volatile() };
        }
        proof.is_read = 1;
    }
    proof
}

/// Where the kernel describes the memory of the process.
#[inline(always)]
fn own() -> u64 {
    // SAFETY: a helper without preconditions.
    let task = unsafe { bpf_get_current_task() };
    kernel_word(task.wrapping_add(recipe!(tables.mm_at).into()))
}

/// Where the first table of that memory lies.
#[inline(always)]
fn root(memory: u64) -> u64 {
    kernel_word(memory.wrapping_add(recipe!(tables.root_at).into()))
}

/// How often translations of addresses of that memory have been flushed.
#[inline(always)]
fn flushes(memory: u64) -> u64 {
    kernel_word(memory.wrapping_add(recipe!(tables.flushes_at).into()))
}

/// Where an address of the process lies in the kernel's memory; 0 where no table says so, or something lies behind the end
/// of all memory.
#[inline(always)]
fn place_of(root: u64, all: All, address: u64) -> u64 {
    place_in(table_of(root, all, address), all, address)
}

/// The table that tells of an address and all others in its part of memory; 0 if there is none.
#[inline(always)]
fn table_of(root: u64, all: All, address: u64) -> u64 {
    let mut table = root;
    if recipe!(tables.levels) == 5 {
        table = all.place(entry(table, address, 48), READABLE);
    }
    table = all.place(entry(table, address, 39), READABLE);
    // A page of 1 GiB is left to the kernel.
    all.place(entry(table, address, 30), READABLE | IS_LARGE)
}

/// Where an address lies that this table tells of.
#[inline(always)]
fn place_in(table: u64, all: All, address: u64) -> u64 {
    let last = entry(table, address, 21);
    let (page, size) = if last & IS_LARGE != 0 {
        (last & !(LARGE_PAGE - PAGE), LARGE_PAGE)
    } else {
        (entry(all.place(last, READABLE), address, 12), PAGE)
    };
    match all.place(page, READABLE | IS_SPECIAL) {
        0 => 0,
        page => page + (address & (size - 1)),
    }
}

/// All memory, as the kernel has it mapped.
#[derive(Clone, Copy)]
struct All {
    /// Where.
    start: u64,
    /// How much.
    length: u64,
}

impl All {
    /// Where it is, as is known; no entry that the kernel has made leads behind its end.
    #[inline(always)]
    fn known() -> Self {
        Self { start: recipe!(tables.memory), length: u64::MAX }
    }

    /// Where the table or page lies that an entry stands for, if of these bits it has those that make it readable; else 0,
    /// where nothing is read. What else is in an entry may lead to a device, and reading that does something.
    ///
    /// No branch: the verifier would follow each through all that comes later.
    #[inline(always)]
    fn place(self, entry: u64, bits: u64) -> u64 {
        let frame = entry & recipe!(tables.frame);
        if frame >= self.length {
            return 0;
        }
        // All ones if there is no difference.
        let is_readable = ((entry & bits ^ READABLE).wrapping_sub(1).cast_signed() >> 63).cast_unsigned();
        self.start.wrapping_add(frame) & is_readable
    }
}

/// What a table says of an address, of which nine bits from `shift` on tell where.
#[inline(always)]
fn entry(table: u64, address: u64, shift: u32) -> u64 {
    kernel_word(table.wrapping_add((address >> shift & 0x1ff) << 3))
}

/// A word of the kernel's memory; 0 where nothing is mapped.
#[inline(always)]
fn kernel_word(address: u64) -> u64 {
    // SAFETY: the verifier makes a fault give 0.
    unsafe { pointer(address).read_volatile() }
}

/// A pointer to [`patched::WORDS`] words of the kernel's memory, which only the verifier's rules make one to read through.
#[inline(always)]
fn pointer(address: u64) -> *const u64 {
    let pointer;
    // SAFETY: a move in the end, which changes no register but the first.
    unsafe {
        asm!("r2 = {structure}", "call {cast}", structure = const patched::STRUCTURE, cast = const patched::CAST,
            inout("r1") address => _, out("r0") pointer, out("r2") _, out("r3") _, out("r4") _, out("r5") _,
            options(nostack));
    }
    pointer
}

/// # Safety
/// `to` must be valid for a write, and the verifier must vouch for `from`.
#[inline(always)]
unsafe fn copied<T: Copy>(to: *mut T, from: *const T) -> T {
    // SAFETY: the caller vouches for it.
    unsafe {
        let value = from.read_volatile();
        to.write_volatile(value);
        value
    }
}

// As many words as are copied one by one.
const _: () = assert!(SCRATCH_BYTES == 24 * 8 && TEXT_BYTES == 8 * 8);
