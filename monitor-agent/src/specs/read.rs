//! Parses a file's text into a [`Spec`], or finds the place of the error in it.

use std::ops::{Range, RangeInclusive};

use serde::de::DeserializeOwned;
use toml::Spanned;

use super::{
    Comparison, FILE_MAX, LABELS_MAX, OPERATIONS_MAX, Operation, Origin, Source, Spec, SpecError, TEXTS_MAX,
    go, names, native,
    written::{OtherSource, Written, WrittenLabels, WrittenSource},
};

/// Keys that only the files of built-in frameworks have. The error for such a key in a spec says so.
pub const FRAMEWORK_KEYS: [&str; 33] = [
    "also_finish",
    "begins_if",
    "ends_once",
    "error_finish",
    "errors",
    "first_if",
    "home",
    "in_place_of",
    "key_at",
    "messages",
    "metrics",
    "not_within",
    "oneway",
    "only_if",
    "open_interfaces",
    "panicked",
    "peer",
    "protocol",
    "protocols",
    "received_bytes",
    "recorded",
    "retries",
    "sent_bytes",
    "starts_as",
    "status",
    "stream",
    "streaming",
    "streams",
    "title",
    "told_by",
    "unary",
    "untold",
    "when",
];
/// Stands in place of a path to a number: the number is in the words of the finish.
const ARGUMENT: &str = "argument";
/// The maximum length of a help text or a fixed label value, in bytes.
const TEXT_MAX: usize = 256;
/// The error of `toml` for a table where an array of tables is expected.
const NOT_SEVERAL: &str = "invalid type: map, expected a sequence";
/// Why `first_start` can't be used with `returns`.
pub(super) const NOT_FIRST_START: &str =
    "a call that panics has no return and would leave its start to a later one: first_start needs a finish";

/// Reads a spec. `file` is its name in errors.
pub fn read(file: &str, text: &str) -> Result<Spec, SpecError> {
    let spec = of_text(file, text, spec).map_err(explained)?;
    Ok(Spec { origin: Origin { file: file.to_owned(), text: text.to_owned() }, ..spec })
}

/// Adds to the error for an unknown key that built-in frameworks have it.
fn explained(mut error: SpecError) -> SpecError {
    if let SpecError::At { what, .. } = &mut error {
        let key = what.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
        if let Some(key) = key.filter(|key| FRAMEWORK_KEYS.contains(key)) {
            *what = format!("only the frameworks that the agent has itself have the key {key} here: {what}");
        }
    }
    error
}

/// Parses a file's text, and converts it with `make`.
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
        place(file, text, at, &in_brackets(text, at, error.message()))
    })?;
    make(written).map_err(|Wrong { at, what }| place(file, text, at.start, &what))
}

/// Adds to the error for a single table, which has a header or is written inline, how to write an array of tables.
fn in_brackets(text: &str, at: usize, what: &str) -> String {
    if what != NOT_SEVERAL {
        return what.to_owned();
    }
    let table = text.get(at..).unwrap_or_default();
    let header = table.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let how = match header {
        Some((name, _)) => format!(", so write two brackets, as in [[{}]]", name.trim()),
        None if table.starts_with('{') => ", so write brackets around it, as in [{ … }]".to_owned(),
        None => String::new(),
    };
    format!("{what}: there may be several of these{how}")
}

/// Creates the error for a byte of the text.
fn place(file: &str, text: &str, at: usize, what: &str) -> SpecError {
    let (line, column) = position(text, at);
    SpecError::At { file: file.to_owned(), line, column, what: what.lines().collect::<Vec<_>>().join("; ") }
}

/// Line and column of a byte of the text, counted from 1.
pub(super) fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    let column = before.get(line_start..).map_or(0, |line| line.chars().count()) + 1;
    (before.matches('\n').count() + 1, column)
}

/// An error, and its place in the text.
pub(crate) struct Wrong {
    at: Range<usize>,
    what: String,
}

/// Returns an error at a value.
pub(crate) fn wrong<T, V>(at: &Spanned<T>, what: impl Into<String>) -> Result<V, Wrong> {
    Err(Wrong { at: at.span(), what: what.into() })
}

/// Adds the place of a value to the error about it.
pub(crate) fn check<T>(value: &Spanned<T>, found: Result<(), String>) -> Result<(), Wrong> {
    found.map_err(|what| Wrong { at: value.span(), what })
}

fn spec(written: Written) -> Result<Spec, Wrong> {
    check(&written.name, names::metric(written.name.get_ref()))?;
    let help = written.help.as_ref().map(short).transpose()?.unwrap_or_default();
    let module = written.module.as_ref().map(short).transpose()?.unwrap_or_default();
    let (labels, operations) = match (&written.operation, &written.native) {
        (Some(operations), None) => {
            let (labels, read) = each(operations, |written| &written.labels, go::operation)?;
            told_apart(&read, operations)?;
            (labels, read)
        }
        (None, Some(operations)) if module.is_empty() => {
            each(operations, |written| &written.labels, native::operation)?
        }
        (None, Some(operations)) => {
            return wrong(operations, "only Go programs say which modules they are made of");
        }
        _ => return wrong(&written.name, "a spec has operations of Go functions, or of native functions"),
    };
    let origin = Origin::default();
    Ok(Spec { name: written.name.into_inner(), help, module, labels, operations, origin })
}

/// Returns the names of the labels, which all operations must have, and the operations.
fn each<W>(
    written: &Spanned<Vec<Spanned<W>>>,
    labels_of: impl Fn(&W) -> &WrittenLabels,
    read: impl Fn(&Spanned<W>) -> Result<Operation, Wrong>,
) -> Result<(Vec<String>, Vec<Operation>), Wrong> {
    let operations = written.get_ref();
    if operations.is_empty() || operations.len() > OPERATIONS_MAX {
        return wrong(written, format!("a spec has from 1 to {OPERATIONS_MAX} operations"));
    }
    let mut labels: Option<Vec<String>> = None;
    let mut read_ones = Vec::new();
    for operation in operations {
        let names: Vec<_> =
            labels_of(operation.get_ref()).keys().map(|name| name.get_ref().clone()).collect();
        if labels.as_ref().is_some_and(|labels| *labels != names) {
            return wrong(operation, "all operations of a spec have the same labels: this one has others");
        }
        labels = Some(names);
        read_ones.push(read(operation)?);
    }
    Ok((labels.unwrap_or_default(), read_ones))
}

/// Refuses several operations of Go functions if one of them has patterns or `returns`.
fn told_apart<W>(operations: &[Operation], written: &Spanned<Vec<Spanned<W>>>) -> Result<(), Wrong> {
    let mut several = operations.iter().zip(written.get_ref()).filter(|(one, _)| go::spans_several(one));
    match several.next().filter(|_| operations.len() > 1) {
        Some((_, several)) => wrong(
            several,
            "patterns and returns need a spec of their own: what is entered must tell operations apart",
        ),
        None => Ok(()),
    }
}

/// The places of the labels' values in the file.
pub(super) fn label_places(labels: &WrittenLabels) -> Vec<usize> {
    labels.values().map(|value| value.span().start).collect()
}

/// Reads the values of labels with `source`. Refuses more than the programs can read, with the place of the first
/// that is too much.
pub(super) fn sources(
    labels: &WrittenLabels,
    source: impl Fn(&Spanned<WrittenSource>) -> Result<Source, Wrong>,
) -> Result<Vec<Source>, Wrong> {
    if let Some(extra) = labels.keys().nth(LABELS_MAX) {
        return wrong(extra, format!("a spec has at most {LABELS_MAX} labels"));
    }
    let (mut texts, mut numbers) = (0, 0);
    let mut sources = Vec::new();
    for (name, value) in labels {
        check(name, names::label(name.get_ref()))?;
        let found = source(value)?;
        match found {
            Source::Name(_) => texts += 1,
            Source::Number { .. } => numbers += 1,
            Source::Text(_) | Source::Outcome(_) => {}
        }
        if texts > TEXTS_MAX || numbers > 1 {
            let what = format!("at most {TEXTS_MAX} strings and one number are read for an operation");
            return wrong(value, what);
        }
        sources.push(found);
    }
    Ok(sources)
}

/// Checks that a text is short and has no control characters.
pub(crate) fn short(text: &Spanned<String>) -> Result<String, Wrong> {
    if text.get_ref().len() > TEXT_MAX || text.get_ref().chars().any(char::is_control) {
        return wrong(text, format!("give one line of at most {TEXT_MAX} bytes"));
    }
    Ok(text.get_ref().clone())
}

pub(super) fn source(value: &Spanned<WrittenSource>) -> Result<Source, Wrong> {
    let other = match value.get_ref() {
        WrittenSource::Path(path) => {
            check(value, names::path(path))?;
            return Ok(Source::Name(path.clone()));
        }
        WrittenSource::Other(other) => other,
    };
    says_one_thing(value, other)?;
    match (&other.number, &other.text, &other.outcome) {
        (Some(path), _, _) => {
            let path = (path != ARGUMENT).then(|| path.clone());
            if let Some(path) = &path {
                check(value, names::path(path))?;
            }
            Ok(Source::Number { path, zero: other.zero.clone() })
        }
        (None, Some(text), _) => Ok(Source::Text(text.clone())),
        (None, None, outcome) => Ok(Source::Outcome(outcome.clone().unwrap_or_default())),
    }
}

/// Refuses a label's table unless it has exactly one meaning and its texts are short.
pub(super) fn says_one_thing(value: &Spanned<WrittenSource>, other: &OtherSource) -> Result<(), Wrong> {
    let mut texts = other.text.iter().chain(&other.zero).chain(other.outcome.iter().flatten());
    let is_short = texts.all(|text| text.len() <= TEXT_MAX);
    let is_one = match (&other.number, &other.zero, &other.text, &other.outcome) {
        (Some(_), _, None, None) => true,
        (None, None, text, outcome) => text.is_some() != outcome.is_some(),
        _ => false,
    };
    if is_one && is_short {
        return Ok(());
    }
    let what = format!(
        "give a path, or a table with one of number (and zero), text and outcome; texts have at most {TEXT_MAX} bytes"
    );
    wrong(value, what)
}

/// Parses a comparison with a number in this range.
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
