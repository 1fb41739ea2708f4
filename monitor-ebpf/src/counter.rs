//! What the programs count besides the calls themselves, in one row of slots for each CPU.

/// Number of slots for one side of the calls in a CPU's row.
pub const COUNTERS_OF_SIDE: u32 = 32;

/// Number of slots in one CPU's row, the clients' first. A row is whole cache lines, so no two rows share one. Events
/// that belong to no side count as a client's.
pub const COUNTERS: u32 = 2 * COUNTERS_OF_SIDE;

/// A slot in a side's part of a CPU's row.
///
/// Every start of a call is counted in exactly one of `Starts`, `StartUnknownType` and `StartUnread`; every finish in
/// a total or in exactly one of `FinishUnknownType`, `FinishUnread`, `FinishRepeated`, `FinishLost` and
/// `FinishLostUnpaired`. The other counters say what happened to it. Hits that the recipe rules out are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Starts of calls.
    Starts = 0,
    /// Starts whose object has a type that the recipe does not know.
    StartUnknownType = 1,
    /// Finishes whose object has a type that the recipe does not know.
    FinishUnknownType = 2,
    /// Starts not kept because the in-flight map was full.
    RefusedFull = 3,
    /// Starts not kept because too many calls of one goroutine were nested.
    RefusedNested = 4,
    /// Starts whose finish never came or cannot be identified: another call took their place.
    Abandoned = 5,
    /// Finished calls whose start was not seen.
    Unpaired = 6,
    /// Finished calls whose start was seen and whose record found no room in the ring: the duration is lost.
    RingFull = 7,
    /// Finished calls, and starts and messages with labels, counted under `other` because the label-set table was full.
    LabelSetRefused = 8,
    /// Finishes whose start was seen, but for which no label set was found, not even `other`: in no total.
    FinishLost = 9,
    /// Labels whose bytes were not in memory.
    LabelFault = 10,
    /// Labels marked unreadable.
    LabelUnreadable = 11,
    /// Finished calls whose start was not seen and whose record found no room in the ring.
    RingFullUnpaired = 12,
    /// Hits with an unexpected type that found no room in the table of unexpected types.
    UnexpectedNotKept = 13,
    /// Finished calls whose byte counts could not be read: they are in no sum.
    SizeUnread = 14,
    /// Messages of streams for which no label set was found, or whose function's entry was not seen.
    MessageLost = 15,
    /// Starts whose event found no room in the ring.
    StartRingFull = 16,
    /// Starts for which no label set was found: not counted under their labels, and their event was not sent.
    StartLabelLost = 17,
    /// Like `FinishLost`, for calls whose start was not seen.
    FinishLostUnpaired = 18,
    /// Finishes of calls that had finished already, or whose start was not seen where only a first finish counts;
    /// failures reported in the middle of a call.
    FinishRepeated = 19,
    /// Finished calls whose start was not seen, as starts are watched in windows: see [`sampling`](crate::sampling).
    SampledOut = 20,
    /// Starts seen in a window that can no longer be matched with a finish, since the window has closed.
    StartSampledOut = 21,
    /// Finished calls that recorded their start themselves and whose record found no room in the ring.
    RingFullRecorded = 22,
    /// Entries of message functions, where messages are counted at the return.
    MessageEntered = 23,
    /// Returns of such functions.
    MessageLeft = 24,
    /// Starts where the object's type, or whether the call begins with it, could not be read.
    StartUnread = 25,
    /// Finishes where the object's type, or whether the call has ended before, could not be read.
    FinishUnread = 26,
}
