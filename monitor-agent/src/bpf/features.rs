//! What the kernel supports, by trial or from its own files, and what the agent uses it for.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::AsFd as _,
    path::Path,
};

use aya::{
    features,
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported},
};
use serde::Serialize;

use super::{
    Measuring, multi, page_tables, perf,
    syscall::{self, AttachType, Probe},
};

/// A kernel feature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KernelFeature {
    /// Its name.
    pub name: &'static str,
    /// Whether the kernel has it; `None` where this process may not try.
    pub present: Option<bool>,
    /// Whether the agent uses it where it is present.
    pub used: bool,
    /// What the agent uses it for, or why it does not.
    pub why: &'static str,
}

/// Returns the kernel's release string; empty if it can't be read.
#[must_use]
pub fn kernel_release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// Whether the running kernel is older than this release; false if its release is unknown.
#[must_use]
pub fn is_kernel_before(release: (u32, u32)) -> bool {
    version(&kernel_release()).is_some_and(|running| running < release)
}

/// Parses major and minor version from a kernel's release, such as `5.10.0-21-amd64`.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Returns all features that matter to the agent, including those that it does not use. No trial leaves anything in
/// the kernel.
#[must_use]
pub fn kernel_features() -> Vec<KernelFeature> {
    // If this fails, no other trial means anything.
    let may_try = is_map_supported(MapType::Array).unwrap_or(false);
    let tried = |try_it: fn() -> bool| may_try.then(try_it);
    let used = |name, present, why| KernelFeature { name, present, used: true, why };
    let unused = |name, present, why| KernelFeature { name, present, used: false, why };
    let has_types = Path::new(KERNEL_TYPES).exists();
    let tables = may_try.then(page_tables::known);
    let has_tables = tables.as_ref().map(Result::is_ok);
    let uses_tables = matches!(tables, Some(Ok(known)) if known.is_worth_it());
    let optimised_probes = has_optimised_probes();
    let has_multi_links = may_try.then(has_multi_uprobes).flatten();
    let multi_links_work = may_try.then(|| multi::works().ok()).flatten();
    // Without permission to try, neither is known.
    let [may_use_multi, may_use_perf] =
        [true, false].map(|works| multi_links_work.is_none_or(|work| work == works));
    vec![
        KernelFeature {
            name: "multi-uprobe links",
            present: has_multi_links,
            used: may_use_multi,
            why: if has_multi_links == Some(true) && !may_use_multi {
                "this kernel's see no threads of a process but the main one"
            } else {
                "all probes of a program in a process are one link, and links are taken away side by side"
            },
        },
        KernelFeature {
            name: "uprobes by perf_event_open",
            present: Some(Path::new(perf::TYPE).exists()),
            used: may_use_perf,
            why: "a probe at each site, where there are no multi-uprobe links",
        },
        KernelFeature {
            name: "perf links",
            present: tried(|| features().bpf_perf_link()),
            used: may_use_perf,
            why: "a probe by perf_event_open is gone with the agent; without them, by its perf event",
        },
        used(
            "ring buffer",
            tried(|| is_map_supported(MapType::RingBuf).unwrap_or(false)),
            "durations and events",
        ),
        used(
            "mapped arrays",
            tried(|| syscall::mappable_word().is_ok()),
            "totals and counters are read without a system call",
        ),
        used(
            "run time statistics",
            tried(|| Measuring::begin().is_ok()),
            "what the programs cost is sampled",
        ),
        used(
            "memory accounting by cgroup",
            tried(|| is_helper_supported(ProgramType::SocketFilter, COARSE_CLOCK).unwrap_or(false)),
            "RLIMIT_MEMLOCK is no limit for maps; without it, it limits them",
        ),
        KernelFeature {
            name: "optimised probes on five-byte nops",
            present: optimised_probes,
            used: optimised_probes == Some(true),
            why: "the kernel makes a call of a probe that lies on one once it was hit; no site is chosen for that",
        },
        unused(
            "attach cookies",
            tried(|| features().bpf_cookie()),
            "each role has a program of its own, and gRPC-Go's calls are told by address",
        ),
        unused(
            "memory shared with programs (arenas)",
            tried(|| is_map_supported(MapType::Arena).unwrap_or(false)),
            "a table of calls in flight that grows would cost each call a look-up more",
        ),
        KernelFeature {
            name: "kernel types (BTF)",
            present: Some(has_types),
            used: has_types,
            why: "where the kernel keeps a process's page tables",
        },
        KernelFeature {
            name: "reads by page tables",
            present: has_tables,
            used: uses_tables,
            why: match tables {
                Some(Err(why)) => why,
                Some(Ok(_)) if !uses_tables => {
                    "they are hardly faster on this processor: the kernel is asked for each read of a target's memory"
                }
                _ => "calls cost a target less; without them the kernel is asked for each read of its memory",
            },
        },
    ]
}

const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";
/// `BPF_FUNC_ktime_get_coarse_ns`: new in Linux 5.11, like memory cgroup accounting, which can't be detected
/// otherwise.
const COARSE_CLOCK: BpfHelper = BpfHelper::BPF_FUNC_ktime_get_coarse_ns;

/// Requests probes on something that is not a file: a kernel with multi-uprobe links reports just that. `None` if
/// descriptors or memory are short.
fn has_multi_uprobes() -> Option<bool> {
    let attach_type = AttachType::MultiUprobes;
    let asked = syscall::load_program("nothing", c"GPL", &multi::nothing(), attach_type, &mut []);
    let asked = asked.and_then(|program| {
        let probe = Probe { program: program.as_fd(), exe: c"/", pid: 0, is_return: false };
        syscall::link_uprobes(&probe, &[0])
    });
    match asked {
        Err(error) if multi::is_want(&error) => None,
        Err(error) => Some(error.raw_os_error() == Some(libc::EBADF)),
        Ok(_) => Some(false),
    }
}

/// `uprobes: Optimize on top of nop5`, x86-64. Trying it would take a system call that kills a caller outside of the
/// kernel's own trampoline, so this looks for its function in the kernel's types.
fn has_optimised_probes() -> Option<bool> {
    holds(&mut File::open(KERNEL_TYPES).ok()?, b"\0arch_uprobe_optimize\0").ok()
}

/// Whether these bytes, which must be shorter than a part, are in a stream.
fn holds(stream: &mut impl io::Read, wanted: &[u8]) -> io::Result<bool> {
    const PART: u64 = 1 << 16;
    let mut held = Vec::new();
    loop {
        // Keeps the end of the last part: the bytes may be split between two.
        held.drain(..held.len().saturating_sub(wanted.len()));
        if stream.by_ref().take(PART).read_to_end(&mut held)? == 0 {
            return Ok(false);
        }
        if held.windows(wanted.len()).any(|window| window == wanted) {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_found_across_parts() {
        for at in [0, 1, 65_530, 65_535, 65_536, 131_066, 200_000] {
            let mut stream = vec![b'.'; at];
            stream.extend(b"needle");
            stream.extend([b'.'; 100]);
            assert!(holds(&mut &stream[..], b"needle").unwrap(), "{at}");
            stream[at] = b'N';
            assert!(!holds(&mut &stream[..], b"needle").unwrap(), "{at}");
        }
        assert!(!holds(&mut &b""[..], b"needle").unwrap());
    }
}
