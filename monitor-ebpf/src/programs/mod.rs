//! The path of a call through the kernel side.

mod asm;
mod errors;
mod in_flight;
mod interim;
mod labels;
mod maps;
mod memory;
mod messages;
pub(crate) mod native;
mod peer;
mod registers;
mod scratch;
mod shape;
mod status;
mod tags;
mod totals;
mod types;

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::ProbeContext};
use aya_log_ebpf::debug;
use in_flight::Started;
use labels::Facts;
use maps::{PROOF, count, count_hot, count_of, recipe};
pub(crate) use messages::{entered, received, sent};
use monitor_ebpf::{
    Counter, Detail, NO_SCRATCH, Record, by_site, event, extra, policy, record_flag, size, status_code,
    window_use,
};
use peer::PeerAt;
use registers::{Hit, Moment};
use scratch::Scratch;
use shape::{ShapeRef, Unfound};

/// No call has more bytes than this: a higher count was misread.
const SIZE_MAX: u64 = 1 << 48;

/// Tests reading memory of the process by page tables. The first argument register holds the address to read, the
/// second where all memory may be mapped, the third the length of that mapping.
#[inline(always)]
pub(crate) fn prove(ctx: &ProbeContext) {
    // SAFETY: the kernel passes a valid pointer to the saved registers.
    let (address, start, length) = unsafe { ((*ctx.regs).rdi, (*ctx.regs).rsi, (*ctx.regs).rdx) };
    if let Some(proof) = PROOF.get_ptr_mut(0) {
        // SAFETY: the map's value is a `Proof`.
        unsafe { proof.write_volatile(memory::prove(address, start, length)) }
    }
}

/// Stores the start of a call.
#[inline(always)]
pub(crate) fn start(ctx: &ProbeContext) {
    let hit = Hit::read(ctx, Moment::Start);
    if hit.is_skipped(recipe!(start_skip_flags)) {
        return;
    }
    // Kitex's starts read nothing on servers, so the page tables are looked for only when needed.
    let mut scratch = Scratch::new();
    scratch.memory().find_later();
    let shape = match shape::find(&hit, &mut scratch) {
        Ok(shape) => shape,
        Err(why) => {
            count(if why == Unfound::Unread { Counter::StartUnread } else { Counter::StartUnknownType });
            in_flight::insert_unknown(hit.goroutine());
            debug!(ctx, "start: object of unknown type {:x}", hit.type_word);
            return;
        }
    };
    shape.copy_windows(&hit, &mut scratch, window_use::KEY);
    let key = shape.key(&hit, &scratch);
    if shape.has(policy::FIRST_START) && in_flight::holds(key) {
        return;
    }
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let is_told = shape.has(policy::COUNT_STARTS) || recipe!(events) & event::STARTS != 0;
    if is_told {
        shape.copy_windows(&hit, &mut scratch, window_use::START);
    }
    let begins = shape.begins(&scratch);
    if begins == Some(false) {
        return;
    }
    if shape.has(policy::COUNT_STARTS) && shape.has(policy::FIRST_FINISH) {
        in_flight::begin_once(key);
    }
    if begins.is_none() {
        return count(Counter::StartUnread);
    }
    count_hot(Counter::Starts, shape.side());
    let kind = shape.kind(&scratch);
    let label_set =
        if is_told { tell_start(shape, &hit, &mut scratch, kind, now) } else { labels::NO_NUMBER };
    if shape.has(policy::COUNT_STARTS) {
        return in_flight::insert_told(key, label_set, now, kind);
    }
    // In the start of a call keyed by its goroutine, the nesting depth takes the place of the kind.
    let kind = if key.is_goroutine() { 0 } else { kind };
    in_flight::insert(key, hit.object, now, kind);
}

/// Counts the start of a call under the labels of a call that succeeds, or sends it to the agent with what is known so
/// far. Returns the number of its label set.
#[inline(always)]
fn tell_start(shape: ShapeRef, hit: &Hit, scratch: &mut Scratch, kind: u8, now: u64) -> u32 {
    let facts = Facts { stream: kind, ..Facts::NONE };
    let peer = PeerAt::of(shape, scratch);
    let Some(label_set) = labels::number(shape, &facts, scratch) else {
        count(Counter::StartLabelLost);
        return labels::NO_NUMBER;
    };
    if shape.has(policy::COUNT_STARTS) {
        totals::add_extra(extra::STARTED, label_set, 1);
    }
    if recipe!(events) & event::STARTS == 0 {
        return label_set;
    }
    let record = Record { label_set, flags: record_flag::STARTED, start_ns: now, duration_ns: 0 };
    let detail = || Detail { goroutine: hit.goroutine(), sizes: [Detail::UNREAD; 2] };
    // SAFETY: the place is valid for writes.
    if !totals::send(record, detail, |place| unsafe { peer.read(place) }) {
        count(Counter::StartRingFull);
    }
    label_set
}

/// Counts a finished call under its labels, and sends its duration to the agent.
#[inline(always)]
pub(crate) fn finish(ctx: &ProbeContext) {
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let mut hit = Hit::read(ctx, Moment::Finish);
    if hit.is_skipped(recipe!(finish_skip_flags)) {
        return;
    }
    let mut scratch = Scratch::new();
    scratch.memory().find();
    let shape = match shape::find(&hit, &mut scratch) {
        Ok(shape) => shape,
        Err(why) => {
            count(if why == Unfound::Unread { Counter::FinishUnread } else { Counter::FinishUnknownType });
            in_flight::remove_unknown(hit.goroutine());
            if why == Unfound::Unread && recipe!(by_site) == 0 {
                in_flight::remove_object(hit.object);
            }
            debug!(ctx, "finish: object of unknown type {:x}", hit.type_word);
            return;
        }
    };
    let was_wrapped = recipe!(by_site) != 0 && status::unwrap(&mut hit, shape);
    shape.copy_windows(&hit, &mut scratch, window_use::KEY | window_use::FINISH);
    if !shape.is_finished(&hit, &scratch) {
        return;
    }
    let code = if recipe!(by_site) == by_site::PATH {
        status::code(&hit, was_wrapped, shape, &scratch)
    } else {
        status_code::OK
    };
    let may_be_interim = code != status_code::OK && shape.has_interim() && shape.code_given(&hit).is_none();
    if may_be_interim && interim::is_told(&hit, shape) {
        return count_of(Counter::FinishRepeated, shape.side());
    }

    let key = shape.key(&hit, &scratch);
    let is_told = shape.has(policy::COUNT_STARTS);
    // Before the start is removed: without it, another thread would take this call for one whose start was not seen.
    if is_told && shape.has(policy::FIRST_FINISH) && !in_flight::ends_once(key) {
        return count_of(Counter::FinishRepeated, shape.side());
    }
    let started = if is_told { in_flight::remove_told(key) } else { in_flight::remove(key, hit.object) };
    // A call that succeeds keeps the label set of its start.
    let known = if is_told && code == status_code::OK { started.label_set() } else { labels::NO_NUMBER };
    if is_told && known == labels::NO_NUMBER {
        shape.copy_untold(&hit, &mut scratch);
    }
    let asks_kind = shape.has(policy::KIND_AT_FINISH) && !(is_told && started.is_seen());
    let kind = if asks_kind { shape.kind(&scratch) } else { started.kind() };
    if !started.is_seen() {
        match shape.ends_again(kind, &scratch) {
            Some(false) => {}
            Some(true) => return count_of(Counter::FinishRepeated, shape.side()),
            None => return count(Counter::FinishUnread),
        }
    }
    // The label set is built over the windows, so their values are saved first.
    keep_sizes(shape, &mut scratch);
    let peer = PeerAt::of(shape, &scratch);
    let label_set = if known == labels::NO_NUMBER {
        let facts = facts(&hit, shape, kind, code, &scratch);
        labels::number(shape, &facts, &mut scratch)
    } else {
        Some(known)
    };
    let Some(label_set) = label_set else {
        let counter = if started.is_seen() { Counter::FinishLost } else { Counter::FinishLostUnpaired };
        count_of(counter, shape.side());
        return;
    };
    totals::add(label_set);
    add_sizes(shape, label_set, &scratch);
    let recorded = if !started.is_seen() && in_flight::is_asked(now) {
        shape.recorded_start(&hit, &mut scratch)
    } else {
        0
    };
    let Some((record, if_full)) = record(shape, label_set, started, recorded, now) else { return };
    let detail = || Detail { goroutine: hit.goroutine(), sizes: sizes(&scratch) };
    // SAFETY: the place is valid for writes.
    if !totals::send(record, detail, |place| unsafe { peer.read(place) }) {
        count_of(if_full, shape.side());
    }
}

/// Returns the record of a finished call, and the counter for a ring without room. Returns `None` for a call whose
/// start was not sampled, unless events are wanted: it is in the total, and has no duration.
#[inline(always)]
fn record(
    shape: ShapeRef,
    label_set: u32,
    started: Started,
    recorded: u64,
    now: u64,
) -> Option<(Record, Counter)> {
    if started.is_seen() {
        let duration_ns = now.saturating_sub(started.at_ns);
        let record = Record { label_set, flags: 0, start_ns: started.at_ns, duration_ns };
        return Some((record, Counter::RingFull));
    }
    if recorded != 0 {
        let flags = record_flag::RECORDED;
        let record = Record { label_set, flags, start_ns: recorded, duration_ns: now };
        return Some((record, Counter::RingFullRecorded));
    }
    let is_sampled = recipe!(by_site) == 0 && in_flight::is_sampled();
    count_of(if is_sampled { Counter::SampledOut } else { Counter::Unpaired }, shape.side());
    if is_sampled && recipe!(events) == 0 {
        return None;
    }
    let flags = record_flag::UNPAIRED;
    Some((Record { label_set, flags, start_ns: now, duration_ns: 0 }, Counter::RingFullUnpaired))
}

/// Returns what is known of a finished call besides its names.
#[inline(always)]
fn facts(hit: &Hit, shape: ShapeRef, kind: u8, code: u32, scratch: &Scratch) -> Facts {
    if recipe!(by_site) == by_site::NAMES {
        let (number, failed) = shape.outcome(hit, scratch);
        return Facts { failed, error: number, stream: kind, ..Facts::NONE };
    }
    if recipe!(by_site) != 0 {
        return Facts { failed: code != status_code::OK, error: code, stream: kind, ..Facts::NONE };
    }
    Facts {
        failed: hit.error != 0,
        error: errors::class(hit),
        retry: tags::retries(shape, scratch),
        stream: 0,
        protocol: shape.protocol(scratch),
        panicked: shape.has_panicked(scratch),
    }
}

/// Saves the byte counts of a finished call, [`Detail::UNREAD`] where the recipe does not ask for them.
#[inline(always)]
fn keep_sizes(shape: ShapeRef, scratch: &mut Scratch) {
    for size in [size::SENT, size::RECEIVED] {
        let at = shape.size_at(size);
        scratch.keep(size, if at == NO_SCRATCH { Detail::UNREAD } else { scratch.word(at) });
    }
}

/// Adds the byte counts of a finished call to those of its label set.
#[inline(always)]
fn add_sizes(shape: ShapeRef, label_set: u32, scratch: &Scratch) {
    for (kind, size) in [(extra::BYTES_SENT, size::SENT), (extra::BYTES_RECEIVED, size::RECEIVED)] {
        if shape.size_at(size) == NO_SCRATCH {
            continue;
        }
        let bytes = scratch.kept(size);
        if bytes > SIZE_MAX {
            count(Counter::SizeUnread);
            continue;
        }
        totals::add_extra(kind, label_set, bytes);
    }
}

/// Returns the byte counts of a finished call, for its event.
#[inline(always)]
fn sizes(scratch: &Scratch) -> [u64; 2] {
    [size::SENT, size::RECEIVED].map(|size| {
        let bytes = scratch.kept(size);
        if bytes > SIZE_MAX { Detail::UNREAD } else { bytes }
    })
}
