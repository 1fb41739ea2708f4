//! The overhead of the probes, from three values: how many hits there are, what a hit costs on this machine, and how
//! long the programs run.

use std::{collections::VecDeque, time::Duration};

/// The purpose of a probe. Each kind has its own cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// Starts of calls.
    Start,
    /// Finishes of calls.
    Finish,
    /// Messages of streams.
    Message,
    /// Messages at their entry, where they are counted when their functions return.
    Entry,
}

impl ProbeKind {
    /// All kinds, in the order of [`PerProbe`].
    pub const ALL: [Self; 4] = [Self::Start, Self::Finish, Self::Message, Self::Entry];

    /// Returns the name of the role of the kind's sites.
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

/// One value for each [`ProbeKind`].
pub type PerProbe<T> = [T; ProbeKind::ALL.len()];

/// The minimum time between the two counts that the ratio is measured over.
const WINDOW: Duration = Duration::from_secs(5);
/// The minimum CPU usage to calculate with, in CPUs: relative to an idle target's usage, any overhead would be large.
const IDLE: f64 = 0.001;
/// The weight of earlier samples relative to the next.
const KEPT: f64 = 0.5;
/// The half-life of the knowledge about starts while they are watched, in seconds.
const RENEWED_IN: f64 = 1.0;
/// The same while starts are not watched, in seconds. After that the rate may be different, and only another try can
/// show it.
const FORGOTTEN_IN: f64 = 60.0;
/// If there are more starts per finish than this, the number of starts is not derived from the finishes.
const STARTS_PER_FINISH: f64 = 100.0;

/// The cost of one counted hit of a kind of probe.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProbeCost {
    /// The time that the kernel takes for a hit with an empty program, in seconds.
    hit: f64,
    /// The run time that the kernel measures for an empty program, in seconds.
    empty_run: f64,
    sampled: Sampled,
    /// Hits per second in the last sample, if none of them counted.
    uncounted: f64,
}

/// A measurement of a copy's programs for one kind of probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Hits that the programs have counted.
    pub counted: u64,
    /// Runs of the programs in the same time.
    pub runs: u64,
    /// The time that these runs took, as measured by the kernel.
    pub time: Duration,
}

/// A sum of the samples taken while the kernel measured run times. Older samples weigh less.
#[derive(Clone, Copy, Debug, Default)]
struct Sampled {
    counted: f64,
    runs: f64,
    seconds: f64,
}

impl ProbeCost {
    /// Creates the cost of a kind of probe from the time of a hit itself, and the run time that the kernel measures for
    /// an empty program.
    #[must_use]
    pub fn new(hit: Duration, empty_run: Duration) -> Self {
        Self { hit: hit.as_secs_f64(), empty_run: empty_run.as_secs_f64(), ..Self::default() }
    }

    /// Adds a sample taken over a time of this length.
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

    /// Returns the time of one run, in seconds, without the time of measuring it. `None` before a run was sampled.
    fn run(&self) -> Option<f64> {
        let Sampled { runs, seconds, .. } = self.sampled;
        (runs > 0.0).then(|| (seconds / runs - self.empty_run).max(0.0))
    }

    /// Returns the cost of `hits` counted hits per second, in seconds of CPU time per second, with the probe in place
    /// for the part `in_place` of the time. Programs run more often than they count if some hits alone mean nothing,
    /// such as the attempts of a retried call.
    fn of(&self, hits: f64, in_place: f64) -> f64 {
        let Sampled { counted, runs, .. } = self.sampled;
        let runs_per_hit = if counted > 0.0 { (runs / counted).max(1.0) } else { 1.0 };
        (runs_per_hit * hits).max(self.uncounted * in_place) * (self.hit + self.run().unwrap_or(0.0))
    }
}

/// A target's counts at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// When the counts were read, by a monotonic clock.
    pub at: Duration,
    /// CPU time that the target has used since its start, including the hits of probes.
    pub cpu: Duration,
    /// The counts of each copy, always in the same order.
    pub copies: Vec<CopyCounts>,
}

/// The counts of the programs of one copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyCounts {
    /// Hits of each kind of probe. If starts are watched in windows, finishes are those of all calls.
    pub hits: PerProbe<u64>,
    /// For how long starts have been watched; `None` if their probes always stay attached.
    pub watched: Option<Duration>,
}

/// The overhead of one target's probes.
#[derive(Clone, Debug, Default)]
pub struct Overhead {
    /// The cost of each copy. The probes of one copy may be much more expensive, and its programs slower.
    copies: Vec<CopyCost>,
    /// The run times over the programs of all copies.
    all: PerProbe<ProbeCost>,
    /// The recent counts, the newest last.
    history: VecDeque<Counts>,
}

/// Hits per second of a program that is worth a sample out of turn. The kernel measures for some 0.2 s, so rarer hits would
/// be waited for in vain again and again, and cost nothing that matters.
const SAMPLED_SOON: f64 = 5.0;

/// The overhead of one copy's probes.
#[derive(Clone, Debug, Default)]
struct CopyCost {
    costs: PerProbe<ProbeCost>,
    /// What is known about starts, if their probes can be detached.
    known: Option<Known>,
}

impl CopyCost {
    /// Adds what was counted between two moments, `between` seconds apart.
    fn take(&mut self, between: f64, first: &CopyCounts, last: &CopyCounts) {
        let (Some(before), Some(watched)) = (first.watched, last.watched) else { return };
        let watched = watched.saturating_sub(before).as_secs_f64().min(between);
        let [starts, finishes] = [ProbeKind::Start, ProbeKind::Finish]
            .map(|kind| float(last.hits[kind as usize].saturating_sub(first.hits[kind as usize])));
        self.known.get_or_insert_default().take(between, watched, starts, finishes / between);
    }

    /// Returns the CPU time in seconds per second at these rates of hits, if starts were watched for the part `watched`
    /// of the time. It assumes as many starts per finish as when starts were last watched.
    fn added_with(&self, hits: PerProbe<f64>, watched: f64) -> f64 {
        let Some(known) = &self.known else { return self.added(hits, 1.0) };
        let mut then = hits;
        then[ProbeKind::Start as usize] = known.starts(hits[ProbeKind::Finish as usize]) * watched;
        self.added(then, watched)
    }

    /// Returns the CPU time in seconds per second at exactly these rates of hits, with starts watched for the part
    /// `watched` of the time.
    fn added(&self, hits: PerProbe<f64>, watched: f64) -> f64 {
        let of = |kind: ProbeKind| {
            let in_place = if kind == ProbeKind::Start { watched } else { 1.0 };
            self.costs[kind as usize].of(hits[kind as usize], in_place)
        };
        ProbeKind::ALL.into_iter().map(of).sum()
    }

    /// Returns whether a program without a sampled run was hit so often that a sample soon sees a run.
    fn is_unsampled(&self, hits: PerProbe<f64>) -> bool {
        self.costs.iter().zip(hits).any(|(cost, hits)| hits >= SAMPLED_SOON && cost.run().is_none())
    }
}

/// What was seen of starts while they were watched. Older times weigh less. The longer starts are not watched, the more
/// it is assumed that each finish had one.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    starts: f64,
    finishes: f64,
    seconds: f64,
}

impl Known {
    /// Adds the starts seen in `between` seconds, in `watched` of which starts were watched, at this rate of finishes
    /// per second.
    fn take(&mut self, between: f64, watched: f64, starts: f64, finishes: f64) {
        let unwatched = between - watched;
        let assumed = unwatched * (1.0 - 0.5_f64.powf(unwatched / FORGOTTEN_IN));
        let kept = 0.5_f64.powf(watched / RENEWED_IN + unwatched / FORGOTTEN_IN);
        self.starts = self.starts * kept + starts + finishes * assumed;
        self.finishes = self.finishes * kept + finishes * (watched + assumed);
        self.seconds = self.seconds * kept + watched + assumed;
    }

    /// Returns the starts per second, if all are watched at this rate of finishes.
    fn starts(&self, finishes: f64) -> f64 {
        if self.starts > self.finishes * STARTS_PER_FINISH {
            return ratio(self.starts, self.seconds);
        }
        ratio(self.starts, self.finishes) * finishes
    }
}

/// The average rates, per second.
#[derive(Clone, Debug, Default)]
struct Rates {
    /// The target's CPU time, in seconds.
    cpu: f64,
    /// The hits of each copy.
    hits: Vec<PerProbe<f64>>,
}

impl Overhead {
    /// Creates an overhead from the costs of each copy.
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

    /// Adds a sample for each copy, taken over a time of this length for one kind of probe.
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

    /// Returns the time of one run of a kind of probe, in seconds, averaged over all copies. `None` before a run was
    /// sampled.
    #[must_use]
    pub fn run(&self, kind: ProbeKind) -> Option<f64> {
        self.all[kind as usize].run()
    }

    /// Adds the target's counts. They must be newer than all counts before.
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

    /// Returns the share of the target's CPU time that the probes have taken recently. `None` before there are counts
    /// of two moments.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        let rates = self.rates()?;
        Some(self.now(&rates) / rates.cpu.max(IDLE))
    }

    /// Returns the share if starts were watched for this part of the time, from 0 to 1. Probes that are never detached
    /// stay.
    #[must_use]
    pub fn ratio_with(&self, watched: f64) -> Option<f64> {
        let rates = self.rates()?;
        let now = self.now(&rates);
        let then = self.copies.iter().zip(&rates.hits).map(|(copy, hits)| copy.added_with(*hits, watched));
        let then: f64 = then.sum();
        Some(then / (rates.cpu - now + then).max(IDLE))
    }

    /// Returns whether programs without a sampled run were hit recently, and often enough for a sample to see it.
    #[must_use]
    pub fn is_unsampled(&self) -> bool {
        let Rates { hits, .. } = self.rates().unwrap_or_default();
        self.copies.iter().zip(hits).any(|(copy, hits)| copy.is_unsampled(hits))
    }

    /// Returns the CPU time of all probes as they are now, in seconds per second.
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

/// Divides; returns 0 if `whole` is not positive.
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

    /// A hit costs a microsecond; programs for starts take 300 ns, programs for finishes 500 ns.
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

    /// Counts where all starts were watched.
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
        // Without starts, relative to the 72 ms that the target itself takes.
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
        overhead.add(counts(2, 20, 9));
        assert!(!overhead.is_unsampled());
        overhead.add(counts(3, 30, 15));
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

    /// Adds counts once a second in the range `seconds`, for a target with these rates of starts and finishes. Only
    /// starts in the first `watched_ms` milliseconds of each second are watched. The target uses half a CPU.
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

    /// Returns the share that these rates of starts and finishes take of a target that itself uses `own` seconds of CPU
    /// time per second.
    fn part(own: f64, starts: f64, finishes: f64) -> f64 {
        let added = starts * 1.3e-6 + finishes * 1.5e-6;
        added / (own + added)
    }

    #[test]
    fn starts_and_finishes_need_not_be_as_many() {
        // Most calls are given up for others, all are, or most began before the agent came.
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
        // Half the finishes mean half the starts.
        go_on(&mut overhead, 10..20, 50_000, 5_000, 0);
        let own = 0.5 - 5_000.0 * 1.5e-6;
        let soon = overhead.ratio_with(1.0).unwrap();
        assert!((soon / part(own, 25_000.0, 5_000.0) - 1.0).abs() < 0.1, "{soon}");
        // After ten minutes, one start per finish is assumed again.
        go_on(&mut overhead, 20..620, 50_000, 5_000, 0);
        let late = overhead.ratio_with(1.0).unwrap();
        assert!((late / part(own, 5_000.0, 5_000.0) - 1.0).abs() < 0.05, "{late}");
        // Without finishes, no starts are assumed.
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

    /// The probes at one framework's starts can be detached, those at another's can't.
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

    /// For example, one framework's calls finish at return instructions, which the kernel single-steps, and another's
    /// do not.
    #[test]
    fn each_copy_costs_what_its_own_probes_do() {
        let cheap = costs(Duration::ZERO);
        let mut dear = cheap;
        dear[ProbeKind::Finish as usize] = ProbeCost::new(12 * MICROSECOND, Duration::ZERO);
        let mut overhead = Overhead::new(vec![cheap, dear]);
        overhead.sample(ProbeKind::Finish, SECOND, [sample(1_000, 1_000, 2_000), sample(1_000, 1_000, 500)]);
        // Calls of the first copy, and from the fifth second on a tenth as many of the other.
        for (seconds, taken) in [(0..6, 0.03), (6..11, 0.0425)] {
            for second in seconds {
                let (cpu, others) = (Duration::from_millis(second * 500), second.saturating_sub(5) * 1_000);
                let copies = vec![copy(0, second * 10_000, None), copy(0, others, None)];
                overhead.add(Counts { at: Duration::from_secs(second), cpu, copies });
            }
            assert!(close(overhead.ratio().unwrap(), taken / 0.5), "{:?}", overhead.ratio());
        }
        // The shown time is the mean of both.
        assert!(close(overhead.run(ProbeKind::Finish).unwrap(), 1.25e-6));
        assert_eq!(overhead.run(ProbeKind::Start), None);
    }

    /// For example, a start does not count before the first call has finished, and that call never finishes.
    #[test]
    fn hits_that_never_count_cost_all_the_same() {
        let mut overhead = Overhead::new(vec![costs(Duration::ZERO)]);
        go_on(&mut overhead, 0..10, 0, 0, 1_000);
        overhead.sample(ProbeKind::Start, SECOND / 10, [sample(0, 5_000, 5_000)]);
        // 50,000 hits per second, two microseconds each.
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
        // A sample without a run changes nothing; a newer one weighs more.
        cost.sample(SECOND, Sample::default());
        assert!(close(cost.of(1.0, 1.0), 6e-6));
        for _ in 0..60 {
            cost.sample(SECOND, sample(100, 100, 100));
        }
        assert!(close(cost.of(1.0, 1.0), 2e-6));
    }
}
