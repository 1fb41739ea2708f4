//! The life of a run: bind, attach, drain until the end, detach, exit.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::{MissedTickBehavior, interval},
};
use tracing::info;

use super::{
    RunConfig,
    board::Board,
    prepare::prepare,
    watch::{CHECK_EVERY, DRAIN_EVERY, Watch},
};
use crate::{
    export::http,
    failure::{Failure, Kind},
    pipeline::Tracer,
};

/// Those who get the calls beside the aggregation.
type Tracers = Vec<Box<dyn Tracer + Send>>;

/// How long programs may still be running that were entered before their probe was taken away.
const LAST_RECORDS: Duration = Duration::from_millis(10);

/// Watches the targets until they have all ended and the linger is over, or a signal comes.
pub fn run(config: RunConfig) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Kind::Running, format!("can't start: {error}")))?;
    let result = runtime.block_on(live(config));
    // Connections that are still open end with the process.
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

    let board = Arc::new(Board::new(&config));
    let (stop_serving, stopped) = oneshot::channel::<()>();
    let backend: Arc<dyn http::Backend> = board.clone();
    let server = tokio::spawn(http::serve(listener, backend, async move {
        let _ = stopped.await;
    }));

    let mut lifetime = Lifetime::new(config.linger);
    let attaching = {
        let board = Arc::clone(&board);
        tokio::task::spawn_blocking(move || attach_all(&config, &board))
    };
    let mut watches = tokio::select! {
        watches = attaching => watches.map_err(|error| Failure::new(Kind::Running, error.to_string()))??,
        // The kernel takes away what was attached when the process ends.
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    board.set_ready(true);
    let mut tracers: Tracers = Vec::new();
    let mut drain = interval(DRAIN_EVERY);
    drain.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut check = interval(CHECK_EVERY);
    check.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = drain.tick() => drain_all(&mut watches, &mut tracers),
            _ = check.tick() => {
                tokio::task::block_in_place(|| watches.iter_mut().for_each(|watch| watch.check(&mut tracers)));
                if lifetime.is_over(watches.iter().any(Watch::is_up)) {
                    break;
                }
            }
        }
    }
    board.set_ready(false);
    tokio::task::block_in_place(|| finish(&mut watches, &mut tracers));
    let _ = stop_serving.send(());
    let _ = tokio::time::timeout(Duration::from_millis(500), server).await;
    Ok(())
}

fn attach_all(config: &RunConfig, board: &Board) -> Result<Vec<Watch>, Failure> {
    let prepared = prepare(config)?;
    let mut watches = Vec::with_capacity(prepared.len());
    for prepared in prepared {
        watches.push(Watch::attach(prepared, config, board.ladder())?);
    }
    for watch in &watches {
        board.add(watch.face());
    }
    Ok(watches)
}

/// Takes everything out of the rings of the targets that are there.
fn drain_all(watches: &mut [Watch], tracer: &mut dyn Tracer) {
    for watch in watches.iter_mut().filter(|watch| watch.is_up()) {
        watch.drain(tracer);
    }
    tracer.flush();
}

/// Detaches everything at once, takes what is left, and says what it came to.
fn finish(watches: &mut [Watch], tracer: &mut dyn Tracer) {
    std::thread::scope(|scope| {
        for watch in watches.iter_mut().filter(|watch| watch.is_up()) {
            scope.spawn(|| watch.detach());
        }
    });
    std::thread::sleep(LAST_RECORDS);
    for watch in watches.iter_mut() {
        watch.drain(tracer);
        watch.set_down();
    }
    tracer.flush();
    let (calls, untimed) =
        watches.iter().map(Watch::summary).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let targets = watches.len();
    if watches.iter().any(Watch::has_calls) {
        info!("detached: {calls} calls counted in {targets} targets, {untimed} of them without a duration");
    } else {
        info!("done: no calls were watched in {targets} targets");
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
