//! Plans: a framework's names, found and proven in one executable.
//!
//! A plan is all that the kernel side will ever see of a framework: sites, and a recipe made of registers,
//! offsets and type words. It carries the evidence for every number in it. `inspect` prints a plan, `run`
//! attaches one; nothing else lies between knowing and doing.

mod copies;
mod described;
mod errors;
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
mod sited_messages;
mod witness;

use std::{ops::Range, sync::Arc};

use monitor_ebpf::{MAX_SHAPES, Register, TagMap};
use serde::Serialize;

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
    frameworks::{Family, Framework, SitedFramework, known},
    image::{BuildInfo, GoImage, Image, ImageError},
    specs::{Native, Spec, Specs},
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

/// One copy of a framework found in an executable.
#[derive(Debug)]
pub struct Found {
    /// The framework's name, or the spec's.
    pub name: String,
    /// The family of metrics that its calls feed; none for a spec's, which have metrics of their own.
    pub family: Option<Family>,
    /// Which spec it is, if it is one.
    pub spec: Option<(u8, Arc<Spec>)>,
    /// The path under which this copy was found.
    pub module: String,
    /// Its version, as the build info has it, or `unknown`.
    pub version: String,
    /// Its plan, or why there is none.
    pub plan: Result<Plan, Refusal>,
}

/// Everything that can be said about an executable.
#[derive(Debug)]
pub struct Inspection {
    /// Build id of the file, if it has one.
    pub build_id: Option<String>,
    /// The Go release it was built with; empty for a program that Go has not built.
    pub go_version: String,
    /// Frameworks found in it; a framework that is there in several copies several times.
    pub frameworks: Vec<Found>,
}

impl Inspection {
    /// Looks for every framework in an executable and plans those that are there, and all specs.
    pub fn of(image: &Image, specs: &Specs) -> Result<Self, ImageError> {
        let program = GoProgram::open(image, specs)?;
        let mut frameworks = Vec::new();
        if let Some(GoProgram { info, go }) = &program {
            for framework in &known().by_type {
                frameworks.extend(find(framework, info, image, go)?);
            }
            for framework in &known().sited {
                frameworks.extend(find_sited(framework, info, image, go)?);
            }
        }
        frameworks.extend(find_described(specs, image, program.as_ref()));
        Ok(Self::of_program(image, program, frameworks))
    }

    /// The same with specs alone.
    pub fn of_specs(image: &Image, specs: &Specs) -> Result<Self, ImageError> {
        let program = GoProgram::open(image, specs)?;
        let frameworks = find_described(specs, image, program.as_ref());
        Ok(Self::of_program(image, program, frameworks))
    }

    fn of_program(image: &Image, program: Option<GoProgram<'_>>, frameworks: Vec<Found>) -> Self {
        let go_version = program.map_or_else(String::new, |program| program.info.go_version);
        Self { build_id: image.build_id().map(str::to_owned), go_version, frameworks }
    }

    /// What there is to say about an executable whose calls nobody wants. The Go release is empty for a program that
    /// Go has not built.
    pub fn without_frameworks(image: &Image) -> Result<Self, ImageError> {
        let go_version = match image.build_info() {
            Ok(info) => info.go_version,
            Err(ImageError::NotGo) => String::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { build_id: image.build_id().map(str::to_owned), go_version, frameworks: Vec::new() })
    }

    /// Puts all probes of Kitex to the first instructions of their functions: see [`SiteChoosing::Naive`].
    pub fn choose_naive_sites(&mut self) {
        let plans = self.frameworks.iter_mut().filter_map(|found| found.plan.as_mut().ok());
        for plan in plans.filter(|plan| !plan.is_sited()) {
            for site in plan.sites.iter_mut().chain(&mut plan.message_sites) {
                site.choose_first_instruction();
            }
        }
    }

    /// The plans there are, with the name and version of their framework.
    pub fn plans(&self) -> impl Iterator<Item = (&Found, &Plan)> {
        self.frameworks.iter().filter_map(|found| Some((found, found.plan.as_ref().ok()?)))
    }
}

/// What a Go program says of itself.
struct GoProgram<'a> {
    info: BuildInfo,
    go: GoImage<'a>,
}

impl<'a> GoProgram<'a> {
    /// Reads it. `None` for a program that Go has not built, if a spec is about such.
    fn open(image: &'a Image, specs: &Specs) -> Result<Option<Self>, ImageError> {
        let info = match image.build_info() {
            Err(ImageError::NotGo) if specs.has_native() => return Ok(None),
            info => info?,
        };
        let go = image.go()?;
        check_calling_convention(&info)?;
        Ok(Some(Self { info, go }))
    }
}

/// All copies of a framework; what the build info names without its functions being there is one that is refused.
fn find(
    framework: &'static Framework,
    info: &BuildInfo,
    image: &Image,
    go: &GoImage<'_>,
) -> Result<Vec<Found>, ImageError> {
    let survey = copies::survey(framework, go)?;
    let found = |module: &str, version: String, plan| Found {
        name: framework.name.clone(),
        family: Some(framework.metrics.family),
        spec: None,
        module: module.to_owned(),
        version,
        plan,
    };
    let version = |module: &str| copies::version(info, module);
    if survey.copies.is_empty() {
        let absence = copies::absence(framework, info, survey.linked);
        let absent = |refusal| found(&framework.module, version(&framework.module), Err(refusal));
        return Ok(absence.map(absent).into_iter().collect());
    }
    let plan = |copy: &FrameworkCopy| {
        let version = version(&copy.module);
        let plan = Plan::make(framework, &version, copy, image, go);
        found(&copy.module, version, plan)
    };
    Ok(survey.copies.iter().map(plan).collect())
}

/// All copies of a framework whose calls are told by site. One that is linked in without any of its calls is not
/// there: many programs use its codes and its names, and nothing else.
fn find_sited(
    framework: &'static SitedFramework,
    info: &BuildInfo,
    image: &Image,
    go: &GoImage<'_>,
) -> Result<Vec<Found>, ImageError> {
    let found = |copy: &SitedCopy| Found {
        name: framework.name.clone(),
        family: Some(framework.metrics.family),
        spec: None,
        module: copy.module.clone(),
        version: copies::version(info, &copy.module),
        plan: Plan::make_sited(framework, copy, image, go),
    };
    Ok(copies::survey_sited(framework, go)?.iter().map(found).collect())
}

/// Each spec, planned or refused. Two that watch the same function don't go together, however they name it.
fn find_described(specs: &Specs, image: &Image, program: Option<&GoProgram<'_>>) -> Vec<Found> {
    let mut all: Vec<Found> = Vec::new();
    for (number, spec) in specs.iter() {
        let mut plan = match (spec.native(), program) {
            (Some(native), None) => Plan::make_native(spec, native, image),
            (Some(_), Some(_)) => Err(Refusal::NativeInGo),
            (None, Some(GoProgram { go, .. })) => Plan::make_described(spec, image, go),
            (None, None) => Err(ImageError::NotGo.into()),
        };
        if let Ok(made) = &plan
            && let Some(refusal) = all.iter().find_map(|found| claimed(found, made))
        {
            plan = Err(refusal);
        }
        let version = match (program, spec.module.as_str()) {
            (None, _) => String::new(),
            (Some(GoProgram { info, .. }), "std") => info.go_version.clone(),
            (Some(GoProgram { info, .. }), path) => copies::version(info, path),
        };
        let (name, module) = (spec.name.clone(), spec.module.clone());
        let spec = Some((number, Arc::clone(spec)));
        all.push(Found { name, family: None, spec, module, version, plan });
    }
    all
}

/// Why a plan can't be used beside that of another spec.
fn claimed(other: &Found, plan: &Plan) -> Option<Refusal> {
    let sites = &other.plan.as_ref().ok()?.sites;
    let shared = plan.sites.iter().find(|site| sites.iter().any(|known| known.entry == site.entry))?;
    Some(Refusal::Claimed(shared.symbol.clone(), other.name.clone()))
}

/// Refuses builds of Go 1.17 and 1.18 with the experiment of passing arguments in registers turned off.
fn check_calling_convention(info: &BuildInfo) -> Result<(), ImageError> {
    // The release's own text lists experiments behind ` X:`, the settings under GOEXPERIMENT.
    let settings = info.settings.iter().filter(|(name, _)| name == "GOEXPERIMENT").map(|(_, value)| value);
    let mut texts = settings.map(String::as_str).chain([info.go_version.as_str()]);
    if !texts.any(|text| text.split([',', ':', ' ']).any(|word| word.starts_with("noregabi"))) {
        return Ok(());
    }
    Err(ImageError::UnsupportedGo {
        version: info.go_version.clone(),
        why: "it was built with GOEXPERIMENT=noregabi, so arguments are not passed in registers".to_owned(),
    })
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
        let messages = site(Role::Sent)
            .and_then(|sent| Ok(vec![sent, site(Role::Received)?]))
            .and_then(|sites| Ok((sites, messages::error_places(framework, &mut resolver)?)));
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
        let sited::Found { calls, sites, message_sites, notes } =
            sited::find(framework, copy, (image, go), &mut resolver)?;
        if calls.len() > MAX_SHAPES {
            return Err(Refusal::TooMuch("kinds of calls"));
        }
        let label_names = framework.metrics.labels.clone();
        let plan = Self::of_sites(sites, notes, resolver, image)?;
        Self { message_sites, calls, label_names, ..plan }.fitting()
    }

    /// The same for a user's spec.
    fn make_described(spec: &Arc<Spec>, image: &Image, go: &GoImage<'_>) -> Result<Self, Refusal> {
        let mut resolver = Resolver::of_types(&described::types(spec), image, go)?;
        let described::Found { operations, sites, notes } =
            described::find(spec, (image, go), &mut resolver)?;
        let label_names = spec.labels.clone();
        Self { operations, label_names, ..Self::of_sites(sites, notes, resolver, image)? }.fitting()
    }

    /// The same for one of native functions.
    fn make_native(spec: &Spec, native: &Native, image: &Image) -> Result<Self, Refusal> {
        let native::Found { operation, sites, notes } = native::find(spec, native, image)?;
        let label_names = spec.labels.clone();
        Self { native: Some(operation), label_names, ..Self::without_offsets(sites, notes, image) }.fitting()
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

    /// Whether the function that a call enters tells what it is.
    #[must_use]
    pub fn is_sited(&self) -> bool {
        !self.calls.is_empty() || !self.operations.is_empty() || self.native.is_some()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::GoFile;

    /// What is found in an executable after texts in it were replaced by others of the same length.
    fn inspect(changes: &[(&str, &str)]) -> Vec<Found> {
        let (mut file, _) = GoFile { kitex: true, ..GoFile::of_release(26) }.build();
        for (text, by) in changes {
            assert_eq!(text.len(), by.len());
            let places: Vec<_> =
                (0..file.len() - text.len()).filter(|at| file[*at..].starts_with(text.as_bytes())).collect();
            assert!(!places.is_empty(), "{text}");
            for at in places {
                file[at..at + by.len()].copy_from_slice(by.as_bytes());
            }
        }
        let image = Image::parse(Box::new(file)).expect("an image");
        Inspection::of(&image, &Specs::default()).expect("a Go program").frameworks
    }

    fn only(changes: &[(&str, &str)]) -> Found {
        let mut found = inspect(changes);
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    fn refusal(changes: &[(&str, &str)]) -> String {
        only(changes).plan.expect_err("a refusal").to_string()
    }

    fn notes(changes: &[(&str, &str)]) -> Vec<String> {
        only(changes).plan.expect("a plan").notes
    }

    #[test]
    fn naive_sites_are_the_functions_first_instructions() {
        let (file, _) = GoFile { kitex: true, ..GoFile::of_release(26) }.build();
        let image = Image::parse(Box::new(file)).expect("an image");
        let mut inspection = Inspection::of(&image, &Specs::default()).expect("a Go program");
        let sites = |inspection: &Inspection| inspection.plans().next().expect("a plan").1.sites.clone();
        let best = sites(&inspection);
        inspection.choose_naive_sites();
        for (best, naive) in best.iter().zip(sites(&inspection)) {
            assert_eq!((naive.address, naive.symbol.as_str()), (best.entry, best.symbol.as_str()));
            assert_eq!(best.file_offset - naive.file_offset, best.address - best.entry);
            assert_eq!(image.file_offset(naive.address), Some(naive.file_offset));
            assert_eq!(naive.skip_flags(), 0);
        }
    }

    #[test]
    fn a_copy_is_found_by_its_functions() {
        let published = only(&[]);
        assert_eq!((&*published.module, &*published.version), ("github.com/cloudwego/kitex", "v0.16.3"));
        let plan = published.plan.expect("a plan");
        // All paths of the copy change, the build info's too.
        let fork = only(&[("github.com/cloudwego/kitex", "forked.example/other/kitex")]);
        assert_eq!((&*fork.module, &*fork.version), ("forked.example/other/kitex", "v0.16.3"));
        let forked = fork.plan.expect("a plan");
        assert_eq!(forked.offsets, plan.offsets);
        assert_eq!(
            forked.recipe(0, Wanted::ALL).expect("a recipe"),
            plan.recipe(0, Wanted::ALL).expect("a recipe")
        );
        // The build info goes on naming the published module.
        let vendored = only(&[("github.com/cloudwego/kitex/pkg", "app/vendor/cloudwego/kitex/pkg")]);
        assert_eq!((&*vendored.module, &*vendored.version), ("app/vendor/cloudwego/kitex", "unknown"));
        assert_eq!(vendored.plan.expect("a plan").offsets, plan.offsets);
    }

    #[test]
    fn functions_without_the_types_are_not_enough() {
        let renamed =
            ("github.com/cloudwego/kitex/pkg/rpcinfo.(", "forked.example/other/kitex/pkg/rpcinfo.(");
        assert!(refusal(&[renamed]).contains("none of the types"));
    }

    #[test]
    fn what_is_named_and_not_there_is_refused_with_the_reason() {
        let one = refusal(&[("DoFinish", "DoFanish")]);
        assert!(one.contains("(*TraceController).DoFinish is not in the executable"), "{one}");
        let both = refusal(&[("TraceController", "TraceControllor")]);
        assert!(both.contains("is linked in, but neither"), "{both}");
        let hidden = refusal(&[(
            "github.com/cloudwego/kitex/pkg/rpcinfo.(*Trace",
            "qRsTuVwXyZaBcDeFgHiJkLmNoPqRsTuVwXyZaB.(*Trace",
        )]);
        assert!(hidden.contains("none of its functions"), "{hidden}");
        // Nothing in the build info, either.
        let path = ("github.com/cloudwego/kitex", "forked.example/other/kitex");
        assert!(inspect(&[path, ("TraceController", "TraceControllor")]).is_empty());
    }

    #[test]
    fn names_are_essential() {
        for (field, by) in [("serviceName", "servileName"), ("method", "methot")] {
            assert!(refusal(&[(field, by)]).contains("has no field"), "{field}");
        }
        // Without it the finish of a client's call could not find its start.
        assert!(refusal(&[("interactionMode", "interactionMood")]).contains("has no field interactionMode"));
    }

    #[test]
    fn what_else_is_missing_is_a_note() {
        let has = |notes: &[String], text: &str| notes.iter().any(|note| note.contains(text));
        let whole = notes(&[]);
        for text in ["streaming calls", "oneway calls"] {
            assert!(!has(&whole, text), "{whole:?}");
        }
        // The smallest program has neither.
        assert!(
            has(&whole, "server: bytes can't be told (type rpcinfo.inlineRPCInfo has no field stats)"),
            "{whole:?}"
        );
        assert!(has(&whole, "errors can't be told apart, they count as other"), "{whole:?}");
        assert!(has(&whole, "HandleStreamSendEvent is not in the executable)"), "{whole:?}");
        let mode = notes(&[("streamingMode", "streamingMood")]);
        assert!(
            has(&mode, "server: streaming calls can't be told apart, they count as pingpong"),
            "{mode:?}"
        );
        let oneway = notes(&[("oneWay", "oneMay")]);
        assert!(
            has(&oneway, "server: oneway calls can't be told apart, they count as pingpong"),
            "{oneway:?}"
        );
    }

    #[test]
    fn builds_that_pass_arguments_on_the_stack_are_refused() {
        let build = |version: &str, experiment: &str| BuildInfo {
            go_version: version.to_owned(),
            settings: vec![("GOEXPERIMENT".to_owned(), experiment.to_owned())],
            ..BuildInfo::default()
        };
        for (version, experiment) in [
            ("go1.17.13 X:noregabi", ""),
            ("go1.18.10 X:noregabiwrappers,noregabiargs", ""),
            ("go1.18.10", "boringcrypto,noregabiargs"),
        ] {
            let error = check_calling_convention(&build(version, experiment)).expect_err("a refusal");
            assert!(error.to_string().contains(version), "{error}");
        }
        for (version, experiment) in
            [("go1.18.10", ""), ("go1.20.3 X:boringcrypto", "loopvar"), ("go1.17", "regabi")]
        {
            assert!(check_calling_convention(&build(version, experiment)).is_ok(), "{version} {experiment}");
        }
    }
}
