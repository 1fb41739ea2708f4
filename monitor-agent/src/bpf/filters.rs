//! Whether system call filters (seccomp) interfere with return probes, tried on the agent itself.
//!
//! On newer kernels a return probe makes the target execute a system call. Later kernels exempt this call from
//! filters, but releases don't show which ones do, since fixes are backported. So a thread of the agent returns from
//! a probed function under a filter that reports this call, and the agent lets it continue in any case.

use std::{
    arch::naked_asm,
    ffi::{c_int, c_void},
    io,
    mem::{self, MaybeUninit},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{OnceLock, mpsc},
    thread,
};

use super::multi::CountedProbe;
use crate::target::own_return_hazard;

/// The system call that the target executes (`arch/x86/entry/syscalls/syscall_64.tbl`).
const URETPROBE: u32 = 335;
/// Timeout in milliseconds for a thread that needs microseconds.
const PATIENCE: c_int = 1_000;
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`: as if there were no filter.
const GO_ON: u32 = 1;

/// Whether return probes are exempt from every filter of a target. An error means that this can't be tried now; it
/// may work later.
pub fn return_probes_pass_filters() -> io::Result<bool> {
    static PASS: OnceLock<bool> = OnceLock::new();
    if let Some(pass) = PASS.get() {
        return Ok(*pass);
    }
    let pass = try_return()?;
    Ok(*PASS.get_or_init(|| pass))
}

fn try_return() -> io::Result<bool> {
    if let Some(why) = own_return_hazard()? {
        return Err(io::Error::other(format!("of the agent itself: {why}")));
    }
    let probe = CountedProbe::at(tried as *const c_void, true)?;
    let is_asked = is_asked(URETPROBE, || tried())?;
    if probe.hits() != 1 {
        return Err(io::Error::other("the probe on the agent itself was not hit"));
    }
    Ok(!is_asked)
}

/// The probed function.
#[unsafe(naked)]
extern "C" fn tried() {
    naked_asm!("push rbp", "pop rbp", "ret")
}

/// Whether a function's run makes a filter report a system call. Runs it on a thread of its own; each call continues
/// in any case.
fn is_asked(call: u32, function: impl FnOnce() + Send + 'static) -> io::Result<bool> {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::Builder::new().spawn(move || {
        let reports = report(call);
        let is_filtered = reports.is_ok();
        // The receiver waits for this thread.
        let _ = sender.send(reports);
        if is_filtered {
            function();
        }
    })?;
    let reports = receiver.recv().map_err(io::Error::other)??;
    match answer_all(&reports) {
        Ok(asked) => {
            let ended = thread.join();
            ended.map_err(|_| io::Error::other("the thread panicked"))?;
            Ok(asked > 0)
        }
        // Without a listener the call fails, which behind a return probe ends the agent. Keep the listener, and let
        // the call wait.
        Err(error) => {
            mem::forget(reports);
            Err(error)
        }
    }
}

/// Installs a filter on this thread, for its lifetime, that reports one system call and allows all others.
fn report(call: u32) -> io::Result<OwnedFd> {
    // The system call number is the first word of the filter's input (struct seccomp_data).
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call, 1),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF, 0),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog { len: 4, filter: steps.as_mut_ptr() };
    // SAFETY: takes numbers, and changes only this thread.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the program and its steps outlive the call, which changes only this thread.
    let reports = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    let reports = c_int::try_from(reports).map_err(io::Error::other)?;
    if reports < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(reports) })
}

/// Returns an instruction of a filter; `pass` is how many to skip if a comparison fails.
fn step(code: u32, number: u32, pass: u8) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).expect("a code"), jt: 0, jf: pass, k: number }
}

/// Lets calls continue until the thread has ended; returns their number.
fn answer_all(reports: &OwnedFd) -> io::Result<usize> {
    let mut asked = 0;
    loop {
        let mut wait = libc::pollfd { fd: reports.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, which outlives the call.
        match unsafe { libc::poll(&raw mut wait, 1, PATIENCE) } {
            0 => return Err(io::Error::from(io::ErrorKind::TimedOut)),
            count if count < 0 => retry(io::Error::last_os_error())?,
            _ if wait.revents & libc::POLLIN != 0 => {
                answer(reports).or_else(retry)?;
                asked += 1;
            }
            // No thread is left under the filter.
            _ => return Ok(asked),
        }
    }
}

/// Accepts errors after which to try again: a signal has interrupted the call, which is made anew and reported once
/// more.
fn retry(error: io::Error) -> io::Result<()> {
    if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::NotFound) {
        Ok(())
    } else {
        Err(error)
    }
}

fn answer(reports: &OwnedFd) -> io::Result<()> {
    // SAFETY: consists of integers, for which zero is valid; the kernel requires zeros.
    let mut report: libc::seccomp_notif = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: the kernel writes one report there.
    if unsafe { libc::ioctl(reports.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut report) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let response = libc::seccomp_notif_resp { id: report.id, val: 0, error: 0, flags: GO_ON };
    // SAFETY: the kernel reads one response there.
    if unsafe { libc::ioctl(reports.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const response) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a system call that nothing else makes meanwhile.
    fn ask() -> u32 {
        std::os::unix::process::parent_id()
    }

    #[test]
    fn a_call_that_filters_are_asked_about_is_seen_and_goes_on() {
        let number = |call| u32::try_from(call).expect("a number");
        let call = number(libc::SYS_getppid);
        let (sender, went_on) = mpsc::channel();
        let several = move || sender.send([ask(), ask(), ask()]).expect("the test waits");
        assert!(is_asked(call, several).expect("a filter"));
        assert_eq!(went_on.recv(), Ok([ask(); 3]));
        assert!(!is_asked(call, || ()).expect("a filter"));
        assert!(!is_asked(number(libc::SYS_getpgid), || assert_ne!(ask(), 0)).expect("a filter"));
    }
}
