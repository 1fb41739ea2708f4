//! Push by OTLP, the OpenTelemetry protocol, over gRPC or HTTP.
//!
//! The SDK's exporter takes only what the SDK itself has measured, so the messages are made here, of the official
//! types (`opentelemetry-proto`). Nothing is queued: a round that fails sends nothing, and the next one sends the
//! state as it is by then. With delta temporality it sends what has been added since the last value that the collector
//! has taken, so a failure postpones and loses nothing, but what the collector throws away counts as taken. What a target
//! has counted by itself before it is first read is not sent so: an agent before this one may have. Of a target that has
//! ended the last state is sent until it is taken, and then nothing.

mod client;
mod message;
mod settings;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::oneshot,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tracing::{info, warn};

pub use client::Client;
pub use settings::{Settings, SettingsError, Temporality};

use crate::{metrics::otel::Telemetry, threads};
use client::{Again, Refused};
use message::{Batch, Taken};

/// The first pause before something is sent again; each one after it is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// For how long nothing is sent at most, whatever the collector says: it may mean hours, or have the number wrong.
const LONGEST_WAIT: Duration = Duration::from_mins(10);
/// How long the last round may take, when the agent ends, and the one that is under way then.
const LAST_ROUND: Duration = Duration::from_millis(400);

/// Has what is to be pushed.
pub trait Source: Send + Sync + 'static {
    /// All targets as they are now.
    fn telemetry(&self) -> Vec<State>;
}

/// A target's state.
#[derive(Clone, Debug)]
pub struct State {
    /// The target's pid.
    pub pid: u32,
    /// What there is to be told of it.
    pub telemetry: Telemetry,
    /// It has ended, and this is all that there will ever be.
    pub is_final: bool,
}

/// What became of the rounds.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// All was taken.
    pub sent: AtomicU64,
    /// Not all was taken, or not all of that was kept.
    pub failed: AtomicU64,
    /// Points that the collector has thrown away, as it said.
    pub rejected_points: AtomicU64,
}

/// Pushes rounds of metrics.
pub struct Exporter {
    settings: Settings,
    client: Client,
    source: Arc<dyn Source>,
    outcomes: Arc<Outcomes>,
    taken: Taken,
    /// Targets that have ended and whose last state was taken.
    done: BTreeSet<u32>,
    /// The target with which the next round begins, if that is not the first.
    begin_with: Option<u32>,
    /// When the collector wants to be asked again, if it has said so.
    not_before: Option<Instant>,
    /// Whether the last round was taken; `None` before the first.
    works: Option<bool>,
}

impl Exporter {
    /// An exporter that has not sent anything yet.
    pub fn new(settings: Settings, client: Client, source: Arc<dyn Source>, outcomes: Arc<Outcomes>) -> Self {
        Self {
            settings,
            client,
            source,
            outcomes,
            taken: Taken::default(),
            done: BTreeSet::new(),
            begin_with: None,
            not_before: None,
            works: None,
        }
    }

    /// Pushes at each interval until told to stop, and then once more.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut ticks = interval_at(Instant::now() + self.settings.interval, self.settings.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::select! {
            _ = &mut stop => return self.round(LAST_ROUND).await,
            // What is counted from a first reading on is counted from here. If this fails, the first round has that reading.
            _ = self.gather() => {}
        }
        loop {
            tokio::select! {
                _ = &mut stop => break,
                _ = ticks.tick() => {}
            }
            if self.not_before.is_some_and(|then| Instant::now() < then) {
                continue;
            }
            let mut round = std::pin::pin!(self.round(self.settings.export_timeout));
            tokio::select! {
                () = &mut round => continue,
                _ = &mut stop => {}
            }
            // The collector may have what is under way: given up too early it would be sent once more.
            let _ = tokio::time::timeout(LAST_ROUND, round).await;
            break;
        }
        self.round(LAST_ROUND).await;
    }

    /// One round. Says when it is the first, or differs from the one before.
    async fn round(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let rejected_before = self.rejected_points();
        let result = match tokio::time::timeout_at(deadline, self.push(deadline)).await {
            Ok(result) => result,
            Err(_) => Err("no answer in time".to_owned()),
        };
        // What the collector has thrown away it has taken: no difference is sent again, nor the last state of a target that has
        // ended. Else the next round has newer values.
        let is_whole = result.is_ok() && self.rejected_points() == rejected_before;
        let outcome = if is_whole { &self.outcomes.sent } else { &self.outcomes.failed };
        outcome.fetch_add(1, Ordering::Relaxed);
        let endpoint = &self.settings.endpoint;
        match (&result, self.works) {
            (Ok(()), None) => info!("OTLP: metrics go to {endpoint}"),
            (Ok(()), Some(false)) => info!("OTLP: metrics go to {endpoint} again"),
            (Err(why), None | Some(true)) => {
                warn!("OTLP: metrics can't be sent to {endpoint}, which is tried on: {why}");
            }
            _ => {}
        }
        self.works = Some(result.is_ok());
    }

    /// All that there is to be sent, and when it was so.
    async fn gather(&mut self) -> Result<(Vec<State>, u64), String> {
        let source = Arc::clone(&self.source);
        let states = threads::on_its_own(move || source.telemetry());
        let mut states = states.await.map_err(|error| error.to_string())?;
        let now = unix_ns(SystemTime::now());
        states.retain(|state| !self.done.contains(&state.pid));
        if self.settings.temporality == Temporality::Delta {
            for State { pid, telemetry, .. } in &states {
                self.taken.begin(*pid, telemetry, now);
            }
        }
        Ok((states, now))
    }

    /// Sends all that there is, target by target; the first error is told. What is refused holds up no other target, unless
    /// the collector wants nothing for longer than there is time.
    async fn push(&mut self, deadline: Instant) -> Result<(), String> {
        let (mut states, now) = self.gather().await?;
        let first = states.iter().position(|state| self.begin_with == Some(state.pid));
        states.rotate_left(first.unwrap_or(0));
        let temporality = self.settings.temporality;
        let mut result = Ok(());
        for (place, State { pid, telemetry, is_final }) in states.iter().enumerate() {
            // Here the next round goes on if this one ends. But not where this one has begun: what takes all of the time may
            // do so again.
            self.begin_with = states.get(place.max(1)).map(|state| state.pid);
            let mut is_taken = true;
            for batch in message::batches(*pid, telemetry, now, temporality, &self.taken) {
                let Err(Refused { why, again }) = self.send(&batch, deadline).await else {
                    self.taken.add(batch);
                    continue;
                };
                is_taken = false;
                result = result.and(Err(why));
                match again {
                    // The next message may be taken all the same.
                    Again::Never => {}
                    // Or the next target's.
                    Again::AfterPause => break,
                    Again::After(wait) => {
                        self.not_before = Some(Instant::now() + wait.min(LONGEST_WAIT));
                        return result;
                    }
                }
            }
            if *is_final && is_taken {
                self.done.insert(*pid);
            }
        }
        self.begin_with = None;
        result
    }

    /// Sends a batch, again and again while that makes sense and there is time.
    async fn send(&self, batch: &Batch, deadline: Instant) -> Result<(), Refused> {
        let mut pause = FIRST_PAUSE;
        loop {
            let attempt = tokio::time::timeout(self.settings.timeout, self.client.send(&batch.request)).await;
            let refused = match attempt {
                Ok(Ok(reply)) => {
                    self.note_rejected(reply.rejected_points, &reply.message);
                    return Ok(());
                }
                Ok(Err(refused)) => refused,
                Err(_) => Refused::for_now("no answer in time", None),
            };
            let wait = match refused.again {
                Again::Never => return Err(refused),
                Again::AfterPause => with_jitter(pause),
                // Never sooner than by one's own choice: it may say "at once", again and again.
                Again::After(wait) => wait.max(with_jitter(pause)),
            };
            // It may also say a time that no clock gets to.
            if Instant::now().checked_add(wait).is_none_or(|then| then >= deadline) {
                return Err(refused);
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn rejected_points(&self) -> u64 {
        self.outcomes.rejected_points.load(Ordering::Relaxed)
    }

    fn note_rejected(&self, points: u64, message: &str) {
        if points > 0 && self.outcomes.rejected_points.fetch_add(points, Ordering::Relaxed) == 0 {
            warn!("OTLP: the collector has thrown {points} points away; more are only counted: {message}");
        }
    }
}

/// Between half of the pause and all of it, so that many agents do not come at once.
fn with_jitter(pause: Duration) -> Duration {
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    pause / 2 + (pause / 2).mul_f64(f64::from(nanoseconds % 1_000) / 1_000.0)
}

/// Nanoseconds since 1970, as OTLP has times.
#[must_use]
pub fn unix_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// An error with all that it came of.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            let _ = write!(text, ": {cause}");
        }
        source = error.source();
    }
    text
}
