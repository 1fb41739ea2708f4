//! `events`: the calls of targets as lines on stdout.

use std::{
    io::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::AsyncWrite,
    runtime::Handle,
    task::JoinHandle,
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
    threads,
};

/// Text that may wait for whoever reads stdout.
const OUTBOX_BYTES: usize = 16 << 20;
/// How long whoever reads stdout may take for what is left at the end.
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

/// Writes a line for each event on stdout until the last target has ended, a signal comes or nobody reads any more.
pub fn events(config: EventsConfig) -> Result<(), Failure> {
    to_the_end(|beside| live(config, beside))
}

async fn live(config: EventsConfig, beside: Handle) -> Result<(), Failure> {
    let mut signalled = signalled(&beside)?;
    let EventsConfig { trace, format, filter } = config;
    let specs = trace.specs.clone();
    let attaching = threads::on_its_own(move || Trace::attach(&trace));
    let mut trace = tokio::select! {
        trace = attaching => trace??,
        // The kernel takes away what was attached when the process ends.
        _ = &mut signalled => return Ok(()),
    };
    // Events go on where nobody can be told.
    let _ = writeln!(io::stderr(), "attached");
    let readers = Arc::new(Readers::default());
    let mut writing = write_for(&readers, tokio::io::stdout(), format, &beside);
    let mut stream = EventStream::new(filter, Lines::new(format, specs), readers);
    let mut poll = interval(Trace::POLL_EVERY);
    poll.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut look = interval(LOOK_EVERY);
    loop {
        tokio::select! {
            _ = &mut signalled => break,
            written = &mut writing => return outcome(written),
            _ = look.tick() => if is_unread(libc::STDOUT_FILENO) { return Ok(()) },
            _ = poll.tick() => if !trace.poll(&mut stream) { break },
        }
    }
    trace.detach(&mut stream);
    drop(stream);
    if let Ok(written) = timeout(GRACE, writing).await {
        return outcome(written);
    }
    warn!("whoever reads stdout did not take the last lines in time");
    Ok(())
}

/// Starts to write lines for one more reader.
fn write_for(
    readers: &Readers,
    out: impl AsyncWrite + Unpin + Send + 'static,
    format: Format,
    beside: &Handle,
) -> JoinHandle<io::Result<()>> {
    let outbox = Arc::new(Outbox::new(OUTBOX_BYTES, format));
    readers.add(Arc::clone(&outbox));
    beside.spawn(async move { outbox.write_to(out).await })
}

/// A reader that goes is the end, and a good one.
fn outcome(written: Result<io::Result<()>, tokio::task::JoinError>) -> Result<(), Failure> {
    match written.map_err(io::Error::other).flatten() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Kind::Running, format!("can't write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Whether a descriptor is a pipe that nobody reads any more.
fn is_unread(descriptor: i32) -> bool {
    let mut state = libc::pollfd { fd: descriptor, events: 0, revents: 0 };
    // SAFETY: one valid entry; without waiting.
    let found = unsafe { libc::poll(&raw mut state, 1, 0) };
    found == 1 && state.revents & libc::POLLERR != 0
}
