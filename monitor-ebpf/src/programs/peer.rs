//! The address of a call's peer, on request.

use monitor_ebpf::{NO_SCRATCH, Peer, event};

use super::{maps::recipe, memory::ask, scratch::Scratch, shape::ShapeRef};

/// The highest port.
const PORT_MAX: u64 = 0xffff;

/// Where the peer's address lies, copied from the call.
#[derive(Clone, Copy)]
pub(crate) struct PeerAt {
    /// Address of the IP address; 0 if there is none.
    pointer: u64,
    length: u64,
    port: u64,
}

impl PeerAt {
    /// Returns the peer of a call whose windows are still in scratch memory.
    #[inline(always)]
    pub(crate) fn of(shape: ShapeRef, scratch: &Scratch) -> Self {
        let (at, port_at) = shape.peer_at();
        if recipe!(events) & event::PEERS == 0 || at == NO_SCRATCH {
            return Self { pointer: 0, length: 0, port: 0 };
        }
        Self { pointer: scratch.word(at), length: scratch.word(at + 8), port: scratch.word(port_at) }
    }

    /// Writes the peer to `place`, with length 0 if it cannot be read.
    ///
    /// # Safety
    /// `place` must be valid for writes.
    #[inline(always)]
    pub(crate) unsafe fn read(self, place: *mut Peer) {
        // SAFETY: the caller guarantees it. Word by word, or else the compiler calls `memset`.
        unsafe {
            let words = place.cast::<u64>();
            for index in 0..size_of::<Peer>() / 8 {
                words.add(index).write_volatile(0);
            }
        }
        if self.port > PORT_MAX {
            return;
        }
        // SAFETY: as above; an address has room for sixteen bytes.
        let is_read = unsafe {
            let address = (&raw mut (*place).address).cast();
            match self.length {
                4 => ask(address, 4, self.pointer),
                16 => ask(address, 16, self.pointer),
                _ => return,
            }
        };
        if is_read {
            // SAFETY: as above.
            unsafe {
                (&raw mut (*place).length).write_volatile(self.length as u32);
                (&raw mut (*place).port).write_volatile(self.port as u32);
            }
        }
    }
}
