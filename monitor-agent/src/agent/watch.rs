//! One target that is watched.

use std::{
    fs::File,
    sync::{Arc, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use monitor_ebpf::Counter;
use tracing::{info, warn};

use super::{
    Latency, WatchConfig,
    attached::{self, Attached, Place},
    call::{Batch, Turn},
    clock::Clock,
    describe,
    face::Face,
    prepare::Prepared,
    probes::Probes,
    sites::sites,
    verify::{check_return_probes, load_bias},
};
use crate::{
    bpf::RunTimes,
    failure::Failure,
    image::CostClass,
    metrics::{FrameworkStats, LatencySource, SiteStats, TargetStats},
    pipeline::{CopyCounts, CounterValues, Ladder, PerProbe, Tracer},
    plan::{Found, Plan, cost_name},
    target::{Liveness, Target},
    text::{printable, shown},
};

/// A target with probes attached, or one that has ended and whose totals are kept.
pub(super) struct Watch {
    place: Place,
    /// The executable's file, from which label sets and types are read. `None` once all of them are known.
    file: Option<Arc<File>>,
    /// One for each framework in the executable; empty once the target is down, since each holds tables in the kernel.
    attached: Vec<Attached>,
    /// The values of the programs' counters when the target was set down.
    kept: [(Counter, u64); KEPT.len()],
    /// The thread that removes the probes of a target that has ended.
    leaving: Option<JoinHandle<()>>,
    /// When to check next, at little cost, whether the target still runs.
    next_glance: Instant,
    /// When to check next by all means whether it still runs.
    next_close_look: Instant,
    /// When the rings were last drained.
    drained: Instant,
    /// The rings held many records at one of the drains since this was last checked.
    was_filling: bool,
    /// Where durations came from at the last check.
    latency_sources: Vec<LatencySource>,
    is_up: bool,
    face: Arc<Face>,
}

/// The shared state for draining the rings of all targets in turn.
#[derive(Default)]
pub(super) struct Tools {
    pub(super) clock: Clock,
    batch: Batch,
}

/// A target whose text matches its plans.
pub(super) struct Checked {
    place: Place,
    /// The executable's file.
    file: Arc<File>,
}

/// A target with programs attached.
pub(super) struct Begun {
    place: Place,
    /// The executable's file.
    file: Arc<File>,
    /// The programs of each framework that is watched.
    programs: Vec<attached::Begun>,
    /// When attaching began: all that is counted came later.
    since: SystemTime,
    /// How long attaching took.
    took: Duration,
}

impl Checked {
    /// Refuses a target whose text does not match its plans, or that their probes could end.
    pub(super) fn new(prepared: Prepared, config: &WatchConfig) -> Result<Self, Failure> {
        let Prepared { target, executable, file } = prepared;
        let name = describe(&target);
        let mut place = Place { target, executable, bias: 0, name };
        // A process that is watched without calls and Go runtime needs no load bias.
        if place.executable.runtime.is_some() || plans(&place, config).next().is_some() {
            place.bias = load_bias(&place.target, &place.executable.image)?;
        }
        check_return_probes(&place.target, plans(&place, config).map(|(_, found, plan)| (found, plan)))?;
        let mut is_probed = false;
        for (_, _, plan) in plans(&place, config) {
            is_probed |= Attached::check(&place, plan, config)?;
        }
        if is_probed && config.pushes {
            warn!(
                "{}: another program has probes at the same places: if that is an agent that pushes too, a collector takes \
                 both for one, and what it shows is wrong",
                place.name
            );
        }
        Ok(Self { place, file })
    }

    /// Attaches every plan. On failure nothing stays attached. Logs nothing.
    pub(super) fn attach(self, config: &WatchConfig) -> Result<Begun, Failure> {
        let Self { place, file } = self;
        let (since, began) = (SystemTime::now(), Instant::now());
        let attach =
            |(index, found, plan)| attached::Begun::attach(&place, &file, index, (found, plan), config);
        let programs = plans(&place, config).map(attach).collect::<Result<_, _>>()?;
        Ok(Begun { place, file, programs, since, took: began.elapsed() })
    }
}

/// Returns the plans to attach, each with its framework and the framework's index.
fn plans<'a>(
    place: &'a Place,
    config: &'a WatchConfig,
) -> impl Iterator<Item = (usize, &'a Found, &'a Plan)> {
    let frameworks = place.executable.inspection.frameworks.iter().enumerate();
    let wanted = frameworks.filter(|(_, found)| is_wanted(found, config));
    wanted.filter_map(|(index, found)| Some((index, found, found.plan.as_ref().ok()?)))
}

fn is_wanted(found: &Found, config: &WatchConfig) -> bool {
    found.family.is_none_or(|family| config.metrics.wants_calls_of(family))
}

/// Takes over the programs of each watched framework, and logs which frameworks are watched and which are not.
fn take_over(
    place: &Place,
    programs: Vec<attached::Begun>,
    stats: &mut TargetStats,
    config: &WatchConfig,
    ladder: &Arc<Ladder>,
) -> Result<Vec<Attached>, Failure> {
    let mut programs = programs.into_iter().peekable();
    let mut attached = Vec::new();
    let frameworks = place.executable.inspection.frameworks.iter().enumerate();
    for (index, found) in frameworks.filter(|(_, found)| is_wanted(found, config)) {
        let plan = match &found.plan {
            Ok(plan) => plan,
            Err(refusal) => {
                warn!(
                    "{}: its {} {}is not watched: {}",
                    place.name,
                    found.name,
                    at(&shown(&found.module)),
                    shown(refusal)
                );
                continue;
            }
        };
        let Some(begun) = programs.next_if(|begun| begun.framework == index) else { continue };
        attached.push(Attached::new(place, begun, (found, plan), config, ladder)?);
        info!("attached to {}: {}", place.name, shown(&with_versions(found, &stats.go_version)));
        // `inspect` shows the notes about a framework's release. Those about a spec concern what its author has
        // requested.
        for note in plan.notes.iter().filter(|_| found.spec.is_some()) {
            warn!("{}: {}: {}", place.name, found.name, printable(note));
        }
        add_stats(stats, (found, plan), config);
    }
    Ok(attached)
}

impl Watch {
    /// Takes over a target with programs attached. On failure nothing stays attached.
    pub(super) fn new(begun: Begun, config: &WatchConfig, ladder: &Arc<Ladder>) -> Result<Self, Failure> {
        let Begun { place, file, programs, since, took } = begun;
        let mut stats = TargetStats {
            pid: place.target.pid(),
            up: true,
            exe: place.target.exe_name().to_owned(),
            build_id: place.executable.inspection.build_id.clone().unwrap_or_default(),
            go_version: place.executable.inspection.go_version.clone(),
            attach: took,
            ..TargetStats::default()
        };
        let attached = take_over(&place, programs, &mut stats, config, ladder)?;
        if attached.is_empty() {
            info!("watching {}: {}, no calls", place.name, config.metrics);
        }
        let face = Arc::new(Face::open(&place, &attached, stats, since, config));
        let now = Instant::now();
        let mut watch = Self {
            place,
            file: Some(file),
            attached,
            kept: KEPT.map(|counter| (counter, 0)),
            leaving: None,
            next_glance: now + GLANCE_EVERY,
            next_close_look: now + LOOK_CLOSELY_EVERY,
            drained: now,
            was_filling: false,
            latency_sources: Vec::new(),
            is_up: true,
            face,
        };
        watch.set_latency(config.latency);
        if config.latency != Latency::Full && watch.has_windows() {
            info!("{}: durations are taken of the calls that start in windows of a second", watch.name());
        }
        watch.say_what_has_no_effect(config);
        Ok(watch)
    }

    /// Returns what readers see of the target.
    pub(super) fn face(&self) -> Arc<Face> {
        Arc::clone(&self.face)
    }

    /// Returns whether calls may still come in.
    pub(super) fn is_up(&self) -> bool {
        self.is_up
    }

    /// Returns the process.
    pub(super) fn target(&self) -> &Target {
        &self.place.target
    }

    /// Returns whether the rings hold many records.
    pub(super) fn is_filling(&self) -> bool {
        self.attached.iter().any(Attached::is_filling)
    }

    /// Returns whether the rings hold many records, or did at a drain since the last call: scrapes drain them as well,
    /// and they fill again.
    pub(super) fn has_been_filling(&mut self) -> bool {
        std::mem::take(&mut self.was_filling) || self.is_filling()
    }

    /// Returns how long ago the rings were drained.
    pub(super) fn left_alone_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.drained)
    }

    /// Takes one short turn's records out of each ring, for the tracer too.
    pub(super) fn drain(&mut self, tools: &mut Tools, tracer: &mut dyn Tracer) {
        self.take_out(Turn::Short, tools, tracer);
    }

    fn take_out(&mut self, turn: Turn, tools: &mut Tools, tracer: &mut dyn Tracer) {
        self.drained = Instant::now();
        self.was_filling |= self.is_filling();
        let Tools { clock, batch } = tools;
        let Self { attached, place, .. } = self;
        let drain = |attached: &mut Attached| attached.drain(turn, place, clock, batch, tracer);
        let ring_bytes = attached.iter_mut().map(drain).sum();
        self.face.lock_stats().ring_bytes = ring_bytes;
    }

    /// Drains the rings, and publishes what a scrape may read.
    pub(super) fn publish(&mut self, tools: &mut Tools, tracer: &mut dyn Tracer) {
        self.take_out(Turn::Whole, tools, tracer);
        let Self { attached, place, .. } = self;
        let mut has_news = false;
        for attached in attached {
            has_news |= attached.ask_for_types(place);
        }
        if has_news {
            self.show_unexpected();
        }
        let changes: Vec<_> = self.attached.iter_mut().map(Attached::read_changes).collect();
        let mut counters = CounterValues::default();
        for one in &changes {
            counters.add(&one.counters);
        }
        self.face.lock_stats().counters = counters;
        self.face.published.update(changes);
    }

    /// Maintains the calls in flight, and notices when the target has ended. Its probes are then removed on another
    /// thread, since that takes the kernel some time and the other targets must not wait. Its totals are kept.
    pub(super) fn check(&mut self, now: Instant, tools: &mut Tools, tracer: &mut dyn Tracer) {
        if self.leaving.as_ref().is_some_and(JoinHandle::is_finished) {
            self.end(tools, tracer);
            return;
        }
        if !self.is_up || self.leaving.is_some() {
            return;
        }
        if self.attached.iter().any(|attached| attached.is_to_decide(now)) {
            self.drain(tools, tracer);
        }
        self.maintain(now);
        let what = match self.liveness(now) {
            Liveness::Running => return,
            Liveness::Exited => "has ended",
            Liveness::Replaced => "has started another program",
        };
        warn!("{} {what}; its totals are kept", describe(&self.place.target));
        let probes = self.take_probes();
        // If there can be no thread, they are removed here, which delays the other targets.
        self.leaving = thread::Builder::new().spawn(move || drop_side_by_side(probes)).ok();
        if self.leaving.is_none() {
            self.end(tools, tracer);
        }
    }

    /// Publishes the final state of a target that has ended, once its probes are removed.
    fn end(&mut self, tools: &mut Tools, tracer: &mut dyn Tracer) {
        self.detach();
        self.publish(tools, tracer);
        self.set_down();
    }

    /// Makes the next check look closely, since the target may have ended.
    pub(super) fn suspect_end(&mut self) {
        let now = Instant::now();
        (self.next_glance, self.next_close_look) = (now, now);
    }

    /// Checks whether the target still runs. [`Exits`](crate::target::Exits) reports processes that have ended. The
    /// rest is checked only now and then: with many targets, it would be most of the agent's work.
    fn liveness(&mut self, now: Instant) -> Liveness {
        if now < self.next_glance {
            return Liveness::Running;
        }
        let target = &self.place.target;
        let seems_running = target.seems_running();
        // In the middle of an exec nothing else shows it yet, and a read of the target's memory may hide it. Then it is
        // checked again at the next check.
        self.next_glance = if seems_running { now + GLANCE_EVERY } else { now };
        if now < self.next_close_look && seems_running {
            return Liveness::Running;
        }
        self.next_close_look = now + LOOK_CLOSELY_EVERY;
        target.liveness()
    }

    /// Chooses the calls whose durations are taken. Takes effect soon, not immediately. All calls are counted.
    pub(super) fn set_latency(&mut self, latency: Latency) {
        for attached in &mut self.attached {
            attached.set_latency(latency);
        }
        self.note_latency_sources();
    }

    /// Returns whether start probes are being attached or removed.
    pub(super) fn is_changing(&self) -> bool {
        self.attached.iter().any(Attached::is_changing)
    }

    /// Returns whether start probes can be removed, so that there is a choice.
    pub(super) fn has_windows(&self) -> bool {
        self.attached.iter().any(Attached::has_windows)
    }

    /// Returns whether any call was seen that had recorded its start.
    pub(super) fn has_records(&self) -> bool {
        self.attached.iter().any(Attached::has_records)
    }

    /// Returns the target's name, for messages.
    pub(super) fn name(&self) -> &str {
        &self.place.name
    }

    /// Shows where durations come from now, and logs when calls begin or cease to record their starts.
    fn note_latency_sources(&mut self) {
        let sources = || self.attached.iter().map(Attached::latency_source);
        if sources().eq(self.latency_sources.iter().copied()) {
            return;
        }
        let sources: Vec<_> = sources().collect();
        let before = std::mem::replace(&mut self.latency_sources, sources.clone());
        self.face.lock_stats().latency_sources.clone_from(&sources);
        let is_off = sources.contains(&LatencySource::Nowhere);
        let [are_recorded, were_recorded] =
            [sources, before].map(|sources| sources.contains(&LatencySource::Recorded));
        if are_recorded && !were_recorded {
            info!("{}: its calls record their starts, so durations need no windows", self.place.name);
        } else if were_recorded && !are_recorded && !is_off {
            info!("{}: not all of its calls record their starts", self.place.name);
        }
    }

    /// Runs each framework's periodic work, and shows the results.
    fn maintain(&mut self, now: Instant) {
        let Self { attached, place, .. } = self;
        let mut has_news = false;
        for attached in attached {
            has_news |= attached.maintain(now, place);
        }
        if has_news {
            self.show_unexpected();
        }
        self.note_latency_sources();
    }

    fn show_unexpected(&self) {
        let unexpected = self.attached.iter().flat_map(Attached::unexpected).cloned().collect();
        self.face.lock_stats().unexpected = unexpected;
    }

    /// Marks the target as no longer watched, and releases everything except what is shown of it. Must be called only
    /// after its last calls are published. Clears `up` last, so that a reader that sees the target down sees its final
    /// state.
    fn set_down(&mut self) {
        self.is_up = false;
        *self.face.process.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(go) = &mut *self.face.lock_go() {
            go.close();
        }
        self.face.close_in_flight();
        self.kept = KEPT.map(|counter| (counter, self.counter(counter)));
        self.attached.clear();
        drop(self.file.take());
        let mut stats = self.face.lock_stats();
        stats.ring_bytes = 0;
        stats.up = false;
    }

    /// Leaves a target that is up when the agent ends. One that still runs is not shown as ended.
    pub(super) fn leave(&mut self) {
        if self.place.target.liveness() == Liveness::Running {
            self.is_up = false;
            return;
        }
        self.set_down();
    }

    /// Removes the probes, and waits until they are removed. Takes about 200 ms, for all targets together if done side
    /// by side.
    pub(super) fn detach(&mut self) {
        drop_side_by_side(self.take_probes());
        if let Some(leaving) = self.leaving.take() {
            // A panic was already reported, and leaves nothing attached.
            let _ = leaving.join();
        }
    }

    fn take_probes(&mut self) -> Vec<Probes> {
        let probes: Vec<_> = self.attached.iter_mut().filter_map(Attached::take_probes).collect();
        // A target that is down has none, and gets no more.
        if !probes.is_empty() {
            self.face.begin_to_leave();
        }
        probes
    }

    /// Returns whether its calls are watched, or were.
    pub(super) fn has_calls(&self) -> bool {
        self.face.lock_stats().has_calls()
    }

    /// Returns the cost class of the sites of each kind of probe, for each copy.
    pub(super) fn cost_classes(&self) -> Vec<PerProbe<Option<CostClass>>> {
        self.attached.iter().map(Attached::cost_classes).collect()
    }

    /// Returns what the programs have counted of their hits, for each copy.
    pub(super) fn counts(&self) -> Vec<CopyCounts> {
        self.attached.iter().map(Attached::counts).collect()
    }

    /// Returns how often the programs for each kind of probe have run and for how long, while the kernel measured it,
    /// for each copy. `None` while some can't be read, and after they are removed.
    pub(super) fn run_times(&self) -> Option<Vec<PerProbe<RunTimes>>> {
        if !self.is_up {
            return None;
        }
        self.attached.iter().map(Attached::run_times).collect()
    }

    /// Returns a counter's sum over all frameworks. Once the target is down, only the counters in [`KEPT`] are known.
    pub(super) fn counter(&self, counter: Counter) -> u64 {
        let kept = self.kept.iter().find(|(of, _)| *of == counter).map_or(0, |(_, count)| *count);
        kept + self.attached.iter().map(|attached| attached.counter(counter)).sum::<u64>()
    }

    /// Returns the target's CPU time since it started; `None` once it has ended.
    pub(super) fn cpu_time(&self) -> Option<Duration> {
        self.is_up.then(|| self.place.target.cpu_time()).flatten()
    }

    /// Returns the number of calls counted, and how many of them have no duration.
    pub(super) fn summary(&self) -> (u64, u64) {
        let counters = self.face.lock_stats().counters;
        (counters.finished, without_duration(&counters))
    }

    /// Warns if an option of the user's has no effect on this target.
    fn say_what_has_no_effect(&self, config: &WatchConfig) {
        if !self.has_calls() || self.has_windows() {
            return;
        }
        if config.latency != Latency::Full {
            warn!(
                "{}: --latency economy changes nothing here: only calls of Kitex can do without a probe at each start",
                self.name()
            );
        }
        if let Some(budget) = config.overhead_budget {
            warn!(
                "{}: nothing can be given up here for --overhead-budget {budget}: only calls of Kitex can do without a \
                 probe at each start; monitor_target_overhead_ratio tells what watching costs it",
                self.name()
            );
        }
    }
}

/// Returns the number of finished calls that are in no histogram, for any reason.
fn without_duration(counters: &CounterValues) -> u64 {
    let CounterValues { unpaired, sampled_out, ring_full, ring_full_recorded, clock_set, .. } = counters;
    unpaired + sampled_out + ring_full + ring_full_recorded + clock_set
}

/// Returns a framework's name with its version and the Go release. Native functions have neither.
fn with_versions(found: &Found, go_version: &str) -> String {
    let after = |separator: &str, version: &str| {
        if version.is_empty() { String::new() } else { format!("{separator}{version}") }
    };
    // A spec without a module has no version.
    let version = if found.module.is_empty() { "" } else { &found.version };
    format!("{}{}{}", found.name, after(" ", version), after(", ", go_version))
}

fn at(module: &str) -> String {
    if module.is_empty() { String::new() } else { format!("at {module} ") }
}

fn drop_side_by_side(probes: Vec<Probes>) {
    thread::scope(|scope| {
        for probes in probes {
            // If there can be no thread, the closure and its probes are dropped at once.
            let _ = thread::Builder::new().spawn_scoped(scope, move || drop(probes));
        }
    });
}

fn add_stats(stats: &mut TargetStats, (found, plan): (&Found, &Plan), config: &WatchConfig) {
    stats.frameworks.push(FrameworkStats { name: found.name.clone(), version: found.version.clone() });
    stats.label_sets_limit += u64::from(config.limits.label_sets);
    stats.ring_capacity += u64::from(config.limits.ring_bytes);
    stats.sites.extend(sites(plan, config.wanted).into_iter().map(|site| SiteStats {
        role: site.role.name(),
        symbol: site.symbol.clone(),
        instruction: site.instruction.clone(),
        file_offset: site.file_offset,
        cost_class: cost_name(site.cost),
    }));
}

/// Counters that are kept after the target is down: how often it has passed limits.
const KEPT: [Counter; 3] = [Counter::LabelSetRefused, Counter::RefusedFull, Counter::RefusedNested];
/// How often a target that is not reported to have ended is checked: it may have started another program.
const GLANCE_EVERY: Duration = Duration::from_millis(500);
/// How often all checks are made whether a target still runs.
const LOOK_CLOSELY_EVERY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_without_a_duration_is_in_the_summary_once() {
        let counters = CounterValues {
            finished: 100,
            unpaired: 1,
            sampled_out: 2,
            ring_full: 4,
            ring_full_recorded: 8,
            clock_set: 16,
            // Of unpaired calls, and of calls that have a duration.
            ring_full_unpaired: 1,
            recorded: 32,
            ..CounterValues::default()
        };
        assert_eq!(without_duration(&counters), 31);
    }
}
