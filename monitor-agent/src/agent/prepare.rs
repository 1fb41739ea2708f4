//! Knowing: from a pid to a plan. Nothing is attached here.

use std::{collections::HashMap, sync::Arc};

use crate::{
    failure::{Failure, Kind, printable},
    image::Image,
    plan::{Inspection, Plan},
    target::{FileId, Target},
};

/// Said of an executable that no known framework is linked into.
pub const NO_FRAMEWORK: &str =
    "no RPC framework that the agent knows is linked into it (it knows Kitex, github.com/cloudwego/kitex)";

/// An executable and all that is known about it. Targets that run the same file share one.
pub(super) struct Executable {
    pub(super) image: Image,
    pub(super) inspection: Inspection,
}

impl Executable {
    /// The plan of one of its frameworks.
    pub(super) fn plan(&self, framework: usize) -> Option<&Plan> {
        self.inspection.frameworks.get(framework)?.plan.as_ref().ok()
    }
}

/// A process that can be watched.
pub(super) struct Prepared {
    pub(super) target: Target,
    pub(super) executable: Arc<Executable>,
}

/// Opens every process and plans every executable. The first that can't be watched is the result.
pub(super) fn prepare(pids: &[u32]) -> Result<Vec<Prepared>, Failure> {
    let mut executables: HashMap<FileId, Arc<Executable>> = HashMap::new();
    pids.iter()
        .map(|pid| {
            let target = Target::open(*pid)?;
            let file = target.identity().exe;
            let executable = match executables.get(&file) {
                Some(known) => Arc::clone(known),
                None => Arc::new(executable(&target)?),
            };
            executables.insert(file, Arc::clone(&executable));
            Ok(Prepared { target, executable })
        })
        .collect()
}

fn executable(target: &Target) -> Result<Executable, Failure> {
    let name = describe(target);
    let file = target.open_exe()?;
    let image = Image::parse(Box::new(file)).map_err(|error| Failure::of_image(&name, &error))?;
    let inspection = Inspection::of(&image).map_err(|error| Failure::of_contents(&name, &error))?;
    if inspection.plans().next().is_none() {
        return Err(unattachable(&name, &inspection));
    }
    Ok(Executable { image, inspection })
}

/// A process and its executable, for messages.
#[must_use]
pub fn describe(target: &Target) -> String {
    let deleted = if target.exe_deleted() { " (deleted)" } else { "" };
    format!("pid {} ({}{deleted})", target.pid(), printable(target.exe_name()))
}

/// Why nothing in an executable can be watched. `name` names it.
#[must_use]
pub fn unattachable(name: &str, inspection: &Inspection) -> Failure {
    let refusals =
        inspection.frameworks.iter().filter_map(|found| Some((found.name, found.plan.as_ref().err()?)));
    let reasons: Vec<_> =
        refusals.map(|(framework, refusal)| Failure::of_refusal(name, framework, refusal)).collect();
    match reasons.into_iter().next() {
        Some(reason) => reason,
        None => Failure::new(Kind::Unprovable, format!("{name} can't be watched: {NO_FRAMEWORK}")),
    }
}
