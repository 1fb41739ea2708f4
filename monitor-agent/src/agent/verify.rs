//! Looking at the target: is its text what the file says, are the probes in place, and would one end it?
//!
//! Text that was remapped to anonymous memory never fires a uprobe, which would look like a silent service.

use std::io;

use tracing::warn;

use super::{attached::Place, describe};
use crate::{
    bpf,
    failure::{Failure, Kind},
    image::{CostClass, Image},
    plan::{Found, Plan, Site},
    target::{AddressSpace, Liveness, Mapping, ReturnHazard, Target, TargetError},
};

/// The instruction that the kernel puts in place of a probed one (`int3`, amd64).
const BREAKPOINT: u8 = 0xcc;
/// What it may make of one on a nop of five bytes, once it was hit: a call of its own code in the process (`call rel32`).
const CALL: u8 = 0xe8;
const CALL_LEN: usize = 5;

/// What the text of a site's function says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    /// That of the file.
    Original,
    /// A breakpoint, or what the kernel has made of it: ours, or that of another tool that watches the same function.
    Probed,
    /// Something else: the plan doesn't fit what runs.
    Different,
}

/// Compares the function of a site with the file's: whoever jumps elsewhere at its entry never gets to the probe.
///
/// Probes are no difference, wherever they are: others may watch the function at instructions of their choice.
fn text(target: &Target, bias: u64, site: &Site) -> Result<Text, TargetError> {
    let entry = site.entry.wrapping_add(bias);
    let mut found = vec![0; site.code.len()];
    target.read_memory(entry, &mut found)?;
    let seen = compare(&found, site);
    if seen != Text::Different {
        return Ok(seen);
    }
    // Only then is it worth asking for them. They are there before anything calls them, and stay.
    restore_breakpoints(&mut found, &site.code, entry, &target.probe_trampolines()?);
    Ok(compare(&found, site))
}

/// Compares the code of a site's function, as it was found, with the file's.
fn compare(found: &[u8], site: &Site) -> Text {
    let is_same = |(found, file): (&u8, &u8)| found == file || *found == BREAKPOINT;
    if !found.iter().zip(site.code.iter()).all(is_same) {
        return Text::Different;
    }
    let is_probed = found.get(place_in(site)) == Some(&BREAKPOINT);
    if is_probed { Text::Probed } else { Text::Original }
}

/// Where in its function's code a site is.
fn place_in(site: &Site) -> usize {
    usize::try_from(site.address.wrapping_sub(site.entry)).unwrap_or(usize::MAX)
}

/// Puts breakpoints back where the kernel has made calls of them. It writes the four bytes behind the breakpoint first and
/// the first byte last, and takes a call away the other way round (`int3_update` in arch/x86/kernel/uprobes.c @ v6.18).
///
/// On which nops it does that changes with its releases. That the call leads into its own code tells it, as it tells the
/// kernel itself (`is_optimized`).
fn restore_breakpoints(found: &mut [u8], file: &[u8], entry: u64, trampolines: &[Mapping]) {
    let is_kernels = |address: u64| trampolines.iter().any(|one| (one.start..one.end).contains(&address));
    for (index, original) in file.windows(CALL_LEN).enumerate() {
        let Some(code) = found.get_mut(index..index + CALL_LEN) else { return };
        let &mut [first, a, b, c, d] = code else { return };
        let behind = entry.wrapping_add((index + CALL_LEN) as u64);
        let to = behind.wrapping_add_signed(i64::from(i32::from_le_bytes([a, b, c, d])));
        if matches!(first, BREAKPOINT | CALL) && is_kernels(to) {
            code.copy_from_slice(original);
            code[0] = BREAKPOINT;
        }
    }
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

/// Refuses a function whose text is not the file's. Gives whether somebody's probe is at the site already.
pub(super) fn check_text(place: &Place, site: &Site) -> Result<bool, Failure> {
    match text(&place.target, place.bias, site) {
        Ok(text) => refuse_different(&place.name, site, text).map(|()| text == Text::Probed),
        Err(error) => unread(place, error).map(|()| false),
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

/// Where a breakpoint is in a process's memory as long as a probe is in place, or what the kernel has made of it.
pub(super) struct Breakpoint {
    memory: AddressSpace,
    address: u64,
    /// What the file has there.
    original: Option<u8>,
}

impl Breakpoint {
    /// That of a site; `None` where the process's memory may not be read, which was said when it was attached to.
    pub(super) fn of(place: &Place, site: &Site) -> Option<Self> {
        let memory = place.target.memory().ok()?;
        let original = site.code.get(place_in(site)).copied();
        Some(Self { memory, address: site.address.wrapping_add(place.bias), original })
    }

    /// Whether it is there now. Waits for the memory, however long that takes.
    pub(super) fn is_there(&self) -> io::Result<bool> {
        let mut found = [0];
        self.memory.read(self.address, &mut found)?;
        Ok(matches!(found, [BREAKPOINT | CALL]) && Some(found[0]) != self.original)
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

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u64 = 0x40_1000;
    /// `nop dword ptr [rax+rax]; lea eax, [rdi+1]; ret`
    const FILE: [u8; 9] = [0x0f, 0x1f, 0x44, 0, 0, 0x8d, 0x47, 1, 0xc3];
    /// The same with a call of what lies 0x1000 bytes behind its first instruction.
    const CALLED: [u8; 9] = [CALL, 0xfb, 0x0f, 0, 0, 0x8d, 0x47, 1, 0xc3];

    /// What is made of this code where the kernel's own lies there.
    fn restored(mut found: [u8; 9], kernels: u64) -> [u8; 9] {
        let kernels = Mapping { start: kernels, end: kernels + 0x1000, offset: 0, perms: *b"r-xp" };
        restore_breakpoints(&mut found, &FILE, ENTRY, &[kernels]);
        found
    }

    #[test]
    fn calls_of_the_kernels_code_are_breakpoints() {
        let kernels = ENTRY + 0x1000;
        let with_first = |mut code: [u8; 9], first| {
            code[0] = first;
            code
        };
        let probed = with_first(FILE, BREAKPOINT);
        assert_eq!(restored(CALLED, kernels), probed);
        // While the kernel writes it.
        assert_eq!(restored(with_first(CALLED, BREAKPOINT), kernels), probed);
        assert_eq!(restored(probed, kernels), probed);
        // Calls of something else, and code that was changed behind one of the kernel's.
        assert_eq!(restored(CALLED, kernels + 0x1000), CALLED);
        assert_eq!(restored(CALLED, ENTRY), CALLED);
        assert_eq!(restored(with_first(CALLED, 0xe9), kernels), with_first(CALLED, 0xe9));
        let changed = |mut code: [u8; 9]| {
            code[7] = 2;
            code
        };
        assert_eq!(restored(changed(CALLED), kernels), changed(probed));
    }
}
