//! Collects what a child process writes while it runs.

use std::{
    io::{BufRead as _, BufReader, Read},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// The lines read so far. A separate thread reads them, so the child never waits for its reader.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    pub(crate) fn of(pipe: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let shared = lines.clone();
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                shared.lock().lines.push(text);
                shared.0.changed.notify_all();
                line.clear();
            }
            shared.lock().ended = true;
            shared.0.changed.notify_all();
        });
        lines
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns all lines so far as one text.
    pub(crate) fn text(&self) -> String {
        self.lock().lines.join("\n")
    }

    /// Waits for the end of the pipe, at most for `patience`.
    pub(crate) fn wait_for_end(&self, patience: Duration) {
        let _ = self.0.changed.wait_timeout_while(self.lock(), patience, |state| !state.ended);
    }

    /// Waits for the first line, starting at index `from`, for which `wanted` returns a value.
    pub(crate) fn find<T>(
        &self,
        from: usize,
        patience: Duration,
        wanted: impl Fn(&str) -> Option<T>,
    ) -> Result<T, NotFound> {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        let mut looked_at = from;
        loop {
            if let Some(found) = state.lines.iter().skip(looked_at).find_map(|line| wanted(line)) {
                return Ok(found);
            }
            looked_at = looked_at.max(state.lines.len());
            if state.ended {
                return Err(NotFound::Ended);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NotFound::Timeout);
            }
            let (next, _) = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            state = next;
        }
    }
}

/// Why a line was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotFound {
    /// The child has closed its end of the pipe.
    Ended,
    /// The line did not come in time.
    Timeout,
}
