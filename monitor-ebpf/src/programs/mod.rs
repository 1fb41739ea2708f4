//! The way of a call through the kernel side.

mod asm;
mod in_flight;
mod labels;
mod maps;
mod registers;
mod scratch;
mod shape;
mod tags;
mod totals;

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::ProbeContext};
use aya_log_ebpf::debug;
use maps::{count, count_hot, recipe};
use monitor_ebpf::{Counter, record_flag};
use registers::Hit;
use scratch::Scratch;

/// Remembers when the call started.
#[inline(always)]
pub(crate) fn start(ctx: &ProbeContext) {
    let hit = Hit::read(ctx);
    if hit.flags & u64::from(recipe!(start_skip_flags)) != 0 {
        return;
    }
    let mut scratch = Scratch::new();
    let Some(shape) = shape::find(hit.type_word, hit.object, &mut scratch) else {
        count(Counter::StartUnknownType);
        debug!(ctx, "start: object of unknown type {:x}", hit.type_word);
        return;
    };
    shape.copy_windows(hit.object, &mut scratch, true);
    count_hot(Counter::Starts);
    let key = shape.key(hit.object, hit.goroutine, &scratch);
    // SAFETY: a helper without preconditions.
    in_flight::insert(key, unsafe { bpf_ktime_get_ns() });
}

/// Counts the call under its labels, and sends its duration to the agent.
#[inline(always)]
pub(crate) fn finish(ctx: &ProbeContext) {
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let hit = Hit::read(ctx);
    if hit.flags & u64::from(recipe!(finish_skip_flags)) != 0 {
        return;
    }
    let mut scratch = Scratch::new();
    let Some(shape) = shape::find(hit.type_word, hit.object, &mut scratch) else {
        count(Counter::FinishUnknownType);
        debug!(ctx, "finish: object of unknown type {:x}", hit.type_word);
        return;
    };
    shape.copy_windows(hit.object, &mut scratch, false);

    let started = in_flight::remove(shape.key(hit.object, hit.goroutine, &scratch));
    let Some(label_set) = labels::number(shape, hit.error != 0, &scratch) else {
        count(Counter::FinishLost);
        return;
    };
    totals::add(label_set);
    if let Some(start_ns) = started {
        if !totals::send(label_set, 0, start_ns, now.saturating_sub(start_ns)) {
            count(Counter::RingFull);
        }
    } else {
        count(Counter::Unpaired);
        if !totals::send(label_set, record_flag::UNPAIRED, now, 0) {
            count(Counter::RingFullUnpaired);
        }
    }
}
