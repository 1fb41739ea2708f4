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

/// The ratio is that of the time between the newest counts and the last that are at least so much older.
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

/// What was measured of a copy's programs for a kind of probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Hits that they have counted.
    pub counted: u64,
    /// Their runs in the same time.
    pub runs: u64,
    /// How long these took by the kernel's measure.
    pub time: Duration,
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

    /// Takes in what was measured in a time of some length.
    fn sample(&mut self, length: Duration, sample: Sample) {
        let Sample { counted, runs, time } = sample;
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
    fn run(&self) -> Option<f64> {
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// When, by a clock that goes on steadily.
    pub at: Duration,
    /// CPU time of the target since it started, hits of probes included.
    pub cpu: Duration,
    /// What each copy has counted, always in the same order.
    pub copies: Vec<CopyCounts>,
}

/// What the programs of one copy have counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyCounts {
    /// Hits. Where starts are watched in windows, finishes are those of all calls.
    pub hits: PerProbe<u64>,
    /// For how long starts were watched; `None` where their probes always stay.
    pub watched: Option<Duration>,
}

/// What the probes of one target cost it.
#[derive(Clone, Debug, Default)]
pub struct Overhead {
    /// Of each copy by itself: the probes of one may be much dearer, and its programs slower.
    copies: Vec<CopyCost>,
    /// Of the programs of all copies together.
    all: PerProbe<ProbeCost>,
    /// Counts of the last moments, the newest last.
    history: VecDeque<Counts>,
}

/// What the probes of one copy cost.
#[derive(Clone, Debug, Default)]
struct CopyCost {
    costs: PerProbe<ProbeCost>,
    /// Of its starts, where their probes can be taken away.
    known: Option<Known>,
}

impl CopyCost {
    /// Takes in what was between two moments, so many seconds apart.
    fn take(&mut self, between: f64, first: &CopyCounts, last: &CopyCounts) {
        let (Some(before), Some(watched)) = (first.watched, last.watched) else { return };
        let watched = watched.saturating_sub(before).as_secs_f64().min(between);
        let [starts, finishes] = [ProbeKind::Start, ProbeKind::Finish]
            .map(|kind| float(last.hits[kind as usize].saturating_sub(first.hits[kind as usize])));
        self.known.get_or_insert_default().take(between, watched, starts, finishes / between);
    }

    /// Seconds of CPU time a second at so many hits a second, if starts were watched for this part of the time: as many as there
    /// were for each finish when they were last watched.
    fn added_with(&self, hits: PerProbe<f64>, watched: f64) -> f64 {
        let Some(known) = &self.known else { return self.added(hits, 1.0) };
        let mut then = hits;
        then[ProbeKind::Start as usize] = known.starts(hits[ProbeKind::Finish as usize]) * watched;
        self.added(then, watched)
    }

    /// The same at these hits, with starts watched for a part of the time.
    fn added(&self, hits: PerProbe<f64>, watched: f64) -> f64 {
        let of = |kind: ProbeKind| {
            let in_place = if kind == ProbeKind::Start { watched } else { 1.0 };
            self.costs[kind as usize].of(hits[kind as usize], in_place)
        };
        ProbeKind::ALL.into_iter().map(of).sum()
    }

    /// Whether a program was hit of which no run was sampled yet.
    fn is_unsampled(&self, hits: PerProbe<f64>) -> bool {
        self.costs.iter().zip(hits).any(|(cost, hits)| hits > 0.0 && cost.run().is_none())
    }
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
    /// Takes in so many seconds, in how many of them starts were watched, the starts seen, and the finishes a second.
    fn take(&mut self, between: f64, watched: f64, starts: f64, finishes: f64) {
        let unwatched = between - watched;
        let assumed = unwatched * (1.0 - 0.5_f64.powf(unwatched / FORGOTTEN_IN));
        let kept = 0.5_f64.powf(watched / RENEWED_IN + unwatched / FORGOTTEN_IN);
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
#[derive(Clone, Debug, Default)]
struct Rates {
    /// Seconds of CPU time of the target.
    cpu: f64,
    /// Of each copy.
    hits: Vec<PerProbe<f64>>,
}

impl Overhead {
    /// With these costs of each copy.
    #[must_use]
    pub fn new(costs: Vec<PerProbe<ProbeCost>>) -> Self {
        let mut all: PerProbe<ProbeCost> = PerProbe::default();
        for costs in &costs {
            for (all, cost) in all.iter_mut().zip(costs) {
                all.empty_run = all.empty_run.max(cost.empty_run);
            }
        }
        let copies = costs.into_iter().map(|costs| CopyCost { costs, known: None }).collect();
        Self { copies, all, history: VecDeque::new() }
    }

    /// Takes in what was measured in a time of some length of a kind of probe, copy by copy.
    pub fn sample(&mut self, kind: ProbeKind, length: Duration, samples: impl IntoIterator<Item = Sample>) {
        let mut all = Sample::default();
        for (copy, sample) in self.copies.iter_mut().zip(samples) {
            copy.costs[kind as usize].sample(length, sample);
            all.counted += sample.counted;
            all.runs += sample.runs;
            all.time += sample.time;
        }
        self.all[kind as usize].sample(length, all);
    }

    /// Seconds that one run of a program for a kind of probe takes, the mean of all copies; `None` before one was sampled.
    #[must_use]
    pub fn run(&self, kind: ProbeKind) -> Option<f64> {
        self.all[kind as usize].run()
    }

    /// Adds the target's counts of a moment after all others.
    pub fn add(&mut self, counts: Counts) {
        let at = counts.at;
        if let Some(before) = self.history.back().filter(|before| before.at < at) {
            let between = at.saturating_sub(before.at).as_secs_f64();
            let both = before.copies.iter().zip(&counts.copies);
            for (copy, (first, last)) in self.copies.iter_mut().zip(both) {
                copy.take(between, first, last);
            }
        }
        self.history.push_back(counts);
        while self.history.get(1).is_some_and(|second| at.saturating_sub(second.at) >= WINDOW) {
            self.history.pop_front();
        }
    }

    /// The share of the target's CPU time that the probes have taken lately; `None` before there are counts of two
    /// moments.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        let rates = self.rates()?;
        Some(self.now(&rates) / rates.cpu.max(IDLE))
    }

    /// The share that it would be if starts were watched for this part of the time, from 0 to 1. Those whose probes are never
    /// taken away stay.
    #[must_use]
    pub fn ratio_with(&self, watched: f64) -> Option<f64> {
        let rates = self.rates()?;
        let now = self.now(&rates);
        let then = self.copies.iter().zip(&rates.hits).map(|(copy, hits)| copy.added_with(*hits, watched));
        let then: f64 = then.sum();
        Some(then / (rates.cpu - now + then).max(IDLE))
    }

    /// Whether there have been hits lately of programs of which no run was sampled yet.
    #[must_use]
    pub fn is_unsampled(&self) -> bool {
        let Rates { hits, .. } = self.rates().unwrap_or_default();
        self.copies.iter().zip(hits).any(|(copy, hits)| copy.is_unsampled(hits))
    }

    /// Seconds of CPU time a second that all probes take, as they are.
    fn now(&self, rates: &Rates) -> f64 {
        self.copies.iter().zip(&rates.hits).map(|(copy, hits)| copy.added(*hits, 1.0)).sum()
    }

    fn rates(&self) -> Option<Rates> {
        let (first, last) = (self.history.front()?, self.history.back()?);
        let seconds = last.at.checked_sub(first.at).filter(|time| !time.is_zero())?.as_secs_f64();
        let cpu = last.cpu.saturating_sub(first.cpu).as_secs_f64() / seconds;
        let rates = |(last, first): (&CopyCounts, &CopyCounts)| {
            let mut rates: PerProbe<f64> = PerProbe::default();
            for (rate, (last, first)) in rates.iter_mut().zip(last.hits.iter().zip(first.hits)) {
                *rate = float(last.saturating_sub(first)) / seconds;
            }
            rates
        };
        let hits = last.copies.iter().zip(&first.copies).map(rates).collect();
        Some(Rates { cpu, hits })
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
        let mut overhead = Overhead::new(vec![costs(Duration::from_nanos(50))]);
        overhead.sample(ProbeKind::Start, SECOND, [sample(1_000, 1_000, 350)]);
        overhead.sample(ProbeKind::Finish, SECOND, [sample(1_000, 1_000, 550)]);
        overhead
    }

    /// A hit of any probe costs a microsecond.
    fn costs(empty_run: Duration) -> PerProbe<ProbeCost> {
        [ProbeCost::new(MICROSECOND, empty_run); ProbeKind::ALL.len()]
    }

    fn sample(counted: u64, runs: u64, microseconds: u64) -> Sample {
        Sample { counted, runs, time: Duration::from_micros(microseconds) }
    }

    /// All starts have been watched.
    fn counts(seconds: u64, cpu_ms: u64, calls: u64) -> Counts {
        let at = Duration::from_secs(seconds);
        Counts { at, cpu: Duration::from_millis(cpu_ms), copies: vec![copy(calls, calls, Some(at))] }
    }

    fn copy(starts: u64, finishes: u64, watched: Option<Duration>) -> CopyCounts {
        CopyCounts { hits: [starts, finishes, 0, 0], watched }
    }

    #[test]
    fn hits_and_runs_are_added_up() {
        let mut overhead = overhead();
        assert_eq!(overhead.ratio(), None);
        overhead.add(counts(10, 5_000, 100));
        assert_eq!(overhead.ratio(), None);
        // 10,000 calls, 1.3 and 1.5 microseconds each, in a tenth of a second of CPU time.
        overhead.add(counts(11, 5_100, 10_100));
        assert!(close(overhead.ratio().unwrap(), 0.28), "{:?}", overhead.ratio());
        // Without starts, of 72 ms that the target takes itself.
        assert!(close(overhead.ratio_with(0.0).unwrap(), 0.015 / 0.087), "{:?}", overhead.ratio_with(0.0));
        assert!(close(overhead.ratio_with(1.0).unwrap(), 0.28));
    }

    #[test]
    fn only_the_last_seconds_count() {
        let mut overhead = overhead();
        for second in 0..=10 {
            overhead.add(counts(second, second * 500, second * 10_000));
        }
        assert!(close(overhead.ratio().unwrap(), 0.056));
        for second in 11..=15 {
            assert!(overhead.ratio().unwrap() > 0.0);
            overhead.add(counts(second, 5_000, 100_000));
        }
        assert!(close(overhead.ratio().unwrap(), 0.0));
    }

    #[test]
    fn hits_without_a_sample_are_noticed() {
        let mut overhead = Overhead::new(vec![costs(Duration::ZERO)]);
        overhead.add(counts(0, 0, 0));
        overhead.add(counts(1, 10, 0));
        assert!(!overhead.is_unsampled());
        overhead.add(counts(2, 20, 1));
        assert!(overhead.is_unsampled());
        overhead.sample(ProbeKind::Finish, SECOND, [sample(1, 1, 1)]);
        assert!(overhead.is_unsampled());
        overhead.sample(ProbeKind::Start, SECOND, [sample(1, 1, 1)]);
        assert!(!overhead.is_unsampled());
    }

    #[test]
    fn of_an_idle_target_nothing_is_large() {
        let mut overhead = overhead();
        overhead.add(counts(0, 0, 0));
        overhead.add(counts(1, 0, 1));
        assert!(close(overhead.ratio().unwrap(), 0.0028));
    }

    /// Adds counts once a second, from one time to another, of a target with so many starts and finishes a second, of whose
    /// starts those in the first so many milliseconds of each second are watched. It takes half a processor.
    fn go_on(
        overhead: &mut Overhead,
        seconds: std::ops::Range<u64>,
        starts: u64,
        finishes: u64,
        watched_ms: u64,
    ) {
        let before = overhead.history.back().and_then(|counts| counts.copies.first().copied());
        let CopyCounts { mut hits, watched } = before.unwrap_or_default();
        let mut watched = watched.unwrap_or_default();
        for second in seconds {
            hits[ProbeKind::Start as usize] += starts * watched_ms / 1_000;
            hits[ProbeKind::Finish as usize] += finishes;
            watched += Duration::from_millis(watched_ms);
            let (at, cpu) = (Duration::from_secs(second), Duration::from_millis(second * 500));
            overhead.add(Counts { at, cpu, copies: vec![CopyCounts { hits, watched: Some(watched) }] });
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
        let mut overhead = Overhead::new(vec![costs(Duration::from_nanos(50)); 2]);
        overhead.sample(ProbeKind::Start, SECOND, [sample(1_000, 1_000, 350); 2]);
        overhead.sample(ProbeKind::Finish, SECOND, [sample(1_000, 1_000, 550); 2]);
        for second in 0..10 {
            let calls = second * 10_000;
            let mut counts = counts(second, second * 500, calls);
            counts.copies.push(copy(2 * calls, 2 * calls, None));
            overhead.add(counts);
        }
        let own = 0.5 - 30_000.0 * 2.8e-6;
        assert!(close(overhead.ratio().unwrap(), part(own, 30_000.0, 30_000.0)));
        assert!(close(overhead.ratio_with(1.0).unwrap(), part(own, 30_000.0, 30_000.0)));
        assert!(close(overhead.ratio_with(0.0).unwrap(), part(own, 20_000.0, 30_000.0)));
    }

    /// As where one framework's calls finish at return instructions, which the kernel single-steps, and another's do not.
    #[test]
    fn each_copy_costs_what_its_own_probes_do() {
        let cheap = costs(Duration::ZERO);
        let mut dear = cheap;
        dear[ProbeKind::Finish as usize] = ProbeCost::new(12 * MICROSECOND, Duration::ZERO);
        let mut overhead = Overhead::new(vec![cheap, dear]);
        overhead.sample(ProbeKind::Finish, SECOND, [sample(1_000, 1_000, 2_000), sample(1_000, 1_000, 500)]);
        // Calls of the one, and from the fifth second on a tenth as many of the other.
        for (seconds, taken) in [(0..6, 0.03), (6..11, 0.0425)] {
            for second in seconds {
                let (cpu, others) = (Duration::from_millis(second * 500), second.saturating_sub(5) * 1_000);
                let copies = vec![copy(0, second * 10_000, None), copy(0, others, None)];
                overhead.add(Counts { at: Duration::from_secs(second), cpu, copies });
            }
            assert!(close(overhead.ratio().unwrap(), taken / 0.5), "{:?}", overhead.ratio());
        }
        // What is shown is the mean of both.
        assert!(close(overhead.run(ProbeKind::Finish).unwrap(), 1.25e-6));
        assert_eq!(overhead.run(ProbeKind::Start), None);
    }

    /// As where a start is none while the first has not finished, and that one never does.
    #[test]
    fn hits_that_never_count_cost_all_the_same() {
        let mut overhead = Overhead::new(vec![costs(Duration::ZERO)]);
        go_on(&mut overhead, 0..10, 0, 0, 1_000);
        overhead.sample(ProbeKind::Start, SECOND / 10, [sample(0, 5_000, 5_000)]);
        // 50,000 a second, two microseconds each.
        assert!(close(overhead.ratio().unwrap(), 0.2), "{:?}", overhead.ratio());
        assert!(close(overhead.ratio_with(0.2).unwrap(), 0.02 / 0.42), "{:?}", overhead.ratio_with(0.2));
        overhead.sample(ProbeKind::Start, SECOND / 10, [Sample::default()]);
        assert!(close(overhead.ratio().unwrap(), 0.0));
    }

    #[test]
    fn what_is_hit_more_often_than_it_counts_costs_more() {
        let mut cost = ProbeCost::new(MICROSECOND, Duration::ZERO);
        assert_eq!(cost.run(), None);
        assert!(close(cost.of(1.0, 1.0), 1e-6));
        cost.sample(SECOND, sample(100, 300, 300));
        assert!(close(cost.of(1.0, 1.0), 6e-6));
        // A sample without a run says nothing; a newer one weighs more.
        cost.sample(SECOND, Sample::default());
        assert!(close(cost.of(1.0, 1.0), 6e-6));
        for _ in 0..60 {
            cost.sample(SECOND, sample(100, 100, 100));
        }
        assert!(close(cost.of(1.0, 1.0), 2e-6));
    }
}
