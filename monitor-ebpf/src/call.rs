//! A call in flight, a finished call, and the label set that names it.

/// Number of string labels of a call: see [`label`].
pub const LABELS: usize = 3;

/// Bytes kept of each string label. A longer value is cut and marked [`mark::CUT`].
pub const TEXT_BYTES: usize = 64;

/// Nested calls of one goroutine that can be distinguished: a client call made by the middleware of
/// another client call, and so on. Deeper calls are counted, not timed.
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
    /// The target made the call.
    pub const CLIENT: u8 = 0;
    /// The target handled the call.
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

/// Values of [`LabelSet::marks`]: what a label's bytes mean.
pub mod mark {
    /// The text is complete.
    pub const WHOLE: u8 = 0;
    /// The text is the first [`TEXT_BYTES`](crate::TEXT_BYTES) bytes of a longer one.
    pub const CUT: u8 = 1;
    /// The pointer or the length was implausible, or could not be read.
    pub const UNREADABLE: u8 = 2;
    /// The bytes were not in memory. The text holds the string's address and length (two `u64`). If the
    /// address lies in a read-only mapping of the executable, the file has the bytes.
    pub const ADDRESS: u8 = 3;
    /// The label-set table was full: `other` stands for the value.
    pub const OTHER: u8 = 4;
    /// The string is a literal of the executable. Its bytes lie in read-only data and never change, so the text
    /// holds its address and length (two `u64`), and the bytes need not be read for every call.
    pub const LITERAL: u8 = 5;
    /// The bytes were not in memory. The text holds the address (`u64`) of a zero-terminated string.
    pub const C_ADDRESS: u8 = 6;
}

/// Special values of [`LabelSet::retry`].
pub mod retry_count {
    /// The tag exists but is not a number below this one.
    pub const UNREADABLE: u16 = u16::MAX;
}

/// Values of [`LabelSet::protocol`]: the framework's number for it plus one, or one of these.
pub mod protocol {
    /// Not requested.
    pub const NONE: u16 = 0;
    /// The number is not below this one, or could not be read.
    pub const UNREADABLE: u16 = u16::MAX;
}

/// Values of [`LabelSet::stream`], numbered as in Kitex: the bit 2 for a client that streams, the bit 4 for a server
/// that streams. 0 where nothing is known.
pub mod stream {
    /// One request, one reply.
    pub const UNARY: u8 = 1;
    /// The client may send several messages.
    pub const CLIENT: u8 = 2;
    /// The server may send several messages.
    pub const SERVER: u8 = 4;
    /// Not a kind of stream, but the first operation of a user's spec; the other operations follow.
    pub const FIRST_OPERATION: u8 = 2;
}

/// Special values of [`LabelSet::error`] where it is the code of a status.
pub mod status_code {
    /// Success.
    pub const OK: u32 = 0;
    /// Neither a status nor anything else that was expected.
    pub const UNKNOWN: u32 = 2;
    /// The code could not be read.
    pub const UNREADABLE: u32 = u32::MAX;
}

/// Values of [`LabelSet::error`] that are not offsets: an executable begins with its own header.
pub mod error_class {
    /// No error, or not requested.
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
    /// Number of counts.
    pub const COUNT: u32 = 5;
}

/// Stands for a label set number where a message is of no stream: its call already accounts for it.
pub const NO_MESSAGE: u32 = u32::MAX;

/// Bits of [`Record::flags`].
pub mod record_flag {
    /// No start was seen for this finish; the duration has no meaning.
    pub const UNPAIRED: u32 = 1;
    /// The call has just started; the duration has no meaning. Only in events.
    pub const STARTED: u32 = 2;
    /// The call itself recorded its start, which is in nanoseconds since 1970. In place of the duration is the time of
    /// the finish, in nanoseconds of `CLOCK_MONOTONIC`.
    pub const RECORDED: u32 = 4;
}

/// Index of each word in which the agent says which starts are seen. Probes at starts may be attached in windows of
/// time only; probes at finishes always are.
pub mod sampling {
    /// Time since which every start has been seen, in nanoseconds of `CLOCK_MONOTONIC`; `u64::MAX` while not all are.
    pub const SEEN_SINCE: u32 = 0;
    /// One of [`FULL`], [`WINDOWS`] and [`FULL_AGAIN`].
    pub const MODE: u32 = 1;
    /// Mask for the finish time of a call whose start was not seen: if these bits are zero, the program looks for the
    /// start that the call recorded itself. 0: it always looks.
    pub const ASKED: u32 = 2;
    /// Set by the programs: not 0 once a call did not fit into its near bucket, so that look-ups must go elsewhere too.
    pub const SPILLED: u32 = 3;
    /// Set by the programs: not 0 once a call that is keyed by an object was put into the spill map.
    pub const OBJECTS_SPILLED: u32 = 4;
    /// Number of words.
    pub const COUNT: u32 = 5;

    /// [`ASKED`] for one call in 64, at random. Leaves out the lowest bits, which are constant on a coarse clock.
    pub const FEW: u64 = 63 << 6;

    /// All starts have been seen since the probes were attached, or again for longer than a call may last.
    pub const FULL: u64 = 0;
    /// Starts are seen in windows.
    pub const WINDOWS: u64 = 1;
    /// All starts are seen again, after windows, but calls that began before may still be in flight.
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
    /// Kind of stream, bits of [`stream`], in the sets of messages and of calls whose site selects their shape; 0 in
    /// other sets.
    pub stream: u8,
    /// How often the call was retried.
    pub retry: u16,
    /// Bytes used in each text.
    pub lengths: [u8; LABELS],
    /// One of [`mark`] for each text.
    pub marks: [u8; LABELS],
    /// Class of the error: the offset, from the executable's first address, of the object that stands for the class,
    /// or one of [`error_class`]. For calls whose site selects their shape: the code of the status, or one of
    /// [`status_code`].
    pub error: u32,
    /// The protocol that the call went over: see [`protocol`].
    pub protocol: u16,
    /// 1 when the target's code panicked in the call; 0 otherwise, and when not requested.
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

/// Meaning of the lowest three bits of a call's key: Go objects lie at multiples of eight. All other values belong to
/// calls nested in another of their goroutine.
pub mod key {
    /// The key is the object of a call that the target handles.
    pub const SERVER: u64 = 0;
    /// The key is the goroutine of a call that the target makes.
    pub const GOROUTINE: u64 = 1;
    /// The key is the object of a call that the target makes.
    pub const CLIENT: u64 = 2;
    /// Mask of the bits.
    pub const BITS: u64 = 7;
    /// Position of the two bits that distinguish the operations of one spec. No address has them.
    pub const APART_SHIFT: u32 = 60;
}

/// Number of finished calls that are kept because they may finish again at the same moment.
pub const ENDED_KEYS: u32 = 1 << 10;

/// Number of calls in a bucket of the in-flight table.
pub const WAYS: usize = 4;

/// Bits for the number of nested calls in [`Bucket::starts`].
pub const DEPTH_BITS: u32 = 6;

/// A bucket of the in-flight table: one cache line, chosen by a hash of the call's key.
///
/// A way with key 0 is free. The programs of a call claim its way and free it. If all ways in both buckets of a
/// key are taken, the call goes into the spill map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Bucket {
    /// Key of the call in each way.
    pub keys: [u64; WAYS],
    /// Start of each call, in nanoseconds of `CLOCK_MONOTONIC`, above [`DEPTH_BITS`] bits. These hold the number
    /// of calls nested in it, whose starts are in the spill map, or the kind of a call that is keyed by its object.
    /// Nine years of uptime fit.
    pub starts: [u64; WAYS],
}

/// Value of the spill map: a call that found no room in its buckets, or a call nested in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Spilled {
    /// Start of the call, in nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// Number of unfinished calls nested in this one; of a call keyed by its object the kind and the label set.
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
    /// Start of the call, in nanoseconds of `CLOCK_MONOTONIC`; for an unpaired finish, the finish itself.
    pub start_ns: u64,
    /// Time from start to finish, in nanoseconds; 0 when unpaired.
    pub duration_ns: u64,
}

/// Sent through the ring buffer in place of a [`Record`] where a consumer wants single calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// What the record would hold.
    pub record: Record,
    /// What an event holds in addition.
    pub detail: Detail,
}

/// What an [`Event`] holds in addition to a [`Record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Detail {
    /// Address of the goroutine.
    pub goroutine: u64,
    /// Byte counts, indexed by [`size`](crate::size), or [`Detail::UNREAD`].
    pub sizes: [u64; 2],
}

/// Sent through the ring buffer in place of an [`Event`] where a consumer wants peers, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PeerEvent {
    /// What the event would hold.
    pub event: Event,
    /// The peer.
    pub peer: Peer,
}

/// The address of a call's peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Peer {
    /// The IP address, in network byte order.
    pub address: [u8; 16],
    /// Number of its bytes: 4 or 16; 0 when it was not read.
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
