//! Records rings as filled by the programs: an agent is stopped while its Kitex server answers calls.

use std::{
    fs,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    ptr::{self, NonNull},
    slice,
};

use anyhow::{Context as _, Result, ensure};
use monitor_ebpf::LabelSet;
use monitor_tests::agent::{self, Agent};

use super::{
    kernel::{self, Map},
    machine::{Cores, pinned},
    stage::{Load, Pair},
};

// Numbers of uapi/linux/bpf.h.
const BPF_MAP_TYPE_ARRAY: u64 = 2;
const BPF_MAP_TYPE_RINGBUF: u64 = 27;
/// More calls than a ring has room for, preceded by a few so that no label set is new.
const FILL: Load = Load { seconds: 10.0, concurrency: 16 };
const WARM_UP: Load = Load { seconds: 0.3, concurrency: 16 };
/// Minimum size of a recording in bytes: three quarters of a ring.
const BYTES_MIN: usize = 3 << 20;

/// Writes a ring of records and one of events, and their label sets, to files in a directory.
pub(super) fn record(cores: Cores, directory: &Path) -> Result<()> {
    let socket = directory.join("events.socket");
    let socket = socket.to_str().context("a path that is not UTF-8")?;
    record_with(cores, &[], &directory.join("records"))?;
    record_with(cores, &["--events.socket", socket], &directory.join("events"))
}

fn record_with(cores: Cores, args: &[&str], file: &Path) -> Result<()> {
    let mut pair = Pair::together(cores.server)?;
    let mut command = pinned(cores.others, &agent::executable()?);
    command.args(["run", "--web.listen-address", "127.0.0.1:0", "--pid"]).arg(pair.server.pid().to_string());
    let agent = Agent::start_command(command.args(args))?.wait_ready()?;
    let reader = args.last().map(std::os::unix::net::UnixStream::connect).transpose()?;
    pair.send(WARM_UP, 0)?;
    pair.answer(WARM_UP)?;
    agent.signal(libc::SIGSTOP)?;
    pair.send(FILL, 0)?;
    pair.answer(FILL)?;
    let taken = taken(agent.pid(), file);
    agent.signal(libc::SIGCONT)?;
    agent.terminate()?;
    drop(reader);
    taken
}

fn taken(agent: u32, file: &Path) -> Result<()> {
    let maps = kernel::maps(agent)?;
    // The agent also has small ones, for its log and for its own measurements.
    let find = |what: &str, is: &dyn Fn(&Map) -> bool| {
        let largest = maps.iter().filter(|map| is(map)).max_by_key(|map| map.entries);
        largest.with_context(|| format!("the agent has no map with {what}"))
    };
    let ring = find("records", &|map| map.kind == BPF_MAP_TYPE_RINGBUF)?;
    let bytes = size_of::<LabelSet>();
    let labels = find("label sets", &|map| {
        map.kind == BPF_MAP_TYPE_ARRAY && usize::try_from(map.value_bytes).is_ok_and(|size| size == bytes)
    })?;
    let (records, sets) = (records(ring)?, label_sets(labels)?);
    ensure!(records.len() >= BYTES_MIN, "the ring has only {} bytes", records.len());
    let write = |extension: &str, bytes: &[u8]| {
        let file = file.with_extension(extension);
        fs::write(&file, bytes).with_context(|| format!("cannot write {}", file.display()))
    };
    write("ring", &records)?;
    write("labels", &sets)
}

/// Returns the records in a ring that have not been consumed.
fn records(ring: &Map) -> Result<Vec<u8>> {
    let size = usize::try_from(ring.entries)?;
    let page = page_size()?;
    let fd = ring.open()?;
    // A page with the consumer position, then one with the producer position, and the data mapped twice.
    let read = Mapped::new(&fd, 0, page)?;
    let written = Mapped::new(&fd, page, page + 2 * size)?;
    let (from, to) = (usize::try_from(read.word())?, usize::try_from(written.word())?);
    let length = to.checked_sub(from).filter(|length| *length <= size).context("a ring that is no ring")?;
    let start = page + from % size;
    Ok(written.bytes()[start..start + length].to_vec())
}

/// Returns the label sets in use, ordered by number. The unused ones after them have no side.
fn label_sets(map: &Map) -> Result<Vec<u8>> {
    let bytes = size_of::<LabelSet>();
    let length = bytes * usize::try_from(map.entries)?;
    let mapped = Mapped::new(&map.open()?, 0, length.next_multiple_of(page_size()?))?;
    let sets = mapped.bytes()[..length].chunks_exact(bytes);
    Ok(sets.take_while(|set| set.iter().any(|byte| *byte != 0)).flatten().copied().collect())
}

fn page_size() -> Result<usize> {
    // SAFETY: no preconditions.
    Ok(usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) })?)
}

/// Memory of a map, which is read while its owner is stopped.
struct Mapped {
    start: NonNull<u8>,
    length: usize,
}

impl Mapped {
    fn new(map: &OwnedFd, offset: usize, length: usize) -> Result<Self> {
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                libc::off_t::try_from(offset)?,
            )
        };
        ensure!(start != libc::MAP_FAILED, "cannot map a map: {}", std::io::Error::last_os_error());
        Ok(Self { start: NonNull::new(start.cast()).context("a mapping at 0")?, length })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for reading as long as this lives; there is no writer while no call is in flight.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    fn word(&self) -> u64 {
        let (word, _) = self.bytes().split_first_chunk().expect("mappings have whole pages");
        u64::from_ne_bytes(*word)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: this owns the mapping, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
