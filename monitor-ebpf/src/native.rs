//! The recipe for an operation of native functions: those compiled from C, C++ or Rust.
//!
//! They follow the System V calling convention: arguments are in registers. What lies where in memory is known only
//! from the spec that describes the operation. So the programs read strings behind arguments, and nothing
//! further.

use crate::LABELS;

/// Words that a recipe can name: indices into what the programs copy at a hit.
///
/// The first six are the integer arguments in their order (System V ABI, AMD64 supplement, 3.2.3).
pub mod word {
    /// Number of arguments that are passed in registers.
    pub const ARGUMENTS: u8 = 6;
    /// The function's result, once it has returned.
    pub const RESULT: u8 = 6;
    /// The stack pointer. At a function's entry and at its return instructions it points to the return address, so no
    /// two functions in progress have the same.
    pub const STACK: u8 = 7;
    /// The stack pointer that the function had before it returned: eight bytes below the current one.
    pub const LEFT_STACK: u8 = 8;
    /// The thread ID.
    pub const THREAD: u8 = 9;
    /// Number of words.
    pub const COUNT: usize = 10;
}

/// When a value is read.
pub mod moment {
    /// Never: there is no such value.
    pub const NEVER: u8 = 0;
    /// At the start of the operation.
    pub const START: u8 = 1;
    /// At its finish.
    pub const FINISH: u8 = 2;
}

/// Layout of the string that a word points to.
pub mod form {
    /// Its bytes, zero-terminated.
    pub const C: u8 = 0;
    /// A pointer to its bytes, then their number.
    pub const CXX11: u8 = 1;
}

/// Where a name comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct NativeText {
    /// One of [`moment`].
    pub moment: u8,
    /// One of [`word`].
    pub word: u8,
    /// One of [`form`].
    pub form: u8,
    /// Zero.
    pub reserved: u8,
}

/// What the programs do for an operation of native functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Native {
    /// The [`word`] that is the key at the start.
    pub start_key: u8,
    /// The [`word`] that is the key at the finish.
    pub finish_key: u8,
    /// Number of bytes of the key that are used: 4 or 8.
    pub key_width: u8,
    /// One of [`side`](crate::side).
    pub side: u8,
    /// Bits of [`policy`](crate::policy).
    pub policy: u8,
    /// The [`moment`] at which the number is read.
    pub number_moment: u8,
    /// The [`word`] that holds the number.
    pub number: u8,
    /// Number of its bytes that are used: 1 or 4.
    pub number_width: u8,
    /// Where each name comes from, indexed by [`label`](crate::label).
    pub texts: [NativeText; LABELS],
    /// Zero.
    pub reserved: [u8; 4],
}

impl Native {
    /// The value in a recipe that is not for native functions.
    pub const NONE: Self = Self {
        start_key: word::THREAD,
        finish_key: word::THREAD,
        key_width: 8,
        side: 0,
        policy: 0,
        number_moment: moment::NEVER,
        number: 0,
        number_width: 4,
        texts: [NativeText { moment: moment::NEVER, word: 0, form: form::C, reserved: 0 }; LABELS],
        reserved: [0; 4],
    };
}

const _: () = assert!(size_of::<Native>() == 24);
