//! `inspect`: prints a plan, or why there is none.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
    sync::Arc,
};

use serde::Serialize;

use super::args::{InspectArguments, SpecArguments};
use crate::{
    agent,
    bpf::{KernelFeature, kernel_features, kernel_release},
    failure::{Failure, Kind},
    goruntime::Known,
    image::Image,
    metrics::LatencySource,
    plan::{Found, Inspection, Offset, Plan, Role, cost_name},
    specs::{self, Specs},
    target::Target,
    text::printable,
};

/// The output of `inspect --json`. Users and tests rely on the names.
#[derive(Default, Serialize)]
struct Report<'a> {
    /// The name of the subject in the text output.
    #[serde(skip)]
    name: &'a str,
    attachable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    exe: Option<&'a str>,
    build_id: Option<&'a str>,
    go_version: Option<&'a str>,
    go_runtime: Option<RuntimeReport>,
    frameworks: Vec<FrameworkReport<'a>>,
    reasons: Vec<String>,
    /// Only for a running process.
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<KernelReport>,
}

/// The features of the kernel that runs the process.
#[derive(Serialize)]
struct KernelReport {
    release: String,
    features: Vec<KernelFeature>,
}

/// Whether metrics of the Go runtime can be read, and the evidence.
#[derive(Serialize)]
struct RuntimeReport {
    readable: bool,
    offsets: Option<String>,
    variables: Option<String>,
    notes: Vec<String>,
    reasons: Vec<String>,
}

#[derive(Serialize)]
struct FrameworkReport<'a> {
    name: &'a str,
    module: &'a str,
    version: &'a str,
    attachable: bool,
    sites: Vec<SiteReport<'a>>,
    offsets: &'a [Offset],
    labels: Vec<&'a str>,
    economy: Option<EconomyReport>,
    notes: &'a [String],
    reasons: Vec<String>,
}

/// The source of durations with `--latency economy`.
#[derive(Serialize)]
struct EconomyReport {
    durations: &'static str,
    why: String,
}

#[derive(Serialize)]
struct SiteReport<'a> {
    role: &'static str,
    /// Only for a spec.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    operations: Vec<&'a str>,
    symbol: &'a str,
    file_offset: u64,
    instruction: &'a str,
    cost_class: &'static str,
    why: &'a str,
    /// A probe goes there only on request.
    on_request: bool,
    /// Only for a running process.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_place: Option<bool>,
}

/// An executable file, and the process that runs it, if any.
struct Subject {
    name: String,
    exe: String,
    target: Option<Target>,
    file: Arc<File>,
}

pub(super) fn inspect(arguments: &InspectArguments) -> Result<(), Failure> {
    let specs = Specs::load(&arguments.specs)?;
    let subject = match Subject::open(arguments) {
        Ok(subject) => subject,
        Err(failure) => return refuse(arguments, failure, || Report::of_arguments(arguments)),
    };
    let image = match subject.image() {
        Ok(image) => image,
        Err(failure) => return refuse(arguments, failure, || Report::of_subject(&subject)),
    };
    let inspection = match Inspection::of(&image, &specs) {
        Ok(inspection) => inspection,
        Err(error) => {
            let go_version = image.build_info().map_or_else(|_| String::new(), |info| info.go_version);
            let failure = Failure::of_contents(&subject.name, &error);
            return refuse(arguments, failure, || Report::of_image(&subject, &image, &go_version));
        }
    };
    let refusal = subject.refusal(&image, &inspection);
    let reason = refusal.as_ref().map(|refusal| refusal.text.clone());
    let failure = agent::unattachable(&subject.name, &inspection).or(refusal);
    let mut report = report(&subject, &image, &inspection, failure.is_none());
    report.reasons.extend(reason);
    print(&if arguments.json { json(&report)? } else { render(&report) })?;
    failure.map_or(Ok(()), Err)
}

/// Ends with a failure before the inspection. The JSON report has what is known so far.
fn refuse<'a>(
    arguments: &InspectArguments,
    failure: Failure,
    known: impl FnOnce() -> Report<'a>,
) -> Result<(), Failure> {
    if arguments.json {
        print(&json(&Report { reasons: vec![failure.text.clone()], ..known() })?)?;
    }
    Err(failure)
}

/// Runs `spec check`: prints what a spec watches and, with an executable, what would be attached to it.
pub(super) fn check_spec(arguments: &SpecArguments) -> Result<(), Failure> {
    let specs = Specs::load(std::slice::from_ref(&arguments.spec))?;
    let mut text = String::new();
    for (_, spec) in specs.iter() {
        let _ = writeln!(text, "{}: a good spec, for {}", arguments.spec, specs::metrics_of(spec));
    }
    let Some(path) = &arguments.exe else { return print(&text) };
    let subject = Subject::file(path)?;
    let image = subject.image()?;
    let inspection =
        Inspection::of_specs(&image, &specs).map_err(|error| Failure::of_contents(&subject.name, &error))?;
    for found in &inspection.frameworks {
        if let Err(refusal) = &found.plan {
            return Err(Failure::of_refusal(&subject.name, &found.name, refusal));
        }
        render_framework(&mut text, &framework_report(&subject, &image, found));
    }
    print(&text.lines().map(|line| printable(line) + "\n").collect::<String>())
}

fn json(report: &Report<'_>) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(report)
        .map_err(|error| Failure::new(Kind::Running, format!("can't write JSON: {error}")))?;
    Ok(text + "\n")
}

/// Writes to stdout. A closed pipe is not an error.
fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Kind::Running, format!("can't write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

impl<'a> Report<'a> {
    /// The report if the subject can't be opened.
    fn of_arguments(arguments: &InspectArguments) -> Self {
        Self { pid: arguments.subject.pid, ..Self::default() }
    }

    /// The report before the executable is read.
    fn of_subject(subject: &'a Subject) -> Self {
        Self {
            name: &subject.name,
            pid: subject.target.as_ref().map(Target::pid),
            exe: Some(&subject.exe),
            kernel: subject
                .target
                .as_ref()
                .map(|_| KernelReport { release: kernel_release(), features: kernel_features() }),
            ..Self::default()
        }
    }

    /// The report with an executable's own data. `go_version` is empty for a program that Go has not built.
    fn of_image(subject: &'a Subject, image: &'a Image, go_version: &'a str) -> Self {
        let is_go = !go_version.is_empty();
        Self {
            build_id: image.build_id(),
            go_version: is_go.then_some(go_version),
            go_runtime: is_go.then(|| runtime_report(image)),
            ..Self::of_subject(subject)
        }
    }
}

impl Subject {
    fn open(arguments: &InspectArguments) -> Result<Self, Failure> {
        match (&arguments.subject.pid, &arguments.subject.exe) {
            (Some(pid), _) => Self::process(*pid),
            (None, Some(path)) => Self::file(path),
            (None, None) => Err(Failure::new(Kind::Usage, "give --pid or --exe")),
        }
    }

    fn process(pid: u32) -> Result<Self, Failure> {
        let target = Target::open(pid)?;
        let file = Arc::new(target.open_exe()?);
        Ok(Self {
            name: agent::describe(&target),
            exe: target.exe_name().to_owned(),
            target: Some(target),
            file,
        })
    }

    /// Parses the file.
    fn image(&self) -> Result<Image, Failure> {
        Image::parse(Box::new(Arc::clone(&self.file))).map_err(|error| Failure::of_image(&self.name, &error))
    }

    /// Returns why `run` would not attach the plans to the process, if it would not.
    fn refusal(&self, image: &Image, inspection: &Inspection) -> Option<Failure> {
        let target = self.target.as_ref()?;
        // Without a plan, that is the reason of the refusal.
        inspection.plans().next()?;
        agent::check_return_probes(target, inspection.plans())
            .and_then(|()| agent::check_texts(target, image, inspection.plans()))
            .err()
    }

    fn file(path: &Path) -> Result<Self, Failure> {
        let name = printable(&path.to_string_lossy());
        let failed = |error| Failure::of_file(path, &error);
        // Checked before opening: opening a device may have effects, and opening a pipe waits for its writer.
        let metadata = fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() {
            let kind = if metadata.is_dir() { "a directory" } else { "not a regular file" };
            return Err(Failure::new(Kind::Unreadable, format!("{name} is {kind}: give an executable file")));
        }
        let file = Arc::new(File::open(path).map_err(failed)?);
        Ok(Self { name, exe: path.to_string_lossy().into_owned(), target: None, file })
    }
}

fn report<'a>(
    subject: &'a Subject,
    image: &'a Image,
    inspection: &'a Inspection,
    attachable: bool,
) -> Report<'a> {
    let frameworks: Vec<_> =
        inspection.frameworks.iter().map(|found| framework_report(subject, image, found)).collect();
    let reasons = if frameworks.is_empty() { vec![agent::no_framework()] } else { Vec::new() };
    Report { attachable, frameworks, reasons, ..Report::of_image(subject, image, &inspection.go_version) }
}

fn runtime_report(image: &Image) -> RuntimeReport {
    match Known::of(image) {
        Ok(Known { evidence, .. }) => RuntimeReport {
            readable: true,
            offsets: Some(evidence.offsets),
            variables: Some(evidence.variables),
            notes: evidence.note.into_iter().collect(),
            reasons: Vec::new(),
        },
        Err(unknown) => RuntimeReport {
            readable: false,
            offsets: None,
            variables: None,
            notes: Vec::new(),
            reasons: vec![unknown.to_string()],
        },
    }
}

fn framework_report<'a>(subject: &Subject, image: &Image, found: &'a Found) -> FrameworkReport<'a> {
    let empty = FrameworkReport {
        name: &found.name,
        module: &found.module,
        version: &found.version,
        attachable: false,
        sites: Vec::new(),
        offsets: &[],
        labels: Vec::new(),
        economy: None,
        notes: &[],
        reasons: Vec::new(),
    };
    match &found.plan {
        Err(refusal) => FrameworkReport { reasons: vec![refusal.to_string()], ..empty },
        Ok(plan) => FrameworkReport {
            attachable: true,
            sites: site_reports(subject, image, (found, plan)),
            offsets: &plan.offsets,
            labels: plan.labels(),
            economy: Some(economy_report(plan)),
            notes: &plan.notes,
            ..empty
        },
    }
}

fn economy_report(plan: &Plan) -> EconomyReport {
    let (source, why) = match plan.unrecorded() {
        _ if !plan.starts_come_and_go() => {
            (LatencySource::Probes, "its probes at the starts stay".to_owned())
        }
        Some(why) => (LatencySource::Windows, format!("no start that calls record is proven: {why}")),
        None => {
            (LatencySource::Recorded, "the starts that calls record; of calls without, windows".to_owned())
        }
    };
    EconomyReport { durations: source.name(), why }
}

fn site_reports<'a>(
    subject: &Subject,
    image: &Image,
    (found, plan): (&'a Found, &'a Plan),
) -> Vec<SiteReport<'a>> {
    let in_place = |site| {
        let target = subject.target.as_ref()?;
        agent::probe_in_place(target, image, site).ok()
    };
    let on_request = plan.message_sites.iter().map(|site| (site, true));
    plan.sites
        .iter()
        .map(|site| (site, false))
        .chain(on_request)
        .map(|(site, on_request)| SiteReport {
            role: site.role.name(),
            operations: found.operations_at(site),
            symbol: &site.symbol,
            file_offset: site.file_offset,
            instruction: &site.instruction,
            cost_class: cost_name(site.cost),
            why: &site.why,
            on_request,
            in_place: in_place(site),
        })
        .collect()
}

/// Renders the report for people.
fn render(report: &Report<'_>) -> String {
    let mut text = String::new();
    let verdict = if report.attachable { "can be watched" } else { "can't be watched" };
    // Writing to a string can't fail.
    let _ = writeln!(text, "{}: {verdict}", report.name);
    if let Some(go_version) = report.go_version {
        let _ = writeln!(text, "  built by    {go_version}");
    }
    if let Some(build_id) = report.build_id {
        let _ = writeln!(text, "  build id    {build_id}");
    }
    if let Some(runtime) = &report.go_runtime {
        render_runtime(&mut text, runtime);
    }
    for reason in &report.reasons {
        let _ = writeln!(text, "  because     {reason}");
    }
    for framework in &report.frameworks {
        render_framework(&mut text, framework);
    }
    if let Some(kernel) = &report.kernel {
        render_kernel(&mut text, kernel);
    }
    text.lines().map(|line| printable(line) + "\n").collect()
}

fn render_runtime(text: &mut String, runtime: &RuntimeReport) {
    if let (Some(offsets), Some(variables)) = (&runtime.offsets, &runtime.variables) {
        let _ = writeln!(text, "  go runtime  fields by {offsets}; variables by {variables}");
    }
    for reason in &runtime.reasons {
        let _ = writeln!(text, "  go runtime  can't be read: {reason}");
    }
    for note in &runtime.notes {
        let _ = writeln!(text, "  note        {note}");
    }
}

fn render_kernel(text: &mut String, kernel: &KernelReport) {
    let _ = writeln!(text, "\nkernel {}", kernel.release);
    for KernelFeature { name, present, used, why } in &kernel.features {
        let state = match (present, used) {
            (None, _) => "not tried, for want of a capability",
            (Some(false), _) => "absent",
            (Some(true), true) => "in use",
            (Some(true), false) => "not used",
        };
        let _ = writeln!(text, "  {name}: {state}: {why}");
    }
}

fn render_framework(text: &mut String, framework: &FrameworkReport<'_>) {
    if framework.module.is_empty() {
        let _ = writeln!(text, "\n{}", framework.name);
    } else {
        let _ = writeln!(text, "\n{} {}", framework.name, framework.version);
        let _ = writeln!(text, "  module  {}", framework.module);
    }
    for reason in &framework.reasons {
        let _ = writeln!(text, "  can't be watched: {reason}");
    }
    for site in &framework.sites {
        let _ = writeln!(text, "  {:<6}  {}", site.role, site.symbol);
        let in_place = match site.in_place {
            None => "",
            Some(true) => ", a probe is in place",
            Some(false) => ", no probe in place",
        };
        let _ = writeln!(
            text,
            "          {} at file offset {:#x}: {}{in_place}",
            site.instruction, site.file_offset, site.cost_class
        );
        let _ = writeln!(text, "          {}", site.why);
        if !site.operations.is_empty() {
            let _ = writeln!(text, "          operation: {}", site.operations.join(", "));
        }
        if site.on_request {
            let what = if site.role == Role::Entered.name() {
                "notes whose message it is"
            } else {
                "counts the messages of streams"
            };
            let _ = writeln!(text, "          on request: {what}");
        }
    }
    if !framework.labels.is_empty() {
        let _ = writeln!(text, "  labels  {}", framework.labels.join(", "));
    }
    if let Some(EconomyReport { durations, why }) = &framework.economy {
        let _ = writeln!(text, "  economy {durations}: {why}");
    }
    for note in framework.notes {
        let _ = writeln!(text, "  note    {note}");
    }
    if framework.offsets.is_empty() {
        return;
    }
    let width = framework.offsets.iter().map(|offset| offset.name.len()).max().unwrap_or(0);
    let _ = writeln!(text, "  proven offsets and addresses");
    for offset in framework.offsets {
        let value =
            if offset.value < 0x1000 { offset.value.to_string() } else { format!("{:#x}", offset.value) };
        let _ = writeln!(text, "    {:<width$}  {value:>10}  {}", offset.name, offset.evidence);
    }
}
