//! Ctrl-C and its like end the task in order: what it has started must not outlive it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How soon a signal is noticed.
const TICK: Duration = Duration::from_millis(50);

static CAUGHT: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: libc::c_int) {
    CAUGHT.store(true, Ordering::Relaxed);
}

/// From now on, SIGINT, SIGTERM and SIGHUP are noted, and end nothing by themselves.
pub(super) fn catch() {
    let note = note as *const () as libc::sighandler_t;
    // SAFETY: the handler does nothing but store into an atomic, which is safe wherever a signal comes.
    unsafe {
        libc::signal(libc::SIGINT, note);
        libc::signal(libc::SIGTERM, note);
        // nohup has it ignored, and wants it to stay so.
        if libc::signal(libc::SIGHUP, note) == libc::SIG_IGN {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
        }
    }
}

/// Sleeps; fails as soon as a signal has come.
pub(super) fn sleep(time: Duration) -> Result<()> {
    let begin = Instant::now();
    loop {
        if CAUGHT.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let left = time.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(TICK));
    }
}
