//! Looking at the target's own text: is it what the file says, and are the probes in place?
//!
//! Text that was remapped to anonymous memory never fires a uprobe, which would look like a silent service.

use tracing::warn;

use super::attached::Place;
use crate::{
    failure::{Failure, Kind},
    image::Image,
    plan::Site,
    target::{Liveness, Target, TargetError},
};

/// The instruction that the kernel puts in place of a probed one (`int3`, amd64).
const BREAKPOINT: u8 = 0xcc;

/// What the first byte at a site says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    /// The instruction of the file.
    Original,
    /// A breakpoint: ours, or that of another tool that watches the same function.
    Probed,
    /// Something else: the plan doesn't fit what runs.
    Different,
}

/// Compares the instruction at a site with the file's.
fn text(target: &Target, bias: u64, site: &Site) -> Result<Text, TargetError> {
    let mut found = vec![0; site.bytes.len().max(1)];
    target.read_memory(site.address.wrapping_add(bias), &mut found)?;
    if found == site.bytes {
        return Ok(Text::Original);
    }
    let rest_is_original = found.get(1..) == site.bytes.get(1..);
    Ok(if found.first() == Some(&BREAKPOINT) && rest_is_original { Text::Probed } else { Text::Different })
}

/// Whether there is a probe at a site of a process.
pub fn probe_in_place(target: &Target, image: &Image, site: &Site) -> Result<bool, TargetError> {
    let bias = target.load_bias(image.link_base())?;
    Ok(text(target, bias, site)? == Text::Probed)
}

/// Fails when the process is not, or no longer, the one that was opened.
pub(super) fn still_running(target: &Target) -> Result<(), Failure> {
    match target.liveness() {
        Liveness::Running => Ok(()),
        Liveness::Exited => Err(TargetError::Ended(target.pid()).into()),
        Liveness::Replaced => Err(TargetError::Replaced(target.pid()).into()),
    }
}

/// Refuses a function whose text is not the file's.
pub(super) fn check_text(place: &Place, site: &Site) -> Result<(), Failure> {
    match text(&place.target, place.bias, site) {
        Ok(Text::Original | Text::Probed) => Ok(()),
        Ok(Text::Different) => Err(Failure::new(
            Kind::Unprovable,
            format!(
                "{}: the code of {} in memory is not that of the file: it was patched or remapped, so a probe there \
                 can't be trusted",
                place.name, site.symbol
            ),
        )),
        Err(error) => unread(place, error),
    }
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
    still_running(&place.target)?;
    if !matches!(error, TargetError::Permission { .. }) {
        return Err(error.into());
    }
    warn!("{}: its code is not compared with its file: {error}", place.name);
    Ok(())
}
