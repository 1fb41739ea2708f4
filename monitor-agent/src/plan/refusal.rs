//! Reasons why a framework or spec in an executable is not watched.

use thiserror::Error;

use crate::{image::ImageError, specs::Spec};

/// The end of a refusal for an unknown layout.
const UNPROVEN: &str = ", so the layout can't be proven";

/// The end of a refusal for a missing function.
const RENAMED: &str = ": it was renamed, every call of it is inlined, or its release is not supported";

/// The end of a refusal for a missing native function.
const ABSENT: &str = ": it has another name, every call of it is inlined, as the outer function of an `async fn` is, or it is generic, \
                      and only what it is made into has symbols; functions of shared libraries can't be watched";

/// The end of a refusal for an inlined function.
const BY_PROFILE: &str = ": built without a profile (-pgo=off), it can be watched, unless it is small";

/// A reason not to attach. Whatever can't be proven is refused: a wrong number is worse than none.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The function is not in the executable's function table.
    #[error("function {0} is not in the executable{RENAMED}")]
    FunctionMissing(String),
    /// The function is not in the executable under this name, but under one with a longer package path.
    #[error("function {name} is not in the executable, but {full} is: write the whole path of its package")]
    FunctionElsewhere {
        /// The name in the spec.
        name: String,
        /// The name in the executable.
        full: String,
    },
    /// The framework is linked in, but without the functions that every call enters.
    #[error(
        "{module} is linked in, but neither {functions} is in its function table: no call is made or served through \
         it, or its release is not supported"
    )]
    FunctionsMissing {
        /// The framework's module path.
        module: &'static str,
        /// The expected functions.
        functions: String,
    },
    /// The build info lists the framework, but the function table has none of its functions.
    #[error(
        "its build info names {0}, but its function table has none of its functions: they were renamed (garble \
         does that), or none is used"
    )]
    NamesMissing(&'static str),
    /// There are several functions with this name.
    #[error("function {0} is there more than once")]
    FunctionTwice(String),
    /// The function is inlined into another, and perhaps everywhere.
    #[error("function {symbol} is inlined into {caller}, and what comes by that can't be seen{BY_PROFILE}")]
    Inlined {
        /// The function.
        symbol: String,
        /// One of the functions that it is inlined into.
        caller: String,
    },
    /// No instruction of the function is a safe place for a probe.
    #[error("function {symbol} has no safe place for a probe: {why}")]
    NoSite {
        /// The function.
        symbol: String,
        /// Why no instruction is safe.
        why: String,
    },
    /// A function's arguments are not those that the description needs.
    #[error("function {symbol} has the arguments {found}, not {expected}, so what it gets can't be proven")]
    WrongArguments {
        /// The function.
        symbol: String,
        /// The arguments in the executable.
        found: String,
        /// The arguments in the description.
        expected: String,
    },
    /// A description names a function's arguments, but the executable does not describe them.
    #[error(
        "the executable doesn't say which arguments function {0} has, as none of Go 1.17 does, so what it gets can't be proven"
    )]
    ArgumentsUntold(String),
    /// A spec names the arguments of a generic function, or of one inside it.
    #[error(
        "function {0} is generic, or part of one that is: it gets an argument more than the executable says, so what it gets can't \
         be proven; leave out what names its arguments"
    )]
    Generic(String),
    /// A compiler-generated function that calls another.
    #[error(
        "function {0} is one that the compiler has made to call another, which others call without it: write the name of that \
         one"
    )]
    Wrapper(String),
    /// A function written in assembly.
    #[error(
        "function {0} is written in assembly, where nothing promises in which registers its arguments and the goroutine are"
    )]
    Assembly(String),
    /// A pattern of a spec matches more functions than allowed.
    #[error(
        "{pattern} matches {found} functions, and may match {limit}: raise at_most, or write more of the name"
    )]
    TooManyFunctions {
        /// The pattern.
        pattern: String,
        /// The number of matches.
        found: usize,
        /// The maximum number of matches.
        limit: usize,
    },
    /// Two operations of a spec can't be distinguished.
    #[error(
        "operations {0} and {1} can't be told apart: they finish in the same function, or start in one with other keys"
    )]
    NotApart(String, String),
    /// Two operations of a spec of native functions watch the same function.
    #[error(
        "operations {one} and {other} both watch function {symbol}: what is entered must tell operations apart"
    )]
    SameFunction {
        /// The operation described first.
        one: String,
        /// The other operation.
        other: String,
        /// The function.
        symbol: String,
    },
    /// A function is both a start and a finish of an operation, under the same key.
    #[error(
        "function {0} is a start and a finish of the same operation under the same key, and which comes first is not known: name \
         it once, write more of a pattern, or take different arguments for keys"
    )]
    StartAndFinish(String),
    /// A spec's sites need different processor flags to filter their hits.
    #[error(
        "its functions begin so differently that one program can't tell their entries from other hits: put them into specs of \
         their own"
    )]
    KindsOfSites,
    /// Two specs watch the same function.
    #[error("function {0} is watched for spec {1} already")]
    Claimed(String, String),
    /// A spec of native functions meets a Go program.
    #[error(
        "it is a Go program, whose functions have another calling convention and whose stacks move: describe them with [[operation]]"
    )]
    NativeInGo,
    /// A native function can't be located, because the executable is stripped.
    #[error(
        "function {0} can't be found: the executable was stripped, and has at most the symbols that the dynamic linker needs; what \
         `strip --strip-debug` leaves is enough"
    )]
    Stripped(String),
    /// Demangling all symbols would take too long.
    #[error(
        "its symbols have more names in the source than are made for one executable: write the mangled names of functions, as \
         `nm` prints them"
    )]
    TooManyNames,
    /// A native function is not in the symbol table.
    #[error("function {0} is not among the symbols of the executable, or has no size there{ABSENT}")]
    SymbolMissing(String),
    /// A symbol of a part of a native function.
    #[error(
        "{0} is a part of a function that the compiler has put elsewhere, and none that is called as it is in the source"
    )]
    PartOfFunction(String),
    /// A thunk of a C++ method.
    #[error(
        "{0} is a thunk, which the compiler has made to go on in a method, and would count a call of that again: write the name of \
         the method"
    )]
    Thunk(String),
    /// A native function whose arguments differ from those in its source.
    #[error(
        "the compiler has made {0} of a function with other arguments, or one without a result, so what \
         it gets and gives can't be known: leave out what names arguments or a number"
    )]
    OtherArguments(String),
    /// A native function of which only compiler-made clones exist.
    #[error(
        "of {0} nothing is left but {1}, which the compiler has made of it with other arguments: write that symbol, without \
         what names arguments or a number"
    )]
    OnlyClone(String, String),
    /// A spec declares an argument a C++ string, and the function's mangled name has none there.
    #[error(
        "the mangled name of {symbol} has no std::string of the C++11 ABI that can be argument {argument}, so how that lies can't \
         be proven: arguments are counted by registers, with `this` and a pointer to what is returned by value"
    )]
    NoCxxString {
        /// The function.
        symbol: String,
        /// The index of the argument.
        argument: usize,
    },
    /// A spec declares an argument a C++ string, and the function's symbol has no readable parameters.
    #[error(
        "the parameters of {0} can't be read from its symbol, which is too long or nested too deep, or has none, so that an argument \
         is a std::string can't be proven: name a function whose symbol has them, or leave out strings"
    )]
    NoParameters(String),
    /// A required type is missing.
    #[error("type {0} can't be found in the executable's type metadata")]
    TypeMissing(String),
    /// A type of a spec is missing, or nothing leads to it.
    #[error(
        "type {0} can't be found: nothing that the program uses as an interface with methods is or leads to it, so what lies \
         in it can't be proven; leave out the labels that need it"
    )]
    TypeUnused(String),
    /// The type can't be found under this name, but under one with a longer package path.
    #[error("type {name} can't be found, but {full} can: write the whole path of its package")]
    TypeElsewhere {
        /// The name in the spec.
        name: String,
        /// The name in the executable.
        full: String,
    },
    /// A required field is missing.
    #[error("type {type_name} has no field {field}, so the layout can't be proven")]
    FieldMissing {
        /// The type.
        type_name: String,
        /// The field.
        field: String,
    },
    /// A field's type is not the one that the description needs.
    #[error("{what} is {found}, not {expected}, so the layout can't be proven")]
    WrongType {
        /// The field.
        what: String,
        /// Its type in the executable.
        found: String,
        /// The expected type.
        expected: &'static str,
    },
    /// Several types have the same name.
    #[error("there are several types {0}, so the layout can't be proven")]
    TypeTwice(String),
    /// The type metadata and the DWARF contradict each other.
    #[error(
        "the {what} is {metadata} in the Go type metadata and {} in the DWARF, so the layout can't be proven",
        .dwarf.map_or_else(|| "not there".to_owned(), |value| value.to_string())
    )]
    EvidenceDiffers {
        /// Name of the number.
        what: String,
        /// Its value in the type metadata.
        metadata: u64,
        /// Its value in the DWARF, if it has one.
        dwarf: Option<u64>,
    },
    /// The executable has none of the framework's types of calls.
    #[error("none of the types that calls come as is in the executable: is the framework used at all?")]
    NoShape,
    /// The plan exceeds the limits of the programs.
    #[error("more {0} than the eBPF programs can take")]
    TooMuch(&'static str),
    /// A part of a spec can't be found or proven.
    #[error("{place}: {why}")]
    InSpec {
        /// File, line and column.
        place: String,
        /// The reason.
        why: Box<Refusal>,
    },
    /// The executable can't be read.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl Refusal {
    /// Creates a [`Refusal::WrongType`].
    pub(super) fn wrong_type(what: &str, found: &str, expected: &'static str) -> Self {
        Self::WrongType { what: what.to_owned(), found: found.to_owned(), expected }
    }

    /// Creates a [`Refusal::WrongArguments`].
    pub(super) fn wrong_arguments(symbol: &str, found: String, expected: &str) -> Self {
        Self::WrongArguments { symbol: symbol.to_owned(), found, expected: expected.to_owned() }
    }

    /// Adds the place in the spec that caused it. An unreadable executable has no such place.
    pub(super) fn at(self, spec: &Spec, place: usize) -> Self {
        match self {
            Self::Image(_) => self,
            why => Self::InSpec { place: spec.place(place), why: Box::new(why) },
        }
    }

    /// Whether a function that a spec or framework names is missing, or inlined.
    pub(super) fn is_missing(&self) -> bool {
        match self {
            Self::InSpec { why, .. } => why.is_missing(),
            Self::FunctionMissing(_)
            | Self::FunctionElsewhere { .. }
            | Self::SymbolMissing(_)
            | Self::Stripped(_) => true,
            _ => self.is_inlined(),
        }
    }

    /// Whether a function's arguments differ from the description, or are unknown.
    pub(super) fn is_about_arguments(&self) -> bool {
        matches!(self, Self::WrongArguments { .. } | Self::ArgumentsUntold(_))
    }

    /// Whether a function is inlined.
    pub(super) fn is_inlined(&self) -> bool {
        match self {
            Self::InSpec { why, .. } => why.is_inlined(),
            _ => matches!(self, Self::Inlined { .. }),
        }
    }

    /// The reason without its ending, for a note about something optional.
    pub(super) fn reason(&self) -> String {
        if let Self::InSpec { why, .. } = self {
            return why.reason();
        }
        let text = self.to_string();
        let ends = [UNPROVEN, RENAMED, ABSENT, BY_PROFILE];
        let reason = ends.iter().find_map(|end| text.strip_suffix(end));
        reason.map_or_else(|| text.clone(), str::to_owned)
    }
}
