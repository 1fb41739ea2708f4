//! Choosing the shape of an object, and copying what the shape says.

use monitor_ebpf::{KeyKind, MAX_SHAPES, MAX_WINDOWS, NO_GUARD, OBJECT, Shape, Window, call_type};

use super::{
    maps::{RECIPE, field, recipe},
    scratch::Scratch,
};

/// A shape of the recipe.
#[derive(Clone, Copy)]
pub(crate) struct ShapeRef(*const Shape);

/// What tells a call in flight from others.
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
        if index >= usize::from(recipe!(shape_count)) {
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
        let first = usize::from(field!(self.0, inner_word) != 0);
        for index in 0..MAX_WINDOWS {
            if index < first {
                continue;
            }
            if field!(self.0, windows[index].length) == 0 {
                return;
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
        let guard_at = field!(window, guard_at);
        if guard_at != NO_GUARD && scratch.word(guard_at) != field!(window, guard_word) {
            if field!(window, twin) == 0 {
                scratch.forget(field!(window, at), field!(window, length));
            }
            return;
        }
        let base = field!(window, base);
        let pointer = if base == OBJECT { object } else { scratch.word(base) };
        let address = pointer.wrapping_add(u64::from(field!(window, offset)));
        scratch.copy(field!(window, at), field!(window, length), address);
    }

    /// The key of a call. Needs the windows that are marked so.
    #[inline(always)]
    pub(crate) fn key(self, object: u64, goroutine: u64, scratch: &Scratch) -> Key {
        if field!(self.0, key) == KeyKind::Object as u8 || self.is_streaming(scratch) {
            return Key::Object(object);
        }
        Key::Goroutine(goroutine)
    }

    /// Is the call a stream?
    #[inline(always)]
    fn is_streaming(self, scratch: &Scratch) -> bool {
        // SAFETY: a place inside the recipe.
        scratch.answer(unsafe { &raw const (*self.0).streaming })
    }

    /// One of [`call_type`].
    #[inline(always)]
    pub(crate) fn call_type(self, scratch: &Scratch) -> u8 {
        if self.is_streaming(scratch) {
            return call_type::STREAMING;
        }
        // SAFETY: a place inside the recipe.
        let oneway = scratch.answer(unsafe { &raw const (*self.0).oneway });
        if oneway { call_type::ONEWAY } else { call_type::PINGPONG }
    }

    /// One of [`monitor_ebpf::side`].
    #[inline(always)]
    pub(crate) fn side(self) -> u8 {
        field!(self.0, side)
    }

    /// Where the string header of a label lies.
    #[inline(always)]
    pub(crate) fn label_at(self, label: usize) -> u8 {
        field!(self.0, labels[label])
    }

    /// Where the tag map's pointer lies.
    #[inline(always)]
    pub(crate) fn tags_at(self) -> u8 {
        field!(self.0, tags_at)
    }
}
