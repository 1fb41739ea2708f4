//! Reading the target's memory.
//!
//! Reads go by its page tables where the agent has proved that this works: see [`monitor_ebpf::PageTables`]. Otherwise
//! the kernel is asked, as it is for whatever the tables do not lead to: a page that is absent, one of 1 GiB, bytes on
//! two pages, more than a word that are all zero (which is what a fault gives).
//!
//! Nothing pins pages and tables meanwhile: another thread of the target may unmap a page, and the kernel may move it.
//! Before the kernel uses such memory for anything else, it must flush what processors know of it, and it counts this
//! first (`mm_context_t.tlb_gen`). So bytes were the target's, where the tables say, if the count after they were read
//! is the same as before the first table was. x86-64 reorders neither loads nor stores among themselves.

use core::{arch::asm, mem::MaybeUninit};

use aya_ebpf::helpers::{bpf_get_current_task, bpf_ktime_get_ns, generated::bpf_probe_read_user};
use monitor_ebpf::{PROOF_WORDS, Proof, SCRATCH_BYTES, TEXT_BYTES, patched, trial};

use super::{asm::unknown, maps::recipe};

/// Lower addresses are never mapped (`vm.mmap_min_addr`).
const USER_MIN: u64 = 4_096;
/// First address that user space cannot have, with four-level page tables.
const USER_MAX: u64 = 0x7fff_ffff_f000;
/// Size of a page, in bytes.
const PAGE: u64 = 4_096;
/// Size of a large page, in bytes, which an entry of the last table but one leads to.
const LARGE_PAGE: u64 = 2 << 20;
/// Bits of an entry: it is present, and user space may read it.
const READABLE: u64 = 1 << 0 | 1 << 2;
/// Bit of an entry whose page is special: memory of a device, or the one page of zeros (`_PAGE_SPECIAL`).
const IS_SPECIAL: u64 = 1 << 9;
/// Bit of an entry that leads to a large page, not to a table.
const IS_LARGE: u64 = 1 << 7;

/// Returns whether this is an address of user space. Reading at any other costs a fault.
#[inline(always)]
pub(crate) fn is_user_address(address: u64) -> bool {
    address.wrapping_sub(USER_MIN) < USER_MAX - USER_MIN
}

/// The memory of the process that runs. Its state is words that stay in place: as values they would take stack, which
/// is nearly full.
pub(crate) struct Memory(MaybeUninit<[u64; 3]>);

/// Index of the word with the address of the memory's `mm_struct`; or [`LATER`], or [`ASKED`]. The other words have a
/// meaning only with an address.
const OWN: usize = 0;
/// Index of the word whose upper half is the flush count taken by [`Memory::find`], which wraps around only long
/// after a program has ended. Its lower half is the number of the 1 GiB part of memory that [`TABLE`] is for.
const FLUSHES: usize = 1;
/// Index of the word with the address of the table that covers that part: look-ups of neighbouring addresses start
/// from there.
const TABLE: usize = 2;
/// Right shift from an address to the number of its part.
const PART: u32 = 30;
/// The number of no part.
const NOWHERE: u64 = u32::MAX as u64;
/// The address has not been determined yet.
const LATER: u64 = 2;
/// Page tables are not used.
const ASKED: u64 = 1;

impl Memory {
    /// Returns uninitialized state. One of the methods below must be called before anything is read.
    #[inline(always)]
    pub(crate) fn uninit() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// Sends each read to the kernel.
    #[inline(always)]
    pub(crate) fn ask(&mut self) {
        self.set(OWN, ASKED);
    }

    /// Reads by page tables, if their layout is known, and finds them at the first read.
    #[inline(always)]
    pub(crate) fn find_later(&mut self) {
        self.set(OWN, if recipe!(tables.memory) == 0 { ASKED } else { LATER });
    }

    /// Reads by page tables, if their layout is known, and finds them now.
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

    /// Copies `length` bytes, or at least those of them in the words of the mask. Returns false if they cannot be read.
    /// The verifier must know both.
    ///
    /// # Safety
    /// `to` must be valid for `length` bytes, and aligned to eight.
    #[inline(always)]
    pub(crate) unsafe fn copy(&mut self, to: *mut u64, length: usize, words: u32, address: u64) -> bool {
        // SAFETY: the caller guarantees that `to` is valid.
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
        // Not a loop: the verifier removes each step whose word is not wanted.
        macro_rules! copy {
            ($($index:literal)+) => { $(
                if words & 1 << $index != 0 && ($index + 1) * 8 <= length {
                    // SAFETY: the caller guarantees that `to` is valid; the verifier checks what is read.
                    all |= unsafe { copied(to.add($index), from.add($index % patched::WORDS)) };
                }
            )+ };
        }
        copy!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        if length > patched::WORDS * 8 {
            from = pointer(place + patched::WORDS as u64 * 8);
            copy!(16 17 18 19 20 21 22 23);
        }
        // Fewer than eight bytes are left.
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
        // A single word, such as flags or a number, often is zero.
        (all != 0 || length <= 8) && self.stands()
    }

    /// Copies `length` bytes of text, at least one, over zeros. Returns false if they cannot be read; all is still zero
    /// then. More than [`TEXT_BYTES`] are always read by asking the kernel.
    ///
    /// # Safety
    /// `to` must be valid for `length` bytes and for a whole text, and aligned to eight.
    #[inline(always)]
    pub(crate) unsafe fn copy_text(&mut self, to: *mut u64, length: u32, address: u64) -> bool {
        // SAFETY: the caller guarantees that `to` is valid.
        unsafe { copy_text(self, to, length, address) != 0 }
    }

    /// # Safety
    /// As for [`Self::copy_text`].
    #[inline(always)]
    unsafe fn copy_text_by_tables(&mut self, to: *mut u64, length: u64, address: u64) -> bool {
        // The last word that is read has bytes behind the text.
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
                // SAFETY: the caller guarantees that `to` is valid; the verifier checks what is read.
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

    /// Returns where bytes lie in the kernel's memory; 0 if the tables do not lead there, or they are on two pages.
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
        // Otherwise the verifier would follow each result through the rest of the program.
        unknown(self.place_of(address))
    }

    /// Returns where an address lies in the kernel's memory; 0 if the tables do not lead there.
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

    /// Returns whether no translation has been flushed since the state was determined.
    #[inline(always)]
    fn stands(&self) -> bool {
        flushes(self.get(OWN)) as u32 == (self.get(FLUSHES) >> 32) as u32
    }
}

/// Not inlined, like the next function: its values would take stack. Returns 1 for success.
///
/// # Safety
/// As for [`Memory::copy`]. The lower half of `what` is the length, the upper half the mask of words.
#[inline(never)]
unsafe fn copy(memory: &mut Memory, to: *mut u64, what: u64, address: u64) -> u64 {
    let (length, words) = (what as u32, (what >> 32) as u32);
    // SAFETY: the caller guarantees that `to` is valid.
    unsafe {
        (memory.copy_by_tables(to, length as usize, words, address) || ask(to.cast(), length, address)).into()
    }
}

/// # Safety
/// As for [`Memory::copy_text`].
#[inline(never)]
unsafe fn copy_text(memory: &mut Memory, to: *mut u64, length: u32, address: u64) -> u64 {
    // SAFETY: the caller guarantees that `to` is valid.
    unsafe {
        (memory.copy_text_by_tables(to, length.into(), address) || ask(to.cast(), length, address)).into()
    }
}

/// Asks the kernel for bytes of the target. Returns false if they cannot be read.
///
/// # Safety
/// `to` must be valid for `length` bytes.
#[inline(always)]
pub(crate) unsafe fn ask(to: *mut u8, length: u32, address: u64) -> bool {
    // SAFETY: the caller guarantees that `to` is valid.
    is_user_address(address) && unsafe { bpf_probe_read_user(to.cast(), length, address as *const _) } >= 0
}

/// Returns the byte at an address; all ones if it cannot be read.
#[inline(always)]
pub(crate) fn byte(address: u64) -> u8 {
    let mut byte = 0_u8;
    // SAFETY: the variable has one byte.
    if unsafe { ask(&raw mut byte, 1, address) } { byte } else { u8::MAX }
}

/// Returns the word at an address; 0 if it cannot be read.
#[inline(always)]
pub(crate) fn word(address: u64) -> u64 {
    let mut word = 0_u64;
    // SAFETY: the word has eight bytes. The helper clears it when it fails.
    unsafe { ask((&raw mut word).cast(), 8, address) };
    word
}

/// Reads words by page tables as if `length` bytes of memory were mapped at `start`, or does what this value of `length`
/// stands for: see [`trial`].
#[inline(always)]
pub(crate) fn prove(address: u64, start: u64, length: u64) -> Proof {
    let own = own();
    let mut proof = Proof { root: root(own), flushes: flushes(own), ..Proof::NONE };
    if length == trial::TIMED {
        proof.took_ns = time(&mut proof.words, start != 0, address);
        return proof;
    }
    if length == trial::AS_PROGRAMS {
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
            // SAFETY: the verifier checks the read.
            *word = unsafe { from.add(index).read_volatile() };
        }
        proof.is_read = 1;
    }
    proof
}

/// Returns how long it takes to read texts on pages in a row, in nanoseconds.
#[inline(always)]
fn time(words: &mut [u64; PROOF_WORDS], by_tables: bool, address: u64) -> u64 {
    let to = words.as_mut_ptr();
    // SAFETY: a helper without preconditions.
    let begun = unsafe { bpf_ktime_get_ns() };
    let mut memory = Memory::uninit();
    if by_tables {
        memory.find();
    } else {
        memory.ask();
    }
    for page in 0..trial::PAGES {
        let address = address.wrapping_add(page as u64 * PAGE);
        // SAFETY: a place for more than a text.
        unsafe { copy_text(&mut memory, to, TEXT_BYTES as u32, address) };
    }
    // SAFETY: as above.
    unsafe { bpf_ktime_get_ns() }.wrapping_sub(begun)
}

/// Returns the address of the process's `mm_struct`.
#[inline(always)]
fn own() -> u64 {
    // SAFETY: a helper without preconditions.
    let task = unsafe { bpf_get_current_task() };
    kernel_word(task.wrapping_add(recipe!(tables.mm_at).into()))
}

/// Returns the address of the top-level table of that memory.
#[inline(always)]
fn root(memory: u64) -> u64 {
    kernel_word(memory.wrapping_add(recipe!(tables.root_at).into()))
}

/// Returns how often translations of addresses of that memory have been flushed.
#[inline(always)]
fn flushes(memory: u64) -> u64 {
    kernel_word(memory.wrapping_add(recipe!(tables.flushes_at).into()))
}

/// Returns where an address of the process lies in the kernel's memory; 0 if no table leads there, or if something lies
/// behind the end of all memory.
#[inline(always)]
fn place_of(root: u64, all: All, address: u64) -> u64 {
    place_in(table_of(root, all, address), all, address)
}

/// Returns the table that covers an address and all others in its part of memory; 0 if there is none.
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

/// Returns where an address that this table covers lies in the kernel's memory; 0 if nowhere.
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

/// The kernel's mapping of all memory.
#[derive(Clone, Copy)]
struct All {
    /// Its address.
    start: u64,
    /// Its length, in bytes.
    length: u64,
}

impl All {
    /// Returns the known mapping. No entry that the kernel has made leads behind its end.
    #[inline(always)]
    fn known() -> Self {
        Self { start: recipe!(tables.memory), length: u64::MAX }
    }

    /// Returns where the table or page of an entry lies, if exactly the readable ones of these bits are set; otherwise
    /// 0, where nothing is read. Other entries may lead to a device, and a read from a device has effects.
    ///
    /// No branch on the bits: the verifier would follow each branch through the rest of the program.
    #[inline(always)]
    fn place(self, entry: u64, bits: u64) -> u64 {
        let frame = entry & recipe!(tables.frame);
        if frame >= self.length {
            return 0;
        }
        // All ones if the bits do not differ.
        let is_readable = ((entry & bits ^ READABLE).wrapping_sub(1).cast_signed() >> 63).cast_unsigned();
        self.start.wrapping_add(frame) & is_readable
    }
}

/// Returns a table's entry for an address, whose nine bits from `shift` on are the index.
#[inline(always)]
fn entry(table: u64, address: u64, shift: u32) -> u64 {
    kernel_word(table.wrapping_add((address >> shift & 0x1ff) << 3))
}

/// Returns a word of the kernel's memory; 0 where nothing is mapped.
#[inline(always)]
fn kernel_word(address: u64) -> u64 {
    // SAFETY: the verifier makes a fault give 0.
    unsafe { pointer(address).read_volatile() }
}

/// Returns a pointer to [`patched::WORDS`] words of the kernel's memory. Only the verifier's rules make it readable.
#[inline(always)]
fn pointer(address: u64) -> *const u64 {
    let pointer;
    // SAFETY: the agent turns the call into a move, which changes no register but the first.
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
    // SAFETY: the caller guarantees it.
    unsafe {
        let value = from.read_volatile();
        to.write_volatile(value);
        value
    }
}

// The copies above are written out for this many words.
const _: () = assert!(SCRATCH_BYTES == 24 * 8 && TEXT_BYTES == 8 * 8);
