//! Operations of native functions that a user's spec describes, proven in an executable.

use std::sync::Arc;

use monitor_ebpf::{Native as Program, form, moment, policy, word};

use super::{
    Refusal, Role, Site,
    alternatives::Alternatives,
    site::{no_site, site},
};
use crate::{
    image::{CostClass, Image, NativeFunction, SiteChoice, SiteKind, native_entry_site, return_sites},
    specs::{Key, Native, NativeEntry, NativeFinish, Operation, Policy, Source, Spec, Text, Width},
};

/// What the mangled name of a function has that gets a `std::string` of the C++11 ABI: Itanium C++ ABI, 5.1, and the
/// inline namespace `__cxx11` of libstdc++.
const CXX11_STRING: &str = "NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE";

/// An operation: what the programs do for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct NativePlan(pub(super) Program);

/// An operation that is in an executable, its sites with the finishes first, and notes.
pub(super) struct Found {
    /// Its number in the spec.
    pub(super) number: u8,
    pub(super) operation: NativePlan,
    pub(super) sites: Vec<Site>,
    pub(super) notes: Vec<String>,
}

/// Finds everything that a spec of native functions names. An operation of several may be missing: a note says so.
pub(super) fn find(spec: &Spec, image: &Image) -> Result<Vec<Found>, Refusal> {
    let natives = || spec.operations.iter().filter_map(|operation| operation.native.as_ref());
    let wanted = |name: &str| natives().flat_map(Native::entries).any(|entry| entry.is_like(name));
    let Some(functions) = image.native_functions(&wanted)? else { return Err(Refusal::NoSymbols) };
    let alternatives = Alternatives::find(&spec.operations, |number, operation| {
        let native = operation.native.as_ref().ok_or(Refusal::NoShape)?;
        find_operation((number, operation), native, &functions, image)
    })?;
    let (mut found, notes) = (alternatives.found, alternatives.notes);
    if let Some(first) = found.first_mut() {
        first.notes.extend(notes);
    }
    for (index, one) in found.iter().enumerate() {
        let earlier = || found.iter().take(index).flat_map(|other| &other.sites);
        if let Some(site) = one.sites.iter().find(|site| earlier().any(|other| other.entry == site.entry)) {
            return Err(Refusal::Claimed(site.symbol.clone(), spec.name.clone()));
        }
    }
    Ok(found)
}

fn find_operation(
    (number, operation): (u8, &Operation),
    native: &Native,
    functions: &[NativeFunction],
    image: &Image,
) -> Result<Found, Refusal> {
    let (start, entered) = choose(&native.start, functions)?;
    let mut starts = Vec::new();
    for function in &entered {
        starts.push(entry_site(Role::Start, function, image)?);
    }
    let (finish, mut sites) = match &native.finish {
        NativeFinish::Entered(entries) => {
            let (finish, left) = choose(entries, functions)?;
            let sites = left.iter().map(|function| entry_site(Role::Finish, function, image));
            (Some(finish), sites.collect::<Result<Vec<_>, _>>()?)
        }
        NativeFinish::Instructions(_) => {
            let mut sites = Vec::new();
            for function in &entered {
                sites.extend(instruction_sites(function, image)?);
            }
            (None, sites)
        }
        NativeFinish::Probe(_) => (None, starts.iter().map(probed).collect()),
    };
    let notes = match native.finish {
        NativeFinish::Probe(_) => {
            vec![
                "an exception or a panic that leaves a function with a return probe ends the target"
                    .to_owned(),
            ]
        }
        _ => Vec::new(),
    };
    sites.extend(starts);
    super::sited::same_kinds(&sites)?;
    Ok(Found { number, operation: NativePlan(program(operation, native, start, finish)), sites, notes })
}

/// The first of some entries that is there, and the functions that are meant by it.
fn choose<'a>(
    entries: &'a [NativeEntry],
    functions: &[NativeFunction],
) -> Result<(&'a NativeEntry, Vec<NativeFunction>), Refusal> {
    for entry in entries {
        let found: Vec<_> =
            functions.iter().filter(|function| entry.is_like(&function.name)).cloned().collect();
        let limit = entry.at_most.unwrap_or(1);
        match found.len() {
            0 => continue,
            count if count > limit => {
                let pattern = entry.function.clone();
                return Err(Refusal::TooManyFunctions { pattern, found: count, limit });
            }
            _ => {}
        }
        let has_strings = entry.texts.values().any(|(_, text)| *text == Text::Cxx11);
        let other = found.iter().find(|function| has_strings && !function.name.contains(CXX11_STRING));
        return match other {
            Some(function) => Err(Refusal::NoCxxString(function.name.clone())),
            None => Ok((entry, found)),
        };
    }
    let name = entries.first().map_or("", |entry| &entry.function);
    Err(Refusal::SymbolMissing(name.to_owned()))
}

fn code(function: &NativeFunction, image: &Image) -> Result<Arc<[u8]>, Refusal> {
    Ok(image.native_code(function)?.into())
}

fn entry_site(role: Role, function: &NativeFunction, image: &Image) -> Result<Site, Refusal> {
    let code = code(function, image)?;
    let choice = native_entry_site(&code, function.entry).map_err(|error| no_site(&function.name, &error))?;
    site(role, (&function.name, function.entry), &code, choice, image)
}

/// The sites at which a function returns.
fn instruction_sites(function: &NativeFunction, image: &Image) -> Result<Vec<Site>, Refusal> {
    let code = code(function, image)?;
    let choices = return_sites(&code, function.entry).map_err(|error| no_site(&function.name, &error))?;
    let site =
        |choice: SiteChoice| site(Role::Finish, (&function.name, function.entry), &code, choice, image);
    choices.into_iter().map(site).collect()
}

/// The return probe of a function, which the kernel wants where the return address is still the last on the stack.
fn probed(start: &Site) -> Site {
    Site {
        role: Role::Finish,
        cost: CostClass::Returned,
        kind: SiteKind::Return,
        why: "a return probe, set there".to_owned(),
        ..start.clone()
    }
}

/// What the programs do for an operation.
fn program(
    operation: &Operation,
    native: &Native,
    start: &NativeEntry,
    finish: Option<&NativeEntry>,
) -> Program {
    let argument = |place: Option<usize>| place.and_then(|place| u8::try_from(place).ok());
    let (start_key, finish_key) = match (&native.finish, finish) {
        (NativeFinish::Instructions(_), _) => (word::STACK, word::STACK),
        (NativeFinish::Probe(_), _) => (word::STACK, word::LEFT_STACK),
        (NativeFinish::Entered(_), finish) => {
            let key = |entry: Option<&NativeEntry>| argument(entry.and_then(|entry| entry.key));
            (key(Some(start)).unwrap_or(word::THREAD), key(finish).unwrap_or(word::THREAD))
        }
    };
    let mut program = Program {
        start_key,
        finish_key,
        key_width: if operation.key == Key::Int { 4 } else { 8 },
        side: operation.side.code(),
        policy: match operation.policy {
            Policy::Overwrite | Policy::Nested => 0,
            Policy::FirstStart => policy::FIRST_START,
            Policy::FirstFinish => policy::FIRST_FINISH,
        },
        ..Program::NONE
    };
    if let Some(width) = native.result() {
        program.number_moment = moment::FINISH;
        program.number = word::RESULT;
        program.number_width = if width == Width::Bool { 1 } else { 4 };
    } else if let Some(number) = argument(finish.and_then(|finish| finish.number)) {
        (program.number_moment, program.number) = (moment::FINISH, number);
    } else if let Some(number) = argument(start.number) {
        (program.number_moment, program.number) = (moment::START, number);
    }
    let names = operation.labels.iter().filter_map(|source| match source {
        Source::Name(name) => Some(name),
        _ => None,
    });
    for (place, name) in program.texts.iter_mut().zip(names) {
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
    program
}
