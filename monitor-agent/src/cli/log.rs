//! The log on stderr, as text or JSON, written by a thread of its own. Code that logs never waits for the reader of
//! stderr, such as a stopped pager or a hung supervisor.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal, Write as _},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use tracing::{Level, error, info, warn};
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{failure::Failure, text::printable, threads};

/// The bytes that may wait for the reader of stderr. Only the last entry, a line or the reason of a failure, may exceed
/// it.
const ROOM: usize = 1 << 20;
/// The bytes written at once: a part of a long line, so that a slow reader's progress is seen.
const PIECE_BYTES: usize = 4 << 10;
/// The time limit for each piece that is left at the end.
const GRACE: Duration = Duration::from_millis(500);
/// The time limits for everything that is left at the end: after an orderly end, which somebody may be waiting for, and
/// after a failure, whose reason may be long.
const IN_ALL: Duration = Duration::from_secs(1);
const IN_ALL_OF_A_FAILURE: Duration = Duration::from_secs(30);
/// The log target of the message that `events` is attached. Programs may wait for it, so it is logged at every level.
const ATTACHED: &str = "monitor_agent::attached";

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Verbosity {
    /// What ends the agent.
    Error,
    /// What a user should look into.
    Warn,
    /// What happens to targets.
    Info,
    /// The eBPF programs' own diagnostics too.
    Debug,
    /// Everything.
    Trace,
}

impl From<Verbosity> for Level {
    fn from(verbosity: Verbosity) -> Self {
        match verbosity {
            Verbosity::Error => Self::ERROR,
            Verbosity::Warn => Self::WARN,
            Verbosity::Info => Self::INFO,
            Verbosity::Debug => Self::DEBUG,
            Verbosity::Trace => Self::TRACE,
        }
    }
}

/// The log of a running command.
pub(super) struct Log {
    format: Format,
    queue: Arc<Queue>,
}

impl Log {
    /// Runs a command with a log. If it fails, the reason is the last entry.
    pub(super) fn over(
        verbosity: Verbosity,
        format: Format,
        work: impl FnOnce(&Self) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let log = Self { format, queue: Arc::default() };
        log.take_records(verbosity);
        let queue = Arc::clone(&log.queue);
        // Before anything is attached, so that a limit on threads can't hold lines back later.
        let writing = threads::begin("log", move || queue.write_to(io::stderr(), say_dropped));
        let is_written = writing.is_ok();
        let result = writing.map_err(Failure::from).and_then(|_| work(&log));
        if let Err(failure) = &result {
            log.failure(failure);
        }
        log.queue.close();
        if is_written {
            let in_all = if result.is_ok() { IN_ALL } else { IN_ALL_OF_A_FAILURE };
            log.queue.wait_until_written(GRACE, in_all);
        } else {
            // Nothing has started that a wait could delay.
            log.queue.write_to(io::stderr(), say_dropped);
        }
        result
    }

    /// Sends all records from now on to the queue.
    fn take_records(&self, verbosity: Verbosity) {
        // Messages of libraries are for debugging the agent.
        let level = Level::from(verbosity);
        let others = if level == Level::TRACE { level } else { Level::WARN.min(level) };
        let filter = Targets::new()
            .with_default(others)
            .with_target("monitor_agent", level)
            .with_target("monitor", level)
            .with_target(ATTACHED, Level::INFO);
        let registry = tracing_subscriber::registry().with(filter);
        let layer = fmt::layer().with_writer(Arc::clone(&self.queue));
        match self.format {
            Format::Text => {
                registry.with(layer.with_ansi(io::stderr().is_terminal()).with_target(false)).init();
            }
            Format::Json => registry.with(layer.json()).init(),
        }
    }

    /// Reports that `events` is attached, and counts from now on.
    pub(super) fn attached(&self) {
        match self.format {
            Format::Text => self.queue.put(b"attached\n"),
            Format::Json => info!(target: ATTACHED, "attached"),
        }
    }

    fn failure(&self, failure: &Failure) {
        match self.format {
            Format::Text => self.queue.put(for_people(failure).as_bytes()),
            Format::Json => error!("{}", failure.text),
        }
    }
}

/// Reports the failure of a command without a log.
pub(super) fn failure(failure: &Failure) {
    // An error can't be reported anywhere.
    let _ = io::stderr().write_all(for_people(failure).as_bytes());
}

fn for_people(failure: &Failure) -> String {
    // The kernel's verifier writes many lines.
    let text = failure.text.lines().map(printable).collect::<Vec<_>>().join("\n");
    format!("monitor-agent: {text}\n")
}

fn say_dropped(lines: u64) {
    warn!("{lines} lines of the log were dropped here: whoever reads it did not take them in time");
}

/// Lines on their way to the reader of stderr, bounded by [`ROOM`]. Others are dropped and counted, and the count is
/// reported once there is room again.
///
/// Adding a line never waits for the reader: the lock is only held to copy a line or to take one out.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    /// Bytes of all lines, and of the one that is being written.
    bytes: usize,
    /// Pieces written.
    taken: u64,
    /// Lines dropped after the last one in `lines`.
    dropped: u64,
    /// The thread that is reporting the dropped lines.
    teller: Option<ThreadId>,
    /// No more lines will be added.
    is_closed: bool,
    /// All lines are written.
    is_over: bool,
}

/// What to write next.
enum Next {
    Line(Vec<u8>),
    /// A report that this many lines were dropped here.
    Dropped(u64),
    End,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the lines of a text, all or none.
    fn put(&self, text: &[u8]) {
        let lines = text.split_inclusive(|byte| *byte == b'\n');
        let mut state = self.lock();
        // No line overtakes dropped ones, except the one that reports them.
        let has_room = state.dropped == 0 && state.bytes < ROOM;
        if !has_room && state.teller != Some(thread::current().id()) {
            state.dropped += lines.count() as u64;
            return;
        }
        state.bytes += text.len();
        state.lines.extend(lines.map(<[u8]>::to_vec));
        drop(state);
        self.changed.notify_all();
    }

    /// Closes the queue: no more lines will be added.
    fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Waits until all lines are written, at most `for_each` for each piece and `in_all` in total.
    fn wait_until_written(&self, for_each: Duration, in_all: Duration) {
        let begin = Instant::now();
        let mut state = self.lock();
        while !state.is_over {
            let taken = state.taken;
            let is_held_up = |state: &mut State| !state.is_over && state.taken == taken;
            let left = in_all.saturating_sub(begin.elapsed());
            let waited = self.changed.wait_timeout_while(state, for_each.min(left), is_held_up);
            let (now, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            if waited.timed_out() {
                return;
            }
            state = now;
        }
    }

    /// Writes lines as they come, until the queue is closed and empty. Reports dropped lines through `tell`.
    fn write_to(&self, mut out: impl io::Write, tell: impl Fn(u64)) {
        loop {
            match self.next() {
                Next::Line(line) => {
                    for piece in line.chunks(PIECE_BYTES) {
                        // An error can't be reported anywhere.
                        let _ = out.write_all(piece);
                        self.lock().taken += 1;
                        self.changed.notify_all();
                    }
                    self.lock().bytes -= line.len();
                }
                Next::Dropped(lines) => self.tell_dropped(lines, &tell),
                Next::End => break,
            }
        }
        self.lock().is_over = true;
        self.changed.notify_all();
    }

    /// Reports dropped lines through `tell`. Until the report is in the queue, further lines are dropped and reported
    /// next.
    fn tell_dropped(&self, lines: u64, tell: impl Fn(u64)) {
        self.lock().teller = Some(thread::current().id());
        tell(lines);
        let mut state = self.lock();
        state.teller = None;
        state.dropped -= lines;
    }

    fn next(&self) -> Next {
        let mut state = self.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                return Next::Line(line);
            }
            if state.dropped > 0 {
                return Next::Dropped(state.dropped);
            }
            if state.is_closed {
                return Next::End;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// tracing's layer makes one write for each line.
impl io::Write for &Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::failure::Kind;

    #[test]
    fn what_finds_no_room_is_told_in_its_place() {
        let queue = Queue::default();
        let long = "x".repeat(ROOM / 2);
        // Two lines fit.
        for _ in 0..5 {
            queue.put(format!("{long}\n").as_bytes());
        }
        // There would be room for this one, but no line overtakes.
        queue.put(b"short\n");
        queue.close();
        let mut out = Vec::new();
        queue.write_to(&mut out, |lines| queue.put(format!("{lines} dropped\n").as_bytes()));
        queue.put(b"after\n");
        queue.write_to(&mut out, |lines| panic!("{lines} dropped"));
        let text = String::from_utf8(out).expect("text");
        let lines: Vec<_> = text.lines().map(|line| if line == long { "long" } else { line }).collect();
        assert_eq!(lines, ["long", "long", "4 dropped", "after"]);
    }

    /// Other threads log during the report of dropped lines, and would leave no room for it.
    #[test]
    fn nothing_comes_before_what_tells_of_dropped_lines() {
        let queue = Queue::default();
        let long = format!("{}\n", "x".repeat(ROOM));
        for _ in 0..5 {
            queue.put(long.as_bytes());
        }
        queue.close();
        let mut out = Vec::new();
        queue.write_to(&mut out, |lines| {
            if lines == 4 {
                thread::scope(|scope| {
                    scope.spawn(|| queue.put(long.as_bytes()));
                });
            }
            queue.put(format!("{lines} dropped\n").as_bytes());
        });
        let text = String::from_utf8(out).expect("text");
        let lines: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(lines, ["4 dropped", "1 dropped"]);
    }

    /// A reader that takes everything at once, after a while.
    struct Slow;

    impl io::Write for Slow {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            thread::sleep(Duration::from_millis(50));
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The kernel's verifier writes many lines, which are one line of a JSON log.
    #[test]
    fn a_long_reason_has_its_time_as_long_as_it_is_taken() {
        const PARTS: usize = 15;
        let failure = Failure::new(Kind::Kernel, "part\n".repeat(PARTS));
        let log = Log { format: Format::Text, queue: Arc::default() };
        log.failure(&failure);
        log.queue.put("x".repeat(PARTS * PIECE_BYTES).as_bytes());
        log.queue.close();
        thread::scope(|scope| {
            scope.spawn(|| log.queue.write_to(Slow, say_dropped));
            log.queue.wait_until_written(Duration::from_secs(1), IN_ALL_OF_A_FAILURE);
            // The wait would end too early if it did not start again with each piece.
            assert!(log.queue.lock().is_over);
        });
    }

    #[test]
    fn nobody_waits_long_for_a_reader_that_takes_little() {
        let queue = Queue::default();
        queue.put("part\n".repeat(40).as_bytes());
        queue.close();
        let begin = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| queue.write_to(Slow, say_dropped));
            queue.wait_until_written(Duration::from_secs(10), Duration::from_millis(300));
            assert!(!queue.lock().is_over, "40 pieces in {:?}", begin.elapsed());
        });
    }

    #[test]
    fn nobody_waits_for_a_reader_that_takes_nothing() {
        const LINES: usize = 5;
        let queue = Queue::default();
        let (mut pipe, out) = io::pipe().expect("a pipe");
        let line = "x".repeat(ROOM);
        let mut text = String::new();
        let was_over = thread::scope(|scope| {
            scope.spawn(|| queue.write_to(out, |lines| queue.put(format!("{lines} dropped\n").as_bytes())));
            for _ in 0..LINES {
                queue.put(format!("{line}\n").as_bytes());
            }
            queue.close();
            queue.wait_until_written(Duration::from_millis(50), IN_ALL);
            let was_over = queue.lock().is_over;
            // A reader that resumes loses nothing of what was added.
            pipe.read_to_string(&mut text).expect("text");
            queue.wait_until_written(Duration::from_secs(10), Duration::from_secs(10));
            was_over
        });
        assert!(!was_over && queue.lock().is_over);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{} bytes", text.len());
        assert!(lines[0] == line && lines[1] == format!("{} dropped", LINES - 1), "{} bytes", text.len());
    }
}
