//! The code of a running target, at the sites of the agent's probes.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::agent;

/// Number of bytes compared at each site: more than a probe replaces.
const BYTES: usize = 16;
/// The instruction that the kernel writes over a probed one (`int3`, amd64).
const BREAKPOINT: u8 = 0xcc;

/// The sites of one process, as reported by `inspect`, and the code in its file at these sites.
pub struct Sites {
    pid: u32,
    all: Vec<Site>,
    memory: File,
}

struct Site {
    symbol: String,
    offset: u64,
    address: u64,
    original: [u8; BYTES],
}

impl Sites {
    /// Asks `inspect` for the sites of a process and reads their code from its executable.
    pub fn of(pid: u32) -> Result<Self> {
        let file = File::open(format!("/proc/{pid}/exe"))?;
        let mut sites = Vec::new();
        for site in &inspected(pid)? {
            let offset = site["file_offset"].as_u64().with_context(|| format!("no offset: {site}"))?;
            let mut original = [0; BYTES];
            file.read_exact_at(&mut original, offset)?;
            let symbol = site["symbol"].as_str().with_context(|| format!("no symbol: {site}"))?.to_owned();
            sites.push(Site { symbol, offset, address: address_of(pid, offset)?, original });
        }
        ensure!(sites.len() >= 2, "inspect tells {} sites of pid {pid}", sites.len());
        Ok(Self { pid, all: sites, memory: File::open(format!("/proc/{pid}/mem"))? })
    }

    /// The number of sites.
    #[must_use]
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Returns each site's function and file offset.
    pub fn offsets(&self) -> impl Iterator<Item = (&str, u64)> {
        self.all.iter().map(|site| (site.symbol.as_str(), site.offset))
    }

    /// Returns how many sites have a breakpoint. All other bytes must be as in the file.
    pub fn probed(&self) -> Result<usize> {
        let mut probed = 0;
        for site in &self.all {
            let mut found = [0; BYTES];
            self.memory.read_exact_at(&mut found, site.address)?;
            if found == site.original {
                continue;
            }
            let only_first = found[1..] == site.original[1..];
            ensure!(
                found[0] == BREAKPOINT && only_first,
                "pid {}: {} is {found:x?} in memory, {:x?} in the file",
                self.pid,
                site.symbol,
                site.original
            );
            probed += 1;
        }
        Ok(probed)
    }

    /// Fails unless every byte is as in the file, and `inspect` agrees. The kernel may take a moment to clean up after
    /// a process that was killed.
    pub fn check_clean(&self) -> Result<()> {
        let begin = Instant::now();
        while self.probed()? > 0 {
            if begin.elapsed() > Duration::from_secs(2) {
                bail!("pid {}: {} of {} sites still have a probe", self.pid, self.probed()?, self.all.len());
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.check_inspect(false)
    }

    /// Fails unless every site has a breakpoint, and `inspect` agrees.
    pub fn check_probed(&self) -> Result<()> {
        ensure!(self.probed()? == self.count(), "pid {}: {} sites with a probe", self.pid, self.probed()?);
        self.check_inspect(true)
    }

    fn check_inspect(&self, in_place: bool) -> Result<()> {
        for site in inspected(self.pid)? {
            ensure!(site["in_place"] == in_place, "inspect of pid {}: {site}", self.pid);
        }
        Ok(())
    }
}

/// Returns at how many of these file offsets, all of them in code, the memory of a process differs from its executable.
pub fn changed_at(pid: u32, offsets: &[u64]) -> Result<usize> {
    let file = File::open(format!("/proc/{pid}/exe"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut changed = 0;
    for offset in offsets {
        let (mut original, mut found) = ([0; BYTES], [0; BYTES]);
        file.read_exact_at(&mut original, *offset)?;
        memory.read_exact_at(&mut found, address_of(pid, *offset)?)?;
        changed += usize::from(found != original);
    }
    Ok(changed)
}

/// Returns the sites that `inspect` reports for a process, except those on request.
fn inspected(pid: u32) -> Result<Vec<Value>> {
    let pid = pid.to_string();
    let ended = agent::run_to_end(&["inspect", "--json", "--pid", &pid], Duration::from_secs(10))?;
    ensure!(ended.code == Some(0), "inspect of pid {pid}: {ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout)?;
    let frameworks = report["frameworks"].as_array().context("no frameworks")?;
    let sites = frameworks.iter().filter_map(|framework| framework["sites"].as_array());
    Ok(sites.flatten().filter(|site| site["on_request"] == false).cloned().collect())
}

/// Returns the address at which a file offset of the executable is mapped as code.
fn address_of(pid: u32, offset: u64) -> Result<u64> {
    let name = fs::read_link(format!("/proc/{pid}/exe"))?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    for line in maps.lines().filter(|line| line.ends_with(name.to_string_lossy().as_ref())) {
        // start-end perms offset dev inode path
        let mut words = line.split_whitespace();
        let (range, permissions, start) = (words.next(), words.next(), words.next());
        let (Some((from, to)), Some(start)) = (range.and_then(|range| range.split_once('-')), start) else {
            continue;
        };
        let number = |text| u64::from_str_radix(text, 16);
        let (from, to, start) = (number(from)?, number(to)?, number(start)?);
        if permissions.is_some_and(|text| text.contains('x'))
            && (start..start + (to - from)).contains(&offset)
        {
            return Ok(from + (offset - start));
        }
    }
    bail!("pid {pid} has no code from offset {offset:#x} of its file")
}
