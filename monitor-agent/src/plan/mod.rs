//! Plans: a framework's names, found and proven in one executable.
//!
//! A plan is all that the kernel side will ever see of a framework: sites, and a recipe made of registers,
//! offsets and type words. It carries the evidence for every number in it. `inspect` prints a plan, `run`
//! attaches one; nothing else lies between knowing and doing.

mod alternatives;
mod copies;
mod described;
mod errors;
mod inspection;
mod layout;
mod messages;
mod native;
mod protocols;
mod reach;
mod recipe;
mod refusal;
mod resolve;
mod shape;
mod site;
mod sited;
mod witness;

use std::{ops::Range, sync::Arc};

use monitor_ebpf::{MAX_SHAPES, Register, TagMap};
use serde::Serialize;

pub use inspection::{Found, Inspection, OfSpec};
pub use recipe::Wanted;
pub use refusal::Refusal;
pub use shape::ShapePlan;
pub use site::{Role, Site, SiteChoosing, cost_name};

use copies::{FrameworkCopy, SitedCopy};
use described::Described;
use errors::ErrorPlan;
use messages::ErrorPlaces;
use native::NativePlan;
use protocols::ProtocolNames;
use recipe::argument;
use resolve::Resolver;
use site::find_site;
use sited::SitedCall;

use crate::{
    frameworks::{Framework, SitedFramework},
    image::{GoImage, Image},
    specs::Spec,
};

/// A number of a plan, and where it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Offset {
    /// What it is the offset of: `type.field`, or the itab of a pair of types.
    pub name: String,
    /// The number.
    pub value: u64,
    /// What proves it.
    pub evidence: String,
}

/// Types of a service's own that a note has by name.
const FOREIGN_NAMED: usize = 4;

/// What one framework in one executable needs to be watched.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the probes go, finish sites first: the order of attaching.
    pub sites: Vec<Site>,
    /// Where they go to count the messages of streams, on request only.
    pub message_sites: Vec<Site>,
    /// The types that calls come as.
    pub shapes: Vec<ShapePlan>,
    /// Every number found, with its evidence.
    pub offsets: Vec<Offset>,
    /// What can't be told in this executable, in words.
    pub notes: Vec<String>,
    /// Those of them about calls that are not watched at all.
    pub unwatched: Vec<String>,
    /// The kinds of calls, where they are told by site. There are no shapes then.
    calls: Vec<SitedCall>,
    /// What a spec describes, where that is what the plan is for.
    operations: Vec<Described>,
    /// The same, of native functions.
    native: Option<NativePlan>,
    label_names: Vec<String>,
    object: (Register, Register),
    error: (Register, Register),
    tag_map: TagMap,
    errors: Option<ErrorPlan>,
    message_errors: ErrorPlaces,
    protocols: Option<ProtocolNames>,
    /// Link-time addresses of the executable.
    image: Range<u64>,
    /// Link-time addresses of read-only data.
    literals: Range<u64>,
}

impl Plan {
    /// Finds and proves everything that `framework` names in one of its copies.
    fn make(
        framework: &'static Framework,
        version: &str,
        copy: &FrameworkCopy,
        image: &Image,
        go: &GoImage<'_>,
    ) -> Result<Self, Refusal> {
        let site = |role| find_site(role, &copy.symbol(framework, role), &copy.functions, image, go);
        let sites = vec![site(Role::Finish)?, site(Role::Start)?];
        copy.check_arguments(go)?;

        let mut resolver = Resolver::new(&copy.module, &[], image, go)?;
        let mut shapes = Vec::new();
        for spec in &framework.shapes {
            shapes.extend(ShapePlan::make(spec, &mut resolver)?);
        }
        if shapes.is_empty() {
            return Err(Refusal::NoShape);
        }
        if shapes.len() > MAX_SHAPES {
            return Err(Refusal::TooMuch("types of calls"));
        }
        let mut notes: Vec<_> = shapes.iter().flat_map(|shape| shape.notes.iter().cloned()).collect();
        let tag_map = shapes.iter().find_map(|shape| shape.tag_map).unwrap_or(TagMap::None);
        if tag_map == TagMap::None {
            notes.push("retry: the layout of Go maps isn't known here, so retries can't be told".to_owned());
        }
        notes.extend(foreign_types(framework, &resolver));
        let (protocols, note) = ProtocolNames::of(&framework.protocols, version);
        notes.extend(note);
        let errors = or_note(
            ErrorPlan::make(&framework.errors, &mut resolver),
            "errors can't be told apart, they count as other",
            &mut notes,
        )?;
        // Whether the release has these functions is asked first: it is the better reason.
        let messages = site(Role::Sent).and_then(|sent| {
            let sites = vec![sent, site(Role::Received)?];
            copy.check_message_arguments(framework, go)?;
            Ok((sites, messages::error_places(framework, &mut resolver)?))
        });
        let messages = or_note(messages, "the messages of streams can't be counted", &mut notes)?;
        let (message_sites, message_errors) = messages.unwrap_or_default();
        let plan = Self {
            message_sites,
            shapes,
            label_names: framework.metrics.labels.clone(),
            object: (argument(framework.object.type_word)?, argument(framework.object.data)?),
            error: (argument(framework.error.type_word)?, argument(framework.error.data)?),
            tag_map,
            errors,
            message_errors,
            protocols: Some(protocols),
            ..Self::of_sites(sites, notes, resolver, image)?
        };
        plan.fitting()?.with_note_if_all_is_too_much()
    }

    /// The same for a framework whose calls are told by site.
    fn make_sited(
        framework: &'static SitedFramework,
        copy: &SitedCopy,
        image: &Image,
        go: &GoImage<'_>,
    ) -> Result<Self, Refusal> {
        let others = [&*framework.status.well.0, &*framework.status.wrap.0];
        let mut resolver = Resolver::new(&copy.module, &others, image, go)?;
        let sited::Found { calls, sites, message_sites, mut notes, unwatched } =
            sited::find(framework, copy, (image, go), &mut resolver)?;
        notes.extend(unwatched.iter().cloned());
        if calls.len() > MAX_SHAPES {
            return Err(Refusal::TooMuch("kinds of calls"));
        }
        let label_names = framework.metrics.labels.clone();
        let plan = Self::of_sites(sites, notes, resolver, image)?;
        Self { message_sites, unwatched, calls, label_names, ..plan }.fitting()
    }

    /// The same for a user's spec.
    fn make_described(spec: &Arc<Spec>, image: &Image, go: &GoImage<'_>) -> Result<Self, Refusal> {
        let mut resolver = Resolver::of_types(&described::types(spec), image, go)?;
        let described::Found { operations, sites, notes } =
            described::find(spec, (image, go), &mut resolver)?;
        let label_names = spec.labels.clone();
        Self { operations, label_names, ..Self::of_sites(sites, notes, resolver, image)? }.fitting()
    }

    /// The same for a spec of native functions: a plan for each operation that is there, with its number in the spec.
    fn make_native(spec: &Spec, image: &Image) -> Result<Vec<(u8, Self)>, Refusal> {
        let plan = |found: native::Found| {
            let native::Found { number, operation, sites, notes } = found;
            let label_names = spec.labels.clone();
            let plan = Self::without_offsets(sites, notes, image);
            Ok((number, Self { native: Some(operation), label_names, ..plan }.fitting()?))
        };
        native::find(spec, image)?.into_iter().map(plan).collect()
    }

    /// A plan of what has been found, which the DWARF must not contradict. What lies where at the sites is for the caller
    /// to add.
    fn of_sites(
        sites: Vec<Site>,
        mut notes: Vec<String>,
        resolver: Resolver<'_>,
        image: &Image,
    ) -> Result<Self, Refusal> {
        let (mut offsets, claims) = resolver.into_findings();
        notes.extend(witness::check(image, &claims, &mut offsets)?);
        Ok(Self { offsets, ..Self::without_offsets(sites, notes, image) })
    }

    /// A plan for which no offset is needed.
    fn without_offsets(sites: Vec<Site>, notes: Vec<String>, image: &Image) -> Self {
        Self {
            sites,
            message_sites: Vec::new(),
            shapes: Vec::new(),
            offsets: Vec::new(),
            notes,
            unwatched: Vec::new(),
            calls: Vec::new(),
            operations: Vec::new(),
            native: None,
            label_names: Vec::new(),
            object: (Register::Rax, Register::Rax),
            error: (Register::Rax, Register::Rax),
            tag_map: TagMap::None,
            errors: None,
            message_errors: ErrorPlaces::default(),
            protocols: None,
            image: addresses(image),
            literals: literals(image),
        }
    }

    /// Refuses what does not fit the programs, before anything is attached.
    fn fitting(self) -> Result<Self, Refusal> {
        self.recipe(0, Wanted::default())?;
        Ok(self)
    }

    /// Whether the type of a call's object tells what it is, not the function that the call enters.
    fn is_by_type(&self) -> bool {
        !self.shapes.is_empty()
    }

    /// Whether the probes at starts may be taken away now and then. Starts of gRPC-Go are counted under their labels, and a call
    /// has several: their probes stay. So do those of specs.
    #[must_use]
    pub fn starts_come_and_go(&self) -> bool {
        self.is_by_type()
    }

    /// Why no call's own record of its start can be read; `None` where that of some kind of call can.
    #[must_use]
    pub fn unrecorded(&self) -> Option<String> {
        let reasons: Option<Vec<_>> = self.shapes.iter().map(|shape| shape.unrecorded.as_deref()).collect();
        reasons.map(|reasons| reasons.join("; "))
    }

    fn with_note_if_all_is_too_much(mut self) -> Result<Self, Refusal> {
        let whole = or_note(
            self.recipe(0, Wanted::ALL),
            "retries, bytes, messages, protocol and panics can't all be read at once",
            &mut self.notes,
        );
        whole.map(|_| self)
    }

    /// The labels that can be told.
    #[must_use]
    pub fn labels(&self) -> Vec<&str> {
        let mut labels: Vec<_> = self.label_names.iter().map(String::as_str).collect();
        if self.tag_map != TagMap::None {
            labels.push("retry");
        }
        if self.errors.is_some() {
            labels.push("error_class");
        }
        labels
    }

    /// Whether it can be read how often clients' calls were retried. Where it can't, the programs count all as not retried.
    #[must_use]
    pub fn tells_retries(&self) -> bool {
        !self.shapes.iter().any(|shape| shape.lacks_retries)
    }

    /// Name of the class of errors that an object of the executable stands for, by its link-time address: what
    /// the programs count errors under. `other` for what is none.
    #[must_use]
    pub fn error_class(&self, image: &Image, address: u64) -> &'static str {
        self.errors.as_ref().map_or(errors::OTHER, |errors| errors.class(image, address))
    }

    /// Name of the protocol with the framework's number, as this release of it writes that.
    #[must_use]
    pub fn protocol(&self, number: u16) -> String {
        self.protocols.map_or_else(String::new, |protocols| protocols.name(number))
    }
}

/// What could be found; what could not and can be done without becomes a note.
fn or_note<T>(
    found: Result<T, Refusal>,
    without: &str,
    notes: &mut Vec<String>,
) -> Result<Option<T>, Refusal> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(why @ Refusal::Image(_)) => Err(why),
        Err(why) => {
            notes.push(format!("{without} ({})", why.reason()));
            Ok(None)
        }
    }
}

/// Notes about the types with which a service implements the framework's interfaces itself.
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

/// The addresses from the page of the first segment to the end of the last.
fn addresses(image: &Image) -> Range<u64> {
    let ends = image.segments().iter().map(|segment| segment.address.saturating_add(segment.memory_size));
    let start = image.link_base();
    start..ends.max().unwrap_or(start).max(start)
}

/// The largest segment that is never written nor executed: string literals lie there, and so do not change.
fn literals(image: &Image) -> Range<u64> {
    let constant = image.segments().iter().filter(|segment| !segment.writable && !segment.executable);
    // What lies past the file's part is not what the file has.
    let largest = constant.max_by_key(|segment| segment.file_size);
    largest.map_or(0..0, |segment| segment.address..segment.address.saturating_add(segment.file_size))
}
