//! What leaves the kernel: exact totals, and a record of each call.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use monitor_ebpf::{Detail, Event, Peer, PeerEvent, Record, event, extra};

use super::{
    asm::{self, increment},
    maps::{EXTRAS, RECORDS, TOTALS, recipe, row},
};

/// Counts a finished call. The count is exact whatever happens to the call's record.
#[inline(always)]
pub(crate) fn add(label_set: u32) {
    if let Some(total) = TOTALS.get_ptr_mut(row() * recipe!(label_capacity) + label_set) {
        // SAFETY: the map's values are `u64`.
        unsafe { increment(total) }
    }
}

/// Adds to one of the [`extra`](monitor_ebpf::extra) counts of a label set.
#[inline(always)]
pub(crate) fn add_extra(kind: u32, label_set: u32, value: u64) {
    let row = row() * extra::COUNT + kind;
    if let Some(sum) = EXTRAS.get_ptr_mut(row * recipe!(label_capacity) + label_set) {
        // SAFETY: the map's values are `u64`.
        unsafe { asm::add(sum, value) }
    }
}

/// Sends a record, or an event where the recipe says so, without waking the agent: a wakeup costs the target some
/// 20 µs on a virtual machine, and the agent polls anyway. Returns false when the ring is full.
///
/// `peer` gets a place that is valid for writes, and must fill it.
#[inline(always)]
pub(crate) fn send(record: Record, detail: impl FnOnce() -> Detail, peer: impl FnOnce(*mut Peer)) -> bool {
    let events = recipe!(events);
    if events == 0 {
        return send_value(record);
    }
    if events & event::PEERS == 0 {
        return send_value(Event { record, detail: detail() });
    }
    let Some(mut entry) = RECORDS.reserve::<PeerEvent>(0) else { return false };
    let place = entry.as_mut_ptr();
    // SAFETY: the place is in the ring, and is this program's until it is submitted.
    unsafe { (&raw mut (*place).event).write(Event { record, detail: detail() }) }
    // SAFETY: as above.
    peer(unsafe { &raw mut (*place).peer });
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    true
}

#[inline(always)]
fn send_value<T: 'static>(value: T) -> bool {
    let Some(mut entry) = RECORDS.reserve::<T>(0) else { return false };
    entry.write(value);
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    true
}
