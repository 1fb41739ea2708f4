//! Specs of native functions, compiled from C, C++ or Rust.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::{
    ALTERNATIVES_MAX, Finish, Key, MATCHES_MAX, Operation, Policy, Side, Source, names,
    read::{
        NOT_FIRST_START, Wrong, check, comparison, label_places, says_one_thing, short, source, sources,
        wrong,
    },
    written::{WrittenLabels, WrittenSide, WrittenSource},
};

/// The number of arguments of a native function in registers.
const ARGUMENTS: usize = monitor_ebpf::word::ARGUMENTS as usize;
/// Stands in place of a path to a number: the number is an argument.
const ARGUMENT: &str = "argument";
/// Stands in place of a path to a number: the number is the function's result.
const RESULT: &str = "result";

/// The native functions of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Native {
    /// The alternative start functions. The first one that exists is used.
    pub start: Vec<NativeEntry>,
    /// Where it finishes.
    pub finish: NativeFinish,
}

/// Where an operation finishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NativeFinish {
    /// At the entry of the first of these functions that exists.
    Entered(Vec<NativeEntry>),
    /// At the return instructions of the functions that it starts in. The number returned, if one
    /// is read, has this width.
    Instructions(Option<Width>),
    /// At a return probe, which replaces the return address on the stack. The number returned, if one
    /// is read, has this width.
    Probe(Option<Width>),
}

/// The width of a returned number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Width {
    /// One byte.
    Bool,
    /// Four bytes.
    Int,
}

/// A native function, or a pattern for several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeEntry {
    /// Its name, mangled or demangled. With [`at_most`](Self::at_most), `*` stands for any text.
    pub function: String,
    /// The maximum number of functions that the pattern may match; `None` if it is no pattern.
    pub at_most: Option<usize>,
    /// The argument that is the key, counted from 0.
    pub key: Option<usize>,
    /// Arguments that are strings, by the names that labels use for them: index and form.
    pub texts: BTreeMap<String, (usize, Text)>,
    /// The argument that is a number, counted from 0.
    pub number: Option<usize>,
    /// The place of its name in the file: the first byte.
    pub place: usize,
}

/// The form of a string argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// A pointer to bytes that end with a zero byte.
    C,
    /// A pointer to a `std::string` of the C++11 ABI of libstdc++.
    Cxx11,
}

impl Native {
    /// All functions that it names.
    pub fn entries(&self) -> impl Iterator<Item = &NativeEntry> {
        self.start.iter().chain(self.finishes())
    }

    /// The functions that it finishes in, unless it finishes where its start functions return.
    #[must_use]
    pub fn finishes(&self) -> &[NativeEntry] {
        match &self.finish {
            NativeFinish::Entered(entries) => entries,
            NativeFinish::Instructions(_) | NativeFinish::Probe(_) => &[],
        }
    }

    /// The width of the returned number, if one is read.
    #[must_use]
    pub fn result(&self) -> Option<Width> {
        match self.finish {
            NativeFinish::Instructions(width) | NativeFinish::Probe(width) => width,
            NativeFinish::Entered(_) => None,
        }
    }
}

impl NativeEntry {
    /// Whether its name is a demangled one.
    #[must_use]
    pub fn is_of_source(&self) -> bool {
        names::is_of_source(&self.function)
    }

    /// Whether it matches a function, by its symbol or by one of its demangled names.
    #[must_use]
    pub fn is_like<'a>(&self, symbol: &str, in_source: impl FnOnce() -> &'a [String]) -> bool {
        if self.is_of_source() {
            return names::own_name(&self.function).is_none_or(|name| symbol.contains(name))
                && in_source().iter().any(|name| self.is_like_text(name));
        }
        self.is_like_text(symbol)
    }

    fn is_like_text(&self, name: &str) -> bool {
        match self.at_most {
            None => self.function == name,
            Some(_) => super::glob::is_like(&self.function, name),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenNative {
    name: Spanned<String>,
    #[serde(default)]
    side: WrittenSide,
    key: Spanned<WrittenKey>,
    policy: Option<Spanned<WrittenPolicy>>,
    start: Spanned<Vec<Spanned<WrittenEntry>>>,
    finish: Option<Spanned<Vec<Spanned<WrittenEntry>>>>,
    returns: Option<Spanned<WrittenReturns>>,
    #[serde(default)]
    allow_expensive: bool,
    #[serde(default)]
    nothing_is_thrown: bool,
    #[serde(default)]
    pub(super) labels: WrittenLabels,
    failed: Option<Spanned<String>>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WrittenKey {
    Thread,
    Pointer,
    Number,
    Int,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WrittenPolicy {
    Overwrite,
    FirstStart,
    FirstFinish,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenReturns {
    by: WrittenBy,
    number: Option<Width>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WrittenBy {
    Instructions,
    Probe,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenEntry {
    function: Spanned<String>,
    at_most: Option<Spanned<usize>>,
    key: Option<Spanned<usize>>,
    #[serde(default)]
    cstrings: BTreeMap<String, Spanned<usize>>,
    #[serde(default)]
    strings: BTreeMap<String, Spanned<usize>>,
    number: Option<Spanned<usize>>,
}

/// Reads an operation.
pub(super) fn operation(spanned: &Spanned<WrittenNative>) -> Result<Operation, Wrong> {
    let written = spanned.get_ref();
    let key = match written.key.get_ref() {
        WrittenKey::Thread => Key::Thread,
        WrittenKey::Pointer => Key::Pointer,
        WrittenKey::Number => Key::Number,
        WrittenKey::Int => Key::Int,
    };
    let start = entries(&written.start, key)?;
    let finish = match (&written.finish, &written.returns) {
        (Some(finish), None) => NativeFinish::Entered(entries(finish, key)?),
        (None, Some(returns)) => self::returns(written, returns, key)?,
        _ => return wrong(spanned, "an operation ends where it says with one of finish and returns"),
    };
    if written.allow_expensive && !matches!(finish, NativeFinish::Instructions(_)) {
        return wrong(spanned, "allow_expensive is for returns by instructions: there are none");
    }
    if written.nothing_is_thrown && !matches!(finish, NativeFinish::Probe(_)) {
        return wrong(spanned, "nothing_is_thrown is for returns by a probe: there are none");
    }
    let native = Native { start, finish };
    let labels = sources(&written.labels, |value| source_of(value, &native))?;
    let failed = written.failed.as_ref();
    let failed = failed.map(|text| comparison(text, i32::MIN.into()..=i32::MAX.into())).transpose()?;
    let operation = Operation {
        name: short(&written.name)?,
        side: Side::from(written.side),
        key,
        policy: match written.policy.as_ref().map(Spanned::get_ref) {
            None | Some(WrittenPolicy::Overwrite) => Policy::Overwrite,
            Some(WrittenPolicy::FirstStart) => Policy::FirstStart,
            Some(WrittenPolicy::FirstFinish) => Policy::FirstFinish,
        },
        start: Vec::new(),
        finish: Finish::Entered(Vec::new()),
        types: BTreeMap::new(),
        type_places: Vec::new(),
        labels,
        label_places: label_places(&written.labels),
        failed,
        signed: true,
        native: Some(native),
    };
    every_number(&operation, spanned)?;
    Ok(operation)
}

fn entries(written: &Spanned<Vec<Spanned<WrittenEntry>>>, key: Key) -> Result<Vec<NativeEntry>, Wrong> {
    let entries = written.get_ref();
    if entries.is_empty() || entries.len() > ALTERNATIVES_MAX {
        return wrong(written, format!("give from 1 to {ALTERNATIVES_MAX} functions to choose from"));
    }
    entries.iter().map(|entry| self::entry(entry, key)).collect()
}

fn entry(spanned: &Spanned<WrittenEntry>, key: Key) -> Result<NativeEntry, Wrong> {
    let written = spanned.get_ref();
    let function = &written.function;
    check(function, names::native_symbol(function.get_ref()))?;
    match &written.at_most {
        None if names::is_native_pattern(function.get_ref()) => {
            return wrong(function, "a pattern needs at_most: how many functions it may match");
        }
        Some(limit) if !(1..=MATCHES_MAX).contains(limit.get_ref()) => {
            return wrong(limit, format!("a pattern may match from 1 to {MATCHES_MAX} functions"));
        }
        _ => {}
    }
    let places = written.key.iter().chain(&written.number);
    let mut places = places.chain(written.cstrings.values()).chain(written.strings.values());
    if let Some(place) = places.find(|place| *place.get_ref() >= ARGUMENTS) {
        return wrong(
            place,
            format!("only the first {ARGUMENTS} arguments are in registers, counted from 0"),
        );
    }
    match (&written.key, key) {
        (None, Key::Thread) | (Some(_), Key::Pointer | Key::Number | Key::Int) => {}
        (Some(place), _) => return wrong(place, "the key is the thread"),
        (None, _) => return wrong(spanned, "say which argument is the key"),
    }
    let of = |texts: &BTreeMap<String, Spanned<usize>>, form| {
        texts.iter().map(|(name, place)| (name.clone(), (*place.get_ref(), form))).collect::<Vec<_>>()
    };
    let mut texts: BTreeMap<_, _> = of(&written.cstrings, Text::C).into_iter().collect();
    for (name, text) in of(&written.strings, Text::Cxx11) {
        if texts.insert(name.clone(), text).is_some() {
            return wrong(spanned, format!("`{name}` is a C string and a C++ string"));
        }
    }
    Ok(NativeEntry {
        function: function.get_ref().clone(),
        at_most: written.at_most.as_ref().map(|limit| *limit.get_ref()),
        key: written.key.as_ref().map(|place| *place.get_ref()),
        texts,
        number: written.number.as_ref().map(|place| *place.get_ref()),
        place: function.span().start,
    })
}

fn returns(
    written: &WrittenNative,
    returns: &Spanned<WrittenReturns>,
    key: Key,
) -> Result<NativeFinish, Wrong> {
    if key != Key::Thread {
        return wrong(
            &written.key,
            "a function returns on the thread that entered it: the key must be `thread`",
        );
    }
    let policy = written.policy.as_ref();
    if let Some(policy) = policy.filter(|policy| matches!(policy.get_ref(), WrittenPolicy::FirstStart)) {
        return wrong(policy, NOT_FIRST_START);
    }
    let number = returns.get_ref().number;
    match returns.get_ref().by {
        WrittenBy::Instructions if written.allow_expensive => Ok(NativeFinish::Instructions(number)),
        WrittenBy::Instructions => wrong(
            returns,
            "the kernel steps through each return, which takes the target 10 µs and more on a virtual machine: \
             if that is fine, write allow_expensive = true",
        ),
        WrittenBy::Probe if written.nothing_is_thrown => Ok(NativeFinish::Probe(number)),
        WrittenBy::Probe => wrong(
            returns,
            "an exception or a panic that leaves a function with a return probe ends the target, since the return address \
             on its stack is the kernel's: if none ever does, write nothing_is_thrown = true",
        ),
    }
}

/// Reads the value of a label.
fn source_of(value: &Spanned<WrittenSource>, native: &Native) -> Result<Source, Wrong> {
    match value.get_ref() {
        WrittenSource::Path(text) => {
            if is_at_each(&native.start, text) || is_at_each(native.finishes(), text) {
                return Ok(Source::Name(text.clone()));
            }
            wrong(value, format!("`{text}` is no string of each start, nor of each finish"))
        }
        WrittenSource::Other(other) => match other.number.as_deref() {
            None => source(value),
            Some(ARGUMENT | RESULT) => {
                says_one_thing(value, other)?;
                Ok(Source::Number { path: None, zero: other.zero.clone() })
            }
            Some(_) => wrong(value, "a number is an `argument` or the `result`"),
        },
    }
}

/// Whether every function has a string of this name.
fn is_at_each(entries: &[NativeEntry], text: &str) -> bool {
    !entries.is_empty() && entries.iter().all(|entry| entry.texts.contains_key(text))
}

/// Refuses numbers that are needed but missing, or given more than once.
fn every_number(operation: &Operation, spanned: &Spanned<WrittenNative>) -> Result<(), Wrong> {
    let written = spanned.get_ref();
    let Some(native) = &operation.native else { return Ok(()) };
    let at_each =
        |entries: &[NativeEntry]| !entries.is_empty() && entries.iter().all(|entry| entry.number.is_some());
    let arguments = [at_each(&native.start), at_each(native.finishes())];
    let is_argument = arguments.contains(&true);
    let is_result = native.result().is_some();
    if usize::from(is_result) + arguments.iter().filter(|there| **there).count() > 1 {
        return wrong(
            spanned,
            "there is one number at the most: an argument of the start or the finish, or the result",
        );
    }
    for value in written.labels.values() {
        let WrittenSource::Other(other) = value.get_ref() else { continue };
        match other.number.as_deref() {
            Some(ARGUMENT) if !is_argument => {
                return wrong(value, "each start or each finish must say which argument is the number");
            }
            Some(RESULT) if !is_result => {
                return wrong(value, "returns must say what number is returned: \"int\" or \"bool\"");
            }
            _ => {}
        }
    }
    if let Some(failed) = written.failed.as_ref().filter(|_| !is_argument && !is_result) {
        return wrong(failed, "there is no number to compare");
    }
    let mut outcomes = operation.labels.iter().zip(written.labels.values());
    match outcomes.find(|(source, _)| matches!(source, Source::Outcome(_))) {
        Some((_, value)) if operation.failed.is_none() => wrong(value, "`failed` must compare a number"),
        _ => Ok(()),
    }
}
