//! One process: who it is, whether it is still the same, and what it runs.
//!
//! A pid alone names nothing for long: it is given to another process after the exit, and `execve` puts
//! another program under it. So a [`Target`] holds the process's `/proc` directory and a pidfd, both opened
//! before anything is read (the kernel ties them to the process, not to the number), and an [`Identity`] and the
//! pages of its address space that tell an exec.
//!
//! `pid` is the number under which the agent's own `/proc` shows the process. All access goes through
//! `/proc/PID`, so a target in another mount or pid namespace is the same as any other: `/proc/PID/exe` leads
//! to the inode that runs, whatever the path means inside the container and whatever became of the file since.

mod caps;
mod exits;
mod maps;
mod memory;
mod surroundings;
#[cfg(test)]
mod tests;
mod threads;

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use procfs::{
    ProcError,
    process::{Process, Stat, StatFlags},
};
use thiserror::Error;

use crate::descriptors;
pub use caps::missing_capabilities;
pub use exits::Exits;
pub use maps::Mapping;
pub use memory::AddressSpace;
use memory::Pages;
pub use surroundings::own_cpu_quota;
pub use threads::{ReturnHazard, own_return_hazard};

/// Why a process cannot be a target, or no longer is one.
#[derive(Debug, Error)]
pub enum TargetError {
    /// Nothing has this pid.
    #[error("no process has pid {0}: see `ps -e` for those that run")]
    NoSuchProcess(u32),
    /// The number belongs to a thread that is not its process's first.
    #[error("{tid} is a thread of process {process}: give {process} as the pid")]
    Thread {
        /// The number that was given.
        tid: u32,
        /// The process it is part of.
        process: u32,
    },
    /// The process has exited, or is a zombie that nobody has waited for.
    #[error("process {0} has ended")]
    Ended(u32),
    /// The process has called `execve` since the target was opened.
    #[error("process {0} has started another program: attach to it again")]
    Replaced(u32),
    /// A kernel thread, which runs no executable.
    #[error("process {0} is a kernel thread: it runs no executable and has no RPCs")]
    KernelThread(u32),
    /// The kernel refuses access.
    #[error("not permitted to read {what} of process {pid}: {permits}")]
    Permission {
        /// The process.
        pid: u32,
        /// What was to be read, a path under `/proc/PID` or a part of it.
        what: String,
        /// What permits it.
        permits: String,
    },
    /// Anything else that the operating system reports.
    #[error("cannot read {what} of process {pid}: {source}{}", descriptors::advice_on_system(source))]
    Io {
        /// The process.
        pid: u32,
        /// What was to be read.
        what: String,
        /// The system's own words.
        source: io::Error,
    },
}

/// A file, whatever its name: two names with equal numbers are one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// The device, as `stat` gives it.
    pub dev: u64,
    /// The inode on that device.
    pub ino: u64,
}

impl FileId {
    fn of(metadata: &fs::Metadata) -> Self {
        Self { dev: metadata.dev(), ino: metadata.ino() }
    }
}

/// What tells one process, and one program in it, from every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The process, as the agent's `/proc` numbers it.
    pub pid: u32,
    /// When it was forked, in clock ticks (1/100 s) since boot. An exec keeps it.
    pub start_time: u64,
    /// The file it runs.
    pub exe: FileId,
    /// Where the program lies.
    layout: Layout,
}

/// Where a program lies in its process: drawn anew by each exec, so that an exec of the same file shows too. Where nothing is
/// drawn it is the same for the same file with the same arguments and environment.
///
/// As `/proc/PID/stat` has it, for which the kernel takes no lock that the process could keep, and asks no file system
/// (`do_task_stat` in fs/proc/array.c @ v5.15 and v6.18).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Layout {
    /// The first address of its code, and that behind the last.
    code: [u64; 2],
    /// Where its stack begins.
    stack: u64,
}

impl Layout {
    fn of(stat: &Stat) -> Self {
        Self { code: [stat.startcode, stat.endcode], stack: stat.startstack }
    }

    /// Whether `stat` says nothing else. Who is not permitted to know is told that code begins at 1.
    fn fits(&self, stat: &Stat) -> bool {
        stat.startcode == 1 || Self::of(stat) == *self
    }
}

/// Whether a process is still the one that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// The same process runs the same program.
    Running,
    /// The process has exited.
    Exited,
    /// The process lives but has called `execve`: another program, or the same one afresh.
    Replaced,
}

/// One process that can be watched.
#[derive(Debug)]
pub struct Target {
    identity: Identity,
    process: Arc<Process>,
    pidfd: OwnedFd,
    /// Bound to the address space it was opened on: after an exec it reads nothing rather than the wrong program.
    memory: Result<Arc<File>, io::Error>,
    /// The same address space's pages. A kernel may be without.
    pages: Option<Pages>,
    exe_link: String,
}

impl Target {
    /// Opens the process and reads who it is. Waits half a second at most for an exec that is under way, in which
    /// `/proc` shows parts of both programs.
    pub fn open(pid: u32) -> Result<Self, TargetError> {
        for _ in 0..100 {
            match Self::open_once(pid) {
                Err(TargetError::Replaced(_)) => std::thread::sleep(Duration::from_millis(5)),
                opened => return opened,
            }
        }
        Err(TargetError::Replaced(pid))
    }

    fn open_once(pid: u32) -> Result<Self, TargetError> {
        let number = i32::try_from(pid).ok().filter(|&pid| pid > 0).ok_or(TargetError::NoSuchProcess(pid))?;
        let process = match Process::new(number) {
            Ok(process) => process,
            // With hidepid, /proc leaves out other users' processes: the pid is there all the same.
            Err(ProcError::NotFound(_)) if pidfd_open(number).is_ok() => {
                return Err(permission(pid, format!("/proc/{pid}")));
            }
            Err(error) => return Err(from_proc(pid, "the /proc entry", error)),
        };
        let leader = thread_group(&process).map_err(|error| from_proc(pid, "status", error))?;
        if leader != pid {
            return Err(TargetError::Thread { tid: pid, process: leader });
        }
        let pidfd = pidfd_open(number).map_err(|error| from_io(pid, "pidfd", error))?;
        // Before all else that belongs to the program: an exec from here on takes them away, however much alike the two are.
        let pages = Pages::open(&process);
        // Read after pidfd_open: that it can be read at all says that the pid was not given away in between.
        let stat = process.stat().map_err(|error| from_proc(pid, "stat", error))?;
        if stat.flags & StatFlags::PF_KTHREAD.bits() != 0 {
            return Err(TargetError::KernelThread(pid));
        }
        if has_ended(&pidfd) || is_dead(&stat) {
            return Err(TargetError::Ended(pid));
        }
        if stat.startcode == 0 {
            // Set last by an exec, together with the final start of the stack (load_elf_binary in fs/binfmt_elf.c).
            return Err(TargetError::Replaced(pid));
        }
        let exe = exe_path(pid);
        let exe_link = fs::read_link(&exe).map_err(|error| from_exe(pid, error))?;
        let metadata = fs::metadata(&exe).map_err(|error| from_exe(pid, error))?;
        let target = Self {
            identity: Identity {
                pid,
                start_time: stat.starttime,
                exe: FileId::of(&metadata),
                layout: Layout::of(&stat),
            },
            memory: process.open_relative("mem").map(Arc::new).map_err(into_io),
            pages,
            process: Arc::new(process),
            pidfd,
            exe_link: exe_link.to_string_lossy().into_owned(),
        };
        // The parts above were read one after the other; here they are seen to belong together.
        target.still_running()?;
        Ok(target)
    }

    /// The process, as the agent's `/proc` numbers it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.identity.pid
    }

    /// What tells this process and its program from every other.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// A path to the inode that runs: in any mount namespace, deleted or replaced on disk too.
    #[must_use]
    pub fn exe(&self) -> PathBuf {
        exe_path(self.identity.pid)
    }

    /// The executable's path as the process was started with it, for display: it may mean another file, or
    /// none, where the agent runs. Bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn exe_name(&self) -> &str {
        self.exe_link.strip_suffix(DELETED).unwrap_or(&self.exe_link)
    }

    /// Whether the executable's path was already gone from the disk when the target was opened.
    #[must_use]
    pub fn exe_deleted(&self) -> bool {
        self.exe_link.ends_with(DELETED)
    }

    /// Opens the executable for reading, and sees that it is the one the identity names.
    pub fn open_exe(&self) -> Result<File, TargetError> {
        let pid = self.pid();
        let file = File::open(self.exe()).map_err(|error| self.explain(EXE_FILE, error))?;
        let metadata = file.metadata().map_err(|error| from_io(pid, "exe", error))?;
        self.still_running()?;
        if FileId::of(&metadata) != self.identity.exe {
            return Err(TargetError::Replaced(pid));
        }
        Ok(file)
    }

    /// Whether the process still is the one that was opened.
    ///
    /// What cannot be read for want of permission is not held against it: an agent that has dropped its capabilities still
    /// tells an exit, and an exec by the pages that it has opened.
    ///
    /// The file that it runs is not asked for: its file system may be one that does not answer.
    #[must_use]
    pub fn liveness(&self) -> Liveness {
        if has_ended(&self.pidfd) {
            return Liveness::Exited;
        }
        // A process lets go of an address space before that is gone (`exit_mm` in kernel/exit.c, `exec_mmap` in fs/exec.c). So if
        // it is gone now, what `stat` shows next of an address space is another.
        let is_gone = self.pages.as_ref().is_some_and(Pages::are_gone);
        // Last: while the process's own directory can be read, its pid was not given to another.
        let stat = match self.process.stat().map_err(into_io) {
            Ok(stat) => stat,
            // That the agent is out of descriptors or memory says nothing of the process.
            Err(error) if is_shortage(&error) => return Liveness::Running,
            Err(_) => return Liveness::Exited,
        };
        // Its memory goes before the rest of it does.
        if stat.starttime != self.identity.start_time || is_dead(&stat) || stat.vsize == 0 {
            return Liveness::Exited;
        }
        let is_other = is_gone || !self.identity.layout.fits(&stat);
        if is_other { Liveness::Replaced } else { Liveness::Running }
    }

    /// Whether nothing hints that it is no longer the process that was opened, at a small part of what
    /// [`Target::liveness`] takes. What that alone finds out: that the first thread has exited while others run, and an
    /// exec whose former memory another process shares. A read of this agent's that waits for a page keeps that memory, too: as
    /// long as there is one the answer is no.
    #[must_use]
    pub fn seems_running(&self) -> bool {
        let Some(pages) = &self.pages else { return false };
        // In this order: a read that has kept them there is then seen, or over.
        !has_ended(&self.pidfd) && pages.are_there() && !pages.are_read()
    }

    /// By how much the executable lies above the addresses in its file: its lowest mapping less `link_base`,
    /// the address (rounded down to a page) of the first loadable segment. 0 unless it is a PIE.
    pub fn load_bias(&self, link_base: u64) -> Result<u64, TargetError> {
        let lowest = self.mappings()?.iter().map(|mapping| mapping.start).min();
        lowest.and_then(|start| start.checked_sub(link_base)).ok_or_else(|| {
            let text = "the executable is not mapped where its program headers say";
            from_io(self.pid(), "maps", io::Error::other(text))
        })
    }

    /// CPU time of the process since it started, of all its threads; `None` once it has ended.
    #[must_use]
    pub fn cpu_time(&self) -> Option<Duration> {
        let pid = libc::pid_t::try_from(self.pid()).ok()?;
        let mut clock = 0;
        // SAFETY: writes to the clock's number only.
        if unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) } != 0 {
            return None;
        }
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes to the timespec only.
        if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
            return None;
        }
        Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
    }

    /// Where the executable's file is mapped, in ascending order of addresses.
    ///
    /// Matched by device and inode, or else by name: on overlayfs and btrfs `maps` has other numbers than `stat`.
    pub fn mappings(&self) -> Result<Vec<Mapping>, TargetError> {
        // As it is now: the file may have been renamed or removed since the target was opened.
        let name = self.process.exe().map_err(|error| self.explain("exe", into_io(error)))?;
        let lines = self.process.open_relative("maps").map_err(into_io);
        let found = lines.and_then(|lines| maps::of_file(lines, self.identity.exe, &name.to_string_lossy()));
        let found = found.map_err(|error| self.explain("maps", error))?;
        self.still_running()?;
        Ok(found)
    }

    /// Where the kernel has code of its own in the process that probes call: those that are breakpoints no more (Linux 6.18).
    pub fn probe_trampolines(&self) -> Result<Vec<Mapping>, TargetError> {
        let lines = self.process.open_relative("maps").map_err(into_io);
        let found = lines.and_then(maps::probe_trampolines).map_err(|error| self.explain("maps", error))?;
        self.still_running()?;
        Ok(found)
    }

    /// Fills `buf` from the process's memory at `addr`, without stopping it. Another user's process needs
    /// `CAP_SYS_PTRACE` and `CAP_DAC_READ_SEARCH`; breakpoints that the kernel has put there are seen as they are.
    pub fn read_memory(&self, addr: u64, buf: &mut [u8]) -> Result<(), TargetError> {
        self.opened_memory()?
            .read_exact_at(buf, addr)
            .map_err(|error| self.explain(&format!("mem ({} bytes at {addr:#x})", buf.len()), error))
    }

    /// The process's memory, to read it again and again, on any thread.
    pub fn memory(&self) -> Result<AddressSpace, TargetError> {
        let file = Arc::clone(self.opened_memory()?);
        self.still_running()?;
        let pid = libc::pid_t::try_from(self.pid()).map_err(|_| TargetError::NoSuchProcess(self.pid()))?;
        let process = Arc::clone(&self.process);
        Ok(AddressSpace { pid, file, pages: self.pages.clone(), process, layout: self.identity.layout })
    }

    fn opened_memory(&self) -> Result<&Arc<File>, TargetError> {
        self.memory.as_ref().map_err(|error| {
            let error =
                error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
            self.explain("mem", error)
        })
    }

    fn still_running(&self) -> Result<(), TargetError> {
        match self.liveness() {
            Liveness::Running => Ok(()),
            Liveness::Exited => Err(TargetError::Ended(self.pid())),
            Liveness::Replaced => Err(TargetError::Replaced(self.pid())),
        }
    }

    /// A failed read of a process that has ended says so, whatever the kernel called it.
    fn explain(&self, what: &str, error: io::Error) -> TargetError {
        match self.still_running() {
            Err(ended) => ended,
            Ok(()) => from_io(self.pid(), what, error),
        }
    }
}

/// What the kernel appends to the name of a file that has none any more (`d_path`).
const DELETED: &str = " (deleted)";

/// The file behind `/proc/PID/exe`: that the link could be followed says that only the file's own mode is in the way.
const EXE_FILE: &str = "the executable file";

fn exe_path(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join("exe")
}

fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the call above succeeded, so `fd` is an open descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether every thread of the process has exited, reaped or not.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` is one valid entry, and the time limit of 0 makes the call return at once.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1 && poll.revents & libc::POLLIN != 0
}

/// Whether the agent, or the machine, lacks what is needed to ask.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// A process whose first thread has exited has no program left to watch, even while others run.
fn is_dead(stat: &Stat) -> bool {
    matches!(stat.state, 'Z' | 'X' | 'x')
}

/// The process that a thread is part of. Read by hand: `procfs` refuses a status whose name is not UTF-8, and a
/// process chooses its own name.
fn thread_group(process: &Process) -> Result<u32, ProcError> {
    let text = status_of(process)?;
    text.lines()
        .find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
        .ok_or_else(|| ProcError::Other("status has no Tgid".to_owned()))
}

/// What the kernel says of it in lines. The name in there may be cut in the middle of a character, so that this is no UTF-8.
fn status_of(process: &Process) -> Result<String, ProcError> {
    let mut text = Vec::new();
    let mut file = process.open_relative("status")?;
    io::Read::read_to_end(&mut file, &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn permission(pid: u32, what: impl Into<String>) -> TargetError {
    let what = what.into();
    // By its mode, `mem` is its owner's only; the check on tracing comes on top, and is all that the others have.
    let needed: &[&str] = match what.as_str() {
        EXE_FILE => &["CAP_DAC_READ_SEARCH"],
        text if text.starts_with("mem") => &["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"],
        _ => &["CAP_SYS_PTRACE"],
    };
    let permits = caps::what_permits(needed, &missing_capabilities());
    TargetError::Permission { pid, what, permits }
}

fn from_io(pid: u32, what: &str, error: io::Error) -> TargetError {
    match (error.raw_os_error(), error.kind()) {
        (Some(libc::ESRCH), _) => TargetError::Ended(pid),
        (_, io::ErrorKind::PermissionDenied) => permission(pid, what),
        _ => TargetError::Io { pid, what: what.to_owned(), source: error },
    }
}

/// The link `exe` exists as long as the process has an address space.
fn from_exe(pid: u32, error: io::Error) -> TargetError {
    if error.kind() == io::ErrorKind::NotFound {
        return TargetError::Ended(pid);
    }
    from_io(pid, "exe", error)
}

fn from_proc(pid: u32, what: &str, error: ProcError) -> TargetError {
    match error {
        ProcError::NotFound(_) => TargetError::NoSuchProcess(pid),
        error => from_io(pid, what, into_io(error)),
    }
}

fn into_io(error: ProcError) -> io::Error {
    match error {
        ProcError::Io(error, _) => error,
        ProcError::PermissionDenied(_) => io::ErrorKind::PermissionDenied.into(),
        ProcError::NotFound(_) => io::ErrorKind::NotFound.into(),
        error => io::Error::other(error.to_string()),
    }
}
