//! Calls that are identified by the type of their object, proven in an executable.

use monitor_ebpf::{MAX_SHAPES, Recipe, Register, Shape, TagMap};

use super::{
    Refusal, Role, Site, Wanted,
    copies::FrameworkCopy,
    errors::{self, ErrorPlan},
    messages::{self, ErrorPlaces},
    or_note,
    protocols::{self, ProtocolNames},
    recipe::{argument, moved, put_shapes},
    resolve::Resolver,
    shape::ShapePlan,
    site::find_site,
};
use crate::{
    frameworks::{Framework, Pair},
    image::{GoImage, Image},
};

/// The maximum number of a service's own types that a note names.
const FOREIGN_NAMED: usize = 4;

/// The calls of one copy of a framework: the types of their objects, and what else is read.
#[derive(Clone, Debug)]
pub(super) struct TypedCalls {
    /// Has at least one entry.
    shapes: Vec<ShapePlan>,
    /// The registers of the object's type word and address.
    object: (Register, Register),
    /// The registers of the error's type word and data, at the finish.
    error: (Register, Register),
    tag_map: TagMap,
    errors: Option<ErrorPlan>,
    /// Zeros if the messages of streams can't be counted.
    message_errors: ErrorPlaces,
    protocols: ProtocolNames,
}

/// The calls of a copy of a framework, the sites that count the messages of their streams, and
/// notes about what is unknown.
pub(super) struct Found {
    pub(super) calls: TypedCalls,
    pub(super) message_sites: Vec<Site>,
    pub(super) notes: Vec<String>,
}

/// Finds the finish and start sites, and checks the arguments of their functions.
pub(super) fn sites(
    framework: &Framework,
    copy: &FrameworkCopy,
    (image, go): (&Image, &GoImage<'_>),
) -> Result<Vec<Site>, Refusal> {
    let sites = sites_of([Role::Finish, Role::Start], framework, copy, (image, go))?;
    copy.check_arguments(go)?;
    Ok(sites)
}

fn sites_of(
    roles: [Role; 2],
    framework: &Framework,
    copy: &FrameworkCopy,
    (image, go): (&Image, &GoImage<'_>),
) -> Result<Vec<Site>, Refusal> {
    let site = |role| find_site(role, &copy.symbol(framework, role), &copy.functions, image, go);
    roles.into_iter().map(site).collect()
}

/// Finds and proves everything else that `framework` names in one of its copies.
pub(super) fn find(
    framework: &'static Framework,
    version: &str,
    copy: &FrameworkCopy,
    file: (&Image, &GoImage<'_>),
    resolver: &mut Resolver<'_>,
) -> Result<Found, Refusal> {
    let shapes = shapes(framework, resolver)?;
    let mut notes: Vec<_> = shapes.iter().flat_map(|shape| shape.notes.iter().cloned()).collect();
    let tag_map = shapes.iter().find_map(|shape| shape.tag_map).unwrap_or(TagMap::None);
    if tag_map == TagMap::None {
        notes.push("retry: the layout of Go maps isn't known here, so retries can't be told".to_owned());
    }
    notes.extend(foreign_types(framework, resolver));
    let (protocols, note) = ProtocolNames::of(&framework.protocols, version);
    notes.extend(note);
    notes.extend(protocols::untold(&framework.untold, version));
    let errors = or_note(
        ErrorPlan::make(&framework.errors, resolver),
        "errors can't be told apart, they count as other",
        &mut notes,
    )?;
    let messages = or_note(
        message_sites(framework, copy, file, resolver),
        "the messages of streams can't be counted",
        &mut notes,
    )?;
    let (message_sites, message_errors) = messages.unwrap_or_default();
    let calls = TypedCalls {
        shapes,
        object: registers(framework.object)?,
        error: registers(framework.error)?,
        tag_map,
        errors,
        message_errors,
        protocols,
    };
    Ok(Found { calls, message_sites, notes })
}

/// Plans the types that a call's object can have.
fn shapes(framework: &Framework, resolver: &mut Resolver<'_>) -> Result<Vec<ShapePlan>, Refusal> {
    let mut shapes = Vec::new();
    for spec in &framework.shapes {
        shapes.extend(ShapePlan::make(spec, resolver)?);
    }
    match shapes.len() {
        0 => Err(Refusal::NoShape),
        count if count > MAX_SHAPES => Err(Refusal::TooMuch("types of calls")),
        _ => Ok(shapes),
    }
}

/// Notes about a service's own types that implement the framework's interfaces.
fn foreign_types(framework: &Framework, resolver: &Resolver<'_>) -> Vec<String> {
    let interfaces = framework.open_interfaces.iter();
    let note = |(interface, what): &(String, String)| {
        let types = resolver.foreign(interface);
        let (named, more) = types.split_at(types.len().min(FOREIGN_NAMED));
        let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        let named = named.join(", ");
        (!named.is_empty())
            .then(|| format!("the service has types of its own as {interface} ({named}{more}): {what}"))
    };
    interfaces.filter_map(note).collect()
}

/// Finds the sites that count messages of streams, and where an event's error lies there.
fn message_sites(
    framework: &Framework,
    copy: &FrameworkCopy,
    (image, go): (&Image, &GoImage<'_>),
    resolver: &mut Resolver<'_>,
) -> Result<(Vec<Site>, ErrorPlaces), Refusal> {
    // Look for the functions first: if the release lacks them, that is the better reason.
    let sites = sites_of([Role::Sent, Role::Received], framework, copy, (image, go))?;
    copy.check_message_arguments(framework, go)?;
    Ok((sites, messages::error_places(framework, resolver)?))
}

fn registers(pair: Pair) -> Result<(Register, Register), Refusal> {
    Ok((argument(pair.type_word)?, argument(pair.data)?))
}

impl TypedCalls {
    /// The labels that this executable can have in addition to those that every call has.
    pub(super) fn more_labels(&self) -> impl Iterator<Item = &str> {
        let retry = (self.tag_map != TagMap::None).then_some("retry");
        let error_class = self.errors.is_some().then_some("error_class");
        retry.into_iter().chain(error_class)
    }

    /// Whether the number of retries can be read for every type that has one.
    pub(super) fn tells_retries(&self) -> bool {
        !self.shapes.iter().any(|shape| shape.lacks_retries)
    }

    /// Why the recorded start can't be read for any type; `None` if it can for at least one.
    pub(super) fn unrecorded(&self) -> Option<String> {
        let reasons: Option<Vec<_>> = self.shapes.iter().map(|shape| shape.unrecorded.as_deref()).collect();
        reasons.map(|reasons| reasons.join("; "))
    }

    /// The name of the error class that an object of the executable stands for.
    pub(super) fn error_class(&self, image: &Image, address: u64) -> &'static str {
        self.errors.as_ref().map_or(errors::OTHER, |errors| errors.class(image, address))
    }

    /// The name of a protocol.
    pub(super) fn protocol(&self, number: u16) -> String {
        self.protocols.name(number)
    }

    /// Writes these calls into the recipe of a process whose executable is loaded `bias` bytes above
    /// its link-time addresses.
    pub(super) fn put(&self, recipe: &mut Recipe, bias: u64, wanted: Wanted) -> Result<(), Refusal> {
        recipe.object_type = self.object.0 as u8;
        recipe.object = self.object.1 as u8;
        recipe.error = self.error.0 as u8;
        recipe.error_data = self.error.1 as u8;
        recipe.tag_map = if wanted.retries { self.tag_map } else { TagMap::None } as u8;
        recipe.sent_error_at = self.message_errors.sent;
        recipe.received_error_at = self.message_errors.received;
        if let Some(errors) = &self.errors {
            recipe.error_wrapped = errors.wrapped.wrapping_add(bias);
            recipe.error_wrapped_at = errors.wrapped_at;
            recipe.error_plain = moved(errors.plain, bias);
            recipe.error_carrier = moved(errors.carrier, bias);
            recipe.error_carries_at = errors.carries_at;
        }
        put_shapes(recipe, &self.shapes, |shape| as_far_as_there_is_room(shape, bias, wanted))
    }
}

/// Returns the shape for a process. Leaves out the peer's address, then the recorded start, if there is no room.
fn as_far_as_there_is_room(shape: &ShapePlan, bias: u64, wanted: Wanted) -> Result<Shape, Refusal> {
    match shape.to_shape(bias, wanted) {
        Err(Refusal::TooMuch(_)) if wanted.peers => {
            as_far_as_there_is_room(shape, bias, Wanted { peers: false, ..wanted })
        }
        Err(Refusal::TooMuch(_)) if wanted.recorded => {
            shape.to_shape(bias, Wanted { recorded: false, ..wanted })
        }
        other => other,
    }
}
