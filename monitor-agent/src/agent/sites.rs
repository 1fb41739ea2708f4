//! Which of a plan's sites get probes, and how.

use std::fs::File;

use monitor_ebpf::Recipe;

use super::{WatchConfig, attached::Place, verify::still_running};
use crate::{
    bpf::Programs,
    failure::Failure,
    plan::{Plan, Role, Site, Wanted},
};

/// Returns the sites to attach, in this order: finishes first, so that no start is seen without its finish.
pub(super) fn sites(plan: &Plan, wanted: Wanted) -> Vec<&Site> {
    let of = |role| plan.sites.iter().filter(move |site| site.role == role);
    of(Role::Finish).chain(of(Role::Start)).chain(plan.wanted_message_sites(wanted)).collect()
}

/// Returns the file offsets of the starts whose probes may be removed now and then.
pub(super) fn starts_by_turns(plan: &Plan) -> Vec<u64> {
    let starts = plan.sites.iter().filter(|site| site.role == Role::Start && plan.starts_come_and_go());
    starts.map(|site| site.file_offset).collect()
}

/// Loads the programs for these sites.
pub(super) fn load(recipe: &Recipe, sites: &[&Site], config: &WatchConfig) -> Result<Programs, Failure> {
    let mut roles: Vec<Role> = Vec::new();
    for site in sites {
        if !roles.contains(&site.role) {
            roles.push(site.role);
        }
    }
    Ok(Programs::load(recipe, &roles, config.limits, config.links, config.reads, config.program_log_level)?)
}

/// Attaches the programs to these sites, in their order.
pub(super) fn attach_sites(
    programs: &mut Programs,
    place: &Place,
    file: &File,
    sites: &[&Site],
) -> Result<(), Failure> {
    let target = &place.target;
    for of_role in sites.chunk_by(|one, next| one.role == next.role) {
        let Some(first) = of_role.first() else { continue };
        let offsets: Vec<u64> = of_role.iter().map(|site| site.file_offset).collect();
        let attached = programs.attach(first.role, file, target.pid(), &offsets);
        // If the process ends meanwhile, the kernel's error is misleading.
        attached.map_err(|error| still_running(target).err().unwrap_or_else(|| error.into()))?;
    }
    Ok(())
}
