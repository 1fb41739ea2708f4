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
mod tests {
    use super::*;
    use crate::{
        plan::{Inspection, Plan},
        specs::{Specs, read},
    };

    const BY_INSTRUCTIONS: &str = "{ by = \"instructions\" }";

    /// The plan for an operation that starts in a function of a program with the symbol `stock_lookup` and some
    /// replaced ones; or why there is none.
    fn planned(start: &str) -> Result<Plan, String> {
        planned_by(BY_INSTRUCTIONS, start)
    }

    fn planned_by(returns: &str, start: &str) -> Result<Plan, String> {
        let mut file = include_bytes!("../../../fuzz/seeds/native/0").to_vec();
        for (name, by) in [
            ("stock_begin", "lookup.cold"),
            ("stock_end", "f.isra.12"),
            ("_ZN4shop6lookupERKNSt7__cxx11", "_ZN4shop6lookupEv.cold\0"),
        ] {
            let at = file.windows(name.len()).position(|text| text == name.as_bytes()).expect("a symbol");
            file[at..at + by.len()].copy_from_slice(by.as_bytes());
        }
        planned_in(file, returns, start)
    }

    fn planned_in(file: Vec<u8>, returns: &str, start: &str) -> Result<Plan, String> {
        let text = format!("allow_expensive = true\nreturns = {returns}\n[[native.start]]\n{start}\n");
        planned_of(file, &text)
    }

    fn planned_of(file: Vec<u8>, operation: &str) -> Result<Plan, String> {
        planned_by_key(file, "thread", operation)
    }

    fn planned_by_key(file: Vec<u8>, key: &str, operation: &str) -> Result<Plan, String> {
        let image = Image::parse(Box::new(file)).expect("an image");
        let text = format!("name = \"any\"\n[[native]]\nname = \"a\"\nkey = \"{key}\"\n{operation}");
        let spec = read("any.toml", &text).unwrap_or_else(|error| panic!("{error}"));
        let specs = Specs::of(vec![spec]).expect("one goes with itself");
        let found = Inspection::of_specs(&image, &specs).expect("no Go program").frameworks.remove(0);
        found.plan.map_err(|why| why.to_string())
    }

    #[test]
    fn a_part_of_a_function_is_none() {
        for start in [
            "function = \"look*\"\nat_most = 9",
            "function = \"_Z*\"\nat_most = 9",
            "function = \"shop::lookup\"",
            "function = \"shop::lookup()\"",
            "function = \"*::*\"\nat_most = 9",
        ] {
            let why = planned(start).expect_err("a refusal");
            assert!(why.contains("is not among the symbols"), "{start}: {why}");
        }
        for symbol in ["lookup.cold", "_ZN4shop6lookupEv.cold"] {
            let why = planned(&format!("function = \"{symbol}\"")).expect_err("a refusal");
            assert!(why.contains(&format!("{symbol} is a part of a function")), "{why}");
        }
        let all = planned("function = \"*\"\nat_most = 2").expect("a plan");
        assert!(all.sites.iter().all(|site| !is_native_part(&site.symbol)), "{:?}", all.sites);
    }

    #[test]
    fn a_thunk_is_none() {
        const THUNK: &str = "_ZThn8_N4shop6lookupEi";
        let planned = |start: &str| {
            let mut file = include_bytes!("../../../fuzz/seeds/native/0").to_vec();
            let at = file.windows(3).position(|text| text == b"_ZN").expect("a symbol");
            let name = format!("{THUNK}\0");
            file[at..at + name.len()].copy_from_slice(name.as_bytes());
            planned_in(file, BY_INSTRUCTIONS, start)
        };
        for pattern in ["_Z*", "*shop::lookup*", "*::*"] {
            let why = planned(&format!("function = \"{pattern}\"\nat_most = 9")).expect_err("a refusal");
            assert!(why.contains("is not among the symbols"), "{pattern}: {why}");
        }
        let why = planned(&format!("function = \"{THUNK}\"")).expect_err("a refusal");
        assert!(why.contains(&format!("{THUNK} is a thunk")), "{why}");
    }

    #[test]
    fn a_function_is_refused_where_a_part_of_it_may_return() {
        // The offset of the code in the file, eight bytes per function, and that of the symbols.
        const CODE: usize = 120;
        const SYMBOLS: usize = CODE + 4 * 8;
        const LOCAL: u8 = 2;
        const GLOBAL: u8 = 0x12;
        let planned_with = |third: u8, whole: &[u8], part: &str, code: &[u8]| {
            let mut file = include_bytes!("../../../fuzz/seeds/native/0").to_vec();
            let name = file.windows(3).position(|text| text == b"_ZN").expect("a symbol");
            let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
            // The first function.
            put(CODE, whole);
            put(SYMBOLS + 24 + 16, &[u8::try_from(whole.len()).expect("a short one")]);
            put(SYMBOLS + 3 * 24 + 4, &[third]);
            // The fourth symbol becomes the part, without a type.
            put(SYMBOLS + 4 * 24 + 4, &[0]);
            put(CODE + 3 * 8, code);
            put(name, format!("{part}\0").as_bytes());
            planned_in(file, BY_INSTRUCTIONS, "function = \"stock_lookup\"").map(|plan| plan.sites.len())
        };
        let planned = |whole: &[u8], part: &str, code: &[u8]| planned_with(LOCAL, whole, part, code);
        // push rbp; mov rbp, rsp; pop rbp; ret. And code that never returns: call elsewhere; int3
        let returns = b"\x55\x48\x89\xe5\x5d\xc3";
        let calls = b"\xe8\x00\x10\x00\x00\xcc";
        // movsxd rax, dword ptr [rdx+rdi*4]; add rax, rdx; jmp rax; ret. And: je to the fourth; ret
        let switch = b"\x48\x63\x04\xba\x48\x01\xd0\xff\xe0\xc3";
        let jump = b"\x74\x16\xc3";
        // Only an exception leads from the last one to its part.
        for whole in [&switch[..], jump, returns] {
            let why = planned(whole, "stock_lookup.cold", returns).expect_err("a refusal");
            assert!(why.contains("its part stock_lookup.cold may return by itself"), "{why}");
            assert!(why.contains("by itself, or enter it anew; gcc builds it whole"), "{why}");
            assert_eq!(planned(whole, "stock_lookup.cold", calls), Ok(2));
        }
        assert_eq!(planned(switch, "stock_lookup.part.0", returns), Ok(2));
        // A part of another function.
        let why = planned(jump, "stock.cold", calls).expect_err("a refusal");
        assert!(why.contains("to what returns in its place; gcc builds it whole"), "{why}");
        // Without local symbols, only a jump shows that there may be a part.
        assert_eq!(planned_with(GLOBAL, returns, "stock_lookup.cold", returns), Ok(2));
        for whole in [&switch[..], jump] {
            let why = planned_with(GLOBAL, whole, "stock_lookup.cold", calls).expect_err("a refusal");
            assert!(why.contains("no local symbols, so whether it has parts"), "{why}");
            assert!(why.ends_with("; `strip --strip-debug` keeps local symbols"), "{why}");
        }
    }

    #[test]
    fn a_function_with_other_arguments_has_none_that_are_known() {
        for start in ["function = \"f.isra.12\"", "function = \"f.*\"\nat_most = 9"] {
            assert!(planned(start).is_ok(), "{start}");
            let why = planned(&format!("{start}\ncstrings = {{ item = 0 }}")).expect_err("a refusal");
            assert!(
                why.contains("the compiler has made f.isra.12 of a function with other arguments"),
                "{why}"
            );
        }
        assert!(planned("function = \"stock_lookup\"\ncstrings = { item = 0 }").is_ok());
        let result = "{ by = \"instructions\", number = \"int\" }";
        assert!(planned_by(result, "function = \"stock_lookup\"").is_ok());
        let why = planned_by(result, "function = \"f.isra.12\"").expect_err("a refusal");
        assert!(why.contains("or one without a result"), "{why}");
        let why = planned("function = \"f\"").expect_err("a refusal");
        assert!(why.contains("of f nothing is left but f.isra.12"), "{why}");
    }

    #[test]
    fn a_function_is_no_start_and_finish_of_one_operation() {
        let planned = |start: &str, finish: &str| {
            let file = include_bytes!("../../../fuzz/seeds/native/0").to_vec();
            planned_of(file, &format!("[[native.start]]\n{start}\n[[native.finish]]\n{finish}\n"))
        };
        for (start, finish) in [
            ("function = \"stock_end\"", "function = \"stock_end\""),
            ("function = \"stock_*\"\nat_most = 3", "function = \"stock_end\""),
            ("function = \"stock_end\"", "function = \"stock_*\"\nat_most = 3"),
        ] {
            let why = planned(start, finish).expect_err("a refusal");
            assert!(
                why.contains("function stock_end is a start and a finish of the same operation"),
                "{why}"
            );
        }
        let all = planned("function = \"stock_begin\"", "function = \"stock_e*\"\nat_most = 3");
        assert_eq!(all.map(|plan| plan.sites.len()), Ok(2));
    }

    #[test]
    fn a_function_may_end_one_call_and_begin_another() {
        let planned = |start: usize, finish: usize| {
            let file = include_bytes!("../../../fuzz/seeds/native/0").to_vec();
            let operation = format!(
                "[[native.start]]\nfunction = \"stock_end\"\nkey = {start}\n\
                 [[native.finish]]\nfunction = \"stock_end\"\nkey = {finish}\n"
            );
            planned_by_key(file, "number", &operation).map(|plan| plan.sites.len())
        };
        assert_eq!(planned(1, 0), Ok(2));
        let why = planned(1, 1).expect_err("a refusal");
        assert!(why.contains("stock_end is a start and a finish of the same operation"), "{why}");
    }

    /// The start entry of a spec with this text.
    fn entry(text: &str) -> NativeEntry {
        let text = format!(
            "name = \"any\"\n[[native]]\nname = \"a\"\nkey = \"thread\"\nallow_expensive = true\n\
             returns = {{ by = \"instructions\" }}\n[[native.start]]\n{text}\n"
        );
        let spec = read("any.toml", &text).expect("a spec");
        spec.operations[0].native.as_ref().expect("native").start[0].clone()
    }

    #[test]
    fn a_string_must_be_one_by_the_mangled_name() {
        const STRING: &str = "NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE";
        let check = |symbol: &str, arguments: &str| {
            let entry = entry(&format!("function = \"f\"\nstrings = {{ {arguments} }}"));
            check_symbol(&symbol.replace('$', STRING), &entry, false, &mut Demangler::default())
                .map_err(|why| why.to_string())
        };
        assert_eq!(check("_Z1fiRK$", "item = 1"), Ok(()));
        assert_eq!(check("_Z1fRK$S6_", "item = 0, other = 1"), Ok(()));
        assert_eq!(check("_ZNK4Shop4findERK$", "item = 2"), Ok(()));
        for (symbol, arguments, wrong) in [
            ("_Z1fiRK$", "item = 0", 0),
            ("_Z1fiRK$", "item = 1, other = 0", 0),
            ("_Z1fiRK$", "item = 3", 3),
            ("_Z1fRKSt6vectorI$SaI$EE", "item = 0", 0),
        ] {
            let why = check(symbol, arguments).expect_err("a refusal");
            assert!(why.contains(&format!("that can be argument {wrong},")), "{symbol}: {why}");
        }
        assert_eq!(check("_ZN1JC1IiEERK$T_", "item = 1"), Ok(()));
        for symbol in ["f".to_owned(), format!("_Z1100{}RK$", "f".repeat(1_100))] {
            let why = check(&symbol, "item = 0").expect_err("a refusal");
            assert!(why.contains("can't be read from its symbol"), "{symbol}: {why}");
        }
    }

    #[test]
    fn clones_that_are_not_watched_are_noted() {
        let entry = entry("function = \"f\"");
        let function = |name: &str| NativeFunction { name: name.to_owned(), entry: 8, size: 8, wanted_by: 1 };
        let note = |clones: &[&str], watched: &[&str]| {
            let clones = clones.iter().map(|name| ((*name).to_owned(), 1)).collect();
            let functions =
                Functions { entries: vec![&entry], found: Vec::new(), clones, is_stripped: false };
            let watched: Vec<_> = watched.iter().map(|name| function(name)).collect();
            clones_left_out(&entry, &watched, &functions)
        };
        assert_eq!(note(&[], &["f"]), None);
        assert_eq!(note(&["f.isra.0"], &["f", "f.isra.0"]), None);
        let text = note(&["f.constprop.0", "f.isra.0"], &["f", "f.isra.0"]).expect("a note");
        assert!(text.ends_with("of its own of f are not counted: f.constprop.0"), "{text}");
    }

    fn note(functions: &[(u64, &str)], names: &[(u64, &str)]) -> Option<String> {
        let mut all: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
        for (entry, name) in names {
            all.entry(*entry).or_default().insert((*name).to_owned());
        }
        other_names(&functions.iter().copied().collect(), &all)
    }

    #[test]
    fn other_names_of_a_function_are_noted() {
        assert_eq!(note(&[(8, "get")], &[(8, "get"), (16, "put")]), None);
        let note_of_get = note(&[(8, "get")], &[(8, "get"), (8, "look\n"), (16, "put")]);
        assert!(note_of_get.is_some_and(|text| text.ends_with("(--icf): get is look\\n as well")));
        let functions: Vec<_> = (0..6).map(|entry| (entry, "get")).collect();
        let names: Vec<_> = (0..6).map(|entry| (entry, "set")).collect();
        let text = note(&functions, &names).expect("a note");
        assert_eq!(text.matches("get is set as well").count(), NOTED_MAX);
        assert!(text.ends_with(" and 2 functions more"), "{text}");
        let long = "x".repeat(4_096);
        assert!(note(&[(8, "get")], &[(8, &long)]).is_some_and(|text| text.len() < 500));
    }
}
