//! A call in flight, a finished call, and the label set that names it.

/// Labels of a call that are strings: see [`label`].
pub const LABELS: usize = 3;

/// Bytes kept of each string label. A longer value is cut and marked so.
pub const TEXT_BYTES: usize = 64;

/// Nested calls of one goroutine that can be told apart: a client call made by the middleware of
/// another client call, and so on. Deeper ones are counted, not timed.
pub const MAX_NESTING: u32 = 6;

/// Index of each string label in [`LabelSet::text`].
pub mod label {
    /// The service that calls.
    pub const CALLER: usize = 0;
    /// The service that is called.
    pub const CALLEE: usize = 1;
    /// The method that is called.
    pub const METHOD: usize = 2;
}

/// Values of [`LabelSet::side`].
pub mod side {
    /// The call was made by the target.
    pub const CLIENT: u8 = 0;
    /// The call was handled by the target.
    pub const SERVER: u8 = 1;
}

/// Values of [`LabelSet::call_type`].
pub mod call_type {
    /// One request, one reply.
    pub const PINGPONG: u8 = 0;
    /// One request, no reply.
    pub const ONEWAY: u8 = 1;
    /// Any kind of stream.
    pub const STREAMING: u8 = 2;
}

/// Values of [`LabelSet::marks`]: how a label's bytes are to be taken.
pub mod mark {
    /// The text is whole.
    pub const WHOLE: u8 = 0;
    /// The text is the first [`TEXT_BYTES`](crate::TEXT_BYTES) bytes of a longer one.
    pub const CUT: u8 = 1;
    /// Pointer or length were implausible, or what leads to them could not be read.
    pub const UNREADABLE: u8 = 2;
    /// The bytes were not in memory. The text holds the string's address and length (two `u64`): where the
    /// address lies in a read-only mapping of the executable, the file has the bytes.
    pub const ADDRESS: u8 = 3;
    /// The label-set table was full; stands in for the value.
    pub const OTHER: u8 = 4;
    /// The string is a literal of the executable: its bytes lie in read-only data and never change, so its
    /// address and length (two `u64`) stand for them. They need not be read for every call.
    pub const LITERAL: u8 = 5;
    /// The text was not in memory, and ends at a byte that is 0: its address (`u64`) stands for it.
    pub const C_ADDRESS: u8 = 6;
}

/// Values of [`LabelSet::retry`] with a meaning of their own.
pub mod retry_count {
    /// The tag exists and is not a number below this one.
    pub const UNREADABLE: u16 = u16::MAX;
}

/// Values of [`LabelSet::protocol`]: the framework's number for it plus one, or one of these.
pub mod protocol {
    /// Not asked for.
    pub const NONE: u16 = 0;
    /// There is none below this one, or it could not be read.
    pub const UNREADABLE: u16 = u16::MAX;
}

/// Values of [`LabelSet::stream`]. Bits of 2 for a client that streams and 4 for a server that does, as Kitex numbers
/// them; 0 where nothing is known.
pub mod stream {
    /// One request, one reply.
    pub const UNARY: u8 = 1;
    /// The client may send several messages.
    pub const CLIENT: u8 = 2;
    /// The server may.
    pub const SERVER: u8 = 4;
    /// Not a kind of stream, but the first operation of a user's spec; the others follow.
    pub const FIRST_OPERATION: u8 = 2;
}

/// Values of [`LabelSet::error`] where it is the code of a status, that are no code: see [`LabelSet::error`].
pub mod status_code {
    /// All is well.
    pub const OK: u32 = 0;
    /// Neither a status nor anything else that was expected.
    pub const UNKNOWN: u32 = 2;
    /// The code could not be read.
    pub const UNREADABLE: u32 = u32::MAX;
}

/// Values of [`LabelSet::error`] that are no offset: an executable begins with its own header.
pub mod error_class {
    /// No error, or not asked for.
    pub const NONE: u32 = 0;
    /// The object is not part of the executable, or could not be read.
    pub const ELSEWHERE: u32 = 1;
}

/// Index of each count in the extras of a label set.
pub mod extra {
    /// Bytes sent for its calls.
    pub const BYTES_SENT: u32 = 0;
    /// Bytes received for its calls.
    pub const BYTES_RECEIVED: u32 = 1;
    /// Messages sent on its streams.
    pub const MESSAGES_SENT: u32 = 2;
    /// Messages received on its streams.
    pub const MESSAGES_RECEIVED: u32 = 3;
    /// Calls that have started.
    pub const STARTED: u32 = 4;
    /// How many there are.
    pub const COUNT: u32 = 5;
}

/// Stands for the number of a label set where a message is of no stream: its call says all about it.
pub const NO_MESSAGE: u32 = u32::MAX;

/// Bits of [`Record::flags`].
pub mod record_flag {
    /// No start was seen for this finish; the duration means nothing.
    pub const UNPAIRED: u32 = 1;
    /// The call has just started; the duration means nothing. Only in events.
    pub const STARTED: u32 = 2;
    /// The call itself has recorded its start: that is in nanoseconds since 1970, and in place of the duration there is
    /// the finish, nanoseconds of `CLOCK_MONOTONIC`.
    pub const RECORDED: u32 = 4;
}

/// Index of each word by which the agent says which starts are seen. Its probes at the starts may be in place in windows
/// only, while those at the finishes always are.
pub mod sampling {
    /// Every start since then has been seen, nanoseconds of `CLOCK_MONOTONIC`; `u64::MAX` while not all are.
    pub const SEEN_SINCE: u32 = 0;
    /// One of those below.
    pub const MODE: u32 = 1;
    /// A call whose start was not seen is asked for the one that it has recorded itself if these bits of the time at which
    /// it finishes are zero: all are asked where it is 0.
    pub const ASKED: u32 = 2;
    /// Set by the programs: not 0 once a call did not fit into its near bucket, so that calls have to be looked for elsewhere.
    pub const SPILLED: u32 = 3;
    /// Set by the programs: not 0 once a call that is keyed by an object was put into the spill map.
    pub const OBJECTS_SPILLED: u32 = 4;
    /// How many words there are.
    pub const COUNT: u32 = 5;

    /// [`ASKED`] for one call in 64, at random: the lowest bits are the same each time where the clock is coarse.
    pub const FEW: u64 = 63 << 6;

    /// Starts have been seen ever since the probes were attached, or again for longer than a call may last.
    pub const FULL: u64 = 0;
    /// They are seen in windows.
    pub const WINDOWS: u64 = 1;
    /// All are seen again, after windows, but calls may be under way that began before.
    pub const FULL_AGAIN: u64 = 2;
}

/// One combination of labels, by content: two sets are equal when all their bytes are.
///
/// Unused bytes of a text are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct LabelSet {
    /// One of [`side`].
    pub side: u8,
    /// One of [`call_type`].
    pub call_type: u8,
    /// 1 when the call finished with an error.
    pub failed: u8,
    /// Kind of stream, one of [`stream`] or several, in the sets of messages and of calls whose sites are their shapes; 0
    /// in those of others.
    pub stream: u8,
    /// How often the call was retried.
    pub retry: u16,
    /// Bytes used in each text.
    pub lengths: [u8; LABELS],
    /// One of [`mark`] for each text.
    pub marks: [u8; LABELS],
    /// Class of the error: the offset of the object that stands for it from the executable's first address, or
    /// one of [`error_class`]. Of calls whose sites are their shapes: the code of the status, or one of
    /// [`status_code`].
    pub error: u32,
    /// The protocol that the call went over: see [`protocol`].
    pub protocol: u16,
    /// 1 when the target's code panicked in the call; 0 otherwise, and when not asked for.
    pub panicked: u8,
    /// Zero.
    pub reserved: [u8; 5],
    /// The texts, indexed by [`label`].
    pub text: [[u8; TEXT_BYTES]; LABELS],
}

impl LabelSet {
    /// A set with empty texts.
    pub const EMPTY: Self = Self {
        side: 0,
        call_type: 0,
        failed: 0,
        stream: 0,
        retry: 0,
        lengths: [0; LABELS],
        marks: [0; LABELS],
        error: 0,
        protocol: protocol::NONE,
        panicked: 0,
        reserved: [0; 5],
        text: [[0; TEXT_BYTES]; LABELS],
    };
}

/// What the lowest three bits of a call's key say: Go objects lie at multiples of eight. All others are those of calls
/// of a goroutine that are nested in another.
pub mod key {
    /// The key is the object of a call that the target handles.
    pub const SERVER: u64 = 0;
    /// The key is the goroutine of a call that the target makes.
    pub const GOROUTINE: u64 = 1;
    /// The key is the object of a call that the target makes.
    pub const CLIENT: u64 = 2;
    /// The bits.
    pub const BITS: u64 = 7;
    /// Where operations of one spec are told apart: two bits that no address has.
    pub const APART_SHIFT: u32 = 60;
}

/// How many calls are kept that have ended and may end once more at the same moment.
pub const ENDED_KEYS: u32 = 1 << 10;

/// Calls that a bucket of the in-flight table holds.
pub const WAYS: usize = 4;

/// Bits for the number of nested calls in [`Bucket::starts`].
pub const DEPTH_BITS: u32 = 6;

/// A bucket of the in-flight table: one cache line, chosen by a hash of the call's key.
///
/// A way with key 0 is free. Ways are taken and given back by the programs of the call itself; whoever finds
/// all of them taken in both buckets of a key puts the call into the spill map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Bucket {
    /// Key of the call in each way.
    pub keys: [u64; WAYS],
    /// Its start, nanoseconds of `CLOCK_MONOTONIC`, above [`DEPTH_BITS`] bits with the number of calls nested
    /// in it, whose starts are in the spill map, or the kind of a call that is keyed by its object. Nine years of
    /// uptime fit.
    pub starts: [u64; WAYS],
}

/// Value of the spill map: of calls that found no room in their bucket, and of calls nested in others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Spilled {
    /// Start of the call, nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// Calls nested in this one that have not finished; the kind of a call that is keyed by its object.
    pub nested: u64,
}

/// One finished call, as it goes through the ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Record {
    /// Number of the call's label set.
    pub label_set: u32,
    /// Bits of [`record_flag`].
    pub flags: u32,
    /// Start of the call, nanoseconds of `CLOCK_MONOTONIC`; of an unpaired finish the finish itself.
    pub start_ns: u64,
    /// From start to finish, in nanoseconds; 0 when unpaired.
    pub duration_ns: u64,
}

/// Goes through the ring buffer in place of a [`Record`] where someone wants each call by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// What the record would be.
    pub record: Record,
    /// What else there is.
    pub detail: Detail,
}

/// What an [`Event`] has beside a [`Record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Detail {
    /// Address of the goroutine.
    pub goroutine: u64,
    /// Byte counts by [`size`](crate::size), or [`Detail::UNREAD`].
    pub sizes: [u64; 2],
}

/// Goes through the ring buffer in place of an [`Event`] where someone wants the peers, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PeerEvent {
    /// What the event would be.
    pub event: Event,
    /// The peer.
    pub peer: Peer,
}

/// The address of a call's peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Peer {
    /// The IP address, in network order.
    pub address: [u8; 16],
    /// How many bytes of it there are: 4 or 16; 0 when it was not read.
    pub length: u32,
    /// The port.
    pub port: u32,
}

impl Detail {
    /// Stands for a byte count that was not read.
    pub const UNREAD: u64 = u64::MAX;
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: the types are `repr(C)`, made of integers only, without padding between them.
    unsafe impl aya::Pod for super::LabelSet {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Spilled {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Record {}
}

const _: () = {
    assert!(size_of::<LabelSet>() == 216);
    assert!(align_of::<LabelSet>() == 4);
    assert!(core::mem::offset_of!(LabelSet, text) == 24);
    assert!(size_of::<Spilled>() == 16 && size_of::<Bucket>() == 64);
    assert!(size_of::<Record>() == 24);
    assert!(core::mem::offset_of!(Record, duration_ns) == 16);
    assert!(size_of::<Event>() == 48);
    assert!(core::mem::offset_of!(Event, detail) == 24);
    assert!(size_of::<PeerEvent>() == 72 && core::mem::offset_of!(PeerEvent, peer) == 48);
};
