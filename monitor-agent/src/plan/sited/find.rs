//! Finds the kinds of calls of a framework in one of its copies.

use std::slice;

use monitor_ebpf::{FINISH_SITES, GATES, Given, INTERIM_RANGES, TestOp};

use super::{
    Conditions, Ends, Found, SitedCall, Status,
    messages::{self, MessagePlan},
};
use crate::{
    frameworks::{Alternatives, CallSpec, Entry, KindSpec, SitedFramework, StatusSpec, Way},
    image::{GoImage, Image, Kind, REGISTER_WORDS, WantedError},
    plan::{
        Refusal, Role, Site,
        copies::SitedCopy,
        layout::{Asked, DESCRIPTION, NodeId, Nodes, Place, ROOT, STATUS},
        or_note,
        recipe::argument,
        resolve::Resolver,
        shape::Walk,
        site::{Sites, check_arguments, check_not_inlined, same_kinds},
    },
    specs::Side,
};

/// The result word of the error in a function that returns only an error.
const ONLY_ERROR: usize = 0;

/// Finds and proves everything that `framework` names in one of its copies.
pub(in crate::plan) fn find(
    framework: &'static SitedFramework,
    copy: &SitedCopy,
    (image, go): (&Image, &GoImage<'_>),
    resolver: &mut Resolver<'_>,
) -> Result<Found, Refusal> {
    let mut finder = Finder {
        framework,
        copy,
        sites: Sites::new(image, go),
        message_sites: Vec::new(),
        notes: Vec::new(),
    };
    let hidden = finder.hidden_sides()?;
    let mut calls: Vec<SitedCall> = Vec::new();
    for spec in &framework.calls {
        if hidden.iter().any(|(side, _)| *side == spec.side) {
            continue;
        }
        let is_there = |name: &str| calls.iter().any(|call: &SitedCall| call.spec.name == name);
        if spec.variant_of.as_ref().is_some_and(|name| !is_there(name))
            || spec.in_place_of.as_ref().is_some_and(|name| is_there(name))
        {
            continue;
        }
        let known = finder.sites.found.len();
        match finder.call(spec, resolver) {
            Err(why) if framework.has_substitute(spec) && is_about_code(&why) => {
                finder.sites.found.truncate(known);
                finder.notes.push(format!(
                    "{}: not all of their ends can be seen ({})",
                    spec.name,
                    why.reason()
                ));
            }
            call => calls.extend(call?),
        }
    }
    let Finder { sites, mut message_sites, notes, .. } = finder;
    let mut sites = sites.found;
    if calls.is_empty() {
        return Err(hidden.into_iter().next().map_or(Refusal::NoShape, |(_, why)| why));
    }
    let unwatched = hidden.into_iter().map(|(side, why)| {
        let calls = if side == Side::Client { "calls that it makes" } else { "calls that it serves" };
        format!("{calls} are not watched ({})", why.reason())
    });
    sites.sort_by_key(|site| site.role == Role::Start);
    message_sites.sort_by_key(|site| site.role != Role::Entered);
    same_kinds(&sites)?;
    same_kinds(&message_sites)?;
    Ok(Found { calls, sites, message_sites, notes, unwatched: unwatched.collect() })
}

/// Whether the reason is that a function's code could not be proven.
fn is_about_code(why: &Refusal) -> bool {
    why.is_about_arguments()
        || matches!(why, Refusal::Inlined { .. } | Refusal::NoSite { .. } | Refusal::TooMuch(_))
}

struct Finder<'a> {
    framework: &'static SitedFramework,
    copy: &'a SitedCopy,
    sites: Sites<'a>,
    message_sites: Vec<Site>,
    notes: Vec<String>,
}

impl Finder<'_> {
    /// The sides that can't be watched, and why: one of their functions is inlined somewhere, so some calls don't
    /// enter it. No call of such a side is watched, since the visible ones would pass for all.
    fn hidden_sides(&self) -> Result<Vec<(Side, Refusal)>, Refusal> {
        let mut hidden: Vec<(Side, Refusal)> = Vec::new();
        for spec in &self.framework.calls {
            // The functions with `given_by` are checked where their call is looked up.
            let entries = spec.start.iter().chain(spec.finishes.iter().flatten());
            let entries = entries.filter(|entry| entry.given_by.is_none()).map(|entry| &entry.function);
            for name in entries.chain(&spec.not_within) {
                if hidden.iter().any(|(side, _)| *side == spec.side) {
                    break;
                }
                match self.check_entered(name) {
                    Err(why @ Refusal::Inlined { .. }) => hidden.push((spec.side, why)),
                    other => other?,
                }
            }
        }
        Ok(hidden)
    }

    /// Refuses a function of this name if it is inlined anywhere.
    fn check_entered(&self, name: &str) -> Result<(), Refusal> {
        let function = self.copy.function(name)?;
        let interim = self.copy.interim(name).filter(|function| function.name.ends_with(name));
        let mut all = function.into_iter().chain(interim);
        all.try_for_each(|function| check_not_inlined(function, self.sites.go))
    }

    /// Plans a kind of call; `None` if it can't happen.
    fn call(
        &mut self,
        spec: &'static CallSpec,
        resolver: &mut Resolver<'_>,
    ) -> Result<Option<SitedCall>, Refusal> {
        let start = first_there(&spec.start, |entry| {
            let site = self.entered(Role::Start, entry)?;
            Ok(site.map(|site| (site, entry)))
        })?;
        if start.is_none() && spec.variant_of.is_none() {
            return Ok(None);
        }
        let Some(ends) = self.ends(spec)? else { return Ok(None) };
        let object = type_at_end(&spec.object, resolver)?;
        let mut walk = Walk { nodes: Nodes::with_arguments(), root: ROOT, object, resolver };
        let method =
            first_of(&spec.method, |path| walk.value(path, "a string", 16, |kind| kind == Kind::String))?;
        let key = spec.key.as_ref().map(|path| walk.number(path)).transpose()?.map(|(place, _)| place);
        let conditions = conditions(spec, &mut walk)?;
        let streams = self.streams(spec, &mut walk)?;
        let status = status(&self.framework.status, ends.entry, &mut walk)?;
        let nodes = walk.nodes;
        let given = self.error_end(spec, resolver);
        let without = format!("{}: not all of their ends can be seen", spec.name);
        let given = or_note(given, &without, &mut self.notes)?.flatten().unwrap_or(Given::NONE);
        let messages = self.messages(spec, object, resolver)?;
        let interim = if self.ends_once(spec, resolver)? { Vec::new() } else { interim(spec, self.copy)? };
        Ok(Some(SitedCall {
            spec,
            start,
            ends,
            nodes,
            key,
            method,
            streams,
            status,
            conditions,
            given,
            interim,
            messages,
        }))
    }

    /// Finds where a kind of call finishes; `None` if it is a variant of another kind and can't finish.
    fn ends(&mut self, spec: &'static CallSpec) -> Result<Option<Ends>, Refusal> {
        let mut found = Vec::new();
        for (index, entries) in spec.finishes.iter().enumerate() {
            match self.finish(entries)? {
                None if index == 0 && spec.variant_of.is_some() => return Ok(None),
                None if index == 0 => return Err(missing(self.copy, entries)),
                end => found.extend(end),
            }
        }
        let first = found.first().filter(|_| found.len() <= FINISH_SITES);
        let Some(&(_, kept_at, entry)) = first else { return Err(Refusal::TooMuch("ends of a call")) };
        if found.iter().any(|(_, other, _)| *other != kept_at) {
            return Err(Refusal::TooMuch("places where a call's object is kept"));
        }
        let sites = found.into_iter().map(|(site, _, _)| site).collect();
        Ok(Some(Ends { sites, kept_at, entry }))
    }

    /// Returns the site of the first end that exists with its arguments, and the offset of the object from the stack
    /// pointer there, or 0.
    fn finish(&mut self, entries: &'static [Entry]) -> Result<Option<(u64, u16, &'static Entry)>, Refusal> {
        first_there(entries, |entry| {
            let found = if entry.given_by.is_some() {
                self.given(entry)?
            } else {
                self.entered(Role::Finish, entry)?.map(|site| (site, 0))
            };
            Ok(found.map(|(site, kept_at)| (site, kept_at, entry)))
        })
    }

    /// Returns the site at the entry of a function, which must have these arguments; `None` if
    /// there is no such function.
    fn entered(&mut self, role: Role, entry: &Entry) -> Result<Option<u64>, Refusal> {
        let Some(function) = self.copy.function(&entry.function)? else { return Ok(None) };
        check_arguments(function, &entry.arguments, self.sites.go)?;
        self.sites.at_entry(role, function).map(Some)
    }

    /// Returns the site at which a function tests another one's result, and the offset of its first argument from the
    /// stack pointer there.
    fn given(&mut self, entry: &Entry) -> Result<Option<(u64, u16)>, Refusal> {
        let giver = entry.given_by.as_ref().map(|name| self.copy.function(name)).transpose()?.flatten();
        let (Some(function), Some(giver)) = (self.copy.function(&entry.function)?, giver) else {
            return Ok(None);
        };
        check_arguments(function, &entry.arguments, self.sites.go)?;
        let wanted =
            WantedError { error: entry.error.unwrap_or(ONLY_ERROR), kept: entry.object, only_errors: false };
        self.sites.at_tested_call(function, giver, wanted).map(Some)
    }

    /// Returns the first error end that exists with its arguments, with link-time addresses.
    fn error_end(
        &mut self,
        spec: &'static CallSpec,
        resolver: &mut Resolver<'_>,
    ) -> Result<Option<Given>, Refusal> {
        for end in &spec.error_ends {
            let giver = self.copy.function(&end.given_by)?;
            let (Some(function), Some(giver)) = (self.copy.function(&end.function)?, giver) else { continue };
            let found = match check_arguments(function, &end.arguments, self.sites.go) {
                Err(why) if why.is_about_arguments() => continue,
                found => found?,
            };
            // Each argument word must have its own register, in order.
            let words = found.chars().filter(|kind| *kind == 'w').count();
            if words > REGISTER_WORDS || !found.chars().all(|kind| matches!(kind, 'w' | '{' | '}')) {
                return Err(Refusal::TooMuch("arguments"));
            }
            // Without an itab, no such error can exist.
            let Some(itab) = resolver.itab_of_value(&end.error)? else { return Ok(None) };
            let wanted = WantedError { error: ONLY_ERROR, kept: end.object, only_errors: true };
            let (place, kept_at) = self.sites.at_tested_call(function, giver, wanted)?;
            let error = argument(ONLY_ERROR)? as u8;
            return Ok(Some(Given {
                place,
                word: itab.address,
                kept_at,
                error,
                code: end.code,
                ..Given::NONE
            }));
        }
        Ok(None)
    }

    /// Whether a call reports only its first status. That is then its end, with a note, since the handler
    /// may return another status.
    fn ends_once(&mut self, spec: &CallSpec, resolver: &mut Resolver<'_>) -> Result<bool, Refusal> {
        let Some(way) = &spec.ends_once else { return Ok(false) };
        match type_at_end(slice::from_ref(way), resolver) {
            Ok(_) => {
                self.notes.push(format!(
                    "{}: a call that can't receive or send ends with that, and not with what its handler makes of it \
                     (this release tells one status)",
                    spec.name
                ));
                Ok(true)
            }
            Err(Refusal::FieldMissing { .. } | Refusal::TypeMissing(_)) => Ok(false),
            Err(why) => Err(why),
        }
    }

    /// Plans where the messages of its streams go through. If that fails, it is a note.
    fn messages(
        &mut self,
        spec: &'static CallSpec,
        object: u64,
        resolver: &mut Resolver<'_>,
    ) -> Result<Option<MessagePlan>, Refusal> {
        if spec.messages.is_empty() {
            return Ok(None);
        }
        let file = (self.sites.image, self.sites.go);
        let found = messages::find(&spec.messages, object, self.copy, file, resolver);
        let without = format!("{}: the messages of streams can't be counted", spec.name);
        let found = or_note(found, &without, &mut self.notes)?;
        Ok(found.map(|(messages, sites)| {
            self.message_sites.extend(sites);
            messages
        }))
    }

    /// Returns the places of the bools that say whether client and server stream. If they
    /// can't be found, it is a note.
    fn streams(&mut self, spec: &CallSpec, walk: &mut Walk<'_, '_>) -> Result<Option<[Place; 2]>, Refusal> {
        let places = match &spec.kind {
            KindSpec::Unary => return Ok(None),
            KindSpec::Object(client, server) => truth_values(walk, client, server),
            KindSpec::Second(ways, client, server) => match type_at_end(ways, walk.resolver) {
                Ok(description) => {
                    beside(walk, DESCRIPTION, description, |walk| truth_values(walk, client, server))
                }
                Err(why) => Err(why),
            },
        };
        let without = format!("{}: kinds of streams can't be told", spec.name);
        or_note(places, &without, &mut self.notes)
    }
}

/// Returns what is found for the first entry that exists with its arguments, or else the last
/// refusal for other arguments.
fn first_there<T>(
    entries: &'static [Entry],
    mut find: impl FnMut(&'static Entry) -> Result<Option<T>, Refusal>,
) -> Result<Option<T>, Refusal> {
    let mut refusal = None;
    for entry in entries {
        match find(entry) {
            Ok(None) => {}
            Err(why) if why.is_about_arguments() => refusal = Some(why),
            found => return found,
        }
    }
    refusal.map_or(Ok(None), Err)
}

/// Returns the ranges of code that report failures in the middle of a call. There are none if
/// nothing receives or sends.
fn interim(spec: &CallSpec, copy: &SitedCopy) -> Result<Vec<(u64, u64)>, Refusal> {
    let functions = spec.not_within.iter().flat_map(|name| copy.interim(name));
    let mut ranges: Vec<_> = functions.map(|function| (function.entry, function.end)).collect();
    ranges.sort_unstable();
    ranges.dedup_by(|next, range| {
        let is_one = next.0 <= range.1;
        if is_one {
            range.1 = range.1.max(next.1);
        }
        is_one
    });
    if ranges.len() > INTERIM_RANGES {
        return Err(Refusal::TooMuch("pieces of code that tell failures in the middle of calls"));
    }
    Ok(ranges)
}

/// Resolves the conditions for a hit to count.
fn conditions(spec: &CallSpec, walk: &mut Walk<'_, '_>) -> Result<Conditions, Refusal> {
    let mut equal = |(paths, operand): &(Alternatives, u32)| {
        let (place, width) = first_of(paths, |path| walk.number(path))?;
        Ok::<_, Refusal>(Asked { places: vec![place], op: TestOp::Equal, width, operand: *operand })
    };
    let gates = spec.only_if.iter().map(&mut equal).collect::<Result<Vec<_>, _>>()?;
    let begins = spec.begins_if.as_ref().map(&mut equal).transpose()?;
    let first = spec.first_if.as_ref().map(equal).transpose()?;
    if gates.len() > GATES {
        return Err(Refusal::TooMuch("conditions"));
    }
    Ok(Conditions { begins, first, gates })
}

/// Follows paths from another root, then restores the old one.
fn beside<T>(
    walk: &mut Walk<'_, '_>,
    root: NodeId,
    object: u64,
    follow: impl FnOnce(&mut Walk<'_, '_>) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let before = (walk.root, walk.object);
    (walk.root, walk.object) = (root, object);
    let found = follow(walk);
    (walk.root, walk.object) = before;
    found
}

fn truth_values(walk: &mut Walk<'_, '_>, client: &str, server: &str) -> Result<[Place; 2], Refusal> {
    let mut value = |path: &str| walk.value(path, "a bool", 1, |kind| kind == Kind::Bool);
    Ok([value(client)?, value(server)?])
}

fn missing(copy: &SitedCopy, entries: &[Entry]) -> Refusal {
    let name = entries.first().map_or("", |entry| &entry.function);
    Refusal::FunctionMissing(copy.symbol(name))
}

/// Returns what is found for the first path that exists, or why the last one does not.
fn first_of<T>(paths: &[String], mut find: impl FnMut(&str) -> Result<T, Refusal>) -> Result<T, Refusal> {
    let mut refusal = Refusal::TypeMissing(String::new());
    for path in paths {
        match find(path) {
            Err(why @ Refusal::FieldMissing { .. }) => refusal = why,
            found => return found,
        }
    }
    Err(refusal)
}

/// Returns the address of the type at the end of the first way that exists.
pub(super) fn type_at_end(ways: &[Way], resolver: &mut Resolver<'_>) -> Result<u64, Refusal> {
    let mut refusal = Refusal::TypeMissing(String::new());
    for way in ways {
        let Some(itab) = resolver.itab(&way.interface, &way.concrete)? else {
            refusal = Refusal::TypeMissing(way.concrete.trim_start_matches('.').to_owned());
            continue;
        };
        match resolver.type_behind(itab.pointee, &way.fields) {
            Ok(found) => return Ok(found.address),
            Err(why @ Refusal::Image(_)) => return Err(why),
            Err(why) => refusal = why,
        }
    }
    Err(refusal)
}

/// Returns the places of a status and its code, from what the finish gets.
fn status(spec: &'static StatusSpec, finish: &Entry, walk: &mut Walk<'_, '_>) -> Result<Status, Refusal> {
    let missing = || Refusal::TypeMissing(spec.error.clone());
    let error = walk.resolver.itab("error", &spec.error)?.ok_or_else(missing)?;
    let (well_type, well_text) = &spec.well;
    let well = walk.resolver.itab_of_error(well_type)?.map_or(0, |itab| itab.address);
    let wrap = wrap(spec, walk.resolver)?;
    let is_error = finish.error.is_some();
    let (object, prefix) = if is_error {
        (error.pointee, format!("{}.", spec.from_error))
    } else {
        (walk.resolver.type_behind(error.pointee, &[&spec.from_error])?.address, String::new())
    };
    let (message, code) = beside(walk, STATUS, object, |walk| {
        let (message, _) = walk.number(&format!("{prefix}{}", spec.message))?;
        let path = format!("{prefix}{}.{}", spec.message, spec.code);
        let code = walk.value(&path, "a number of 4 bytes", 4, |kind| kind == Kind::Int32)?;
        Ok((message, code))
    })?;
    let (error, well, wrap) = if is_error { (error.address, well, wrap) } else { (0, 0, (0, 0)) };
    Ok(Status { error, well, well_text, wrap, message, code })
}

/// Returns the itab of errors that wrap another one, and the offset of the wrapped one.
fn wrap(spec: &StatusSpec, resolver: &mut Resolver<'_>) -> Result<(u64, u8), Refusal> {
    let (wrap_type, field) = &spec.wrap;
    let Some(itab) = resolver.itab_of_error(wrap_type)? else { return Ok((0, 0)) };
    let field = resolver.field(itab.pointee, field)?;
    let at = u8::try_from(field.offset).map_err(|_| Refusal::TooMuch("bytes in an error"))?;
    if field.field_type.kind != Kind::Interface {
        return Err(Refusal::wrong_type(wrap_type, &field.field_type.name, "around an error"));
    }
    Ok((itab.address, at))
}
