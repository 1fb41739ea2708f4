//! Looking at the target's own text: is it what the file says, and are the probes in place?
//!
//! Text that was remapped to anonymous memory never fires a uprobe, which would look like a silent service.

use crate::{
    image::Image,
    plan::Site,
    target::{Target, TargetError},
};

/// The instruction that the kernel puts in place of a probed one (`int3`, amd64).
const BREAKPOINT: u8 = 0xcc;

/// What the first byte at a site says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text {
    /// The instruction of the file.
    Original,
    /// A breakpoint: ours, or that of another tool that watches the same function.
    Probed,
    /// Something else: the plan doesn't fit what runs.
    Different,
}

/// Compares the instruction at a site with the file's.
pub(super) fn text(target: &Target, bias: u64, site: &Site) -> Result<Text, TargetError> {
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
