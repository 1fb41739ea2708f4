//! How a call ended, where a status with a code says it.

use monitor_ebpf::status_code;

use super::{
    memory::word,
    registers::Hit,
    scratch::{Scratch, UNREAD},
    shape::ShapeRef,
    types,
};

/// Longest text that is compared.
const TEXT_MAX: u64 = 8;

/// Puts the error that another one wraps in its place, and that which this one wraps; tells whether there was one.
#[inline(always)]
pub(crate) fn unwrap(hit: &mut Hit, shape: ShapeRef) -> bool {
    let (wrap, at) = shape.wrap();
    if wrap == 0 || hit.error != wrap {
        return false;
    }
    let inner = inmost(hit.error_data.wrapping_add(at), wrap, at);
    hit.error = word(inner);
    hit.error_data = word(inner.wrapping_add(8));
    if hit.error == 0 {
        // It can't be read. No error would be a good end.
        hit.error = UNREAD;
    }
    true
}

/// Where the error at an address lies, or if it wraps another that one. Not inlined: what it has in its hands would take stack.
#[inline(never)]
fn inmost(error: u64, wrap: u64, at: u64) -> u64 {
    if word(error) != wrap {
        return error;
    }
    word(error.wrapping_add(8)).wrapping_add(at)
}

/// The status's code, or one of [`status_code`].
#[inline(always)]
pub(crate) fn code(hit: &Hit, was_wrapped: bool, shape: ShapeRef, scratch: &Scratch) -> u32 {
    if let Some(code) = shape.code_given(hit) {
        return code;
    }
    if hit.error == 0 {
        return status_code::OK;
    }
    if is_plain(hit, shape) {
        // One that wraps what stands for a good end stands for none.
        return if !was_wrapped && says_well(hit, shape) { status_code::OK } else { status_code::UNKNOWN };
    }
    if !shape.has_status(hit) {
        types::report(hit.error);
        return status_code::UNREADABLE;
    }
    shape.status_code(scratch)
}

/// Is it an error of the type of that which stands for the good end of a stream? Others of it are texts and nothing else.
#[inline(always)]
fn is_plain(hit: &Hit, shape: ShapeRef) -> bool {
    let (well, ..) = shape.well();
    well != 0 && hit.error == well
}

/// Is such a one that which stands for the good end?
#[inline(always)]
fn says_well(hit: &Hit, shape: ShapeRef) -> bool {
    let (_, text, length) = shape.well();
    if length > TEXT_MAX || word(hit.error_data.wrapping_add(8)) != length {
        return false;
    }
    let unused = (TEXT_MAX - length) * 8;
    word(word(hit.error_data)) << unused == text << unused
}
