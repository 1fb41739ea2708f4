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
/// What is known of starts weighs half as much once they were watched for so many seconds more.
const RENEWED_IN: f64 = 1.0;
/// The same once they were not watched for so many seconds: by then it may be different, and is found out by trying.
const FORGOTTEN_IN: f64 = 60.0;
/// Where there are more starts for each finish than this, how many there are does not follow from the finishes.
const STARTS_PER_FINISH: f64 = 100.0;

/// What one counted hit of a kind of probe costs.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProbeCost {
    /// Seconds that the kernel takes for a hit whose program does nothing.
    hit: f64,
    /// Seconds that the kernel measures as the run time of such a program.
    empty_run: f64,
    sampled: Sampled,
    /// Hits a second when last sampled, if none of them counted.
    uncounted: f64,
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
        Self { hit: hit.as_secs_f64(), empty_run: empty_run.as_secs_f64(), ..Self::default() }
    }

    /// Takes a sample of some length in: hits that the programs have counted, runs of the programs in the same time, and
    /// how long they took by the kernel's measure.
    pub fn sample(&mut self, length: Duration, counted: u64, runs: u64, time: Duration) {
        self.uncounted = if counted == 0 { ratio(float(runs), length.as_secs_f64()) } else { 0.0 };
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

    /// Seconds that so many counted hits a second cost, with the probe in place for a part of the time. Programs run more
    /// often than they count where hits mean nothing by themselves, as attempts of a retried call do.
    fn of(&self, hits: f64, in_place: f64) -> f64 {
        let Sampled { counted, runs, .. } = self.sampled;
        let runs_per_hit = if counted > 0.0 { (runs / counted).max(1.0) } else { 1.0 };
        (runs_per_hit * hits).max(self.uncounted * in_place) * (self.hit + self.run().unwrap_or(0.0))
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
    /// Those of them whose probes at the starts can be taken away.
    pub windowed: Windowed,
}

/// Starts that can be watched in windows, and what belongs to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Windowed {
    /// Starts seen.
    pub starts: u64,
    /// Finishes of the same calls, and of those whose start was not watched.
    pub finishes: u64,
    /// For how long starts were watched.
    pub watched: Duration,
}

/// What the probes of one target cost it.
#[derive(Clone, Debug, Default)]
pub struct Overhead {
    costs: PerProbe<ProbeCost>,
    looks: VecDeque<Look>,
    known: Known,
}

/// What was seen of starts while they were watched, older times weighing less. Of times in which they were not watched it is
/// assumed, more and more, that each finish had one.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    starts: f64,
    finishes: f64,
    seconds: f64,
}

impl Known {
    /// Takes in what was between two looks.
    fn take(&mut self, first: &Look, last: &Look) {
        let between = last.at.saturating_sub(first.at).as_secs_f64();
        if between <= 0.0 {
            return;
        }
        let watched = last.windowed.watched.saturating_sub(first.windowed.watched).as_secs_f64().min(between);
        let unwatched = between - watched;
        let assumed = unwatched * (1.0 - 0.5_f64.powf(unwatched / FORGOTTEN_IN));
        let kept = 0.5_f64.powf(watched / RENEWED_IN + unwatched / FORGOTTEN_IN);
        let starts = float(last.windowed.starts.saturating_sub(first.windowed.starts));
        let finishes = float(last.windowed.finishes.saturating_sub(first.windowed.finishes)) / between;
        self.starts = self.starts * kept + starts + finishes * assumed;
        self.finishes = self.finishes * kept + finishes * (watched + assumed);
        self.seconds = self.seconds * kept + watched + assumed;
    }

    /// Starts a second, if all are watched while there are so many finishes a second.
    fn starts(&self, finishes: f64) -> f64 {
        if self.starts > self.finishes * STARTS_PER_FINISH {
            return ratio(self.starts, self.seconds);
        }
        ratio(self.starts, self.finishes) * finishes
    }
}

/// What happened in a second, on average.
#[derive(Clone, Copy, Debug)]
struct Rates {
    /// Seconds of CPU time of the target.
    cpu: f64,
    hits: PerProbe<f64>,
    /// Starts and finishes where the probes at the starts can be taken away.
    windowed: [f64; 2],
}

impl Overhead {
    /// With these costs.
    #[must_use]
    pub fn new(costs: PerProbe<ProbeCost>) -> Self {
        Self { costs, ..Self::default() }
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
        if let Some(last) = self.looks.back() {
            self.known.take(last, &look);
        }
        self.looks.push_back(look);
        while self.looks.get(1).is_some_and(|second| look.at.saturating_sub(second.at) >= WINDOW) {
            self.looks.pop_front();
        }
    }

    /// The share of the target's CPU time that the probes have taken lately; `None` before there are two looks.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        let rates = self.rates()?;
        Some(self.added(rates.hits, 1.0) / rates.cpu.max(IDLE))
    }

    /// The share that it would be if starts were watched for this part of the time, from 0 to 1: as many as there were
    /// for each finish when they were last watched. Those whose probes are never taken away stay.
    #[must_use]
    pub fn ratio_with(&self, watched: f64) -> Option<f64> {
        let rates = self.rates()?;
        let now = self.added(rates.hits, 1.0);
        let mut hits = rates.hits;
        let [starts, finishes] = rates.windowed;
        let stay = (hits[ProbeKind::Start as usize] - starts).max(0.0);
        hits[ProbeKind::Start as usize] = stay + self.known.starts(finishes) * watched;
        let then = self.added(hits, watched);
        Some(then / (rates.cpu - now + then).max(IDLE))
    }

    /// Whether there have been hits lately of programs of which no run was sampled yet.
    #[must_use]
    pub fn is_unsampled(&self) -> bool {
        let hits = self.rates().map(|rates| rates.hits).unwrap_or_default();
        self.costs.iter().zip(hits).any(|(cost, hits)| hits > 0.0 && cost.run().is_none())
    }

    /// Seconds of CPU time a second, with starts watched for a part of the time.
    fn added(&self, hits: PerProbe<f64>, watched: f64) -> f64 {
        let of = |kind: ProbeKind| {
            let in_place = if kind == ProbeKind::Start { watched } else { 1.0 };
            self.cost(kind).of(hits[kind as usize], in_place)
        };
        ProbeKind::ALL.into_iter().map(of).sum()
    }

    fn rates(&self) -> Option<Rates> {
        let (first, last) = (self.looks.front()?, self.looks.back()?);
        let seconds = last.at.checked_sub(first.at).filter(|time| !time.is_zero())?.as_secs_f64();
        let cpu = last.cpu.saturating_sub(first.cpu).as_secs_f64() / seconds;
        let mut hits = PerProbe::default();
        for (rate, (last, first)) in hits.iter_mut().zip(last.hits.iter().zip(first.hits)) {
            *rate = float(last.saturating_sub(first)) / seconds;
        }
        let rate = |of: fn(&Windowed) -> u64| {
            float(of(&last.windowed).saturating_sub(of(&first.windowed))) / seconds
        };
        let windowed = [rate(|windowed| windowed.starts), rate(|windowed| windowed.finishes)];
        Some(Rates { cpu, hits, windowed })
    }
}

/// 0 where there is nothing to divide by.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "differences of counts, far below 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: Duration = Duration::from_micros(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    /// A hit costs a microsecond; the programs for starts take 300 ns and those for finishes 500 ns.
    fn overhead() -> Overhead {
        let mut overhead = Overhead::new([ProbeCost::new(MICROSECOND, Duration::from_nanos(50)); 4]);
        overhead.cost_mut(ProbeKind::Start).sample(SECOND, 1_000, 1_000, 350 * MICROSECOND);
        overhead.cost_mut(ProbeKind::Finish).sample(SECOND, 1_000, 1_000, 550 * MICROSECOND);
        overhead
    }

    /// All starts have been watched.
    fn look(seconds: u64, cpu_ms: u64, calls: u64) -> Look {
        let at = Duration::from_secs(seconds);
        look_of(at, cpu_ms, Windowed { starts: calls, finishes: calls, watched: at })
    }

    fn look_of(at: Duration, cpu_ms: u64, windowed: Windowed) -> Look {
        let hits = [windowed.starts, windowed.finishes, 0, 0];
        Look { at, cpu: Duration::from_millis(cpu_ms), hits, windowed }
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
        overhead.cost_mut(ProbeKind::Finish).sample(SECOND, 1, 1, MICROSECOND);
        assert!(overhead.is_unsampled());
        overhead.cost_mut(ProbeKind::Start).sample(SECOND, 1, 1, MICROSECOND);
        assert!(!overhead.is_unsampled());
    }

    #[test]
    fn of_an_idle_target_nothing_is_large() {
        let mut overhead = overhead();
        overhead.look(look(0, 0, 0));
        overhead.look(look(1, 0, 1));
        assert!(close(overhead.ratio().unwrap(), 0.0028));
    }

    /// Looks once a second, from one time to another, at a target with so many starts and finishes a second, of whose
    /// starts those in the first so many milliseconds of each second are watched. It takes half a processor.
    fn go_on(
        overhead: &mut Overhead,
        seconds: std::ops::Range<u64>,
        starts: u64,
        finishes: u64,
        watched_ms: u64,
    ) {
        let mut windowed = overhead.looks.back().map_or_else(Windowed::default, |look| look.windowed);
        for second in seconds {
            windowed.starts += starts * watched_ms / 1_000;
            windowed.finishes += finishes;
            windowed.watched += Duration::from_millis(watched_ms);
            overhead.look(look_of(Duration::from_secs(second), second * 500, windowed));
        }
    }

    /// What so many starts and finishes a second take of a target that takes `own` seconds of CPU time a second itself.
    fn part(own: f64, starts: f64, finishes: f64) -> f64 {
        let added = starts * 1.3e-6 + finishes * 1.5e-6;
        added / (own + added)
    }

    #[test]
    fn starts_and_finishes_need_not_be_as_many() {
        // Most are given up for others, all are, or most calls came before the agent.
        for (starts, finishes) in [(50_000, 10_000), (50_000, 0), (2_000, 40_000)] {
            let mut overhead = overhead();
            go_on(&mut overhead, 0..10, starts, finishes, 1_000);
            let (starts, finishes) = (float(starts), float(finishes));
            let own = 0.5 - starts * 1.3e-6 - finishes * 1.5e-6;
            let all = overhead.ratio().unwrap();
            assert!(close(all, part(own, starts, finishes)), "{starts} {finishes}: {all}");
            for watched in [1.0, 0.2, 0.05, 0.0] {
                let some = overhead.ratio_with(watched).unwrap();
                assert!(close(some, part(own, starts * watched, finishes)), "{starts} {finishes}: {some}");
            }
        }
    }

    #[test]
    fn in_windows_it_is_seen_how_many_starts_there_are() {
        let mut overhead = overhead();
        // Starts were watched for a fifth of the time, from the beginning.
        go_on(&mut overhead, 0..60, 50_000, 10_000, 200);
        let own = 0.5 - 10_000.0 * 1.3e-6 - 10_000.0 * 1.5e-6;
        for watched in [1.0, 0.2] {
            let some = overhead.ratio_with(watched).unwrap();
            assert!((some / part(own, 50_000.0 * watched, 10_000.0) - 1.0).abs() < 0.05, "{watched}: {some}");
        }
    }

    #[test]
    fn what_is_not_watched_any_more_follows_the_finishes_and_is_forgotten() {
        let mut overhead = overhead();
        go_on(&mut overhead, 0..10, 50_000, 10_000, 1_000);
        // With half the finishes there are half the starts.
        go_on(&mut overhead, 10..20, 50_000, 5_000, 0);
        let own = 0.5 - 5_000.0 * 1.5e-6;
        let soon = overhead.ratio_with(1.0).unwrap();
        assert!((soon / part(own, 25_000.0, 5_000.0) - 1.0).abs() < 0.1, "{soon}");
        // After ten minutes it may be a call like any other.
        go_on(&mut overhead, 20..620, 50_000, 5_000, 0);
        let late = overhead.ratio_with(1.0).unwrap();
        assert!((late / part(own, 5_000.0, 5_000.0) - 1.0).abs() < 0.05, "{late}");
        // And where nothing finishes, nothing starts.
        go_on(&mut overhead, 620..630, 0, 0, 0);
        assert!(close(overhead.ratio_with(1.0).unwrap(), 0.0));
    }

    #[test]
    fn starts_without_finishes_are_as_many_as_they_were_until_that_is_forgotten() {
        let mut overhead = overhead();
        go_on(&mut overhead, 0..10, 50_000, 0, 1_000);
        go_on(&mut overhead, 10..20, 50_000, 0, 0);
        let soon = overhead.ratio_with(1.0).unwrap();
        assert!((soon / part(0.5, 50_000.0, 0.0) - 1.0).abs() < 0.2, "{soon}");
        go_on(&mut overhead, 20..620, 50_000, 0, 0);
        let late = overhead.ratio_with(1.0).unwrap();
        assert!(late < 0.01 * soon, "{late}");
    }

    /// Probes at the starts of one framework can be taken away, those of another can't.
    #[test]
    fn starts_whose_probes_stay_are_always_there() {
        let mut overhead = overhead();
        for second in 0..10 {
            let calls = second * 10_000;
            let mut look = look(second, second * 500, calls);
            look.hits[ProbeKind::Start as usize] += 2 * calls;
            look.hits[ProbeKind::Finish as usize] += 2 * calls;
            overhead.look(look);
        }
        let own = 0.5 - 30_000.0 * 2.8e-6;
        assert!(close(overhead.ratio().unwrap(), part(own, 30_000.0, 30_000.0)));
        assert!(close(overhead.ratio_with(1.0).unwrap(), part(own, 30_000.0, 30_000.0)));
        assert!(close(overhead.ratio_with(0.0).unwrap(), part(own, 20_000.0, 30_000.0)));
    }

    /// As where a start is none while the first has not finished, and that one never does.
    #[test]
    fn hits_that_never_count_cost_all_the_same() {
        let mut overhead = Overhead::new([ProbeCost::new(MICROSECOND, Duration::ZERO); 4]);
        go_on(&mut overhead, 0..10, 0, 0, 1_000);
        overhead.cost_mut(ProbeKind::Start).sample(SECOND / 10, 0, 5_000, 5_000 * MICROSECOND);
        // 50,000 a second, two microseconds each.
        assert!(close(overhead.ratio().unwrap(), 0.2), "{:?}", overhead.ratio());
        assert!(close(overhead.ratio_with(0.2).unwrap(), 0.02 / 0.42), "{:?}", overhead.ratio_with(0.2));
        overhead.cost_mut(ProbeKind::Start).sample(SECOND / 10, 0, 0, Duration::ZERO);
        assert!(close(overhead.ratio().unwrap(), 0.0));
    }

    #[test]
    fn what_is_hit_more_often_than_it_counts_costs_more() {
        let mut cost = ProbeCost::new(MICROSECOND, Duration::ZERO);
        assert_eq!(cost.run(), None);
        assert!(close(cost.of(1.0, 1.0), 1e-6));
        cost.sample(SECOND, 100, 300, 300 * MICROSECOND);
        assert!(close(cost.of(1.0, 1.0), 6e-6));
        // A sample without a run says nothing; a newer one weighs more.
        cost.sample(SECOND, 0, 0, Duration::ZERO);
        assert!(close(cost.of(1.0, 1.0), 6e-6));
        for _ in 0..60 {
            cost.sample(SECOND, 100, 100, 100 * MICROSECOND);
        }
        assert!(close(cost.of(1.0, 1.0), 2e-6));
    }
}
