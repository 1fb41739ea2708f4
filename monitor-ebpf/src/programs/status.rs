//! How a call ended, where a status with a code says so.

use monitor_ebpf::status_code;

use super::{
    memory::word,
    registers::Hit,
    scratch::{Scratch, UNREAD},
    shape::ShapeRef,
    types,
};

/// Length of the longest text that is compared.
const TEXT_MAX: u64 = 8;

/// Replaces an error that wraps another by the wrapped one, two levels deep. Returns whether it wrapped one.
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
        // It cannot be read. Without an error the call would count as successful.
        hit.error = UNREAD;
    }
    true
}

/// Returns the address of the error, or of the one that it wraps. Not inlined: its values would take stack.
#[inline(never)]
fn inmost(error: u64, wrap: u64, at: u64) -> u64 {
    if word(error) != wrap {
        return error;
    }
    word(error.wrapping_add(8)).wrapping_add(at)
}

/// Returns the status's code, or one of [`status_code`].
#[inline(always)]
pub(crate) fn code(hit: &Hit, was_wrapped: bool, shape: ShapeRef, scratch: &Scratch) -> u32 {
    if let Some(code) = shape.code_given(hit) {
        return code;
    }
    if hit.error == 0 {
        return status_code::OK;
    }
    if is_plain(hit, shape) {
        // An error that wraps the one for success does not stand for success.
        return if !was_wrapped && says_well(hit, shape) { status_code::OK } else { status_code::UNKNOWN };
    }
    if !shape.has_status(hit) {
        types::report(hit.error);
        return status_code::UNREADABLE;
    }
    shape.status_code(scratch)
}

/// Returns whether the error has the type of the one for a stream's success. Others of that type are only texts.
#[inline(always)]
fn is_plain(hit: &Hit, shape: ShapeRef) -> bool {
    let (well, ..) = shape.well();
    well != 0 && hit.error == well
}

/// Returns whether such an error is the one for success.
#[inline(always)]
fn says_well(hit: &Hit, shape: ShapeRef) -> bool {
    let (_, text, length) = shape.well();
    if length > TEXT_MAX || word(hit.error_data.wrapping_add(8)) != length {
        return false;
    }
    let unused = (TEXT_MAX - length) * 8;
    word(word(hit.error_data)) << unused == text << unused
}
