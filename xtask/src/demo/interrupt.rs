//! Ends the task in order on Ctrl-C and similar signals: no process that it started may outlive it.

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

/// Makes SIGINT, SIGTERM and SIGHUP set a flag instead of ending the process.
pub(super) fn catch() {
    let note = note as *const () as libc::sighandler_t;
    // SAFETY: the handler only stores into an atomic, which is safe in a signal handler.
    unsafe {
        libc::signal(libc::SIGINT, note);
        libc::signal(libc::SIGTERM, note);
        // Under nohup SIGHUP is ignored, and must stay so.
        if libc::signal(libc::SIGHUP, note) == libc::SIG_IGN {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
        }
    }
}

/// Sleeps; fails as soon as a signal has arrived.
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
