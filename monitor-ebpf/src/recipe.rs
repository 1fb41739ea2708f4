//! The recipe: all that the programs know about a framework.
//!
//! The agent writes it into the object's read-only data before it loads the object. The verifier then
//! sees constants, follows only the branches that they allow and removes the others.
//!
//! The programs for starts and finishes run at the entry of a Go function that gets an *object* (an interface
//! value: a type word and a pointer). The type word selects a [`Shape`]. A shape copies a few
//! [`Window`]s of the target's memory into scratch memory. Everything else (key, labels, type of call) is
//! at a fixed place there.
//!
//! Functions that get a plain pointer have no type word. There the site selects the shape, and a [`Sited`] holds what
//! belongs to it.

use crate::{Native, PageTables};

/// Maximum number of shapes in a recipe.
pub const MAX_SHAPES: usize = 4;
/// Maximum number of windows of a shape.
pub const MAX_WINDOWS: usize = 12;
/// Maximum number of type words that stand for others.
pub const ALIASES: u32 = 8;
/// Bytes of scratch memory for windows. The label set is later built over them.
pub const SCRATCH_BYTES: usize = 192;
/// [`Window::base`] of a window into the object itself.
pub const OBJECT: u8 = u8::MAX;
/// [`Window::base`] of a window into what the second argument of a site points to.
pub const ARGUMENT: u8 = u8::MAX - 1;
/// Number of tests that must all hold for a hit to be a finish.
pub const GATES: usize = 3;
/// Maximum number of sites at which calls of one shape finish.
pub const FINISH_SITES: usize = 2;
/// Maximum number of code ranges whose functions may write a status before a call of one shape is over.
pub const INTERIM_RANGES: usize = 4;
/// Number of functions that messages of one shape's streams go through: one for sending, one for receiving.
pub const MESSAGE_SITES: usize = 2;
/// Stands for the offset of a field that does not exist.
pub const NO_FIELD: u16 = u16::MAX;
/// [`Window::guard_at`] of a window that needs no guard.
pub const NO_GUARD: u8 = u8::MAX;
/// Stands for a place in scratch memory where the recipe has no such value.
pub const NO_SCRATCH: u8 = u8::MAX;

/// Bits of [`Window::uses`]: which programs copy the window.
pub mod window_use {
    /// All programs: the call's key depends on the window.
    pub const KEY: u8 = 1;
    /// The finish program.
    pub const FINISH: u8 = 2;
    /// The programs that count a stream's messages.
    pub const MESSAGE: u8 = 4;
    /// The start program, where sites select shapes and where it sends events.
    pub const START: u8 = 8;
    /// The finish program, for calls whose start was not seen.
    pub const RECORDED: u8 = 16;
    /// The finish program, for calls that failed, or whose start was not seen or did not read their names: see
    /// [`policy::COUNT_STARTS`](super::policy::COUNT_STARTS).
    pub const UNTOLD: u8 = 32;
}

/// Bits of [`Window::flags`].
pub mod window_flag {
    /// An earlier window has the same place. This one is for another type of the same value, and leaves the
    /// place unchanged when its guard does not match.
    pub const TWIN: u8 = 1;
    /// No later window depends on the same type word. If no window expects the word, it is reported.
    pub const REPORT: u8 = 2;
}

/// Bits of [`Recipe::events`].
pub mod event {
    /// Finished calls are sent as events.
    pub const FINISHES: u8 = 1;
    /// Starts are sent as events, too.
    pub const STARTS: u8 = 2;
    /// Events hold the call's peer.
    pub const PEERS: u8 = 4;
}

/// Index of each count in [`Shape::sizes`].
pub mod size {
    /// Bytes that the target sent for the call.
    pub const SENT: usize = 0;
    /// Bytes that the target received for the call.
    pub const RECEIVED: usize = 1;
}

/// Registers that a recipe can name: indices into the copy that the programs make at a hit.
///
/// The order of the first nine is that of Go's integer arguments (`ABIInternal` on amd64, Go 1.17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Register {
    /// First integer argument.
    Rax = 0,
    /// Second.
    Rbx = 1,
    /// Third.
    Rcx = 2,
    /// Fourth.
    Rdi = 3,
    /// Fifth.
    Rsi = 4,
    /// Sixth.
    R8 = 5,
    /// Seventh.
    R9 = 6,
    /// Eighth.
    R10 = 7,
    /// Ninth.
    R11 = 8,
    /// The current goroutine.
    R14 = 9,
}

/// What distinguishes calls in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum KeyKind {
    /// The object's address: start and finish get the same object.
    Object = 0,
    /// The goroutine, with nesting; for streams, the object. Start and finish run on one goroutine and nest
    /// properly, but a retry may change the object. Where sites select shapes: the goroutine, with nesting, for
    /// every kind of call.
    GoroutineUnlessStreaming = 1,
    /// A number of up to 60 bits. Only where sites select shapes.
    Number = 2,
    /// The goroutine and its stack depth at the function's entry, so that each call of a recursive function has its own
    /// key. Only where a function's returns are its finishes.
    Frame = 3,
}

/// Values of [`Recipe::by_site`] other than 0.
pub mod by_site {
    /// The first label is a path, which may take the room of all labels; a call ends with a status.
    pub const PATH: u8 = 1;
    /// Labels are names, and [`Sited::outcome`](super::Sited::outcome) says how a call's outcome is read.
    pub const NAMES: u8 = 2;
}

/// Stands for the address of any site in a [`Sited`]: its shape is the only one.
pub const ANY_SITE: u64 = u64::MAX;

/// Values of [`Sited::outcome`]: what is read when an operation finishes. A number is kept like the code of a status.
pub mod outcome {
    /// Nothing.
    pub const NONE: u8 = 0;
    /// The error: the operation failed if there is one.
    pub const ERROR: u8 = 1;
    /// A number in the error's register, of [`Sited::number_width`](super::Sited::number_width) bytes.
    pub const NUMBER: u8 = 2;
}

/// Bits of [`Sited::policy`].
pub mod policy {
    /// A start under a key that is in flight is another attempt of the same call.
    pub const FIRST_START: u8 = 1;
    /// A stream may finish twice without a sign of it, so its finish without a start does not count. For other calls,
    /// [`Sited::first`](super::Sited::first) decides.
    pub const FIRST_FINISH: u8 = 2;
    /// Where no start was seen, the finish program reads the kind of call.
    pub const KIND_AT_FINISH: u8 = 4;
    /// Starts are counted under their labels, which are kept for the finish.
    pub const COUNT_STARTS: u8 = 8;
}

/// How a [`Test`] compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TestOp {
    /// Never true.
    Never = 0,
    /// The value equals the operand.
    Equal = 1,
    /// The value has a bit of the operand set.
    AnyBit = 2,
}

/// Layout of a Go `map[string]string`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TagMap {
    /// The map is not read.
    None = 0,
    /// Go 1.24 and later: groups of eight slots behind control bytes.
    Swiss = 1,
    /// Up to Go 1.23: buckets of eight entries behind hash bytes.
    Buckets = 2,
}

/// A piece of the target's memory, copied into scratch memory.
///
/// Small, like the types below, since the programs run with cold caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Window {
    /// The window is copied only if the word at `guard_at` equals this one; otherwise its place is unread.
    pub guard_word: u64,
    /// Bytes to add to the pointer.
    pub offset: u16,
    /// Place in scratch memory of the pointer to start from, or [`OBJECT`] or [`ARGUMENT`].
    pub base: u8,
    /// Number of bytes to copy; 0 in unused windows.
    pub length: u8,
    /// Place in scratch memory to copy them to; a multiple of 8.
    pub at: u8,
    /// Place of the word to compare with `guard_word`, or [`NO_GUARD`].
    pub guard_at: u8,
    /// Bits of [`window_use`].
    pub uses: u8,
    /// Bits of [`window_flag`].
    pub flags: u8,
    /// A bit for each eight bytes of the window, lowest first, set where they are used. The others need not be copied.
    pub words: u32,
    /// Zero.
    pub reserved: u32,
}

/// A test of a value in scratch memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Test {
    /// A value of [`TestOp`].
    pub op: u8,
    /// Place of the value.
    pub at: u8,
    /// Its width in bytes: 1, 4 or 8.
    pub width: u8,
    /// Zero.
    pub reserved: u8,
    /// The value to compare with.
    pub operand: u32,
}

/// Where a call itself records when it started: in an element of a slice of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Recorded {
    /// Whether the event was recorded.
    pub is_set: Test,
    /// Place of its time, in nanoseconds since 1970; or [`NO_SCRATCH`].
    pub time_at: u8,
    /// Place of the slice's length.
    pub count_at: u8,
    /// Index of the element.
    pub index: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

/// The functions that messages of streams go through, for a shape that a site selects. Their receiver leads to the
/// object, and they return an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Messages {
    /// Addresses of the sites at their entries, for sending and for receiving; 0 for none.
    pub entered: [u64; MESSAGE_SITES],
    /// Type word of the interface value that holds the object; 0 where there is none.
    pub object_word: u64,
    /// Its type word where there is no call, or 0.
    pub no_call_word: u64,
    /// Offset in the receiver of a pointer to the object, or of that interface value; [`NO_FIELD`] where the receiver
    /// is the object.
    pub object_at: u16,
    /// Offset in the receiver of the pointer to the description of the call; [`NO_FIELD`] where there is none, and only
    /// the start knows the kind of call.
    pub description_at: u16,
    /// Offsets in the description of whether the client streams, and whether the server does.
    pub streams_at: [u16; 2],
}

/// A range of the target's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CodeRange {
    /// Its first address.
    pub start: u64,
    /// Its length, in bytes.
    pub length: u64,
}

/// What belongs to a shape that a site selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Sited {
    /// Address in the target of the site at which its calls start; 0 for none, or [`ANY_SITE`].
    pub start: u64,
    /// Addresses of the sites at which its calls finish; 0 for none, or [`ANY_SITE`].
    pub finishes: [u64; FINISH_SITES],
    /// Type word of errors that hold a status; 0 where the finish gets a status itself.
    pub status_word: u64,
    /// Type word of errors that may stand for success.
    pub well_word: u64,
    /// Text of an error that stands for success, as the bytes of a word.
    pub well_text: u64,
    /// Type word of errors that wrap another; 0 if there are none.
    pub wrap_word: u64,
    /// Length of `well_text`, in bytes.
    pub well_length: u8,
    /// [`Register`] with the object's address at the start.
    pub start_object: u8,
    /// [`Register`] with the second argument at the start: what [`ARGUMENT`] means there.
    pub start_argument: u8,
    /// [`Register`] with the object's address at a finish.
    pub finish_object: u8,
    /// [`Register`] with the type word of the error at a finish, or of the status.
    pub finish_error: u8,
    /// [`Register`] with the second argument at a finish: the status, or the error's data word.
    pub finish_argument: u8,
    /// Place of the word that is the key, or [`NO_SCRATCH`] where a register holds the key.
    pub key_at: u8,
    /// Bits of [`policy`].
    pub policy: u8,
    /// Kind of all its calls, a value of [`stream`](crate::stream), where no place holds it.
    pub kind: u8,
    /// Place of the byte that says whether the client streams, or [`NO_SCRATCH`].
    pub client_streams_at: u8,
    /// Place of the byte that says whether the server streams, or [`NO_SCRATCH`].
    pub server_streams_at: u8,
    /// Place of the pointer from a status to its message; zero there means success.
    pub message_at: u8,
    /// Place of the four bytes of the message that hold the code.
    pub code_at: u8,
    /// Offset of the wrapped error in an error of type `wrap_word`.
    pub wrap_at: u8,
    /// [`Register`] with the key at the start, unless the key lies at `key_at`.
    pub start_key: u8,
    /// [`Register`] with the key at a finish, unless the key lies at `key_at`.
    pub finish_key: u8,
    /// Test that must hold for a hit of the start site to be a start, or [`Test::NEVER`] if every hit is one. An
    /// attempt after the first starts no call.
    pub begins: Test,
    /// Test for whether a finish without a start is the first of its call, or [`Test::NEVER`] if nothing shows that.
    pub first: Test,
    /// Tests that must hold for a hit to be a finish.
    pub gates: [Test; GATES],
    /// Code that runs in the middle of a call: a failure that it reports is not the call's end. The first empty range
    /// ends the list.
    pub interim: [CodeRange; INTERIM_RANGES],
    /// A value of [`outcome`], where labels are names.
    pub outcome: u8,
    /// Width of the number at `code_at`, in bytes: 1, 4 or 8, or 0 for none. In a register: 1, 2, 4 or 8.
    pub number_width: u8,
    /// Offset from the stack pointer of the object's address at a finish. The address is the key, and only failures are
    /// finishes then. 0 where it is in a register.
    pub kept_at: u16,
    /// Distinguishes the keys of its calls from those of others in the same table, which may be the same words. Below
    /// [`MAX_SHAPES`].
    pub apart: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// A finish that only an error shows.
    pub given: Given,
    /// The functions that messages of its streams go through.
    pub messages: Messages,
}

/// A site where a function gets an error that ends a call, and does not report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Given {
    /// Address of the site in the target, which only errors reach; 0 if there is none.
    pub place: u64,
    /// Type word of the errors that end a call.
    pub word: u64,
    /// Offset from the stack pointer of the object's address there, which is the key.
    pub kept_at: u16,
    /// [`Register`] with the error's type word there.
    pub error: u8,
    /// Status code that the error stands for.
    pub code: u8,
    /// Zero.
    pub reserved: [u8; 4],
}

/// One concrete type of the object, and its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Shape {
    /// The object's type word: address of its itab in the target.
    pub type_word: u64,
    /// Second test: the word at `inner_at` in the first window must equal this one. 0: no second test.
    pub inner_word: u64,
    /// Place of the word to compare with `inner_word`.
    pub inner_at: u8,
    /// One of [`side`](crate::side).
    pub side: u8,
    /// A value of [`KeyKind`].
    pub key: u8,
    /// Place of the tag map's pointer in scratch memory, or [`NO_SCRATCH`].
    pub tags_at: u8,
    /// Place of each label's string header (pointer and length), or [`NO_SCRATCH`].
    pub labels: [u8; crate::LABELS],
    /// Place of the eight bytes that hold the kind of stream, or [`NO_SCRATCH`].
    pub stream_at: u8,
    /// Places of the byte counts, indexed by [`size`], eight bytes each, or [`NO_SCRATCH`].
    pub sizes: [u8; 2],
    /// Place of the eight bytes with the protocol's number, or [`NO_SCRATCH`].
    pub protocol_at: u8,
    /// Place of a pointer that, once the call has panicked, is not nil and leads to a word that is not zero; or
    /// [`NO_SCRATCH`].
    pub panic_at: u8,
    /// Place of the slice header of the peer's IP address, or [`NO_SCRATCH`].
    pub peer_at: u8,
    /// Place of the eight bytes with the peer's port.
    pub peer_port_at: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Whether the call is a stream.
    pub streaming: Test,
    /// Whether it is oneway. Asked only for calls that are not streams.
    pub oneway: Test,
    /// The call's own record of its start.
    pub recorded: Recorded,
    /// The windows to copy, in this order.
    pub windows: [Window; MAX_WINDOWS],
    /// What belongs to it where sites select shapes.
    pub sited: Sited,
}

/// All that the programs know about a framework: see the head of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Recipe {
    /// [`Register`] with the object's type word.
    pub object_type: u8,
    /// [`Register`] with the object's address.
    pub object: u8,
    /// [`Register`] with the type word of the error, at the finish site; zero means success.
    pub error: u8,
    /// [`Register`] with the data word of the error.
    pub error_data: u8,
    /// Processor flags: a hit of the start site with one of them set is not an entry (see the agent's site choice).
    pub start_skip_flags: u8,
    /// The same for the finish site.
    pub finish_skip_flags: u8,
    /// The same for the function that every message sent on a stream enters.
    pub sent_skip_flags: u8,
    /// The same for the function that every message received enters.
    pub received_skip_flags: u8,
    /// The same for the functions of [`Messages`].
    pub entered_skip_flags: u8,
    /// 1 when the classes of errors are read.
    pub read_errors: u8,
    /// A value of [`TagMap`].
    pub tag_map: u8,
    /// Number of shapes in use.
    pub shape_count: u8,
    /// Bits of [`event`].
    pub events: u8,
    /// One of [`by_site`] where sites select shapes; otherwise 0.
    pub by_site: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Offset of the pointer to the class in errors of type [`error_wrapped`](Self::error_wrapped).
    pub error_wrapped_at: u16,
    /// Offset from the stack pointer of the error's type word, at the entry of the function for messages sent. A zero
    /// word there means that a message went through. 0: the function has no error.
    pub sent_error_at: u16,
    /// The same for messages received.
    pub received_error_at: u16,
    /// Offset of the carried error in errors of type [`error_carrier`](Self::error_carrier).
    pub error_carries_at: u16,
    /// Right shift from a call's 64-bit hash to its bucket: the table has 2^(64 - this) buckets.
    pub bucket_shift: u32,
    /// Mask from a bucket's number to the number of the near bucket: the number of near buckets is this plus one.
    pub near_mask: u32,
    /// Mask from a CPU's number to its row of totals and counters: the number of rows is this plus one.
    pub row_mask: u32,
    /// Number of label sets that may be kept in full; beyond it `other` stands for the strings.
    pub label_limit: u32,
    /// Number of label set numbers, those of sets with `other` included.
    pub label_capacity: u32,
    /// Right shift from a label set's 64-bit hash to its place in the cache of numbers, which has 2^(64 - this)
    /// places.
    pub cache_shift: u32,
    /// Type word of errors that hold a pointer to their class; 0 when there is no such type.
    pub error_wrapped: u64,
    /// Type word of errors that are classes themselves; 0 when there is no such type.
    pub error_plain: u64,
    /// Type word of errors that may carry another, whose class counts if it has one; 0 when there is no such type.
    pub error_carrier: u64,
    /// Address of the executable in the target.
    pub image: u64,
    /// Its length there, in bytes.
    pub image_length: u64,
    /// Address of the executable's read-only data in the target. Bytes there never change.
    pub literals: u64,
    /// Its length, in bytes.
    pub literals_length: u64,
    /// How the target's memory is read.
    pub tables: PageTables,
    /// The shapes.
    pub shapes: [Shape; MAX_SHAPES],
    /// The operation, where the recipe is for native functions: it has no shapes then.
    pub native: Native,
}

impl Window {
    /// An unused window.
    pub const UNUSED: Self = Self {
        guard_word: 0,
        offset: 0,
        base: OBJECT,
        length: 0,
        at: 0,
        guard_at: NO_GUARD,
        uses: 0,
        flags: 0,
        words: 0,
        reserved: 0,
    };
}

impl Sited {
    /// The value in a shape that no site selects.
    pub const UNUSED: Self = Self {
        start: 0,
        finishes: [0; FINISH_SITES],
        status_word: 0,
        well_word: 0,
        well_text: 0,
        wrap_word: 0,
        well_length: 0,
        start_object: 0,
        start_argument: 0,
        finish_object: 0,
        finish_error: 0,
        finish_argument: 0,
        key_at: NO_SCRATCH,
        policy: 0,
        kind: 0,
        client_streams_at: NO_SCRATCH,
        server_streams_at: NO_SCRATCH,
        message_at: NO_SCRATCH,
        code_at: NO_SCRATCH,
        wrap_at: 0,
        start_key: 0,
        finish_key: 0,
        begins: Test::NEVER,
        first: Test::NEVER,
        gates: [Test::NEVER; GATES],
        interim: [CodeRange::EMPTY; INTERIM_RANGES],
        outcome: outcome::NONE,
        number_width: 0,
        kept_at: 0,
        apart: 0,
        reserved: [0; 3],
        given: Given::NONE,
        messages: Messages::NONE,
    };
}

impl Given {
    /// There is no such site.
    pub const NONE: Self = Self { place: 0, word: 0, kept_at: 0, error: 0, code: 0, reserved: [0; 4] };
}

impl CodeRange {
    /// An empty range.
    pub const EMPTY: Self = Self { start: 0, length: 0 };
}

impl Messages {
    /// There are none, or messages are not counted.
    pub const NONE: Self = Self {
        entered: [0; MESSAGE_SITES],
        object_word: 0,
        no_call_word: 0,
        object_at: NO_FIELD,
        description_at: NO_FIELD,
        streams_at: [NO_FIELD; 2],
    };
}

impl Test {
    /// A test that never holds.
    pub const NEVER: Self = Self { op: TestOp::Never as u8, at: 0, width: 8, reserved: 0, operand: 0 };
}

impl Recorded {
    /// There is no such record, or it is not wanted.
    pub const NONE: Self =
        Self { is_set: Test::NEVER, time_at: NO_SCRATCH, count_at: NO_SCRATCH, index: 0, reserved: [0; 5] };
}

impl Shape {
    /// An unused shape.
    pub const UNUSED: Self = Self {
        type_word: 0,
        inner_word: 0,
        inner_at: 0,
        side: 0,
        key: 0,
        tags_at: NO_SCRATCH,
        labels: [NO_SCRATCH; crate::LABELS],
        stream_at: NO_SCRATCH,
        sizes: [NO_SCRATCH; 2],
        protocol_at: NO_SCRATCH,
        panic_at: NO_SCRATCH,
        peer_at: NO_SCRATCH,
        peer_port_at: NO_SCRATCH,
        reserved: [0; 2],
        streaming: Test::NEVER,
        oneway: Test::NEVER,
        recorded: Recorded::NONE,
        windows: [Window::UNUSED; MAX_WINDOWS],
        sited: Sited::UNUSED,
    };
}

impl Recipe {
    /// A recipe without shapes: programs with it only count unknown types.
    pub const EMPTY: Self = Self {
        object_type: 0,
        object: 0,
        error: 0,
        error_data: 0,
        start_skip_flags: 0,
        finish_skip_flags: 0,
        sent_skip_flags: 0,
        received_skip_flags: 0,
        entered_skip_flags: 0,
        read_errors: 0,
        tag_map: TagMap::None as u8,
        shape_count: 0,
        events: 0,
        by_site: 0,
        reserved: [0; 2],
        error_wrapped_at: 0,
        sent_error_at: 0,
        received_error_at: 0,
        error_carries_at: 0,
        bucket_shift: 63,
        near_mask: 0,
        row_mask: 0,
        label_limit: 0,
        label_capacity: 0,
        cache_shift: 63,
        error_wrapped: 0,
        error_plain: 0,
        error_carrier: 0,
        image: 0,
        image_length: 0,
        literals: 0,
        literals_length: 0,
        tables: PageTables::NONE,
        shapes: [Shape::UNUSED; MAX_SHAPES],
        native: Native::NONE,
    };

    /// Returns whether the bytes of calls are summed.
    #[must_use]
    pub fn has_sizes(&self) -> bool {
        self.shapes.iter().any(|shape| shape.sizes != [NO_SCRATCH; 2])
    }

    /// Returns whether anything but calls is counted by label set.
    #[must_use]
    pub fn has_extras(&self) -> bool {
        self.has_sizes() || self.shapes.iter().any(|shape| shape.sited.policy & policy::COUNT_STARTS != 0)
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)` and made of integers only; the asserts below show that there is no padding.
    unsafe impl aya::Pod for super::Recipe {}
}

const _: () = {
    assert!(size_of::<Window>() == 24);
    assert!(size_of::<Test>() == 8);
    assert!(size_of::<Recorded>() == 16);
    assert!(size_of::<Shape>() == 64 + MAX_WINDOWS * size_of::<Window>() + size_of::<Sited>());
    assert!(size_of::<Messages>() == 40);
    assert!(size_of::<Given>() == 24);
    assert!(
        size_of::<Sited>()
            == 96 + GATES * 8 + INTERIM_RANGES * 16 + size_of::<Given>() + size_of::<Messages>()
    );
    assert!(
        size_of::<Recipe>()
            == 104 + size_of::<PageTables>() + MAX_SHAPES * size_of::<Shape>() + size_of::<Native>()
    );
    assert!(SCRATCH_BYTES.is_multiple_of(8) && SCRATCH_BYTES < NO_SCRATCH as usize);
};
