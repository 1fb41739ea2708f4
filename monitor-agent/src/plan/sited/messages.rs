//! Finds the methods that the messages of streams go through, for calls that are identified by the
//! function that they enter.

use monitor_ebpf::{MESSAGE_SITES, Messages, NO_FIELD};

use super::find::type_at_end;
use crate::{
    frameworks::{ObjectOf, SitedMessages},
    image::{GoImage, Image, Kind},
    plan::{
        Refusal, Role, Site,
        copies::SitedCopy,
        recipe::moved,
        resolve::{FieldRef, Resolver},
        site::{check_arguments, find_site_of, return_sites_of},
    },
};

/// The methods of one kind of call, and how to get from their receiver to the call's object.
#[derive(Clone, Copy, Debug)]
pub(super) struct MessagePlan {
    /// The addresses of the sites at their entries.
    entered: [u64; MESSAGE_SITES],
    object: Object,
    /// The offset of the description in the receiver, and of its two bools.
    description: Option<(u16, [u16; 2])>,
}

/// Where the receiver holds the object.
#[derive(Clone, Copy, Debug)]
enum Object {
    Itself,
    Pointer(u16),
    /// The offset of an interface, the itab of the object's type in it, and the itab of a type that is no call, or 0.
    Interface(u16, u64, u64),
}

/// Finds and proves the first methods that exist, with their sites.
pub(super) fn find(
    specs: &'static [SitedMessages],
    object: u64,
    copy: &SitedCopy,
    file: (&Image, &GoImage<'_>),
    resolver: &mut Resolver<'_>,
) -> Result<(MessagePlan, Vec<Site>), Refusal> {
    let mut missing = Refusal::NoShape;
    for spec in specs {
        let mut sites = Vec::new();
        let mut entered = [0; MESSAGE_SITES];
        let functions = [(&spec.sent, Role::Sent), (&spec.received, Role::Received)];
        for (address, (name, role)) in entered.iter_mut().zip(functions) {
            match sites_of(name, role, &spec.arguments, copy, file) {
                Ok(found) => {
                    *address = found.first().map_or(0, |site| site.address);
                    sites.extend(found);
                }
                Err(why @ Refusal::FunctionMissing(_)) => missing = why,
                Err(why) => return Err(why),
            }
        }
        if entered.contains(&0) {
            continue;
        }
        let receiver = type_at_end(&spec.receiver, resolver)?;
        let plan = MessagePlan {
            entered,
            object: object_of(&spec.object, receiver, object, resolver)?,
            description: description(&spec.description, receiver, resolver)?,
        };
        return Ok((plan, sites));
    }
    Err(missing)
}

/// Returns the sites at a function's entry and returns.
fn sites_of(
    name: &str,
    role: Role,
    arguments: &str,
    copy: &SitedCopy,
    (image, go): (&Image, &GoImage<'_>),
) -> Result<Vec<Site>, Refusal> {
    let function = copy.function(name)?.ok_or_else(|| Refusal::FunctionMissing(copy.symbol(name)))?;
    let found = check_arguments(function, arguments, go)?;
    if found != arguments {
        return Err(Refusal::wrong_arguments(&function.name, found, arguments));
    }
    let mut sites = vec![find_site_of(Role::Entered, function, image, go)?];
    sites.extend(return_sites_of(role, function, image, go)?);
    Ok(sites)
}

/// Proves that the receiver leads to an object of the call's type.
fn object_of(
    spec: &ObjectOf,
    receiver: u64,
    object: u64,
    resolver: &mut Resolver<'_>,
) -> Result<Object, Refusal> {
    match spec {
        ObjectOf::Itself if receiver == object => Ok(Object::Itself),
        ObjectOf::Itself => Err(Refusal::TypeTwice(resolver.type_at(object)?.name)),
        ObjectOf::Pointer(name) => {
            let field = resolver.field(receiver, name)?;
            if field.field_type.kind != Kind::Pointer || field.field_type.elem != Some(object) {
                return Err(Refusal::wrong_type(name, &field.field_type.name, "a pointer to the call"));
            }
            Ok(Object::Pointer(half(&field)?))
        }
        ObjectOf::Interface { field: name, holds, no_call } => {
            let field = resolver.field(receiver, name)?;
            if field.field_type.kind != Kind::Interface {
                return Err(Refusal::wrong_type(name, &field.field_type.name, "an interface"));
            }
            let held = resolver.itab_of(&field.field_type, holds)?.filter(|itab| itab.pointee == object);
            let held = held.ok_or_else(|| Refusal::TypeMissing(holds.trim_start_matches('.').to_owned()))?;
            let no_call = resolver.itab_of(&field.field_type, no_call)?.map_or(0, |itab| itab.address);
            Ok(Object::Interface(half(&field)?, held.address, no_call))
        }
    }
}

/// Returns the offsets of the description and its bools; `None` if the receiver has no description.
fn description(
    [name, client, server]: &[String; 3],
    receiver: u64,
    resolver: &mut Resolver<'_>,
) -> Result<Option<(u16, [u16; 2])>, Refusal> {
    let field = match resolver.field(receiver, name) {
        Ok(field) => field,
        Err(Refusal::FieldMissing { .. }) => return Ok(None),
        Err(why) => return Err(why),
    };
    let described = field.field_type.elem.filter(|_| field.field_type.kind == Kind::Pointer);
    let wrong = || Refusal::wrong_type(name, &field.field_type.name, "a pointer to a description");
    let described = described.ok_or_else(wrong)?;
    let mut streams = |name: &str| {
        let field = resolver.field(described, name)?;
        if field.field_type.kind != Kind::Bool {
            return Err(Refusal::wrong_type(name, &field.field_type.name, "a bool"));
        }
        half(&field)
    };
    let streams = [streams(client)?, streams(server)?];
    Ok(Some((half(&field)?, streams)))
}

/// The offset of a field in the format of the programs.
fn half(field: &FieldRef) -> Result<u16, Refusal> {
    let offset = u16::try_from(field.offset).ok().filter(|offset| *offset != NO_FIELD);
    offset.ok_or(Refusal::TooMuch("bytes in a stream"))
}

impl MessagePlan {
    /// Returns the values for a process whose executable is loaded `bias` bytes above its link-time addresses.
    pub(super) fn to_messages(self, bias: u64) -> Messages {
        let (object_at, object_word, no_call_word) = match self.object {
            Object::Itself => (NO_FIELD, 0, 0),
            Object::Pointer(at) => (at, 0, 0),
            Object::Interface(at, held, no_call) => (at, held, no_call),
        };
        let (description_at, streams_at) = self.description.unwrap_or((NO_FIELD, [NO_FIELD; 2]));
        Messages {
            entered: self.entered.map(|address| moved(address, bias)),
            object_word: moved(object_word, bias),
            no_call_word: moved(no_call_word, bias),
            object_at,
            description_at,
            streams_at,
        }
    }
}
