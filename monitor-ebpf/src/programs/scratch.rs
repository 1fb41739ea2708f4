//! Scratch memory: what was copied from the target for one call, and then the call's label set.

use core::mem::MaybeUninit;

use monitor_ebpf::{LabelSet, SCRATCH_BYTES, Test, TestOp};

use super::{
    asm,
    maps::{LABEL_SET_WORDS, field},
    memory::Memory,
};

/// Word that fills memory where a copy failed. As a pointer, a length or a type word it is implausible, so
/// a value that was not read is rejected where it is used.
pub(crate) const UNREAD: u64 = u64::MAX;

/// Number of words for the windows or the label set. All functions in progress share a stack of 512 bytes, for which
/// the verifier rounds each up to 32 bytes. Both do not fit side by side, so the set is built over the windows.
const WORDS: usize = if SCRATCH_BYTES / 8 > LABEL_SET_WORDS { SCRATCH_BYTES / 8 } else { LABEL_SET_WORDS };
/// Number of words behind them that nothing overwrites: see [`Scratch::keep`].
const KEPT: usize = 2;

/// Scratch memory: see the [module](self).
///
/// Not cleared before use, since clearing takes time: every window of a shape is either copied or marked unread
/// before anything in it is used.
pub(crate) struct Scratch(MaybeUninit<[u64; WORDS + KEPT]>, Memory);

impl Scratch {
    /// Returns uninitialized scratch memory. The caller must then choose how the target's memory is read.
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self(MaybeUninit::uninit(), Memory::uninit())
    }

    /// Returns the target's memory, which is read into scratch memory.
    #[inline(always)]
    pub(crate) fn memory(&mut self) -> &mut Memory {
        &mut self.1
    }

    /// Returns the memory as a label set, to be written over the windows, and the target's memory.
    #[inline(always)]
    pub(crate) fn label_set_and_memory(&mut self) -> (*mut LabelSet, &mut Memory) {
        (self.0.as_mut_ptr().cast(), &mut self.1)
    }

    /// Saves one of [`KEPT`] words, which neither windows nor label set overwrite.
    ///
    /// Writes it in halves: of a word that is written as one, the verifier remembers what it learns at each use, and
    /// follows the rest of the program for each outcome.
    #[inline(always)]
    pub(crate) fn keep(&mut self, index: usize, word: u64) {
        let place = (&raw mut self.0).cast::<u64>().wrapping_add(WORDS + index % KEPT).cast::<u32>();
        // SAFETY: inside the array.
        unsafe {
            place.write_volatile(word as u32);
            place.add(1).write_volatile((word >> 32) as u32);
        }
    }

    /// Returns a saved word.
    #[inline(always)]
    pub(crate) fn kept(&self, index: usize) -> u64 {
        // SAFETY: as above.
        unsafe { self.0.as_ptr().cast::<u64>().add(WORDS + index % KEPT).read_volatile() }
    }

    /// Returns the memory as a label set, to be written over the windows.
    #[inline(always)]
    pub(crate) fn label_set(&mut self) -> *mut LabelSet {
        self.0.as_mut_ptr().cast()
    }

    /// Copies `length` bytes from `address` in the target to `at`, or at least the wanted words. Marks the place as
    /// unread if that fails.
    #[inline(always)]
    pub(crate) fn copy(&mut self, at: u8, length: u8, words: u32, address: u64) {
        let place = self.place(at).cast_mut();
        // SAFETY: the verifier knows both numbers, which are constants of the recipe, and refuses the
        // program when they leave the array. The agent aligns places to eight.
        if !unsafe { self.1.copy(place.cast(), usize::from(length), words, address) } {
            self.forget(at, length);
        }
    }

    /// Marks a place as unread.
    #[inline(always)]
    pub(crate) fn forget(&mut self, at: u8, length: u8) {
        let (start, end) = (usize::from(at / 8), usize::from(at) + usize::from(length));
        for word in start..SCRATCH_BYTES / 8 {
            if word * 8 >= end {
                break;
            }
            // SAFETY: below the end of the array. Volatile keeps the compiler from calling `memset`.
            unsafe { (&raw mut self.0).cast::<u64>().add(word).write_volatile(asm::unknown(UNREAD)) }
        }
    }

    #[inline(always)]
    fn place(&self, at: u8) -> *const u8 {
        // SAFETY: see `copy`.
        unsafe { self.0.as_ptr().cast::<u8>().add(usize::from(at)) }
    }

    /// Returns the word at a place.
    #[inline(always)]
    pub(crate) fn word(&self, at: u8) -> u64 {
        // SAFETY: see `copy`; places of words are multiples of eight.
        unsafe { self.place(at).cast::<u64>().read_volatile() }
    }

    /// Returns the four bytes at a place.
    #[inline(always)]
    pub(crate) fn half(&self, at: u8) -> u32 {
        // SAFETY: see `copy`; the agent aligns places to the width.
        unsafe { self.place(at).cast::<u32>().read_volatile() }
    }

    /// Returns the byte at a place.
    #[inline(always)]
    pub(crate) fn byte(&self, at: u8) -> u8 {
        // SAFETY: see `copy`.
        unsafe { self.place(at).read_volatile() }
    }

    /// Returns whether a test of the recipe holds. For a value that was not read it does not.
    #[inline(always)]
    pub(crate) fn answer(&self, test: *const Test) -> bool {
        self.answer_if_read(test) == Some(true)
    }

    /// Returns whether a test of the recipe holds; `None` if the value was not read.
    #[inline(always)]
    pub(crate) fn answer_if_read(&self, test: *const Test) -> Option<bool> {
        let op = field!(test, op);
        if op == TestOp::Never as u8 {
            return Some(false);
        }
        let (place, width) = (self.place(field!(test, at)), field!(test, width));
        // SAFETY: see `copy`; the agent aligns places to the width.
        let (value, unread) = unsafe {
            match width {
                1 => (u64::from(place.read_volatile()), u64::from(u8::MAX)),
                4 => (u64::from(place.cast::<u32>().read_volatile()), u64::from(u32::MAX)),
                _ => (place.cast::<u64>().read_volatile(), UNREAD),
            }
        };
        if value == unread {
            return None;
        }
        let operand = u64::from(field!(test, operand));
        Some(if op == TestOp::Equal as u8 { value == operand } else { value & operand != 0 })
    }
}
