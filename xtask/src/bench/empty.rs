//! Programs that do nothing, attached to the agent's sites: the kernel's cost of the hits, whatever the programs do.
//! Also attaches programs that do something.

use std::{
    ffi::CString,
    fs,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result};

use super::kernel::{bpf, owned};

// Numbers and structures of uapi/linux/bpf.h and uapi/linux/perf_event.h.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_PERF_EVENT: u32 = 41;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;
const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;
/// `config` of a return uprobe: see `format/retprobe` of its event source.
const RETURN_PROBE: u64 = 1;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;

/// `r0 = 0; exit`.
pub(super) static NOTHING: [u64; 2] = [0xb7, 0x95];

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes the rest as zero.
#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: *const u64,
    license: *const libc::c_char,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    /// For perf events any value will do.
    attach_type: u32,
}

/// The head of `union bpf_attr` for `BPF_LINK_CREATE` of a perf event.
#[repr(C)]
struct LinkCreate {
    program: RawFd,
    target: RawFd,
    attach_type: u32,
    flags: u32,
}

/// The same for multiple uprobes.
#[repr(C)]
struct MultiUprobeLink {
    program: RawFd,
    target: RawFd,
    attach_type: u32,
    flags: u32,
    path: *const libc::c_char,
    offsets: *const u64,
    reference_counters: u64,
    cookies: u64,
    count: u32,
    uprobe_flags: u32,
    pid: u64,
}

/// `struct perf_event_attr` in its second version, 72 bytes.
#[repr(C)]
#[derive(Default)]
struct PerfEvent {
    pmu_type: u32,
    size: u32,
    config: u64,
    sampling: [u64; 3],
    flags: u64,
    wakeup: u32,
    breakpoint: u32,
    /// `config1`: for a uprobe, the address of the path.
    path: u64,
    /// `config2`: for a uprobe, the offset in the file.
    offset: u64,
}

/// Empty programs at some sites of a process. Dropping this detaches them.
pub(super) struct Empty {
    _attached: Vec<Attached>,
}

impl Empty {
    /// Attaches an empty program to each of these file offsets of the process's executable, with the kind of link
    /// that the agent uses.
    pub(super) fn attach(pid: u32, offsets: &[u64]) -> Result<Self> {
        let attached = offsets.iter().map(|offset| Attached::new(pid, Place::At(*offset), &NOTHING, 0));
        Ok(Self { _attached: attached.collect::<Result<_>>()? })
    }

    /// The same with perf events, as used by tools that know no other way.
    pub(super) fn attach_by_perf_events(pid: u32, offsets: &[u64]) -> Result<Self> {
        let attached =
            offsets.iter().map(|offset| Attached::by_perf_event(pid, Place::At(*offset), &NOTHING, 0));
        Ok(Self { _attached: attached.collect::<Result<_>>()? })
    }
}

/// Where a program is attached, by a file offset of the executable.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// At an instruction.
    At(u64),
    /// At the return of the function that begins there: a return probe.
    BehindReturnOf(u64),
}

impl Place {
    fn offset(self) -> u64 {
        match self {
            Self::At(offset) | Self::BehindReturnOf(offset) => offset,
        }
    }
}

/// A program attached to a site. Dropping this detaches it.
pub(super) struct Attached {
    _link: OwnedFd,
    _program: OwnedFd,
}

impl Attached {
    /// Loads these instructions with the flags of `BPF_PROG_LOAD`, and attaches them to a place of the process's
    /// executable: with a multi-uprobe link, like the agent, or, before Linux 6.6, with a perf event.
    pub(super) fn new(pid: u32, place: Place, code: &[u64], flags: u32) -> Result<Self> {
        if let Ok(program) = load(code, flags, BPF_TRACE_UPROBE_MULTI) {
            return Ok(Self { _link: multi_link(&program, pid, place)?, _program: program });
        }
        Self::by_perf_event(pid, place, code, flags)
    }

    fn by_perf_event(pid: u32, place: Place, code: &[u64], flags: u32) -> Result<Self> {
        let program = load(code, flags, 0)?;
        Ok(Self { _link: link(&program, &uprobe(pid, place)?)?, _program: program })
    }
}

fn load(code: &[u64], flags: u32, attach_type: u32) -> Result<OwnedFd> {
    let attributes = ProgramLoad {
        program_type: BPF_PROG_TYPE_KPROBE,
        instruction_count: code.len().try_into()?,
        instructions: code.as_ptr(),
        // Some helpers require a GPL-compatible license.
        license: c"Dual MIT/GPL".as_ptr(),
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags,
        name: [0; 16],
        interface: 0,
        attach_type,
    };
    bpf(BPF_PROG_LOAD, &attributes).context("cannot load an eBPF program")
}

fn multi_link(program: &OwnedFd, pid: u32, place: Place) -> Result<OwnedFd> {
    let offset = place.offset();
    let path = CString::new(format!("/proc/{pid}/exe"))?;
    let attributes = MultiUprobeLink {
        program: program.as_raw_fd(),
        target: 0,
        attach_type: BPF_TRACE_UPROBE_MULTI,
        flags: 0,
        path: path.as_ptr(),
        offsets: &raw const offset,
        reference_counters: 0,
        cookies: 0,
        count: 1,
        uprobe_flags: match place {
            Place::At(_) => 0,
            Place::BehindReturnOf(_) => BPF_F_UPROBE_MULTI_RETURN,
        },
        pid: pid.into(),
    };
    bpf(BPF_LINK_CREATE, &attributes)
        .with_context(|| format!("cannot attach an eBPF program at {offset:#x} of process {pid}"))
}

fn uprobe(pid: u32, place: Place) -> Result<OwnedFd> {
    let offset = place.offset();
    let pmu_type = fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")
        .context("the kernel has no uprobes that can be opened with perf_event_open")?;
    let path = CString::new(format!("/proc/{pid}/exe"))?;
    let event = PerfEvent {
        pmu_type: pmu_type.trim().parse()?,
        size: size_of::<PerfEvent>().try_into()?,
        config: match place {
            Place::At(_) => 0,
            Place::BehindReturnOf(_) => RETURN_PROBE,
        },
        path: path.as_ptr().expose_provenance().try_into()?,
        offset,
        ..PerfEvent::default()
    };
    let (any_cpu, no_group) = (-1, -1);
    // SAFETY: the kernel reads `size` bytes of the event and the path, which both outlive the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const event,
            libc::pid_t::try_from(pid)?,
            any_cpu,
            no_group,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    owned(answer).with_context(|| format!("cannot open a uprobe at {offset:#x} of process {pid}"))
}

fn link(program: &OwnedFd, event: &OwnedFd) -> Result<OwnedFd> {
    let attributes = LinkCreate {
        program: program.as_raw_fd(),
        target: event.as_raw_fd(),
        attach_type: BPF_PERF_EVENT,
        flags: 0,
    };
    bpf(BPF_LINK_CREATE, &attributes).context("cannot attach an eBPF program")
}
