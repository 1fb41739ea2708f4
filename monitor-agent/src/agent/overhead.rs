//! What watching costs the targets: measured on the agent itself, sampled in the kernel, computed for each target.

use std::{
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{Latency, WatchConfig, board::Board, prepare::Prepared, sites::sites, watch::Watch};
use crate::{
    bpf::{BpfError, HitCost, Measuring, ProbeLinks, RunTimes},
    failure::Failure,
    image::CostClass,
    metrics::{OverheadStats, SheddingStats},
    pipeline::{Budget, Counts, Overhead, PerProbe, Percent, ProbeCost, ProbeKind, Sample, Shedding, Step},
    plan::cost_name,
};

/// How often the ratios are updated with a budget, and at first.
const UPDATE_EVERY: Duration = Duration::from_secs(1);
/// Added to the interval afterwards without a budget, if nobody scrapes.
const LATER: Duration = Duration::from_secs(4);
/// How long the ratios are updated often at first, so that they are available soon.
const AT_FIRST: Duration = Duration::from_secs(10);
/// How often the kernel starts to measure run times, each time until the next check of the targets: measuring slows
/// down every run. Sooner if a program has not been measured yet.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Age at which a change no longer affects the ratio, which covers five seconds and is updated every second.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(6);

/// What a hit costs on this machine, by cost class, as far as measured.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HitCosts {
    emulated: Option<HitCost>,
    single_stepped: Option<HitCost>,
    returned: Option<HitCost>,
}

impl HitCosts {
    /// Measures what hits of these classes cost, which takes about 150 ms per class. Fails if the kernel can't measure
    /// run times.
    fn measure(classes: &[CostClass], links: ProbeLinks) -> Result<Self, Failure> {
        let measure = |class| classes.contains(&class).then(|| HitCost::measure(class, links)).transpose();
        Ok(Self {
            emulated: measure(CostClass::Emulated)?,
            single_stepped: measure(CostClass::SingleStepped)?,
            returned: measure(CostClass::Returned)?,
        })
    }

    fn get(&self, class: CostClass) -> Option<HitCost> {
        match class {
            CostClass::Emulated => self.emulated,
            CostClass::SingleStepped => self.single_stepped,
            CostClass::Returned => self.returned,
        }
    }

    /// Returns the cost of a hit of each kind of probe, by the cost class of its sites.
    fn of(&self, classes: PerProbe<Option<CostClass>>) -> PerProbe<ProbeCost> {
        let cost = |class: Option<CostClass>| self.get(class?);
        classes.map(|class| {
            cost(class).map_or_else(ProbeCost::default, |cost| ProbeCost::new(cost.hit, cost.empty_run))
        })
    }

    fn seconds(&self) -> Vec<(&'static str, f64)> {
        let classes = [CostClass::Emulated, CostClass::SingleStepped, CostClass::Returned].into_iter();
        classes.filter_map(|class| Some((cost_name(class), self.get(class)?.hit.as_secs_f64()))).collect()
    }
}

/// Measures what a budget needs before anything is attached; `None` without a budget. Fails if it can't be measured,
/// since a budget that can't be kept must not be promised.
pub(super) fn measured_before(
    config: &WatchConfig,
    prepared: &[Prepared],
) -> Result<Option<HitCosts>, Failure> {
    let Some(budget) = config.overhead_budget else { return Ok(None) };
    let plans = prepared.iter().flat_map(|one| one.executable.inspection.plans());
    let classes: Vec<_> =
        plans.flat_map(|(_, plan)| sites(plan, config.wanted)).map(|site| site.cost).collect();
    let costs = HitCosts::measure(&classes, config.links).map_err(|failure| Failure {
        text: format!("--overhead-budget {budget} can't be kept: {failure}"),
        ..failure
    })?;
    Ok(Some(costs))
}

/// The run times that the kernel has measured of a target's programs, and the hits that they have counted by then.
#[derive(Clone, Debug)]
struct Mark {
    at: Instant,
    copies: Vec<CopyMark>,
}

impl Mark {
    /// Reads a target's programs; `None` while they can't be read.
    fn of(watch: &Watch) -> Option<Self> {
        let (at, counts) = (Instant::now(), watch.counts());
        let copies = counts.into_iter().zip(watch.run_times()?);
        Some(Self { at, copies: copies.map(|(counts, runs)| CopyMark { hits: counts.hits, runs }).collect() })
    }
}

/// The same for one copy.
#[derive(Clone, Copy, Debug)]
struct CopyMark {
    hits: PerProbe<u64>,
    runs: PerProbe<RunTimes>,
}

impl CopyMark {
    /// Returns what was added since an earlier mark, for one kind of probe.
    fn since(&self, earlier: &Self, kind: ProbeKind) -> Sample {
        let counted = self.hits[kind as usize].saturating_sub(earlier.hits[kind as usize]);
        let RunTimes { runs, time } = self.runs[kind as usize].since(earlier.runs[kind as usize]);
        Sample { counted, runs, time }
    }
}

/// The user's choice of latency and budget.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal {
    /// The limit for what the probes may cost each target, if any.
    budget: Option<Budget>,
    /// The calls whose durations are taken if nothing is shed.
    latency: Latency,
    /// How probes are attached.
    links: ProbeLinks,
}

impl Goal {
    pub(super) fn of(config: &WatchConfig) -> Self {
        Self { budget: config.overhead_budget, latency: config.latency, links: config.links }
    }
}

/// One target: what the probes cost it, and what is shed so that they cost less.
struct Watched {
    overhead: Overhead,
    /// The target was running at the last update.
    is_running: bool,
    /// From the requested detail down to the least.
    ladder: Vec<Rung>,
    /// The target's place on the ladder.
    shedding: Shedding,
    /// Steps down and up so far.
    steps: [u64; 2],
    /// When its probes were last seen being attached or removed.
    changed: Option<Duration>,
}

impl Watched {
    fn new(watch: &Watch, costs: HitCosts, latency: Latency, now: Duration) -> Self {
        let ladder = if watch.has_windows() { ladder(latency) } else { vec![Rung { level: 0, latency }] };
        Self {
            overhead: Overhead::new(
                watch.cost_classes().into_iter().map(|classes| costs.of(classes)).collect(),
            ),
            is_running: true,
            shedding: Shedding::new(now, ladder.len() - 1),
            ladder,
            steps: [0; 2],
            changed: None,
        }
    }

    /// Adds the target's counts; `None` if it has ended.
    fn update(&mut self, counts: Option<Counts>) {
        self.is_running = counts.is_some();
        if let Some(counts) = counts {
            self.overhead.add(counts);
        }
    }

    /// Returns whether the kernel must measure soon. A target that has ended can't be measured any more.
    fn is_unsampled(&self) -> bool {
        self.is_running && self.overhead.is_unsampled()
    }

    /// Returns the cost ratio at a place on the ladder. It is the measured ratio at the current place, if all probes
    /// stay or the start probes are gone. It is an estimate at other places, and where start probes come and go. It is
    /// also an estimate while they are being removed: with perf events on many targets, that takes the kernel longer
    /// than the time to the next step.
    fn ratio_at(&self, place: usize, measured: f64, at: Duration) -> f64 {
        let latency = self.ladder[place].latency;
        let is_measured = match latency {
            Latency::Full => true,
            Latency::Economy { .. } => false,
            Latency::Off => self.changed.is_none_or(|then| at.saturating_sub(then) > FORGOTTEN_AFTER),
        };
        if place == self.shedding.level() && is_measured {
            return measured;
        }
        self.overhead.ratio_with(latency.share()).unwrap_or(measured)
    }

    /// Takes the step that is due, if any. Returns it with the ratio that decided it.
    fn step(&mut self, budget: Budget, at: Duration) -> Option<(Step, f64)> {
        let measured = self.overhead.ratio()?;
        let mut shedding = self.shedding;
        let step = shedding.decide(at, budget, |place| self.ratio_at(place, measured, at));
        let decided = step.map(|step| {
            let place = if let Step::Restored(place) = step { place } else { self.shedding.level() };
            (step, self.ratio_at(place, measured, at))
        });
        self.shedding = shedding;
        match step {
            Some(Step::Shed(_)) => self.steps[0] += 1,
            Some(Step::Restored(_)) => self.steps[1] += 1,
            Some(Step::Exhausted) | None => (),
        }
        decided
    }

    /// Returns the log message for a step and the ratio that decided it.
    fn told(&self, step: Step, ratio: f64, budget: Budget, has_records: bool) -> String {
        let ratio = Percent(ratio);
        let (place, take, again) = match step {
            Step::Shed(place) => (place, "take", ""),
            Step::Restored(place) => (place, "would take", " again"),
            Step::Exhausted => {
                return format!(
                    "its probes take {ratio} of its CPU time, over the budget of {budget}, with nothing left to give \
                     up: calls are counted all the same"
                );
            }
        };
        let Rung { level, latency } = self.ladder[place];
        let words = in_words(latency, has_records);
        format!(
            "its probes {take} {ratio} of its CPU time, the budget is {budget}: {words}{again} (level {level})"
        )
    }

    /// Sheds or restores detail to keep the budget.
    fn keep(&mut self, budget: Budget, at: Duration, watch: &mut Watch) {
        let Some((step, ratio)) = self.step(budget, at) else { return };
        let text = self.told(step, ratio, budget, watch.has_records());
        match step {
            Step::Restored(_) => info!("{}: {text}", watch.name()),
            Step::Shed(_) | Step::Exhausted => warn!("{}: {text}", watch.name()),
        }
        if let Step::Shed(place) | Step::Restored(place) = step {
            watch.set_latency(self.ladder[place].latency);
        }
    }

    fn stats(&self, has_budget: bool) -> OverheadStats {
        let run = |kind: ProbeKind| Some((kind.name(), self.overhead.run(kind)?));
        OverheadStats {
            ratio: self.overhead.ratio(),
            runs: ProbeKind::ALL.into_iter().filter_map(run).collect(),
            shedding: has_budget.then_some(SheddingStats {
                level: self.ladder[self.shedding.level()].level,
                shed: self.steps[0],
                restored: self.steps[1],
                is_exhausted: self.shedding.is_exhausted(),
            }),
        }
    }
}

/// A level of detail. The request decides which levels exist, but each number always means the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rung {
    level: usize,
    latency: Latency,
}

/// Returns the ladder below what was requested: durations of some calls, of few, of none. Totals are never shed.
fn ladder(asked: Latency) -> Vec<Rung> {
    let every = |seconds| Latency::Economy { every: Duration::from_secs(seconds) };
    let lower = [(1, every(SOME)), (2, every(FEW)), (3, Latency::Off)].into_iter();
    let lower = lower.filter(|(_, latency)| latency.share() < asked.share());
    std::iter::once((0, asked)).chain(lower).map(|(level, latency)| Rung { level, latency }).collect()
}

/// Period, in seconds, with one second of start probes, on the rungs between all and none.
const SOME: u64 = 5;
const FEW: u64 = 20;

/// Describes a latency. If calls record their starts, windows are for the other calls.
fn in_words(latency: Latency, has_records: bool) -> String {
    match latency {
        Latency::Full => "durations are taken of all calls".to_owned(),
        Latency::Economy { every } => {
            let recorded = if has_records { "record their starts, and of those that " } else { "" };
            format!(
                "durations are taken of the calls that {recorded}start in one second of {}",
                every.as_secs()
            )
        }
        Latency::Off => "no durations are taken".to_owned(),
    }
}

/// The overhead of all targets.
pub(super) struct Overheads {
    measuring: Option<JoinHandle<Result<HitCosts, Failure>>>,
    /// In the order of the watches; empty until the cost of a hit is known.
    targets: Vec<Watched>,
    goal: Goal,
    /// The measurement under way, with the marks from its beginning.
    sample: Option<(Measuring, Vec<Option<Mark>>)>,
    /// The kernel refused the last measurement.
    is_refused: bool,
    began: Instant,
    next_update: Instant,
    next_sample: Instant,
}

impl Overheads {
    /// Starts with these targets. If the cost of a hit is not known yet, it is measured on another thread, since
    /// detaching the probe takes a while.
    pub(super) fn new(goal: Goal, known: Option<HitCosts>, watches: &[Watch], board: &Board) -> Self {
        let now = Instant::now();
        let mut overheads = Self {
            measuring: None,
            targets: Vec::new(),
            goal,
            sample: None,
            is_refused: false,
            began: now,
            next_update: now,
            next_sample: now,
        };
        if let Some(costs) = known {
            overheads.begin(costs, watches, board);
            return overheads;
        }
        let classes: Vec<CostClass> =
            watches.iter().flat_map(Watch::cost_classes).flatten().flatten().collect();
        if !classes.is_empty() {
            let measure = thread::Builder::new().spawn(move || HitCosts::measure(&classes, goal.links));
            overheads.measuring = measure
                .inspect_err(|error| warn!("what a hit of a probe takes is not measured: {error}"))
                .ok();
        }
        overheads
    }

    fn begin(&mut self, costs: HitCosts, watches: &[Watch], board: &Board) {
        board.set_hit_costs(costs.seconds());
        for (class, seconds) in costs.seconds() {
            info!("a hit of a probe ({class}) takes {:.2} µs on this machine", seconds * 1e6);
        }
        let now = self.began.elapsed();
        self.targets =
            watches.iter().map(|watch| Watched::new(watch, costs, self.goal.latency, now)).collect();
    }

    /// Does what is due. Must be called whenever the targets are checked.
    pub(super) fn tick(&mut self, watches: &mut [Watch], board: &Board) {
        if self.measuring.as_ref().is_some_and(JoinHandle::is_finished) {
            self.take_costs(watches, board);
        }
        if self.targets.is_empty() {
            return;
        }
        let now = Instant::now();
        self.end_sample(watches);
        if now >= self.next_sample {
            self.next_sample = now + SAMPLE_EVERY;
            self.begin_sample(Measuring::begin(), watches);
        }
        let is_often = self.goal.budget.is_some() || now - self.began < AT_FIRST;
        let rest = if is_often { Duration::ZERO } else { LATER };
        if now >= self.next_update + rest {
            self.update_targets(watches, now);
        }
    }

    /// Updates the ratios for a scrape, unless they were updated shortly before.
    pub(super) fn refresh(&mut self, watches: &mut [Watch]) {
        let now = Instant::now();
        if now >= self.next_update {
            self.update_targets(watches, now);
        }
    }

    fn take_costs(&mut self, watches: &[Watch], board: &Board) {
        match self.measuring.take().map(JoinHandle::join) {
            Some(Ok(Ok(costs))) => self.begin(costs, watches, board),
            Some(Ok(Err(failure))) => warn!("what the probes cost is not known: {failure}"),
            // A panic was already reported.
            _ => (),
        }
    }

    /// Begins a sample. If the kernel refuses, the earlier run times stay: ratio and budget also depend on the number
    /// of hits.
    fn begin_sample(&mut self, begun: Result<Measuring, BpfError>, watches: &[Watch]) {
        let was_refused = std::mem::replace(&mut self.is_refused, begun.is_err());
        match begun {
            Ok(measuring) => self.sample = Some((measuring, watches.iter().map(Mark::of).collect())),
            Err(error) if !was_refused => {
                warn!(
                    "what a program takes is not measured anew, the last measure counts until it can be: {error}"
                );
            }
            Err(_) => (),
        }
    }

    fn end_sample(&mut self, watches: &[Watch]) {
        let Some((measuring, marks)) = self.sample.take() else { return };
        for ((target, watch), before) in self.targets.iter_mut().zip(watches).zip(marks) {
            let (Some(before), Some(after)) = (before, Mark::of(watch)) else { continue };
            let length = after.at - before.at;
            for kind in ProbeKind::ALL {
                let copies = after.copies.iter().zip(&before.copies);
                target.overhead.sample(kind, length, copies.map(|(after, before)| after.since(before, kind)));
            }
        }
        drop(measuring);
    }

    fn update_targets(&mut self, watches: &mut [Watch], now: Instant) {
        self.next_update = now + UPDATE_EVERY;
        let at = now - self.began;
        for (target, watch) in self.targets.iter_mut().zip(watches) {
            target.update(counts_of(watch, at));
            if !target.is_running {
                forget_ratio(&mut watch.face().lock_stats().overhead);
                continue;
            }
            if watch.is_changing() {
                target.changed = Some(at);
            }
            if let Some(budget) = self.goal.budget {
                target.keep(budget, at, watch);
            }
            watch.face().lock_stats().overhead = target.stats(self.goal.budget.is_some());
        }
        if self.targets.iter().any(Watched::is_unsampled) {
            self.next_sample = Instant::now();
        }
    }
}

/// Returns a target's counts at a moment; `None` once it has ended.
fn counts_of(watch: &Watch, at: Duration) -> Option<Counts> {
    Some(Counts { at, cpu: watch.cpu_time()?, copies: watch.counts() })
}

/// Clears the ratio of a target that has ended. What was shed before stays visible.
fn forget_ratio(overhead: &mut OverheadStats) {
    overhead.ratio = None;
    if let Some(shedding) = &mut overhead.shedding {
        shedding.is_exhausted = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::CopyCounts;

    fn target() -> Watched {
        Watched {
            overhead: Overhead::new(vec![PerProbe::default()]),
            is_running: true,
            ladder: ladder(Latency::Full),
            shedding: Shedding::new(Duration::ZERO, 3),
            steps: [2, 1],
            changed: None,
        }
    }

    fn refusal() -> BpfError {
        BpfError::Kernel { action: "measure", source: anyhow::anyhow!("busy") }
    }

    /// Otherwise the budget would no longer be kept, and the level no longer shown.
    #[test]
    fn targets_stay_when_the_kernel_refuses_to_measure() {
        let now = Instant::now();
        let goal = Goal { budget: None, latency: Latency::Full, links: ProbeLinks::Best };
        let mut overheads = Overheads {
            measuring: None,
            targets: vec![target()],
            goal,
            sample: None,
            is_refused: false,
            began: now,
            next_update: now,
            next_sample: now,
        };
        for _ in 0..2 {
            overheads.begin_sample(Err(refusal()), &[]);
            assert!(overheads.is_refused && overheads.sample.is_none());
            let shown = overheads.targets.first().and_then(|target| target.stats(true).shedding);
            assert_eq!(shown.map(|shedding| (shedding.shed, shedding.restored)), Some((2, 1)));
        }
    }

    #[test]
    fn a_level_means_the_same_whatever_was_asked_for() {
        let every = |seconds| Latency::Economy { every: Duration::from_secs(seconds) };
        let [some, few, none] = [(1_usize, every(5)), (2, every(20)), (3, Latency::Off)];
        let cells = [
            (Latency::Full, vec![some, few, none]),
            (every(2), vec![some, few, none]),
            (every(5), vec![few, none]),
            (every(10), vec![few, none]),
            (every(20), vec![none]),
            (every(3_600), vec![none]),
        ];
        for (asked, lower) in cells {
            let rungs: Vec<_> =
                ladder(asked).into_iter().map(|Rung { level, latency }| (level, latency)).collect();
            assert_eq!(rungs, [vec![(0, asked)], lower].concat());
        }
    }

    /// At the end of a shortened ladder all durations are shed, and the level shows it.
    #[test]
    fn what_is_shown_is_the_level_and_not_the_place() {
        let ladder = ladder(Latency::Economy { every: Duration::from_secs(10) });
        let mut target = Watched { ladder, shedding: Shedding::new(Duration::ZERO, 2), ..target() };
        let step = target.shedding.decide(Duration::from_mins(1), "1%".parse().expect("a budget"), |_| 0.5);
        assert_eq!(step, Some(Step::Shed(2)));
        assert_eq!(target.stats(true).shedding.map(|shedding| shedding.level), Some(3));
    }

    /// Returns a target at a place on the ladder that has used half a CPU. A hit of its probes costs a microsecond.
    fn target_at(place: usize, moments: impl IntoIterator<Item = CopyCounts>) -> Watched {
        let mut target = target();
        target.overhead = Overhead::new(vec![[ProbeCost::new(Duration::from_micros(1), Duration::ZERO); 4]]);
        for (at, copy) in (0..).map(Duration::from_secs).zip(moments) {
            target.update(Some(Counts { at, cpu: at / 2, copies: vec![copy] }));
        }
        let only_there = |one: usize| if one == place { 0.0 } else { 1.0 };
        target.shedding.decide(Duration::from_secs(6), budget("50%"), only_there);
        assert_eq!(target.shedding.level(), place);
        target
    }

    fn budget(text: &str) -> Budget {
        text.parse().expect("a budget")
    }

    /// Returns this many starts and finishes so far, with starts watched for this many seconds.
    fn counted(starts: u64, finishes: u64, seconds: u64) -> CopyCounts {
        CopyCounts { hits: [starts, finishes, 0, 0], watched: Some(Duration::from_secs(seconds)) }
    }

    /// 50,000 starts and 10,000 finishes a second. Starts are watched in the first second only.
    fn after_a_window() -> impl Iterator<Item = CopyCounts> {
        let later = (1..8).map(|second| counted(50_000, second * 10_000, 1));
        std::iter::once(counted(0, 0, 0)).chain(later)
    }

    #[test]
    fn what_is_said_of_a_step_is_what_decided_it() {
        let at = Duration::from_secs(20);
        let mut target = target_at(1, after_a_window());
        let measured = target.overhead.ratio().expect("a ratio");
        let (step, ratio) = target.step(budget("3%"), at).expect("a step");
        assert!(measured < 0.03 && ratio > 0.03, "{measured} {ratio}");
        assert_eq!((step, target.steps), (Step::Shed(2), [3, 1]));
        let told = target.told(step, ratio, budget("3%"), false);
        let begin = format!("its probes take {} of its CPU time, the budget is 3%: ", Percent(ratio));
        assert!(told.starts_with(&begin) && told.ends_with(" (level 2)"), "{told}");
        // All probes would take much more than what is measured.
        let mut target = target_at(3, after_a_window());
        assert_eq!(target.step(budget("20%"), at), None);
        let (step, ratio) = target.step(budget("20%"), 2 * at).expect("a step");
        assert!(ratio > 2.0 * measured, "{measured} {ratio}");
        assert_eq!((step, target.steps), (Step::Restored(0), [2, 2]));
        let told = target.told(step, ratio, budget("20%"), false);
        let begin = format!("its probes would take {} of its CPU time, the budget is 20%: ", Percent(ratio));
        assert!(told.starts_with(&begin) && told.ends_with(" again (level 0)"), "{told}");
    }

    /// 10,000 starts and as many finishes a second. All are watched.
    fn without_an_end() -> impl Iterator<Item = CopyCounts> {
        (0..8).map(|second| counted(second * 10_000, second * 10_000, second))
    }

    /// Nothing is left to shed only when they are gone, not while the kernel still removes them.
    #[test]
    fn probes_that_are_being_taken_away_are_not_counted_as_if_they_stayed() {
        let at = Duration::from_secs(20);
        let mut target = target_at(3, without_an_end());
        target.changed = Some(Duration::from_secs(14));
        assert!(target.overhead.ratio() > Some(0.03));
        assert_eq!(target.step(budget("3%"), at), None);
        assert!(!target.shedding.is_exhausted());
        // Finish probes alone take two percent.
        let (step, ratio) = target.step(budget("1%"), at).expect("a step");
        assert!(step == Step::Exhausted && (0.015..0.025).contains(&ratio), "{step:?} {ratio}");
        let told = target.told(step, ratio, budget("1%"), false);
        let begin = format!("its probes take {} of its CPU time, over the budget of 1%", Percent(ratio));
        assert!(told.starts_with(&begin), "{told}");
    }

    /// As if no thread could be created to remove them.
    #[test]
    fn probes_that_stay_where_they_are_given_up_are_counted() {
        let at = Duration::from_secs(20);
        for changed in [None, Some(Duration::from_millis(13_999))] {
            let mut target = Watched { changed, ..target_at(3, without_an_end()) };
            let measured = target.overhead.ratio().expect("a ratio");
            assert_eq!(target.step(budget("3%"), at), Some((Step::Exhausted, measured)), "{changed:?}");
            assert!(target.shedding.is_exhausted());
        }
    }

    /// Otherwise the kernel would measure for the rest of the run.
    #[test]
    fn what_a_target_that_has_ended_did_last_is_not_to_be_measured() {
        let mut target = target();
        for second in 0..2 {
            let at = Duration::from_secs(second);
            let copies = vec![counted(0, 7 * second, 0)];
            target.update(Some(Counts { at, copies, ..Counts::default() }));
        }
        assert!(target.is_unsampled());
        target.update(None);
        assert!(!target.is_unsampled());
    }

    #[test]
    fn a_target_that_has_ended_is_not_over_its_budget() {
        let mut overhead = target().stats(true);
        overhead.ratio = Some(0.5);
        overhead.shedding =
            overhead.shedding.map(|shedding| SheddingStats { is_exhausted: true, ..shedding });
        forget_ratio(&mut overhead);
        assert!(overhead.ratio.is_none());
        assert_eq!(overhead.shedding.map(|shedding| shedding.is_exhausted), Some(false));
    }
}
