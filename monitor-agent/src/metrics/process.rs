//! A process's CPU time, memory, descriptors and threads, from `/proc`.
//!
//! Names, types, units, help texts and arithmetic of the `process_` families are those of `client_golang`'s process
//! collector (`prometheus/process_collector.go` and `process_collector_procfsenabled.go` @ v1.24.1), so that a
//! dashboard shows the same numbers whether the process exports them itself or is watched. Threads and context switches
//! are added. A value that cannot be read is absent, never zero.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{self, Read},
    os::fd::AsRawFd,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use procfs::{
    ProcError, ProcResult,
    process::{LimitValue, Process},
};
use prometheus::proto::MetricFamily;

use super::family::{FamilyBuilder, float};
use crate::descriptors;

/// The ticks per second of `/proc/PID/stat`: fixed in the kernel's interface and in `client_golang`, whatever the
/// kernel's own tick is.
const TICKS_PER_SECOND: f64 = 100.0;

/// How often two clocks are read to find the offset between them.
const READINGS: usize = 3;
/// The possible error of that offset.
const READ_APART: Duration = Duration::from_millis(1);

/// The maximum number of threads whose context switches are read. Each thread has its own file; above this number the
/// values are absent rather than slow.
const MAX_THREADS: i64 = 4096;
/// How long read context switches stay valid. A file takes some ten microseconds, so they are read once in this time,
/// however many scrape.
const SWITCHES_STAY: Duration = Duration::from_secs(1);

/// Reads the statistics of one process repeatedly.
///
/// Bound to the process, not to its pid: once it has ended, all values are absent, even if the pid is reused.
#[derive(Debug)]
pub struct ProcessReader {
    process: Process,
    /// The last calculated boot time, in seconds since 1970.
    booted: Option<u64>,
    switches: Switches,
}

impl ProcessReader {
    /// Opens the process that has this pid now.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).map_err(io::Error::other)?;
        let process = Process::new(pid).map_err(io::Error::other)?;
        Ok(Self { process, booted: None, switches: Switches::default() })
    }

    /// Reads all available values.
    pub fn read(&mut self) -> ProcessStats {
        // Read before the check of its memory: a process that ends gives up its memory first, and then its files.
        let open_fds = open_fds(&self.process).ok();
        let mut stats = ProcessStats { open_fds, ..ProcessStats::default() };
        if let Ok(stat) = self.process.stat() {
            // A running process has memory. What is left of an ended one, such as a zombie, reads as zeros.
            if stat.vsize == 0 {
                return ProcessStats::default();
            }
            stats.cpu_seconds = Some(float(stat.utime.saturating_add(stat.stime)) / TICKS_PER_SECOND);
            let booted = boot_seconds(self.booted, since_1970_at_boot());
            self.booted = Some(booted);
            stats.start_time_seconds = Some(float(booted) + float(stat.starttime) / TICKS_PER_SECOND);
            stats.virtual_bytes = Some(stat.vsize);
            stats.resident_bytes = Some(stat.rss.saturating_mul(procfs::page_size()));
            stats.threads = u64::try_from(stat.num_threads).ok();
            if stat.num_threads <= MAX_THREADS {
                stats.context_switches = self.switches.recent(&self.process, Instant::now()).ok();
            }
        }
        if let Ok(limits) = self.process.limits() {
            stats.max_fds = Some(soft(limits.max_open_files.soft_limit));
            stats.virtual_max_bytes = Some(soft(limits.max_address_space.soft_limit));
        }
        stats.network = network(&self.process).ok();
        stats
    }
}

/// The statistics of a process at one moment. `None` marks values that could not be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessStats {
    /// User and system CPU time, in seconds.
    pub cpu_seconds: Option<f64>,
    /// The start time of the process, in seconds since the Unix epoch.
    pub start_time_seconds: Option<f64>,
    /// The size of the address space, in bytes.
    pub virtual_bytes: Option<u64>,
    /// The soft limit of the address space, in bytes; `u64::MAX` without one.
    pub virtual_max_bytes: Option<u64>,
    /// Resident memory, in bytes.
    pub resident_bytes: Option<u64>,
    /// The number of open file descriptors.
    pub open_fds: Option<u64>,
    /// The soft limit of open file descriptors; `u64::MAX` without one.
    pub max_fds: Option<u64>,
    /// The number of threads.
    pub threads: Option<u64>,
    /// Context switches of all threads.
    pub context_switches: Option<ContextSwitches>,
    /// Traffic of the process's network namespace.
    pub network: Option<Network>,
}

/// Context switches since the process started, except those of threads that ended between two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContextSwitches {
    /// The thread had to wait for something.
    pub voluntary: u64,
    /// The thread's time was up, or another one was more urgent.
    pub involuntary: u64,
}

/// IP traffic since boot, in bytes, of the network namespace: the kernel counts none per process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Network {
    /// Received.
    pub receive_bytes: f64,
    /// Sent.
    pub transmit_bytes: f64,
}

impl ProcessStats {
    /// Builds the metric families. Their only label is `kind`. Absent values have no family.
    #[must_use]
    pub fn families(&self) -> Vec<MetricFamily> {
        let mut out = Families::default();
        out.counter(
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds.",
            self.cpu_seconds,
        );
        out.gauge("process_open_fds", "Number of open file descriptors.", self.open_fds);
        out.gauge("process_max_fds", "Maximum number of open file descriptors.", self.max_fds);
        out.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", self.virtual_bytes);
        out.gauge(
            "process_virtual_memory_max_bytes",
            "Maximum amount of virtual memory available in bytes.",
            self.virtual_max_bytes,
        );
        out.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", self.resident_bytes);
        let start = "Start time of the process since unix epoch in seconds.";
        out.add(FamilyBuilder::gauge("process_start_time_seconds", start), self.start_time_seconds);
        out.counter(
            "process_network_receive_bytes_total",
            "Number of bytes received by the process over the network.",
            self.network.map(|network| network.receive_bytes),
        );
        out.counter(
            "process_network_transmit_bytes_total",
            "Number of bytes sent by the process over the network.",
            self.network.map(|network| network.transmit_bytes),
        );
        out.gauge("process_threads", "Number of threads.", self.threads);
        if let Some(switches) = self.context_switches {
            let help = "Total number of context switches of the threads of the process.";
            FamilyBuilder::counter("process_context_switches_total", help)
                .with(&[("kind", "involuntary")], float(switches.involuntary))
                .with(&[("kind", "voluntary")], float(switches.voluntary))
                .finish(&mut out.0);
        }
        out.0
    }
}

/// Families of one series each. Absent values have none.
#[derive(Default)]
struct Families(Vec<MetricFamily>);

impl Families {
    fn counter(&mut self, name: &str, help: &str, value: Option<f64>) {
        self.add(FamilyBuilder::counter(name, help), value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: Option<u64>) {
        self.add(FamilyBuilder::gauge(name, help), value.map(float));
    }

    fn add(&mut self, family: FamilyBuilder, value: Option<f64>) {
        if let Some(value) = value {
            family.with(&[], value).finish(&mut self.0);
        }
    }
}

fn soft(limit: LimitValue) -> u64 {
    match limit {
        LimitValue::Value(value) => value,
        LimitValue::Unlimited => u64::MAX,
    }
}

/// Returns the time since boot, including suspended time: the clock of `/proc/PID/stat`, which nobody can set.
pub(crate) fn since_boot() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to the timespec only, and can't fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// Returns the time from 1970 to boot, by the current time of day, which can be set.
fn since_1970_at_boot() -> Duration {
    let read = |_| {
        let since_boot = since_boot();
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        since_1970.saturating_sub(since_boot)
    };
    // A delay between the two readings makes it longer.
    (0..READINGS).map(read).min().unwrap_or_default()
}

/// Returns the boot time in whole seconds since 1970, as `client_golang` has it from the line `btime` of `/proc/stat`.
/// The kernel calculates that line from the same clocks; reading it takes longer, since other lines are about each
/// interrupt. The result stays at `before` as long as that may be right.
fn boot_seconds(before: Option<u64>, now: Duration) -> u64 {
    let may_be = |seconds: &u64| {
        let then = Duration::from_secs(*seconds);
        now + READ_APART >= then && now < then + Duration::from_secs(1) + READ_APART
    };
    before.filter(may_be).unwrap_or(now.as_secs())
}

/// Counts open descriptors. Not by `procfs` 0.18, whose count includes `.` and `..` before Linux 6.2.
fn open_fds(process: &Process) -> ProcResult<u64> {
    let directory = process.open_relative("fd")?;
    Ok(descriptors::count(Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())))?)
}

/// Reads `/proc/PID/net/netstat`, which `procfs` does not read. Lines come in pairs, names above values.
fn network(process: &Process) -> ProcResult<Network> {
    let mut text = String::new();
    process.open_relative("net/netstat")?.read_to_string(&mut text)?;
    let octets = |name| ip_ext(&text, name).unwrap_or(0.0);
    Ok(Network { receive_bytes: octets("InOctets"), transmit_bytes: octets("OutOctets") })
}

fn ip_ext(netstat: &str, name: &str) -> Option<f64> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("IpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let column = names.split_ascii_whitespace().position(|column| column == name)?;
    values.split_ascii_whitespace().nth(column)?.parse().ok()
}

/// The context switches of a process. The kernel shows switches per thread and forgets them when the thread ends. They
/// are kept here and stay in the sum, since a counter that goes down would look like a restart.
#[derive(Debug, Default)]
struct Switches {
    ended: ContextSwitches,
    threads: HashMap<i32, ContextSwitches>,
    /// The time and the sum of the last reading.
    last: Option<(Instant, ContextSwitches)>,
}

impl Switches {
    /// Returns all switches so far, at most [a second](SWITCHES_STAY) old.
    fn recent(&mut self, process: &Process, now: Instant) -> ProcResult<ContextSwitches> {
        if let Some((at, switches)) = self.last
            && now.saturating_duration_since(at) < SWITCHES_STAY
        {
            return Ok(switches);
        }
        let switches = self.read(process)?;
        self.last = Some((now, switches));
        Ok(switches)
    }

    /// Reads all switches so far. If a thread can't be read, it returns an error and keeps its state.
    fn read(&mut self, process: &Process) -> ProcResult<ContextSwitches> {
        // Threads seen before are read too: a listing may leave some out while others end.
        let mut tids: HashSet<i32> = self.threads.keys().copied().collect();
        // Not by `procfs`, whose list leaves out what it can't open, for whatever reason.
        let directory = process.open_relative("task")?;
        for entry in fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))? {
            tids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
        }
        let mut seen = HashMap::with_capacity(tids.len());
        for tid in tids {
            match thread_switches(process, tid) {
                Ok(switches) => {
                    seen.insert(tid, switches);
                }
                Err(error) if has_ended(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.update(seen))
    }

    fn update(&mut self, seen: HashMap<i32, ContextSwitches>) -> ContextSwitches {
        for (tid, before) in &self.threads {
            // A lower count under the same number means another thread.
            let lives = seen.get(tid).is_some_and(|now| {
                now.voluntary >= before.voluntary && now.involuntary >= before.involuntary
            });
            if !lives {
                self.ended = sum(self.ended, *before);
            }
        }
        self.threads = seen;
        self.threads.values().copied().fold(self.ended, sum)
    }
}

fn sum(a: ContextSwitches, b: ContextSwitches) -> ContextSwitches {
    ContextSwitches {
        voluntary: a.voluntary.saturating_add(b.voluntary),
        involuntary: a.involuntary.saturating_add(b.involuntary),
    }
}

/// Reads two lines of a thread's status by hand: `procfs` parses all sixty and refuses a thread whose name is not
/// UTF-8.
fn thread_switches(process: &Process, tid: i32) -> ProcResult<ContextSwitches> {
    let mut text = Vec::new();
    process.open_relative(format!("task/{tid}/status"))?.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let value = |name| {
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        found.ok_or(ProcError::Incomplete(None))
    };
    Ok(ContextSwitches {
        voluntary: value("voluntary_ctxt_switches:")?,
        involuntary: value("nonvoluntary_ctxt_switches:")?,
    })
}

/// Returns whether reading failed because the thread has ended. With any other error, such as no descriptor left, it
/// may still exist.
fn has_ended(error: &ProcError) -> bool {
    match error {
        ProcError::NotFound(_) => true,
        ProcError::Io(error, _) => error.raw_os_error() == Some(libc::ESRCH),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        process::{Child, Command, Stdio},
    };

    use prometheus::proto::MetricType;

    use super::*;

    fn own() -> ProcessReader {
        ProcessReader::open(std::process::id()).expect("one's own process can be opened")
    }

    /// Returns the seconds since the epoch, and the CPU seconds that the kernel reports to this process about itself.
    fn clocks() -> (f64, f64) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: `usage` is valid for writes; the structure is plain numbers, so zeroes are a value too.
        let usage = unsafe {
            assert_eq!(libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()), 0);
            usage.assume_init()
        };
        #[expect(clippy::cast_precision_loss, reason = "seconds of a test")]
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        (now, seconds(usage.ru_utime) + seconds(usage.ru_stime))
    }

    #[test]
    fn own_numbers_agree_with_the_other_ways_to_ask() {
        let started = SystemTime::now();
        while started.elapsed().expect("time goes on").as_millis() < 50 {}
        let (now, cpu) = clocks();
        let stats = own().read();
        assert!((stats.cpu_seconds.expect("stat") - cpu).abs() < 1.0, "{stats:?} {cpu}");
        let age = now - stats.start_time_seconds.expect("stat");
        assert!((-1.0..3600.0).contains(&age), "{age}");
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` is valid for writes.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
        assert_eq!(stats.max_fds, Some(limit.rlim_cur));
        // SAFETY: as above.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) }, 0);
        assert_eq!(stats.virtual_max_bytes, Some(limit.rlim_cur));
        assert!(stats.resident_bytes < stats.virtual_bytes);
        assert!(stats.network.is_some() && stats.context_switches.is_some());
    }

    #[test]
    fn when_the_machine_was_started_is_what_the_kernel_says() {
        let text = fs::read_to_string("/proc/stat").expect("it is there");
        let told = text.lines().find_map(|line| line.strip_prefix("btime ")?.parse::<u64>().ok());
        assert_eq!(told, Some(boot_seconds(None, since_1970_at_boot())));
    }

    #[test]
    fn a_start_is_told_by_the_time_of_day_as_it_is_set() {
        let at = |seconds, milliseconds| Duration::from_secs(seconds) + Duration::from_millis(milliseconds);
        let cells = [
            // The former result, the current offset between the clocks, the new result.
            (None, at(1_000, 999), 1_000),
            (None, at(1_001, 0), 1_001),
            // Within the error of reading, the former result stays.
            (Some(1_000), at(1_001, 0), 1_000),
            (Some(1_001), at(1_001, 0), 1_001),
            (Some(1_001), at(1_000, 999), 1_001),
            // The clock is set forward and back.
            (Some(1_000), at(1_001, 2), 1_001),
            (Some(1_000), at(4_600, 500), 4_600),
            (Some(4_600), at(1_000, 500), 1_000),
            (Some(1_001), at(1_000, 998), 1_000),
            // The clock is set to before boot.
            (Some(1_000), Duration::ZERO, 0),
        ];
        for (before, now, told) in cells {
            assert_eq!(boot_seconds(before, now), told, "{before:?} {now:?}");
        }
    }

    /// A child that is killed and reaped at the end of its test.
    struct Kept(Child);

    impl Drop for Kept {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Returns resident and virtual memory in bytes, and the number of threads.
    fn ask_ps(pid: u32) -> [u64; 3] {
        let ps = Command::new("ps").args(["-o", "rss=,vsz=,nlwp=", "-p", &pid.to_string()]).output();
        let text = String::from_utf8(ps.expect("ps runs").stdout).expect("text");
        let mut fields = text.split_ascii_whitespace().map(|field| field.parse().expect("a number"));
        let mut field = || fields.next().expect("three numbers");
        [field() * 1024, field() * 1024, field()]
    }

    #[test]
    fn a_child_agrees_with_ps() {
        let child = Command::new("sleep").arg("600").stdout(Stdio::null()).spawn();
        let mut child = Kept(child.expect("sleep starts"));
        let pid = child.0.id();
        let mut reader = ProcessReader::open(pid).expect("a live child");
        // Repeats until the child sleeps and has the same values before and after ps runs.
        let (stats, [rss, vsz, threads]) = (0..100)
            .find_map(|_| {
                std::thread::sleep(Duration::from_millis(50));
                let (before, ps, after) = (reader.read(), ask_ps(pid), reader.read());
                (before.virtual_bytes == after.virtual_bytes && before.resident_bytes == after.resident_bytes)
                    .then_some((after, ps))
            })
            .expect("a process that sleeps does not change");
        assert_eq!((stats.virtual_bytes, stats.threads), (Some(vsz), Some(threads)));
        // ps sums up the kernel's per-CPU counts; stat, which client_golang reads, falls short of that by some pages.
        let resident = stats.resident_bytes.expect("stat");
        assert!(resident.abs_diff(rss) < 1 << 20, "{resident} {rss}");
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("one's own child").count();
        assert_eq!(stats.open_fds, Some(fds as u64));
        child.0.kill().expect("the child can be killed");
        let is_zombie = (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            reader.process.stat().is_ok_and(|stat| stat.state == 'Z')
        });
        assert!(is_zombie, "a child that was killed waits for its parent to ask");
        assert_eq!(reader.read(), ProcessStats::default(), "zeros of a process that has ended");
        child.0.wait().expect("the child can be waited for");
        assert_eq!(reader.read(), ProcessStats::default(), "nothing is known about a process that is gone");
        assert!(reader.read().families().is_empty());
    }

    #[test]
    fn touched_memory_is_resident() {
        const SIZE: usize = 64 << 20;
        let before = own().read().resident_bytes.expect("stat");
        let memory = std::hint::black_box(vec![1_u8; SIZE]);
        let after = own().read().resident_bytes.expect("stat");
        drop(memory);
        let grown = after.saturating_sub(before);
        assert!(grown > (SIZE as u64) / 10 * 9, "{grown}");
    }

    #[test]
    fn opened_files_and_started_threads_show() {
        let mut reader = own();
        let before = reader.read();
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").expect("it opens")).collect();
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
        let threads: Vec<_> = (0..20)
            .map(|_| {
                std::thread::spawn({
                    let wait = wait.clone();
                    move || drop(wait.lock().map(|wait| wait.recv()))
                })
            })
            .collect();
        let after = reader.read();
        // Other tests run in this process meanwhile.
        assert!(after.open_fds.expect("fd") > before.open_fds.expect("fd") + 20, "{before:?} {after:?}");
        assert!(after.threads.expect("stat") > before.threads.expect("stat") + 10, "{before:?} {after:?}");
        drop(stop);
        drop(files);
        for thread in threads {
            thread.join().expect("no panic");
        }
        let middle = after.context_switches.expect("tasks");
        // The earlier reading is too old by then.
        let later = Instant::now() + SWITCHES_STAY;
        let end = reader.switches.recent(&reader.process, later).expect("tasks");
        assert!(
            end.voluntary >= middle.voluntary && end.involuntary >= middle.involuntary,
            "{middle:?} {end:?}"
        );
    }

    /// Each thread has its own file: with five servers that scrape a process of thousands, the agent would read all the
    /// time.
    #[test]
    fn switches_are_read_once_a_second_however_many_ask() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let process = Process::new(pid).expect("one's own process");
        let (mut switches, now) = (Switches::default(), Instant::now());
        let first = switches.recent(&process, now).expect("tasks");
        // Causes a switch of this thread.
        std::thread::sleep(Duration::from_millis(1));
        let soon = switches.recent(&process, now + SWITCHES_STAY / 2).expect("tasks");
        assert_eq!(soon, first);
        let later = switches.recent(&process, now + SWITCHES_STAY).expect("tasks");
        assert!(later.voluntary > first.voluntary, "{first:?} {later:?}");
        // The second starts again with each reading.
        let again = switches.recent(&process, now + SWITCHES_STAY * 3 / 2).expect("tasks");
        assert_eq!(again, later);
    }

    #[test]
    fn ended_threads_stay_in_the_sum() {
        let switches = |voluntary, involuntary| ContextSwitches { voluntary, involuntary };
        let mut state = Switches::default();
        assert_eq!(state.update([(1, switches(10, 1)), (2, switches(5, 0))].into()), switches(15, 1));
        assert_eq!(state.update([(1, switches(11, 1))].into()), switches(16, 1));
        assert_eq!(state.update([(1, switches(2, 0))].into()), switches(18, 1), "the number was given away");
        assert_eq!(state.update([].into()), switches(18, 1));
    }

    #[test]
    fn only_a_thread_that_is_no_more_has_ended() {
        let told = |errno| has_ended(&io::Error::from_raw_os_error(errno).into());
        assert!(told(libc::ENOENT) && told(libc::ESRCH));
        for errno in [libc::EACCES, libc::EINTR, libc::EIO, libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            assert!(!told(errno), "{errno}");
        }
        let mut child = Kept(Command::new("sleep").arg("600").spawn().expect("sleep starts"));
        let process = Process::new(i32::try_from(child.0.id()).expect("a pid")).expect("a live child");
        let tid = process.pid();
        let mut status = process.open_relative(format!("task/{tid}/status")).expect("a live thread");
        child.0.kill().expect("the child can be killed");
        child.0.wait().expect("the child can be waited for");
        // The file is opened before the end and read after it, or opened after it: two different errors.
        let read = status.read_to_end(&mut Vec::new()).expect_err("no thread");
        assert!(has_ended(&read.into()));
        assert!(has_ended(&thread_switches(&process, tid).expect_err("no thread")));
    }

    #[test]
    fn what_can_not_be_listed_changes_nothing() {
        let switches = ContextSwitches { voluntary: 10, involuntary: 1 };
        let mut child = Kept(Command::new("sleep").arg("600").spawn().expect("sleep starts"));
        let process = Process::new(i32::try_from(child.0.id()).expect("a pid")).expect("a live child");
        // A thread that existed before and has ended.
        let mut state = Switches { threads: [(i32::MAX, switches)].into(), ..Switches::default() };
        let before = state.read(&process).expect("a live child");
        assert!(before.voluntary >= 10 && !state.threads.contains_key(&i32::MAX), "{state:?}");
        child.0.kill().expect("the child can be killed");
        child.0.wait().expect("the child can be waited for");
        let kept = state.threads.clone();
        assert!(state.read(&process).is_err());
        assert_eq!((state.ended, state.threads), (switches, kept));
    }

    #[test]
    fn families_have_the_names_and_types_of_client_golang() {
        let types: BTreeMap<_, _> =
            own().read().families().iter().map(|f| (f.name().to_owned(), f.get_field_type())).collect();
        let expected = [
            ("process_context_switches_total", MetricType::COUNTER),
            ("process_cpu_seconds_total", MetricType::COUNTER),
            ("process_max_fds", MetricType::GAUGE),
            ("process_network_receive_bytes_total", MetricType::COUNTER),
            ("process_network_transmit_bytes_total", MetricType::COUNTER),
            ("process_open_fds", MetricType::GAUGE),
            ("process_resident_memory_bytes", MetricType::GAUGE),
            ("process_start_time_seconds", MetricType::GAUGE),
            ("process_threads", MetricType::GAUGE),
            ("process_virtual_memory_bytes", MetricType::GAUGE),
            ("process_virtual_memory_max_bytes", MetricType::GAUGE),
        ];
        assert_eq!(types, expected.map(|(name, kind)| (name.to_owned(), kind)).into());
    }

    #[test]
    fn netstat_is_read_by_the_names_of_its_columns() {
        let text = "TcpExt: InOctets B\nTcpExt: 1 2\nIpExt: A InOctets OutOctets\nIpExt: 3 4 5\n";
        assert_eq!((ip_ext(text, "InOctets"), ip_ext(text, "OutOctets")), (Some(4.0), Some(5.0)));
        assert_eq!(ip_ext(text, "B"), None);
        assert_eq!(ip_ext("IpExt: A\n", "A"), None);
        assert_eq!(ip_ext("", "A"), None);
    }
}
