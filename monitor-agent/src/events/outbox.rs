//! The queue of lines for one reader.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::lines::{Format, Lines};
use crate::{
    pipeline::{EventKind, LossReason, Lost},
    specs::Specs,
};

/// The size of the pieces in which lines are queued, in bytes.
const PIECE_BYTES: usize = 64 << 10;
/// The maximum length of a write to stdout, in bytes, except for a longer line. A write of at most this size goes into a
/// pipe completely or not at all (`PIPE_BUF` in pipe(7)). So no reader is left with half a line when the agent ends.
const WHOLE_IN_PIPE: usize = 4 << 10;

/// Lines that are put in together, each with the loss to report if it is dropped.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) text: Vec<u8>,
    lines: Vec<Line>,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    /// Where the line ends in the text.
    end: usize,
    loss: Loss,
    count: u64,
}

/// The loss that is reported to a reader in place of dropped lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Loss {
    pub(super) target: u32,
    pub(super) event: EventKind,
    pub(super) reason: LossReason,
}

impl Batch {
    /// Ends a line that was appended to the text. It stands for `count` events, whose loss would be reported as `loss`.
    pub(super) fn end_line(&mut self, loss: Loss, count: u64) {
        self.lines.push(Line { end: self.text.len(), loss, count });
    }

    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.lines.clear();
    }
}

/// A reader's lines, up to a capacity. Lines that do not fit are counted, and reported when there is room again.
///
/// Putting lines in never waits for the reader: the lock is held only to copy lines, or to take a piece out.
#[derive(Debug)]
pub struct Outbox {
    capacity: usize,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    pieces: VecDeque<Vec<u8>>,
    /// How many bytes of the first piece have been written.
    written: usize,
    /// The number of bytes in all pieces that have not been written.
    bytes: usize,
    /// The number of bytes that were ever put in.
    put_in: usize,
    /// The queued lines that stand for several events: where each ends, counted in all bytes ever put in, and the
    /// number of events.
    several: VecDeque<(usize, u64)>,
    lost: BTreeMap<Loss, u64>,
    /// Writes the lines that report losses.
    lines: Lines,
    is_closed: bool,
    /// Whether queued lines are no longer written.
    is_given_up: bool,
}

impl Outbox {
    /// Creates an outbox with room for `capacity` bytes of lines in this format.
    #[must_use]
    pub fn new(capacity: usize, format: Format) -> Self {
        let state = State {
            pieces: VecDeque::new(),
            written: 0,
            bytes: 0,
            put_in: 0,
            several: VecDeque::new(),
            lost: BTreeMap::new(),
            lines: Lines::new(format, Specs::default()),
            is_closed: false,
            is_given_up: false,
        };
        Self { capacity, state: Mutex::new(state), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts lines in, in order, up to the first for which there is no room. Returns the number of lines that did not
    /// fit.
    ///
    /// Whoever writes them is woken up by [`wake`](Self::wake) only, or when the outbox is half full.
    pub(super) fn put(&self, batch: &Batch, time_ns: u64) -> u64 {
        let mut state = self.lock();
        state.tell_losses(time_ns, self.capacity);
        let room = if state.lost.is_empty() { self.capacity.saturating_sub(state.bytes) } else { 0 };
        let fitting = batch.lines.partition_point(|line| line.end <= room);
        let (kept, dropped) = batch.lines.split_at(fitting);
        let end = kept.last().map_or(0, |line| line.end);
        state.append(batch.text.get(..end).unwrap_or_default(), kept);
        for line in dropped {
            *state.lost.entry(line.loss).or_default() += line.count;
        }
        let is_half_full = state.bytes >= self.capacity / 2;
        drop(state);
        if is_half_full {
            self.changed.notify_one();
        }
        dropped.len() as u64
    }

    /// Has the lines that were put in written.
    pub(super) fn wake(&self) {
        if self.lock().bytes > 0 {
            self.changed.notify_one();
        }
    }

    /// Closes the outbox: nothing more will be put in. Remaining losses are reported now, even if there is no room.
    pub(super) fn close(&self, time_ns: u64) {
        let mut state = self.lock();
        state.tell_losses(time_ns, usize::MAX);
        state.is_closed = true;
        drop(state);
        self.changed.notify_one();
    }

    /// Writes lines as they come, until the outbox is closed and empty, or given up. For stdout and other blocking
    /// writers, on a thread that does nothing else.
    pub async fn write_blocking(&self, mut out: impl io::Write) -> io::Result<()> {
        while let Some(text) = self.next(WHOLE_IN_PIPE).await {
            out.write_all(&text)?;
            out.flush()?;
            self.taken(&text);
        }
        Ok(())
    }

    /// Stops writing the lines in a closed outbox. Returns the number of lines left, and of the events in them. They
    /// include lines that are being written at this moment, which may still be taken.
    #[must_use]
    pub fn give_up(&self) -> (u64, u64) {
        let mut state = self.lock();
        state.is_given_up = true;
        let left = state.left();
        drop(state);
        self.changed.notify_one();
        left
    }

    /// Waits for the lines to write next, `whole` bytes at most, or else one line. Returns `None` when the outbox is
    /// closed and empty, or given up.
    pub(super) async fn next(&self, whole: usize) -> Option<Vec<u8>> {
        loop {
            {
                let state = self.lock();
                if state.is_given_up {
                    return None;
                }
                let text = state.first_lines(whole);
                if text.is_some() || state.is_closed {
                    return text;
                }
            }
            // Lines that came in between have left a permit, so this returns at once.
            self.changed.notified().await;
        }
    }

    /// Removes the lines that [`next`](Self::next) has returned, since they are written.
    pub(super) fn taken(&self, text: &[u8]) {
        self.lock().take(text.len());
    }
}

impl State {
    /// Returns the lines to write next, `whole` bytes at most.
    fn first_lines(&self, whole: usize) -> Option<Vec<u8>> {
        let text = &self.pieces.front()?[self.written..];
        Some(text[..whole_lines(text, whole)].to_vec())
    }

    /// Removes the first `len` bytes of the first piece, which have been written.
    fn take(&mut self, len: usize) {
        self.bytes -= len;
        self.written += len;
        if self.pieces.front().is_some_and(|piece| piece.len() == self.written) {
            self.pieces.pop_front();
            self.written = 0;
        }
        let taken = self.put_in - self.bytes;
        while self.several.front().is_some_and(|(end, _)| *end <= taken) {
            self.several.pop_front();
        }
    }

    /// Returns the number of lines that have not been written, and of the events in them.
    fn left(&self) -> (u64, u64) {
        let text = self.pieces.iter().flatten().skip(self.written);
        let lines = text.filter(|byte| **byte == b'\n').count() as u64;
        let more: u64 = self.several.iter().map(|(_, count)| count - 1).sum();
        (lines, lines + more)
    }

    fn append(&mut self, text: &[u8], lines: &[Line]) {
        if text.is_empty() {
            return;
        }
        let before = self.put_in;
        let several = lines.iter().filter(|line| line.count > 1);
        self.several.extend(several.map(|line| (before + line.end, line.count)));
        self.put_in += text.len();
        self.bytes += text.len();
        match self.pieces.back_mut() {
            Some(last) if last.len() < PIECE_BYTES => last.extend_from_slice(text),
            _ => self.pieces.push_back(text.to_vec()),
        }
    }

    /// Appends a line for each loss, as long as there is room.
    fn tell_losses(&mut self, time_ns: u64, capacity: usize) {
        while let Some((loss, count)) = self.lost.pop_first() {
            let Loss { target, event, reason } = loss;
            let mut line = Vec::new();
            self.lines.lost(&Lost { target, time_ns, event, reason, count }, &mut line);
            if self.bytes + line.len() > capacity {
                self.lost.insert(loss, count);
                return;
            }
            let end = line.len();
            self.append(&line, &[Line { end, loss, count }]);
        }
    }
}

/// Returns the length of the lines to write at once: as many as fit into `whole` bytes, or else the first line.
fn whole_lines(text: &[u8], whole: usize) -> usize {
    let is_end = |byte: &u8| *byte == b'\n';
    let fitting = text.iter().take(whole).rposition(is_end);
    fitting.or_else(|| text.iter().position(is_end)).map_or(text.len(), |end| end + 1)
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        pin::pin,
        task::{Context, Waker},
        thread,
    };

    use serde_json::Value;

    use super::*;

    const LOSS: Loss = Loss { target: 7, event: EventKind::Finish, reason: LossReason::SlowReader };

    fn batch(lines: &[&str]) -> Batch {
        let mut batch = Batch::default();
        for line in lines {
            batch.text.extend_from_slice(line.as_bytes());
            batch.text.push(b'\n');
            batch.end_line(LOSS, 1);
        }
        batch
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
    }

    /// Closes the outbox and returns all its lines.
    fn written(outbox: &Outbox) -> String {
        let mut out = Vec::new();
        outbox.close(0);
        runtime().block_on(outbox.write_blocking(&mut out)).expect("memory takes everything");
        String::from_utf8(out).expect("text")
    }

    /// Returns whether the writer has been woken up since this was last asked.
    fn is_woken(outbox: &Outbox) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        pin!(outbox.changed.notified()).poll(&mut context).is_ready()
    }

    #[test]
    fn the_writer_is_woken_when_it_is_told_to_or_when_much_waits() {
        let outbox = Outbox::new(100, Format::Ndjson);
        outbox.wake();
        assert!(!is_woken(&outbox), "there is nothing to write");
        outbox.put(&batch(&["one"]), 0);
        assert!(!is_woken(&outbox));
        outbox.wake();
        assert!(is_woken(&outbox));
        outbox.put(&batch(&[&"x".repeat(50)]), 0);
        assert!(is_woken(&outbox));
        assert_eq!(written(&outbox).lines().count(), 2);
    }

    #[test]
    fn what_fits_comes_out_in_order() {
        let outbox = Outbox::new(100, Format::Ndjson);
        assert_eq!(outbox.put(&batch(&["one", "two"]), 0), 0);
        assert_eq!(outbox.put(&batch(&["three"]), 0), 0);
        assert_eq!(written(&outbox), "one\ntwo\nthree\n");
    }

    #[test]
    fn what_does_not_fit_is_told_in_its_place() {
        let outbox = Outbox::new(200, Format::Ndjson);
        let long = "x".repeat(80);
        assert_eq!(outbox.put(&batch(&[&long, &long, &long, "short"]), 0), 2);
        // No line overtakes a loss: there is no room to report it yet.
        assert_eq!(outbox.put(&batch(&["short"]), 0), 1);
        let text = written(&outbox);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[2].contains("\"lost\":3,\"of\":\"finish\",\"reason\":\"slow_reader\""), "{text}");
    }

    #[test]
    fn a_loss_that_does_not_fit_stays_the_loss_it_was() {
        let outbox = Outbox::new(10, Format::Ndjson);
        let mut lost = Batch::default();
        lost.text.extend_from_slice(b"a line about a loss\n");
        lost.end_line(Loss { reason: LossReason::RingFull, ..LOSS }, 5);
        assert_eq!(outbox.put(&lost, 0), 1);
        assert_eq!(outbox.put(&batch(&["more"]), 0), 1);
        let text = written(&outbox);
        assert!(text.contains("\"lost\":5,\"of\":\"finish\",\"reason\":\"ring_full\""), "{text}");
        assert!(text.contains("\"lost\":1,\"of\":\"finish\",\"reason\":\"slow_reader\""), "{text}");
    }

    #[test]
    fn a_reader_that_catches_up_is_told_and_goes_on() {
        let outbox = Outbox::new(300, Format::Ndjson);
        let long = "x".repeat(250);
        outbox.put(&batch(&[&long, &long]), 0);
        let mut out = Vec::new();
        runtime().block_on(async {
            let writing = outbox.write_blocking(&mut out);
            let more = async {
                while outbox.lock().bytes > 0 {
                    tokio::task::yield_now().await;
                }
                assert_eq!(outbox.put(&batch(&["after"]), 0), 0);
                outbox.close(0);
            };
            let (written, ()) = tokio::join!(writing, more);
            written.expect("memory takes everything");
        });
        let text = String::from_utf8(out).expect("text");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines.len(), lines[2]), (3, "after"), "{text}");
        assert!(lines[1].contains("\"lost\":1"), "{text}");
    }

    /// The pipe and the outbox hold far less than all lines.
    #[test]
    fn a_reader_that_blocks_holds_nobody_else_up_and_is_told() {
        const LINES: u64 = 1_000;
        let outbox = Outbox::new(100 << 10, Format::Ndjson);
        let (mut pipe, out) = io::pipe().expect("a pipe");
        let long = "x".repeat(1 << 10);
        let mut text = String::new();
        let dropped: u64 = thread::scope(|scope| {
            let writing = scope.spawn(|| runtime().block_on(outbox.write_blocking(out)));
            let dropped = (0..LINES).map(|_| outbox.put(&batch(&[&long]), 0)).sum();
            outbox.close(0);
            pipe.read_to_string(&mut text).expect("text");
            writing.join().expect("no panic").expect("a reader");
            dropped
        });
        let whole = text.lines().filter(|line| **line == *long).count() as u64;
        let told = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lost: u64 = told.filter_map(|line| line["lost"].as_u64()).sum();
        assert!(dropped > LINES / 2, "{dropped} dropped");
        assert_eq!((whole, lost), (LINES - dropped, dropped));
    }

    /// Takes `most` writes of any length, then fails.
    struct Taken {
        writes: Vec<Vec<u8>>,
        most: usize,
    }

    impl io::Write for Taken {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            if self.writes.len() == self.most {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.writes.push(text.to_vec());
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_written_whole() {
        let outbox = Outbox::new(1 << 20, Format::Ndjson);
        let (short, long) = ("x".repeat(300), "x".repeat(2 * WHOLE_IN_PIPE));
        outbox.put(&batch(&[short.as_str(); 50]), 0);
        outbox.put(&batch(&[&long, &short]), 0);
        let mut taken = Taken { writes: Vec::new(), most: 5 };
        runtime().block_on(outbox.write_blocking(&mut taken)).expect_err("it takes no more");
        assert!(taken.writes.iter().all(|text| text.ends_with(b"\n")), "a line is cut");
        let lines = taken.writes.iter().map(|text| String::from_utf8_lossy(text).lines().count());
        // A line that is longer than a whole write is written alone.
        assert_eq!(lines.collect::<Vec<_>>(), [13, 13, 13, 11, 1]);
        assert_eq!(outbox.lock().left(), (1, 1));
    }

    /// Counts dropped lines, and the losses that lines report.
    #[test]
    fn all_events_that_were_not_taken_are_counted_and_nothing_more_is_written() {
        const LINES: u64 = 100;
        let outbox = Outbox::new(20 << 10, Format::Ndjson);
        let long = "x".repeat(1 << 10);
        let mut lost = Batch::default();
        lost.text.extend_from_slice(b"a line about a loss\n");
        lost.end_line(Loss { reason: LossReason::RingFull, ..LOSS }, 5);
        // The first line about a loss is taken, the second is not.
        outbox.put(&lost, 0);
        assert_eq!(outbox.put(&batch(&[long.as_str(); 10]), 0), 0);
        outbox.put(&lost, 0);
        let dropped = outbox.put(&batch(&[long.as_str(); 90]), 0);
        assert!(dropped > LINES / 2, "{dropped} dropped");
        outbox.close(0);
        let mut out = Taken { writes: Vec::new(), most: 2 };
        runtime().block_on(outbox.write_blocking(&mut out)).expect_err("it takes no more");
        let text = String::from_utf8(out.writes.concat()).expect("text");
        let taken = text.lines().filter(|line| **line == *long).count() as u64;
        assert!((1..10).contains(&taken) && text.starts_with("a line about a loss\n"), "{text}");
        // Two of the lines report losses.
        assert_eq!(outbox.give_up(), (LINES - dropped - taken + 2, LINES - taken + 5));
        let mut more = Vec::new();
        runtime().block_on(outbox.write_blocking(&mut more)).expect("memory takes everything");
        assert!(more.is_empty(), "{} bytes", more.len());
    }

    #[test]
    fn a_reader_that_is_gone_is_an_end() {
        let outbox = Outbox::new(100, Format::Ndjson);
        let (pipe, out) = io::pipe().expect("a pipe");
        drop(pipe);
        outbox.put(&batch(&["one"]), 0);
        let error = runtime().block_on(outbox.write_blocking(out)).expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
