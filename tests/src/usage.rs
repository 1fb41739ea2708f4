//! The resources that a command uses until it ends: time, memory, reads. Also the CPU time of a running process.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd as _, unix::process::ExitStatusExt as _},
    path::Path,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{agent::Ended, capture::Lines};

/// The resources that a process used from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The time from before its start until its end was seen.
    pub wall: Duration,
    /// CPU time, user and kernel.
    pub cpu: Duration,
    /// Peak resident memory, in bytes. It includes the peak of the calling process, since a child starts with its
    /// memory: the caller should be small.
    pub peak: u64,
    /// Bytes that were read from a disk.
    pub read: u64,
}

/// Runs a command until it ends, at most for `patience`.
pub fn run(command: &mut Command, patience: Duration) -> Result<(Ended, Usage)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let begin = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let stdout = Lines::of(child.stdout.take().context("no stdout")?);
    let stderr = Lines::of(child.stderr.take().context("no stderr")?);
    let pid = libc::pid_t::try_from(child.id())?;
    let (status, usage) = loop {
        if let Some(ended) = wait4(pid)? {
            break ended;
        }
        if begin.elapsed() > patience {
            child.kill()?;
            child.wait()?;
            bail!("{command:?} has not ended after {patience:?}");
        }
        thread::sleep(Duration::from_micros(200));
    };
    let wall = begin.elapsed();
    stdout.wait_for_end(Duration::from_secs(1));
    stderr.wait_for_end(Duration::from_secs(1));
    let ended = Ended { code: status.code(), stdout: stdout.text(), stderr: stderr.text() };
    let usage = Usage {
        wall,
        cpu: duration(usage.ru_utime)? + duration(usage.ru_stime)?,
        peak: u64::try_from(usage.ru_maxrss)? * 1024,
        read: u64::try_from(usage.ru_inblock)? * 512,
    };
    Ok((ended, usage))
}

/// Returns a child's exit status and resource usage if it has ended.
fn wait4(pid: libc::pid_t) -> Result<Option<(ExitStatus, libc::rusage)>> {
    let mut status = 0;
    // SAFETY: zeros are a valid rusage, which holds nothing but numbers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to what the kernel fills here.
    match unsafe { libc::wait4(pid, &raw mut status, libc::WNOHANG, &raw mut usage) } {
        0 => Ok(None),
        ended if ended == pid => Ok(Some((ExitStatus::from_raw(status), usage))),
        _ => Err(io::Error::last_os_error()).with_context(|| format!("cannot wait for process {pid}")),
    }
}

fn duration(time: libc::timeval) -> Result<Duration> {
    Ok(Duration::from_secs(time.tv_sec.try_into()?) + Duration::from_micros(time.tv_usec.try_into()?))
}

/// Returns the CPU time that a process has used since its start, user and kernel, in all its threads.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: the pointer is to a clock's number, which is written there.
    let error = unsafe { libc::clock_getcpuclockid(libc::pid_t::try_from(pid)?, &raw mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error))
            .with_context(|| format!("no processor time of process {pid}"));
    }
    // SAFETY: the pointer is to a whole timespec, which is written there.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("no processor time of process {pid}"));
    }
    Ok(Duration::new(time.tv_sec.try_into()?, time.tv_nsec.try_into()?))
}

/// Has the kernel drop its cache of a file, except for pages that a process has mapped.
pub fn forget(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    // Only pages that are on the disk can be dropped.
    file.sync_all()?;
    // SAFETY: it takes numbers only.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)).context("posix_fadvise"),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::ensure;

    use super::*;

    #[test]
    fn what_a_shell_takes() -> Result<()> {
        let mut command = Command::new("sh");
        command.args(["-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo out; exit 3"]);
        let (ended, usage) = run(&mut command, Duration::from_secs(20))?;
        assert_eq!((ended.code, &*ended.stdout), (Some(3), "out"));
        assert!(usage.cpu > Duration::from_millis(5) && usage.cpu <= usage.wall, "{usage:?}");
        assert!((1 << 20..1 << 30).contains(&usage.peak), "{usage:?}");
        Ok(())
    }

    #[test]
    fn the_time_of_a_process_that_goes_on() -> Result<()> {
        let before = cpu_time(std::process::id())?;
        let begin = Instant::now();
        while cpu_time(std::process::id())? < before + Duration::from_millis(20) {
            ensure!(begin.elapsed() < Duration::from_secs(20), "a busy process takes no time");
        }
        Ok(())
    }

    #[test]
    fn what_does_not_end_is_ended() {
        let begin = Instant::now();
        assert!(run(Command::new("sleep").arg("60"), Duration::from_millis(50)).is_err());
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
}
