//! What the programs know about an operation of native functions: those that C, C++ or Rust was compiled to.
//!
//! They have the calling convention of System V: what a function gets is in registers, and what lies where in memory
//! nobody says but the text that describes the operation. So the programs read strings behind arguments, and nothing
//! further.

use crate::LABELS;

/// Words that a recipe can name: index into what the programs copy at a hit.
///
/// The first six are the integer arguments in their order (System V ABI, AMD64 supplement, 3.2.3).
pub mod word {
    /// How many arguments are in registers.
    pub const ARGUMENTS: u8 = 6;
    /// What the function returns, once it has.
    pub const RESULT: u8 = 6;
    /// The stack pointer. At a function's entry and at its return instructions the return address is there, so no two
    /// functions under way have the same.
    pub const STACK: u8 = 7;
    /// The stack pointer that the function had, once it has returned: eight bytes below.
    pub const LEFT_STACK: u8 = 8;
    /// The process and the thread.
    pub const THREAD: u8 = 9;
    /// How many words there are.
    pub const COUNT: usize = 10;
}

/// When a value is read.
pub mod moment {
    /// Never: there is none.
    pub const NEVER: u8 = 0;
    /// When the operation starts.
    pub const START: u8 = 1;
    /// When it finishes.
    pub const FINISH: u8 = 2;
}

/// How a string lies behind a word.
pub mod form {
    /// Its bytes up to one that is 0.
    pub const C: u8 = 0;
    /// A pointer to its bytes, then how many there are.
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
    /// The same at the finish.
    pub finish_key: u8,
    /// How many bytes of the key count: 4 or 8.
    pub key_width: u8,
    /// One of [`side`](crate::side).
    pub side: u8,
    /// Bits of [`policy`](crate::policy).
    pub policy: u8,
    /// The [`moment`] at which the number is read.
    pub number_moment: u8,
    /// Its [`word`].
    pub number: u8,
    /// How many bytes of it count: 1 or 4.
    pub number_width: u8,
    /// The names.
    pub texts: [NativeText; LABELS],
    /// Zero.
    pub reserved: [u8; 4],
}

impl Native {
    /// Of a recipe for something else.
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
