//! Plans: a framework's names, found and proven in one executable.
//!
//! A plan is all that the kernel side ever sees of a framework: sites, and a recipe made of registers, offsets and
//! type words. It carries the evidence for every number in it. `inspect` prints a plan, and `run` attaches one.

mod alternatives;
mod by_type;
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

use monitor_ebpf::MAX_SHAPES;
use serde::Serialize;

pub use inspection::{Found, Inspection, OfSpec};
pub use recipe::Wanted;
pub use refusal::Refusal;
pub use site::{Role, Site, SiteChoosing, cost_name};

use by_type::TypedCalls;
use copies::{FrameworkCopy, SitedCopy};
use described::Described;
use native::NativePlan;
use resolve::Resolver;
use sited::SitedCall;

use crate::{
    frameworks::{Framework, SitedFramework},
    image::{GoImage, Image},
    specs::Spec,
};

/// A number of a plan, with its evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Offset {
    /// What the number is: the offset of `type.field`, or the itab of a pair of types.
    pub name: String,
    /// The number.
    pub value: u64,
    /// What proves it.
    pub evidence: String,
}

/// Everything that is needed to watch one framework in one executable.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the probes go. Finish sites come first, which is the order of attaching.
    pub sites: Vec<Site>,
    /// Where the probes go that count messages of streams, on request only.
    pub message_sites: Vec<Site>,
    /// Every number found, with its evidence.
    pub offsets: Vec<Offset>,
    /// What is unknown in this executable, as text.
    pub notes: Vec<String>,
    /// The notes about calls that are not watched at all.
    pub unwatched: Vec<String>,
    calls: Calls,
    /// The labels that every call has.
    label_names: Vec<String>,
    /// The link-time addresses of the executable.
    image: Range<u64>,
    /// The link-time addresses of read-only data.
    literals: Range<u64>,
}

/// How calls are identified, and what is read for each.
#[derive(Clone, Debug)]
enum Calls {
    /// By the type of their object.
    ByType(TypedCalls),
    /// By the function that they enter.
    BySite(Vec<SitedCall>),
    /// By the function that they enter, for operations of a user's spec.
    Described(Vec<Described>),
    /// Not at all: all calls are of one operation of native functions.
    Native(NativePlan),
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
        let sites = by_type::sites(framework, copy, (image, go))?;
        let mut resolver = Resolver::new(&copy.module, &[], image, go)?;
        let by_type::Found { calls, message_sites, notes } =
            by_type::find(framework, version, copy, (image, go), &mut resolver)?;
        let label_names = framework.metrics.labels.clone();
        let plan = Self::without_offsets(Calls::ByType(calls), label_names, sites, notes, image);
        let plan = Self { message_sites, ..plan }.with_offsets(resolver, image)?;
        plan.fitting()?.with_note_if_all_is_too_much()
    }

    /// Plans a framework whose calls are identified by the function that they enter.
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
        let plan = Self::without_offsets(Calls::BySite(calls), label_names, sites, notes, image);
        Self { message_sites, unwatched, ..plan }.with_offsets(resolver, image)?.fitting()
    }

    /// Plans a user's spec.
    fn make_described(spec: &Arc<Spec>, image: &Image, go: &GoImage<'_>) -> Result<Self, Refusal> {
        let mut resolver = Resolver::of_types(&described::types(spec), image, go)?;
        let described::Found { operations, sites, notes } =
            described::find(spec, (image, go), &mut resolver)?;
        let calls = Calls::Described(operations);
        let plan = Self::without_offsets(calls, spec.labels.clone(), sites, notes, image);
        plan.with_offsets(resolver, image)?.fitting()
    }

    /// Plans a spec of native functions. Returns a plan for each operation that exists, with its number in the spec.
    fn make_native(spec: &Spec, image: &Image) -> Result<Vec<(u8, Self)>, Refusal> {
        let plan = |found: native::Found| {
            let native::Found { number, operation, sites, notes } = found;
            let calls = Calls::Native(operation);
            let plan = Self::without_offsets(calls, spec.labels.clone(), sites, notes, image);
            Ok((number, plan.fitting()?))
        };
        native::find(spec, image)?.into_iter().map(plan).collect()
    }

    /// Creates a plan without offsets.
    fn without_offsets(
        calls: Calls,
        label_names: Vec<String>,
        sites: Vec<Site>,
        notes: Vec<String>,
        image: &Image,
    ) -> Self {
        Self {
            sites,
            message_sites: Vec::new(),
            offsets: Vec::new(),
            notes,
            unwatched: Vec::new(),
            calls,
            label_names,
            image: addresses(image),
            literals: literals(image),
        }
    }

    /// Adds the offsets found. Refuses them if the DWARF contradicts them.
    fn with_offsets(mut self, resolver: Resolver<'_>, image: &Image) -> Result<Self, Refusal> {
        let (mut offsets, claims) = resolver.into_findings();
        self.notes.extend(witness::check(image, &claims, &mut offsets)?);
        Ok(Self { offsets, ..self })
    }

    /// Refuses a plan that does not fit the programs, before anything is attached.
    fn fitting(self) -> Result<Self, Refusal> {
        self.recipe(0, Wanted::default())?;
        Ok(self)
    }

    /// The calls, if they are identified by the type of their object.
    fn by_type(&self) -> Option<&TypedCalls> {
        match &self.calls {
            Calls::ByType(calls) => Some(calls),
            Calls::BySite(_) | Calls::Described(_) | Calls::Native(_) => None,
        }
    }

    /// Whether the probes at starts may be removed for a while. For gRPC-Go they stay: starts are counted per label
    /// set, and a call has several. For specs they stay too.
    #[must_use]
    pub fn starts_come_and_go(&self) -> bool {
        self.by_type().is_some()
    }

    /// Why the start that calls record themselves can't be read. `None` if it can be for some type, or is never
    /// needed, because the probes at starts stay.
    #[must_use]
    pub fn unrecorded(&self) -> Option<String> {
        self.by_type()?.unrecorded()
    }

    fn with_note_if_all_is_too_much(mut self) -> Result<Self, Refusal> {
        let whole = or_note(
            self.recipe(0, Wanted::ALL),
            "retries, bytes, messages, protocol and panics can't all be read at once",
            &mut self.notes,
        );
        whole.map(|_| self)
    }

    /// The labels that are known in this executable.
    #[must_use]
    pub fn labels(&self) -> Vec<&str> {
        let more = self.by_type().into_iter().flat_map(TypedCalls::more_labels);
        self.label_names.iter().map(String::as_str).chain(more).collect()
    }

    /// Whether the number of retries of clients' calls can be read. If not, the programs count
    /// all calls as not retried.
    #[must_use]
    pub fn tells_retries(&self) -> bool {
        self.by_type().is_none_or(TypedCalls::tells_retries)
    }

    /// The name of the error class that an object of the executable stands for. The programs count errors under the
    /// object's link-time address. `other` if the object is no class.
    #[must_use]
    pub fn error_class(&self, image: &Image, address: u64) -> &'static str {
        self.by_type().map_or(errors::OTHER, |calls| calls.error_class(image, address))
    }

    /// The name of a protocol, as this release of the framework writes it.
    #[must_use]
    pub fn protocol(&self, number: u16) -> String {
        self.by_type().map_or_else(String::new, |calls| calls.protocol(number))
    }
}

/// Turns a refusal into a note, for something optional. An executable that can't be read stays an error.
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

/// The link-time addresses from the page of the first segment to the end of the last.
fn addresses(image: &Image) -> Range<u64> {
    let ends = image.segments().iter().map(|segment| segment.address.saturating_add(segment.memory_size));
    let start = image.link_base();
    start..ends.max().unwrap_or(start).max(start)
}

/// The largest segment that is neither writable nor executable. String literals lie there and never change.
fn literals(image: &Image) -> Range<u64> {
    let constant = image.segments().iter().filter(|segment| !segment.writable && !segment.executable);
    // Beyond the file's part, the memory is not what the file contains.
    let largest = constant.max_by_key(|segment| segment.file_size);
    largest.map_or(0..0, |segment| segment.address..segment.address.saturating_add(segment.file_size))
}
