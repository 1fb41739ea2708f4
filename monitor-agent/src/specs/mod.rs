//! Users' specs: descriptions of functions that the agent does not know. A spec describes operations, each with a
//! start and a finish, by names only. One file describes one family of metrics.
//!
//! [`read()`] makes a [`Spec`] of a file's text, or reports the place of an error. As for frameworks, the
//! [plan](crate::plan) finds and proves in an executable what a spec names.

mod glob;
pub(crate) mod go;
mod known;
pub(crate) mod names;
mod native;
pub(crate) mod read;
pub(crate) mod written;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read as _,
    path::Path,
    sync::Arc,
};

use thiserror::Error;

pub use known::KNOWN;
pub use names::steps_of;
pub use native::{Native, NativeEntry, NativeFinish, Text, Width};
pub use read::{FRAMEWORK_KEYS, read};

/// The maximum size of a file, in bytes.
pub const FILE_MAX: usize = 64 << 10;
/// The maximum number of operations in a spec.
pub const OPERATIONS_MAX: usize = monitor_ebpf::MAX_SHAPES;
/// The maximum number of alternative functions for one end of an operation.
pub const ALTERNATIVES_MAX: usize = 8;
/// The maximum number of functions that any pattern may match.
pub const MATCHES_MAX: usize = 64;
/// The maximum number of steps in a path.
pub const STEPS_MAX: usize = 8;
/// The maximum number of labels in a spec.
pub const LABELS_MAX: usize = 8;
/// The maximum number of labels that are strings in memory.
pub const TEXTS_MAX: usize = monitor_ebpf::LABELS;
/// The maximum number of arguments at which paths can begin.
pub const POINTERS_MAX: usize = 2;
/// The number of words of arguments or results in registers.
pub const REGISTERS: usize = 9;
/// The maximum number of specs in one run.
pub const SPECS_MAX: usize = 16;

/// A spec, read from one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The prefix of its metrics' names.
    pub name: String,
    /// The help text of its metrics; empty for a generated one.
    pub help: String,
    /// The path of the module whose version is shown; empty for none.
    pub module: String,
    /// The names of its labels.
    pub labels: Vec<String>,
    /// The operations that it measures, at least one.
    pub operations: Vec<Operation>,
    /// The file that it was read from.
    pub origin: Origin,
}

/// The file that a spec was read from, kept to report places in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    file: String,
    text: String,
}

/// The side of a call that the target is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The target calls.
    Client,
    /// The target is called.
    Server,
}

/// An activity that begins in one function and ends in another, or in the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Name in `inspect`.
    pub name: String,
    /// Whether the target does the work for others, or asks others to do it.
    pub side: Side,
    /// What distinguishes operations in flight.
    pub key: Key,
    /// What to do if a start finds another one under its key, or a finish finds none.
    pub policy: Policy,
    /// The alternative start functions. The first one that exists is used.
    pub start: Vec<Entry>,
    /// Where it finishes.
    pub finish: Finish,
    /// The types of the pointers at the finish, by the pointers' names.
    pub types: BTreeMap<String, String>,
    /// The places of these types in the file: the first byte of each, in the order of the pointers.
    pub type_places: Vec<usize>,
    /// The sources of the spec's labels, in the order of the labels' names.
    pub labels: Vec<Source>,
    /// The places of these labels in the file: the first byte of each.
    pub label_places: Vec<usize>,
    /// The numbers that mean failure.
    pub failed: Option<Comparison>,
    /// Whether its numbers are signed.
    pub signed: bool,
    /// Its functions, if they are native. Then it has no Go functions.
    pub native: Option<Native>,
}

/// Where an operation finishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// At the entry of the first of these functions that exists.
    Entered(Vec<Entry>),
    /// Where the functions that it starts in return. Each return is single-stepped in the kernel.
    Returned(Words),
}

/// A function, or a pattern for several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its full name. With [`at_most`](Self::at_most), `*` stands for any text, except in `(*T)`.
    pub function: String,
    /// The maximum number of functions that the pattern may match; `None` if it is no pattern.
    pub at_most: Option<usize>,
    /// Its arguments, or a prefix of them, in the format of [`GoImage::arguments`](crate::image::GoImage::arguments).
    pub arguments: String,
    /// The meaning of the words of its arguments.
    pub words: Words,
    /// The place of its name in the file: the first byte.
    pub place: usize,
}

/// The meaning of the words of a function's arguments or results, counted from 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// The key, if that is not the goroutine.
    pub key: Option<usize>,
    /// Pointers, each with its name in paths.
    pub pointers: Vec<(String, usize)>,
    /// The type word of an error.
    pub error: Option<usize>,
    /// A number.
    pub number: Option<usize>,
    /// The width of the number, in bytes: 1, 2, 4 or 8. For a result it is 8 if the spec does not say.
    pub number_width: u8,
}

/// What distinguishes operations in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The goroutine, which both starts and finishes it.
    Goroutine,
    /// A pointer that start and finish have in common.
    Pointer,
    /// A number that start and finish have in common, below 2^60; below 2^57 if the spec has several operations.
    Number,
    /// For native functions: a number of four bytes that start and finish have in common.
    Int,
    /// For native functions: the thread, which both starts and finishes it; the function's stack, if
    /// the finish is its return.
    Thread,
}

/// What happens if starts and finishes do not alternate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// A start replaces one that has not finished.
    Overwrite,
    /// The first start counts.
    FirstStart,
    /// A finish without a start does not count.
    FirstFinish,
    /// Operations of a goroutine can be nested. The innermost finishes first.
    Nested,
}

/// The source of a label's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The string at the end of a path. The path begins with the name of a pointer.
    Name(String),
    /// A number of at most 32 bits.
    Number {
        /// The path to it; `None` for the number in the words of the finish.
        path: Option<String>,
        /// The text for 0, if it is not shown as a number.
        zero: Option<String>,
    },
    /// A fixed text.
    Text(String),
    /// The outcome: the first text on success, the second on failure.
    Outcome([String; 2]),
}

impl Source {
    /// The path to the value, if it has one.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Name(path) => Some(path),
            Self::Number { path, .. } => path.as_deref(),
            Self::Text(_) | Self::Outcome(_) => None,
        }
    }
}

/// A comparison with a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `== N`
    Equal(i64),
    /// `!= N`
    Not(i64),
    /// `>= N`
    AtLeast(i64),
    /// `< N`
    Below(i64),
}

impl Comparison {
    /// Whether the comparison is true for a number.
    #[must_use]
    pub fn holds(self, number: i64) -> bool {
        match self {
            Self::Equal(operand) => number == operand,
            Self::Not(operand) => number != operand,
            Self::AtLeast(operand) => number >= operand,
            Self::Below(operand) => number < operand,
        }
    }
}

impl Operation {
    /// The place of its first function in the file: the first byte.
    #[must_use]
    pub fn place(&self) -> usize {
        let native = self.native.iter().flat_map(Native::entries).map(|entry| entry.place);
        self.entries().map(|entry| entry.place).chain(native).next().unwrap_or_default()
    }

    /// The functions that it finishes in, unless it finishes where its start functions return.
    #[must_use]
    pub fn finishes(&self) -> &[Entry] {
        match &self.finish {
            Finish::Entered(entries) => entries,
            Finish::Returned(_) => &[],
        }
    }

    /// All Go functions that it names.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.start.iter().chain(self.finishes())
    }

    /// The names of all its functions.
    fn functions(&self) -> impl Iterator<Item = &str> {
        let native = self.native.iter().flat_map(Native::entries).map(|entry| entry.function.as_str());
        self.entries().map(|entry| entry.function.as_str()).chain(native)
    }

    /// Converts a number that was read to a signed one, if its numbers are signed.
    #[must_use]
    pub fn number(&self, read: u32) -> i64 {
        if self.signed { i64::from(read.cast_signed()) } else { i64::from(read) }
    }

    /// Whether the number that was read can have any value, as one in a register can. Otherwise it is in memory, and
    /// all bits set means that it could not be read.
    #[must_use]
    pub fn reads_any_number(&self) -> bool {
        match &self.finish {
            _ if self.native.is_some() => true,
            Finish::Entered(entries) => entries.iter().all(|entry| entry.words.number.is_some()),
            Finish::Returned(words) => words.number.is_some(),
        }
    }

    /// Whether success and failure are distinguished.
    #[must_use]
    pub fn tells_outcome(&self) -> bool {
        let has_error = match &self.finish {
            _ if self.native.is_some() => false,
            Finish::Entered(entries) => entries.iter().all(|entry| entry.words.error.is_some()),
            Finish::Returned(words) => words.error.is_some(),
        };
        has_error || self.failed.is_some()
    }

    /// Whether an operation that ended with this number has failed.
    #[must_use]
    pub fn fails(&self, number: Option<u32>) -> bool {
        self.failed.zip(number).is_some_and(|(comparison, number)| comparison.holds(self.number(number)))
    }

    /// Whether the number that decides the outcome was not read. The outcome is then unknown, unless the operation
    /// failed for another reason.
    #[must_use]
    pub fn is_untold(&self, number: Option<u32>) -> bool {
        self.failed.is_some() && number.is_none()
    }
}

impl Entry {
    /// Whether it matches a function.
    #[must_use]
    pub fn is_like(&self, symbol: &str) -> bool {
        match self.at_most {
            None => self.function == symbol,
            Some(_) => glob::is_like_in_go(&self.function, symbol),
        }
    }
}

impl Spec {
    /// File, line and column of a byte of the file.
    #[must_use]
    pub fn place(&self, at: usize) -> String {
        let Origin { file, text } = &self.origin;
        let (line, column) = read::position(text, at);
        format!("{file}:{line}:{column}")
    }

    /// Whether it describes native functions.
    #[must_use]
    pub fn is_native(&self) -> bool {
        self.operations.iter().any(|operation| operation.native.is_some())
    }
}

/// An error in a spec.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// An error at a place of the file. Line and column are counted from 1.
    #[error("{file}:{line}:{column}: {what}")]
    At {
        /// The file.
        file: String,
        /// The line.
        line: usize,
        /// The column, in characters.
        column: usize,
        /// The error.
        what: String,
    },
    /// The file can't be read.
    #[error("spec {file} can't be read: {why}")]
    Unreadable {
        /// The file.
        file: String,
        /// The reason.
        why: String,
    },
    /// The file is too long.
    #[error("spec {0} is longer than {FILE_MAX} bytes")]
    TooLong(String),
    /// Two specs can't be used together.
    #[error("specs {0} and {1} {2}")]
    Together(String, String, String),
    /// There are too many specs.
    #[error("more than {SPECS_MAX} specs")]
    TooMany,
}

/// The specs of a run. No two of them have the same name, or a function in common.
#[derive(Clone, Debug, Default)]
pub struct Specs(Vec<Arc<Spec>>);

impl Specs {
    /// Reads specs from files, or built-in ones by their names.
    pub fn load(names: &[String]) -> Result<Self, SpecError> {
        Self::of(names.iter().map(|name| load(name)).collect::<Result<_, _>>()?)
    }

    /// Checks that specs can be used together.
    pub fn of(specs: Vec<Spec>) -> Result<Self, SpecError> {
        if specs.len() > SPECS_MAX {
            return Err(SpecError::TooMany);
        }
        for (index, spec) in specs.iter().enumerate() {
            for other in specs.iter().take(index) {
                apart(other, spec)?;
            }
        }
        Ok(Self(specs.into_iter().map(Arc::new).collect()))
    }

    /// Each spec with its number, which is small.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &Arc<Spec>)> {
        (0..).zip(&self.0)
    }

    /// The spec with this number.
    #[must_use]
    pub fn get(&self, number: u8) -> Option<&Spec> {
        self.0.get(usize::from(number)).map(Arc::as_ref)
    }

    /// Whether a spec is about native functions, so that programs that are not Go are inspected too.
    #[must_use]
    pub fn has_native(&self) -> bool {
        self.0.iter().any(|spec| spec.is_native())
    }

    /// Whether there are no specs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The metrics and labels of a spec, as text for people.
#[must_use]
pub fn metrics_of(spec: &Spec) -> String {
    let labels = spec.labels.join(", ");
    format!("{0}_total and {0}_duration_seconds with the labels {labels}", spec.name)
}

/// Refuses two specs with the same metrics or a function in common.
fn apart(one: &Spec, other: &Spec) -> Result<(), SpecError> {
    let together =
        |one: &str, other: &str, what| Err(SpecError::Together(one.to_owned(), other.to_owned(), what));
    if one.name == other.name {
        let what =
            format!("both have the metrics {}_total: give one another name, or use one of them", one.name);
        return together(&one.origin.file, &other.origin.file, what);
    }
    let functions = |spec: &Spec| -> BTreeSet<String> {
        spec.operations.iter().flat_map(Operation::functions).map(str::to_owned).collect()
    };
    match functions(one).intersection(&functions(other)).next() {
        Some(function) => together(&one.name, &other.name, format!("both watch {function}: use one of them")),
        None => Ok(()),
    }
}

/// Reads a spec from a file, or a built-in one by its name.
fn load(name: &str) -> Result<Spec, SpecError> {
    if let Some((_, text)) = KNOWN.iter().find(|(known, _)| *known == name) {
        return read(name, text);
    }
    let unreadable = |why: String| SpecError::Unreadable { file: name.to_owned(), why };
    let mut bytes = Vec::new();
    let path = Path::new(name);
    // Check before opening: opening a pipe waits for its writer.
    let metadata = path.metadata().map_err(|error| unreadable(format!("{error}{}", known_ones())))?;
    if !metadata.is_file() {
        return Err(unreadable("it is not a regular file".to_owned()));
    }
    let file = File::open(path).map_err(|error| unreadable(error.to_string()))?;
    file.take(FILE_MAX as u64 + 1).read_to_end(&mut bytes).map_err(|error| unreadable(error.to_string()))?;
    if bytes.len() > FILE_MAX {
        return Err(SpecError::TooLong(name.to_owned()));
    }
    let text = String::from_utf8(bytes).map_err(|_| unreadable("it is not UTF-8".to_owned()))?;
    read(name, &text)
}

/// A list of the built-in specs, for errors.
fn known_ones() -> String {
    let names: Vec<_> = KNOWN.iter().map(|(name, _)| *name).collect();
    format!("; the agent has {}", names.join(", "))
}

#[cfg(test)]
mod tests;
