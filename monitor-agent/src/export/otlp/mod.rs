//! Push over OTLP, the OpenTelemetry protocol, by gRPC or HTTP.
//!
//! The SDK's exporter takes only what the SDK itself has measured, so the messages are built here from the official
//! types (`opentelemetry-proto`). Nothing is queued: a round that fails sends nothing, and the next one sends the
//! current state. With delta temporality a round sends the difference from the last value that the collector took. So a
//! failure delays data but loses none; only points that the collector rejects count as taken. What a target had counted
//! by itself before its first reading is not part of a difference: an earlier agent may have sent it. The last state of
//! a target that has ended is sent until it is taken.

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

/// The first pause before a retry. Each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause before a retry, unless the collector gives a time.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// The longest pause between rounds that a collector can ask for. It may ask for hours, or by mistake.
const LONGEST_WAIT: Duration = Duration::from_mins(10);
/// The time limit of the last round when the agent ends, and of a round in progress at that moment.
const LAST_ROUND: Duration = Duration::from_millis(400);

/// A source of telemetry to push.
pub trait Source: Send + Sync + 'static {
    /// Returns the current state of all targets.
    fn telemetry(&self) -> Vec<State>;
}

/// A target's state.
#[derive(Clone, Debug)]
pub struct State {
    /// The target's pid.
    pub pid: u32,
    /// Its telemetry.
    pub telemetry: Telemetry,
    /// The target has ended: its telemetry will not change any more.
    pub is_final: bool,
}

/// Counts of rounds and points, by outcome.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// Rounds that the collector took as a whole.
    pub sent: AtomicU64,
    /// Rounds that failed, or of which the collector rejected points.
    pub failed: AtomicU64,
    /// Points that the collector reported as rejected.
    pub rejected_points: AtomicU64,
}

/// Pushes metrics in rounds.
pub struct Exporter {
    settings: Settings,
    client: Client,
    source: Arc<dyn Source>,
    outcomes: Arc<Outcomes>,
    taken: Taken,
    /// Targets that have ended and whose last state is taken.
    done: BTreeSet<u32>,
    /// The target with which the next round begins; `None` for the first one.
    begin_with: Option<u32>,
    /// When the next round may begin, if the collector has asked for a pause.
    not_before: Option<Instant>,
    /// Whether the last round was taken; `None` before the first.
    works: Option<bool>,
}

impl Exporter {
    /// Creates an exporter that has not sent anything.
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

    /// Pushes at each interval until `stop` resolves, and then once more.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut ticks = interval_at(Instant::now() + self.settings.interval, self.settings.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::select! {
            _ = &mut stop => return self.round(LAST_ROUND).await,
            // Values that are counted from their first reading on start here. If this fails, they start with the first
            // round.
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
            // The collector may already have the message in flight. If it were given up now, it would be sent again.
            let _ = tokio::time::timeout(LAST_ROUND, round).await;
            break;
        }
        self.round(LAST_ROUND).await;
    }

    /// Runs one round. Logs the outcome of the first, and each change after it.
    async fn round(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let rejected_before = self.rejected_points();
        let result = match tokio::time::timeout_at(deadline, self.push(deadline)).await {
            Ok(result) => result,
            Err(_) => Err("no answer in time".to_owned()),
        };
        // Rejected points count as taken: differences are not sent again, nor is the last state of a target that has
        // ended. In other cases the next round sends newer values.
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

    /// Reads the states to send. Returns them with the time, in nanoseconds since 1970.
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

    /// Sends all states, target by target, and returns the first error. A refused message does not delay other targets,
    /// unless the collector asks for a pause longer than the time left.
    async fn push(&mut self, deadline: Instant) -> Result<(), String> {
        let (mut states, now) = self.gather().await?;
        let first = states.iter().position(|state| self.begin_with == Some(state.pid));
        states.rotate_left(first.unwrap_or(0));
        let temporality = self.settings.temporality;
        let mut result = Ok(());
        for (place, State { pid, telemetry, is_final }) in states.iter().enumerate() {
            // If this round is cut off, the next one continues here. But not with the first target: if it used up all
            // of the time, it may do so again.
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
                    // The next message may still be taken.
                    Again::Never => {}
                    // The next target's messages may still be taken.
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

    /// Sends a batch. Retries as long as that can help and there is time.
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
                // Never sooner than the agent's own pause: the collector may ask for a retry at once, each time.
                Again::After(wait) => wait.max(with_jitter(pause)),
            };
            // The time may be beyond the range of the clock.
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

/// Returns a pause between half and all of the given one, so that many agents do not retry at the same time.
fn with_jitter(pause: Duration) -> Duration {
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    pause / 2 + (pause / 2).mul_f64(f64::from(nanoseconds % 1_000) / 1_000.0)
}

/// Returns nanoseconds since 1970, as in OTLP.
#[must_use]
pub fn unix_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Formats an error with its sources.
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
