//! The capabilities that the agent lacks.

use procfs::process::Process;

/// The capabilities that watching any process needs: name, number in `linux/capability.h`, and the capabilities that
/// grant the same.
///
/// `CAP_BPF` and `CAP_PERFMON` are enough to load the programs, but uprobes need `CAP_SYS_ADMIN`, which grants both:
/// "perf: Revert to requiring `CAP_SYS_ADMIN` for uprobes", Linux 6.16 and stable releases since July 2025.
const NEEDED: [(&str, u32, &[u32]); 3] = [
    ("CAP_SYS_ADMIN", 21, &[]),
    ("CAP_SYS_PTRACE", 19, &[]),
    ("CAP_DAC_READ_SEARCH", 2, &[CAP_DAC_OVERRIDE]),
];
const CAP_DAC_OVERRIDE: u32 = 1;

/// Returns the capabilities that watching another user's process needs and that are not in effect in this process.
/// Returns all of them if the effective set cannot be read.
///
/// A capability granted by a container's own user namespace counts as present, although the kernel accepts
/// `CAP_SYS_ADMIN` from the initial user namespace only.
#[must_use]
pub fn missing_capabilities() -> Vec<&'static str> {
    let effective = Process::myself().and_then(|process| process.status()).map_or(0, |status| status.capeff);
    missing_in(effective)
}

/// Returns the advice for an access that the kernel denies and that needs these capabilities.
pub(super) fn what_permits(needed: &[&str], missing: &[&str]) -> String {
    let needed_here = needed.join(" and ");
    if needed.iter().any(|capability| missing.contains(capability)) {
        return format!("run as root or with {needed_here}");
    }
    format!(
        "the agent has {needed_here}, so a security module (AppArmor, SELinux, Yama) forbids it, or the process has a \
         user namespace that the agent's is inside of"
    )
}

fn missing_in(effective: u64) -> Vec<&'static str> {
    let has = |capability: &u32| effective & (1 << capability) != 0;
    NEEDED.iter().filter(|(_, own, others)| !has(own) && !others.iter().any(has)).map(|need| need.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_missing_with_all_and_everything_with_none() {
        assert!(missing_in(u64::MAX).is_empty());
        assert_eq!(missing_in(0), ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"]);
    }

    #[test]
    fn bpf_and_perfmon_do_not_stand_for_sys_admin() {
        assert_eq!(missing_in(1 << 39 | 1 << 38 | 1 << 19 | 1 << 2), ["CAP_SYS_ADMIN"]);
    }

    #[test]
    fn what_the_agent_has_is_not_asked_for() {
        let asks = |missing: &[&str]| what_permits(&["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"], missing);
        assert_eq!(asks(&["CAP_SYS_PTRACE"]), "run as root or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH");
        let elsewhere = asks(&["CAP_SYS_ADMIN"]);
        assert!(elsewhere.starts_with("the agent has CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"), "{elsewhere}");
        assert!(!elsewhere.contains("run as root"), "{elsewhere}");
    }

    #[test]
    fn one_capability_is_enough_for_its_own_name() {
        assert_eq!(missing_in(1 << 21 | 1 << CAP_DAC_OVERRIDE), ["CAP_SYS_PTRACE"]);
    }
}
