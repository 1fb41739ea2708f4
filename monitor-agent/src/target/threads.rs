//! Whether a return probe could end a process, judged by its threads.
//!
//! For a return probe, the kernel replaces a function's return address with an address of its own. On newer kernels the
//! code there makes a system call, which the target executes. A seccomp filter that does not know the call kills the
//! target, or lets it continue where there is no code. A shadow stack still holds the original address. Some kernels
//! handle these cases, but their releases do not show which, since fixes are backported. So nothing is tried on a
//! target. How filters behave, the agent finds out on itself (`bpf/filters.rs`).

use std::{fs, io, path::Path};

use thiserror::Error;

use super::{Target, TargetError};

/// The most threads that are checked. Each takes some ten microseconds.
const THREADS_MAX: usize = 1 << 14;

/// The states of a thread without restrictions, and of one with filtered calls (`proc_pid_status(5)`). A thread in the
/// state between may only read and write.
const NO_SECCOMP: &str = "0";
const BY_FILTERS: &str = "2";

/// Why a return probe could end a process.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ReturnHazard {
    /// A thread's system calls are filtered.
    #[error(
        "a thread is under seccomp, and behind a return probe the kernel has a system call made, for which a filter may end the \
         process"
    )]
    Filtered,
    /// The processor keeps a second copy of a thread's return addresses.
    #[error("a thread has a shadow stack, and the kernel changes return addresses for a return probe")]
    ShadowStack,
    /// There are too many threads to check them all.
    #[error(
        "it has more than {THREADS_MAX} threads, too many to ask each whether it is under seccomp or has a shadow stack"
    )]
    TooManyThreads,
}

impl Target {
    /// Returns why a return probe could end the process, if it could. With `filters_pass`, filters are no hazard. The
    /// process may set up a filter or a shadow stack later.
    pub fn return_hazard(&self, filters_pass: bool) -> Result<Option<ReturnHazard>, TargetError> {
        let threads = Path::new("/proc").join(self.pid().to_string()).join("task");
        let hazard = of_threads(&threads, filters_pass);
        let hazard = hazard.map_err(|error| self.explain("the status of the threads", error))?;
        // The threads were read by pid.
        self.still_running()?;
        Ok(hazard)
    }
}

/// Returns why a return probe could end the agent, if this thread returned to one.
pub fn own_return_hazard() -> io::Result<Option<ReturnHazard>> {
    let status = fs::read("/proc/thread-self/status")?;
    Ok(of_status(&String::from_utf8_lossy(&status), false))
}

fn of_threads(threads: &Path, filters_pass: bool) -> io::Result<Option<ReturnHazard>> {
    for (index, thread) in fs::read_dir(threads)?.enumerate() {
        if index == THREADS_MAX {
            return Ok(Some(ReturnHazard::TooManyThreads));
        }
        let status = match fs::read(thread?.path().join("status")) {
            Ok(status) => status,
            Err(error) if has_ended(&error) => continue,
            Err(error) => return Err(error),
        };
        let hazard = of_status(&String::from_utf8_lossy(&status), filters_pass);
        if hazard.is_some() {
            return Ok(hazard);
        }
    }
    Ok(None)
}

/// Whether the error means that the thread has exited.
fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Returns the hazard that a thread's status shows. A kernel without seccomp or shadow stacks does not list them.
fn of_status(status: &str, filters_pass: bool) -> Option<ReturnHazard> {
    let value = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    match value("Seccomp:").trim() {
        "" | NO_SECCOMP => {}
        BY_FILTERS if filters_pass => {}
        _ => return Some(ReturnHazard::Filtered),
    }
    let has_shadow_stack = value("x86_Thread_features:").split_whitespace().any(|feature| feature == "shstk");
    has_shadow_stack.then_some(ReturnHazard::ShadowStack)
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;
    use crate::threads::testing::{end, filter_calls};

    #[test]
    fn filters_and_shadow_stacks_are_told_by_the_status() {
        let status = |seccomp: &str, features: &str| {
            format!(
                "Name:\tx\nNoNewPrivs:\t1\nSeccomp:\t{seccomp}\nSeccomp_filters:\t3\nx86_Thread_features:\t{features}\n\
                 x86_Thread_features_locked:\tshstk wrss \n"
            )
        };
        let (filtered, shadowed) = (Some(ReturnHazard::Filtered), Some(ReturnHazard::ShadowStack));
        for (seccomp, features, expected, if_passed) in [
            ("0", "", None, None),
            ("1", "", filtered, filtered),
            ("2", "", filtered, None),
            ("2", "shstk ", filtered, shadowed),
            ("0", "shstk wrss ", shadowed, shadowed),
            ("0", "wrss ", None, None),
        ] {
            let status = status(seccomp, features);
            assert_eq!(of_status(&status, false), expected, "{seccomp} {features}");
            assert_eq!(of_status(&status, true), if_passed, "{seccomp} {features}");
        }
        assert_eq!(of_status("Name:\tSeccomp: 2\n", false), None);
    }

    #[test]
    fn every_thread_is_asked() {
        let own = Target::open(std::process::id()).expect("this process");
        // If the test itself runs under a filter, there is nothing to see.
        if own_return_hazard().expect("a status").is_some() {
            return;
        }
        let (filtered, is_filtered) = mpsc::channel();
        let (done, is_done) = mpsc::channel::<()>();
        let other = thread::spawn(move || {
            // A filter that allows everything.
            let installed = filter_calls(&mut [end(libc::SECCOMP_RET_ALLOW)]);
            filtered.send(installed).expect("the test waits");
            let _ = is_done.recv();
        });
        is_filtered.recv().expect("an answer").expect("a filter");
        assert_eq!(own.return_hazard(false).expect("a status"), Some(ReturnHazard::Filtered));
        drop(done);
        other.join().expect("the thread");
    }
}
