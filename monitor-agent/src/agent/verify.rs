//! Looking at the target: is its text what the file says, are the probes in place, and would one end it?
//!
//! Text that was remapped to anonymous memory never fires a uprobe, which would look like a silent service.

use tracing::warn;

use super::{attached::Place, describe};
use crate::{
    bpf,
    failure::{Failure, Kind},
    image::{CostClass, Image},
    plan::{Found, Plan, Site},
    target::{Liveness, ReturnHazard, Target, TargetError},
};

/// The instruction that the kernel puts in place of a probed one (`int3`, amd64).
const BREAKPOINT: u8 = 0xcc;

/// What the text of a site's function says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    /// That of the file.
    Original,
    /// A breakpoint: ours, or that of another tool that watches the same function.
    Probed,
    /// Something else: the plan doesn't fit what runs.
    Different,
}

/// Compares the function of a site with the file's: whoever jumps elsewhere at its entry never gets to the probe.
///
/// Breakpoints are no difference, wherever they are: others may watch the function at instructions of their choice.
fn text(target: &Target, bias: u64, site: &Site) -> Result<Text, TargetError> {
    let mut found = vec![0; site.code.len()];
    target.read_memory(site.entry.wrapping_add(bias), &mut found)?;
    let is_same = |(found, file): (&u8, &u8)| found == file || *found == BREAKPOINT;
    if !found.iter().zip(site.code.iter()).all(is_same) {
        return Ok(Text::Different);
    }
    let at = usize::try_from(site.address.wrapping_sub(site.entry)).unwrap_or(usize::MAX);
    let is_probed = found.get(at) == Some(&BREAKPOINT);
    Ok(if is_probed { Text::Probed } else { Text::Original })
}

/// Whether there is a probe at a site of a process.
pub fn probe_in_place(target: &Target, image: &Image, site: &Site) -> Result<bool, TargetError> {
    let bias = target.load_bias(image.link_base())?;
    Ok(text(target, bias, site)? == Text::Probed)
}

/// How far the addresses of a process are from those of its executable.
pub(super) fn load_bias(target: &Target, image: &Image) -> Result<u64, Failure> {
    // A process that ends has no mappings any more.
    let ended = |error: TargetError| still_running(target).err().unwrap_or_else(|| error.into());
    target.load_bias(image.link_base()).map_err(ended)
}

/// Fails when the process is not, or no longer, the one that was opened.
pub(super) fn still_running(target: &Target) -> Result<(), Failure> {
    match target.liveness() {
        Liveness::Running => Ok(()),
        Liveness::Exited => Err(TargetError::Ended(target.pid()).into()),
        Liveness::Replaced => Err(TargetError::Replaced(target.pid()).into()),
    }
}

/// Refuses plans with a return probe for a process that one could end.
pub fn check_return_probes<'a>(
    target: &Target,
    mut plans: impl Iterator<Item = (&'a Found, &'a Plan)>,
) -> Result<(), Failure> {
    let is_probe = |site: &Site| site.cost == CostClass::Returned;
    let Some((found, _)) = plans.find(|(_, plan)| plan.sites.iter().any(is_probe)) else { return Ok(()) };
    let Some(hazard) = return_hazard(target)? else { return Ok(()) };
    let (name, spec) = (describe(target), &found.name);
    Err(Failure::new(
        Kind::Unprovable,
        format!(
            "{name}: {spec} can't be watched by return probes: {hazard}; write returns = {{ by = \"instructions\" }}"
        ),
    ))
}

/// Why a return probe could end the process, if one could.
fn return_hazard(target: &Target) -> Result<Option<String>, TargetError> {
    let found = |hazard: Option<ReturnHazard>| hazard.map(|hazard| hazard.to_string());
    let hazard = target.return_hazard(false)?;
    if hazard != Some(ReturnHazard::Filtered) {
        return Ok(found(hazard));
    }
    // Only then is it worth finding out.
    match bpf::return_probes_pass_filters() {
        Ok(passes) => target.return_hazard(passes).map(found),
        Err(error) => Ok(Some(format!(
            "{}; whether this kernel asks filters about it can't be tried: {error}",
            ReturnHazard::Filtered
        ))),
    }
}

/// Refuses plans with a function whose text is not the file's, as far as the process's memory may be read. Of sites on
/// request nothing is asked.
pub fn check_texts<'a>(
    target: &Target,
    image: &Image,
    plans: impl Iterator<Item = (&'a Found, &'a Plan)>,
) -> Result<(), Failure> {
    let (name, bias) = (describe(target), load_bias(target, image)?);
    for site in plans.flat_map(|(_, plan)| &plan.sites) {
        match text(target, bias, site) {
            Ok(text) => refuse_different(&name, site, text)?,
            Err(error) => {
                unpermitted(target, error)?;
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Refuses a function whose text is not the file's.
pub(super) fn check_text(place: &Place, site: &Site) -> Result<(), Failure> {
    match text(&place.target, place.bias, site) {
        Ok(text) => refuse_different(&place.name, site, text),
        Err(error) => unread(place, error),
    }
}

fn refuse_different(name: &str, site: &Site, text: Text) -> Result<(), Failure> {
    if text != Text::Different {
        return Ok(());
    }
    Err(Failure::new(
        Kind::Unprovable,
        format!(
            "{name}: the code of {} in memory is not that of the file: it was patched or remapped, so a probe there \
             can't be trusted",
            site.symbol
        ),
    ))
}

/// Refuses probes that will never fire.
pub(super) fn check_in_place(place: &Place, site: &Site) -> Result<(), Failure> {
    match text(&place.target, place.bias, site) {
        Ok(Text::Probed) => Ok(()),
        Ok(_) => Err(Failure::new(
            Kind::Unprovable,
            format!(
                "{}: the probe at {} is not in its memory: its text is no longer mapped from the file, so the probe \
                 would never fire",
                place.name, site.symbol
            ),
        )),
        Err(error) => unread(place, error),
    }
}

/// Calls are counted without access to the target's memory; only the check is left out.
fn unread(place: &Place, error: TargetError) -> Result<(), Failure> {
    let error = unpermitted(&place.target, error)?;
    warn!("{}: its code is not compared with its file: {error}", place.name);
    Ok(())
}

/// Why a process's memory can't be read, if that is for want of permission. All else is a failure.
fn unpermitted(target: &Target, error: TargetError) -> Result<TargetError, Failure> {
    still_running(target)?;
    match error {
        TargetError::Permission { .. } => Ok(error),
        error => Err(error.into()),
    }
}
