//! Scratch memory: what was copied of the target for one call.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use monitor_ebpf::{SCRATCH_BYTES, Test, TestOp};

/// Word that fills memory nothing was copied to. As a pointer, a length or a type word it is implausible,
/// so whatever was not read is refused where it is used.
const UNREAD: u64 = u64::MAX;

/// Addresses below are never mapped (`vm.mmap_min_addr`).
const USER_MIN: u64 = 4_096;
/// First address that user space can't have, with four-level page tables.
const USER_MAX: u64 = 0x7fff_ffff_f000;

/// Is this an address of user space? Reading at any other costs a fault.
#[inline(always)]
pub(crate) fn is_user_address(address: u64) -> bool {
    address.wrapping_sub(USER_MIN) < USER_MAX - USER_MIN
}

/// See the [module](self).
pub(crate) struct Scratch([u64; SCRATCH_BYTES / 8]);

impl Scratch {
    /// Scratch memory nothing was copied to.
    #[inline(always)]
    pub(crate) fn unread() -> Self {
        Self([UNREAD; SCRATCH_BYTES / 8])
    }

    /// Copies `length` bytes from `address` in the target to `at`. On a fault the place is unread again.
    #[inline(always)]
    pub(crate) fn copy(&mut self, at: u32, length: u32, address: u64) {
        if !is_user_address(address) {
            return;
        }
        let place = self.place(at).cast_mut();
        // SAFETY: the verifier knows both numbers, which are constants of the recipe, and refuses the
        // program when they leave the array.
        let result = unsafe { bpf_probe_read_user(place.cast(), length, address as *const _) };
        if result < 0 {
            // The helper cleared what it could not read.
            self.forget(at, length);
        }
    }

    #[inline(always)]
    fn forget(&mut self, at: u32, length: u32) {
        for word in 0..SCRATCH_BYTES as u32 / 8 {
            if word * 8 >= at && word * 8 < at + length {
                self.0[word as usize] = UNREAD;
            }
        }
    }

    #[inline(always)]
    fn place(&self, at: u32) -> *const u8 {
        // SAFETY: see `copy`.
        unsafe { self.0.as_ptr().cast::<u8>().add(at as usize) }
    }

    /// The word at a place.
    #[inline(always)]
    pub(crate) fn word(&self, at: u32) -> u64 {
        // SAFETY: see `copy`; places of words are multiples of eight.
        unsafe { self.place(at).cast::<u64>().read_volatile() }
    }

    /// Answers a question of the recipe. What was not read answers no.
    #[inline(always)]
    pub(crate) fn answer(&self, op: u32, test: *const Test) -> bool {
        if op == TestOp::Never as u32 {
            return false;
        }
        // SAFETY: a pointer into the recipe.
        let (at, width, operand) = unsafe {
            (
                (&raw const (*test).at).read_volatile(),
                (&raw const (*test).width).read_volatile(),
                (&raw const (*test).operand).read_volatile(),
            )
        };
        let place = self.place(at);
        // SAFETY: see `copy`; the agent aligns places to the width.
        let (value, unread) = unsafe {
            match width {
                1 => (u64::from(place.read_volatile()), u64::from(u8::MAX)),
                4 => (u64::from(place.cast::<u32>().read_volatile()), u64::from(u32::MAX)),
                _ => (place.cast::<u64>().read_volatile(), UNREAD),
            }
        };
        if value == unread {
            return false;
        }
        let operand = u64::from(operand);
        if op == TestOp::Equal as u32 { value == operand } else { value & operand != 0 }
    }
}
