//! Runs things in parallel that take time but little CPU.

use std::{panic, thread};

use anyhow::Result;

/// Runs `body` on all items in parallel. Returns the first failure, in the order of the items.
pub fn side_by_side<T: Send>(
    items: impl IntoIterator<Item = T>,
    body: impl Fn(T) -> Result<()> + Sync,
) -> Result<()> {
    let body = &body;
    thread::scope(|scope| {
        let threads: Vec<_> = items.into_iter().map(|item| scope.spawn(move || body(item))).collect();
        // All threads must be joined, even if the first one has failed.
        let ends: Vec<_> = threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
        ends.into_iter().try_for_each(|end| end.unwrap_or_else(|panic| panic::resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use anyhow::ensure;

    use super::*;

    #[test]
    fn all_are_done_at_once_and_the_first_failure_is_told() {
        let both = Barrier::new(2);
        let meet = |fails: bool| {
            both.wait();
            ensure!(!fails, "asked for");
            Ok(())
        };
        assert!(side_by_side([false, false], meet).is_ok());
        assert_eq!(side_by_side([false, true], meet).unwrap_err().to_string(), "asked for");
    }
}
