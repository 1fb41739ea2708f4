//! What the probes cost a target: a model of hits, what a hit costs on this machine, and how long the programs run.

use std::{collections::VecDeque, time::Duration};

/// What a probe is there for. Each has a cost of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// Starts of calls.
    Start,
    /// Finishes of calls.
    Finish,
    /// Messages of streams.
    Message,
    /// Messages that are about to go through, where they are counted as they return.
    Entry,
}

impl ProbeKind {
    /// All of them, as [`PerProbe`] has them.
    pub const ALL: [Self; 4] = [Self::Start, Self::Finish, Self::Message, Self::Entry];

    /// Its name, that of the role of its sites.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Finish => "finish",
            Self::Message => "count",
            Self::Entry => "enter",
        }
    }
}

/// Something for each [`ProbeKind`].
pub type PerProbe<T> = [T; ProbeKind::ALL.len()];

/// The ratio is that of the time between the newest look and the last one that is at least so much older.
const WINDOW: Duration = Duration::from_secs(5);
/// A target that uses less of a processor than this counts as using this much: of nothing every part is large.
const IDLE: f64 = 0.001;
/// What an earlier sample weighs beside the next.
const KEPT: f64 = 0.5;

/// What one counted hit of a kind of probe costs.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProbeCost {
    /// Seconds that the kernel takes for a hit whose program does nothing.
    hit: f64,
    /// Seconds that the kernel measures as the run time of such a program.
    empty_run: f64,
    sampled: Sampled,
}

/// What was seen while the kernel measured run times, older samples weighing less.
#[derive(Clone, Copy, Debug, Default)]
struct Sampled {
    counted: f64,
    runs: f64,
    seconds: f64,
}

impl ProbeCost {
    /// That of a hit by itself, and what is measured of a program that does nothing.
    #[must_use]
    pub fn new(hit: Duration, empty_run: Duration) -> Self {
        Self { hit: hit.as_secs_f64(), empty_run: empty_run.as_secs_f64(), sampled: Sampled::default() }
    }

    /// Takes a sample in: hits that the programs have counted, runs of the programs in the same time, and how long they
    /// took by the kernel's measure.
    pub fn sample(&mut self, counted: u64, runs: u64, time: Duration) {
        if runs == 0 {
            return;
        }
        self.sampled = Sampled {
            counted: self.sampled.counted * KEPT + float(counted),
            runs: self.sampled.runs * KEPT + float(runs),
            seconds: self.sampled.seconds * KEPT + time.as_secs_f64(),
        };
    }

    /// Seconds that one run of the program takes, without the measuring; `None` before one was sampled.
    #[must_use]
    pub fn run(&self) -> Option<f64> {
        let Sampled { runs, seconds, .. } = self.sampled;
        (runs > 0.0).then(|| (seconds / runs - self.empty_run).max(0.0))
    }

    /// Seconds that one counted hit costs. Programs run more often than they count where hits mean nothing by
    /// themselves, as attempts of a retried call do.
    fn per_hit(&self) -> f64 {
        let Sampled { counted, runs, .. } = self.sampled;
        let runs_per_hit = if counted > 0.0 { (runs / counted).max(1.0) } else { 1.0 };
        runs_per_hit * (self.hit + self.run().unwrap_or(0.0))
    }
}

/// A target's counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// When, by a clock that goes on steadily.
    pub at: Duration,
    /// CPU time of the target since it started, hits of probes included.
    pub cpu: Duration,
    /// Hits counted.
    pub hits: PerProbe<u64>,
}

/// What the probes of one target cost it.
#[derive(Clone, Debug, Default)]
pub struct Overhead {
    costs: PerProbe<ProbeCost>,
    looks: VecDeque<Look>,
}

/// What happened in a second, on average.
#[derive(Clone, Copy, Debug)]
struct Rates {
    /// Seconds of CPU time of the target.
    cpu: f64,
    hits: PerProbe<f64>,
}

impl Overhead {
    /// With these costs.
    #[must_use]
    pub fn new(costs: PerProbe<ProbeCost>) -> Self {
        Self { costs, looks: VecDeque::new() }
    }

    /// The cost of a hit of one kind of probe.
    #[must_use]
    pub fn cost(&self, kind: ProbeKind) -> &ProbeCost {
        &self.costs[kind as usize]
    }

    /// The same, to take samples in.
    pub fn cost_mut(&mut self, kind: ProbeKind) -> &mut ProbeCost {
        &mut self.costs[kind as usize]
    }

    /// Takes a look in; it is newer than all others.
    pub fn look(&mut self, look: Look) {
        self.looks.push_back(look);
        while self.looks.get(1).is_some_and(|second| look.at.saturating_sub(second.at) >= WINDOW) {
            self.looks.pop_front();
        }
    }

    /// The share of the target's CPU time that the probes have taken lately; `None` before there are two looks.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        let rates = self.rates()?;
        Some(self.added(rates.hits) / rates.cpu.max(IDLE))
    }

    /// The share that it would be if so many of the calls that finish had their starts probed, from 0 to 1.
    #[must_use]
    pub fn ratio_with(&self, starts: f64) -> Option<f64> {
        let rates = self.rates()?;
        let now = self.added(rates.hits);
        let mut hits = rates.hits;
        hits[ProbeKind::Start as usize] = hits[ProbeKind::Finish as usize] * starts;
        let then = self.added(hits);
        Some(then / (rates.cpu - now + then).max(IDLE))
    }

    /// Whether there have been hits lately of programs of which no run was sampled yet.
    #[must_use]
    pub fn is_unsampled(&self) -> bool {
        let hits = self.rates().map(|rates| rates.hits).unwrap_or_default();
        self.costs.iter().zip(hits).any(|(cost, hits)| hits > 0.0 && cost.run().is_none())
    }

    /// Seconds of CPU time a second.
    fn added(&self, hits: PerProbe<f64>) -> f64 {
        self.costs.iter().zip(hits).map(|(cost, hits)| cost.per_hit() * hits).sum()
    }

    fn rates(&self) -> Option<Rates> {
        let (first, last) = (self.looks.front()?, self.looks.back()?);
        let seconds = last.at.checked_sub(first.at).filter(|time| !time.is_zero())?.as_secs_f64();
        let cpu = last.cpu.saturating_sub(first.cpu).as_secs_f64() / seconds;
        let mut hits = PerProbe::default();
        for (rate, (last, first)) in hits.iter_mut().zip(last.hits.iter().zip(first.hits)) {
            *rate = float(last.saturating_sub(first)) / seconds;
        }
        Some(Rates { cpu, hits })
    }
}

#[expect(clippy::cast_precision_loss, reason = "differences of counts, far below 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: Duration = Duration::from_micros(1);

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    /// A hit costs a microsecond; the programs for starts take 300 ns and those for finishes 500 ns.
    fn overhead() -> Overhead {
        let mut overhead = Overhead::new([ProbeCost::new(MICROSECOND, Duration::from_nanos(50)); 4]);
        overhead.cost_mut(ProbeKind::Start).sample(1_000, 1_000, 350 * MICROSECOND);
        overhead.cost_mut(ProbeKind::Finish).sample(1_000, 1_000, 550 * MICROSECOND);
        overhead
    }

    fn look(seconds: u64, cpu_ms: u64, calls: u64) -> Look {
        Look {
            at: Duration::from_secs(seconds),
            cpu: Duration::from_millis(cpu_ms),
            hits: [calls, calls, 0, 0],
        }
    }

    #[test]
    fn hits_and_runs_are_added_up() {
        let mut overhead = overhead();
        assert_eq!(overhead.ratio(), None);
        overhead.look(look(10, 5_000, 100));
        assert_eq!(overhead.ratio(), None);
        // 10,000 calls, 1.3 and 1.5 microseconds each, in a tenth of a second of CPU time.
        overhead.look(look(11, 5_100, 10_100));
        assert!(close(overhead.ratio().unwrap(), 0.28), "{:?}", overhead.ratio());
        // Without starts, of 72 ms that the target takes itself.
        assert!(close(overhead.ratio_with(0.0).unwrap(), 0.015 / 0.087), "{:?}", overhead.ratio_with(0.0));
        assert!(close(overhead.ratio_with(1.0).unwrap(), 0.28));
    }

    #[test]
    fn only_the_last_seconds_count() {
        let mut overhead = overhead();
        for second in 0..=10 {
            overhead.look(look(second, second * 500, second * 10_000));
        }
        assert!(close(overhead.ratio().unwrap(), 0.056));
        for second in 11..=15 {
            assert!(overhead.ratio().unwrap() > 0.0);
            overhead.look(look(second, 5_000, 100_000));
        }
        assert!(close(overhead.ratio().unwrap(), 0.0));
    }

    #[test]
    fn hits_without_a_sample_are_noticed() {
        let mut overhead = Overhead::new([ProbeCost::new(MICROSECOND, Duration::ZERO); 4]);
        overhead.look(look(0, 0, 0));
        overhead.look(look(1, 10, 0));
        assert!(!overhead.is_unsampled());
        overhead.look(look(2, 20, 1));
        assert!(overhead.is_unsampled());
        overhead.cost_mut(ProbeKind::Finish).sample(1, 1, MICROSECOND);
        assert!(overhead.is_unsampled());
        overhead.cost_mut(ProbeKind::Start).sample(1, 1, MICROSECOND);
        assert!(!overhead.is_unsampled());
    }

    #[test]
    fn of_an_idle_target_nothing_is_large() {
        let mut overhead = overhead();
        overhead.look(look(0, 0, 0));
        overhead.look(look(1, 0, 1));
        assert!(close(overhead.ratio().unwrap(), 0.0028));
    }

    #[test]
    fn what_is_hit_more_often_than_it_counts_costs_more() {
        let mut cost = ProbeCost::new(MICROSECOND, Duration::ZERO);
        assert_eq!(cost.run(), None);
        assert!(close(cost.per_hit(), 1e-6));
        cost.sample(100, 300, 300 * MICROSECOND);
        assert!(close(cost.per_hit(), 6e-6));
        // A sample without a run says nothing; a newer one weighs more.
        cost.sample(0, 0, Duration::ZERO);
        assert!(close(cost.per_hit(), 6e-6));
        for _ in 0..60 {
            cost.sample(100, 100, 100 * MICROSECOND);
        }
        assert!(close(cost.per_hit(), 2e-6));
    }
}
