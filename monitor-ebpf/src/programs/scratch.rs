//! Scratch memory: what was copied of the target for one call, and then its label set.

use core::mem::MaybeUninit;

use monitor_ebpf::{LabelSet, SCRATCH_BYTES, Test, TestOp};

use super::{
    asm,
    maps::{LABEL_SET_WORDS, field},
    memory::Memory,
};

/// Word that fills memory nothing was copied to. As a pointer, a length or a type word it is implausible,
/// so whatever was not read is refused where it is used.
pub(crate) const UNREAD: u64 = u64::MAX;

/// Words of it. A stack has 512 bytes for all functions that are under way, of which the verifier rounds each up to 32, so there
/// is no room for windows and a label set side by side: the set is made where the windows were.
const WORDS: usize = if SCRATCH_BYTES / 8 > LABEL_SET_WORDS { SCRATCH_BYTES / 8 } else { LABEL_SET_WORDS };
/// Words behind that which stay: see [`Scratch::keep`].
const KEPT: usize = 2;

/// See the [module](self).
///
/// Not cleared before use, since clearing takes time: every window of a shape is either copied or forgotten
/// before anything in it is looked at.
pub(crate) struct Scratch(MaybeUninit<[u64; WORDS + KEPT]>, Memory);

impl Scratch {
    /// Scratch memory that nobody has written to. How the target's memory is read is to be said next.
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self(MaybeUninit::uninit(), Memory::uninit())
    }

    /// What is read into it.
    #[inline(always)]
    pub(crate) fn memory(&mut self) -> &mut Memory {
        &mut self.1
    }

    /// The memory as a label set, which is written over the windows, and what is read into it.
    #[inline(always)]
    pub(crate) fn label_set_and_memory(&mut self) -> (*mut LabelSet, &mut Memory) {
        (self.0.as_mut_ptr().cast(), &mut self.1)
    }

    /// Keeps one of [`KEPT`] words, whatever is written over windows and label set.
    ///
    /// In halves: of a word that is written as one the verifier remembers what it learns of it where it is used, and goes
    /// through all that follows for each answer.
    #[inline(always)]
    pub(crate) fn keep(&mut self, index: usize, word: u64) {
        let place = (&raw mut self.0).cast::<u64>().wrapping_add(WORDS + index % KEPT).cast::<u32>();
        // SAFETY: inside the array.
        unsafe {
            place.write_volatile(word as u32);
            place.add(1).write_volatile((word >> 32) as u32);
        }
    }

    /// A word that is kept.
    #[inline(always)]
    pub(crate) fn kept(&self, index: usize) -> u64 {
        // SAFETY: as above.
        unsafe { self.0.as_ptr().cast::<u64>().add(WORDS + index % KEPT).read_volatile() }
    }

    /// The memory as a label set, which is written over the windows.
    #[inline(always)]
    pub(crate) fn label_set(&mut self) -> *mut LabelSet {
        self.0.as_mut_ptr().cast()
    }

    /// Copies `length` bytes from `address` in the target to `at`, those that are wanted at least; forgets the place if that
    /// can't be done.
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

    /// The word at a place.
    #[inline(always)]
    pub(crate) fn word(&self, at: u8) -> u64 {
        // SAFETY: see `copy`; places of words are multiples of eight.
        unsafe { self.place(at).cast::<u64>().read_volatile() }
    }

    /// The four bytes at a place.
    #[inline(always)]
    pub(crate) fn half(&self, at: u8) -> u32 {
        // SAFETY: see `copy`; the agent aligns places to the width.
        unsafe { self.place(at).cast::<u32>().read_volatile() }
    }

    /// The byte at a place.
    #[inline(always)]
    pub(crate) fn byte(&self, at: u8) -> u8 {
        // SAFETY: see `copy`.
        unsafe { self.place(at).read_volatile() }
    }

    /// Answers a question of the recipe. What was not read answers no.
    #[inline(always)]
    pub(crate) fn answer(&self, test: *const Test) -> bool {
        self.answer_if_read(test) == Some(true)
    }

    /// The same; `None` where it was not read.
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
