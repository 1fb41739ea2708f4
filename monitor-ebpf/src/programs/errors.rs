//! Telling errors apart: by the object in the executable that stands for the class an error belongs to.

use monitor_ebpf::error_class;

use super::{maps::recipe, memory::word, registers::Hit};

/// Where the class of the call's error lies in the executable, or one of [`error_class`].
#[inline(always)]
pub(crate) fn class(hit: &Hit) -> u32 {
    if recipe!(read_errors) == 0 || hit.error == 0 {
        return error_class::NONE;
    }
    let object = if hit.error == recipe!(error_wrapped) {
        word(hit.error_data.wrapping_add(u64::from(recipe!(error_wrapped_at))))
    } else if hit.error == recipe!(error_plain) {
        hit.error_data
    } else {
        hit.error
    };
    let offset = object.wrapping_sub(recipe!(image));
    if offset <= u64::from(error_class::ELSEWHERE) || offset >= recipe!(image_length) {
        return error_class::ELSEWHERE;
    }
    u32::try_from(offset).unwrap_or(error_class::ELSEWHERE)
}
