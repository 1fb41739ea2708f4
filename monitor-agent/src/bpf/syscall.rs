//! The bpf(2) commands that aya does not offer, and what they need.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya_obj::generated::{bpf_insn, bpf_prog_info};

use crate::descriptors;

// Numbers and structures of include/uapi/linux/bpf.h.
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_MAP_FREEZE: libc::c_int = 22;
const BPF_LINK_CREATE: libc::c_int = 28;
pub(super) const BPF_MAP_TYPE_HASH: u32 = 1;
pub(super) const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
pub(super) const BPF_MAP_TYPE_RINGBUF: u32 = 27;
const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;

const BPF_PERF_EVENT: u32 = 41;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;

/// How a program will be attached; the kernel needs to know when it loads the program.
#[repr(u32)]
#[derive(Clone, Copy, Debug)]
pub(super) enum AttachType {
    /// One perf event per probe, or any other way that needs no type.
    PerfEvent = 0,
    /// One link for all probes.
    MultiUprobes = BPF_TRACE_UPROBE_MULTI,
}

/// What probes have in common, wherever they are.
pub(super) struct Probe<'a> {
    /// The program that they run.
    pub(super) program: BorrowedFd<'a>,
    /// The executable, by any path that leads to it.
    pub(super) exe: &'a CStr,
    /// The only process whose hits count.
    pub(super) pid: u32,
    /// Whether they run at the function's return instead of at the offset.
    pub(super) is_return: bool,
}

/// The head of `union bpf_attr` for `BPF_MAP_CREATE`; the kernel takes the rest as zero.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// The same for `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct Element {
    map: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The same for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; NAME_BYTES],
    interface: u32,
    expected_attach_type: u32,
}

/// The same for `BPF_LINK_CREATE`: up to the flags for a perf event, all of it for multiple uprobes.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
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

/// The same for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct ObjectInfo {
    object: u32,
    bytes: u32,
    info: u64,
}

/// Size of a program's name in bytes, including the final zero.
const NAME_BYTES: usize = 16;

/// Creates an array of one word that can be mapped into memory.
pub(super) fn mappable_word() -> io::Result<OwnedFd> {
    let attributes = MapCreate {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
        map_flags: BPF_F_MMAPABLE,
    };
    make(BPF_MAP_CREATE, &attributes)
}

/// Creates an empty array for one program that others may call.
pub(super) fn program_array() -> io::Result<OwnedFd> {
    let attributes = MapCreate {
        map_type: BPF_MAP_TYPE_PROG_ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        map_flags: 0,
    };
    make(BPF_MAP_CREATE, &attributes)
}

/// Sets the first value of an array. `value` must be as long as the array's values.
pub(super) fn set_first(array: BorrowedFd<'_>, value: &[u8]) -> io::Result<()> {
    let first = 0_u32;
    let attributes = Element {
        map: array.as_raw_fd().unsigned_abs(),
        key: address(&raw const first),
        value: address(value.as_ptr()),
        flags: 0,
    };
    call(BPF_MAP_UPDATE_ELEM, &attributes).map(|_| ())
}

/// Makes a map read-only for all processes, so that the verifier may treat its values as constants.
pub(super) fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    call(BPF_MAP_FREEZE, &map.as_raw_fd()).map(|_| ())
}

/// Loads a program for uprobes. The verifier writes to `log` unless it is empty.
pub(super) fn load_program(
    name: &str,
    license: &CStr,
    instructions: &[bpf_insn],
    attach_type: AttachType,
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    let mut short_name = [0; NAME_BYTES];
    // The last byte stays zero.
    for (to, from) in short_name[..NAME_BYTES - 1].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let attributes = ProgramLoad {
        program_type: BPF_PROG_TYPE_KPROBE,
        instruction_count: length(instructions)?,
        instructions: address(instructions.as_ptr()),
        license: address(license.as_ptr()),
        log_level: u32::from(!log.is_empty()),
        log_bytes: length(log)?,
        log: if log.is_empty() { 0 } else { address(log.as_mut_ptr()) },
        name: short_name,
        expected_attach_type: attach_type as u32,
        ..ProgramLoad::default()
    };
    make(BPF_PROG_LOAD, &attributes)
}

/// Creates a probe at each of these offsets of the executable, until the link is closed. Fails without asking the
/// kernel if descriptors are scarce: see [`Room`].
pub(super) fn link_uprobes(probe: &Probe<'_>, offsets: &[u64]) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        program: probe.program.as_raw_fd().unsigned_abs(),
        attach_type: BPF_TRACE_UPROBE_MULTI,
        path: address(probe.exe.as_ptr()),
        offsets: address(offsets.as_ptr()),
        count: length(offsets)?,
        uprobe_flags: if probe.is_return { BPF_F_UPROBE_MULTI_RETURN } else { 0 },
        pid: probe.pid.into(),
        ..LinkCreate::default()
    };
    let _room = Room::find(1)?;
    make(BPF_LINK_CREATE, &attributes)
}

/// A reservation of this many file descriptors.
///
/// The kernel allocates a link's descriptor last. If none is free, Linux 6.6 to 6.11 frees its data about the probes
/// and leaves them in place: up to 6.6.53, 6.10.12 and 6.11.1 (CVE-2024-47675; `bpf_uprobe_multi_link_attach`,
/// `kernel/trace/bpf_trace.c` @ v6.11). So no link is requested if it might get none. A descriptor can't be set aside
/// for it: registering takes milliseconds, in which other threads may take the free one. Hence code that takes
/// several reserves them first, and [`SPARE`] more must be free for everything else.
pub(super) struct Room(usize);

/// As many as peers may have, and a few for files that are read meanwhile.
const SPARE: usize = 80;
/// As many as one object takes.
pub(super) const AT_ONCE: usize = 40;

impl Room {
    /// Reserves descriptors; if too few are free, fails like a call that opens a file.
    pub(super) fn find(wanted: usize) -> io::Result<Self> {
        let mut promised = Self::promised();
        let taken = taken()?;
        if descriptors::limit()?.saturating_sub(taken) < *promised + wanted + SPARE {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        *promised += wanted;
        Ok(Self(wanted))
    }

    /// Releases one reserved descriptor that has been taken: it now counts as taken.
    pub(super) fn use_one(&mut self) {
        if let Some(left) = self.0.checked_sub(1) {
            self.0 = left;
            *Self::promised() -= 1;
        }
    }

    /// The number of descriptors that are reserved and not taken yet.
    fn promised() -> MutexGuard<'static, usize> {
        static PROMISED: Mutex<usize> = Mutex::new(0);
        PROMISED.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        *Self::promised() -= self.0;
    }
}

/// Returns the number of descriptors in use.
fn taken() -> io::Result<usize> {
    let taken = descriptors::count(Path::new("/proc/self/fd"))?;
    usize::try_from(taken).map_err(io::Error::other)
}

/// Attaches a program to a perf event until the link, which holds the event, is closed (Linux 5.15).
pub(super) fn link_event(program: BorrowedFd<'_>, event: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        program: program.as_raw_fd().unsigned_abs(),
        target: event.as_raw_fd().unsigned_abs(),
        attach_type: BPF_PERF_EVENT,
        ..LinkCreate::default()
    };
    make(BPF_LINK_CREATE, &attributes)
}

/// Returns the kernel's information about a program.
pub(super) fn program_info(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    // SAFETY: consists of integers, for which zero is valid: nothing beyond the structure itself is requested.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let attributes = ObjectInfo {
        object: program.as_raw_fd().unsigned_abs(),
        bytes: u32::try_from(size_of_val(&info)).map_err(io::Error::other)?,
        info: address(&raw mut info),
    };
    call(BPF_OBJ_GET_INFO_BY_FD, &attributes).map(|_| info)
}

/// Returns the machine code that the kernel made of a program.
#[cfg(test)]
pub(super) fn machine_code(program: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut code = vec![0; program_info(program)?.jited_prog_len as usize];
    // SAFETY: consists of integers, for which zero is valid: only the code is requested, and there is room for it.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    (info.jited_prog_len, info.jited_prog_insns) = (length(&code)?, address(code.as_mut_ptr()));
    let attributes = ObjectInfo {
        object: program.as_raw_fd().unsigned_abs(),
        bytes: u32::try_from(size_of_val(&info)).map_err(io::Error::other)?,
        info: address(&raw mut info),
    };
    call(BPF_OBJ_GET_INFO_BY_FD, &attributes).map(|_| code)
}

fn length<T>(list: &[T]) -> io::Result<u32> {
    u32::try_from(list.len()).map_err(io::Error::other)
}

pub(super) fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// Runs a command that returns a descriptor.
fn make<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let descriptor = call(command, attributes)?;
    // SAFETY: these commands return a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn call<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: pointer and size are those of the attributes, and what they point to lives in the caller.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    outcome(answer)
}

/// Converts the return value of a system call to a result.
pub(super) fn outcome(answer: libc::c_long) -> io::Result<libc::c_int> {
    match libc::c_int::try_from(answer) {
        Ok(answer) if answer >= 0 => Ok(answer),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs::File, iter, os::fd::AsFd as _, process::Command};

    use super::*;

    /// Set when the test runs in a process of its own.
    const ALONE: &str = "MONITOR_TEST_ALONE";

    /// Returns the error of a link to a file that is not a program. Every kernel finds that out before it allocates a
    /// descriptor.
    fn refusal(nothing: &File) -> Option<i32> {
        let probe = Probe { program: nothing.as_fd(), exe: c"/", pid: 0, is_return: false };
        link_uprobes(&probe, &[0]).expect_err("no program").raw_os_error()
    }

    #[test]
    fn the_kernel_is_asked_for_no_link_where_descriptors_may_run_out() {
        const NAME: &str =
            "bpf::syscall::tests::the_kernel_is_asked_for_no_link_where_descriptors_may_run_out";
        if env::var_os(ALONE).is_none() {
            // The limit applies to the whole process, which other tests share.
            let mut command = Command::new(env::current_exe().expect("a path"));
            let ended = command.args(["--exact", NAME]).env(ALONE, "1").output().expect("it runs");
            let told = String::from_utf8_lossy(&ended.stdout);
            assert!(ended.status.success() && told.contains("1 passed"), "{told}");
            return;
        }
        let nothing = File::open("/dev/null").expect("a file");
        let limit = libc::rlimit { rlim_cur: 200, rlim_max: 200 };
        // SAFETY: reads the limit only.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
        let mut held: Vec<_> = iter::from_fn(|| nothing.try_clone().ok()).collect();
        held.pop();
        // Descriptors inherited from the test runner may lie beyond the limit.
        while taken().expect("as many as there may be") + SPARE > 200 {
            held.pop().expect("one that is held");
        }
        assert_eq!(refusal(&nothing), Some(libc::EMFILE));
        held.pop();
        assert_ne!(refusal(&nothing), Some(libc::EMFILE));
        let mut other = Room::find(1).expect("there is room for one");
        assert_eq!(refusal(&nothing), Some(libc::EMFILE));
        held.pop();
        assert_ne!(refusal(&nothing), Some(libc::EMFILE));
        // A reserved descriptor that is taken counts once.
        held.push(nothing.try_clone().expect("there is room"));
        other.use_one();
        assert_ne!(refusal(&nothing), Some(libc::EMFILE));
        drop(other);
        assert_ne!(refusal(&nothing), Some(libc::EMFILE));
    }
}
