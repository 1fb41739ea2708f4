//! The life of a run: bind, attach, drain until the end, detach, exit.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};

use super::{
    RunConfig,
    board::Board,
    overhead::{Goal, HitCosts, Overheads, measured_before},
    prepare::{Prepared, prepare},
    watch::{CHECK_EVERY, Checked, DRAIN_EVERY, Watch},
};
use crate::{
    events::{EventSocket, EventStream, Filter, Format, Lines, Readers},
    export::{http, otlp},
    failure::{Failure, Kind, advice_on_system},
    pipeline::{Ladder, Tracer},
};

/// How long readers may take for their last lines and answers.
const GRACE: Duration = Duration::from_millis(500);

/// Those who get the calls beside the aggregation.
type Tracers = Vec<Box<dyn Tracer + Send>>;

/// How long rings in which little waits are left alone, where nobody wants each call by itself.
const LEAVE_ALONE: Duration = Duration::from_secs(1);

/// How long programs may still be running that were entered before their probe was taken away.
const LAST_RECORDS: Duration = Duration::from_millis(10);

/// Watches the targets until they have all ended and the linger is over, or a signal comes.
pub fn run(config: RunConfig) -> Result<(), Failure> {
    to_the_end(live(config))
}

/// Runs to its end what waits for signals, targets and readers.
pub(super) fn to_the_end(life: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(
            |error| Failure::new(Kind::Running, format!("can't start: {error}{}", advice_on_system(&error))),
        )?;
    let result = runtime.block_on(life);
    // Connections that are still open, and writes under way, end with the process.
    runtime.shutdown_background();
    result
}

async fn live(config: RunConfig) -> Result<(), Failure> {
    let failed = |error| Failure::new(Kind::Running, format!("can't wait for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let listener = http::bind(&config.listen).await?;
    let address = listener.local_addr().map_err(|error| Failure::new(Kind::Address, error.to_string()))?;
    info!("listening on http://{address}");

    let socket = config.event_socket.as_deref().map(EventSocket::bind).transpose()?;
    let readers = socket.is_some().then(Arc::<Readers>::default);

    let board = Arc::new(Board::new(&config, readers.clone()));
    let (stop_serving, stopped) = oneshot::channel::<()>();
    let backend: Arc<dyn http::Backend> = board.clone();
    let server = tokio::spawn(http::serve(listener, backend, async move {
        let _ = stopped.await;
    }));

    let pusher = pusher(&config, &board)?;
    let mut lifetime = Lifetime::new(config.linger);
    let goal = Goal { budget: config.overhead_budget, latency: config.latency, links: config.links };
    let specs = config.specs.clone();
    let attaching = {
        let board = Arc::clone(&board);
        tokio::task::spawn_blocking(move || attach_all(&config, &board))
    };
    let (mut watches, hit_costs) = tokio::select! {
        watches = attaching => watches.map_err(|error| Failure::new(Kind::Running, error.to_string()))??,
        // The kernel takes away what was attached when the process ends.
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let mut tracers: Tracers = Vec::new();
    if let Some(calls) = board.slow_calls() {
        tracers.push(Box::new(calls));
    }
    let mut event_server = None;
    if let (Some(socket), Some(readers)) = (socket, readers) {
        let lines = Lines::new(Format::Ndjson, specs);
        tracers.push(Box::new(EventStream::new(Filter::default(), lines, Arc::clone(&readers))));
        event_server = Some(EventServer::start(socket, readers));
    }
    let (stop_pushing, stopped) = oneshot::channel::<()>();
    let pusher = pusher.map(|pusher| tokio::spawn(pusher.run(stopped)));
    // Who reads events gets them soon.
    let leave_alone = if event_server.is_some() { DRAIN_EVERY * 3 / 2 } else { LEAVE_ALONE };
    board.looks().open();
    board.set_ready(true);
    let mut overheads = Overheads::new(goal, hit_costs, &watches, &board);
    let mut drain_tick = interval(DRAIN_EVERY);
    drain_tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut check_tick = interval(CHECK_EVERY);
    check_tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = board.looks().asked() => board.looks().take(|| look(&mut watches, &mut tracers)),
            _ = drain_tick.tick() => pass(&mut watches, leave_alone, &mut tracers),
            _ = check_tick.tick() => {
                tokio::task::block_in_place(|| {
                    check(&mut watches, &mut tracers);
                    overheads.look(&mut watches, &board);
                });
                if lifetime.is_over(watches.iter().any(Watch::is_up)) {
                    break;
                }
            }
        }
    }
    board.set_ready(false);
    tokio::task::block_in_place(|| finish(&mut watches, &mut tracers));
    board.looks().close();
    // Tells the readers that this was all.
    drop(tracers);
    let _ = stop_serving.send(());
    let events = async {
        if let Some(server) = event_server {
            server.stop().await;
        }
    };
    let _ = stop_pushing.send(());
    let push = async {
        if let Some(pusher) = pusher {
            let _ = pusher.await;
        }
    };
    // A push has its own limit.
    let readers = tokio::time::timeout(GRACE, async { tokio::join!(server, events) });
    let _ = tokio::join!(readers, push);
    Ok(())
}

/// What pushes by OTLP, if it is asked for.
fn pusher(config: &RunConfig, board: &Arc<Board>) -> Result<Option<otlp::Exporter>, Failure> {
    let (Some(settings), Some(outcomes)) = (config.otlp.clone(), board.pushes()) else { return Ok(None) };
    let client =
        otlp::Client::new(&settings).map_err(|error| Failure::new(Kind::Usage, format!("OTLP: {error}")))?;
    Ok(Some(otlp::Exporter::new(settings, client, board.clone(), outcomes)))
}

/// Lets programs read events.
struct EventServer {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl EventServer {
    fn start(socket: EventSocket, readers: Arc<Readers>) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            if let Err(error) = socket.serve(readers, stopped).await {
                warn!("events can't be read: {error}");
            }
        });
        Self { stop, task }
    }

    /// Lets nobody in any more, and waits until those who are there have their last lines.
    async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

/// Attaches to every target; gives what a hit of a probe costs too, where that had to be known before.
fn attach_all(config: &RunConfig, board: &Board) -> Result<(Vec<Watch>, Option<HitCosts>), Failure> {
    let prepared = prepare(config)?;
    let hit_costs = measured_before(config, &prepared)?;
    let watches = attach(prepared, config, board.ladder())?;
    for watch in &watches {
        board.add(watch.face());
    }
    Ok((watches, hit_costs))
}

/// Attaches to every target; whatever fails leaves nothing attached.
///
/// The kernel's part is done for several targets side by side, everything that is written to the log in their order.
pub(super) fn attach(
    prepared: Vec<Prepared>,
    config: &RunConfig,
    ladder: &Arc<Ladder>,
) -> Result<Vec<Watch>, Failure> {
    let checked = prepared.into_iter().map(|prepared| Checked::new(prepared, config));
    let checked = checked.collect::<Result<Vec<_>, _>>()?;
    let begun = side_by_side(checked, |checked| checked.attach(config))?;
    begun.into_iter().map(|begun| Watch::new(begun, config, ladder)).collect()
}

/// Does a job for each of these on a few threads; gives the results in their order, or the first failure in that order.
/// What was not begun when a job failed is left undone.
fn side_by_side<T: Send, R: Send, E: Send>(
    jobs: Vec<T>,
    work: impl Fn(T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = (processors * THREADS_PER_PROCESSOR).min(jobs.len());
    let queue = Mutex::new(jobs.into_iter().enumerate());
    let results = Mutex::new(BTreeMap::new());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let keep = |index, result| results.lock().unwrap_or_else(PoisonError::into_inner).insert(index, result);
    let has_failed = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                // Looked at first: a job that was taken is done, so none before the first failure is missed.
                while !has_failed.load(Ordering::Relaxed) {
                    let Some((index, job)) = next() else { break };
                    let result = work(job);
                    has_failed.fetch_or(result.is_err(), Ordering::Relaxed);
                    keep(index, result);
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}

/// For some of the time of attaching the kernel lets all processors do something else once.
const THREADS_PER_PROCESSOR: usize = 2;

/// Takes everything out of the rings of the targets that are there.
pub(super) fn drain(watches: &mut [Watch], tracer: &mut dyn Tracer) {
    each_up(watches, |watch| watch.drain(tracer));
    tracer.flush();
}

/// Drains the rings in which much waits, or which were left alone for so long.
fn pass(watches: &mut [Watch], leave_alone: Duration, tracer: &mut dyn Tracer) {
    each_up(watches, |watch| watch.pass(leave_alone, tracer));
    tracer.flush();
}

/// Drains all rings and publishes what there is.
fn look(watches: &mut [Watch], tracer: &mut dyn Tracer) {
    each_up(watches, |watch| watch.look(tracer));
    tracer.flush();
}

fn each_up(watches: &mut [Watch], act: impl FnMut(&mut Watch)) {
    watches.iter_mut().filter(|watch| watch.is_up()).for_each(act);
}

/// Looks after every target.
pub(super) fn check(watches: &mut [Watch], tracer: &mut dyn Tracer) {
    for watch in watches {
        watch.check(tracer);
    }
}

/// Detaches everything at once, takes what is left, and says what it came to.
pub(super) fn finish(watches: &mut [Watch], tracer: &mut dyn Tracer) {
    thread::scope(|scope| {
        for watch in watches.iter_mut().filter(|watch| watch.is_up()) {
            scope.spawn(|| watch.detach());
        }
    });
    thread::sleep(LAST_RECORDS);
    for watch in watches.iter_mut() {
        watch.look(tracer);
        watch.set_down();
    }
    tracer.flush();
    let (calls, untimed) =
        watches.iter().map(Watch::summary).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let targets = match watches.len() {
        1 => "1 target".to_owned(),
        several => format!("{several} targets"),
    };
    if watches.iter().any(Watch::has_calls) {
        info!("detached: {calls} calls counted in {targets}, {untimed} of them without a duration");
    } else {
        info!("done: no calls were watched in {targets}");
    }
}

/// When the run is over without a signal: some time after the last target has ended.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_keep_their_order_whoever_is_done_first() {
        let work = |job: u64| {
            thread::sleep(Duration::from_millis(10 - job));
            Ok::<_, u64>(job * 2)
        };
        assert_eq!(side_by_side((0..10).collect(), work), Ok((0..10).map(|job| job * 2).collect()));
        assert_eq!(side_by_side(Vec::new(), work), Ok(Vec::new()));
    }

    #[test]
    fn the_first_failure_counts_and_ends_it() {
        let begun = Mutex::new(Vec::new());
        let work = |job: u64| {
            begun.lock().unwrap().push(job);
            // The second to fail is there first.
            thread::sleep(Duration::from_millis(if job == 2 { 20 } else { 1 }));
            if job < 2 { Ok(job) } else { Err(job) }
        };
        assert_eq!(side_by_side((0..1_000).collect(), work), Err(2));
        assert!(begun.into_inner().unwrap().len() < 1_000);
    }
}
