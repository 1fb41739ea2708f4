//! `events`: the targets' calls as lines on stdout.

use std::{
    io::{self, IsTerminal as _},
    sync::Arc,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::oneshot::{Receiver, error::RecvError},
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::warn;

use super::{
    life::{signalled, to_the_end},
    trace::{Trace, TraceConfig},
};
use crate::{
    events::{EventStream, Filter, Format, Lines, Outbox, Readers},
    failure::{Failure, Kind},
    threads::{self, NotDone},
};

/// Maximum number of bytes that wait for the reader of stdout.
const OUTBOX_BYTES: usize = 16 << 20;
/// How long the reader of stdout may take for the remaining lines after a signal.
const GRACE: Duration = Duration::from_secs(1);
/// How often to check whether stdout still has a reader.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The validated configuration of `events`.
#[derive(Debug)]
pub struct EventsConfig {
    /// What to trace.
    pub trace: TraceConfig,
    /// The format of the lines.
    pub format: Format,
    /// Which calls are wanted.
    pub filter: Filter,
}

/// Why the event stream ends.
enum End {
    /// The last target has ended.
    NoTarget,
    /// A signal arrived.
    Signal,
    /// Nobody reads stdout any more. Holds the result of the writes.
    Unread(Result<(), Failure>),
}

/// Writes a line to stdout for each event, until the last target has ended and its lines are read, a signal arrives or
/// nobody reads any more. Calls `attached` once events are captured.
pub fn events(config: EventsConfig, attached: impl FnOnce()) -> Result<(), Failure> {
    to_the_end(|beside| live(config, attached, beside))
}

async fn live(config: EventsConfig, attached: impl FnOnce(), beside: Handle) -> Result<(), Failure> {
    let mut signalled = signalled(&beside)?;
    let EventsConfig { trace, format, filter } = config;
    let specs = trace.specs.clone();
    let readers = Arc::new(Readers::default());
    let outbox = Arc::new(Outbox::new(OUTBOX_BYTES, format));
    // Checked now: once closed, a terminal is no longer recognized as one.
    let is_terminal = io::stdout().is_terminal();
    let outcome = |written| outcome(written, is_terminal);
    // Before anything is attached, so that a limit on threads can't hold lines back later.
    let mut writing = write_for(&readers, &outbox, io::stdout(), beside)?;
    let attaching = threads::on_its_own(move || Trace::attach(&trace));
    let mut trace = tokio::select! {
        trace = attaching => trace??,
        // The kernel removes what was attached when the process ends.
        _ = &mut signalled => return Ok(()),
    };
    attached();
    let mut stream = EventStream::new(filter, Lines::new(format, specs), readers);
    let mut poll = interval(Trace::POLL_EVERY);
    poll.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut look = interval(LOOK_EVERY);
    let end = loop {
        tokio::select! {
            _ = &mut signalled => break End::Signal,
            written = &mut writing => break End::Unread(outcome(written)),
            _ = look.tick() => if is_unread(libc::STDOUT_FILENO) { break End::Unread(Ok(())) },
            _ = poll.tick() => if !trace.poll(&mut stream) { break End::NoTarget },
        }
    };
    // Logs which limits were passed, whatever ended first.
    trace.detach(&mut stream);
    drop(stream);
    match end {
        End::Unread(result) => return result,
        End::Signal => {}
        // Nothing is attached any more, so the reader may take as long as it likes.
        End::NoTarget => tokio::select! {
            written = &mut writing => return outcome(written),
            _ = signalled => {}
        },
    }
    if let Ok(written) = timeout(GRACE, writing).await {
        return outcome(written);
    }
    let (lines, events) = outbox.give_up();
    warn!(
        "whoever reads stdout did not take the last lines in time: up to {lines}, which tell of {events} events"
    );
    Ok(())
}

/// Starts to write lines for one more reader. Runs on its own thread, since a reader may take as long as it likes.
fn write_for(
    readers: &Readers,
    outbox: &Arc<Outbox>,
    out: impl io::Write + Send + 'static,
    beside: Handle,
) -> Result<Receiver<io::Result<()>>, NotDone> {
    let writing = {
        let outbox = Arc::clone(outbox);
        threads::begin("lines", move || beside.block_on(outbox.write_blocking(out)))?
    };
    readers.add(Arc::clone(outbox));
    Ok(writing)
}

/// Returns success when the reader is gone: that is a normal end.
fn outcome(written: Result<io::Result<()>, RecvError>, is_terminal: bool) -> Result<(), Failure> {
    // A panic was already reported.
    match written.map_err(|_| NotDone::Panicked)? {
        Err(error) if !is_of_no_reader(&error, is_terminal) => {
            Err(Failure::new(Kind::Running, format!("can't write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Returns whether a write failed because nobody reads any more: a pipe without a reader, or a closed terminal.
fn is_of_no_reader(error: &io::Error, is_terminal: bool) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe || (is_terminal && error.raw_os_error() == Some(libc::EIO))
}

/// Returns whether a descriptor is a pipe that has no reader any more.
fn is_unread(descriptor: i32) -> bool {
    let mut state = libc::pollfd { fd: descriptor, events: 0, revents: 0 };
    // SAFETY: one valid entry, and no wait.
    let found = unsafe { libc::poll(&raw mut state, 1, 0) };
    found == 1 && state.revents & libc::POLLERR != 0
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::Write as _,
        os::fd::{FromRawFd as _, OwnedFd},
        ptr,
    };

    use tokio::runtime::Builder;

    use super::*;
    use crate::threads::testing::without_threads;

    #[test]
    fn where_lines_can_have_no_thread_nobody_reads_them() {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let beside = runtime.handle().clone();
        let readers = Readers::default();
        let outbox = Arc::new(Outbox::new(1, Format::Ndjson));
        let writing = without_threads(|| write_for(&readers, &outbox, io::sink(), beside));
        let why = writing.expect_err("no thread");
        assert!(why.to_string().contains("pids.max"), "{why}");
        assert_eq!(readers.count(), 0);
    }

    /// Returns a terminal without a user: the side to read from, and the side to write to.
    fn terminal() -> (OwnedFd, File) {
        let (mut reader, mut writer) = (-1, -1);
        // SAFETY: writes two descriptors; the other arguments may be null.
        let made = unsafe {
            libc::openpty(&raw mut reader, &raw mut writer, ptr::null_mut(), ptr::null(), ptr::null())
        };
        assert_eq!(made, 0, "{}", io::Error::last_os_error());
        // SAFETY: both are new and owned by nothing else.
        unsafe { (OwnedFd::from_raw_fd(reader), File::from_raw_fd(writer)) }
    }

    #[test]
    fn a_terminal_that_is_closed_is_a_good_end() {
        let (reader, mut writer) = terminal();
        let is_terminal = writer.is_terminal();
        drop(reader);
        let error = writer.write_all(b"a line\n").expect_err("nobody reads");
        outcome(Ok(Err(error)), is_terminal).expect("a good end");
    }

    #[test]
    fn a_disk_that_fails_is_no_good_end() {
        let error = io::Error::from_raw_os_error(libc::EIO);
        let failure = outcome(Ok(Err(error)), false).expect_err("lines are lost");
        assert_eq!(failure.kind, Kind::Running);
    }
}
