//! What the programs count beside the calls themselves, one row of slots for each CPU.

/// Slots of one side of the calls in a CPU's row.
pub const COUNTERS_OF_SIDE: u32 = 32;

/// Slots in one CPU's row, those of clients first: whole cache lines, so that rows never share one. What belongs to
/// no side counts as a client's.
pub const COUNTERS: u32 = 2 * COUNTERS_OF_SIDE;

/// A slot in a side's part of a CPU's row.
///
/// Every start of a call ends in exactly one of `Starts`, `StartUnknownType` and `StartUnread`; every finish in a total or in
/// exactly one of `FinishUnknownType`, `FinishUnread`, `FinishRepeated`, `FinishLost` and `FinishLostUnpaired`. The others say
/// what happened to it. Hits that are no start or finish by what the recipe asks of them count nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Starts of calls.
    Starts = 0,
    /// Starts whose object has a type that the recipe doesn't know.
    StartUnknownType = 1,
    /// Finishes whose object has a type that the recipe doesn't know.
    FinishUnknownType = 2,
    /// Starts not kept because the in-flight map was full.
    RefusedFull = 3,
    /// Starts not kept because too many calls of one goroutine were nested.
    RefusedNested = 4,
    /// Starts whose finish never came or can't be told: another call took the place.
    Abandoned = 5,
    /// Finished calls whose start was not seen.
    Unpaired = 6,
    /// Finished calls whose start was seen and whose record found no room in the ring: their duration is lost.
    RingFull = 7,
    /// Finished calls counted under `other` because the label-set table was full; starts and messages that have labels, too.
    LabelSetRefused = 8,
    /// Finishes whose start was seen and that no label set could be found for, not even `other`: in no total.
    FinishLost = 9,
    /// Labels whose bytes were not in memory.
    LabelFault = 10,
    /// Labels marked unreadable.
    LabelUnreadable = 11,
    /// Finished calls whose start was not seen and whose record found no room in the ring.
    RingFullUnpaired = 12,
    /// Hits with an unexpected type that found no room in the table of such types.
    UnexpectedNotKept = 13,
    /// Finished calls whose byte counts could not be read: they are in no sum.
    SizeUnread = 14,
    /// Messages of streams that no label set could be found for, or whose beginning was not seen.
    MessageLost = 15,
    /// Starts whose event found no room in the ring.
    StartRingFull = 16,
    /// Starts that are not counted under their labels and whose event was not sent, since no label set could be found.
    StartLabelLost = 17,
    /// As `FinishLost`, of calls whose start was not seen.
    FinishLostUnpaired = 18,
    /// Finishes of streams that had finished already, or whose start was not seen; and failures told in the middle of a
    /// call.
    FinishRepeated = 19,
    /// Finished calls whose start was not seen, since starts are watched in windows: see [`sampling`](crate::sampling).
    SampledOut = 20,
    /// Starts seen in a window that no finish can be matched with, since it has closed.
    StartSampledOut = 21,
    /// Finished calls that have recorded their start themselves and whose record found no room in the ring.
    RingFullRecorded = 22,
    /// Functions for messages entered, where messages are counted as they return.
    MessageEntered = 23,
    /// Such functions left.
    MessageLeft = 24,
    /// Starts whose object could not be read where it says what it is, or whether the call begins with it.
    StartUnread = 25,
    /// Finishes whose object could not be read where it says what it is, or whether the call has ended before.
    FinishUnread = 26,
}
