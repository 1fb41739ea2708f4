//! Which targets have ended, from one system call for all of them.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use super::Target;

/// The most exits that one call reports.
const AT_ONCE: usize = 64;

/// Reports the exits of targets. The kernel records them, and one system call asks for all.
#[derive(Debug)]
pub struct Exits(OwnedFd);

impl Exits {
    /// Watches these targets. Each is reported by its index.
    pub fn of<'a>(targets: impl IntoIterator<Item = &'a Target>) -> io::Result<Self> {
        // SAFETY: takes a number and returns a new descriptor or -1.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above succeeded, so it is an open descriptor that nothing else owns.
        let exits = Self(unsafe { OwnedFd::from_raw_fd(epoll) });
        for (place, target) in (0..).zip(targets) {
            exits.add(target, place)?;
        }
        Ok(exits)
    }

    /// Adds a target. Its exit is reported once.
    fn add(&self, target: &Target, place: u64) -> io::Result<()> {
        let events = (libc::EPOLLIN | libc::EPOLLONESHOT).cast_unsigned();
        let mut event = libc::epoll_event { events, u64: place };
        let (epoll, pidfd) = (self.0.as_raw_fd(), target.pidfd.as_raw_fd());
        // SAFETY: both descriptors are open, and the event is only read.
        let added = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, pidfd, &raw mut event) };
        if added < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Returns the indices of the targets whose threads have all exited, reaped or not, since the last call. If there
    /// are many, the next call returns the rest.
    pub fn take(&self) -> impl Iterator<Item = usize> + use<> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; AT_ONCE];
        let room = i32::try_from(AT_ONCE).unwrap_or(1);
        // SAFETY: there is room for this many events, and the timeout of 0 makes the call return at once.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), room, 0) };
        let told = events.into_iter().take(usize::try_from(count).unwrap_or(0));
        told.filter_map(|event| usize::try_from(event.u64).ok())
    }
}
