//! The life of a run: bind, attach, drain until the end, detach, exit.

use std::{
    future::pending,
    mem, ptr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    net::TcpListener,
    runtime::{Builder, Handle},
    signal::unix::{SignalKind, signal},
    sync::oneshot::{self, Receiver},
    task::{JoinError, JoinHandle},
    time::timeout,
};
use tracing::{info, warn};

use super::{
    Latency, RunConfig, WatchConfig,
    board::Board,
    overhead::{Goal, HitCosts, Overheads, measured_before},
    prepare::prepare,
    refreshes::Woken,
    watches::{CHECK_EVERY, Watches},
};
use crate::{
    descriptors::advice_on_system,
    events::{EventSocket, EventStream, Filter, Format, Lines, Readers},
    export::{http, otlp},
    failure::{Failure, Kind},
    metrics::Family,
    pipeline::Tracer,
    threads::{self, NotDone},
};

/// How long readers may take for their last lines and answers.
const GRACE: Duration = Duration::from_millis(500);

/// The consumers of calls besides the aggregation.
type Tracers = Vec<Box<dyn Tracer + Send>>;

/// How long a ring with few records is left alone, where nobody reads single calls. A ring that fills is drained
/// sooner, and every refresh drains all rings.
const LEAVE_ALONE: Duration = Duration::from_secs(5);

/// Watches the targets until all of them have ended and the linger time is over, or a signal arrives.
pub fn run(config: RunConfig) -> Result<(), Failure> {
    to_the_end(|beside| live(config, beside))
}

/// Runs `life`, which waits for signals and targets, to its end on this thread. `life` may block, and only its own
/// timers wake the thread. Tasks that wait for peers run on another thread, `beside`.
///
/// That thread is not one of tokio's: tokio panics if it can't create one.
pub(super) fn to_the_end<L>(life: impl FnOnce(Handle) -> L) -> Result<(), Failure>
where
    L: Future<Output = Result<(), Failure>>,
{
    let failed =
        |error| Failure::new(Kind::Running, format!("can't start: {error}{}", advice_on_system(&error)));
    let beside = Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let own = Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let peers = beside.handle().clone();
    let (end, ended) = oneshot::channel::<()>();
    let serve = move || {
        // Always an error: the sender was dropped.
        let _ = beside.block_on(ended);
        // Open connections and writes under way end with the process.
        beside.shutdown_background();
    };
    thread::Builder::new().name("peers".to_owned()).spawn(serve).map_err(NotDone::NoThread)?;
    let result = own.block_on(life(peers));
    own.shutdown_background();
    drop(end);
    result
}

/// Returns the failure of a task that has panicked, which was already reported.
fn broken(error: &JoinError) -> Failure {
    Failure::new(Kind::Running, error.to_string())
}

async fn live(config: RunConfig, beside: Handle) -> Result<(), Failure> {
    let mut signalled = signalled(&beside)?;
    let Some(listener) = bind(&config.listen, &beside, &mut signalled).await? else { return Ok(()) };
    say_what_is_not_counted(&config.watch);

    let socket = config.event_socket.as_deref().map(EventSocket::bind).transpose()?;
    let readers = socket.is_some().then(Arc::<Readers>::default);

    let board = Arc::new(Board::new(&config, readers.clone()));
    let backend: Arc<dyn http::Backend> = board.clone();
    let losses = board.http_losses();
    let server = Served::start(&beside, |stop| http::serve(listener, backend, losses, told(stop)));

    let exporter = exporter(config.otlp.clone(), &board, &beside)?;
    let lifetime = Lifetime::new(config.linger);
    let goal = Goal::of(&config.watch);
    let specs = config.watch.specs.clone();
    let Some((mut watches, hit_costs)) = attach(config, &board, &mut signalled).await? else {
        return Ok(());
    };
    let mut tracers: Tracers = Vec::new();
    if let Some(calls) = board.slow_calls() {
        tracers.push(Box::new(calls));
    }
    let events = socket.zip(readers).map(|(socket, readers)| {
        let lines = Lines::new(Format::Ndjson, specs);
        tracers.push(Box::new(EventStream::new(Filter::default(), lines, Arc::clone(&readers))));
        Served::start(&beside, |stop| serve_events(socket, readers, stop))
    });
    let pusher = exporter.map(|exporter| Served::start(&beside, |stop| exporter.run(stop)));
    let peers = Peers { server, pusher, events };
    let ending = Arc::clone(&board);
    beside.spawn(async move {
        let _ = signalled.await;
        ending.refreshes().end();
    });
    // Readers of events get them at each pass.
    let leave_alone = if peers.events.is_some() { Duration::ZERO } else { LEAVE_ALONE };
    board.refreshes().open();
    board.set_ready(true);
    let overheads = Overheads::new(goal, hit_costs, watches.all(), &board);
    main_loop(&mut watches, overheads, (lifetime, leave_alone), &board, &mut tracers);
    board.set_ready(false);
    watches.finish(&mut tracers);
    board.refreshes().close();
    // Signals to the readers that this was all.
    drop(tracers);
    peers.end().await;
    Ok(())
}

/// Binds the address that peers connect to; `None` if a signal arrives first.
async fn bind(
    listen: &http::Listen,
    beside: &Handle,
    signalled: &mut JoinHandle<()>,
) -> Result<Option<TcpListener>, Failure> {
    let listen = listen.clone();
    let binding = beside.spawn(async move { http::bind(&listen).await });
    // Resolving a name may take long.
    let listener = tokio::select! {
        listener = binding => listener.map_err(|error| broken(&error))??,
        () = signalled_early(signalled) => return Ok(None),
    };
    let address = listener.local_addr().map_err(|error| Failure::new(Kind::Address, error.to_string()))?;
    info!("listening on http://{address}");
    Ok(Some(listener))
}

/// Attaches to every target; `None` if a signal arrives first.
async fn attach(
    config: RunConfig,
    board: &Arc<Board>,
    signalled: &mut JoinHandle<()>,
) -> Result<Option<(Watches, Option<HitCosts>)>, Failure> {
    let board = Arc::clone(board);
    tokio::select! {
        attached = threads::on_its_own(move || attach_all(&config, &board)) => attached?.map(Some),
        // The kernel removes what was attached when the process ends.
        () = signalled_early(signalled) => Ok(None),
    }
}

/// Resolves when a signal arrives before all targets are attached, and logs the result of the run.
async fn signalled_early(signalled: &mut JoinHandle<()>) {
    let _ = signalled.await;
    info!("ended before the targets were attached: no calls counted");
}

/// Logs where OpenTelemetry's metrics miss calls: they count calls only in histograms of durations.
fn say_what_is_not_counted(config: &WatchConfig) {
    const WHAT: &str = "OpenTelemetry's histograms have only those calls of Kitex that are timed, so their counts are \
                        not those of all calls: monitor_calls_total has these";
    if !config.metrics.contains(Family::Otel) {
        return;
    }
    if config.latency != Latency::Full {
        warn!("with --latency economy {WHAT}");
    } else if let Some(budget) = config.overhead_budget {
        info!("as long as --overhead-budget {budget} leaves out durations {WHAT}");
    }
}

/// Starts a task that ends when a signal asks this process to end.
pub(super) fn signalled(beside: &Handle) -> Result<JoinHandle<()>, Failure> {
    let failed = |error| Failure::new(Kind::Running, format!("can't wait for signals: {error}"));
    // Signals are delivered by this runtime's driver.
    let _beside = beside.enter();
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    // A terminal sends SIGHUP when it closes. A process started by nohup(1) must keep running.
    let hangup = (!is_ignored(libc::SIGHUP)).then(|| signal(SignalKind::hangup()));
    let mut hangup = hangup.transpose().map_err(failed)?;
    Ok(beside.spawn(async move {
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hung_up => {}
        }
    }))
}

/// Returns whether this process ignores a signal, as its parent has chosen.
fn is_ignored(signal: i32) -> bool {
    // SAFETY: all zeros are a valid value: no handler, no flags, no signals.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: changes no action, and writes only to the valid value.
    let found = unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) };
    found == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Drains rings, answers requests for a refresh, and checks the targets, until the run is over or a signal arrives.
///
/// Runs on a thread that waits on a condition variable, not as a task: most of the time of a wakeup goes to code that
/// is in no cache, and tokio's would be most of that code.
fn main_loop(
    watches: &mut Watches,
    mut overheads: Overheads,
    (mut lifetime, leave_alone): (Lifetime, Duration),
    board: &Board,
    tracers: &mut Tracers,
) {
    let now = Instant::now();
    let (mut next_pass, mut next_check) = (now, now);
    loop {
        match board.refreshes().wait(next_pass) {
            Woken::ToEnd => return,
            Woken::Asked => board.refreshes().answer(|| {
                overheads.refresh(watches.all_mut());
                watches.publish(tracers);
            }),
            Woken::InTime => {
                let again = watches.pass(leave_alone, tracers);
                let is_time = Instant::now() >= next_check;
                if is_time {
                    watches.check(tracers);
                    overheads.tick(watches.all_mut(), board);
                    if lifetime.is_over(watches.any_up()) {
                        return;
                    }
                }
                // Counted from now, so that requests for a refresh get a turn however long this took.
                let now = Instant::now();
                next_pass = now + again;
                if is_time {
                    next_check = now + CHECK_EVERY;
                }
            }
        }
    }
}

/// Returns what pushes by OTLP, if requested.
fn exporter(
    settings: Option<otlp::Settings>,
    board: &Arc<Board>,
    beside: &Handle,
) -> Result<Option<otlp::Exporter>, Failure> {
    let (Some(settings), Some(outcomes)) = (settings, board.pushes()) else { return Ok(None) };
    // The client spawns tasks of its own.
    let _beside = beside.enter();
    let client =
        otlp::Client::new(&settings).map_err(|error| Failure::new(Kind::Usage, format!("OTLP: {error}")))?;
    Ok(Some(otlp::Exporter::new(settings, client, board.clone(), outcomes)))
}

/// Serves events to programs until `stop`, then until the connected readers have their last lines.
async fn serve_events(socket: EventSocket, readers: Arc<Readers>, stop: Receiver<()>) {
    if let Err(error) = socket.serve(readers, told(stop)).await {
        warn!("events can't be read: {error}");
    }
}

/// Resolves when the sender asks to stop, or is dropped.
async fn told(stop: Receiver<()>) {
    let _ = stop.await;
}

/// A task that runs beside the loop until it is stopped.
struct Served {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Served {
    fn start<T>(beside: &Handle, task: impl FnOnce(Receiver<()>) -> T) -> Self
    where
        T: Future<Output = ()> + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel();
        Self { stop, task: beside.spawn(task(stopped)) }
    }

    /// Stops the task, and waits until it has ended.
    async fn end(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

/// The tasks that serve peers beside the loop.
struct Peers {
    server: Served,
    pusher: Option<Served>,
    events: Option<Served>,
}

impl Peers {
    /// Lets all of them send their last answers and lines at the same time.
    async fn end(self) {
        let Self { server, pusher, events } = self;
        // A push has a timeout of its own.
        let push = async {
            if let Some(pusher) = pusher {
                pusher.end().await;
            }
        };
        let events = async {
            if let Some(events) = events
                && timeout(GRACE, events.end()).await.is_err()
            {
                warn!("readers of events did not take their last lines in time");
            }
        };
        let _ = tokio::join!(timeout(GRACE, server.end()), push, events);
    }
}

/// Attaches to every target. Also returns what a probe hit costs, if that had to be measured first.
fn attach_all(config: &RunConfig, board: &Board) -> Result<(Watches, Option<HitCosts>), Failure> {
    let prepared = prepare(&config.pids, &config.watch)?;
    let hit_costs = measured_before(&config.watch, &prepared)?;
    let watches = Watches::attach(prepared, &config.watch, board.ladder())?;
    for watch in watches.all() {
        board.add(watch.face());
    }
    Ok((watches, hit_costs))
}

/// Decides when the run ends without a signal: some time after the last target has ended.
struct Lifetime {
    linger: Duration,
    alone_since: Option<Instant>,
}

impl Lifetime {
    fn new(linger: Duration) -> Self {
        Self { linger, alone_since: None }
    }

    fn is_over(&mut self, any_up: bool) -> bool {
        if any_up {
            return false;
        }
        let since = *self.alone_since.get_or_insert_with(|| {
            info!("no target is left; serving for another {} s", self.linger.as_secs());
            Instant::now()
        });
        since.elapsed() >= self.linger
    }
}
