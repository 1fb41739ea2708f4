//! From a pid to a plan. Nothing is attached here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    fs::File,
    sync::Arc,
};

use tracing::warn;

use super::WatchConfig;
use crate::{
    failure::{Failure, Kind},
    frameworks::known,
    goruntime::{Known, Unknown},
    image::{Image, ImageError},
    metrics::Family,
    plan::{Inspection, OfSpec, SiteChoosing},
    target::{FileId, Target},
    text::{printable, shown},
};

/// Returns the message for an executable into which no known framework is linked.
#[must_use]
pub fn no_framework() -> String {
    let known: Vec<_> = known().titles().map(|(title, module)| format!("{title}, {module}")).collect();
    format!("no RPC framework that the agent knows is linked into it (it knows {})", known.join(", and "))
}

/// Advice for a Go process without calls.
const WITHOUT_CALLS: &str = "`run --metrics go,process` gives its Go runtime and its process without calls";
/// Advice for a process not built by Go, whose spec was refused.
const WITHOUT_SPEC: &str = "`run --metrics process` without --spec gives its process";
/// Advice about the other options that need calls.
const WITHOUT_PUSH: &str =
    "--otlp and OTEL_METRICS_EXPORTER=otlp ask for calls, whatever --metrics has: leave them out";

/// An executable and all that is known about it. Targets that run the same file share it.
pub(super) struct Executable {
    /// Readable as long as the [file](Prepared::file) is held open.
    pub(super) image: Image,
    pub(super) inspection: Inspection,
    /// What is known of its Go runtime, or why it is not known; `None` if it has none, or if not requested. Found
    /// before anything is attached: reading debug information takes long, and rings fill once probes are attached.
    pub(super) runtime: Option<Result<Known, Unknown>>,
}

/// A process that can be watched.
pub(super) struct Prepared {
    pub(super) target: Target,
    pub(super) executable: Arc<Executable>,
    /// The executable's file, which is what gets probed: the process's path may later refer to another file, where the
    /// same offset may be in the middle of an instruction. Held open only as long as one of its targets is watched,
    /// since an open file keeps its file system from being unmounted.
    pub(super) file: Arc<File>,
}

/// Opens every process and plans every executable. Fails at the first that can't be watched.
pub(super) fn prepare(pids: &[u32], config: &WatchConfig) -> Result<Vec<Prepared>, Failure> {
    let mut executables: HashMap<FileId, (Arc<Executable>, Arc<File>)> = HashMap::new();
    let prepared = pids.iter().map(|pid| {
        let target = Target::open(*pid)?;
        let (executable, file) = match executables.entry(target.identity().exe) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(place) => {
                let file = Arc::new(target.open_exe()?);
                let executable = Arc::new(executable(&describe(&target), &file, config)?);
                place.insert((executable, file)).clone()
            }
        };
        Ok(Prepared { target, executable, file })
    });
    let prepared = prepared.collect::<Result<Vec<_>, Failure>>()?;
    check_specs(&prepared)?;
    Ok(prepared)
}

/// Inspects the executable with this file. `name` is that of the process.
fn executable(name: &str, file: &Arc<File>, config: &WatchConfig) -> Result<Executable, Failure> {
    let WatchConfig { metrics, specs, .. } = config;
    if !metrics.wants_calls() && specs.is_empty() && !metrics.contains(Family::Go) {
        return Ok(as_far_as_readable(name, file));
    }
    let image =
        Image::parse(Box::new(Arc::downgrade(file))).map_err(|error| Failure::of_image(name, &error))?;
    let inspection = match (metrics.wants_calls(), specs.is_empty()) {
        (true, _) => Inspection::of(&image, specs),
        (false, false) => Inspection::of_specs(&image, specs),
        (false, true) => Inspection::without_frameworks(&image),
    };
    let mut inspection = inspection.map_err(|error| with_push(Failure::of_contents(name, &error), config))?;
    // With a spec of native functions there is something else to show. The log says that there is no Go runtime.
    if metrics.contains(Family::Go) && inspection.go_version.is_empty() && inspection.frameworks.is_empty() {
        return Err(Failure::of_image(name, &ImageError::NotGo));
    }
    if metrics.wants_calls() {
        check_calls(name, &inspection, config)?;
    }
    if config.sites == SiteChoosing::Naive {
        inspection.choose_naive_sites();
    }
    let is_go = !inspection.go_version.is_empty();
    let asks_for_runtime = metrics.contains(Family::Go) || metrics.contains(Family::Otel);
    let runtime = (is_go && asks_for_runtime).then(|| Known::of(&image));
    Ok(Executable { image, inspection, runtime })
}

/// Inspects an executable of which only the build id and the Go release are needed, so that any file will do.
fn as_far_as_readable(name: &str, file: &Arc<File>) -> Executable {
    let without =
        |what: &str, error: &ImageError| warn!("{name} {}: it is shown without {what}", shown(error));
    let image = Image::parse(Box::new(Arc::downgrade(file))).unwrap_or_else(|error| {
        without("a build id", &error);
        Image::unread()
    });
    let inspection = Inspection::without_frameworks(&image).unwrap_or_else(|error| {
        without("a Go release", &error);
        Inspection { build_id: image.build_id().map(str::to_owned), ..Inspection::default() }
    });
    Executable { image, inspection, runtime: None }
}

/// Refuses a spec that can't be used in any of the targets. If it can be used in some, a warning for the others
/// suffices.
fn check_specs(prepared: &[Prepared]) -> Result<(), Failure> {
    let inspected = prepared.iter().map(|one| (describe(&one.target), &one.executable.inspection));
    refused_spec(inspected).map_or(Ok(()), Err)
}

/// Returns the refusal of the first spec that can't be used in any of these named executables.
fn refused_spec<'a>(inspected: impl Iterator<Item = (String, &'a Inspection)>) -> Option<Failure> {
    let mut refused: BTreeMap<u8, Option<Failure>> = BTreeMap::new();
    for (name, inspection) in inspected {
        for found in &inspection.frameworks {
            let Some(OfSpec { number, .. }) = found.spec else { continue };
            let failure = found.plan.as_ref().err();
            let failure = failure.map(|why| Failure::of_refusal(&name, &found.name, why));
            let known = refused.entry(number).or_insert_with(|| failure);
            if found.plan.is_ok() {
                *known = None;
            }
        }
    }
    refused.into_values().flatten().next()
}

/// Refuses an executable that has neither requested calls nor operations.
fn check_calls(name: &str, inspection: &Inspection, config: &WatchConfig) -> Result<(), Failure> {
    let WatchConfig { metrics, .. } = config;
    if let Some(failure) = without_plan(name, inspection) {
        return Err(with_push(failure, config));
    }
    let mut others = BTreeSet::new();
    for (found, _) in inspection.plans() {
        if found.family.is_none_or(|family| metrics.wants_calls_of(family)) {
            return Ok(());
        }
        others.insert(found.name.as_str());
    }
    let others = others.into_iter().collect::<Vec<_>>().join(",");
    let text =
        format!("{name} has calls of {others} only, which --metrics {metrics} leaves out: add {others}");
    Err(Failure::new(Kind::Unprovable, text))
}

/// Returns the name of a process and its executable, for messages.
#[must_use]
pub fn describe(target: &Target) -> String {
    let deleted = if target.exe_deleted() { " (deleted)" } else { "" };
    format!("pid {} ({}{deleted})", target.pid(), printable(target.exe_name()))
}

/// Returns why `run` would not attach to an executable: nothing in it can be watched, or a spec can't be used. `None`
/// if it would. `name` names the executable.
#[must_use]
pub fn unattachable(name: &str, inspection: &Inspection) -> Option<Failure> {
    without_plan(name, inspection).or_else(|| refused_spec(std::iter::once((name.to_owned(), inspection))))
}

/// Adds to a refusal the other options that need calls.
fn with_push(failure: Failure, config: &WatchConfig) -> Failure {
    if !config.pushes {
        return failure;
    }
    Failure { text: format!("{}; {WITHOUT_PUSH}", failure.text), ..failure }
}

/// Returns why nothing in an executable can be watched; `None` if something can.
fn without_plan(name: &str, inspection: &Inspection) -> Option<Failure> {
    if inspection.plans().next().is_some() {
        return None;
    }
    let refusals =
        || inspection.frameworks.iter().filter_map(|found| Some((found, found.plan.as_ref().err()?)));
    // A spec is the user's own, and no other message has the place in it.
    let of_spec = refusals().find(|(found, _)| found.spec.is_some());
    let of_framework = refusals().find(|(found, _)| found.spec.is_none());
    let reason = of_spec.or(of_framework).map_or_else(
        || Failure::new(Kind::Unprovable, format!("{name} can't be watched: {}", no_framework())),
        |(found, refusal)| Failure::of_refusal(name, &found.name, refusal),
    );
    // The spec may be for another of the processes.
    let also = of_framework.filter(|_| of_spec.is_some()).map_or_else(String::new, |(found, refusal)| {
        format!("; {} can't be watched: {}", found.name, shown(refusal))
    });
    let instead = if inspection.go_version.is_empty() { WITHOUT_SPEC } else { WITHOUT_CALLS };
    Some(Failure { text: format!("{}{also}; {instead}", reason.text), ..reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::{Found, Refusal},
        specs::read,
    };

    const GO: &str = "`run --metrics go,process` gives";

    fn refused(name: &str, spec: Option<OfSpec>, why: Refusal) -> Found {
        let (module, version) = (String::new(), String::new());
        Found { name: name.to_owned(), family: None, spec, module, version, plan: Err(why) }
    }

    /// Returns a spec that is refused because of one place in it.
    fn of_spec() -> Found {
        let text = "name = \"jobs\"\n[[native]]\nname = \"job\"\nkey = \"thread\"\n[[native.start]]\n\
                    function = \"begin\"\n[[native.finish]]\nfunction = \"end\"\n";
        let spec = Arc::new(read("jobs.toml", text).expect("a spec"));
        let why = Box::new(Refusal::SymbolMissing("begin".to_owned()));
        let why = Refusal::InSpec { place: "jobs.toml:6:12".to_owned(), why };
        refused("jobs", Some(OfSpec { number: 0, spec, first: 0 }), why)
    }

    fn told(go_version: &str, frameworks: Vec<Found>) -> String {
        let inspection =
            Inspection { go_version: go_version.to_owned(), frameworks, ..Inspection::default() };
        unattachable("it", &inspection).expect("a failure").text
    }

    #[test]
    fn of_what_is_refused_a_spec_is_told_of_first_and_then_a_framework() {
        let kitex = || refused("kitex", None, Refusal::NamesMissing("kitex"));
        let both = told("go1.26", vec![kitex(), of_spec()]);
        assert!(both.starts_with("it: jobs can't be watched: jobs.toml:6:12: function begin"), "{both}");
        assert!(both.contains("; kitex can't be watched: its build info names kitex"), "{both}");
        let spec = told("go1.26", vec![of_spec()]);
        assert_eq!(spec.matches("can't be watched: ").count(), 1, "{spec}");
        let alone = told("go1.26", vec![kitex()]);
        assert!(alone.starts_with("it: kitex can't be watched: "), "{alone}");
        let none = told("go1.26", Vec::new());
        assert!(none.starts_with("it can't be watched: no RPC framework"), "{none}");
        assert!([both, spec, alone, none].iter().all(|text| text.contains(GO)));
    }

    #[test]
    fn a_process_without_a_go_runtime_gives_none() {
        let text = told("", vec![of_spec()]);
        assert!(text.ends_with("; `run --metrics process` without --spec gives its process"), "{text}");
        assert!(!text.contains(GO), "{text}");
    }
}
