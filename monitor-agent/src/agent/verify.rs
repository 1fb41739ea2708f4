//! Checks of the target: is its text equal to the file's, are the probes in place, and could a probe end the process?
//!
//! Text that was remapped to anonymous memory never fires a uprobe, which would look like an idle service.

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

/// The instruction that the kernel writes over a probed one (`int3`, amd64).
const BREAKPOINT: u8 = 0xcc;
/// The instruction that the kernel may write over a breakpoint on a five-byte nop once it was hit: a call to its own
/// code in the process (`call rel32`).
const CALL: u8 = 0xe8;
const CALL_LEN: usize = 5;

/// The result of comparing a site's function with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    /// Equal to the file.
    Original,
    /// A breakpoint, or what the kernel has made of it: the agent's, or that of another tool that watches the same
    /// function.
    Probed,
    /// Something else: the plan does not match the running code.
    Different,
}

/// Compares a site's function with the file: code that jumps elsewhere at its entry never reaches the probe.
///
/// Probes do not count as a difference, wherever they are: other tools may watch the function at any instruction.
fn text(target: &Target, bias: u64, site: &Site) -> Result<Text, TargetError> {
    let entry = site.entry.wrapping_add(bias);
    let mut found = vec![0; site.code.len()];
    target.read_memory(entry, &mut found)?;
    let seen = compare(&found, site);
    if seen != Text::Different {
        return Ok(seen);
    }
    // Only now are the trampolines worth looking up. They exist before anything calls them, and stay.
    restore_breakpoints(&mut found, &site.code, entry, &target.probe_trampolines()?);
    Ok(compare(&found, site))
}

/// Compares the code of a site's function, as found in memory, with the file's.
fn compare(found: &[u8], site: &Site) -> Text {
    let is_same = |(found, file): (&u8, &u8)| found == file || *found == BREAKPOINT;
    if !found.iter().zip(site.code.iter()).all(is_same) {
        return Text::Different;
    }
    let is_probed = found.get(place_in(site)) == Some(&BREAKPOINT);
    if is_probed { Text::Probed } else { Text::Original }
}

/// Returns the offset of a site in its function's code.
fn place_in(site: &Site) -> usize {
    usize::try_from(site.address.wrapping_sub(site.entry)).unwrap_or(usize::MAX)
}

/// Puts breakpoints back where the kernel has replaced them with calls. The kernel writes the four bytes after the
/// breakpoint first and the first byte last, and removes a call in the opposite order (`int3_update` in
/// arch/x86/kernel/uprobes.c @ v6.18).
///
/// The nops for which it does so depend on its release. A call is recognized by its destination in the kernel's own
/// code, as the kernel does itself (`is_optimized`).
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

/// Returns whether there is a probe at a site of a process.
pub fn probe_in_place(target: &Target, image: &Image, site: &Site) -> Result<bool, TargetError> {
    let bias = target.load_bias(image.link_base())?;
    Ok(text(target, bias, site)? == Text::Probed)
}

/// Returns the distance between the addresses of a process and those of its executable.
pub(super) fn load_bias(target: &Target, image: &Image) -> Result<u64, Failure> {
    // A process that is ending has no mappings any more.
    let ended = |error: TargetError| still_running(target).err().unwrap_or_else(|| error.into());
    target.load_bias(image.link_base()).map_err(ended)
}

/// Fails if the process has ended, or has become another program.
pub(super) fn still_running(target: &Target) -> Result<(), Failure> {
    match target.liveness() {
        Liveness::Running => Ok(()),
        Liveness::Exited => Err(TargetError::Ended(target.pid()).into()),
        Liveness::Replaced => Err(TargetError::Replaced(target.pid()).into()),
    }
}

/// Refuses plans with a return probe if such a probe could end the process.
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

/// Returns why a return probe could end the process, if it could.
fn return_hazard(target: &Target) -> Result<Option<String>, TargetError> {
    let found = |hazard: Option<ReturnHazard>| hazard.map(|hazard| hazard.to_string());
    let hazard = target.return_hazard(false)?;
    if hazard != Some(ReturnHazard::Filtered) {
        return Ok(found(hazard));
    }
    // Only now is it worth trying out.
    match bpf::return_probes_pass_filters() {
        Ok(passes) => target.return_hazard(passes).map(found),
        Err(error) => Ok(Some(format!(
            "{}; whether this kernel asks filters about it can't be tried: {error}",
            ReturnHazard::Filtered
        ))),
    }
}

/// Refuses plans with a function whose text differs from the file's, if the process's memory may be read. Sites that
/// are probed only on request are not checked.
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

/// Refuses a function whose text differs from the file's. Returns whether the site already has a probe.
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

/// Refuses a probe that would never fire.
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

/// Where a process's memory has a breakpoint, or what the kernel has made of it, while a probe is attached.
pub(super) struct Breakpoint {
    memory: AddressSpace,
    address: u64,
    /// The file's byte at this place.
    original: Option<u8>,
}

impl Breakpoint {
    /// Returns the breakpoint of a site; `None` if the process's memory may not be read, which was logged when
    /// attaching.
    pub(super) fn of(place: &Place, site: &Site) -> Option<Self> {
        let memory = place.target.memory().ok()?;
        let original = site.code.get(place_in(site)).copied();
        Some(Self { memory, address: site.address.wrapping_add(place.bias), original })
    }

    /// Returns whether the breakpoint is there now. Waits for the memory, however long that takes.
    pub(super) fn is_there(&self) -> io::Result<bool> {
        let mut found = [0];
        self.memory.read(self.address, &mut found)?;
        Ok(matches!(found, [BREAKPOINT | CALL]) && Some(found[0]) != self.original)
    }
}

/// Logs that the check is left out. Calls are counted without access to the target's memory.
fn unread(place: &Place, error: TargetError) -> Result<(), Failure> {
    let error = unpermitted(&place.target, error)?;
    warn!("{}: its code is not compared with its file: {error}", place.name);
    Ok(())
}

/// Returns the error if the process's memory can't be read for lack of permission. Fails with any other error.
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
    /// The same with a call to 0x1000 bytes after its first instruction.
    const CALLED: [u8; 9] = [CALL, 0xfb, 0x0f, 0, 0, 0x8d, 0x47, 1, 0xc3];

    /// Returns this code after breakpoints are restored, with the kernel's code at `kernels`.
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
        // While the kernel is writing it.
        assert_eq!(restored(with_first(CALLED, BREAKPOINT), kernels), probed);
        assert_eq!(restored(probed, kernels), probed);
        // Calls to other code, and code that was changed after a call to the kernel's.
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
