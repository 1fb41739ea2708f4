//! The content of a framework's file.
//!
//! Type names are written without the framework's module path: `pkg/rpcinfo.rpcInfo`. A path leads from the object to
//! a value: fields joined by dots, with `(*TYPE)` after a field that holds an interface. The interface must hold this
//! type; a value of any other type is never read as if it had this one. An example:
//! `to.(*pkg/rpcinfo/remoteinfo.remoteInfo).serviceName`

use crate::specs::Side;

/// A framework, as its file describes it.
#[derive(Debug)]
pub enum Known {
    /// A framework whose calls are identified by the type of their object.
    ByType(Box<Framework>),
    /// A framework whose calls are identified by the function that they enter.
    ByFunction(Box<SitedFramework>),
}

/// An RPC framework whose calls are identified by the type of their object.
#[derive(Debug)]
pub struct Framework {
    /// Name in logs and `inspect`.
    pub name: String,
    /// Name for people.
    pub title: String,
    /// The metrics that its calls feed.
    pub metrics: Metrics,
    /// The module path under which the framework is published. Copies may have other paths.
    pub module: String,
    /// The functions that every call enters, one pair per home that they had in the releases, newest first.
    pub homes: Vec<Home>,
    /// The integer arguments that hold the object's type word and address, in both functions. They are counted from 0
    /// with the receiver; an interface is two.
    pub object: Pair,
    /// The integer arguments that hold the error, in the finish function.
    pub error: Pair,
    /// The types that the object can have. The first that fits is used.
    pub shapes: Vec<ShapeSpec>,
    /// How to classify its errors.
    pub errors: ErrorSpec,
    /// How to find the messages of its streams.
    pub messages: MessageSpec,
    /// The names of the protocols.
    pub protocols: ProtocolSpec,
    /// Interfaces that a service can implement itself, each with a note about what is unknown for such types.
    pub open_interfaces: Vec<(String, String)>,
    /// Limits of some releases that no layout shows.
    pub untold: Vec<Untold>,
}

/// The metrics that calls feed.
#[derive(Debug)]
pub struct Metrics {
    /// The family, as selected with `--metrics`.
    pub family: Family,
    /// The labels that every call has.
    pub labels: Vec<String>,
}

/// A family of metrics: what a label set means, and how it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Names of caller, callee and method, and a class of errors.
    Kitex,
    /// One name for service and method, and a status code.
    Grpc,
}

/// A pair of functions that every call enters. Each package path under which an executable has both is
/// a copy of the framework.
#[derive(Debug)]
pub struct Home {
    /// The function entered when a call starts.
    pub start: Function,
    /// The function entered when a call finishes.
    pub finish: Function,
}

/// A function of a framework.
#[derive(Debug)]
pub struct Function {
    /// Its name, without the module path.
    pub name: String,
    /// Its arguments, or a prefix of them. Checked if the executable describes its arguments.
    pub arguments: String,
}

/// How errors are classified. Each class is one object of the executable, and has a message.
#[derive(Debug)]
pub struct ErrorSpec {
    /// The type of the classes, which are errors themselves.
    pub class: String,
    /// The field of a class that holds the message.
    pub message: String,
    /// The type of errors that point to their class.
    pub wrapped: String,
    /// The field of such an error that holds the pointer.
    pub points: String,
    /// The type of errors that can carry another error. The class of the carried error is used, if it has one.
    pub carrier: String,
    /// The field of such an error that holds the carried one.
    pub carries: String,
    /// The name of each class, by its message.
    pub names: Vec<(String, String)>,
    /// Types of errors that have no class object, each with the name of its class.
    pub types: Vec<(String, String)>,
}

/// The names of protocols. Their numbers are bits that can be combined.
#[derive(Debug)]
pub struct ProtocolSpec {
    /// The name if no bit is set.
    pub none: String,
    /// The name of each bit, in the order of output.
    pub bits: Vec<(u16, String)>,
    /// The first release, major and minor, that writes combined bits as joined names.
    pub joined_since: (u32, u32),
    /// Before that release, the name of each combination.
    pub combinations: Vec<(u16, String)>,
    /// Before that release, the name of every other combination.
    pub other: String,
}

/// A limit of some releases.
#[derive(Debug)]
pub struct Untold {
    /// The first affected release, major and minor.
    pub since: (u32, u32),
    /// The first release that is no longer affected.
    pub before: (u32, u32),
    /// A note: what is unknown, and what the metrics show instead.
    pub note: String,
}

/// The functions that are entered once for each attempt to send or receive a message on a stream. Their arguments
/// begin like those of the start function and end with a struct. If the struct holds an error, there was no message.
#[derive(Debug)]
pub struct MessageSpec {
    /// Entered for each message sent.
    pub sent: Function,
    /// Entered for each message received.
    pub received: Function,
    /// The field of the struct that holds the error.
    pub error: String,
    /// Ways to the struct's type, by types only. Each ends at two fields, for sending and receiving, which hold
    /// functions whose last argument is the struct.
    pub routes: Vec<Route>,
}

/// See [`MessageSpec::routes`].
#[derive(Debug)]
pub struct Route {
    /// The way to the struct that has the two fields.
    pub way: Way,
    /// The field with the functions for messages sent.
    pub sent: String,
    /// The field with the functions for messages received.
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

/// What distinguishes calls in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The object, which is the same at start and finish.
    Object,
    /// The goroutine, except for streams. Start and finish run on the same goroutine, and calls nest properly.
    GoroutineUnlessStreaming,
}

/// Paths to the same value in types that can replace each other. Paths whose types or fields are not in the
/// executable are skipped.
pub type Alternatives = Vec<String>;

/// A yes-or-no question about a value of the object.
#[derive(Debug)]
pub enum Question {
    /// Does the value equal this number?
    Equals(Alternatives, u32),
    /// Has the value one of these bits set?
    AnyBit(Alternatives, u32),
}

/// A condition for a shape to fit: the type that an interface field holds.
#[derive(Debug)]
pub struct Condition {
    /// The field.
    pub field: String,
    /// The type of the field, an interface.
    pub interface: String,
    /// The type that the interface must point to.
    pub holds: String,
}

/// An event, one element of a slice, that calls record themselves.
#[derive(Debug)]
pub struct RecordedSpec {
    /// The path to the slice.
    pub events: String,
    /// The index of the element that records the start of the call.
    pub index: u8,
    /// The field of an element with its state, and the bit that is set once the event is recorded.
    pub state: (String, u32),
    /// The field of an element with its time, in nanoseconds since 1970.
    pub time: String,
}

/// One type that the object can have.
#[derive(Debug)]
pub struct ShapeSpec {
    /// Name in `inspect`.
    pub name: String,
    /// The side of its calls.
    pub side: Side,
    /// The interface type of the functions' argument.
    pub interface: String,
    /// The concrete type that the interface points to.
    pub concrete: String,
    /// A further condition.
    pub when: Option<Condition>,
    /// What distinguishes its calls in flight.
    pub key: Key,
    /// The path to the name of the calling service.
    pub caller: String,
    /// The path to the name of the called service.
    pub callee: String,
    /// The path to the name of the method.
    pub method: String,
    /// Is the call a stream? If the release can't answer, that is a note, unless the key depends on it.
    pub streaming: Question,
    /// Is the call oneway? If the release can't answer, that is a note.
    pub oneway: Question,
    /// The path to the number for the kind of stream. Not every release has it.
    pub stream: String,
    /// The paths to the numbers of bytes sent and received for the call. Not every release has them.
    pub sizes: [String; 2],
    /// The paths to the peer's IP address (a slice) and port, if the peer is known.
    pub peer: Option<[String; 2]>,
    /// The path to the tags, which hold the number of retries under `retry`.
    pub tags: Option<String>,
    /// The path to the number of the protocol.
    pub protocol: String,
    /// The start that the call records itself. Not every release has it, and not every service records it.
    pub recorded: RecordedSpec,
    /// The path to the value recovered from a panic, a `sync/atomic` value: a `Value` that holds a struct beginning
    /// with an interface, or a `Pointer` to an interface. Without a panic the interface is nil.
    pub panicked: String,
}

/// A framework whose functions get plain pointers. The entered function identifies the kind of call and the meaning
/// of each argument.
///
/// Names in the framework's topmost package begin with a dot. Paths follow pointers as Go does.
#[derive(Debug)]
pub struct SitedFramework {
    /// Name in logs and `inspect`.
    pub name: String,
    /// Name for people.
    pub title: String,
    /// The metrics that its calls feed.
    pub metrics: Metrics,
    /// The module path under which the framework is published. Copies may have other paths.
    pub module: String,
    /// The kinds of calls. If an executable lacks a start function, it has no calls of that kind.
    pub calls: Vec<CallSpec>,
    /// How the status of a finished call is found.
    pub status: StatusSpec,
}

/// One kind of call.
#[derive(Debug)]
pub struct CallSpec {
    /// Name in `inspect`.
    pub name: String,
    /// The side of its calls.
    pub side: Side,
    /// The alternative start functions. The first one that the executable has with these arguments is used.
    pub start: Vec<Entry>,
    /// The finish functions: lists of alternatives, of which the first that exists is used. The first list must have
    /// one that exists.
    pub finishes: Vec<Vec<Entry>>,
    /// The name of the kind of call whose start it shares. Only its finish differs.
    pub variant_of: Option<String>,
    /// Ways to the type that the object points to.
    pub object: Vec<Way>,
    /// The path to the pointer that is the key, if the object is not the key.
    pub key: Option<String>,
    /// Alternative paths to the method's full name.
    pub method: Vec<String>,
    /// How the kind of stream is found.
    pub kind: KindSpec,
    /// The name of the kind of call that this one replaces if that one can't be planned.
    pub in_place_of: Option<String>,
    /// Whether a stream may finish twice. If so, the first finish counts.
    pub first_finish: bool,
    /// Functions, without the module path, that report failures in the middle of a call. A status written by them, by
    /// their closures or by their callees is not the end of the call.
    pub not_within: Vec<String>,
    /// The way to a field that records that a call has written its status. If the field exists, the first status is
    /// the end of the call, even if it comes from [`not_within`](Self::not_within).
    pub ends_once: Option<Way>,
    /// Paths to a number, and the value that it has at the start of a call. With any other value, a hit is another
    /// attempt of the same call.
    pub begins_if: Option<(Alternatives, u32)>,
    /// Paths to a number, and the value that it has at the first finish of a call whose start was not seen.
    pub first_if: Option<(Alternatives, u32)>,
    /// Paths to numbers, and the value that each must have for a hit to be a finish.
    pub only_if: Vec<(Alternatives, u32)>,
    /// Alternative ends that are visible only as an error passed between two functions. The first one that the
    /// executable has with these arguments is used.
    pub error_ends: Vec<ErrorEnd>,
    /// Alternative methods through which the messages of streams go. The first ones that exist are used.
    pub messages: Vec<SitedMessages>,
}

/// Two methods of a type, each called once per message. If a method returns no error, there was a message.
#[derive(Debug)]
pub struct SitedMessages {
    /// The method for sending, without the module path.
    pub sent: String,
    /// The method for receiving, without the module path.
    pub received: String,
    /// The arguments of both methods.
    pub arguments: String,
    /// Ways to the type of the receiver.
    pub receiver: Vec<Way>,
    /// Where the receiver holds the object of the call.
    pub object: ObjectOf,
    /// The receiver's field that holds the description of the call, and the description's fields that say
    /// whether the client and the server stream. If a release has no such field, the kind of stream is known
    /// from the start of the call.
    pub description: [String; 3],
}

/// Where the receiver of a method holds the object of a call.
#[derive(Debug)]
pub enum ObjectOf {
    /// The receiver is the object.
    Itself,
    /// In this field, a pointer.
    Pointer(String),
    /// In a field that is an interface.
    Interface {
        /// The field.
        field: String,
        /// The type of the object, which the interface holds.
        holds: String,
        /// The type that the interface holds if there is no call.
        no_call: String,
    },
}

impl SitedFramework {
    /// Whether another kind of call can replace this one if it can't be planned.
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
    /// Its arguments, or a prefix of them: `w` for a word, a digit for fewer bytes, braces around an interface.
    pub arguments: String,
    /// The argument word that is the object, counted from 0.
    pub object: usize,
    /// The argument word that is the second argument: at a start the description of the call, at a finish the status.
    pub second: usize,
    /// At a finish, the word that is the type word of an error; the second argument is its data word. `None` if the
    /// second argument is the status itself.
    pub error: Option<usize>,
    /// A function, without the module path, that returns the error to `function`. The call ends where `function`
    /// tests it; error and second argument are then result words.
    pub given_by: Option<String>,
}

/// An end of a call that is visible only inside a function: another function returns an error to it,
/// and it writes no status.
#[derive(Debug)]
pub struct ErrorEnd {
    /// The function, without the module path.
    pub function: String,
    /// Its arguments, or a prefix of them.
    pub arguments: String,
    /// The function whose only result is the error.
    pub given_by: String,
    /// The argument word of the function that is the object.
    pub object: usize,
    /// The type of the errors that end a call: a value, not a pointer to one.
    pub error: String,
    /// The status code that the error stands for.
    pub code: u8,
}

/// A way to a type: a type that implements an interface, then fields, through pointers and slices. `()` leads from a
/// function to its parameter.
#[derive(Debug)]
pub struct Way {
    /// The interface.
    pub interface: String,
    /// The type that implements it.
    pub concrete: String,
    /// The fields that follow.
    pub fields: Vec<String>,
}

/// How the kind of stream of a call is found.
#[derive(Debug)]
pub enum KindSpec {
    /// The call is not a stream.
    Unary,
    /// From two bools behind the object: whether the client streams, and whether the server does.
    Object(String, String),
    /// From two bools of the struct that the start's second argument points to. The ways lead to its type.
    Second(Vec<Way>, String, String),
}

/// How a status is found, and which errors have one.
#[derive(Debug)]
pub struct StatusSpec {
    /// The type of errors that have a status.
    pub error: String,
    /// The path from such an error to the pointer to the status.
    pub from_error: String,
    /// The path from a status to the pointer to its message. A nil pointer means success.
    pub message: String,
    /// The path from the message to the code. 0 means success.
    pub code: String,
    /// The full name of an error type that means success if its first field has this text, of at most eight bytes.
    pub well: (String, String),
    /// The full name of an error type that wraps another error, and the field that holds the wrapped one.
    pub wrap: (String, String),
    /// The names of the codes, indexed by code.
    pub codes: Vec<String>,
}
