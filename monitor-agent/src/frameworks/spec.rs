//! The vocabulary in which a framework is described.
//!
//! Type names are written without the framework's module path: `pkg/rpcinfo.rpcInfo`. A path leads from the
//! object to a value: fields joined by dots, and `(*TYPE)` after a field that holds an interface, which says
//! which type must be in it; any other type there is never read as if it were this one.
//! `to.(*pkg/rpcinfo/remoteinfo.remoteInfo).serviceName`

/// An RPC framework.
#[derive(Debug)]
pub struct Framework {
    /// Name in metrics, logs and `inspect`.
    pub name: &'static str,
    /// Module path of the framework.
    pub module: &'static str,
    /// Function that every call enters when it starts, without the module path.
    pub start: &'static str,
    /// Function that every call enters when it finishes.
    pub finish: &'static str,
    /// Where both functions get the object: the integer arguments with its type word and its address, counted
    /// from 0 with the receiver, an interface being two.
    pub object: Pair,
    /// Where the finish function gets the error.
    pub error: Pair,
    /// The types that the object can have. The first that fits counts.
    pub shapes: &'static [ShapeSpec],
}

/// The two words of an interface value among a function's integer arguments.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The type word.
    pub type_word: usize,
    /// The data word.
    pub data: usize,
}

/// On which side of a call the target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It calls.
    Client,
    /// It is called.
    Server,
}

/// What tells calls in flight apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The object: it stays the same from start to finish.
    Object,
    /// The goroutine, except for streams: start and finish run on one goroutine and nest properly.
    GoroutineUnlessStreaming,
}

/// Paths to the same value in types that can stand for each other. Those whose types are not in the
/// executable are left out.
pub type Alternatives = &'static [&'static str];

/// A question about a value of the object.
#[derive(Clone, Copy, Debug)]
pub enum Question {
    /// Does it equal this number?
    Equals(Alternatives, u32),
    /// Has it one of these bits set?
    AnyBit(Alternatives, u32),
}

/// What must be in an interface field for a shape to fit.
#[derive(Clone, Copy, Debug)]
pub struct Condition {
    /// The field.
    pub field: &'static str,
    /// Its interface type.
    pub interface: &'static str,
    /// The type that it must hold a pointer to.
    pub holds: &'static str,
}

/// One type that the object can have.
#[derive(Debug)]
pub struct ShapeSpec {
    /// Name in `inspect`.
    pub name: &'static str,
    /// Side of its calls.
    pub side: Side,
    /// Interface as which the functions get the object.
    pub interface: &'static str,
    /// The type that the object points to.
    pub concrete: &'static str,
    /// What else must hold.
    pub when: Option<Condition>,
    /// What tells its calls apart.
    pub key: Key,
    /// Path to the calling service's name.
    pub caller: &'static str,
    /// Path to the called service's name.
    pub callee: &'static str,
    /// Path to the method's name.
    pub method: &'static str,
    /// Is the call a stream?
    pub streaming: Question,
    /// Is it oneway?
    pub oneway: Question,
    /// Path to the tags that hold the number of retries under `retry`.
    pub tags: Option<&'static str>,
}
