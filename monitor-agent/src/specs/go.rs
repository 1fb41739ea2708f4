//! Reads a spec's operations of Go functions.

use std::collections::BTreeMap;

use toml::Spanned;

use super::{
    ALTERNATIVES_MAX, Comparison, Entry, Finish, Key, MATCHES_MAX, Operation, POINTERS_MAX, Policy,
    REGISTERS, Source, Words, glob, names,
    read::{NOT_FIRST_START, Wrong, check, comparison, label_places, short, source, sources, wrong},
    written::{WrittenEntry, WrittenKey, WrittenOperation, WrittenPolicy, WrittenSide, WrittenWords},
};

/// Whether it may have more sites than the programs distinguish.
pub(super) fn spans_several(operation: &Operation) -> bool {
    matches!(operation.finish, Finish::Returned(_))
        || operation.entries().any(|entry| entry.at_most.is_some())
}

/// Reads an operation.
pub(super) fn operation(spanned: &Spanned<WrittenOperation>) -> Result<Operation, Wrong> {
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
    let operation = Operation {
        name: short(&written.name)?,
        side: written.side.into(),
        key,
        policy,
        start,
        finish,
        types,
        type_places: written.types.values().map(|name| name.span().start).collect(),
        labels: sources(&written.labels, source)?,
        label_places: label_places(&written.labels),
        failed: failed(written)?,
        signed: written.signed,
        native: None,
    };
    every_word(&operation, spanned)?;
    Ok(operation)
}

/// Returns which numbers mean failure. Refuses a comparison with negative numbers, unless its numbers are signed.
fn failed(written: &WrittenOperation) -> Result<Option<Comparison>, Wrong> {
    let Some(text) = &written.failed else { return Ok(None) };
    let highest: i64 = if written.signed { i32::MAX.into() } else { u32::MAX.into() };
    let comparison = comparison(text, i32::MIN.into()..=highest)?;
    let is_about_signs = match comparison {
        Comparison::Below(number) => number <= 0,
        Comparison::Equal(number) | Comparison::Not(number) | Comparison::AtLeast(number) => number < 0,
    };
    if is_about_signs && !written.signed {
        return wrong(
            text,
            "numbers have no sign, so none is below 0: if they have one, write signed = true",
        );
    }
    Ok(Some(comparison))
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
    match (&written.at_most, glob::is_pattern_in_go(function.get_ref())) {
        (None, true) => return wrong(function, "a pattern needs at_most: how many functions it may match"),
        (Some(limit), _) if !(1..=MATCHES_MAX).contains(limit.get_ref()) => {
            return wrong(limit, format!("a pattern may match from 1 to {MATCHES_MAX} functions"));
        }
        _ => {}
    }
    let said = Said {
        key: written.key.as_ref(),
        pointers: &written.pointers,
        error: written.error.as_ref(),
        number: written.number.as_ref(),
    };
    let mut words = said.words()?;
    if needs_key != words.key.is_some() {
        let what =
            if needs_key { "say which word of its arguments is the key" } else { "the key is the goroutine" };
        return wrong(spanned, what);
    }
    if !is_finish && (!words.pointers.is_empty() || words.error.is_some() || words.number.is_some()) {
        return wrong(spanned, "names and outcome are read at the finish: a start has a key only");
    }
    let arguments = arguments(spanned, said, &words)?;
    words.number_width = said.number_width(&arguments);
    let at_most = written.at_most.as_ref().map(|limit| *limit.get_ref());
    let place = function.span().start;
    Ok(Entry { function: function.get_ref().clone(), at_most, arguments, words, place })
}

/// Returns the arguments of an entry. They must include the words that the entry gives a meaning.
fn arguments(spanned: &Spanned<WrittenEntry>, said: Said<'_>, words: &Words) -> Result<String, Wrong> {
    let Some(arguments) = &spanned.get_ref().arguments else {
        if *words == Words::default() {
            return Ok(String::new());
        }
        let what = "say how its arguments lie, the receiver first, as in arguments = \"w{ww}\": where a program has others, \
                    `spec check --exe` says which";
        return wrong(spanned, what);
    };
    said.check(arguments)?;
    Ok(arguments.get_ref().clone())
}

/// The words of a function's arguments or results that a file gives a meaning.
#[derive(Clone, Copy)]
struct Said<'a> {
    key: Option<&'a Spanned<usize>>,
    pointers: &'a BTreeMap<String, Spanned<usize>>,
    error: Option<&'a Spanned<usize>>,
    number: Option<&'a Spanned<usize>>,
}

impl Said<'_> {
    /// Returns the words. The caller sets the width of the number.
    fn words(self) -> Result<Words, Wrong> {
        if let Some(extra) = self.pointers.values().nth(POINTERS_MAX) {
            return wrong(extra, format!("paths can begin at {POINTERS_MAX} pointers at most"));
        }
        if let (Some(_), Some(number)) = (self.error, self.number) {
            return wrong(number, "an operation is told by an error or by a number, not both");
        }
        Ok(Words {
            key: self.key.map(|word| *word.get_ref()),
            pointers: self.pointers.iter().map(|(name, word)| (name.clone(), *word.get_ref())).collect(),
            error: self.error.map(|word| *word.get_ref()),
            number: self.number.map(|word| *word.get_ref()),
            number_width: 0,
        })
    }

    /// Refuses words that do not exist in `lying`, the layout of the arguments, or have another kind there.
    fn check(self, lying: &Spanned<String>) -> Result<(), Wrong> {
        let text = lying.get_ref();
        check(lying, names::arguments(text))?;
        let known = names::words(text);
        let in_registers = names::in_registers(text);
        let places = [self.key, self.error, self.number].into_iter().flatten();
        for place in places.chain(self.pointers.values()) {
            if *place.get_ref() >= known.len() {
                return wrong(place, format!("there are {} words in `{text}`, counted from 0", known.len()));
            }
            if *place.get_ref() >= in_registers {
                let what = format!(
                    "only the first {in_registers} of these words are in the {REGISTERS} registers for them: one that has no \
                     room there lies on the stack whole"
                );
                return wrong(place, what);
            }
        }
        let is_short = |word: &&Spanned<usize>| known.get(*word.get_ref()).is_some_and(|(whole, _)| !*whole);
        if let Some(word) = self.pointers.values().chain(self.key).find(is_short) {
            return wrong(word, "this word has fewer than 8 bytes");
        }
        let is_pair = |word: usize| known.get(word).is_some_and(|(_, first)| *first);
        match self.error.filter(|word| !is_pair(*word.get_ref())) {
            Some(error) => wrong(error, "an error has two words, as in {ww}: give the number of the first"),
            None => Ok(()),
        }
    }

    /// The width of the number, in bytes; 0 if there is none.
    fn number_width(self, lying: &str) -> u8 {
        self.number.map_or(0, |word| names::width(lying, *word.get_ref()))
    }
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
    let policy = written.policy.as_ref();
    if let Some(policy) = policy.filter(|policy| matches!(policy.get_ref(), WrittenPolicy::FirstStart)) {
        return wrong(policy, NOT_FIRST_START);
    }
    let found = returns.get_ref();
    let said = Said {
        key: None,
        pointers: &found.pointers,
        error: found.error.as_ref(),
        number: found.number.as_ref(),
    };
    let mut words = said.words()?;
    let results = found.results.as_ref();
    words.number_width = said.number_width(results.map_or("", |text| text.get_ref().as_str()));
    if let Some(results) = results {
        said.check(results)?;
        return Ok(words);
    }
    // An error has two words.
    let error = found.error.iter().find(|word| *word.get_ref() + 1 >= REGISTERS);
    let mut places = found.number.iter().chain(found.pointers.values());
    if let Some(place) = error.or_else(|| places.find(|word| *word.get_ref() >= REGISTERS)) {
        return wrong(place, format!("only the first {REGISTERS} words of results are in registers"));
    }
    Ok(words)
}

/// Refuses unknown names, and labels for which some finish lacks the value.
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
    let is_short = ends.iter().any(|words| words.number.is_some() && words.number_width < 4);
    if written.signed && is_short {
        return wrong(spanned, "signed is for numbers of 4 or 8 bytes: this one has fewer");
    }
    let outcome = operation.labels.iter().zip(written.labels.values());
    let mut outcome = outcome.filter(|(source, _)| matches!(source, Source::Outcome(_)));
    if let Some((_, value)) = outcome.next().filter(|_| !operation.tells_outcome()) {
        return wrong(
            value,
            "each finish must say which word is the error, or `failed` must compare a number",
        );
    }
    Ok(())
}
