//! Operations of native functions: see [`monitor_ebpf::Native`].

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
};
use monitor_ebpf::{
    Counter, Detail, LABELS, LabelSet, Record, form, mark, moment, policy, record_flag, retry_count, stream,
    word,
};

use super::{
    in_flight::{self, Key, NO_LABEL_SET},
    labels,
    maps::{count, count_hot, count_of, recipe},
    scratch::Scratch,
    totals,
};

/// Handles the start of an operation.
#[inline(always)]
pub(crate) fn start(registers: *const pt_regs) {
    let words = Words::copy(registers);
    let key = key(&words, recipe!(native.start_key));
    if recipe!(native.policy) & policy::FIRST_START != 0 && in_flight::holds(key) {
        return;
    }
    count_hot(Counter::Starts, recipe!(native.side));
    let label_set =
        if reads_at(moment::START) { name(&words, moment::START, NO_LABEL_SET) } else { NO_LABEL_SET };
    if reads_at(moment::START) && label_set == NO_LABEL_SET {
        count(Counter::StartLabelLost);
    }
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    in_flight::insert_told(key, label_set, now, 0);
}

/// Handles the finish of an operation.
#[inline(always)]
pub(crate) fn finish(registers: *const pt_regs) {
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let words = Words::copy(registers);
    let side = recipe!(native.side);
    let started = in_flight::remove_told(key(&words, recipe!(native.finish_key)));
    if !started.is_seen() && recipe!(native.policy) & policy::FIRST_FINISH != 0 {
        return count_of(Counter::FinishRepeated, side);
    }
    let label_set = name(&words, moment::FINISH, started.label_set());
    if label_set == NO_LABEL_SET {
        let lost = if started.is_seen() { Counter::FinishLost } else { Counter::FinishLostUnpaired };
        return count_of(lost, side);
    }
    totals::add(label_set);
    let (record, if_full) = if started.is_seen() {
        let duration_ns = now.saturating_sub(started.at_ns);
        (Record { label_set, flags: 0, start_ns: started.at_ns, duration_ns }, Counter::RingFull)
    } else {
        count_of(Counter::Unpaired, side);
        let flags = record_flag::UNPAIRED;
        (Record { label_set, flags, start_ns: now, duration_ns: 0 }, Counter::RingFullUnpaired)
    };
    // Native functions have no goroutines, and their bytes are not counted.
    let detail = || Detail { goroutine: 0, sizes: [Detail::UNREAD; 2] };
    if !totals::send(record, detail, |_| ()) {
        count_of(if_full, side);
    }
}

/// Returns the key of an operation in flight, made from the word that holds it.
#[inline(always)]
fn key(words: &Words, word: u8) -> Key {
    let value = words.get(word);
    let value = if recipe!(native.key_width) == 4 { value & u64::from(u32::MAX) } else { value };
    // Never 0, and a multiple of eight, like the address of an object.
    Key::of_object(value << 3 | 1 << 63, recipe!(native.side))
}

/// Returns whether any part of the label set is read at this moment.
#[inline(always)]
fn reads_at(moment: u8) -> bool {
    (0..LABELS).any(|label| recipe!(native.texts[label].moment) == moment)
        || recipe!(native.number_moment) == moment
}

/// Returns the number of the label set with what is read at this moment and what was read at the start.
#[inline(always)]
fn name(words: &Words, moment: u8, started: u32) -> u32 {
    let mut scratch = Scratch::new();
    scratch.memory().ask();
    let set = labels::base(&mut scratch, started);
    set.side = recipe!(native.side);
    set.stream = stream::FIRST_OPERATION;
    if recipe!(native.number_moment) == moment {
        let number = words.get(recipe!(native.number));
        set.error = if recipe!(native.number_width) == 1 { number as u32 & 0xff } else { number as u32 };
    } else if recipe!(native.number_moment) == moment::START && started == NO_LABEL_SET {
        // Any value may be a valid number, so a field that only RPCs use says that it was not read.
        count(Counter::LabelUnreadable);
        set.retry = retry_count::UNREADABLE;
    }
    for label in 0..LABELS {
        let at = recipe!(native.texts[label].moment);
        if at == moment {
            read(set, label, words.get(recipe!(native.texts[label].word)));
        } else if at == moment::START && started == NO_LABEL_SET {
            count(Counter::LabelUnreadable);
            set.marks[label] = mark::UNREADABLE;
        }
    }
    labels::number_of(&mut scratch)
}

#[inline(always)]
fn read(set: &mut LabelSet, label: usize, pointer: u64) {
    if recipe!(native.texts[label].form) == form::CXX11 {
        labels::read_behind(set, label, pointer);
    } else {
        labels::read_c(set, label, pointer);
    }
}

/// A copy of the words that a recipe can name, so that one can be selected by number.
struct Words([u64; word::COUNT]);

impl Words {
    /// Copies the words in the order of [`word`].
    #[inline(always)]
    fn copy(registers: *const pt_regs) -> Self {
        // SAFETY: the kernel passes a valid pointer to the saved registers.
        let saved = unsafe { &*registers };
        let thread = bpf_get_current_pid_tgid();
        Self([
            saved.rdi,
            saved.rsi,
            saved.rdx,
            saved.rcx,
            saved.r8,
            saved.r9,
            saved.rax,
            saved.rsp,
            saved.rsp.wrapping_sub(8),
            // The thread ID alone: all threads are of one process.
            thread & u64::from(u32::MAX),
        ])
    }

    /// Returns the word that the recipe names.
    #[inline(always)]
    fn get(&self, word: u8) -> u64 {
        // SAFETY: the agent writes numbers of `word` only; the verifier knows the number and refuses an access outside
        // the array.
        unsafe { *self.0.get_unchecked(usize::from(word)) }
    }
}
