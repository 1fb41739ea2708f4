//! Classes of errors. A class is known by the object in the executable that stands for it.

use monitor_ebpf::error_class;

use super::{asm::unknown, maps::recipe, memory::word, registers::Hit};

/// Returns the offset of the class of the call's error in the executable, or one of [`error_class`].
#[inline(always)]
pub(crate) fn class(hit: &Hit) -> u32 {
    if recipe!(read_errors) == 0 || hit.error == 0 {
        return error_class::NONE;
    }
    let object = of(hit.error, hit.error_data).unwrap_or_else(|| carried(hit).unwrap_or(hit.error));
    // Otherwise the verifier would follow each possible object through the rest of the program.
    let object = unknown(object);
    let offset = object.wrapping_sub(recipe!(image));
    if offset <= u64::from(error_class::ELSEWHERE) || offset >= recipe!(image_length) {
        return error_class::ELSEWHERE;
    }
    u32::try_from(offset).unwrap_or(error_class::ELSEWHERE)
}

/// Returns the class of an error that has one.
#[inline(always)]
fn of(error: u64, data: u64) -> Option<u64> {
    if error == recipe!(error_wrapped) {
        return Some(word(data.wrapping_add(u64::from(recipe!(error_wrapped_at)))));
    }
    (error == recipe!(error_plain)).then_some(data)
}

/// Returns the class of the error that the call's error carries.
#[inline(always)]
fn carried(hit: &Hit) -> Option<u64> {
    if hit.error != recipe!(error_carrier) {
        return None;
    }
    let at = hit.error_data.wrapping_add(u64::from(recipe!(error_carries_at)));
    let error = word(at);
    if error == 0 { None } else { of(error, word(at.wrapping_add(8))) }
}
