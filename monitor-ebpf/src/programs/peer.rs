//! The address of a call's peer, where someone asks for it.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use monitor_ebpf::{NO_SCRATCH, Peer};

use super::{
    scratch::{Scratch, is_user_address},
    shape::ShapeRef,
};

/// No port is higher.
const PORT_MAX: u64 = 0xffff;

/// Writes the peer of a call to `place`; what can't be read has the length 0.
///
/// # Safety
/// `place` must be valid for writes.
#[inline(always)]
pub(crate) unsafe fn read(shape: ShapeRef, scratch: &Scratch, place: *mut Peer) {
    // SAFETY: the caller vouches for it. Word by word, or else the compiler calls `memset`.
    unsafe {
        let words = place.cast::<u64>();
        for index in 0..size_of::<Peer>() / 8 {
            words.add(index).write_volatile(0);
        }
    }
    let (at, port_at) = shape.peer_at();
    if at == NO_SCRATCH {
        return;
    }
    let (pointer, length, port) = (scratch.word(at), scratch.word(at + 8), scratch.word(port_at));
    if !is_user_address(pointer) || port > PORT_MAX {
        return;
    }
    // SAFETY: as above; an address has room for sixteen bytes.
    let result = unsafe {
        let address = (&raw mut (*place).address).cast();
        match length {
            4 => bpf_probe_read_user(address, 4, pointer as *const _),
            16 => bpf_probe_read_user(address, 16, pointer as *const _),
            _ => return,
        }
    };
    if result >= 0 {
        // SAFETY: as above.
        unsafe {
            (&raw mut (*place).length).write_volatile(length as u32);
            (&raw mut (*place).port).write_volatile(port as u32);
        }
    }
}
