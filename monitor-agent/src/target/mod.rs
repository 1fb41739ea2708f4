//! One process: its identity, whether it is still the same, and what it runs.
//!
//! A pid is not enough to identify a program: it is reused after an exit, and `execve` replaces the program under it.
//! So a [`Target`] holds the process's `/proc` directory and a pidfd, both opened before anything is read. The kernel
//! ties them to the process, not to the number. A target also holds an [`Identity`] and the page map of its address
//! space, which reveal an exec.
//!
//! `pid` is the number under which the agent's own `/proc` shows the process. All access goes through `/proc/PID`, so a
//! target in another mount or pid namespace needs no special treatment. `/proc/PID/exe` leads to the inode that runs,
//! whatever the path means inside the container and whatever became of the file since.

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
    /// No process has this pid.
    #[error("no process has pid {0}: see `ps -e` for those that run")]
    NoSuchProcess(u32),
    /// The number is that of a thread other than its process's first.
    #[error("{tid} is a thread of process {process}: give {process} as the pid")]
    Thread {
        /// The number given.
        tid: u32,
        /// The process that the thread belongs to.
        process: u32,
    },
    /// The process has exited, or is a zombie that nobody has reaped.
    #[error("process {0} has ended")]
    Ended(u32),
    /// The process has called `execve` since the target was opened.
    #[error("process {0} has started another program: attach to it again")]
    Replaced(u32),
    /// A kernel thread, which runs no executable.
    #[error("process {0} is a kernel thread: it runs no executable and has no RPCs")]
    KernelThread(u32),
    /// The kernel denies access.
    #[error("not permitted to read {what} of process {pid}: {permits}")]
    Permission {
        /// The process.
        pid: u32,
        /// What could not be read: a path under `/proc/PID`, or a part of it.
        what: String,
        /// What would permit it.
        permits: String,
    },
    /// Any other error of the operating system.
    #[error("cannot read {what} of process {pid}: {source}{}", descriptors::advice_on_system(source))]
    Io {
        /// The process.
        pid: u32,
        /// What could not be read.
        what: String,
        /// The system's error.
        source: io::Error,
    },
}

/// Identifies a file, whatever its name: two names with equal ids are one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// The device, as `stat` reports it.
    pub dev: u64,
    /// The inode on that device.
    pub ino: u64,
}

impl FileId {
    fn of(metadata: &fs::Metadata) -> Self {
        Self { dev: metadata.dev(), ino: metadata.ino() }
    }
}

/// Distinguishes a process, and the program in it, from every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The pid in the agent's `/proc`.
    pub pid: u32,
    /// When the process was forked, in clock ticks (1/100 s) since boot. An exec does not change it.
    pub start_time: u64,
    /// The file that the process runs.
    pub exe: FileId,
    /// Where the program lies.
    layout: Layout,
}

/// Where a program lies in its process. Each exec draws new addresses, so an exec of the same file is visible too.
/// Where addresses are not random, they are the same for the same file with the same arguments and environment.
///
/// Read from `/proc/PID/stat`, for which the kernel takes no lock that the process could hold, and asks no file system
/// (`do_task_stat` in fs/proc/array.c @ v5.15 and v6.18).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Layout {
    /// The first address of its code, and the address after the last.
    code: [u64; 2],
    /// Where its stack begins.
    stack: u64,
}

impl Layout {
    fn of(stat: &Stat) -> Self {
        Self { code: [stat.startcode, stat.endcode], stack: stat.startstack }
    }

    /// Whether `stat` shows the same layout. To a reader without permission, the kernel reports that the code starts at
    /// 1.
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
    /// The process lives but has called `execve`, for another program or again for the same.
    Replaced,
}

/// One process that can be watched.
#[derive(Debug)]
pub struct Target {
    identity: Identity,
    process: Arc<Process>,
    pidfd: OwnedFd,
    /// Tied to the address space for which it was opened: after an exec, reads fail rather than return another
    /// program's memory.
    memory: Result<Arc<File>, io::Error>,
    /// The page map of the same address space. Some kernels have none.
    pages: Option<Pages>,
    exe_link: String,
}

impl Target {
    /// Opens the process and reads its identity. During an exec, `/proc` shows parts of both programs: waits for its
    /// end, half a second at most.
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
            // With hidepid, /proc hides other users' processes, but the pid exists.
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
        // Opened before anything else of the program: from here on an exec makes the pages go away, even if both
        // programs are identical.
        let pages = Pages::open(&process);
        // Read after pidfd_open: if it can be read, the pid was not reused in between.
        let stat = process.stat().map_err(|error| from_proc(pid, "stat", error))?;
        if stat.flags & StatFlags::PF_KTHREAD.bits() != 0 {
            return Err(TargetError::KernelThread(pid));
        }
        if has_ended(&pidfd) || is_dead(&stat) {
            return Err(TargetError::Ended(pid));
        }
        if stat.startcode == 0 {
            // An exec sets it last, together with the final start of the stack (load_elf_binary in fs/binfmt_elf.c).
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
        // The parts above were read one after the other. This shows that they belong together.
        target.still_running()?;
        Ok(target)
    }

    /// The pid in the agent's `/proc`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.identity.pid
    }

    /// The identity of this process and its program.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns a path to the inode that runs, in any mount namespace, even if the file was deleted or replaced on disk.
    #[must_use]
    pub fn exe(&self) -> PathBuf {
        exe_path(self.identity.pid)
    }

    /// The path of the executable when the agent came, for display. Where the agent runs, it may mean another file or
    /// none. Bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn exe_name(&self) -> &str {
        self.exe_link.strip_suffix(DELETED).unwrap_or(&self.exe_link)
    }

    /// Whether the executable's path was already gone from the disk when the target was opened.
    #[must_use]
    pub fn exe_deleted(&self) -> bool {
        self.exe_link.ends_with(DELETED)
    }

    /// Opens the executable for reading, and checks that it is the file in the identity.
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

    /// Reports whether the process is still the one that was opened.
    ///
    /// A lack of permission is not taken as an end. An agent that has dropped its capabilities still notices an exit,
    /// and notices an exec by the page map that it has open.
    ///
    /// Does not access the executable: its file system may not answer.
    #[must_use]
    pub fn liveness(&self) -> Liveness {
        if has_ended(&self.pidfd) {
            return Liveness::Exited;
        }
        // A process detaches from its address space before the address space is gone (`exit_mm` in kernel/exit.c,
        // `exec_mmap` in fs/exec.c). So if it is gone now, the `stat` below describes another.
        let is_gone = self.pages.as_ref().is_some_and(Pages::are_gone);
        // Read last: while the process's own directory can be read, its pid was not reused.
        let stat = match self.process.stat().map_err(into_io) {
            Ok(stat) => stat,
            // A shortage of descriptors or memory in the agent says nothing about the process.
            Err(error) if is_shortage(&error) => return Liveness::Running,
            Err(_) => return Liveness::Exited,
        };
        // A process loses its memory before the rest of it ends.
        if stat.starttime != self.identity.start_time || is_dead(&stat) || stat.vsize == 0 {
            return Liveness::Exited;
        }
        let is_other = is_gone || !self.identity.layout.fits(&stat);
        if is_other { Liveness::Replaced } else { Liveness::Running }
    }

    /// Whether nothing hints that the process is no longer the one that was opened. Costs a small part of
    /// [`Target::liveness`]. Only `liveness` notices that the first thread has exited while others run, and an exec
    /// whose former memory another process shares. A read by this agent that waits for a page also keeps that memory,
    /// so this returns false during such a read.
    #[must_use]
    pub fn seems_running(&self) -> bool {
        let Some(pages) = &self.pages else { return false };
        // In this order: a read that has kept the pages alive is seen now, or has ended.
        !has_ended(&self.pidfd) && pages.are_there() && !pages.are_read()
    }

    /// Returns how far the executable lies above the addresses in its file: the start of its lowest mapping minus
    /// `link_base`, the address (rounded down to a page) of the first loadable segment. 0 unless it is a PIE.
    pub fn load_bias(&self, link_base: u64) -> Result<u64, TargetError> {
        let lowest = self.mappings()?.iter().map(|mapping| mapping.start).min();
        lowest.and_then(|start| start.checked_sub(link_base)).ok_or_else(|| {
            let text = "the executable is not mapped where its program headers say";
            from_io(self.pid(), "maps", io::Error::other(text))
        })
    }

    /// Returns the CPU time of all threads of the process since it started, or `None` once it has ended.
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

    /// Returns where the executable's file is mapped, in ascending order of addresses.
    ///
    /// Compares device and inode, or else the name: on overlayfs and btrfs the numbers in `maps` differ from those of
    /// `stat`.
    pub fn mappings(&self) -> Result<Vec<Mapping>, TargetError> {
        // Read now: the file may have been renamed or removed since the target was opened.
        let name = self.process.exe().map_err(|error| self.explain("exe", into_io(error)))?;
        let lines = self.process.open_relative("maps").map_err(into_io);
        let found = lines.and_then(|lines| maps::of_file(lines, self.identity.exe, &name.to_string_lossy()));
        let found = found.map_err(|error| self.explain("maps", error))?;
        self.still_running()?;
        Ok(found)
    }

    /// Returns the mappings of the kernel's code that probes call, for probes that are no longer breakpoints (Linux
    /// 6.18).
    pub fn probe_trampolines(&self) -> Result<Vec<Mapping>, TargetError> {
        let lines = self.process.open_relative("maps").map_err(into_io);
        let found = lines.and_then(maps::probe_trampolines).map_err(|error| self.explain("maps", error))?;
        self.still_running()?;
        Ok(found)
    }

    /// Fills `buf` with the process's memory at `addr`, without stopping the process. Another user's process requires
    /// `CAP_SYS_PTRACE` and `CAP_DAC_READ_SEARCH`. Breakpoints that the kernel has set are visible.
    pub fn read_memory(&self, addr: u64, buf: &mut [u8]) -> Result<(), TargetError> {
        self.opened_memory()?
            .read_exact_at(buf, addr)
            .map_err(|error| self.explain(&format!("mem ({} bytes at {addr:#x})", buf.len()), error))
    }

    /// Returns the process's memory, for repeated reads on any thread.
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

    /// Returns the end of the process if it has ended, whatever error the kernel reported.
    fn explain(&self, what: &str, error: io::Error) -> TargetError {
        match self.still_running() {
            Err(ended) => ended,
            Ok(()) => from_io(self.pid(), what, error),
        }
    }
}

/// What the kernel appends to the name of a deleted file (`d_path`).
const DELETED: &str = " (deleted)";

/// The file behind `/proc/PID/exe`. If the link can be followed, only the file's own mode can deny access.
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

/// Whether the agent, or the machine, lacks the resources to find out.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// Whether the first thread has exited. The process then has no program left to watch, even while other threads run.
fn is_dead(stat: &Stat) -> bool {
    matches!(stat.state, 'Z' | 'X' | 'x')
}

/// Returns the process that a thread belongs to. Parsed by hand: `procfs` rejects a status whose name is not UTF-8, and
/// a process chooses its own name.
fn thread_group(process: &Process) -> Result<u32, ProcError> {
    let text = status_of(process)?;
    text.lines()
        .find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
        .ok_or_else(|| ProcError::Other("status has no Tgid".to_owned()))
}

/// Reads `/proc/PID/status`. The kernel may cut the name in it in the middle of a character, so the text may not be
/// UTF-8.
fn status_of(process: &Process) -> Result<String, ProcError> {
    let mut text = Vec::new();
    let mut file = process.open_relative("status")?;
    io::Read::read_to_end(&mut file, &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn permission(pid: u32, what: impl Into<String>) -> TargetError {
    let what = what.into();
    // By its mode, only the owner can open `mem`, and the ptrace check comes on top. For the other files that check is
    // the only one.
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

/// Converts an error on the link `exe`, which exists as long as the process has an address space.
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
