//! What the uprobe programs and the agent share: the recipe, which the agent writes and the programs
//! follow, the layout of the maps' keys and values, and the meaning of every counter.
//!
//! All types are `repr(C)`, have no padding that is read, contain no `bool` and no enum, and are valid for
//! every bit pattern: the two sides are built by different compilers for different machines. If a field has a
//! fixed set of values, they are `u8` or `u32` constants in a module named after it, or the numbers of an enum.
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
pub use page_tables::{PROOF_WORDS, PageTables, Proof, patched, trial};
pub use recipe::{
    ALIASES, ANY_SITE, ARGUMENT, CodeRange, FINISH_SITES, GATES, Given, INTERIM_RANGES, KeyKind, MAX_SHAPES,
    MAX_WINDOWS, MESSAGE_SITES, Messages, NO_FIELD, NO_GUARD, NO_SCRATCH, OBJECT, Recipe, Recorded, Register,
    SCRATCH_BYTES, Shape, Sited, TagMap, Test, TestOp, Window, by_site, event, outcome, policy, size,
    window_flag, window_use,
};

/// Names of programs, maps and globals in the object, by which the agent looks them up.
pub mod name {
    /// Program at the start of an RPC.
    pub const START: &str = "rpc_start";
    /// Program at the finish of an RPC.
    pub const FINISH: &str = "rpc_finish";
    /// Program that counts messages sent on streams.
    pub const SENT: &str = "stream_sent";
    /// Program that counts messages received on streams.
    pub const RECEIVED: &str = "stream_received";
    /// Program that notes, at the entry of a message function, which stream the message belongs to.
    pub const ENTERED: &str = "stream_entered";
    /// Program at the start of an operation of native functions.
    pub const NATIVE_START: &str = "native_start";
    /// Program at its finish, attached to an instruction.
    pub const NATIVE_FINISH: &str = "native_finish";
    /// Program at its finish, attached to a return probe.
    pub const NATIVE_RETURN: &str = "native_return";
    /// Program that tests reading memory by page tables.
    pub const PROVE: &str = "prove";
    /// Array with one [`Proof`](crate::Proof): the result of [`PROVE`].
    pub const PROOF: &str = "PROOF";
    /// Program that does nothing.
    pub const NOTHING: &str = "nothing";
    /// Program that does nothing behind a return probe.
    pub const NOTHING_RETURNED: &str = "nothing_returned";
    /// Read-only global of type [`Recipe`](crate::Recipe).
    pub const RECIPE: &str = "RECIPE";
    /// Mappable array of [`Bucket`](crate::Bucket): the in-flight table.
    pub const IN_FLIGHT: &str = "IN_FLIGHT";
    /// Mappable array with a word for each way of each bucket of the in-flight table: the address of the call's object
    /// where the key is not the object, or the number of the label set that the call had at its start.
    pub const OBJECTS: &str = "OBJECTS";
    /// Array of `u64`: keys of finished calls that may finish again.
    pub const ENDED: &str = "ENDED";
    /// Mappable array of `u64`, indexed by [`sampling`](crate::sampling): which starts are seen. Written by the agent,
    /// except for the words in which the programs note that a call found no room.
    pub const SAMPLING: &str = "SAMPLING";
    /// Hash: call key to [`Spilled`](crate::Spilled).
    pub const SPILL: &str = "SPILL";
    /// Hash: goroutine and direction of a message that is about to go through, to the number of its label set or
    /// [`NO_MESSAGE`](crate::NO_MESSAGE).
    pub const MESSAGES: &str = "MESSAGES";
    /// Hash: [`LabelSet`](crate::LabelSet) to its number.
    pub const LABEL_IDS: &str = "LABEL_IDS";
    /// Mappable array: the [`LabelSet`](crate::LabelSet) of each number.
    pub const LABEL_SETS: &str = "LABEL_SETS";
    /// Array of `u64`: label set numbers plus one, indexed by a hash of the set; 0 for none.
    pub const LABEL_CACHE: &str = "LABEL_CACHE";
    /// Mappable array of `u64`: finished calls, indexed by label set number. Each CPU has a row, which it
    /// may share with others.
    pub const TOTALS: &str = "TOTALS";
    /// Mappable array of `u64`: [`extra`](crate::extra) counts of label sets, laid out as [`TOTALS`], with one
    /// row for each count.
    pub const EXTRAS: &str = "EXTRAS";
    /// Mappable array of [`ALIASES`](crate::ALIASES) pairs of type words: an alias, and the type word that it stands
    /// for. The first pair that is zero ends the list.
    pub const ALIASES: &str = "ALIASES";
    /// Hash: type word that no shape expects, to the number of hits with it.
    pub const UNEXPECTED: &str = "UNEXPECTED";
    /// Mappable array of `u64`: rows of [`COUNTERS`](crate::COUNTERS) slots, one for each CPU as in [`TOTALS`].
    pub const COUNTERS: &str = "COUNTERS";
    /// Mappable array with two `u64`: how many numbers were requested so far, including those past the end, for full
    /// label sets and for sets with `other`.
    pub const NEXT_LABEL: &str = "NEXT_LABEL";
    /// Ring buffer of [`Record`](crate::Record), [`Event`](crate::Event) or [`PeerEvent`](crate::PeerEvent), which
    /// are distinguished by length.
    pub const RECORDS: &str = "RECORDS";
}
