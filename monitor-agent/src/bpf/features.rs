//! What the kernel can do, found out by trying it or by its own files, and what the agent makes of it.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

use aya::{
    features,
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported},
};
use serde::Serialize;

use super::Measuring;

/// One thing that kernels can do or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KernelFeature {
    /// What it is called.
    pub name: &'static str,
    /// Whether the kernel has it; `None` where this process may not try.
    pub present: Option<bool>,
    /// Whether the agent uses it where it is present.
    pub used: bool,
    /// What for, or why not.
    pub why: &'static str,
}

/// The kernel's release, as it names itself; empty where it can't be told.
#[must_use]
pub fn kernel_release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// All features that matter to the agent, with those that it leaves alone. Nothing of what is tried stays in the kernel.
#[must_use]
pub fn kernel_features() -> Vec<KernelFeature> {
    // Without this nothing that was tried would mean anything.
    let may_try = is_map_supported(MapType::Array).unwrap_or(false);
    let tried = |try_it: fn() -> bool| may_try.then(try_it);
    let used = |name, present, why| KernelFeature { name, present, used: true, why };
    let unused = |name, present, why| KernelFeature { name, present, used: false, why };
    vec![
        used("uprobes by perf_event_open", Some(Path::new(UPROBE_PMU).exists()), "a probe at each site"),
        used(
            "perf links",
            tried(|| features().bpf_perf_link()),
            "a probe is gone with the agent; without them, by its perf event",
        ),
        used(
            "ring buffer",
            tried(|| is_map_supported(MapType::RingBuf).unwrap_or(false)),
            "durations and events",
        ),
        used("mapped arrays", tried(has_mapped_arrays), "totals and counters are read without a system call"),
        used(
            "run time statistics",
            tried(|| Measuring::begin().is_ok()),
            "what the programs cost is sampled",
        ),
        used(
            "memory accounting by cgroup",
            tried(|| is_helper_supported(ProgramType::SocketFilter, COARSE_CLOCK).unwrap_or(false)),
            "RLIMIT_MEMLOCK is no limit for maps; without it, it is raised",
        ),
        unused(
            "multi-uprobe links",
            tried(has_multi_uprobes),
            "each of Kitex's programs has one site, so there is nothing to put into one link",
        ),
        unused(
            "optimised probes on five-byte nops",
            has_optimised_probes(),
            "Go's compiler leaves no such nop in a function",
        ),
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
        unused(
            "kernel types (BTF)",
            Some(Path::new(KERNEL_TYPES).exists()),
            "no program asks for a kernel type",
        ),
    ]
}

const UPROBE_PMU: &str = "/sys/bus/event_source/devices/uprobe/type";
const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";
/// `BPF_FUNC_ktime_get_coarse_ns`: came with Linux 5.11, as the accounting did, which nothing else shows.
const COARSE_CLOCK: BpfHelper = BpfHelper::BPF_FUNC_ktime_get_coarse_ns;

// Numbers and structures of include/uapi/linux/bpf.h.
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;

/// The head of `union bpf_attr` for `BPF_MAP_CREATE`; the kernel takes the rest as zero.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// The same for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

/// The same for `BPF_LINK_CREATE` of several uprobes.
#[repr(C)]
struct MultiUprobeLink {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    reference_counters: u64,
    cookies: u64,
    count: u32,
    uprobe_flags: u32,
    pid: u64,
}

fn has_mapped_arrays() -> bool {
    let attributes = MapCreate {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
        map_flags: BPF_F_MMAPABLE,
    };
    bpf(BPF_MAP_CREATE, &attributes).is_ok()
}

/// Asks for probes in what is no file: a kernel that has them says just that.
fn has_multi_uprobes() -> bool {
    // `r0 = 0; exit`.
    let nothing = [0xb7_u64, 0x95];
    let attributes = ProgramLoad {
        program_type: BPF_PROG_TYPE_KPROBE,
        instruction_count: 2,
        instructions: address(nothing.as_ptr()),
        license: address(c"GPL".as_ptr()),
        expected_attach_type: BPF_TRACE_UPROBE_MULTI,
        ..ProgramLoad::default()
    };
    let Ok(program) = bpf(BPF_PROG_LOAD, &attributes) else { return false };
    let offset = 0_u64;
    let attributes = MultiUprobeLink {
        program: program.as_raw_fd().unsigned_abs(),
        target: 0,
        attach_type: BPF_TRACE_UPROBE_MULTI,
        flags: 0,
        path: address(c"/".as_ptr()),
        offsets: address(&raw const offset),
        reference_counters: 0,
        cookies: 0,
        count: 1,
        uprobe_flags: 0,
        pid: 0,
    };
    bpf(BPF_LINK_CREATE, &attributes).is_err_and(|error| error.raw_os_error() == Some(libc::EBADF))
}

/// `uprobes: Optimize on top of nop5`, x86-64. Trying it would take a system call that ends whoever makes it elsewhere
/// than in the kernel's own trampoline, so its function is looked for among the kernel's own.
fn has_optimised_probes() -> Option<bool> {
    holds(&mut File::open(KERNEL_TYPES).ok()?, b"\0arch_uprobe_optimize\0").ok()
}

/// Whether these bytes are in a stream. They are shorter than a part of it.
fn holds(stream: &mut impl io::Read, wanted: &[u8]) -> io::Result<bool> {
    const PART: u64 = 1 << 16;
    let mut held = Vec::new();
    loop {
        // What a cut between two parts went through.
        held.drain(..held.len().saturating_sub(wanted.len()));
        if stream.by_ref().take(PART).read_to_end(&mut held)? == 0 {
            return Ok(false);
        }
        if held.windows(wanted.len()).any(|window| window == wanted) {
            return Ok(true);
        }
    }
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// A command that gives a descriptor.
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: pointer and size are those of the attributes, and what they point to lives in the caller.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    match i32::try_from(answer) {
        // SAFETY: these commands give a new descriptor, which belongs to nobody yet.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
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
