//! Operations of native functions that a user's spec describes, proven in an executable.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    ptr,
    sync::Arc,
};

use monitor_ebpf::{Native as NativeRecipe, form, moment, policy, word};

use super::{
    Refusal, Role, Site,
    alternatives::{Alternatives, any_of, one_kind, passed_over},
    shape::side_code,
    site::{no_site, site},
};
use crate::{
    image::{
        CodeError, CostClass, Demangler, Image, NativeFunction, Parts, SiteChoice, SiteKind, is_native_part,
        is_native_thunk, native_entry_site, native_original, return_sites,
    },
    specs::{
        ALTERNATIVES_MAX, Key, Native, NativeEntry, NativeFinish, OPERATIONS_MAX, Operation, Policy, Source,
        Spec, Text, Width,
    },
    text::printable,
};

/// Each entry of a spec has a bit in a `u64`.
const _: () = assert!(OPERATIONS_MAX * 2 * ALTERNATIVES_MAX <= u64::BITS as usize);

/// The part of the recipe for an operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct NativePlan(pub(super) NativeRecipe);

/// An operation that an executable has, its sites with the finishes first, and notes.
pub(super) struct Found {
    /// Its number in the spec.
    pub(super) number: u8,
    pub(super) operation: NativePlan,
    pub(super) sites: Vec<Site>,
    pub(super) notes: Vec<String>,
}

impl Found {
    /// Whether the other operation starts or finishes in a function that this one does not watch.
    fn has_not_all_of(&self, other: &Self) -> bool {
        let is_own =
            |site: &Site| self.sites.iter().any(|own| (own.role, own.entry) == (site.role, site.entry));
        !other.sites.iter().all(is_own)
    }
}

/// The maximum number of clones kept for notes.
const CLONES_MAX: usize = 64;
/// Advice on how to make gcc leave a function by its own return instructions only.
const WHOLE: &str = "; gcc builds it whole, without jumps to other functions, with -fno-reorder-blocks-and-partition and \
                     -fno-optimize-sibling-calls";
/// Advice on how to strip an executable and keep the symbols of parts.
const WITH_LOCAL: &str = "; `strip --strip-debug` keeps local symbols";
/// The maximum number of functions in a note, and the maximum length of a name, in characters.
const NOTED_MAX: usize = 4;
const SHOWN_MAX: usize = 200;

/// Finds everything that a spec of native functions names. If it has several operations, a
/// missing one becomes a note.
pub(super) fn find(spec: &Spec, image: &Image) -> Result<Vec<Found>, Refusal> {
    let functions = Functions::find(spec, image)?;
    let find = |number: u8, operation: &Operation| {
        let native = operation.native.as_ref().ok_or(Refusal::NoShape)?;
        find_operation((number, operation), native, (spec, &functions), image)
    };
    let Alternatives { mut found, mut notes } = Alternatives::find(&spec.operations, find)?;
    let is_elsewhere = |one: &Found, number: u8| {
        let other = spec.operations.get(usize::from(number)).map(|operation| find(number, operation));
        other.and_then(Result::ok).is_some_and(|other| one.has_not_all_of(&other))
    };
    notes.extend(passed_over(spec, &found, |one| usize::from(one.number), is_elsewhere));
    if let Some(first) = found.first_mut() {
        first.notes.extend(notes);
    }
    for (index, one) in found.iter().enumerate() {
        found.iter().take(index).try_for_each(|other| apart(other, one, (spec, &functions)))?;
    }
    let entries: BTreeSet<_> = found.iter().flat_map(|one| &one.sites).map(|site| site.entry).collect();
    let names = image.native_names(&entries)?;
    for Found { sites, notes, .. } in &mut found {
        let functions: BTreeMap<_, _> = sites.iter().map(|site| (site.entry, &*site.symbol)).collect();
        notes.extend(other_names(&functions, &names));
    }
    Ok(found)
}

/// A note about functions with several names, since the entered address does not show which name was called.
fn other_names(functions: &BTreeMap<u64, &str>, names: &BTreeMap<u64, BTreeSet<String>>) -> Option<String> {
    let also = |(entry, symbol): (&u64, &&str)| {
        let others = names.get(entry)?.iter().filter(|name| name.as_str() != *symbol);
        let others: Vec<_> = others.map(|name| shown(name)).collect();
        (!others.is_empty()).then(|| format!("{} is {} as well", shown(symbol), others.join(" and ")))
    };
    let all: Vec<_> = functions.iter().filter_map(also).collect();
    let (noted, more) = all.split_at(all.len().min(NOTED_MAX));
    let more = if more.is_empty() { String::new() } else { format!(" and {} functions more", more.len()) };
    let noted = noted.join(", ");
    (!noted.is_empty()).then(|| {
        format!(
            "calls by other names count, too, since those are at the same address, as aliases are and functions whose code is the \
             same, of which a linker may make one (--icf): {noted}{more}"
        )
    })
}

/// Refuses two operations that have a function in common.
fn apart(one: &Found, other: &Found, (spec, functions): (&Spec, &Functions<'_>)) -> Result<(), Refusal> {
    let is_shared = |site: &&Site| one.sites.iter().any(|known| known.entry == site.entry);
    let Some(site) = other.sites.iter().find(is_shared) else { return Ok(()) };
    let operation = |found: &Found| spec.operations.get(usize::from(found.number));
    let name = |found: &Found| operation(found).map_or("", |operation| &operation.name).to_owned();
    let entries = operation(other).and_then(|operation| operation.native.as_ref()).into_iter();
    let means =
        |entry: &&NativeEntry| functions.of(entry).iter().any(|function| function.entry == site.entry);
    let entry = entries.flat_map(Native::entries).find(means);
    let why = Refusal::SameFunction { one: name(one), other: name(other), symbol: site.symbol.clone() };
    Err(why.at(spec, entry.map_or(0, |entry| entry.place)))
}

/// The functions of an executable that a spec's entries match.
struct Functions<'a> {
    entries: Vec<&'a NativeEntry>,
    found: Vec<NativeFunction>,
    /// The symbols of compiler-made clones of such functions, with a bit for each entry that matches.
    clones: Vec<(String, u64)>,
    /// Whether the file has only the symbols that the dynamic linker needs.
    is_stripped: bool,
}

impl<'a> Functions<'a> {
    /// Looks each symbol up once for all entries, because demangling is slow.
    fn find(spec: &'a Spec, image: &Image) -> Result<Self, Refusal> {
        let mut demangler = Demangler::default();
        let natives = spec.operations.iter().filter_map(|operation| operation.native.as_ref());
        let entries: Vec<_> = natives.flat_map(Native::entries).collect();
        let mut clones = Vec::new();
        let found = image.native_functions(&mut |symbol| {
            if let Some(original) = native_original(symbol)
                && clones.len() < CLONES_MAX
            {
                let in_source = OnceCell::new();
                let mut is_like = |entry: &NativeEntry| {
                    entry.is_like(original, || in_source.get_or_init(|| demangler.names(original)))
                };
                let of = |by, (bit, entry): (usize, &&NativeEntry)| by | u64::from(is_like(entry)) << bit;
                clones.push((symbol.to_owned(), entries.iter().enumerate().fold(0, of)));
                clones.retain(|(_, by)| *by != 0);
            }
            let in_source = OnceCell::new();
            let is_none = is_native_part(symbol) || is_native_thunk(symbol);
            let mut is_like = |entry: &NativeEntry| {
                // A part or thunk that is named itself is refused later, with the reason.
                (!is_none || is_symbol(entry))
                    && entry.is_like(symbol, || in_source.get_or_init(|| demangler.names(symbol)))
            };
            entries.iter().enumerate().fold(0, |by, (bit, entry)| by | u64::from(is_like(entry)) << bit)
        })?;
        if demangler.is_exhausted() && entries.iter().any(|entry| entry.is_of_source()) {
            return Err(Refusal::TooManyNames);
        }
        Ok(Self { entries, found, clones, is_stripped: image.is_stripped()? })
    }

    /// The functions that an entry matches.
    fn of(&self, entry: &NativeEntry) -> Vec<NativeFunction> {
        let is_meant = |function: &&NativeFunction| self.means(entry, function.wanted_by);
        self.found.iter().filter(is_meant).cloned().collect()
    }

    /// The clones of functions that an entry matches.
    fn clones_of(&self, entry: &NativeEntry) -> impl Iterator<Item = &str> {
        self.clones.iter().filter(|(_, by)| self.means(entry, *by)).map(|(symbol, _)| symbol.as_str())
    }

    fn means(&self, entry: &NativeEntry, by: u64) -> bool {
        let bit = self.entries.iter().position(|known| ptr::eq(*known, entry));
        bit.is_some_and(|bit| by >> bit & 1 == 1)
    }
}

/// A note about unwatched clones, which some callers call in place of the function.
fn clones_left_out(
    entry: &NativeEntry,
    watched: &[NativeFunction],
    functions: &Functions<'_>,
) -> Option<String> {
    let is_watched = |symbol: &&str| watched.iter().any(|function| function.name == **symbol);
    let left: Vec<_> = functions.clones_of(entry).filter(|symbol| !is_watched(symbol)).map(shown).collect();
    let noted = left.iter().take(NOTED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if left.len() > NOTED_MAX { " and others" } else { "" };
    (!left.is_empty()).then(|| {
        format!(
            "calls for which the compiler has made a function of its own of {} are not counted: {noted}{more}",
            shown(&entry.function)
        )
    })
}

/// A name from the executable, shortened and made printable.
fn shown(name: &str) -> String {
    printable(&name.chars().take(SHOWN_MAX).collect::<String>())
}

/// Whether an entry is the exact name of a symbol.
fn is_symbol(entry: &NativeEntry) -> bool {
    entry.at_most.is_none() && !entry.is_of_source()
}

fn find_operation(
    (number, operation): (u8, &Operation),
    native: &Native,
    (spec, functions): (&Spec, &Functions<'_>),
    image: &Image,
) -> Result<Found, Refusal> {
    let (start, entered) = choose(&native.start, native.result().is_some(), (spec, functions))?;
    let mut starts = Vec::new();
    for function in &entered {
        let site = entry_site(Role::Start, function, image);
        starts.push(site.map_err(|why| why.at(spec, start.place))?);
    }
    let mut notes: Vec<_> = clones_left_out(start, &entered, functions).into_iter().collect();
    let (finish, mut sites) = match &native.finish {
        NativeFinish::Entered(entries) => {
            let (finish, left) = choose(entries, false, (spec, functions))?;
            if start.key == finish.key {
                no_start_ends(&entered, &left).map_err(|why| why.at(spec, start.place))?;
            }
            notes.extend(clones_left_out(finish, &left, functions));
            let sites = left.iter().map(|function| entry_site(Role::Finish, function, image));
            let sites = sites.collect::<Result<Vec<_>, _>>().map_err(|why| why.at(spec, finish.place))?;
            (Some(finish), sites)
        }
        NativeFinish::Instructions(_) => {
            let mut sites = Vec::new();
            // Asked about all at once, since this goes through all symbols.
            let parts = image.native_parts(&entered)?;
            for function in &entered {
                let returns = instruction_sites(function, parts.get(&function.entry), image);
                sites.extend(returns.map_err(|why| why.at(spec, start.place))?);
            }
            (None, sites)
        }
        NativeFinish::Probe(_) => (None, starts.iter().map(probed).collect()),
    };
    if matches!(native.finish, NativeFinish::Probe(_)) {
        notes.push(
            "an exception or a panic that leaves a function with a return probe ends the target".to_owned(),
        );
    }
    sites.extend(starts);
    one_kind(&sites).map_err(|why| why.at(spec, start.place))?;
    Ok(Found { number, operation: NativePlan(to_native(operation, native, start, finish)), sites, notes })
}

/// Refuses a function that is both a start and a finish under the same key: the order of two probes at one address is
/// unknown. With different keys it does not matter.
fn no_start_ends(entered: &[NativeFunction], left: &[NativeFunction]) -> Result<(), Refusal> {
    let is_entered = |function: &&NativeFunction| entered.iter().any(|start| start.entry == function.entry);
    let both = left.iter().find(is_entered);
    both.map_or(Ok(()), |function| Err(Refusal::StartAndFinish(function.name.clone())))
}

/// Returns the first entry that exists, and the functions that it matches. `has_result` says
/// whether their result is read.
fn choose<'a>(
    entries: &'a [NativeEntry],
    has_result: bool,
    (spec, functions): (&Spec, &Functions<'_>),
) -> Result<(&'a NativeEntry, Vec<NativeFunction>), Refusal> {
    for entry in entries {
        let found = functions.of(entry);
        let limit = entry.at_most.unwrap_or(1);
        match found.len() {
            0 => continue,
            count if count > limit => {
                let pattern = entry.function.clone();
                let why = Refusal::TooManyFunctions { pattern, found: count, limit };
                return Err(why.at(spec, entry.place));
            }
            _ => {}
        }
        let mut demangler = Demangler::default();
        let mut found_symbols = found.iter().map(|function| &function.name);
        let checked =
            found_symbols.try_for_each(|symbol| check_symbol(symbol, entry, has_result, &mut demangler));
        return checked.map(|()| (entry, found)).map_err(|why| why.at(spec, entry.place));
    }
    if let Some((entry, clone)) =
        entries.iter().find_map(|entry| Some((entry, functions.clones_of(entry).next()?)))
    {
        let why = Refusal::OnlyClone(entry.function.clone(), shown(clone));
        return Err(why.at(spec, entry.place));
    }
    let place = entries.first().map_or(0, |entry| entry.place);
    let names = any_of(entries.iter().map(|entry| entry.function.as_str()));
    let why = if functions.is_stripped { Refusal::Stripped(names) } else { Refusal::SymbolMissing(names) };
    Err(why.at(spec, place))
}

/// Refuses a symbol of something that is not a whole function, or of one that lacks the arguments or the result that
/// the entry needs.
fn check_symbol(
    symbol: &str,
    entry: &NativeEntry,
    has_result: bool,
    demangler: &mut Demangler,
) -> Result<(), Refusal> {
    let has_arguments = entry.key.is_some() || entry.number.is_some() || !entry.texts.is_empty();
    if is_native_part(symbol) {
        return Err(Refusal::PartOfFunction(symbol.to_owned()));
    }
    if is_native_thunk(symbol) {
        return Err(Refusal::Thunk(symbol.to_owned()));
    }
    if (has_arguments || has_result) && native_original(symbol).is_some() {
        return Err(Refusal::OtherArguments(symbol.to_owned()));
    }
    check_strings(symbol, entry, demangler)
}

/// Refuses a function if its mangled name has no C++ string where the entry says there is one.
fn check_strings(symbol: &str, entry: &NativeEntry, demangler: &mut Demangler) -> Result<(), Refusal> {
    let strings = entry.texts.values().filter(|(_, text)| *text == Text::Cxx11);
    let arguments: Vec<_> = strings.map(|(argument, _)| *argument).collect();
    if arguments.is_empty() {
        return Ok(());
    }
    let Some(parameters) = demangler.parameters(symbol) else {
        return Err(Refusal::NoParameters(symbol.to_owned()));
    };
    let wrong = arguments.into_iter().find(|argument| !parameters.may_be_string(*argument));
    wrong.map_or(Ok(()), |argument| Err(Refusal::NoCxxString { symbol: symbol.to_owned(), argument }))
}

fn code(function: &NativeFunction, image: &Image) -> Result<Arc<[u8]>, Refusal> {
    Ok(image.native_code(function)?.into())
}

fn entry_site(role: Role, function: &NativeFunction, image: &Image) -> Result<Site, Refusal> {
    let code = code(function, image)?;
    let choice = native_entry_site(&code, function.entry).map_err(|error| no_site(&function.name, &error))?;
    site(role, (&function.name, function.entry), &code, choice, image)
}

/// Returns the return sites of a function, given its parts elsewhere, or why they are unknown or may return.
fn instruction_sites(
    function: &NativeFunction,
    parts: Option<&Result<Parts, CodeError>>,
    image: &Image,
) -> Result<Vec<Site>, Refusal> {
    let code = code(function, image)?;
    let choices = match parts {
        Some(Ok(parts)) => return_sites(&code, function.entry, Some(parts)),
        Some(Err(why)) => returns_without_parts(&code, function.entry, why),
        None => return_sites(&code, function.entry, None),
    };
    let choices = choices.map_err(|error| no_returns(&function.name, &error))?;
    let site =
        |choice: SiteChoice| site(Role::Finish, (&function.name, function.entry), &code, choice, image);
    choices.into_iter().map(site).collect()
}

/// Returns the return sites of a function whose parts elsewhere are unknown or may return. Where they are unknown, a
/// function is taken for whole if it has no jump that may lead to one. Problems in its own code are reported first,
/// unless the problem is a jump to such a part.
fn returns_without_parts(code: &[u8], entry: u64, why: &CodeError) -> Result<Vec<SiteChoice>, CodeError> {
    if !matches!(why, CodeError::PartMayReturn { .. })
        && let Ok(whole) = return_sites(code, entry, None)
    {
        return Ok(whole);
    }
    match return_sites(code, entry, Some(&Parts::default())) {
        Ok(_) | Err(CodeError::LeftByJump { .. }) => Err(why.clone()),
        own => own,
    }
}

/// A refusal of a function without usable return sites.
fn no_returns(symbol: &str, error: &CodeError) -> Refusal {
    let advice = match error {
        CodeError::LeftByJump { .. } | CodeError::PartMayReturn { .. } => WHOLE,
        CodeError::PartsUnknown => WITH_LOCAL,
        _ => "",
    };
    Refusal::NoSite { symbol: symbol.to_owned(), why: format!("{error}{advice}") }
}

/// Returns the return probe of a function. The kernel sets it where the return address is still on top of the stack.
fn probed(start: &Site) -> Site {
    Site {
        role: Role::Finish,
        cost: CostClass::Returned,
        kind: SiteKind::Return,
        why: "a return probe, set there".to_owned(),
        ..start.clone()
    }
}

/// Returns the part of the recipe for an operation.
fn to_native(
    operation: &Operation,
    native: &Native,
    start: &NativeEntry,
    finish: Option<&NativeEntry>,
) -> NativeRecipe {
    let argument = |place: Option<usize>| place.and_then(|place| u8::try_from(place).ok());
    let (start_key, finish_key) = match (&native.finish, finish) {
        (NativeFinish::Instructions(_), _) => (word::STACK, word::STACK),
        (NativeFinish::Probe(_), _) => (word::STACK, word::LEFT_STACK),
        (NativeFinish::Entered(_), finish) => {
            let key = |entry: Option<&NativeEntry>| argument(entry.and_then(|entry| entry.key));
            (key(Some(start)).unwrap_or(word::THREAD), key(finish).unwrap_or(word::THREAD))
        }
    };
    let mut recipe = NativeRecipe {
        start_key,
        finish_key,
        key_width: if operation.key == Key::Int { 4 } else { 8 },
        side: side_code(operation.side),
        policy: match operation.policy {
            Policy::Overwrite | Policy::Nested => 0,
            Policy::FirstStart => policy::FIRST_START,
            Policy::FirstFinish => policy::FIRST_FINISH,
        },
        ..NativeRecipe::NONE
    };
    if let Some(width) = native.result() {
        recipe.number_moment = moment::FINISH;
        recipe.number = word::RESULT;
        recipe.number_width = if width == Width::Bool { 1 } else { 4 };
    } else if let Some(number) = argument(finish.and_then(|finish| finish.number)) {
        (recipe.number_moment, recipe.number) = (moment::FINISH, number);
    } else if let Some(number) = argument(start.number) {
        (recipe.number_moment, recipe.number) = (moment::START, number);
    }
    let names = operation.labels.iter().filter_map(|source| match source {
        Source::Name(name) => Some(name),
        _ => None,
    });
    for (place, name) in recipe.texts.iter_mut().zip(names) {
        let at_finish = finish.and_then(|finish| finish.texts.get(name));
        let at_start = start.texts.get(name).map(|text| (moment::START, text));
        let Some((moment, (argument, text))) = at_finish.map(|text| (moment::FINISH, text)).or(at_start)
        else {
            continue;
        };
        place.moment = moment;
        place.word = u8::try_from(*argument).unwrap_or_default();
        place.form = if *text == Text::Cxx11 { form::CXX11 } else { form::C };
    }
    recipe
}

#[cfg(test)]
mod tests;
