//! `events`: the calls of targets as lines on stdout.

use std::{
    io::{self, Write as _},
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
    let readers = Arc::new(Readers::default());
    // Before anything is attached, so that no limit on threads can keep lines back later.
    let mut writing = write_for(&readers, io::stdout(), format, beside)?;
    let attaching = threads::on_its_own(move || Trace::attach(&trace));
    let mut trace = tokio::select! {
        trace = attaching => trace??,
        // The kernel takes away what was attached when the process ends.
        _ = &mut signalled => return Ok(()),
    };
    // Events go on where nobody can be told.
    let _ = writeln!(io::stderr(), "attached");
    let mut stream = EventStream::new(filter, Lines::new(format, specs), readers);
    let mut poll = interval(Trace::POLL_EVERY);
    poll.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut look = interval(LOOK_EVERY);
    // What came of the lines, where nobody will take any more.
    let unwanted = loop {
        tokio::select! {
            _ = &mut signalled => break None,
            written = &mut writing => break Some(outcome(written)),
            _ = look.tick() => if is_unread(libc::STDOUT_FILENO) { break Some(Ok(())) },
            _ = poll.tick() => if !trace.poll(&mut stream) { break None },
        }
    };
    // Says what limits have cost, whoever goes first.
    trace.detach(&mut stream);
    drop(stream);
    if let Some(result) = unwanted {
        return result;
    }
    if let Ok(written) = timeout(GRACE, writing).await {
        return outcome(written);
    }
    warn!("whoever reads stdout did not take the last lines in time");
    Ok(())
}

/// Starts to write lines for one more reader, who may take as long as it likes for each: on a thread of their own.
fn write_for(
    readers: &Readers,
    out: impl io::Write + Send + 'static,
    format: Format,
    beside: Handle,
) -> Result<Receiver<io::Result<()>>, NotDone> {
    let outbox = Arc::new(Outbox::new(OUTBOX_BYTES, format));
    let writing = {
        let outbox = Arc::clone(&outbox);
        threads::begin("lines", move || beside.block_on(outbox.write_blocking(out)))?
    };
    readers.add(outbox);
    Ok(writing)
}

/// A reader that goes is the end, and a good one.
fn outcome(written: Result<io::Result<()>, RecvError>) -> Result<(), Failure> {
    // A panic has been reported.
    match written.map_err(|_| NotDone::Panicked)? {
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

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;

    use super::*;
    use crate::threads::testing::without_threads;

    #[test]
    fn where_lines_can_have_no_thread_nobody_reads_them() {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let beside = runtime.handle().clone();
        let readers = Readers::default();
        let writing = without_threads(|| write_for(&readers, io::sink(), Format::Ndjson, beside));
        let why = writing.expect_err("no thread");
        assert!(why.to_string().contains("pids.max"), "{why}");
        assert_eq!(readers.count(), 0);
    }
}
