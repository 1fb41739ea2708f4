//! Queries the kernel: the bpf system call, and its information about the maps and programs of a process.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result};

// Numbers of uapi/linux/bpf.h.
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_MAP_GET_FD_BY_ID: libc::c_int = 14;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_ENABLE_STATS: libc::c_int = 32;

/// Makes the system call, for commands that return a file descriptor.
pub(super) fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads exactly the attributes, and writes none for commands that make a file descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    owned(fd)
}

/// Converts the return value of a system call that makes a file descriptor.
pub(super) fn owned(answer: libc::c_long) -> io::Result<OwnedFd> {
    match libc::c_int::try_from(answer) {
        // SAFETY: the kernel has just made it, and nothing else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// While this lives, the kernel counts and times all runs of programs, which takes time itself.
pub(super) struct Statistics {
    _enabled: OwnedFd,
}

impl Statistics {
    pub(super) fn enable() -> Result<Self> {
        // The only type there is: BPF_STATS_RUN_TIME.
        let enabled =
            bpf(BPF_ENABLE_STATS, &0_u32).context("cannot turn on the kernel's program statistics")?;
        Ok(Self { _enabled: enabled })
    }
}

/// A program that a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// How often it ran while [`Statistics`] was on.
    pub(super) runs: u64,
    /// Total time of these runs, in nanoseconds.
    pub(super) run_time: u64,
}

/// Returns the programs that a process holds.
pub(super) fn programs(pid: u32) -> Result<Vec<Program>> {
    let mut programs = BTreeMap::new();
    for info in descriptors(pid)? {
        if let (Some(id), Some(runs), Some(run_time)) =
            (field(&info, "prog_id"), field(&info, "run_cnt"), field(&info, "run_time_ns"))
        {
            programs.insert(id, Program { runs, run_time });
        }
    }
    Ok(programs.into_values().collect())
}

/// The kernel's translation of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Translated {
    pub(super) name: String,
    /// Instructions after the verifier has removed dead code.
    pub(super) instructions: u64,
    /// Instructions that call a helper of the kernel.
    pub(super) helper_calls: u64,
    /// Bytes of machine code.
    pub(super) machine_bytes: u64,
    /// Instructions that the verifier processed, over all paths.
    pub(super) verified: u64,
}

/// Returns the programs that a process holds, ordered by id.
pub(super) fn translated(pid: u32) -> Result<Vec<Translated>> {
    let mut programs = BTreeMap::new();
    for info in descriptors(pid)? {
        if let (Some(id), Some(verified)) = (field(&info, "prog_id"), field(&info, "verified_insns")) {
            programs.insert(u32::try_from(id)?, verified);
        }
    }
    programs.into_iter().map(|(id, verified)| translate(id, verified)).collect()
}

/// The head of `struct bpf_prog_info`; the kernel fills in as much as fits.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ProgramInfo {
    program_type: u32,
    id: u32,
    tag: [u8; 8],
    machine_bytes: u32,
    instruction_bytes: u32,
    machine_code: u64,
    instructions: u64,
    load_time: u64,
    user: u32,
    map_count: u32,
    maps: u64,
    name: [u8; 16],
}

fn translate(id: u32, verified: u64) -> Result<Translated> {
    let failed = || format!("cannot ask about the program {id}");
    // The head of `union bpf_attr`: an id, then the next and flags.
    let program = bpf(BPF_PROG_GET_FD_BY_ID, &[id, 0, 0]).with_context(failed)?;
    let sizes = program_info(&program, ProgramInfo::default()).with_context(failed)?;
    let mut code = vec![0_u64; sizes.instruction_bytes as usize / size_of::<u64>()];
    let wanted = ProgramInfo {
        instruction_bytes: sizes.instruction_bytes,
        instructions: code.as_mut_ptr().expose_provenance() as u64,
        ..ProgramInfo::default()
    };
    let info = program_info(&program, wanted).with_context(failed)?;
    let name = info.name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(Translated {
        name: String::from_utf8_lossy(name).into_owned(),
        instructions: code.len() as u64,
        helper_calls: code.iter().filter(|instruction| calls_a_helper(**instruction)).count() as u64,
        machine_bytes: info.machine_bytes.into(),
        verified,
    })
}

/// Whether this is `BPF_JMP | BPF_CALL` without a source register; with one it calls another function.
fn calls_a_helper(instruction: u64) -> bool {
    instruction & 0xf0ff == 0x85
}

/// The head of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct Ask {
    fd: RawFd,
    size: u32,
    info: *mut ProgramInfo,
}

fn program_info(program: &OwnedFd, mut info: ProgramInfo) -> io::Result<ProgramInfo> {
    let size = u32::try_from(size_of::<ProgramInfo>()).map_err(io::Error::other)?;
    let ask = Ask { fd: program.as_raw_fd(), size, info: &raw mut info };
    // SAFETY: the kernel writes to the info, limited by the given size, and to the instructions that the info points
    // to, limited by the length in it. Both outlive the call.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw const ask, size_of::<Ask>()) };
    if answer == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}

/// A map that a process holds.
#[derive(Debug)]
pub(super) struct Map {
    /// `BPF_MAP_TYPE_…`.
    pub(super) kind: u64,
    /// Bytes of a value.
    pub(super) value_bytes: u64,
    /// Capacity in values; for a ring, in bytes.
    pub(super) entries: u64,
    id: u32,
}

impl Map {
    /// Opens the map, which adds a holder.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        // The head of `union bpf_attr`: an id, then the next and flags.
        bpf(BPF_MAP_GET_FD_BY_ID, &[self.id, 0, 0]).with_context(|| format!("cannot open map {}", self.id))
    }
}

/// Returns the maps that a process holds.
pub(super) fn maps(pid: u32) -> Result<Vec<Map>> {
    let map = |info: &String| {
        let (kind, value_bytes) = (field(info, "map_type")?, field(info, "value_size")?);
        let (entries, id) = (field(info, "max_entries")?, field(info, "map_id")?);
        Some(Map { kind, value_bytes, entries, id: u32::try_from(id).ok()? })
    };
    Ok(descriptors(pid)?.iter().filter_map(map).collect())
}

/// Returns the bytes of kernel memory in the maps that a process holds.
pub(super) fn map_bytes(pid: u32) -> Result<u64> {
    let mut maps = BTreeMap::new();
    for info in descriptors(pid)? {
        if let (Some(id), Some(bytes)) = (field(&info, "map_id"), field(&info, "memlock")) {
            maps.insert(id, bytes);
        }
    }
    Ok(maps.into_values().sum())
}

/// Reads the kernel's information about each open file descriptor of a process.
fn descriptors(pid: u32) -> Result<Vec<String>> {
    let directory = format!("/proc/{pid}/fdinfo");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))?;
    // Skips descriptors that have been closed since.
    Ok(entries.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok()).collect())
}

/// Parses the number in a line such as `map_id:\t17`.
fn field(info: &str, name: &str) -> Option<u64> {
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{calls_a_helper, field};

    #[test]
    fn calls_of_helpers_and_others() {
        // call 14; call of a function 2 instructions further on; r0 = 0x85
        assert!(calls_a_helper(0x0000_000e_0000_0085));
        assert!(!calls_a_helper(0x0000_0002_0000_1085));
        assert!(!calls_a_helper(0x0000_0085_0000_00b7));
    }

    #[test]
    fn fields_of_a_descriptor() {
        let info = "pos:\t0\nmap_type:\t1\nmemlock:\t4096\nmap_id:\t17\nmap_extra:\t0x0\n";
        assert_eq!(field(info, "map_id"), Some(17));
        assert_eq!(field(info, "memlock"), Some(4096));
        assert_eq!(field(info, "map"), None);
        assert_eq!(field(info, "prog_id"), None);
    }
}
