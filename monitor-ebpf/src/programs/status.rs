//! How a call ended, where a status with a code says it.

use monitor_ebpf::status_code;

use super::{memory::word, registers::Hit, scratch::Scratch, shape::ShapeRef, types};

/// Longest text that is compared.
const TEXT_MAX: u64 = 8;

/// Puts the error that another one wraps in its place.
#[inline(always)]
pub(crate) fn unwrap(hit: &mut Hit, shape: ShapeRef) {
    let (wrap, at) = shape.wrap();
    if wrap != 0 && hit.error == wrap {
        let inner = hit.error_data.wrapping_add(at);
        hit.error = word(inner);
        hit.error_data = word(inner.wrapping_add(8));
    }
}

/// The status's code, or one of [`status_code`].
#[inline(always)]
pub(crate) fn code(hit: &Hit, shape: ShapeRef, scratch: &Scratch) -> u32 {
    if let Some(code) = shape.code_given(hit) {
        return code;
    }
    if hit.error == 0 || says_well(hit, shape) {
        return status_code::OK;
    }
    if !shape.has_status(hit) {
        types::report(hit.error);
        return status_code::UNKNOWN;
    }
    shape.status_code(scratch)
}

/// Is it an error that stands for the good end of a stream?
#[inline(always)]
fn says_well(hit: &Hit, shape: ShapeRef) -> bool {
    let (well, text, length) = shape.well();
    if well == 0 || hit.error != well || length > TEXT_MAX || word(hit.error_data.wrapping_add(8)) != length {
        return false;
    }
    let unused = (TEXT_MAX - length) * 8;
    word(word(hit.error_data)) << unused == text << unused
}
