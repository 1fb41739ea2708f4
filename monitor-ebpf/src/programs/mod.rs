//! The way of a call through the kernel side.

mod asm;
mod errors;
mod in_flight;
mod labels;
mod maps;
mod registers;
mod scratch;
mod shape;
mod tags;
mod totals;
mod types;

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::ProbeContext};
use aya_log_ebpf::debug;
use labels::Facts;
use maps::{count, count_hot, count_of, recipe};
use monitor_ebpf::{Counter, Detail, NO_SCRATCH, Record, event, extra, record_flag, size, window_use};
use registers::Hit;
use scratch::Scratch;
use shape::ShapeRef;

/// No call has more bytes than this: such a count was not read rightly.
const SIZE_MAX: u64 = 1 << 48;

/// Remembers when the call started.
#[inline(always)]
pub(crate) fn start(ctx: &ProbeContext) {
    let hit = Hit::read(ctx);
    if hit.is_skipped(recipe!(start_skip_flags)) {
        return;
    }
    let mut scratch = Scratch::new();
    let Some(shape) = shape::find(hit.type_word, hit.object, &mut scratch) else {
        count(Counter::StartUnknownType);
        in_flight::insert_unknown(hit.goroutine);
        debug!(ctx, "start: object of unknown type {:x}", hit.type_word);
        return;
    };
    shape.copy_windows(hit.object, &mut scratch, window_use::KEY);
    count_hot(Counter::Starts, shape.side());
    let key = shape.key(hit.object, hit.goroutine, &scratch);
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    in_flight::insert(key, hit.object, now);
    if recipe!(events) & event::STARTS != 0 {
        send_start(shape, &hit, &mut scratch, now);
    }
}

/// Sends the start of a call to the agent, with what is known of it already.
#[inline(always)]
fn send_start(shape: ShapeRef, hit: &Hit, scratch: &mut Scratch, now: u64) {
    shape.copy_windows(hit.object, scratch, window_use::START);
    let facts = Facts::NONE;
    let Some(label_set) = labels::number(shape, &facts, scratch) else {
        return count(Counter::StartLabelLost);
    };
    let record = Record { label_set, flags: record_flag::STARTED, start_ns: now, duration_ns: 0 };
    if !totals::send(record, || Detail { goroutine: hit.goroutine, sizes: [Detail::UNREAD; 2] }) {
        count(Counter::StartRingFull);
    }
}

/// Counts the call under its labels, and sends its duration to the agent.
#[inline(always)]
pub(crate) fn finish(ctx: &ProbeContext) {
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let hit = Hit::read(ctx);
    if hit.is_skipped(recipe!(finish_skip_flags)) {
        return;
    }
    let mut scratch = Scratch::new();
    let Some(shape) = shape::find(hit.type_word, hit.object, &mut scratch) else {
        count(Counter::FinishUnknownType);
        in_flight::remove_unknown(hit.goroutine);
        debug!(ctx, "finish: object of unknown type {:x}", hit.type_word);
        return;
    };
    shape.copy_windows(hit.object, &mut scratch, window_use::KEY | window_use::FINISH);

    let started = in_flight::remove(shape.key(hit.object, hit.goroutine, &scratch));
    let facts = Facts {
        failed: hit.error != 0,
        error: errors::class(&hit),
        retry: tags::retries(shape, &scratch),
        stream: 0,
        protocol: shape.protocol(&scratch),
        panicked: shape.has_panicked(&scratch),
    };
    let Some(label_set) = labels::number(shape, &facts, &scratch) else {
        let counter = if started.is_some() { Counter::FinishLost } else { Counter::FinishLostUnpaired };
        count_of(counter, shape.side());
        return;
    };
    totals::add(label_set);
    add_sizes(shape, label_set, &scratch);
    let detail = || Detail { goroutine: hit.goroutine, sizes: sizes(shape, &scratch) };
    if let Some(start_ns) = started {
        let duration_ns = now.saturating_sub(start_ns);
        if !totals::send(Record { label_set, flags: 0, start_ns, duration_ns }, detail) {
            count_of(Counter::RingFull, shape.side());
        }
    } else {
        count_of(Counter::Unpaired, shape.side());
        let record = Record { label_set, flags: record_flag::UNPAIRED, start_ns: now, duration_ns: 0 };
        if !totals::send(record, detail) {
            count_of(Counter::RingFullUnpaired, shape.side());
        }
    }
}

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
    let hit = Hit::read(ctx);
    if hit.is_skipped(skip_flags) || has_failed(&hit, error_at) {
        return;
    }
    let mut scratch = Scratch::new();
    let Some(shape) = shape::find(hit.type_word, hit.object, &mut scratch) else {
        return count(Counter::MessageLost);
    };
    shape.copy_windows(hit.object, &mut scratch, window_use::KEY | window_use::MESSAGE);
    let facts = Facts { stream: shape.stream(&scratch), ..Facts::NONE };
    match labels::number(shape, &facts, &scratch) {
        Some(label_set) => totals::add_extra(kind, label_set, 1),
        None => count(Counter::MessageLost),
    }
}

/// Did the message not go through? The end of a stream comes as an error, too.
#[inline(always)]
fn has_failed(hit: &Hit, error_at: u16) -> bool {
    error_at != 0 && errors::word(hit.stack.wrapping_add(u64::from(error_at))) != 0
}

/// Adds up the bytes of a finished call, where the recipe asks for them.
#[inline(always)]
fn add_sizes(shape: ShapeRef, label_set: u32, scratch: &Scratch) {
    for (kind, size) in [(extra::BYTES_SENT, size::SENT), (extra::BYTES_RECEIVED, size::RECEIVED)] {
        let at = shape.size_at(size);
        if at == NO_SCRATCH {
            continue;
        }
        let bytes = scratch.word(at);
        if bytes > SIZE_MAX {
            count(Counter::SizeUnread);
            continue;
        }
        totals::add_extra(kind, label_set, bytes);
    }
}

/// The bytes of a finished call, for its event.
#[inline(always)]
fn sizes(shape: ShapeRef, scratch: &Scratch) -> [u64; 2] {
    [size::SENT, size::RECEIVED].map(|size| {
        let at = shape.size_at(size);
        let bytes = if at == NO_SCRATCH { Detail::UNREAD } else { scratch.word(at) };
        if bytes > SIZE_MAX { Detail::UNREAD } else { bytes }
    })
}
