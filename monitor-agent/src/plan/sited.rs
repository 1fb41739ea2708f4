//! Calls that are told by the function that they enter, proven in an executable.

use std::slice;

use monitor_ebpf::{
    CodeRange, FINISH_SITES, GATES, Given, INTERIM_RANGES, LABELS, Messages, NO_SCRATCH, Shape, Sited,
    TestOp, policy, stream, window_use,
};

use super::{
    Refusal, Role, Site, Wanted,
    copies::SitedCopy,
    layout::{Asked, DESCRIPTION, Needs, NodeId, Nodes, Place, ROOT, STATUS, as_program},
    or_note,
    recipe::argument,
    resolve::Resolver,
    shape::Walk,
    site::{check_not_inlined, find_site_of, tested_call_of},
    sited_messages::{self, MessagePlan},
};
use crate::{
    frameworks::{Alternatives, CallSpec, Entry, KindSpec, Side, SitedFramework, StatusSpec, Way},
    image::{GoImage, Image, Kind, REGISTER_WORDS, WantedError},
};

/// Longest text that the programs compare.
const TEXT_MAX: usize = 8;
/// Where the error is of what a function gives that gives nothing else.
const ONLY_ERROR: usize = 0;

/// A kind of call: where it starts and finishes, and what lies where then.
#[derive(Clone, Debug)]
pub(super) struct SitedCall {
    spec: &'static CallSpec,
    start: Option<(u64, &'static Entry)>,
    finishes: Vec<u64>,
    /// How far above the stack pointer the object's address lies at a finish; 0 where it is in a register.
    kept_at: u16,
    finish: &'static Entry,
    nodes: Nodes,
    key: Option<Place>,
    method: Place,
    streams: Option<[Place; 2]>,
    status: Status,
    /// What must hold for a hit of the start to be one.
    begins: Option<Asked>,
    /// What must hold for a finish without a start to be the first of its call.
    first: Option<Asked>,
    gates: Vec<Asked>,
    /// An end that only an error tells.
    given: Given,
    /// Where the code lies that tells failures in the middle of a call: from, to.
    interim: Vec<(u64, u64)>,
    messages: Option<MessagePlan>,
}

/// Where the code of a finish's status lies.
#[derive(Clone, Debug)]
struct Status {
    /// Itab of the errors that have one; 0 where the finish gets a status itself.
    error: u64,
    /// Itab of the errors that may say that all is well; 0 if there are none.
    well: u64,
    well_text: &'static str,
    /// Itab of the errors that wrap another, and where it lies in them; 0 if there are none.
    wrap: (u64, u8),
    message: Place,
    code: Place,
}

/// The calls of a copy of a framework, their sites with the finishes first, and notes about what can't be told.
pub(super) struct Found {
    pub(super) calls: Vec<SitedCall>,
    pub(super) sites: Vec<Site>,
    /// Sites of messages, entries first.
    pub(super) message_sites: Vec<Site>,
    pub(super) notes: Vec<String>,
    /// Notes about calls that are not watched at all.
    pub(super) unwatched: Vec<String>,
}

/// Finds and proves everything that `framework` names in one of its copies.
pub(super) fn find(
    framework: &'static SitedFramework,
    copy: &SitedCopy,
    (image, go): (&Image, &GoImage<'_>),
    resolver: &mut Resolver<'_>,
) -> Result<Found, Refusal> {
    let mut finder = Finder {
        framework,
        copy,
        image,
        go,
        sites: Vec::new(),
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
        let known = finder.sites.len();
        match finder.call(spec, resolver) {
            Err(why) if framework.has_substitute(spec) && is_about_code(&why) => {
                finder.sites.truncate(known);
                finder.notes.push(format!(
                    "{}: not all of their ends can be seen ({})",
                    spec.name,
                    why.reason()
                ));
            }
            call => calls.extend(call?),
        }
    }
    let Finder { mut sites, mut message_sites, notes, .. } = finder;
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

/// Refuses sites of one role at which hits are told from others in different ways: the programs have one way for all.
pub(super) fn same_kinds(sites: &[Site]) -> Result<(), Refusal> {
    for role in [Role::Start, Role::Finish, Role::Entered] {
        let mut flags = sites.iter().filter(|site| site.role == role).filter_map(Site::skip_flags);
        let first = flags.next();
        if flags.any(|other| Some(other) != first) {
            return Err(Refusal::TooMuch("kinds of sites"));
        }
    }
    Ok(())
}

/// Whether it is the code of a function that something can't be proven of.
fn is_about_code(why: &Refusal) -> bool {
    matches!(
        why,
        Refusal::Inlined { .. }
            | Refusal::NoSite { .. }
            | Refusal::TooMuch(_)
            | Refusal::WrongArguments { .. }
    )
}

struct Finder<'a> {
    framework: &'static SitedFramework,
    copy: &'a SitedCopy,
    image: &'a Image,
    go: &'a GoImage<'a>,
    sites: Vec<Site>,
    message_sites: Vec<Site>,
    notes: Vec<String>,
}

impl Finder<'_> {
    /// The sides of whose calls not all enter the functions that tell them, since one is inlined somewhere, and why. None of a
    /// side is watched then: its other calls would look as if they were all.
    fn hidden_sides(&self) -> Result<Vec<(Side, Refusal)>, Refusal> {
        let mut hidden: Vec<(Side, Refusal)> = Vec::new();
        for spec in &self.framework.calls {
            // Whether a call of what gives an error can be found is asked where that is wanted.
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

    /// Refuses a function of this name that not all of its calls enter.
    fn check_entered(&self, name: &str) -> Result<(), Refusal> {
        let function = self.copy.function(name)?;
        let interim = self.copy.interim(name).filter(|function| function.name.ends_with(name));
        function.into_iter().chain(interim).try_for_each(|function| check_not_inlined(function, self.go))
    }

    /// A kind of call; `None` where it can't happen.
    fn call(
        &mut self,
        spec: &'static CallSpec,
        resolver: &mut Resolver<'_>,
    ) -> Result<Option<SitedCall>, Refusal> {
        let start = self.entry(Role::Start, &spec.start)?;
        if start.is_none() && spec.variant_of.is_none() {
            return Ok(None);
        }
        let mut finishes = Vec::new();
        let mut kept = Vec::new();
        let mut finish = None;
        for (index, entries) in spec.finishes.iter().enumerate() {
            match self.finish(entries)? {
                Some((address, kept_at, entry)) => {
                    finishes.push(address);
                    kept.push(kept_at);
                    finish = finish.or(Some(entry));
                }
                None if index == 0 && spec.variant_of.is_some() => return Ok(None),
                None if index == 0 => return Err(missing(self.copy, entries)),
                None => {}
            }
        }
        let Some(finish) = finish.filter(|_| finishes.len() <= FINISH_SITES) else {
            return Err(Refusal::TooMuch("ends of a call"));
        };
        kept.dedup();
        let [kept_at] = *kept else { return Err(Refusal::TooMuch("places where a call's object is kept")) };
        let object = type_at_end(&spec.object, resolver)?;
        let mut walk = Walk { nodes: Nodes::with_arguments(), root: ROOT, object, resolver };
        let method =
            first_of(&spec.method, |path| walk.value(path, "a string", 16, |kind| kind == Kind::String))?;
        let key = spec.key.as_ref().map(|path| walk.number(path)).transpose()?.map(|(place, _)| place);
        let mut gates = Vec::new();
        let mut equal = |(paths, operand): &(Alternatives, u32)| {
            let (place, width) = first_of(paths, |path| walk.number(path))?;
            Ok::<_, Refusal>(Asked { places: vec![place], op: TestOp::Equal, width, operand: *operand })
        };
        for condition in &spec.only_if {
            gates.push(equal(condition)?);
        }
        let begins = spec.begins_if.as_ref().map(&mut equal).transpose()?;
        let first = spec.first_if.as_ref().map(equal).transpose()?;
        if gates.len() > GATES {
            return Err(Refusal::TooMuch("conditions"));
        }
        let streams = self.streams(spec, &mut walk)?;
        let status = status(&self.framework.status, finish, &mut walk)?;
        let nodes = walk.nodes;
        let given = self.error_end(spec, resolver);
        let without = format!("{}: not all of their ends can be seen", spec.name);
        let given = or_note(given, &without, &mut self.notes)?.flatten().unwrap_or(Given::NONE);
        let messages = self.messages(spec, object, resolver)?;
        let interim = if self.ends_once(spec, resolver)? { Vec::new() } else { interim(spec, self.copy)? };
        Ok(Some(SitedCall {
            spec,
            start,
            finishes,
            kept_at,
            finish,
            nodes,
            key,
            method,
            streams,
            status,
            begins,
            first,
            gates,
            given,
            interim,
            messages,
        }))
    }

    /// Whether nothing is told of a call behind the first failure that is told. Then that is its end, which is a note, since
    /// the handler may make something else of it.
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

    /// Where the messages of its streams go through. That they can't be counted is a note.
    fn messages(
        &mut self,
        spec: &'static CallSpec,
        object: u64,
        resolver: &mut Resolver<'_>,
    ) -> Result<Option<MessagePlan>, Refusal> {
        if spec.messages.is_empty() {
            return Ok(None);
        }
        let found = sited_messages::find(&spec.messages, object, self.copy, (self.image, self.go), resolver);
        let without = format!("{}: the messages of streams can't be counted", spec.name);
        let found = or_note(found, &without, &mut self.notes)?;
        Ok(found.map(|(messages, sites)| {
            self.message_sites.extend(sites);
            messages
        }))
    }

    /// The first of these functions that is there with its arguments, and a site in it.
    fn entry(
        &mut self,
        role: Role,
        entries: &'static [Entry],
    ) -> Result<Option<(u64, &'static Entry)>, Refusal> {
        let mut refusal = None;
        for entry in entries {
            let Some(function) = self.copy.function(&entry.function)? else { continue };
            let found = self.go.arguments(function)?.unwrap_or_default();
            if !found.starts_with(&entry.arguments) {
                refusal = Some(Refusal::WrongArguments {
                    symbol: function.name.clone(),
                    found,
                    expected: entry.arguments.clone(),
                });
                continue;
            }
            let is_same = |site: &&Site| site.entry == function.entry && site.kind.is_at_entry();
            let known = self.sites.iter().find(is_same);
            if let Some(site) = known {
                return Ok(Some((site.address, entry)));
            }
            let site = find_site_of(role, function, self.image, self.go)?;
            let address = site.address;
            self.sites.push(site);
            return Ok(Some((address, entry)));
        }
        refusal.map_or(Ok(None), Err)
    }

    /// The first of these ends that is there with its arguments: where its site is, and how far above the stack pointer the
    /// object lies then, or 0.
    fn finish(&mut self, entries: &'static [Entry]) -> Result<Option<(u64, u16, &'static Entry)>, Refusal> {
        let mut refusal = None;
        for entry in entries {
            let found = if entry.given_by.is_some() {
                self.given(entry)
            } else {
                let found = self.entry(Role::Finish, slice::from_ref(entry));
                found.map(|found| found.map(|(address, entry)| (address, 0, entry)))
            };
            match found {
                Ok(None) => {}
                Err(why @ Refusal::WrongArguments { .. }) => refusal = Some(why),
                found => return found,
            }
        }
        refusal.map_or(Ok(None), Err)
    }

    /// Where a function tests what another has given it, and how far above the stack pointer its first argument lies then.
    fn given(&mut self, entry: &'static Entry) -> Result<Option<(u64, u16, &'static Entry)>, Refusal> {
        let giver = entry.given_by.as_ref().map(|name| self.copy.function(name)).transpose()?.flatten();
        let (Some(function), Some(giver)) = (self.copy.function(&entry.function)?, giver) else {
            return Ok(None);
        };
        let found = self.go.arguments(function)?.unwrap_or_default();
        if !found.starts_with(&entry.arguments) {
            let (symbol, expected) = (function.name.clone(), entry.arguments.clone());
            return Err(Refusal::WrongArguments { symbol, found, expected });
        }
        let wanted =
            WantedError { error: entry.error.unwrap_or(ONLY_ERROR), kept: entry.object, only_errors: false };
        let (site, kept_at) = tested_call_of(Role::Finish, (function, giver), wanted, self.image, self.go)?;
        let address = site.address;
        self.sites.push(site);
        Ok(Some((address, kept_at, entry)))
    }

    /// The first of the ends that only an error tells which is there with its arguments; link-time addresses.
    fn error_end(
        &mut self,
        spec: &'static CallSpec,
        resolver: &mut Resolver<'_>,
    ) -> Result<Option<Given>, Refusal> {
        for end in &spec.error_ends {
            let giver = self.copy.function(&end.given_by)?;
            let (Some(function), Some(giver)) = (self.copy.function(&end.function)?, giver) else { continue };
            let found = self.go.arguments(function)?.unwrap_or_default();
            if !found.starts_with(&end.arguments) {
                continue;
            }
            // Words of their own, in the order of the registers.
            let words = found.chars().filter(|kind| *kind == 'w').count();
            if words > REGISTER_WORDS || !found.chars().all(|kind| matches!(kind, 'w' | '{' | '}')) {
                return Err(Refusal::TooMuch("arguments"));
            }
            // No such error can be.
            let Some(itab) = resolver.itab_of_value(&end.error)? else { return Ok(None) };
            let wanted = WantedError { error: ONLY_ERROR, kept: end.object, only_errors: true };
            let (site, kept_at) =
                tested_call_of(Role::Finish, (function, giver), wanted, self.image, self.go)?;
            let (place, word) = (site.address, itab.address);
            self.sites.push(site);
            let error = argument(ONLY_ERROR)? as u8;
            return Ok(Some(Given { place, word, kept_at, error, code: end.code, ..Given::NONE }));
        }
        Ok(None)
    }

    /// Where it lies whether client and server stream. That it can't be told is a note.
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
        match places {
            Ok(places) => Ok(Some(places)),
            Err(why @ Refusal::Image(_)) => Err(why),
            Err(why) => {
                let reason = why.reason();
                self.notes.push(format!("{}: kinds of streams can't be told ({reason})", spec.name));
                Ok(None)
            }
        }
    }
}

/// Where the code of the functions lies that tell failures in the middle of a call. None of them is there where nothing
/// receives or sends.
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

/// Follows paths from another root.
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

/// What the first of several paths leads to that leads anywhere; or why the last does not.
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

/// The address of the type that the first of several ways leads to whose types and fields are there.
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

/// Where a status and its code lie, from what the finish gets.
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

/// The itab of errors that wrap another, and where it lies in them.
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

impl SitedCall {
    /// The shape for a process whose executable lies `bias` bytes above its link-time addresses.
    pub(super) fn program(&self, bias: u64, wanted: Wanted) -> Result<Shape, Refusal> {
        let messages = self.messages.as_ref().filter(|_| wanted.grpc_messages);
        let windows = self.needs(messages.is_some()).windows(None)?;
        let mut labels = [NO_SCRATCH; LABELS];
        if let Some(label) = labels.first_mut() {
            *label = windows.at(self.method);
        }
        let mut sited = Sited {
            finish_object: argument(self.finish.object)? as u8,
            finish_argument: argument(self.finish.second)? as u8,
            finish_key: argument(self.finish.object)? as u8,
            finish_error: argument(self.finish.error.unwrap_or(self.finish.second))? as u8,
            kept_at: self.kept_at,
            key_at: self.key.map_or(NO_SCRATCH, |key| windows.at(key)),
            policy: self.policy(),
            message_at: windows.at(self.status.message),
            code_at: windows.at(self.status.code),
            ..Sited::UNUSED
        };
        let in_target = |address: u64| if address == 0 { 0 } else { address.wrapping_add(bias) };
        if let Some((address, entry)) = self.start {
            sited.start = in_target(address);
            sited.start_object = argument(entry.object)? as u8;
            sited.start_key = sited.start_object;
            sited.start_argument = argument(entry.second)? as u8;
        }
        for (place, address) in sited.finishes.iter_mut().zip(&self.finishes) {
            *place = in_target(*address);
        }
        sited.status_word = in_target(self.status.error);
        sited.well_word = in_target(self.status.well);
        let text = self.status.well_text.as_bytes();
        let text = text.get(..TEXT_MAX).unwrap_or(text);
        for (index, byte) in text.iter().enumerate() {
            sited.well_text |= u64::from(*byte) << (8 * index);
        }
        sited.wrap_word = in_target(self.status.wrap.0);
        sited.wrap_at = self.status.wrap.1;
        sited.well_length = u8::try_from(text.len()).unwrap_or(0);
        match (&self.spec.kind, self.streams) {
            (KindSpec::Unary, _) => sited.kind = stream::UNARY,
            (_, Some([client, server])) => {
                sited.client_streams_at = windows.at(client);
                sited.server_streams_at = windows.at(server);
            }
            _ => {}
        }
        if let Some(begins) = &self.begins {
            sited.begins = windows.test(begins);
        }
        if let Some(first) = &self.first {
            sited.first = windows.test(first);
        }
        for (place, gate) in sited.gates.iter_mut().zip(&self.gates) {
            *place = windows.test(gate);
        }
        if self.given != Given::NONE {
            let Given { place, word, .. } = self.given;
            sited.given = Given { place: in_target(place), word: in_target(word), ..self.given };
        }
        sited.messages = messages.map_or(Messages::NONE, |messages| messages.program(bias));
        for (place, (start, end)) in sited.interim.iter_mut().zip(&self.interim) {
            *place = CodeRange { start: in_target(*start), length: end - start };
        }
        let windows = as_program(bias, [&windows])?;
        Ok(Shape { side: self.spec.side.code(), labels, windows, sited, ..Shape::UNUSED })
    }

    fn policy(&self) -> u8 {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        bit(self.spec.first_finish, policy::FIRST_FINISH)
            | bit(self.kind_is_in_object(), policy::KIND_AT_FINISH)
            | policy::COUNT_STARTS
    }

    fn kind_is_in_object(&self) -> bool {
        matches!(self.spec.kind, KindSpec::Object(..))
    }

    fn needs(&self, messages: bool) -> Needs<'_> {
        // Told by the start, and else by the finish.
        let both = window_use::START | window_use::UNTOLD;
        let mut needs = Needs::new(&self.nodes);
        needs.add(self.method, 16, both | if messages { window_use::MESSAGE } else { 0 });
        if let Some(key) = self.key {
            needs.add(key, 8, window_use::KEY);
        }
        let kind = if self.kind_is_in_object() { both } else { window_use::START };
        for place in self.streams.into_iter().flatten() {
            needs.add(place, 1, kind);
        }
        needs.add(self.status.message, 8, window_use::FINISH);
        needs.add(self.status.code, 4, window_use::FINISH);
        let mut ask = |asked: &Asked, usage| {
            for place in &asked.places {
                needs.add(*place, u64::from(asked.width), usage);
            }
        };
        self.begins.iter().for_each(|begins| ask(begins, window_use::START));
        self.first.iter().for_each(|first| ask(first, window_use::UNTOLD));
        self.gates.iter().for_each(|gate| ask(gate, window_use::FINISH));
        needs
    }
}
