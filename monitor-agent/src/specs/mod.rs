//! What users tell the agent about functions that it does not know: operations, each with a start and an end, described
//! by names only. One file describes one family of metrics.
//!
//! [`read()`] makes a [`Spec`] of a file's text, with the place of whatever is wrong with it. What a spec names is found
//! and proven in an executable by the [plan](crate::plan), as what the agent knows itself is.

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

/// Longest file.
pub const FILE_MAX: usize = 64 << 10;
/// Operations of a spec.
pub const OPERATIONS_MAX: usize = monitor_ebpf::MAX_SHAPES;
/// Functions to choose from, over releases, for one end of an operation.
pub const ALTERNATIVES_MAX: usize = 8;
/// Functions that a pattern may match at most, whatever it says.
pub const MATCHES_MAX: usize = 64;
/// Steps of a path.
pub const STEPS_MAX: usize = 8;
/// Labels of a spec.
pub const LABELS_MAX: usize = 8;
/// Names among them that are read from memory.
pub const TEXTS_MAX: usize = monitor_ebpf::LABELS;
/// Arguments that paths can begin at.
pub const POINTERS_MAX: usize = 2;
/// Words of arguments and results that are in registers.
pub const REGISTERS: usize = 9;
/// Specs in one run.
pub const SPECS_MAX: usize = 16;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// What its metrics begin with.
    pub name: String,
    /// The help text of its metrics; empty for one that the agent makes.
    pub help: String,
    /// Path of the module whose version is shown; empty for none.
    pub module: String,
    /// Names of its labels.
    pub labels: Vec<String>,
    /// What is measured: at least one.
    pub operations: Vec<Operation>,
    /// What it was read from.
    pub origin: Origin,
}

/// The file that a spec was read from, to tell where in it something stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    file: String,
    text: String,
}

/// On which side of a call the target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It calls.
    Client,
    /// It is called.
    Server,
}

/// What begins in one function and ends in another, or in the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Name in `inspect`.
    pub name: String,
    /// Whether the target does it for others, or asks others for it.
    pub side: Side,
    /// What tells operations under way apart.
    pub key: Key,
    /// What a start does that meets another under its key, and a finish that meets none.
    pub policy: Policy,
    /// Where it starts: the first of these that is there.
    pub start: Vec<Entry>,
    /// Where it finishes.
    pub finish: Finish,
    /// Types of the pointers at the finish, by their names in paths.
    pub types: BTreeMap<String, String>,
    /// Where these stand in the file, in the order of the pointers: the first byte of each.
    pub type_places: Vec<usize>,
    /// Values of the spec's labels, in the order of their names.
    pub labels: Vec<Source>,
    /// Where these stand in the file: the first byte of each.
    pub label_places: Vec<usize>,
    /// Which numbers mean that it has failed.
    pub failed: Option<Comparison>,
    /// Whether its numbers have a sign.
    pub signed: bool,
    /// Its functions, where those are native: there are none of Go then.
    pub native: Option<Native>,
}

/// Where an operation finishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// At the entry of the first of these that is there.
    Entered(Vec<Entry>),
    /// Where the functions that it starts in return. Each return costs a step in the kernel.
    Returned(Words),
}

/// A function, or several whose names are like a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its full name, in which `*` stands for any text where [`at_most`](Self::at_most) says so, but for that of `(*T)`.
    pub function: String,
    /// How many functions the pattern may match. `None`: it is no pattern.
    pub at_most: Option<usize>,
    /// Its arguments, or the first of them, as [`GoImage::arguments`](crate::image::GoImage::arguments) writes them.
    pub arguments: String,
    /// Which of them are what.
    pub words: Words,
    /// Where its name stands in the file: the first byte.
    pub place: usize,
}

/// Which words of a function's arguments or results are what, counted from 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// The key, if it is not the goroutine.
    pub key: Option<usize>,
    /// Pointers, by their names in paths.
    pub pointers: Vec<(String, usize)>,
    /// The type word of an error.
    pub error: Option<usize>,
    /// A number.
    pub number: Option<usize>,
    /// How many bytes that has: 1, 2, 4 or 8. Of a result of which the spec does not say it, as if it were 8.
    pub number_width: u8,
}

/// What tells operations under way apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The goroutine, which starts and finishes it.
    Goroutine,
    /// A pointer that start and finish get.
    Pointer,
    /// A number below 2^60 that they get; below 2^57 where a spec has several operations.
    Number,
    /// Of native functions: the four bytes of a number that they get.
    Int,
    /// Of native functions: the thread, which starts and finishes it; the function's stack, where that it returns is the
    /// finish.
    Thread,
}

/// What happens where starts and finishes do not take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// A start takes the place of one that has not finished.
    Overwrite,
    /// The first start counts.
    FirstStart,
    /// A finish without a start is none.
    FirstFinish,
    /// Operations of a goroutine can begin inside others; the innermost finishes first.
    Nested,
}

/// Where the value of a label comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The string at the end of a path, which begins with the name of a pointer.
    Name(String),
    /// A number of at most 32 bits.
    Number {
        /// The path to it; `None` for the number among the words of the finish.
        path: Option<String>,
        /// What 0 is shown as, if not as itself.
        zero: Option<String>,
    },
    /// Always this text.
    Text(String),
    /// How it ended: the first text where it succeeded, the second where it failed.
    Outcome([String; 2]),
}

impl Source {
    /// The path that it lies at the end of.
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
    /// Whether it holds for a number.
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
    /// Where the first of its functions stands in the file: the first byte.
    #[must_use]
    pub fn place(&self) -> usize {
        let native = self.native.iter().flat_map(Native::entries).map(|entry| entry.place);
        self.entries().map(|entry| entry.place).chain(native).next().unwrap_or_default()
    }

    /// The functions that it finishes in, where those are others than it starts in.
    #[must_use]
    pub fn finishes(&self) -> &[Entry] {
        match &self.finish {
            Finish::Entered(entries) => entries,
            Finish::Returned(_) => &[],
        }
    }

    /// All functions of Go that it names.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.start.iter().chain(self.finishes())
    }

    /// The names of all its functions.
    fn functions(&self) -> impl Iterator<Item = &str> {
        let native = self.native.iter().flat_map(Native::entries).map(|entry| entry.function.as_str());
        self.entries().map(|entry| entry.function.as_str()).chain(native)
    }

    /// What a number that was read for it means.
    #[must_use]
    pub fn number(&self, read: u32) -> i64 {
        if self.signed { i64::from(read.cast_signed()) } else { i64::from(read) }
    }

    /// Whether any number may be what was read for it, as one in a register may. One in memory that has all bits set was
    /// not read.
    #[must_use]
    pub fn reads_any_number(&self) -> bool {
        match &self.finish {
            _ if self.native.is_some() => true,
            Finish::Entered(entries) => entries.iter().all(|entry| entry.words.number.is_some()),
            Finish::Returned(words) => words.number.is_some(),
        }
    }

    /// Whether it says which of them have failed.
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

    /// Whether it can't be told how an operation ended that has not failed for another reason: the number that says it
    /// was not read.
    #[must_use]
    pub fn is_untold(&self, number: Option<u32>) -> bool {
        self.failed.is_some() && number.is_none()
    }
}

impl Entry {
    /// Whether a function is meant.
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

    /// Whether it is about native functions.
    #[must_use]
    pub fn is_native(&self) -> bool {
        self.operations.iter().any(|operation| operation.native.is_some())
    }
}

/// What is wrong with a spec.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// Something at a place of the file, both counted from 1.
    #[error("{file}:{line}:{column}: {what}")]
    At {
        /// The file.
        file: String,
        /// Line.
        line: usize,
        /// Character in the line.
        column: usize,
        /// What.
        what: String,
    },
    /// The file can't be read.
    #[error("spec {file} can't be read: {why}")]
    Unreadable {
        /// The file.
        file: String,
        /// Why.
        why: String,
    },
    /// It is too long.
    #[error("spec {0} is longer than {FILE_MAX} bytes")]
    TooLong(String),
    /// It does not go with another.
    #[error("specs {0} and {1} {2}")]
    Together(String, String, String),
    /// There are too many.
    #[error("more than {SPECS_MAX} specs")]
    TooMany,
}

/// The specs of a run. None of them has the name or a function of another.
#[derive(Clone, Debug, Default)]
pub struct Specs(Vec<Arc<Spec>>);

impl Specs {
    /// Reads specs: files, or those that the agent has by a name of its own.
    pub fn load(names: &[String]) -> Result<Self, SpecError> {
        Self::of(names.iter().map(|name| load(name)).collect::<Result<_, _>>()?)
    }

    /// Specs that go together.
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

    /// Each with its number, which is small.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &Arc<Spec>)> {
        (0..).zip(&self.0)
    }

    /// The one with this number.
    #[must_use]
    pub fn get(&self, number: u8) -> Option<&Spec> {
        self.0.get(usize::from(number)).map(Arc::as_ref)
    }

    /// Whether one of them is about native functions, which a program may have that Go has not built.
    #[must_use]
    pub fn has_native(&self) -> bool {
        self.0.iter().any(|spec| spec.is_native())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The metrics and labels that a spec gives, for people.
#[must_use]
pub fn metrics_of(spec: &Spec) -> String {
    let labels = spec.labels.join(", ");
    format!("{0}_total and {0}_duration_seconds with the labels {labels}", spec.name)
}

/// Refuses two specs that would count into the same metrics, or count the same function.
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

/// The spec in a file, or the one that the agent has under this name.
fn load(name: &str) -> Result<Spec, SpecError> {
    if let Some((_, text)) = KNOWN.iter().find(|(known, _)| *known == name) {
        return read(name, text);
    }
    let unreadable = |why: String| SpecError::Unreadable { file: name.to_owned(), why };
    let mut bytes = Vec::new();
    let path = Path::new(name);
    // Looked at before it is opened: opening a pipe waits for its writer.
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

/// Said to someone who may have meant one of the agent's own.
fn known_ones() -> String {
    let names: Vec<_> = KNOWN.iter().map(|(name, _)| *name).collect();
    format!("; the agent has {}", names.join(", "))
}

#[cfg(test)]
mod tests;
