//! The machine: the two processors that are used, processor times, and a description.

use std::{fs, io, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::report::float;
use crate::process::output;

/// The processors that the processes are pinned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cores {
    /// For the servers, of which only one at a time has calls.
    pub(super) server: usize,
    /// For the clients and the agent.
    pub(super) others: usize,
}

impl Cores {
    /// Chooses two processors that this process may use.
    pub(super) fn choose() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let cores = numbers_of(allowed.context("no Cpus_allowed_list in /proc/self/status")?.trim())?;
        match (cores.first(), cores.last()) {
            (Some(first), Some(last)) if first != last => Ok(Self { server: *last, others: *first }),
            _ => bail!("the benchmark needs two processors, and may use only {cores:?}"),
        }
    }
}

/// Returns the number of possible processors: the kernel has room for those added at run time, too.
pub(super) fn possible_processors() -> Result<usize> {
    const LIST: &str = "/sys/devices/system/cpu/possible";

    let list = fs::read_to_string(LIST).with_context(|| format!("cannot read {LIST}"))?;
    Ok(numbers_of(list.trim())?.len())
}

/// Parses a list such as "0-2,5".
fn numbers_of(ranges: &str) -> Result<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in ranges.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        numbers.extend(first.parse::<usize>()?..=last.parse::<usize>()?);
    }
    Ok(numbers)
}

/// Returns a command that runs a program on one processor, in the same process.
pub(super) fn pinned(core: usize, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.arg("--cpu-list").arg(core.to_string()).arg(program);
    command
}

/// Returns the processor time that a process has used so far, in user mode and in the kernel, over all its threads,
/// including those that have ended.
pub(super) fn cpu_time(pid: u32) -> Result<Duration> {
    let failed =
        |error| Err(error).with_context(|| format!("cannot read the processor time of process {pid}"));
    let mut clock = 0;
    // SAFETY: only writes one clock id to the given place.
    match unsafe { libc::clock_getcpuclockid(libc::pid_t::try_from(pid)?, &raw mut clock) } {
        0 => {}
        error => return failed(io::Error::from_raw_os_error(error)),
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: only writes one timespec to the given place.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return failed(io::Error::last_os_error());
    }
    Ok(Duration::new(time.tv_sec.try_into()?, time.tv_nsec.try_into()?))
}

/// Returns the processor time of all children that have ended.
pub(super) fn ended_children() -> Result<Duration> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: only writes one rusage to the given place.
    if unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error()).context("cannot read the processor time of children");
    }
    // SAFETY: the call has filled it in.
    let usage = unsafe { usage.assume_init() };
    let time = |time: libc::timeval| -> Result<Duration> {
        Ok(Duration::from_secs(time.tv_sec.try_into()?) + Duration::from_micros(time.tv_usec.try_into()?))
    };
    Ok(time(usage.ru_utime)? + time(usage.ru_stime)?)
}

/// Time of all processors so far, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Times {
    total: f64,
    /// Spent in processes.
    work: f64,
    /// Taken by the hypervisor.
    steal: f64,
}

impl Times {
    pub(super) fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Self::parse(&stat).context("/proc/stat is not as expected")
    }

    /// Parses the first line: "cpu", then user, nice, system, idle, iowait, irq, softirq, steal (proc(5)). The guest
    /// times after these are included in user and nice.
    fn parse(stat: &str) -> Option<Self> {
        // USER_HZ, the same for all of Linux on amd64.
        const TICKS: f64 = 100.0;

        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let times = line.split_whitespace().map_while(|time| time.parse().ok()).take(8).collect::<Vec<u64>>();
        let [user, nice, system, _, _, _, _, steal] = times[..] else { return None };
        Some(Self {
            total: float(times.iter().sum()) / TICKS,
            work: float(user + nice + system) / TICKS,
            steal: float(steal) / TICKS,
        })
    }

    /// Returns the shares of the time since `then` that other processes used, given the time `own` of the bench's
    /// own, and that the hypervisor took.
    pub(super) fn shares_since(self, then: Self, own: Duration) -> (f64, f64) {
        let total = self.total - then.total;
        let others = self.work - then.work - own.as_secs_f64();
        (others.max(0.0) / total, (self.steal - then.steal) / total)
    }
}

/// Returns a description of the machine in one line.
pub(super) fn description() -> Result<String> {
    let info = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let release = output(Command::new("uname").arg("-r"))?;
    let kernel = numbers_of_kernel(&release);
    let architecture = output(Command::new("uname").arg("-m"))?;
    let model = cpuinfo(&info, "model name").unwrap_or("unknown processor");
    let processors = info.lines().filter(|line| line.starts_with("processor\t")).count();
    let flags = cpuinfo(&info, "flags").unwrap_or_default();
    let virtual_machine =
        if flags.split(' ').any(|flag| flag == "hypervisor") { "virtual machine" } else { "not virtualised" };
    Ok(format!("{model}, {processors} processors, {virtual_machine}, Linux {kernel} {architecture}"))
}

/// Returns a kernel's release without the suffix, which depends on who built it.
fn numbers_of_kernel(release: &str) -> &str {
    release.split_once('-').map_or(release, |(numbers, _)| numbers)
}

fn cpuinfo<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))?;
    Some(value.trim())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn lists_of_processors() {
        assert_eq!(numbers_of("0-2,5").unwrap(), [0, 1, 2, 5]);
        assert_eq!(numbers_of("3").unwrap(), [3]);
        assert!(numbers_of("").is_err());
        assert!(numbers_of("0-x").is_err());
    }

    #[test]
    fn as_many_processors_as_run_are_possible() {
        assert!(possible_processors().unwrap() >= std::thread::available_parallelism().unwrap().get());
    }

    #[test]
    fn shares_of_time() {
        let then = Times::parse("cpu  100 0 0 800 100 0 0 0 0 0\ncpu0 …").unwrap();
        let now = Times::parse("cpu  400 50 50 1200 200 0 0 100 0 0\n").unwrap();
        // Ten seconds, four of them in processes.
        let (others, steal) = now.shares_since(then, Duration::from_millis(1500));
        assert!((others - 0.25).abs() < 1e-9 && (steal - 0.1).abs() < 1e-9, "{others} {steal}");
        assert!(now.shares_since(then, Duration::from_secs(9)).0.abs() < 1e-9);
        assert_eq!(Times::parse("cpu  1 2 3\n"), None);
    }

    #[test]
    fn own_time_passes() {
        let before = cpu_time(std::process::id()).unwrap();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        assert!(cpu_time(std::process::id()).unwrap() > before);
    }

    #[test]
    fn numbers_of_kernels() {
        for (release, numbers) in [("6.1.0-56-cloud-amd64", "6.1.0"), ("6.18.44", "6.18.44")] {
            assert_eq!(numbers_of_kernel(release), numbers);
        }
    }

    #[test]
    fn lines_of_cpuinfo() {
        let info = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu hypervisor\n";
        assert_eq!(cpuinfo(info, "model name"), Some("Some CPU @ 2 GHz"));
        assert_eq!(cpuinfo(info, "flags"), Some("fpu hypervisor"));
        assert_eq!(cpuinfo(info, "bugs"), None);
    }
}
