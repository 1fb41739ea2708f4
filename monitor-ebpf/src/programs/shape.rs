//! Choosing the shape of an object, and copying what the shape says.

use monitor_ebpf::{KeyKind, MAX_SHAPES, MAX_WINDOWS, NO_GUARD, OBJECT, Shape, Test, TestOp, Window};

use super::{
    maps::{RECIPE, recipe},
    scratch::Scratch,
};

/// A shape of the recipe.
#[derive(Clone, Copy)]
pub(crate) struct ShapeRef(*const Shape);

/// Reads a field of a value of the recipe; volatile for the reason given at `recipe!`.
macro_rules! field {
    ($pointer:expr, $($field:tt)+) => {
        // SAFETY: a pointer into the recipe, which is valid and only read.
        unsafe { (&raw const (*$pointer).$($field)+).read_volatile() }
    };
}

/// Key of a call in flight.
///
/// Addresses of Go objects are multiples of eight, so three bits are free: 0 for calls keyed by their
/// object, 1 and up for the nesting depth on a goroutine.
#[derive(Clone, Copy)]
pub(crate) enum Key {
    /// The object's address.
    Object(u64),
    /// The goroutine's address.
    Goroutine(u64),
}

/// The shape of an object, if the recipe has one. May copy the first window.
#[inline(always)]
pub(crate) fn find(type_word: u64, object: u64, scratch: &mut Scratch) -> Option<ShapeRef> {
    for index in 0..MAX_SHAPES {
        if index as u32 >= recipe!(shape_count) {
            return None;
        }
        let shape = ShapeRef((&raw const RECIPE.shapes).cast::<Shape>().wrapping_add(index));
        if field!(shape.0, type_word) != type_word {
            continue;
        }
        let inner_word = field!(shape.0, inner_word);
        if inner_word == 0 {
            return Some(shape);
        }
        shape.copy_window(0, object, scratch);
        if scratch.word(field!(shape.0, inner_at)) == inner_word {
            return Some(shape);
        }
    }
    None
}

impl ShapeRef {
    /// Copies the shape's windows: all, or those that the key needs.
    #[inline(always)]
    pub(crate) fn copy_windows(self, object: u64, scratch: &mut Scratch, for_key: bool) {
        let first_is_there = field!(self.0, inner_word) != 0;
        for index in 0..MAX_WINDOWS {
            if index == 0 && first_is_there {
                continue;
            }
            if for_key && field!(self.0, windows[index].for_key) == 0 {
                continue;
            }
            self.copy_window(index, object, scratch);
        }
    }

    #[inline(always)]
    fn copy_window(self, index: usize, object: u64, scratch: &mut Scratch) {
        // SAFETY: a place inside the recipe.
        let window: *const Window = unsafe { &raw const (*self.0).windows[index] };
        let length = field!(window, length);
        if length == 0 {
            return;
        }
        let guard_at = field!(window, guard_at);
        if guard_at != NO_GUARD && scratch.word(guard_at) != field!(window, guard_word) {
            return;
        }
        let base = field!(window, base);
        let pointer = if base == OBJECT { object } else { scratch.word(base) };
        scratch.copy(field!(window, at), length, pointer.wrapping_add(u64::from(field!(window, offset))));
    }

    /// The key of the call.
    #[inline(always)]
    pub(crate) fn key(self, object: u64, goroutine: u64, scratch: &Scratch) -> Key {
        if field!(self.0, key) == KeyKind::Object as u32 || self.is_streaming(scratch) {
            return Key::Object(object);
        }
        Key::Goroutine(goroutine)
    }

    /// Is the call a stream?
    #[inline(always)]
    pub(crate) fn is_streaming(self, scratch: &Scratch) -> bool {
        // SAFETY: a place inside the recipe.
        let test: *const Test = unsafe { &raw const (*self.0).streaming };
        scratch.answer(field!(test, op), test)
    }

    /// Is it oneway?
    #[inline(always)]
    pub(crate) fn is_oneway(self, scratch: &Scratch) -> bool {
        // SAFETY: a place inside the recipe.
        let test: *const Test = unsafe { &raw const (*self.0).oneway };
        scratch.answer(field!(test, op), test)
    }

    /// One of [`monitor_ebpf::side`].
    #[inline(always)]
    pub(crate) fn side(self) -> u8 {
        field!(self.0, side) as u8
    }

    /// Where the string header of a label lies.
    #[inline(always)]
    pub(crate) fn label_at(self, label: usize) -> u32 {
        field!(self.0, labels[label])
    }

    /// Where the tag map's pointer lies.
    #[inline(always)]
    pub(crate) fn tags_at(self) -> u32 {
        field!(self.0, tags_at)
    }
}

const _: () = assert!(TestOp::Never as u32 == 0);
