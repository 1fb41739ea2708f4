//! `events`: the calls of targets as lines on stdout.

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

/// Text that may wait for whoever reads stdout.
const OUTBOX_BYTES: usize = 16 << 20;
/// How long whoever reads stdout may take for what is left after a signal.
const GRACE: Duration = Duration::from_secs(1);
/// How often to see whether anyone still reads stdout.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What `events` is to do, validated.
#[derive(Debug)]
pub struct EventsConfig {
    /// What to trace.
    pub trace: TraceConfig,
    /// How lines look.
    pub format: Format,
    /// Which calls are wanted.
    pub filter: Filter,
}

/// Why there are no more calls to write down.
enum End {
    /// The last target has ended.
    NoTarget,
    /// A signal has come.
    Signal,
    /// Nobody takes any more lines; what came of them.
    Unread(Result<(), Failure>),
}

/// Writes a line for each event on stdout until the last target has ended and its lines are taken, a signal comes or nobody
/// reads any more. Calls `attached` when events come from then on.
pub fn events(config: EventsConfig, attached: impl FnOnce()) -> Result<(), Failure> {
    to_the_end(|beside| live(config, attached, beside))
}

async fn live(config: EventsConfig, attached: impl FnOnce(), beside: Handle) -> Result<(), Failure> {
    let mut signalled = signalled(&beside)?;
    let EventsConfig { trace, format, filter } = config;
    let specs = trace.specs.clone();
    let readers = Arc::new(Readers::default());
    let outbox = Arc::new(Outbox::new(OUTBOX_BYTES, format));
    // Asked now: one that is closed is none any more.
    let is_terminal = io::stdout().is_terminal();
    let outcome = |written| outcome(written, is_terminal);
    // Before anything is attached, so that no limit on threads can keep lines back later.
    let mut writing = write_for(&readers, &outbox, io::stdout(), beside)?;
    let attaching = threads::on_its_own(move || Trace::attach(&trace));
    let mut trace = tokio::select! {
        trace = attaching => trace??,
        // The kernel takes away what was attached when the process ends.
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
    // Says what limits have cost, whoever goes first.
    trace.detach(&mut stream);
    drop(stream);
    match end {
        End::Unread(result) => return result,
        End::Signal => {}
        // Nothing is attached any more: the reader may take as long as it likes.
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

/// Starts to write lines for one more reader, who may take as long as it likes for each: on a thread of their own.
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

/// A reader that goes is the end, and a good one.
fn outcome(written: Result<io::Result<()>, RecvError>, is_terminal: bool) -> Result<(), Failure> {
    // A panic has been reported.
    match written.map_err(|_| NotDone::Panicked)? {
        Err(error) if !is_of_no_reader(&error, is_terminal) => {
            Err(Failure::new(Kind::Running, format!("can't write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Whether writing fails so since nobody reads any more: a pipe, or a terminal that is closed.
fn is_of_no_reader(error: &io::Error, is_terminal: bool) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe || (is_terminal && error.raw_os_error() == Some(libc::EIO))
}

/// Whether a descriptor is a pipe that nobody reads any more.
fn is_unread(descriptor: i32) -> bool {
    let mut state = libc::pollfd { fd: descriptor, events: 0, revents: 0 };
    // SAFETY: one valid entry; without waiting.
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

    /// A terminal without anyone at it: the side that reads what is written, and the side that is written to.
    fn terminal() -> (OwnedFd, File) {
        let (mut reader, mut writer) = (-1, -1);
        // SAFETY: writes two descriptors; what may be null is.
        let made = unsafe {
            libc::openpty(&raw mut reader, &raw mut writer, ptr::null_mut(), ptr::null(), ptr::null())
        };
        assert_eq!(made, 0, "{}", io::Error::last_os_error());
        // SAFETY: they are new, and nobody else's.
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
