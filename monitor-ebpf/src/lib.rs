//! What the uprobe programs and the agent share: the recipe that the agent writes and the programs
//! follow, the layout of the maps' keys and values, and the meaning of every counter.
//!
//! All types are `repr(C)` without padding that anyone reads, hold no `bool` and no enum, and are valid
//! for every bit pattern, since the two sides are built by different compilers for different machines.
//! What such a field may be is a `u8` or `u32` constant in a module named after it, or an enum with such numbers.
#![no_std]

mod call;
mod counter;
mod native;
mod page_tables;
mod recipe;

pub use call::{
    Bucket, DEPTH_BITS, Detail, ENDED_KEYS, Event, LABELS, LabelSet, MAX_NESTING, NO_MESSAGE, Peer,
    PeerEvent, Record, Spilled, TEXT_BYTES, WAYS, call_type, error_class, extra, key, label, mark, protocol,
    record_flag, retry_count, sampling, side, status_code, stream,
};
pub use counter::{COUNTERS, COUNTERS_OF_SIDE, Counter};
pub use native::{Native, NativeText, form, moment, word};
pub use page_tables::{PROOF_WORDS, PageTables, Proof, patched};
pub use recipe::{
    ALIASES, ANY_SITE, ARGUMENT, CodeRange, FINISH_SITES, GATES, Given, INTERIM_RANGES, KeyKind, MAX_SHAPES,
    MAX_WINDOWS, MESSAGE_SITES, Messages, NO_FIELD, NO_GUARD, NO_SCRATCH, OBJECT, Recipe, Recorded, Register,
    SCRATCH_BYTES, Shape, Sited, TagMap, Test, TestOp, Window, by_site, event, outcome, policy, size,
    window_flag, window_use,
};

/// Names of the maps and globals in the object, as the agent asks for them.
pub mod name {
    /// The start program.
    pub const START: &str = "rpc_start";
    /// The finish program.
    pub const FINISH: &str = "rpc_finish";
    /// The program that counts messages sent on streams.
    pub const SENT: &str = "stream_sent";
    /// The program that counts messages received.
    pub const RECEIVED: &str = "stream_received";
    /// The program that notes whose message is about to go through, where that is known before it has.
    pub const ENTERED: &str = "stream_entered";
    /// The program at the start of an operation of native functions.
    pub const NATIVE_START: &str = "native_start";
    /// The one at its finish.
    pub const NATIVE_FINISH: &str = "native_finish";
    /// The one behind a return probe, where it finishes by that.
    pub const NATIVE_RETURN: &str = "native_return";
    /// The program that tries to read memory by page tables.
    pub const PROVE: &str = "prove";
    /// Array with one [`Proof`](crate::Proof): what it has found.
    pub const PROOF: &str = "PROOF";
    /// The program that does nothing.
    pub const NOTHING: &str = "nothing";
    /// The same behind a return probe.
    pub const NOTHING_RETURNED: &str = "nothing_returned";
    /// Read-only global of type [`Recipe`](crate::Recipe).
    pub const RECIPE: &str = "RECIPE";
    /// Mappable array of [`Bucket`](crate::Bucket): the in-flight table.
    pub const IN_FLIGHT: &str = "IN_FLIGHT";
    /// Mappable array: for each bucket of the in-flight table the addresses of the objects of the calls in its ways,
    /// where the key is not the object; or the numbers of the label sets that they had as they started.
    pub const OBJECTS: &str = "OBJECTS";
    /// Array of `u64`: keys of calls that have ended and may end once more.
    pub const ENDED: &str = "ENDED";
    /// Mappable array of `u64`: which starts are seen, by [`sampling`](crate::sampling). Written by the agent, but for
    /// what programs note of calls that found no room.
    pub const SAMPLING: &str = "SAMPLING";
    /// Hash: call key to [`Spilled`](crate::Spilled).
    pub const SPILL: &str = "SPILL";
    /// Hash: goroutine and direction of a message that is about to go through to the number of its label set, or
    /// [`NO_MESSAGE`](crate::NO_MESSAGE).
    pub const MESSAGES: &str = "MESSAGES";
    /// Hash: [`LabelSet`](crate::LabelSet) to its number.
    pub const LABEL_IDS: &str = "LABEL_IDS";
    /// Mappable array: the [`LabelSet`](crate::LabelSet) of each number.
    pub const LABEL_SETS: &str = "LABEL_SETS";
    /// Array of `u64`: numbers of label sets, each plus one, by a hash of the set; 0 for none.
    pub const LABEL_CACHE: &str = "LABEL_CACHE";
    /// Mappable array of `u64`: finished calls, rows of label set numbers, of which each CPU has one,
    /// perhaps with others.
    pub const TOTALS: &str = "TOTALS";
    /// Mappable array of `u64`: [`extra`](crate::extra) counts of the label sets, as [`TOTALS`], with one
    /// row for each count.
    pub const EXTRAS: &str = "EXTRAS";
    /// Mappable array of [`ALIASES`](crate::ALIASES) pairs of type words: the second of a pair is what the first
    /// stands for. The first pair that is zero ends them.
    pub const ALIASES: &str = "ALIASES";
    /// Hash: type word that no shape expects to how often it was met.
    pub const UNEXPECTED: &str = "UNEXPECTED";
    /// Mappable array of `u64`: rows of [`COUNTERS`](crate::COUNTERS), as [`TOTALS`].
    pub const COUNTERS: &str = "COUNTERS";
    /// Mappable array with two `u64`: how many numbers were asked for so far, those past the end among them, for label sets in
    /// full and for sets with `other` in them.
    pub const NEXT_LABEL: &str = "NEXT_LABEL";
    /// Ring buffer of [`Record`](crate::Record), [`Event`](crate::Event) or [`PeerEvent`](crate::PeerEvent), which
    /// their lengths tell apart.
    pub const RECORDS: &str = "RECORDS";
}
