//! Readings of a target's memory, which may take as long as the target likes.
//!
//! A page of its memory may be one that somebody else has to give: that of a file on FUSE, or one with a userfaultfd. Whoever
//! reads it waits in the kernel until it comes or the target is gone, and only SIGKILL ends that sooner. So memory is read on
//! a thread of its own, and who wants the reading waits for a moment. While a thread is held up no other begins, so that
//! there is never more than one, and nobody waits again.

use std::{
    sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError},
    thread,
    time::Duration,
};

use tracing::warn;

/// How long a scrape waits for one reading: by far more than any takes on a machine that is not overloaded.
pub(super) const FOR_A_SCRAPE: Duration = Duration::from_secs(1);
/// The same where rings wait to be emptied meanwhile.
pub(super) const BETWEEN_DRAINS: Duration = Duration::from_millis(50);

/// See the [module](self). `T`: what a reading gives.
#[derive(Debug)]
pub(super) struct Aside<T> {
    /// Of the thread that was not waited for to the end.
    held_up: Option<Receiver<T>>,
    /// Whose memory it is, and what is left out while it does not come.
    about: String,
    is_told: bool,
}

impl<T: Send + 'static> Aside<T> {
    /// What is `left_out` while the memory of the target of this name does not come: for the log.
    pub(super) fn new(name: &str, left_out: &str) -> Self {
        let about = format!("{name}: its memory does not come when it is read, so {left_out}");
        Self { held_up: None, about, is_told: false }
    }

    /// What a reading gives; `None` if it takes longer than that, as long as one from before does, and where there can be no
    /// thread. What comes too late is thrown away: it is of a time that nobody asks for any more.
    pub(super) fn read(
        &mut self,
        patience: Duration,
        reading: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if matches!(self.held_up.as_ref().map(Receiver::try_recv), Some(Err(TryRecvError::Empty))) {
            return None;
        }
        let (give, receiver) = mpsc::sync_channel(1);
        let begin = thread::Builder::new().name("memory".to_owned()).spawn(move || {
            // Fails if nobody waits any more.
            let _ = give.send(reading());
        });
        self.held_up = None;
        if let Err(error) = begin {
            self.tell(&error.to_string());
            return None;
        }
        match receiver.recv_timeout(patience) {
            Ok(read) => Some(read),
            Err(RecvTimeoutError::Timeout) => {
                self.tell(&format!("not within {} ms", patience.as_millis()));
                self.held_up = Some(receiver);
                None
            }
            // It has panicked, which has been reported.
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    /// Says once what is missing from now on: the metrics say so each time.
    fn tell(&mut self, why: &str) {
        if !std::mem::replace(&mut self.is_told, true) {
            warn!("{} ({why})", self.about);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        time::Instant,
    };

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn a_reading_that_is_held_up_is_waited_for_once_and_no_other_begins() {
        let mut aside = Aside::new("target", "nothing is shown");
        let (come, page) = mpsc::channel::<()>();
        let begun = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&begun);
        let held_up = move || {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = page.recv();
            1
        };
        assert_eq!(aside.read(SHORT, held_up), None);
        let again = Instant::now();
        for _ in 0..1_000 {
            let count = Arc::clone(&begun);
            let read = move || count.fetch_add(1, Ordering::SeqCst);
            assert_eq!(aside.read(FOR_A_SCRAPE, read), None);
        }
        assert!(again.elapsed() < FOR_A_SCRAPE, "waited again");
        assert_eq!(begun.load(Ordering::SeqCst), 1, "another was begun");
        come.send(()).expect("the thread waits");
        // What it gives now is old.
        let read = std::iter::repeat_with(|| aside.read(FOR_A_SCRAPE, || 2)).take(1_000_000);
        assert_eq!(read.flatten().next(), Some(2));
    }

    #[test]
    fn one_that_panics_is_over() {
        let mut aside = Aside::new("target", "nothing is shown");
        assert_eq!(aside.read(FOR_A_SCRAPE, || -> u32 { panic!("in a test") }), None);
        assert_eq!(aside.read(FOR_A_SCRAPE, || 3), Some(3));
    }
}
