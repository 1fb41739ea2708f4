//! Errors: how the programs classify them, and the names of the classes.

use super::{
    Refusal,
    resolve::{ERROR, Resolver},
};
use crate::{
    frameworks::ErrorSpec,
    image::{Image, Kind},
};

/// The name of classes that the framework's description does not list.
pub(super) const OTHER: &str = "other";
/// The maximum length of a class's message, in bytes.
const MESSAGE_MAX: u64 = 128;

/// Where to find the class of an error. Addresses are link-time addresses.
#[derive(Clone, Debug)]
pub(super) struct ErrorPlan {
    /// The itab of errors that point to their class.
    pub(super) wrapped: u64,
    /// The offset of that pointer, in bytes.
    pub(super) wrapped_at: u16,
    /// The itab of the classes, which are errors themselves; 0 if no class is used as an error.
    pub(super) plain: u64,
    /// The itab of errors that can carry another error; 0 if there are none.
    pub(super) carrier: u64,
    /// The offset of the carried error, in bytes.
    pub(super) carries_at: u16,
    /// The offset of the message in a class, in bytes.
    message_at: u64,
    names: &'static [(String, String)],
    /// The itabs of other errors, each with the name of its class.
    types: Vec<(u64, &'static str)>,
}

impl ErrorPlan {
    /// Finds and proves what `spec` names.
    pub(super) fn make(spec: &'static ErrorSpec, resolver: &mut Resolver<'_>) -> Result<Self, Refusal> {
        let missing = |name: &str| Refusal::TypeMissing(name.to_owned());
        let wrapped = resolver.itab(ERROR, &spec.wrapped)?.ok_or_else(|| missing(&spec.wrapped))?;
        let points = resolver.field(wrapped.pointee, &spec.points)?;
        let wrong = |found: &str, expected| Refusal::wrong_type(&spec.points, found, expected);
        let class = match (points.field_type.kind, points.field_type.elem) {
            (Kind::Pointer, Some(class)) if resolver.is_named(class, &spec.class)? => class,
            _ => return Err(wrong(&points.field_type.name, "a pointer to a class of errors")),
        };
        let message = resolver.field(class, &spec.message)?;
        if message.field_type.kind != Kind::String {
            return Err(wrong(&message.field_type.name, "a string"));
        }
        let plain = resolver.itab(ERROR, &spec.class)?.map_or(0, |itab| itab.address);
        let mut types = Vec::new();
        for (name, class) in &spec.types {
            types.extend(resolver.itab(ERROR, name)?.map(|itab| (itab.address, class.as_str())));
        }
        let offset = |at| u16::try_from(at).map_err(|_| Refusal::TooMuch("bytes in an error"));
        let (carrier, carries_at) = match resolver.itab(ERROR, &spec.carrier)? {
            Some(carrier) => (carrier.address, offset(carried(spec, resolver, carrier.pointee)?)?),
            None => (0, 0),
        };
        Ok(Self {
            wrapped: wrapped.address,
            wrapped_at: offset(points.offset)?,
            plain,
            carrier,
            carries_at,
            message_at: message.offset,
            names: &spec.names,
            types,
        })
    }

    /// The name of the class that an object of the executable stands for. The object is a class, or the itab of
    /// another type of errors.
    pub(super) fn class(&self, image: &Image, address: u64) -> &'static str {
        if let Some((_, class)) = self.types.iter().find(|(itab, _)| *itab == address) {
            return class;
        }
        let message = self.message(image, address);
        let named = self.names.iter().find(|(text, _)| Some(text.as_bytes()) == message.as_deref());
        named.map_or(OTHER, |(_, class)| class)
    }

    /// Reads the message of a class from the file, where the linker has put it.
    fn message(&self, image: &Image, address: u64) -> Option<Vec<u8>> {
        let header = image.read(address.checked_add(self.message_at)?, 16).ok()?;
        let (pointer, length) = header.split_at_checked(8)?;
        let word = |bytes: &[u8]| Some(u64::from_le_bytes(bytes.try_into().ok()?));
        let (pointer, length) = (word(pointer)?, word(length)?);
        let length = usize::try_from(length).ok().filter(|_| length <= MESSAGE_MAX)?;
        image.read(pointer, length).ok()
    }
}

/// The offset of the error in a carrier.
fn carried(spec: &ErrorSpec, resolver: &mut Resolver<'_>, carrier: u64) -> Result<u64, Refusal> {
    let field = resolver.field(carrier, &spec.carries)?;
    if field.field_type.kind != Kind::Interface {
        return Err(Refusal::wrong_type(&spec.carries, &field.field_type.name, "an error"));
    }
    Ok(field.offset)
}
