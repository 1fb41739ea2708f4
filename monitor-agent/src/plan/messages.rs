//! Finds where the functions for messages of streams say whether there was a message.
//!
//! Their last argument is a struct, which holds an error if there was no message: the end of a stream is
//! an event, as a message is.

use super::{
    Refusal,
    resolve::{PARAMETER_COUNT, PARAMETERS, Resolver},
};
use crate::{
    frameworks::{Framework, MessageSpec, Route},
    image::{Kind, Type},
};

/// The number of integer registers in Go's calling convention on amd64 (`abi-internal.md`).
const REGISTERS: u64 = 9;
/// The offset of the first stack argument from the stack pointer at entry, above the return address, in bytes.
const FIRST_ON_STACK: u64 = 8;
/// The arguments before the struct: receiver, context and object.
const BEFORE: usize = 2;
/// The maximum nesting depth of structs.
const MAX_DEPTH: usize = 8;

/// The offsets, from the stack pointer at entry, of the type word of a message's error, for a message sent and one
/// received. In bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ErrorPlaces {
    pub(super) sent: u16,
    pub(super) received: u16,
}

/// Finds the errors through the types of the functions that the framework stores for these events.
pub(super) fn error_places(
    framework: &Framework,
    resolver: &mut Resolver<'_>,
) -> Result<ErrorPlaces, Refusal> {
    let spec = &framework.messages;
    let mut known = None;
    for route in &spec.routes {
        let Some(itab) = resolver.itab(&route.way.interface, &route.way.concrete)? else { continue };
        let found = of_route(spec, route, itab.pointee, framework, resolver)?;
        if known.is_some_and(|known| known != found) {
            return Err(Refusal::wrong_type(&spec.error, "at several places", "at one"));
        }
        known = Some(found);
    }
    known.ok_or_else(|| {
        Refusal::TypeMissing(spec.routes.first().map_or("", |route| &route.way.concrete).to_owned())
    })
}

fn of_route(
    spec: &MessageSpec,
    route: &Route,
    start: u64,
    framework: &Framework,
    resolver: &mut Resolver<'_>,
) -> Result<ErrorPlaces, Refusal> {
    let before = framework.object.data as u64 + 1;
    let mut place = |field: &str| {
        let fields: Vec<_> = route.way.fields.iter().map(String::as_str).chain([field]).collect();
        let function = resolver.type_behind(start, &fields)?;
        let event = last_parameter(&function, resolver)?;
        on_stack(spec, &event, before, resolver)
    };
    Ok(ErrorPlaces { sent: place(&route.sent)?, received: place(&route.received)? })
}

/// Returns the struct that is the third and last parameter of an unnamed function type.
fn last_parameter(function: &Type, resolver: &Resolver<'_>) -> Result<Type, Refusal> {
    let wrong =
        || Refusal::wrong_type("a stream's event handler", &function.name, "a function of three arguments");
    if function.kind != Kind::Func || function.pkg_path.is_some() {
        return Err(wrong());
    }
    let [counts] = resolver.words(function.address.saturating_add(PARAMETER_COUNT))?;
    if counts & 0xffff != BEFORE as u64 + 1 {
        return Err(wrong());
    }
    let [_, _, last] = resolver.words(function.address.saturating_add(PARAMETERS))?;
    let last = resolver.type_at(last)?;
    if last.kind == Kind::Struct { Ok(last) } else { Err(wrong()) }
}

/// Returns the offset of an event's error on the stack. Go passes a whole argument there if the remaining registers
/// can't hold all of it.
fn on_stack(
    spec: &MessageSpec,
    event: &Type,
    before: u64,
    resolver: &mut Resolver<'_>,
) -> Result<u16, Refusal> {
    let wrong = |found: &str, expected| Refusal::wrong_type(&event.name, found, expected);
    let words = integer_words(event, resolver, 0)?;
    if words + before <= REGISTERS {
        return Err(wrong("passed in registers", "on the stack"));
    }
    let field = resolver.field(event.address, &spec.error)?;
    if field.field_type.name != super::resolve::ERROR || !field.offset.is_multiple_of(8) {
        return Err(wrong(&field.field_type.name, "an event with an error"));
    }
    let offset = FIRST_ON_STACK.saturating_add(field.offset);
    u16::try_from(offset).map_err(|_| Refusal::TooMuch("bytes in a stream's event"))
}

/// The number of integer registers that a value takes, at least. Floating-point numbers take other registers.
fn integer_words(found: &Type, resolver: &Resolver<'_>, depth: usize) -> Result<u64, Refusal> {
    if depth > MAX_DEPTH {
        return Err(Refusal::TooMuch("structs in a stream's event"));
    }
    Ok(match found.kind {
        Kind::Struct => {
            let mut words = 0;
            for field in &found.fields {
                words += integer_words(&resolver.type_at(field.type_address)?, resolver, depth + 1)?;
            }
            words
        }
        Kind::String | Kind::Interface => 2,
        Kind::Slice => 3,
        Kind::Float32 | Kind::Float64 | Kind::Complex64 | Kind::Complex128 | Kind::Array => 0,
        _ => 1,
    })
}
