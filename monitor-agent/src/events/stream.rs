//! The tracer that writes lines for readers.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use super::{
    Filter, Lines, Outbox,
    outbox::{Batch, Loss},
};
use crate::pipeline::{EventKind, FinishedCall, LossReason, Lost, StartedCall, Tracer};

/// Lines are passed to the readers when their text reaches this size, in bytes, or earlier.
const BATCH_BYTES: usize = 256 << 10;

/// The readers of the stream.
#[derive(Debug, Default)]
pub struct Readers {
    outboxes: Mutex<Vec<Arc<Outbox>>>,
    /// The number of outboxes.
    count: AtomicUsize,
    /// The number of lines dropped since a reader had no room for them.
    dropped: AtomicU64,
}

impl Readers {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Outbox>>> {
        self.outboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a reader, which gets lines from now on.
    pub fn add(&self, outbox: Arc<Outbox>) {
        let mut outboxes = self.lock();
        outboxes.push(outbox);
        self.count.store(outboxes.len(), Ordering::Release);
    }

    /// Removes a reader.
    pub fn remove(&self, outbox: &Arc<Outbox>) {
        let mut outboxes = self.lock();
        outboxes.retain(|other| !Arc::ptr_eq(other, outbox));
        self.count.store(outboxes.len(), Ordering::Release);
    }

    /// Returns the number of readers.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Returns the number of lines dropped since a reader had no room for them, summed over all readers ever.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Closes all readers' outboxes. Queued lines are still written.
    fn close(&self, time_ns: u64) {
        for outbox in self.lock().drain(..) {
            outbox.close(time_ns);
        }
    }
}

/// A tracer that writes each event that the filter passes as a line, once for all readers. Does nothing without
/// readers.
#[derive(Debug)]
pub struct EventStream {
    filter: Filter,
    lines: Lines,
    batch: Batch,
    readers: Arc<Readers>,
    /// The time of the last event. It is not always the latest time: the clock may have been set back since.
    last_ns: u64,
}

impl EventStream {
    /// Creates a stream for these readers.
    #[must_use]
    pub fn new(filter: Filter, lines: Lines, readers: Arc<Readers>) -> Self {
        Self { filter, lines, batch: Batch::default(), readers, last_ns: 0 }
    }

    fn end_line(&mut self, target: u32, event: EventKind, (reason, count): (LossReason, u64), time_ns: u64) {
        self.last_ns = time_ns;
        self.batch.end_line(Loss { target, event, reason }, count);
        if self.batch.text.len() >= BATCH_BYTES {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        let outboxes = self.readers.lock();
        // Putting in even an empty batch reports losses to readers that have room now.
        let dropped: u64 = outboxes.iter().map(|outbox| outbox.put(&self.batch, self.last_ns)).sum();
        drop(outboxes);
        self.readers.dropped.fetch_add(dropped, Ordering::Relaxed);
        self.batch.clear();
    }
}

impl Tracer for EventStream {
    fn start(&mut self, call: &StartedCall<'_>) {
        if self.readers.count() > 0 && self.filter.takes_start(call) {
            self.lines.start(call, &mut self.batch.text);
            self.end_line(call.target, EventKind::Start, (LossReason::SlowReader, 1), call.time_ns);
        }
    }

    fn finish(&mut self, call: &FinishedCall<'_>) {
        if self.readers.count() > 0 && self.filter.takes_finish(call, self.lines.specs()) {
            self.lines.finish(call, &mut self.batch.text);
            self.end_line(call.target, EventKind::Finish, (LossReason::SlowReader, 1), call.time_ns);
        }
    }

    fn lost(&mut self, lost: &Lost) {
        if self.readers.count() > 0 {
            self.lines.lost(lost, &mut self.batch.text);
            self.end_line(lost.target, lost.event, (lost.reason, lost.count), lost.time_ns);
        }
    }

    fn flush(&mut self) {
        self.hand_over();
        // Only now, so that a pass over the rings wakes a reader's writer once.
        for outbox in self.readers.lock().iter() {
            outbox.wake();
        }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.hand_over();
        self.readers.close(self.last_ns);
    }
}

#[cfg(test)]
mod tests {
    use monitor_ebpf::LabelSet;

    use super::*;
    use crate::{
        events::Format,
        pipeline::{Labels, NoExecutable},
        specs::Specs,
    };

    fn stream(readers: &Arc<Readers>) -> EventStream {
        let lines = Lines::new(Format::Ndjson, Specs::default());
        EventStream::new(Filter::default(), lines, Arc::clone(readers))
    }

    fn finish(stream: &mut EventStream, target: u32, time_ns: u64) {
        stream.finish(&FinishedCall {
            target,
            label_set: 0,
            labels: &Arc::new(Labels::decode(&LabelSet::EMPTY, &NoExecutable)),
            time_ns,
            duration: None,
            has_own_start: false,
            details: None,
        });
        stream.flush();
    }

    /// Returns all lines in a closed outbox.
    fn written(outbox: &Outbox) -> String {
        let mut out = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(outbox.write_blocking(&mut out)).expect("memory takes everything");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_loss_has_the_time_of_the_last_event_though_the_clock_was_set_back() {
        let readers = Arc::new(Readers::default());
        let outbox = Arc::new(Outbox::new(0, Format::Ndjson));
        readers.add(Arc::clone(&outbox));
        let mut stream = stream(&readers);
        for seconds in [7_200, 3_600] {
            finish(&mut stream, 1, seconds * 1_000_000_000);
        }
        drop(stream);
        let text = written(&outbox);
        assert!(text.contains("\"time\":\"1970-01-01T01:00:00") && text.contains("\"lost\":2"), "{text}");
    }

    #[test]
    fn a_reader_gets_what_comes_while_it_reads() {
        let readers = Arc::new(Readers::default());
        let mut stream = stream(&readers);
        let mut finish = |target| finish(&mut stream, target, 1);
        finish(1);
        let outbox = Arc::new(Outbox::new(1 << 10, Format::Ndjson));
        readers.add(Arc::clone(&outbox));
        finish(2);
        finish(3);
        readers.remove(&outbox);
        finish(4);
        assert_eq!((readers.count(), readers.dropped()), (0, 0));
        outbox.close(0);
        let text = written(&outbox);
        let targets: Vec<_> = text.lines().filter_map(|line| line.split("\"target\":").nth(1)).collect();
        assert_eq!(targets.iter().map(|rest| &rest[..1]).collect::<Vec<_>>(), ["2", "3"], "{text}");
    }
}
