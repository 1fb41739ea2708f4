//! Counts of what peers did not get.

use std::sync::atomic::{AtomicU64, Ordering};

/// Connections that were cut off and requests that were refused, by reason. A connection that the peer ends is no loss.
#[derive(Debug, Default)]
pub struct Losses {
    /// The head of a request began, and was not complete in time.
    pub(super) head_too_slow: AtomicU64,
    /// The head of a request had too many bytes or lines.
    pub(super) head_too_large: AtomicU64,
    /// The input was not an HTTP/1 request.
    pub(super) malformed: AtomicU64,
    /// The peer took an answer too slowly.
    pub(super) answer_not_taken: AtomicU64,
    /// An answer was not ready in time.
    pub(super) took_too_long: AtomicU64,
    /// Too many bytes of answers were waiting for peers.
    pub(super) no_room: AtomicU64,
    /// The backend failed, or no thread could be started for it.
    pub(super) failed: AtomicU64,
}

impl Losses {
    /// Returns the connections that were cut off during a request or an answer, by reason.
    #[must_use]
    pub fn connections_cut(&self) -> Vec<(&'static str, u64)> {
        counts([
            ("head_too_slow", &self.head_too_slow),
            ("head_too_large", &self.head_too_large),
            ("malformed", &self.malformed),
            ("answer_not_taken", &self.answer_not_taken),
        ])
    }

    /// Returns the requests that got an error instead of an answer, by reason.
    #[must_use]
    pub fn requests_refused(&self) -> Vec<(&'static str, u64)> {
        counts([("took_too_long", &self.took_too_long), ("no_room", &self.no_room), ("failed", &self.failed)])
    }
}

fn counts<const REASONS: usize>(counters: [(&'static str, &AtomicU64); REASONS]) -> Vec<(&'static str, u64)> {
    counters.into_iter().map(|(reason, counter)| (reason, counter.load(Ordering::Relaxed))).collect()
}

/// Adds one to a counter.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
