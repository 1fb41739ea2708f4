//! Messages of streams: each is counted once it has gone through.
//!
//! Kitex calls a function after that, which gets the stream and the error. gRPC-Go has none: the functions that send and
//! receive say by their result whether there was a message, when their arguments are gone. So the label set is noted as
//! such a function is entered, under its goroutine.

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

/// Did the message not go through? The end of a stream comes as an error, too.
#[inline(always)]
fn has_failed(hit: &Hit, error_at: u16) -> bool {
    error_at != 0 && word(hit.stack().wrapping_add(u64::from(error_at))) != 0
}

/// Notes whose message is about to go through. Where that can't be told nothing is noted, so that the message is counted
/// as lost if it does.
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

/// The label set of the stream that a message belongs to, or [`NO_MESSAGE`] for one of a call that is no stream: what is
/// to be known of those the calls say, and on some ways their messages are not seen.
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

/// Goroutines lie at multiples of eight, and a message in one direction ends before the next begins.
#[inline(always)]
fn key(hit: &Hit, kind: u32) -> u64 {
    hit.goroutine() | u64::from(kind)
}

/// Not inlined, since a map's key and value take stack. Gives nothing of use.
#[inline(never)]
fn note(key: u64, label_set: u32) -> u32 {
    // Without room it is counted as lost once it has gone through.
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
