//! What is loaded in the kernel, whoever loaded it.

use std::{
    collections::BTreeSet,
    fmt, io, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Commands of `bpf(2)` (`include/uapi/linux/bpf.h`).
const BPF_PROG_GET_NEXT_ID: libc::c_int = 11;
const BPF_MAP_GET_NEXT_ID: libc::c_int = 12;
const BPF_LINK_GET_NEXT_ID: libc::c_int = 31;

/// The numbers of all BPF objects in the kernel. It gives a number to one object only, and takes objects away some time
/// after their last user is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfObjects {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl BpfObjects {
    /// Those that are there now. Needs root.
    pub fn now() -> io::Result<Self> {
        Ok(Self {
            programs: all(BPF_PROG_GET_NEXT_ID)?,
            maps: all(BPF_MAP_GET_NEXT_ID)?,
            links: all(BPF_LINK_GET_NEXT_ID)?,
        })
    }

    /// Those that were not there before.
    #[must_use]
    pub fn beyond(&self, before: &Self) -> Self {
        let beyond = |now: &BTreeSet<u32>, before: &BTreeSet<u32>| now.difference(before).copied().collect();
        Self {
            programs: beyond(&self.programs, &before.programs),
            maps: beyond(&self.maps, &before.maps),
            links: beyond(&self.links, &before.links),
        }
    }

    /// How many programs, maps and links.
    #[must_use]
    pub fn counts(&self) -> [usize; 3] {
        [self.programs.len(), self.maps.len(), self.links.len()]
    }

    /// Waits until nothing is left in the kernel that was not in it before.
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
    // The attributes of these commands: start_id, next_id, open_flags.
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
