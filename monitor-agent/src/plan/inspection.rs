//! Everything that can be watched in an executable, each with its plan or the reason why there is none.

use std::sync::Arc;

use super::{
    Calls, Plan, Refusal, Site,
    copies::{self, FrameworkCopy, SitedCopy},
};
use crate::{
    frameworks::{Family, Framework, SitedFramework, known},
    image::{BuildInfo, GoImage, Image, ImageError},
    specs::{Spec, Specs},
};

/// One copy of a framework, or one spec, found in an executable.
#[derive(Debug)]
pub struct Found {
    /// The name of the framework or the spec.
    pub name: String,
    /// The family of metrics that its calls feed; `None` for a spec, which has its own metrics.
    pub family: Option<Family>,
    /// The part of a spec that this is; `None` for a framework.
    pub spec: Option<OfSpec>,
    /// The path under which this copy was found.
    pub module: String,
    /// Its version from the build info, or `unknown`.
    pub version: String,
    /// Its plan, or why there is none.
    pub plan: Result<Plan, Refusal>,
}

/// The part of a spec that a plan covers.
#[derive(Clone, Debug)]
pub struct OfSpec {
    /// The number of the spec.
    pub number: u8,
    /// The spec.
    pub spec: Arc<Spec>,
    /// The number of the first operation that the plan covers. Each operation of native functions has its own plan.
    pub first: u8,
}

impl Found {
    /// The names of the operations that a site belongs to. A start can belong to several. Empty for a framework.
    #[must_use]
    pub fn operations_at(&self, site: &Site) -> Vec<&str> {
        let (Some(of), Ok(plan)) = (&self.spec, &self.plan) else { return Vec::new() };
        match &plan.calls {
            Calls::ByType(_) | Calls::BySite(_) => Vec::new(),
            Calls::Described(operations) => {
                let these = operations.iter().filter(|operation| operation.has(site));
                these.filter_map(|operation| Some(operation.operation()?.name.as_str())).collect()
            }
            Calls::Native(_) => {
                let only = of.spec.operations.get(usize::from(of.first));
                only.map(|operation| operation.name.as_str()).into_iter().collect()
            }
        }
    }
}

/// Everything known about an executable.
#[derive(Debug, Default)]
pub struct Inspection {
    /// The build id of the file, if it has one.
    pub build_id: Option<String>,
    /// The Go release that it was built with; empty for a program that is not Go.
    pub go_version: String,
    /// The frameworks and specs found. A framework appears once per copy.
    pub frameworks: Vec<Found>,
}

impl Inspection {
    /// Looks for every framework in an executable. Plans those that exist, and all specs.
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

    /// Plans the specs only.
    pub fn of_specs(image: &Image, specs: &Specs) -> Result<Self, ImageError> {
        let program = GoProgram::open(image, specs)?;
        let frameworks = find_described(specs, image, program.as_ref());
        Ok(Self::of_program(image, program, frameworks))
    }

    fn of_program(image: &Image, program: Option<GoProgram<'_>>, frameworks: Vec<Found>) -> Self {
        let go_version = program.map_or_else(String::new, |program| program.info.go_version);
        Self { build_id: image.build_id().map(str::to_owned), go_version, frameworks }
    }

    /// Returns the build id and the Go release only. The release is empty for a program that is not Go.
    pub fn without_frameworks(image: &Image) -> Result<Self, ImageError> {
        let go_version = match image.build_info() {
            Ok(info) => info.go_version,
            Err(ImageError::NotGo) => String::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { build_id: image.build_id().map(str::to_owned), go_version, frameworks: Vec::new() })
    }

    /// Moves all probes of Kitex to the first instruction of their function: see
    /// [`SiteChoosing::Naive`](super::SiteChoosing::Naive).
    pub fn choose_naive_sites(&mut self) {
        let plans = self.frameworks.iter_mut().filter_map(|found| found.plan.as_mut().ok());
        for plan in plans.filter(|plan| plan.by_type().is_some()) {
            for site in plan.sites.iter_mut().chain(&mut plan.message_sites) {
                site.choose_first_instruction();
            }
        }
    }

    /// All plans, each with the framework or spec that it is for.
    pub fn plans(&self) -> impl Iterator<Item = (&Found, &Plan)> {
        self.frameworks.iter().filter_map(|found| Some((found, found.plan.as_ref().ok()?)))
    }
}

/// The metadata of a Go program.
struct GoProgram<'a> {
    info: BuildInfo,
    go: GoImage<'a>,
}

impl<'a> GoProgram<'a> {
    /// Opens a Go program. `None` if it is not Go and there is a spec for native functions.
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

/// Finds and plans all copies of a framework. If only the build info lists it, returns one refusal.
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
        let plan = Plan::make(framework, &copies::release(framework, info, copy), copy, image, go);
        found(&copy.module, version(&copy.module), plan)
    };
    Ok(survey.copies.iter().map(plan).collect())
}

/// Finds and plans all copies of a framework whose calls are identified by the function that they enter. A copy
/// without any of these functions is ignored: many programs link only the framework's codes and names.
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

/// Plans each spec. Two specs must not watch the same function, whatever name each uses for it.
fn find_described(specs: &Specs, image: &Image, program: Option<&GoProgram<'_>>) -> Vec<Found> {
    let mut all: Vec<Found> = Vec::new();
    for (number, spec) in specs.iter() {
        let plans = plans_of(spec, image, program).and_then(|plans| {
            let claim = plans.iter().find_map(|(_, plan)| all.iter().find_map(|found| claimed(found, plan)));
            claim.map_or(Ok(plans), Err)
        });
        let plans = match plans {
            Ok(plans) => plans.into_iter().map(|(first, plan)| (first, Ok(plan))).collect(),
            Err(refusal) => vec![(0, Err(refusal))],
        };
        let version = match (program, spec.module.as_str()) {
            (None, _) => String::new(),
            (Some(GoProgram { info, .. }), "std") => info.go_version.clone(),
            (Some(GoProgram { info, .. }), path) => copies::version(info, path),
        };
        all.extend(plans.into_iter().map(|(first, plan)| Found {
            name: spec.name.clone(),
            family: None,
            spec: Some(OfSpec { number, spec: Arc::clone(spec), first }),
            module: spec.module.clone(),
            version: version.clone(),
            plan,
        }));
    }
    all
}

/// The plans of a spec, each with the number of its first operation.
fn plans_of(
    spec: &Arc<Spec>,
    image: &Image,
    program: Option<&GoProgram<'_>>,
) -> Result<Vec<(u8, Plan)>, Refusal> {
    match (spec.is_native(), program) {
        (true, None) => Plan::make_native(spec, image),
        (true, Some(_)) => Err(Refusal::NativeInGo),
        (false, Some(GoProgram { go, .. })) => Ok(vec![(0, Plan::make_described(spec, image, go)?)]),
        (false, None) => Err(ImageError::NotGo.into()),
    }
}

/// Refuses a plan that has a function in common with the plan of another spec.
fn claimed(other: &Found, plan: &Plan) -> Option<Refusal> {
    let sites = &other.plan.as_ref().ok()?.sites;
    let shared = plan.sites.iter().find(|site| sites.iter().any(|known| known.entry == site.entry))?;
    Some(Refusal::Claimed(shared.symbol.clone(), other.name.clone()))
}

/// Refuses builds of Go 1.17 and 1.18 in which the experiment of passing arguments in registers is turned off.
fn check_calling_convention(info: &BuildInfo) -> Result<(), ImageError> {
    // The release string lists experiments after ` X:`, the build settings under GOEXPERIMENT.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{image::testing::GoFile, plan::Wanted, specs::read};

    /// The inspection of an executable in which some texts are replaced by others of the same length.
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

    /// The inspection with operations of these names, each from the entry of a native function to its return.
    fn native(operations: [(&str, &str); 2]) -> Vec<Found> {
        let operations = operations.map(|(name, function)| {
            format!(
                "[[native]]\nname = \"{name}\"\nkey = \"thread\"\nallow_expensive = true\n\
                 returns = {{ by = \"instructions\" }}\n[[native.start]]\nfunction = \"{function}\"\n"
            )
        });
        let spec = read("any.toml", &format!("name = \"any\"\n{}", operations.concat())).expect("a spec");
        let image = Image::parse(Box::new(include_bytes!("../../../fuzz/seeds/native/0").to_vec()));
        let specs = Specs::of(vec![spec]).expect("one goes with itself");
        Inspection::of_specs(&image.expect("an image"), &specs).expect("no Go program").frameworks
    }

    #[test]
    fn sites_of_native_functions_are_of_the_operation_that_the_plan_is_for() {
        let found = native([("lookup", "stock_lookup"), ("end", "stock_end")]);
        assert_eq!(found.len(), 2, "{found:?}");
        for (found, name) in found.iter().zip(["lookup", "end"]) {
            let plan = found.plan.as_ref().expect("a plan");
            assert!(plan.sites.len() > 1, "{plan:?}");
            assert!(plan.sites.iter().all(|site| found.operations_at(site) == [name]), "{plan:?}");
        }
    }

    #[test]
    fn a_second_native_operation_of_a_name_is_told_of() {
        for (function, is_told) in [("stock_lookup", false), ("stock_end", true)] {
            let found = native([("a", "stock_lookup"), ("a", function)]);
            assert_eq!(found.len(), 1, "{found:?}");
            let notes = &found[0].plan.as_ref().expect("a plan").notes;
            let told = "a is described a second time (any.toml:15:12)";
            assert_eq!(notes.iter().any(|note| note.starts_with(told)), is_told, "{notes:?}");
        }
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
            assert_eq!(naive.skip_flags(), Some(0));
        }
    }

    #[test]
    fn a_copy_is_found_by_its_functions() {
        let published = only(&[]);
        assert_eq!((&*published.module, &*published.version), ("github.com/cloudwego/kitex", "v0.16.3"));
        let plan = published.plan.expect("a plan");
        let is_unsure = |plan: &Plan| plan.notes.iter().any(|note| note.contains("the release isn't known"));
        assert!(!is_unsure(&plan), "{:?}", plan.notes);
        // This changes all paths of the copy, and the build info.
        let fork = only(&[("github.com/cloudwego/kitex", "forked.example/other/kitex")]);
        assert_eq!((&*fork.module, &*fork.version), ("forked.example/other/kitex", "v0.16.3"));
        let forked = fork.plan.expect("a plan");
        // The number is the fork's own.
        assert!(is_unsure(&forked), "{:?}", forked.notes);
        assert_eq!(forked.offsets, plan.offsets);
        assert_eq!(
            forked.recipe(0, Wanted::ALL).expect("a recipe"),
            plan.recipe(0, Wanted::ALL).expect("a recipe")
        );
        // The build info still names the published module.
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
        // The build info does not list the path either.
        let path = ("github.com/cloudwego/kitex", "forked.example/other/kitex");
        assert!(inspect(&[path, ("TraceController", "TraceControllor")]).is_empty());
    }

    #[test]
    fn names_are_essential() {
        for (field, by) in [("serviceName", "servileName"), ("method", "methot")] {
            assert!(refusal(&[(field, by)]).contains("has no field"), "{field}");
        }
        // Without the field, the finish of a client's call could not find its start.
        assert!(refusal(&[("interactionMode", "interactionMood")]).contains("has no field interactionMode"));
    }

    #[test]
    fn what_else_is_missing_is_a_note() {
        let has = |notes: &[String], text: &str| notes.iter().any(|note| note.contains(text));
        let whole = notes(&[]);
        for text in ["streaming calls", "oneway calls"] {
            assert!(!has(&whole, text), "{whole:?}");
        }
        // The smallest program has neither type.
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

    /// The smallest program has the tags, but no type that shows how a map's entries lie in memory.
    #[test]
    fn retries_are_not_told_where_the_layout_of_maps_is_not_known() {
        let none: &[(&str, &str)] = &[];
        for changes in [none, &[("tags", "togs")]] {
            let plan = only(changes).plan.expect("a plan");
            assert!(!plan.tells_retries() && !plan.labels().contains(&"retry"), "{:?}", plan.notes);
        }
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
