//! What peers did not get, counted where they are denied it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Connections that were cut off and requests that were refused, by reason. How a peer itself ends a connection is no loss.
#[derive(Debug, Default)]
pub struct Losses {
    /// The head of a request had begun, and was not there in time.
    pub(super) head_too_slow: AtomicU64,
    /// The head of a request had too many bytes or lines.
    pub(super) head_too_large: AtomicU64,
    /// What came was no request of HTTP/1.
    pub(super) malformed: AtomicU64,
    /// The peer kept an answer waiting for too long.
    pub(super) answer_not_taken: AtomicU64,
    /// An answer was not there in time.
    pub(super) took_too_long: AtomicU64,
    /// Too much waited for peers that do not take it.
    pub(super) no_room: AtomicU64,
    /// The backend has failed, or there was no thread for it.
    pub(super) failed: AtomicU64,
}

impl Losses {
    /// Connections that were cut off with a request or an answer on its way.
    #[must_use]
    pub fn connections_cut(&self) -> Vec<(&'static str, u64)> {
        counts([
            ("head_too_slow", &self.head_too_slow),
            ("head_too_large", &self.head_too_large),
            ("malformed", &self.malformed),
            ("answer_not_taken", &self.answer_not_taken),
        ])
    }

    /// Requests that got an error in place of an answer.
    #[must_use]
    pub fn requests_refused(&self) -> Vec<(&'static str, u64)> {
        counts([("took_too_long", &self.took_too_long), ("no_room", &self.no_room), ("failed", &self.failed)])
    }
}

fn counts<const REASONS: usize>(counters: [(&'static str, &AtomicU64); REASONS]) -> Vec<(&'static str, u64)> {
    counters.into_iter().map(|(reason, counter)| (reason, counter.load(Ordering::Relaxed))).collect()
}

/// Counts one more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
