//! Calls that have started and not finished.

use monitor_ebpf::{Counter, InFlight, MAX_NESTING};

use super::{
    maps::{IN_FLIGHT, count},
    shape::Key,
};

/// `BPF_ANY`: insert or replace.
const ANY: u64 = 0;
/// `BPF_NOEXIST`: insert, fail when the key is there.
const NO_EXIST: u64 = 1;
/// `EEXIST`.
const EXISTS: i32 = -17;

/// Remembers the start of a call.
#[inline(always)]
pub(crate) fn insert(key: Key, start_ns: u64) {
    let call = InFlight { start_ns, nested: 0 };
    match key {
        Key::Object(address) => insert_object(address, &call),
        Key::Goroutine(address) => insert_goroutine(address | 1, &call),
    }
}

/// Forgets the call and gives its start, if it was seen.
#[inline(always)]
pub(crate) fn remove(key: Key) -> Option<u64> {
    match key {
        Key::Object(address) => take(address),
        Key::Goroutine(address) => remove_goroutine(address | 1),
    }
}

/// One object has one call at a time: what is still there has been given up.
#[inline(always)]
fn insert_object(key: u64, call: &InFlight) {
    let Err(error) = IN_FLIGHT.insert(key, call, NO_EXIST) else { return };
    if error != EXISTS {
        return count(Counter::RefusedFull);
    }
    count(Counter::Abandoned);
    if IN_FLIGHT.insert(key, call, ANY).is_err() {
        count(Counter::RefusedFull);
    }
}

#[inline(always)]
fn insert_goroutine(outermost: u64, call: &InFlight) {
    let Err(error) = IN_FLIGHT.insert(outermost, call, NO_EXIST) else { return };
    if error != EXISTS {
        return count(Counter::RefusedFull);
    }
    let Some(outer) = IN_FLIGHT.get_ptr_mut(outermost) else {
        return count(Counter::RefusedFull);
    };
    // SAFETY: the entry is this goroutine's own, which runs on one thread at a time: nobody else removes it
    // or writes to it.
    let depth = unsafe {
        (*outer).nested += 1;
        (*outer).nested
    };
    if depth > u64::from(MAX_NESTING) {
        return count(Counter::RefusedNested);
    }
    if IN_FLIGHT.insert(outermost + depth, call, ANY).is_err() {
        count(Counter::RefusedFull);
    }
}

/// The innermost call of a goroutine finishes first.
#[inline(always)]
fn remove_goroutine(outermost: u64) -> Option<u64> {
    let outer = IN_FLIGHT.get_ptr_mut(outermost)?;
    // SAFETY: see `insert_goroutine`.
    let (start_ns, depth) = unsafe { ((*outer).start_ns, (*outer).nested) };
    if depth == 0 {
        let _ = IN_FLIGHT.remove(outermost);
        return Some(start_ns);
    }
    // SAFETY: as above.
    unsafe { (*outer).nested = depth - 1 };
    if depth > u64::from(MAX_NESTING) {
        return None;
    }
    take(outermost + depth)
}

#[inline(always)]
fn take(key: u64) -> Option<u64> {
    let call = IN_FLIGHT.get_ptr(key)?;
    // SAFETY: no other call has this key while this one is in flight.
    let start_ns = unsafe { (*call).start_ns };
    let _ = IN_FLIGHT.remove(key);
    Some(start_ns)
}
