//! Long work, on threads of its own.
//!
//! tokio's `spawn_blocking` panics if the system refuses a thread, and leaves the work in a queue that is never
//! emptied, with everything that the work holds, such as a scrape's place.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    thread,
};

use thiserror::Error;
use tokio::sync::oneshot::{self, Receiver};

/// Why work has no result.
#[derive(Debug, Error)]
pub(crate) enum NotDone {
    /// No thread could be started.
    #[error(
        "no thread can be started: {0}; raise the agent's limit on them (pids.max of its cgroup, TasksMax= of \
         systemd)"
    )]
    NoThread(io::Error),
    /// The work panicked.
    #[error("a thread of the agent has panicked")]
    Panicked,
}

/// Runs work on a thread of its own, and waits for its result. If no thread can be started, the work is dropped at
/// once, with everything that it holds. Once started, it runs to its end, even if nobody waits for it.
pub(crate) async fn on_its_own<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NotDone> {
    // The panic is already reported.
    begin("work", work)?.await.map_err(|_| NotDone::Panicked)
}

/// Starts work on a thread with this name. The receiver gets its result, or an error if the work panics.
pub(crate) fn begin<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Receiver<T>, NotDone> {
    let (give, given) = oneshot::channel();
    let work = move || {
        // Fails if nobody waits for the result.
        let _ = give.send(work());
    };
    thread::Builder::new().name(name.to_owned()).spawn(work).map_err(NotDone::NoThread)?;
    Ok(given)
}

/// Resolves a host name. An address is parsed in place; only a name takes a thread.
pub(crate) async fn look_up(host: &str, port: u16) -> io::Result<std::vec::IntoIter<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)].into_iter());
    }
    let host = host.to_owned();
    on_its_own(move || (host, port).to_socket_addrs()).await.map_err(io::Error::other)?
}

/// Shared by tests of code that starts threads.
#[cfg(test)]
pub(crate) mod testing {
    use std::{io, thread};

    /// Runs a closure where no thread can be started, as at a limit: on a thread whose seccomp filter refuses new ones.
    pub(crate) fn without_threads<T: Send>(run: impl FnOnce() -> T + Send) -> T {
        let run = || {
            refuse().expect("a filter");
            run()
        };
        thread::scope(|scope| scope.spawn(run).join().expect("no panic"))
    }

    /// Installs a filter that refuses new threads to this thread, for the rest of its life.
    fn refuse() -> io::Result<()> {
        let number = |number: i64| u32::try_from(number).expect("a number");
        let refused = libc::SECCOMP_RET_ERRNO | number(libc::EAGAIN.into());
        let is_call = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        // The system call's number is the first word of the filter's input (struct seccomp_data).
        filter_calls(&mut [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, [0, 0]),
            step(is_call, number(libc::SYS_clone), [1, 0]),
            step(is_call, number(libc::SYS_clone3), [0, 1]),
            end(refused),
            end(libc::SECCOMP_RET_ALLOW),
        ])
    }

    /// A step of a filter. `jt` and `jf` are how many steps to skip if a comparison holds, and if it does not.
    fn step(code: u32, k: u32, [jt, jf]: [u8; 2]) -> libc::sock_filter {
        libc::sock_filter { code: u16::try_from(code).expect("a code"), jt, jf, k }
    }

    /// The last step of a filter, with the action for the call.
    pub(crate) fn end(action: u32) -> libc::sock_filter {
        step(libc::BPF_RET | libc::BPF_K, action, [0, 0])
    }

    /// Installs a filter of system calls on this thread, for the rest of its life.
    pub(crate) fn filter_calls(steps: &mut [libc::sock_filter]) -> io::Result<()> {
        let len = u16::try_from(steps.len()).expect("a few steps");
        let program = libc::sock_fprog { len, filter: steps.as_mut_ptr() };
        // SAFETY: takes numbers, and changes only this thread.
        if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the program and its steps outlive the call, which changes only this thread.
        if unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::runtime::Builder;

    use super::{testing::without_threads, *};

    fn wait<T>(future: impl Future<Output = T>) -> T {
        Builder::new_current_thread().build().expect("a runtime").block_on(future)
    }

    #[test]
    fn work_gives_what_it_makes() {
        assert_eq!(wait(on_its_own(|| 7)).expect("a thread"), 7);
    }

    #[test]
    fn work_that_panics_is_over_and_holds_nothing() {
        let held = Arc::new(7);
        let work = {
            let held = Arc::clone(&held);
            move || -> u32 { panic!("in a test, with {held}") }
        };
        let why = wait(on_its_own(work)).expect_err("it panics");
        assert!(matches!(why, NotDone::Panicked), "{why}");
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[test]
    fn where_there_can_be_no_thread_work_holds_nothing_either() {
        let held = Arc::new(7);
        let work = {
            let held = Arc::clone(&held);
            move || *held
        };
        let why = without_threads(|| wait(on_its_own(work))).expect_err("no thread");
        assert!(why.to_string().contains("pids.max"), "{why}");
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[test]
    fn a_name_needs_a_thread_and_an_address_needs_none() {
        let addresses = |host: &'static str| {
            wait(look_up(host, 1)).map(|found| found.map(|found| found.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(without_threads(|| addresses("127.0.0.1")).expect("an address"), ["127.0.0.1:1"]);
        assert_eq!(without_threads(|| addresses("::1")).expect("an address"), ["[::1]:1"]);
        let why = without_threads(|| addresses("localhost")).expect_err("no thread");
        assert!(why.to_string().contains("pids.max"), "{why}");
        assert!(!addresses("localhost").expect("a name that all machines have").is_empty());
    }
}
