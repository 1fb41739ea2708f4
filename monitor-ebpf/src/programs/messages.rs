//! Messages of streams: each is counted once it has gone through.
//!
//! Kitex then calls a function that gets the stream and the error. gRPC-Go has no such function: only the result of its
//! functions for sending and receiving shows whether there was a message, and by then their arguments are gone. So the
//! label set is noted at the entry of such a function, under the goroutine.

use aya_ebpf::programs::ProbeContext;
use monitor_ebpf::{Counter, NO_MESSAGE, extra, side, stream, window_use};

use super::{
    in_flight,
    labels::{self, Facts},
    maps::{MESSAGES, count, count_hot, recipe},
    memory::word,
    registers::{Hit, Moment},
    scratch::Scratch,
    shape::{self, MessageOf, ONLY_START_TELLS, ShapeRef},
    totals,
};

/// `BPF_ANY`: insert or replace.
const ANY: u64 = 0;

/// Counts a message that was sent on a stream.
#[inline(always)]
pub(crate) fn sent(ctx: &ProbeContext) {
    message(ctx, extra::MESSAGES_SENT, recipe!(sent_skip_flags), recipe!(sent_error_at));
}

/// Counts a message that was received on a stream.
#[inline(always)]
pub(crate) fn received(ctx: &ProbeContext) {
    message(ctx, extra::MESSAGES_RECEIVED, recipe!(received_skip_flags), recipe!(received_error_at));
}

#[inline(always)]
fn message(ctx: &ProbeContext, kind: u32, skip_flags: u8, error_at: u16) {
    let hit = Hit::read(ctx, Moment::Message);
    if recipe!(by_site) != 0 {
        return left(&hit, kind);
    }
    if hit.is_skipped(skip_flags) || has_failed(&hit, error_at) {
        return;
    }
    let mut scratch = Scratch::new();
    scratch.memory().find();
    let Ok(shape) = shape::find(&hit, &mut scratch) else {
        return count(Counter::MessageLost);
    };
    shape.copy_windows(&hit, &mut scratch, window_use::KEY | window_use::MESSAGE);
    let facts = Facts { stream: shape.stream(&scratch), ..Facts::NONE };
    match labels::number(shape, &facts, &mut scratch) {
        Some(label_set) => totals::add_extra(kind, label_set, 1),
        None => count(Counter::MessageLost),
    }
}

/// Returns whether the message failed to go through. The end of a stream comes as an error, too.
#[inline(always)]
fn has_failed(hit: &Hit, error_at: u16) -> bool {
    error_at != 0 && word(hit.stack().wrapping_add(u64::from(error_at))) != 0
}

/// Notes the label set of a message that is about to go through. If it cannot be determined, nothing is noted, and the
/// message is counted as lost if it goes through.
#[inline(always)]
pub(crate) fn entered(ctx: &ProbeContext) {
    let mut hit = Hit::read(ctx, Moment::Entered);
    if recipe!(by_site) == 0 || hit.is_skipped(recipe!(entered_skip_flags)) {
        return;
    }
    count_hot(Counter::MessageEntered, side::CLIENT);
    let mut scratch = Scratch::new();
    scratch.memory().find();
    let Ok(shape) = shape::find(&hit, &mut scratch) else { return };
    let key = key(&hit, extra::MESSAGES_SENT + hit.direction);
    let Some(label_set) = label_set(&mut hit, shape, &mut scratch) else {
        let _ = MESSAGES.remove(key);
        return;
    };
    note(key, label_set);
}

/// Returns the label set of the stream that a message belongs to, or [`NO_MESSAGE`] for a call that is not a stream:
/// the call already accounts for its messages, and on some paths they are not seen.
#[inline(always)]
fn label_set(hit: &mut Hit, shape: ShapeRef, scratch: &mut Scratch) -> Option<u32> {
    let mut kind = shape.kind_of_message(hit);
    if kind == stream::UNARY {
        return Some(NO_MESSAGE);
    }
    match shape.object_of_message(hit) {
        MessageOf::Call(object) => hit.object = object,
        MessageOf::NoCall => return Some(NO_MESSAGE),
        MessageOf::Unknown => return None,
    }
    hit.type_word = hit.object;
    if kind == ONLY_START_TELLS {
        kind = in_flight::kind(shape.key(hit, scratch));
    }
    if kind == stream::UNARY {
        return Some(NO_MESSAGE);
    }
    shape.copy_windows(hit, scratch, window_use::MESSAGE);
    labels::number(shape, &Facts { stream: kind, ..Facts::NONE }, scratch)
}

/// Returns the key of a message. Goroutines lie at multiples of eight, and have one message per direction at a time.
#[inline(always)]
fn key(hit: &Hit, kind: u32) -> u64 {
    hit.goroutine() | u64::from(kind)
}

/// Stores a map entry. Not inlined, since its key and value take stack. The return value has no meaning.
#[inline(never)]
fn note(key: u64, label_set: u32) -> u32 {
    // If the map is full, the message is counted as lost once it has gone through.
    let _ = MESSAGES.insert(&key, &label_set, ANY);
    0
}

/// Counts a message if the function that it goes through returns without an error.
#[inline(always)]
fn left(hit: &Hit, kind: u32) {
    count_hot(Counter::MessageLeft, side::CLIENT);
    let key = key(hit, kind);
    // SAFETY: the entry is this goroutine's own.
    let label_set = unsafe { MESSAGES.get(&key) }.copied();
    if label_set.is_some() {
        let _ = MESSAGES.remove(&key);
    }
    if hit.error != 0 {
        return;
    }
    match label_set {
        Some(NO_MESSAGE) => {}
        Some(label_set) => totals::add_extra(kind, label_set, 1),
        None => count(Counter::MessageLost),
    }
}
