//! Telling errors apart: by the object in the executable that stands for the class an error belongs to.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use monitor_ebpf::error_class;

use super::{maps::recipe, registers::Hit, scratch::is_user_address};

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

/// The byte at an address; all ones when it can't be read.
#[inline(always)]
pub(crate) fn byte(address: u64) -> u8 {
    let mut byte = 0_u8;
    // SAFETY: the byte is one.
    let is_read = is_user_address(address)
        && unsafe { bpf_probe_read_user((&raw mut byte).cast(), 1, address as *const _) } == 0;
    if is_read { byte } else { u8::MAX }
}

/// The word at an address; 0 when it can't be read.
#[inline(always)]
pub(crate) fn word(address: u64) -> u64 {
    let mut word = 0_u64;
    if is_user_address(address) {
        // SAFETY: the word has eight bytes. The helper clears it when it fails.
        unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, address as *const _) };
    }
    word
}
