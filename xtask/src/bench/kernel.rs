//! What the kernel is asked: the bpf system call, and its books on the maps and programs of a process.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

/// `BPF_ENABLE_STATS` (uapi/linux/bpf.h).
const BPF_ENABLE_STATS: libc::c_int = 32;

/// The system call, for the commands that answer with a file descriptor.
pub(super) fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes as it is told the attributes have, and writes none for commands that
    // make a file descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    owned(fd)
}

/// What a system call answered that makes a file descriptor.
pub(super) fn owned(answer: libc::c_long) -> io::Result<OwnedFd> {
    match libc::c_int::try_from(answer) {
        // SAFETY: the kernel has just made it, and nothing else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// While it lives, the kernel counts and times all runs of programs, which takes time itself.
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
    /// Nanoseconds that took.
    pub(super) run_time: u64,
}

/// The programs that a process holds.
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

/// Bytes of kernel memory in the maps that a process holds.
pub(super) fn map_bytes(pid: u32) -> Result<u64> {
    let mut maps = BTreeMap::new();
    for info in descriptors(pid)? {
        if let (Some(id), Some(bytes)) = (field(&info, "map_id"), field(&info, "memlock")) {
            maps.insert(id, bytes);
        }
    }
    Ok(maps.into_values().sum())
}

/// What the kernel says of each open file descriptor of a process.
fn descriptors(pid: u32) -> Result<Vec<String>> {
    let directory = format!("/proc/{pid}/fdinfo");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))?;
    // One that was closed since is nobody's loss.
    Ok(entries.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok()).collect())
}

/// The number in a line such as `map_id:\t17`.
fn field(info: &str, name: &str) -> Option<u64> {
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn fields_of_a_descriptor() {
        let info = "pos:\t0\nmap_type:\t1\nmemlock:\t4096\nmap_id:\t17\nmap_extra:\t0x0\n";
        assert_eq!(field(info, "map_id"), Some(17));
        assert_eq!(field(info, "memlock"), Some(4096));
        assert_eq!(field(info, "map"), None);
        assert_eq!(field(info, "prog_id"), None);
    }
}
