//! From a file's text to a [`Spec`], or to what is wrong in it and where.

use std::{
    collections::BTreeMap,
    fmt,
    ops::{Range, RangeInclusive},
};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor, value::MapAccessDeserializer},
};
use toml::Spanned;

use super::{
    ALTERNATIVES_MAX, Comparison, Entry, FILE_MAX, Finish, Key, LABELS_MAX, MATCHES_MAX, OPERATIONS_MAX,
    Operation, POINTERS_MAX, Policy, Source, Spec, SpecError, TEXTS_MAX, Words, names,
    native::{self, WrittenNative},
};
use crate::frameworks::{FRAMEWORK_KEYS, Side};

/// In place of a path to a number: it is among the words of the finish.
const ARGUMENT: &str = "argument";
/// Longest help text, and longest fixed value of a label.
const TEXT_MAX: usize = 256;

/// Reads a spec. `file` is what errors call it.
pub fn read(file: &str, text: &str) -> Result<Spec, SpecError> {
    of_text(file, text, spec).map_err(explained)
}

/// Adds why a key is not known, where the agent's own frameworks have it.
fn explained(mut error: SpecError) -> SpecError {
    if let SpecError::At { what, .. } = &mut error {
        let key = what.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
        if let Some(key) = key.filter(|key| FRAMEWORK_KEYS.contains(key)) {
            *what = format!("only the frameworks that the agent has itself have the key {key} here: {what}");
        }
    }
    error
}

/// Reads what a file's text says, and makes something of it.
pub(crate) fn of_text<W: DeserializeOwned, T>(
    file: &str,
    text: &str,
    make: impl FnOnce(W) -> Result<T, Wrong>,
) -> Result<T, SpecError> {
    if text.len() > FILE_MAX {
        return Err(SpecError::TooLong(file.to_owned()));
    }
    let written: W = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        place(file, text, at, error.message())
    })?;
    make(written).map_err(|Wrong { at, what }| place(file, text, at.start, &what))
}

/// The error at a byte of the text.
fn place(file: &str, text: &str, at: usize, what: &str) -> SpecError {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    SpecError::At {
        file: file.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before.get(line_start..).map_or(0, |line| line.chars().count()) + 1,
        what: what.lines().collect::<Vec<_>>().join("; "),
    }
}

/// What is wrong, and where in the text.
pub(crate) struct Wrong {
    at: Range<usize>,
    what: String,
}

/// Something wrong at a value.
pub(crate) fn wrong<T, V>(at: &Spanned<T>, what: impl Into<String>) -> Result<V, Wrong> {
    Err(Wrong { at: at.span(), what: what.into() })
}

/// Puts a place to what is wrong with a value.
pub(crate) fn check<T>(value: &Spanned<T>, found: Result<(), String>) -> Result<(), Wrong> {
    found.map_err(|what| Wrong { at: value.span(), what })
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: Spanned<String>,
    help: Option<Spanned<String>>,
    module: Option<Spanned<String>>,
    operation: Option<Spanned<Vec<Spanned<WrittenOperation>>>>,
    native: Option<Spanned<WrittenNative>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenOperation {
    name: Spanned<String>,
    #[serde(default)]
    side: WrittenSide,
    key: Spanned<WrittenKey>,
    policy: Option<Spanned<WrittenPolicy>>,
    start: Spanned<Vec<Spanned<WrittenEntry>>>,
    finish: Option<Spanned<Vec<Spanned<WrittenEntry>>>>,
    returns: Option<Spanned<WrittenWords>>,
    #[serde(default)]
    allow_expensive: bool,
    #[serde(default)]
    types: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    labels: BTreeMap<String, Spanned<WrittenSource>>,
    failed: Option<Spanned<String>>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WrittenSide {
    Client,
    #[default]
    Server,
}

impl From<WrittenSide> for Side {
    fn from(written: WrittenSide) -> Self {
        match written {
            WrittenSide::Client => Self::Client,
            WrittenSide::Server => Self::Server,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WrittenKey {
    Goroutine,
    Pointer,
    Number,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WrittenPolicy {
    Overwrite,
    FirstStart,
    FirstFinish,
    Nested,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenEntry {
    function: Spanned<String>,
    at_most: Option<Spanned<usize>>,
    arguments: Option<Spanned<String>>,
    key: Option<Spanned<usize>>,
    #[serde(default)]
    pointers: BTreeMap<String, Spanned<usize>>,
    error: Option<Spanned<usize>>,
    number: Option<Spanned<usize>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenWords {
    #[serde(default)]
    pointers: BTreeMap<String, Spanned<usize>>,
    error: Option<Spanned<usize>>,
    number: Option<Spanned<usize>>,
}

/// A path, or a table that says something else.
pub(super) enum WrittenSource {
    Path(String),
    Other(OtherSource),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OtherSource {
    pub(super) number: Option<String>,
    pub(super) zero: Option<String>,
    text: Option<String>,
    outcome: Option<[String; 2]>,
}

impl<'de> Deserialize<'de> for WrittenSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = WrittenSource;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path or a table")
            }

            fn visit_str<E>(self, path: &str) -> Result<WrittenSource, E> {
                Ok(WrittenSource::Path(path.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<WrittenSource, A::Error> {
                OtherSource::deserialize(MapAccessDeserializer::new(map)).map(WrittenSource::Other)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

fn spec(written: Written) -> Result<Spec, Wrong> {
    check(&written.name, names::metric(written.name.get_ref()))?;
    let help = written.help.as_ref().map(short).transpose()?.unwrap_or_default();
    let module = written.module.as_ref().map(short).transpose()?.unwrap_or_default();
    let operation = match (written.operation, written.native) {
        (Some(operation), None) => operation,
        (None, Some(native)) if written.module.is_none() => {
            let operation = native::operation(&native)?;
            let labels = native.get_ref().labels.keys().cloned().collect();
            let name = written.name.into_inner();
            return Ok(Spec { name, help, module, labels, operations: vec![operation] });
        }
        (None, Some(native)) => return wrong(&native, "only Go programs say which modules they are made of"),
        _ => {
            return wrong(&written.name, "a spec has operations of Go functions, or one of native functions");
        }
    };
    let operations = operation.get_ref();
    if operations.is_empty() || operations.len() > OPERATIONS_MAX {
        return wrong(&operation, format!("a spec has from 1 to {OPERATIONS_MAX} operations"));
    }
    let mut labels: Option<Vec<String>> = None;
    let mut read = Vec::new();
    for operation in operations {
        let names: Vec<_> = operation.get_ref().labels.keys().cloned().collect();
        if labels.as_ref().is_some_and(|labels| *labels != names) {
            return wrong(operation, "all operations of a spec have the same labels: this one has others");
        }
        labels = Some(names);
        read.push(self::operation(operation)?);
    }
    if read.len() > 1
        && let Some((_, several)) =
            read.iter().zip(operations).find(|(operation, _)| spans_several(operation))
    {
        let what =
            "patterns and returns need a spec of their own: what is entered must tell operations apart";
        return wrong(several, what);
    }
    Ok(Spec {
        name: written.name.into_inner(),
        help,
        module,
        labels: labels.unwrap_or_default(),
        operations: read,
    })
}

fn spans_several(operation: &Operation) -> bool {
    matches!(operation.finish, Finish::Returned(_))
        || operation.entries().any(|entry| entry.at_most.is_some())
}

/// A text that is not too long and has no control characters.
pub(crate) fn short(text: &Spanned<String>) -> Result<String, Wrong> {
    if text.get_ref().len() > TEXT_MAX || text.get_ref().chars().any(char::is_control) {
        return wrong(text, format!("give one line of at most {TEXT_MAX} bytes"));
    }
    Ok(text.get_ref().clone())
}

fn operation(spanned: &Spanned<WrittenOperation>) -> Result<Operation, Wrong> {
    let written = spanned.get_ref();
    let (key, policy) = key_and_policy(written)?;
    let needs_key = key != Key::Goroutine;
    let start = entries(&written.start, needs_key, false)?;
    let finish = match (&written.finish, &written.returns) {
        (Some(finish), None) => Finish::Entered(entries(finish, needs_key, true)?),
        (None, Some(returns)) => Finish::Returned(self::returns(written, returns, key)?),
        _ => return wrong(spanned, "an operation ends where it says with one of finish and returns"),
    };
    if written.allow_expensive && matches!(finish, Finish::Entered(_)) {
        return wrong(spanned, "allow_expensive is for returns: there are none");
    }
    let mut types = BTreeMap::new();
    for (pointer, name) in &written.types {
        check(name, names::symbol(name.get_ref(), "type"))?;
        if name.get_ref().starts_with('(') {
            return wrong(
                name,
                "only the frameworks that the agent has itself have ways to types: write a full name",
            );
        }
        types.insert(pointer.clone(), name.get_ref().clone());
    }
    let failed = written.failed.as_ref().map(|text| comparison(text, 0..=u32::MAX.into())).transpose()?;
    let operation = Operation {
        name: short(&written.name)?,
        side: written.side.into(),
        key,
        policy,
        start,
        finish,
        types,
        labels: sources(written)?,
        failed,
        native: None,
    };
    every_word(&operation, spanned)?;
    Ok(operation)
}

fn key_and_policy(written: &WrittenOperation) -> Result<(Key, Policy), Wrong> {
    let key = match written.key.get_ref() {
        WrittenKey::Goroutine => Key::Goroutine,
        WrittenKey::Pointer => Key::Pointer,
        WrittenKey::Number => Key::Number,
    };
    let Some(chosen) = &written.policy else { return Ok((key, Policy::Overwrite)) };
    let policy = match chosen.get_ref() {
        WrittenPolicy::Overwrite => Policy::Overwrite,
        WrittenPolicy::FirstStart => Policy::FirstStart,
        WrittenPolicy::FirstFinish => Policy::FirstFinish,
        WrittenPolicy::Nested => Policy::Nested,
    };
    if policy != Policy::Nested {
        return Ok((key, policy));
    }
    if key != Key::Goroutine {
        return wrong(chosen, "only operations of a goroutine nest: the key must be `goroutine`");
    }
    if matches!(written.side, WrittenSide::Server) {
        return wrong(chosen, "nested operations are the target's own: write side = \"client\"");
    }
    Ok((key, policy))
}

fn entries(
    written: &Spanned<Vec<Spanned<WrittenEntry>>>,
    needs_key: bool,
    is_finish: bool,
) -> Result<Vec<Entry>, Wrong> {
    let entries = written.get_ref();
    if entries.is_empty() || entries.len() > ALTERNATIVES_MAX {
        return wrong(written, format!("give from 1 to {ALTERNATIVES_MAX} functions to choose from"));
    }
    entries.iter().map(|entry| self::entry(entry, needs_key, is_finish)).collect()
}

pub(crate) fn entry(
    spanned: &Spanned<WrittenEntry>,
    needs_key: bool,
    is_finish: bool,
) -> Result<Entry, Wrong> {
    let written = spanned.get_ref();
    let function = &written.function;
    check(function, names::symbol(function.get_ref(), "function"))?;
    match (&written.at_most, function.get_ref().contains('*') && !is_method(function.get_ref())) {
        (None, true) => return wrong(function, "a pattern needs at_most: how many functions it may match"),
        (Some(limit), _) if !(1..=MATCHES_MAX).contains(limit.get_ref()) => {
            return wrong(limit, format!("a pattern may match from 1 to {MATCHES_MAX} functions"));
        }
        _ => {}
    }
    let words = Words {
        key: written.key.as_ref().map(|word| *word.get_ref()),
        ..words(&written.pointers, written.error.as_ref(), written.number.as_ref())?
    };
    if needs_key != words.key.is_some() {
        let what =
            if needs_key { "say which word of its arguments is the key" } else { "the key is the goroutine" };
        return wrong(spanned, what);
    }
    if !is_finish && (!words.pointers.is_empty() || words.error.is_some() || words.number.is_some()) {
        return wrong(spanned, "names and outcome are read at the finish: a start has a key only");
    }
    let arguments = arguments(spanned, &words)?;
    let at_most = written.at_most.as_ref().map(|limit| *limit.get_ref());
    Ok(Entry { function: function.get_ref().clone(), at_most, arguments, words })
}

/// Whether the only stars of a name are those of methods' receivers, as in `pkg.(*T).Method`.
fn is_method(name: &str) -> bool {
    name.matches('*').count() == name.matches("(*").count() && !name.contains("(*)")
}

/// Which arguments an entry has. Those that it says the meaning of must be among them.
fn arguments(spanned: &Spanned<WrittenEntry>, words: &Words) -> Result<String, Wrong> {
    let written = spanned.get_ref();
    let Some(arguments) = &written.arguments else {
        if *words == Words::default() {
            return Ok(String::new());
        }
        let what = "say how its arguments lie, as in arguments = \"w{ww}\": `spec check --exe` tells what a program has";
        return wrong(spanned, what);
    };
    check(arguments, names::arguments(arguments.get_ref()))?;
    let known = names::words(arguments.get_ref());
    let places = [&written.key, &written.error, &written.number].into_iter().flatten();
    for place in places.chain(written.pointers.values()) {
        if *place.get_ref() >= known.len() {
            return wrong(
                place,
                format!("there are {} words in `{}`, counted from 0", known.len(), arguments.get_ref()),
            );
        }
    }
    let is_word = |word: usize| known.get(word).is_some_and(|(whole, _)| *whole);
    let pointer = written.pointers.values().find(|word| !is_word(*word.get_ref()));
    if let Some(word) = pointer.or(written.key.as_ref().filter(|word| !is_word(*word.get_ref()))) {
        return wrong(word, "this word has fewer than 8 bytes");
    }
    let is_pair = |word: usize| known.get(word).is_some_and(|(_, first)| *first);
    if let Some(error) = written.error.as_ref().filter(|word| !is_pair(*word.get_ref())) {
        return wrong(error, "an error has two words, as in {ww}: give the number of the first");
    }
    Ok(arguments.get_ref().clone())
}

fn returns(written: &WrittenOperation, returns: &Spanned<WrittenWords>, key: Key) -> Result<Words, Wrong> {
    if !written.allow_expensive {
        let what = "the kernel steps through each return, which takes the target 10 µs and more on a virtual machine: \
                    if that is fine, write allow_expensive = true";
        return wrong(returns, what);
    }
    if key != Key::Goroutine {
        return wrong(
            &written.key,
            "a function returns on the goroutine that entered it: the key must be `goroutine`",
        );
    }
    let found = returns.get_ref();
    let words = words(&found.pointers, found.error.as_ref(), found.number.as_ref())?;
    let places = found.error.iter().chain(&found.number).chain(found.pointers.values());
    if let Some(place) = places.into_iter().find(|place| *place.get_ref() >= super::REGISTERS) {
        return wrong(
            place,
            format!("only the first {} words of results are in registers", super::REGISTERS),
        );
    }
    Ok(words)
}

fn words(
    pointers: &BTreeMap<String, Spanned<usize>>,
    error: Option<&Spanned<usize>>,
    number: Option<&Spanned<usize>>,
) -> Result<Words, Wrong> {
    if let Some(extra) = pointers.values().nth(POINTERS_MAX) {
        return wrong(extra, format!("paths can begin at {POINTERS_MAX} pointers at most"));
    }
    if let (Some(_), Some(number)) = (error, number) {
        return wrong(number, "an operation is told by an error or by a number, not both");
    }
    Ok(Words {
        key: None,
        pointers: pointers.iter().map(|(name, word)| (name.clone(), *word.get_ref())).collect(),
        error: error.map(|word| *word.get_ref()),
        number: number.map(|word| *word.get_ref()),
    })
}

fn sources(written: &WrittenOperation) -> Result<Vec<Source>, Wrong> {
    if let Some(extra) = written.labels.values().nth(LABELS_MAX) {
        return wrong(extra, format!("a spec has at most {LABELS_MAX} labels"));
    }
    let mut sources = Vec::new();
    for (name, value) in &written.labels {
        check(value, names::label(name))?;
        sources.push(source(value)?);
    }
    let count = |is: fn(&Source) -> bool| sources.iter().filter(|source| is(source)).count();
    if count(|source| matches!(source, Source::Name(_))) > TEXTS_MAX
        || count(|source| matches!(source, Source::Number { .. })) > 1
    {
        return wrong(
            &written.start,
            format!("at most {TEXTS_MAX} strings and one number are read for an operation"),
        );
    }
    Ok(sources)
}

pub(super) fn source(value: &Spanned<WrittenSource>) -> Result<Source, Wrong> {
    let other = match value.get_ref() {
        WrittenSource::Path(path) => {
            check(value, names::path(path))?;
            return Ok(Source::Name(path.clone()));
        }
        WrittenSource::Other(other) => other,
    };
    let texts = other.text.iter().chain(&other.zero).chain(other.outcome.iter().flatten());
    let is_short = texts.into_iter().all(|text| text.len() <= TEXT_MAX);
    match (&other.number, &other.zero, &other.text, &other.outcome) {
        (Some(path), zero, None, None) if is_short => {
            let path = (path != ARGUMENT).then(|| path.clone());
            if let Some(path) = &path {
                check(value, names::path(path))?;
            }
            Ok(Source::Number { path, zero: zero.clone() })
        }
        (None, None, Some(text), None) if is_short => Ok(Source::Text(text.clone())),
        (None, None, None, Some(texts)) if is_short => Ok(Source::Outcome(texts.clone())),
        _ => {
            let what = format!(
                "give a path, or a table with one of number (and zero), text and outcome; texts have at most {TEXT_MAX} \
                 bytes"
            );
            wrong(value, what)
        }
    }
}

/// A comparison with a number that can be there.
pub(crate) fn comparison(text: &Spanned<String>, numbers: RangeInclusive<i64>) -> Result<Comparison, Wrong> {
    let parts = text.get_ref().trim().split_once(' ');
    let parsed = parts.and_then(|(op, number)| {
        let number = number.trim().parse().ok().filter(|number| numbers.contains(number))?;
        Some(match op {
            "==" => Comparison::Equal(number),
            "!=" => Comparison::Not(number),
            ">=" => Comparison::AtLeast(number),
            "<" => Comparison::Below(number),
            _ => return None,
        })
    });
    match parsed {
        Some(comparison) => Ok(comparison),
        None => wrong(text, "write ==, !=, >= or <, a space and a number, as in \">= 500\""),
    }
}

/// Refuses names that nothing has, and what is asked for without saying where it is.
fn every_word(operation: &Operation, spanned: &Spanned<WrittenOperation>) -> Result<(), Wrong> {
    let written = spanned.get_ref();
    let ends: Vec<&Words> = match &operation.finish {
        Finish::Entered(entries) => entries.iter().map(|entry| &entry.words).collect(),
        Finish::Returned(words) => vec![words],
    };
    let is_pointer = |name: &str| ends.iter().all(|words| words.pointers.iter().any(|(of, _)| of == name));
    for (pointer, name) in &written.types {
        if !is_pointer(pointer) {
            return wrong(name, format!("there is no pointer {pointer} at each finish"));
        }
    }
    let mut has_number = ends.iter().all(|words| words.number.is_some());
    for (source, value) in operation.labels.iter().zip(written.labels.values()) {
        if let Some(path) = source.path() {
            let root = path.split('.').next().unwrap_or_default();
            if !is_pointer(root) || !operation.types.contains_key(root) {
                let what = format!("`{root}` must be in the pointers of each finish, and its type in types");
                return wrong(value, what);
            }
        }
        match source {
            Source::Number { path: Some(_), .. } if ends.iter().any(|words| words.number.is_some()) => {
                return wrong(value, "there is one number at the most: this one, or that of the finish");
            }
            Source::Number { path: None, .. } if !has_number => {
                return wrong(value, "each finish must say which word is the number");
            }
            Source::Number { .. } => has_number = true,
            Source::Name(_) | Source::Text(_) | Source::Outcome(_) => {}
        }
    }
    if let Some(failed) = written.failed.as_ref().filter(|_| !has_number) {
        return wrong(failed, "there is no number to compare");
    }
    let is_told = operation.failed.is_some() || ends.iter().all(|words| words.error.is_some());
    let outcome = operation.labels.iter().zip(written.labels.values());
    let mut outcome = outcome.filter(|(source, _)| matches!(source, Source::Outcome(_)));
    if let Some((_, value)) = outcome.next().filter(|_| !is_told) {
        return wrong(
            value,
            "each finish must say which word is the error, or `failed` must compare a number",
        );
    }
    Ok(())
}
