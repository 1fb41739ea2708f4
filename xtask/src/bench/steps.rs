//! The kernel's cost of a probe hit, and of each operation that a program may request: a lower bound for any program
//! that uses these, however well it is written.

use std::{
    arch::global_asm,
    ffi::c_void,
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    process,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{
    empty::{self, Attached, Place},
    kernel::bpf,
    report::{Spread, row, table},
    section::Section,
};

// Numbers of uapi/linux/bpf.h.
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_TYPE_RINGBUF: u32 = 27;
const BPF_F_SLEEPABLE: u32 = 1 << 4;
const BPF_RB_NO_WAKEUP: u32 = 1;
const KTIME_GET_NS: u32 = 5;
const PROBE_READ_USER: u32 = 112;
const RINGBUF_RESERVE: u32 = 131;
const RINGBUF_SUBMIT: u32 = 132;
const COPY_FROM_USER: u32 = 148;

/// How often a program repeats an operation, so that it shows beside the hit.
const TIMES: u32 = 4;
/// Hits per try.
const HITS: u32 = 2_000;
/// Number of tries. The shortest counts: every disturbance makes one longer.
const TRIES: u32 = 100;
/// Size of a record, and of a read, in bytes.
const BYTES: u32 = 24;
const RING_BYTES: u32 = 1 << 20;

// A function whose first instruction the kernel emulates, as at the agent's sites, and whose return it single-steps.
global_asm!(".globl bench_probed", "bench_probed:", "nop", ".globl bench_returns", "bench_returns:", "ret");

unsafe extern "C" {
    safe fn bench_probed();
    safe fn bench_returns();
}

/// The bytes that the programs read.
static READ: [u8; BYTES as usize] = [1; BYTES as usize];

/// Measures with probes on this process itself.
pub(super) fn measure(rounds: u32) -> Result<Section> {
    let ring = Ring::new()?;
    let steps = [
        Step { name: "a hit, its program does nothing", at: At::Entry, code: Vec::new(), flags: 0 },
        Step {
            name: "a hit, its program does nothing and might sleep",
            at: At::Entry,
            code: Vec::new(),
            flags: BPF_F_SLEEPABLE,
        },
        Step {
            name: "a hit that is single-stepped (`ret`), its program does nothing",
            at: At::Return,
            code: Vec::new(),
            flags: 0,
        },
        Step {
            name: "a return probe beside a hit, its program does nothing",
            at: At::Behind,
            code: Vec::new(),
            flags: 0,
        },
        Step {
            name: "the time (`bpf_ktime_get_ns`)",
            at: At::Entry,
            code: vec![call(KTIME_GET_NS)],
            flags: 0,
        },
        Step {
            name: "a read of the target (`bpf_probe_read_user`)",
            at: At::Entry,
            code: read(PROBE_READ_USER),
            flags: 0,
        },
        Step {
            name: "a read that may wait for memory (`bpf_copy_from_user`)",
            at: At::Entry,
            code: read(COPY_FROM_USER),
            flags: BPF_F_SLEEPABLE,
        },
        Step {
            name: "a record into the ring (`bpf_ringbuf_reserve`, `_submit`)",
            at: At::Entry,
            code: ring.send()?,
            flags: 0,
        },
    ];
    let mut times = vec![Vec::new(); steps.len()];
    for _ in 0..rounds {
        let bare = shortest(&ring);
        let mut hits = [0.0; 2];
        for (step, times) in steps.iter().zip(&mut times) {
            let nanos = step.nanos(&ring)? - bare;
            let hit = &mut hits[usize::from(step.flags != 0)];
            times.push(match step.at {
                At::Entry if step.code.is_empty() => {
                    *hit = nanos;
                    nanos
                }
                At::Entry => (nanos - *hit) / f64::from(TIMES),
                At::Return => nanos,
                At::Behind => nanos - *hit,
            });
        }
    }
    let mut rows = vec![row(["what", "ns"])];
    let mut results = Vec::new();
    for (step, times) in steps.iter().zip(times) {
        let spread = Spread::of(times);
        rows.push(vec![step.name.to_owned(), spread.show(0)]);
        results.push(json!({ "what": step.name, "ns": spread }));
    }
    let blocks = vec![("steps", table(&rows))];
    Ok(Section { part: "steps", blocks, results: results.into(), ..Section::default() })
}

/// Where in the function a program is attached.
#[derive(Clone, Copy)]
enum At {
    /// At the first instruction.
    Entry,
    /// At the return.
    Return,
    /// At the first instruction, with an empty program after the return.
    Behind,
}

/// An operation that a program may request.
struct Step {
    name: &'static str,
    at: At,
    /// Instructions for one operation.
    code: Vec<u64>,
    flags: u32,
}

impl Step {
    /// Returns the nanoseconds of a hit whose program repeats the operation.
    fn nanos(&self, ring: &Ring) -> Result<f64> {
        let mut code = self.code.repeat(TIMES as usize);
        code.extend(empty::NOTHING);
        let entry = file_offset(bench_probed)?;
        let places = match self.at {
            At::Entry => vec![Place::At(entry)],
            At::Return => vec![Place::At(file_offset(bench_returns)?)],
            At::Behind => vec![Place::At(entry), Place::BehindReturnOf(entry)],
        };
        let attach = |place| Attached::new(process::id(), place, &code, self.flags);
        let attached: Result<Vec<_>> = places.into_iter().map(attach).collect();
        let _attached = attached.with_context(|| format!("cannot measure {}", self.name))?;
        Ok(shortest(ring))
    }
}

/// Returns the nanoseconds of a call of the function, in the shortest try.
fn shortest(ring: &Ring) -> f64 {
    let once = || {
        let begin = Instant::now();
        for _ in 0..HITS {
            bench_probed();
        }
        let nanos = begin.elapsed().as_secs_f64() * 1e9 / f64::from(HITS);
        ring.empty();
        nanos
    };
    (0..TRIES).map(|_| once()).fold(f64::INFINITY, f64::min)
}

/// Returns a function's file offset in this process's executable.
fn file_offset(function: extern "C" fn()) -> Result<u64> {
    let address = (function as *const c_void).expose_provenance() as u64;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let maps = fs::read_to_string("/proc/self/maps")?;
    let of_line = |line: &str| {
        let mut words = line.split_whitespace();
        let (begin, end) = words.next()?.split_once('-')?;
        let (begin, end, offset) = (hex(begin)?, hex(end)?, hex(words.nth(1)?)?);
        (begin..end).contains(&address).then(|| address - begin + offset)
    };
    maps.lines().find_map(of_line).context("this process is not in its own memory")
}

/// Encodes an instruction: opcode, registers, offset and immediate.
fn instruction(code: u8, to: u8, from: u8, offset: i16, number: u32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = number.to_le_bytes();
    u64::from_le_bytes([code, to | from << 4, low, high, a, b, c, d])
}

fn call(helper: u32) -> u64 {
    instruction(0x85, 0, 0, 0, helper)
}

fn set(register: u8, number: u32) -> u64 {
    instruction(0xb7, register, 0, 0, number)
}

/// Sets a register to an eight-byte value; `kind` is its type (`BPF_PSEUDO_MAP_FD` is 1).
fn set_wide(register: u8, kind: u8, value: u64) -> [u64; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "one half after the other")]
    let (low, high) = (value as u32, (value >> 32) as u32);
    [instruction(0x18, register, kind, 0, low), instruction(0, 0, 0, 0, high)]
}

/// Returns instructions that read some bytes of this process to the stack.
fn read(helper: u32) -> Vec<u64> {
    let address = READ.as_ptr().expose_provenance() as u64;
    let mut code = vec![
        instruction(0xbf, 1, 10, 0, 0),
        instruction(0x07, 1, 0, 0, 64_u32.wrapping_neg()),
        set(2, BYTES),
    ];
    code.extend(set_wide(3, 0, address));
    code.push(call(helper));
    code
}

/// A ring buffer, and its two pages with the consumer and producer positions.
struct Ring {
    fd: OwnedFd,
    read: NonNull<AtomicU64>,
    written: NonNull<AtomicU64>,
}

/// The head of `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

impl Ring {
    fn new() -> Result<Self> {
        let attributes =
            MapCreate { map_type: BPF_MAP_TYPE_RINGBUF, key_size: 0, value_size: 0, max_entries: RING_BYTES };
        let fd = bpf(BPF_MAP_CREATE, &attributes).context("cannot make a ring buffer")?;
        let read = page(&fd, 0, libc::PROT_READ | libc::PROT_WRITE)?;
        let written = page(&fd, 1, libc::PROT_READ)?;
        Ok(Self { fd, read, written })
    }

    /// Marks all records as consumed.
    fn empty(&self) {
        // SAFETY: both pages stay mapped, begin with the word, and the kernel accesses it atomically.
        let (read, written) = unsafe { (self.read.as_ref(), self.written.as_ref()) };
        read.store(written.load(Ordering::Acquire), Ordering::Release);
    }

    /// Returns instructions that write a record.
    fn send(&self) -> Result<Vec<u64>> {
        let map = u64::try_from(self.fd.as_raw_fd())?;
        let mut code = set_wide(1, 1, map).to_vec();
        code.extend([set(2, BYTES), set(3, 0), call(RINGBUF_RESERVE)]);
        // If there is no room, skips the next three.
        code.push(instruction(0x15, 0, 0, 3, 0));
        code.extend([instruction(0xbf, 1, 0, 0, 0), set(2, BPF_RB_NO_WAKEUP), call(RINGBUF_SUBMIT)]);
        Ok(code)
    }
}

/// Maps a page of the ring buffer, for the lifetime of this process.
fn page(fd: &OwnedFd, number: usize, access: libc::c_int) -> Result<NonNull<AtomicU64>> {
    // SAFETY: only requests the page size.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let offset = libc::off_t::try_from(number)? * size;
    // SAFETY: the kernel chooses an unused address.
    let place = unsafe {
        libc::mmap(ptr::null_mut(), usize::try_from(size)?, access, libc::MAP_SHARED, fd.as_raw_fd(), offset)
    };
    if place == libc::MAP_FAILED {
        return Err(io::Error::last_os_error()).context("cannot map a ring buffer");
    }
    NonNull::new(place.cast()).context("a ring buffer at address 0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_encoded_as_the_kernel_wants_them() {
        assert_eq!(instruction(0xb7, 0, 0, 0, 0), 0xb7);
        assert_eq!(call(5), 0x5_0000_0085);
        assert_eq!(instruction(0x07, 1, 0, 0, 64_u32.wrapping_neg()), 0xffff_ffc0_0000_0107);
        assert_eq!(set_wide(3, 1, 0x1_0000_0002), [0x2_0000_1318, 0x1_0000_0000]);
    }

    #[test]
    fn the_function_is_in_the_executable() {
        let offset = usize::try_from(file_offset(bench_probed).unwrap()).unwrap();
        let executable = fs::read("/proc/self/exe").unwrap();
        let text = std::slice::from_ref(&executable[offset]);
        let first = if cfg!(target_arch = "x86_64") { 0x90 } else { 0x1f };
        assert_eq!(text, [first]);
    }
}
