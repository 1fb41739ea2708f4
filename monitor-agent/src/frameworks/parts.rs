//! What the files of both kinds of frameworks have in common.

use std::collections::BTreeMap;

use toml::Spanned;

use super::{
    spec::{Alternatives, Family, Metrics, Way},
    written::{Choices, WrittenFamily, WrittenMetrics, WrittenQuestion},
};
use crate::specs::{
    self, ALTERNATIVES_MAX, Comparison, names,
    read::{Wrong, check, comparison, wrong},
    steps_of,
    written::WrittenEntry,
};

pub(super) fn metrics(written: &WrittenMetrics) -> Result<Metrics, Wrong> {
    few(&written.labels, specs::LABELS_MAX)?;
    let labels = written.labels.get_ref().iter().map(|label| {
        check(label, names::label(label.get_ref()))?;
        Ok(label.get_ref().clone())
    });
    let family = match written.family {
        WrittenFamily::Kitex => Family::Kitex,
        WrittenFamily::Grpc => Family::Grpc,
    };
    Ok(Metrics { family, labels: labels.collect::<Result<_, _>>()? })
}

/// Refuses what only users' specs can say about a function: patterns and numbers.
pub(super) fn no_user_words(
    written: &Spanned<WrittenEntry>,
    entry: specs::Entry,
) -> Result<specs::Entry, Wrong> {
    if entry.at_most.is_some() || entry.words.number.is_some() {
        return wrong(written, "a framework's functions have names, not patterns, and give no numbers");
    }
    Ok(entry)
}

/// Reads a question that must compare a number with `==`.
pub(super) fn equals(written: &WrittenQuestion, root: &str) -> Result<(Alternatives, u32), Wrong> {
    Ok((alternatives(&written.number, root)?, equal(&written.is)?))
}

pub(super) fn equal(written: &Spanned<String>) -> Result<u32, Wrong> {
    match comparison(written, 0..=u32::MAX.into())? {
        Comparison::Equal(number) => Ok(u32::try_from(number).unwrap_or(u32::MAX)),
        _ => wrong(written, "only == can be asked here"),
    }
}

/// A collection that has at least one entry, and a limit.
pub(super) trait Counted {
    fn count(&self) -> usize;
}

impl<T> Counted for Vec<T> {
    fn count(&self) -> usize {
        self.len()
    }
}

impl<K, V> Counted for BTreeMap<K, V> {
    fn count(&self) -> usize {
        self.len()
    }
}

pub(super) fn few<T: Counted>(written: &Spanned<T>, limit: usize) -> Result<(), Wrong> {
    if (1..=limit).contains(&written.get_ref().count()) {
        return Ok(());
    }
    wrong(written, format!("there are from 1 to {limit} of these"))
}

pub(super) fn few_choices(written: &Spanned<Choices>) -> Result<&[String], Wrong> {
    let choices = written.get_ref().as_slice();
    if (1..=ALTERNATIVES_MAX).contains(&choices.len()) {
        return Ok(choices);
    }
    wrong(written, format!("give from 1 to {ALTERNATIVES_MAX} to choose from"))
}

/// Checks paths, and strips the name of the pointer that they begin with.
pub(super) fn alternatives(written: &Spanned<Choices>, root: &str) -> Result<Alternatives, Wrong> {
    few_choices(written)?.iter().map(|path| below(written, path, root)).collect()
}

/// Checks a path, and strips the name of the pointer that it begins with.
pub(super) fn below<T>(written: &Spanned<T>, path: &str, root: &str) -> Result<String, Wrong> {
    check(written, names::path(path))?;
    match path.strip_prefix(root).and_then(|rest| rest.strip_prefix('.')) {
        Some(rest) => Ok(rest.to_owned()),
        None => wrong(written, format!("`{}` does not begin with {root}", path.escape_default())),
    }
}

/// Parses a way to a type: `(INTERFACE).(*TYPE)`, followed by fields.
pub(super) fn way<T>(written: &Spanned<T>, text: &str) -> Result<Way, Wrong> {
    let inside = |step: Option<&str>, open: &str| {
        step.and_then(|step| step.strip_prefix(open)?.strip_suffix(')')).map(str::to_owned)
    };
    let mut steps = steps_of(text);
    let (interface, concrete) = (inside(steps.next(), "("), inside(steps.next(), "(*"));
    let (Some(interface), Some(concrete)) = (interface, concrete) else {
        let text = text.escape_default();
        return wrong(
            written,
            format!("`{text}` is no way to a type: write (INTERFACE).(*TYPE), and fields"),
        );
    };
    check(written, names::symbol(&interface, "type"))?;
    check(written, names::symbol(&concrete, "type"))?;
    let fields: Vec<_> = steps.map(str::to_owned).collect();
    for step in fields.iter().filter(|step| *step != "()") {
        check(written, names::field(step))?;
    }
    if fields.len() > specs::STEPS_MAX {
        return wrong(written, format!("a way has at most {} steps", specs::STEPS_MAX));
    }
    Ok(Way { interface, concrete, fields })
}

pub(super) fn symbol(written: &Spanned<String>) -> Result<String, Wrong> {
    check(written, names::symbol(written.get_ref(), "type"))?;
    Ok(written.get_ref().clone())
}

pub(super) fn field(written: &Spanned<String>) -> Result<String, Wrong> {
    check(written, names::field(written.get_ref()))?;
    Ok(written.get_ref().clone())
}
