//! Uprobes by `perf_event_open(2)`, one event each: for kernels without multi-uprobe links.

use std::{
    fmt::Display,
    fs, io,
    num::ParseIntError,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::{
    PERF_EVENT_IOC_ENABLE, PERF_EVENT_IOC_SET_BPF, PERF_FLAG_FD_CLOEXEC, perf_event_attr,
};

use super::syscall::{self, Probe, address, outcome};

/// File with the event type number of uprobes.
pub(super) const TYPE: &str = "/sys/bus/event_source/devices/uprobe/type";
/// File with the bit of `config` that selects a return probe.
const RETURN_BIT: &str = "/sys/bus/event_source/devices/uprobe/format/retprobe";

/// Creates a probe at an offset of the executable. It lives until the returned descriptor is closed.
pub(super) fn attach(probe: &Probe<'_>, offset: u64) -> io::Result<OwnedFd> {
    let event = open(probe, offset)?;
    // Before Linux 5.15 there are no links for perf events: attach the program to the event itself.
    syscall::link_event(probe.program, event.as_fd()).or_else(|_| run_by(event, probe.program))
}

fn open(probe: &Probe<'_>, offset: u64) -> io::Result<OwnedFd> {
    // SAFETY: consists of integers, for which zero is valid.
    let mut attributes: perf_event_attr = unsafe { std::mem::zeroed() };
    attributes.size = u32::try_from(size_of_val(&attributes)).map_err(io::Error::other)?;
    attributes.type_ = number_in(TYPE)?;
    attributes.config = if probe.is_return { return_bit()? } else { 0 };
    attributes.__bindgen_anon_3.config1 = address(probe.exe.as_ptr());
    attributes.__bindgen_anon_4.config2 = offset;
    let (any_cpu, no_group) = (-1, -1);
    // SAFETY: the attributes contain their own size, and what they point to lives in the caller.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            probe.pid,
            any_cpu,
            no_group,
            libc::c_ulong::from(PERF_FLAG_FD_CLOEXEC),
        )
    };
    let descriptor = outcome(answer)?;
    // SAFETY: the call returns a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Attaches a program to an event, until the event is closed.
fn run_by(event: OwnedFd, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    control(&event, PERF_EVENT_IOC_SET_BPF, program.as_raw_fd())?;
    control(&event, PERF_EVENT_IOC_ENABLE, 0)?;
    Ok(event)
}

fn control(event: &OwnedFd, request: u32, argument: libc::c_int) -> io::Result<()> {
    // SAFETY: these requests take a number, and touch no memory of this process.
    let answer = unsafe { libc::ioctl(event.as_raw_fd(), request.into(), argument) };
    outcome(answer.into()).map(|_| ())
}

fn return_bit() -> io::Result<u64> {
    let bit = number_in(RETURN_BIT)?;
    1_u64.checked_shl(bit).ok_or_else(|| io::Error::other(format!("{RETURN_BIT} names bit {bit}")))
}

/// Reads the number in a kernel file, after its `config:` prefix if there is one.
fn number_in(path: &str) -> io::Result<u32> {
    let failed = |error: &dyn Display| io::Error::other(format!("{path}: {error}"));
    let text = fs::read_to_string(path).map_err(|error| failed(&error))?;
    text.trim().trim_start_matches("config:").parse().map_err(|error: ParseIntError| failed(&error))
}
