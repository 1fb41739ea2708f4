//! What a framework's file says, as it was read.
//!
//! Type names are written without the framework's module path: `pkg/rpcinfo.rpcInfo`. A path leads from the
//! object to a value: fields joined by dots, and `(*TYPE)` after a field that holds an interface, which says
//! which type must be in it; any other type there is never read as if it were this one.
//! `to.(*pkg/rpcinfo/remoteinfo.remoteInfo).serviceName`

use crate::specs::Side;

/// What a framework's file describes.
#[derive(Debug)]
pub enum Known {
    /// A framework whose calls are told by the type of their object.
    ByType(Box<Framework>),
    /// A framework whose calls are told by the function that they enter.
    ByFunction(Box<SitedFramework>),
}

/// An RPC framework whose calls are told by the type of their object.
#[derive(Debug)]
pub struct Framework {
    /// Name in logs and `inspect`.
    pub name: String,
    /// Name for people.
    pub title: String,
    /// What its calls feed.
    pub metrics: Metrics,
    /// Module path under which the framework is published. Copies of it may have others.
    pub module: String,
    /// The functions that every call enters, by the homes they had in its releases, newest first.
    pub homes: Vec<Home>,
    /// Where both functions get the object: the integer arguments with its type word and its address, counted
    /// from 0 with the receiver, an interface being two.
    pub object: Pair,
    /// Where the finish function gets the error.
    pub error: Pair,
    /// The types that the object can have. The first that fits counts.
    pub shapes: Vec<ShapeSpec>,
    /// How its errors are told apart.
    pub errors: ErrorSpec,
    /// How the messages of its streams are seen.
    pub messages: MessageSpec,
    /// What the protocols that calls go over are called.
    pub protocols: ProtocolSpec,
    /// Interfaces that a service can implement itself, and what can't be told of its types.
    pub open_interfaces: Vec<(String, String)>,
    /// What can't be told of some releases, though no layout shows that.
    pub untold: Vec<Untold>,
}

/// The metrics that calls feed.
#[derive(Debug)]
pub struct Metrics {
    /// The family that is chosen with `--metrics`.
    pub family: Family,
    /// The labels that calls always have.
    pub labels: Vec<String>,
}

/// A family of metrics of calls: what a label set means, and how it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Three names, a class of errors.
    Kitex,
    /// One name for service and method, the code of a status.
    Grpc,
}

/// A pair of functions that every call enters. A package path under which both are in an executable is a copy of the
/// framework.
#[derive(Debug)]
pub struct Home {
    /// When it starts.
    pub start: Function,
    /// When it finishes.
    pub finish: Function,
}

/// A function.
#[derive(Debug)]
pub struct Function {
    /// Its name, without the module path.
    pub name: String,
    /// Its arguments, or the first of them, where the executable says which it has.
    pub arguments: String,
}

/// Errors that belong to classes, each of which is one object of the executable with a message in it.
#[derive(Debug)]
pub struct ErrorSpec {
    /// The type of the classes, which are errors themselves.
    pub class: String,
    /// Its field with the message.
    pub message: String,
    /// The type of errors that point to their class.
    pub wrapped: String,
    /// Its field with the pointer.
    pub points: String,
    /// The type of errors in which another may come, whose class counts if it has one.
    pub carrier: String,
    /// Its field with that one.
    pub carries: String,
    /// Name of each class by its message.
    pub names: Vec<(String, String)>,
    /// Name of the class of types of errors that have none of these objects.
    pub types: Vec<(String, String)>,
}

/// Names of protocols, whose numbers are bits that can be combined.
#[derive(Debug)]
pub struct ProtocolSpec {
    /// Of no bit.
    pub none: String,
    /// Of each bit, in the order in which they are written.
    pub bits: Vec<(u16, String)>,
    /// Major and minor version since which names of combined bits are written side by side.
    pub joined_since: (u32, u32),
    /// Before, a combination had a name of its own,
    pub combinations: Vec<(u16, String)>,
    /// or else this one.
    pub other: String,
}

/// What can't be told of some releases.
#[derive(Debug)]
pub struct Untold {
    /// Major and minor version of the first of them.
    pub since: (u32, u32),
    /// Those of the first that is none of them any more.
    pub before: (u32, u32),
    /// What that is, and what holds then.
    pub note: String,
}

/// The functions that are entered once for each attempt to send or to receive a message on a stream. Their
/// arguments begin like those of the start function and end with a struct, in which an error says that there
/// was no message.
#[derive(Debug)]
pub struct MessageSpec {
    /// Sending.
    pub sent: Function,
    /// Receiving.
    pub received: Function,
    /// The error's field in the struct.
    pub error: String,
    /// Ways to the struct's type, by types only, up to the fields that hold functions with the struct as their last
    /// argument: one for sending and one for receiving.
    pub routes: Vec<Route>,
}

/// See [`MessageSpec::routes`].
#[derive(Debug)]
pub struct Route {
    /// The way to the struct with the functions.
    pub way: Way,
    /// Its field with the functions for messages sent.
    pub sent: String,
    /// The same for messages received.
    pub received: String,
}

/// The two words of an interface value among a function's integer arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The type word.
    pub type_word: usize,
    /// The data word.
    pub data: usize,
}

/// What tells calls in flight apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The object: it stays the same from start to finish.
    Object,
    /// The goroutine, except for streams: start and finish run on one goroutine and nest properly.
    GoroutineUnlessStreaming,
}

/// Paths to the same value in types that can stand for each other. Those whose types or fields are not in the
/// executable are left out.
pub type Alternatives = Vec<String>;

/// A question about a value of the object.
#[derive(Debug)]
pub enum Question {
    /// Does it equal this number?
    Equals(Alternatives, u32),
    /// Has it one of these bits set?
    AnyBit(Alternatives, u32),
}

/// What must be in an interface field for a shape to fit.
#[derive(Debug)]
pub struct Condition {
    /// The field.
    pub field: String,
    /// Its interface type.
    pub interface: String,
    /// The type that it must hold a pointer to.
    pub holds: String,
}

/// An event that calls record themselves, in a slice.
#[derive(Debug)]
pub struct RecordedSpec {
    /// Path to the slice.
    pub events: String,
    /// Which element is the start of the call.
    pub index: u8,
    /// Its number that has this bit set once the event was recorded.
    pub state: (String, u32),
    /// Its time, nanoseconds since 1970.
    pub time: String,
}

/// One type that the object can have.
#[derive(Debug)]
pub struct ShapeSpec {
    /// Name in `inspect`.
    pub name: String,
    /// Side of its calls.
    pub side: Side,
    /// Interface as which the functions get the object.
    pub interface: String,
    /// The type that the object points to.
    pub concrete: String,
    /// What else must hold.
    pub when: Option<Condition>,
    /// What tells its calls apart.
    pub key: Key,
    /// Path to the calling service's name.
    pub caller: String,
    /// Path to the called service's name.
    pub callee: String,
    /// Path to the method's name.
    pub method: String,
    /// Is the call a stream? What the release has no answer to is a note, unless the key depends on it.
    pub streaming: Question,
    /// Is it oneway? The same.
    pub oneway: Question,
    /// Path to the number that says the kind of stream; not there in every release.
    pub stream: String,
    /// Paths to the number of bytes sent and received for the call; not there in every release.
    pub sizes: [String; 2],
    /// Paths to the peer's IP address, a slice, and its port; where it can be told at all.
    pub peer: Option<[String; 2]>,
    /// Path to the tags that hold the number of retries under `retry`.
    pub tags: Option<String>,
    /// Path to the number of the protocol.
    pub protocol: String,
    /// The start of the call as it records it itself; not in every release, and not by every service.
    pub recorded: RecordedSpec,
    /// Path to what was recovered from a panic: a `sync/atomic` value, of the type `Value` with a struct that begins
    /// with an interface in it, or `Pointer` to an interface. The interface is nil without a panic.
    pub panicked: String,
}

/// A framework whose functions get plain pointers: which function is entered says what kind of call it is, and
/// which of its arguments is what.
///
/// Names in the framework's topmost package begin with a dot. In paths, pointers are followed as Go follows them.
#[derive(Debug)]
pub struct SitedFramework {
    /// Name in logs and `inspect`.
    pub name: String,
    /// Name for people.
    pub title: String,
    /// What its calls feed.
    pub metrics: Metrics,
    /// Module path under which the framework is published. Copies of it may have others.
    pub module: String,
    /// The kinds of calls. One whose start is not in the executable can't happen in it.
    pub calls: Vec<CallSpec>,
    /// How a call's end is told.
    pub status: StatusSpec,
}

/// One kind of call.
#[derive(Debug)]
pub struct CallSpec {
    /// Name in `inspect`.
    pub name: String,
    /// Side of its calls.
    pub side: Side,
    /// Where it starts: the first of these that is there with these arguments.
    pub start: Vec<Entry>,
    /// Where it finishes: of each list the first that is there. One of the first list must be.
    pub finishes: Vec<Vec<Entry>>,
    /// It starts as the kind of call of this name does, and finishes elsewhere.
    pub variant_of: Option<String>,
    /// Ways to the type that the object points to.
    pub object: Vec<Way>,
    /// Path to the pointer that is the key, if that is not the object.
    pub key: Option<String>,
    /// Path to the method's full name, in one of these.
    pub method: Vec<String>,
    /// How its kind of stream is told.
    pub kind: KindSpec,
    /// Taken only where the one of this name can't be.
    pub in_place_of: Option<String>,
    /// A stream may finish twice: the first counts.
    pub first_finish: bool,
    /// Functions, without the module path, that tell failures in the middle of a call: what they, the closures in them and
    /// what these call tell is not its end.
    pub not_within: Vec<String>,
    /// Way to a field by which a call keeps that its end has been told: where it is there the first that is told is its
    /// end, also if [`not_within`](Self::not_within) has told it.
    pub ends_once: Option<Way>,
    /// Path to a number, and what it must be for a hit of the start to be one: else it is another attempt of the same call.
    pub begins_if: Option<(Alternatives, u32)>,
    /// Path to a number, and what it must be for a finish without a start to be the first of its call.
    pub first_if: Option<(Alternatives, u32)>,
    /// Paths to numbers, and what each must be for a hit of a finish to be one.
    pub only_if: Vec<(Alternatives, u32)>,
    /// An end that only an error tells, if there is one: the first of these that is there with these arguments.
    pub error_ends: Vec<ErrorEnd>,
    /// Where the messages of its streams go through: the first of these that is there.
    pub messages: Vec<SitedMessages>,
}

/// The two methods of a type through which messages go, one call for each. There was a message if they return no error.
#[derive(Debug)]
pub struct SitedMessages {
    /// Sending, without the module path.
    pub sent: String,
    /// Receiving.
    pub received: String,
    /// The arguments of both.
    pub arguments: String,
    /// Ways to the type.
    pub receiver: Vec<Way>,
    /// Where it has the object of the call.
    pub object: ObjectOf,
    /// Its field with the description of the call, and the fields of that which say whether the client streams, and
    /// whether the server does. Where a release has none the start of the call has told.
    pub description: [String; 3],
}

/// Where the receiver of a method has the object of a call.
#[derive(Debug)]
pub enum ObjectOf {
    /// It is the object.
    Itself,
    /// In this field, which is a pointer.
    Pointer(String),
    /// In a field that is an interface.
    Interface {
        /// The field.
        field: String,
        /// The type in it that the object has.
        holds: String,
        /// A type that it holds where there is no call.
        no_call: String,
    },
}

impl SitedFramework {
    /// Whether there is something to take where this one can't be.
    #[must_use]
    pub fn has_substitute(&self, call: &CallSpec) -> bool {
        self.calls.iter().any(|other| other.in_place_of.as_ref() == Some(&call.name))
    }
}

/// A function that a kind of call enters.
#[derive(Debug)]
pub struct Entry {
    /// The function, without the module path.
    pub function: String,
    /// Its arguments, or the first of them: `w` for a word, a digit for fewer bytes, braces around an interface.
    pub arguments: String,
    /// Which word of the arguments is the object, counted from 0.
    pub object: usize,
    /// Which word is the second argument: at a start the description of the call, at a finish the status.
    pub second: usize,
    /// At a finish, which word is the type word of the error whose data is the second argument. `None`: that is a
    /// status itself.
    pub error: Option<usize>,
    /// The call ends where this function, without the module path, has given the other one that error, which tests it; error and
    /// second argument are words of what it gives then.
    pub given_by: Option<String>,
}

/// An end of calls that a function is told by an error which another one gives it, and that it tells nobody.
#[derive(Debug)]
pub struct ErrorEnd {
    /// The function, without the module path.
    pub function: String,
    /// Its arguments, all of them, or the first.
    pub arguments: String,
    /// The one that gives the error, and nothing else.
    pub given_by: String,
    /// Which word of the function's arguments is the object.
    pub object: usize,
    /// The type of the errors that are an end: itself, not a pointer to it.
    pub error: String,
    /// The code that it stands for.
    pub code: u8,
}

/// A way to a type: the type that implements an interface, then fields through pointers and slices; `()` leads from a
/// function to its parameter.
#[derive(Debug)]
pub struct Way {
    /// Interface.
    pub interface: String,
    /// A type that implements it.
    pub concrete: String,
    /// Fields that lead on.
    pub fields: Vec<String>,
}

/// How the kind of stream of a call is told.
#[derive(Debug)]
pub enum KindSpec {
    /// It is none.
    Unary,
    /// By two truth values behind the object: whether the client streams, and whether the server does.
    Object(String, String),
    /// By two of the struct that the second argument of the start points to, whose type these ways lead to.
    Second(Vec<Way>, String, String),
}

/// A status, and errors that have one.
#[derive(Debug)]
pub struct StatusSpec {
    /// The type of errors that have one.
    pub error: String,
    /// Path from such an error to the pointer to the status.
    pub from_error: String,
    /// Path from a status to the pointer to its message. Where it is nil, all is well.
    pub message: String,
    /// Path from the message to the code. 0: all is well.
    pub code: String,
    /// The full name of a type of errors that says that all is well when its first field has this text, of at most
    /// eight bytes.
    pub well: (String, String),
    /// The full name of a type of errors that wraps another, and its field with that.
    pub wrap: (String, String),
    /// Names of the codes, by their numbers.
    pub codes: Vec<String>,
}
