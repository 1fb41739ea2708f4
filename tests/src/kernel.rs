//! The BPF objects in the kernel, except those that other tools on this machine hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    os::fd::{FromRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// Commands of `bpf(2)` (`include/uapi/linux/bpf.h`).
const BPF_PROG_GET_NEXT_ID: libc::c_int = 11;
const BPF_MAP_GET_NEXT_ID: libc::c_int = 12;
const BPF_MAP_GET_FD_BY_ID: libc::c_int = 14;
const BPF_LINK_GET_NEXT_ID: libc::c_int = 31;

/// The ids of all BPF objects in the kernel, except those held by a living process that this process has not started:
/// other tools come and go. The kernel never reuses an id, and frees an object some time after its last user is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfObjects {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl BpfObjects {
    /// Returns the objects that exist now. Needs root.
    pub fn now() -> io::Result<Self> {
        let all = Self {
            programs: all(BPF_PROG_GET_NEXT_ID)?,
            maps: all(BPF_MAP_GET_NEXT_ID)?,
            links: all(BPF_LINK_GET_NEXT_ID)?,
        };
        Ok(all.beyond(&Self::of_strangers()?))
    }

    /// Returns the objects held by processes that are not descendants of this one.
    fn of_strangers() -> io::Result<Self> {
        let parents = parents()?;
        let is_own = |pid: u32| {
            let ancestors = std::iter::successors(Some(pid), |pid| parents.get(pid).copied());
            ancestors.take(parents.len()).any(|pid| pid == std::process::id())
        };
        let mut held = Self::default();
        for pid in parents.keys().filter(|pid| !is_own(**pid)) {
            // A process that has ended holds nothing.
            let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { continue };
            for descriptor in descriptors.flatten() {
                held.add_descriptor(&fs::read_to_string(descriptor.path()).unwrap_or_default());
            }
        }
        Ok(held)
    }

    /// Adds the objects that a descriptor's entry in `fdinfo` names.
    fn add_descriptor(&mut self, info: &str) {
        for line in info.lines() {
            let Some((name, number)) = line.split_once(":\t") else { continue };
            let numbers = match name {
                "prog_id" => &mut self.programs,
                "map_id" => &mut self.maps,
                "link_id" => &mut self.links,
                _ => continue,
            };
            numbers.extend(number.trim().parse::<u32>());
        }
    }

    /// Returns the objects that are not in `before`.
    #[must_use]
    pub fn beyond(&self, before: &Self) -> Self {
        let beyond = |now: &BTreeSet<u32>, before: &BTreeSet<u32>| now.difference(before).copied().collect();
        Self {
            programs: beyond(&self.programs, &before.programs),
            maps: beyond(&self.maps, &before.maps),
            links: beyond(&self.links, &before.links),
        }
    }

    /// Opens each map and closes it again, like tools that list what is loaded. A map may disappear meanwhile.
    pub fn open_maps(&self) -> io::Result<()> {
        for map in &self.maps {
            match open_map(*map) {
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The numbers of programs, maps and links.
    #[must_use]
    pub fn counts(&self) -> [usize; 3] {
        [self.programs.len(), self.maps.len(), self.links.len()]
    }

    /// Waits until the kernel has no object that is not in `before`.
    pub fn wait_until_back(before: &Self, patience: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            let left = Self::now()?.beyond(before);
            if left == Self::default() {
                return Ok(());
            }
            if begin.elapsed() > patience {
                bail!("left in the kernel: {left}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl fmt::Display for BpfObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "programs {:?}, maps {:?}, links {:?}", self.programs, self.maps, self.links)
    }
}

/// All processes, each with its parent.
fn parents() -> io::Result<BTreeMap<u32, u32>> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name before it may contain any character.
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    Ok(parents)
}

fn all(command: libc::c_int) -> io::Result<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    let mut last = 0;
    while let Some(next) = next_id(command, last)? {
        numbers.insert(next);
        last = next;
    }
    Ok(numbers)
}

fn next_id(command: libc::c_int, after: u32) -> io::Result<Option<u32>> {
    // The attributes of these commands: `start_id`, `next_id`, `open_flags`.
    let mut attributes = [after, 0, 0];
    // SAFETY: the pointer and the size are those of `attributes`, which the kernel reads and writes.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(&attributes)) };
    if result == 0 {
        return Ok(Some(attributes[1]));
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENOENT) { Ok(None) } else { Err(error) }
}

fn open_map(number: u32) -> io::Result<OwnedFd> {
    // The attributes: `map_id`, `next_id`, `open_flags`.
    let attributes = [number, 0, 0];
    // SAFETY: the pointer and the size are those of `attributes`, which the kernel reads.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_GET_FD_BY_ID, attributes.as_ptr(), size_of_val(&attributes))
    };
    let Ok(descriptor) = libc::c_int::try_from(result) else { return Err(io::ErrorKind::InvalidData.into()) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Returns major and minor number of the running kernel's release.
pub fn release() -> Result<(u32, u32)> {
    numbers(&fs::read_to_string("/proc/sys/kernel/osrelease")?)
}

/// Parses major and minor number of a release such as `6.1.0-56-cloud-amd64`.
fn numbers(release: &str) -> Result<(u32, u32)> {
    let mut parts = release.split(['.', '-']);
    let mut number = || parts.next().and_then(|part| part.parse().ok()).with_context(|| release.to_owned());
    Ok((number()?, number()?))
}

/// The first release of Linux in which programs can read memory by page tables (`bpf_rdonly_cast`).
pub const SINCE_PAGE_TABLES: (u32, u32) = (6, 2);

/// Returns what a report of `inspect --json --pid` has about the kernel: major and minor number of its release, and
/// whether programs can read a target's memory by its page tables. The agent has them do so where it is faster.
pub fn page_tables(report: &Value) -> Result<((u32, u32), bool)> {
    let release = numbers(report["kernel"]["release"].as_str().context("no release")?)?;
    let features = report["kernel"]["features"].as_array().context("no features")?;
    let reads = features.iter().find(|feature| feature["name"] == "reads by page tables");
    let reads = reads.context("nothing of reads by page tables")?;
    let [can, do_so] = ["present", "used"].map(|what| reads[what] == true);
    ensure!(can || !do_so, "page tables are used though they are absent: {reads}");
    Ok((release, can))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_that_a_descriptor_names() {
        let mut held = BpfObjects::default();
        held.add_descriptor("pos:\t0\nlink_type:\tperf\nlink_id:\t7\nprog_tag:\t0a1b\nprog_id:\t12\n");
        held.add_descriptor("pos:\t0\nmap_type:\t2\nmap_id:\t30\n");
        assert_eq!(held.to_string(), "programs {12}, maps {30}, links {7}");
    }

    #[test]
    fn every_process_has_a_parent() {
        let parent = std::os::unix::process::parent_id();
        assert_eq!(parents().unwrap().get(&std::process::id()), Some(&parent));
    }
}
