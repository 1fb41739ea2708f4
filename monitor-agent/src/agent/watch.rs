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
    /// The executable's: label sets and types are read from it. `None` once all of them are known.
    file: Option<Arc<File>>,
    /// One for each framework in it; none once the target is down, since each has its tables in the kernel.
    attached: Vec<Attached>,
    /// What the programs had counted when the target was set down.
    kept: [(Counter, u64); KEPT.len()],
    /// Takes the probes away from a target that has ended.
    leaving: Option<JoinHandle<()>>,
    /// Whether the target still runs is asked as little as that, from then on,
    next_glance: Instant,
    /// and by all that tells it from then on.
    next_close_look: Instant,
    /// When the rings were last drained.
    drained: Instant,
    /// Much waited in them at a time when they were drained, since somebody asked.
    was_filling: bool,
    /// Where durations came from when last looked at.
    latency_sources: Vec<LatencySource>,
    is_up: bool,
    face: Arc<Face>,
}

/// What it takes to drain rings, for all targets in turn.
#[derive(Default)]
pub(super) struct Tools {
    pub(super) clock: Clock,
    batch: Batch,
}

/// A target whose text is that of its plans.
pub(super) struct Checked {
    place: Place,
    /// The executable's.
    file: Arc<File>,
}

/// A target with programs attached.
pub(super) struct Begun {
    place: Place,
    /// The executable's.
    file: Arc<File>,
    /// Of each framework that is watched.
    programs: Vec<attached::Begun>,
    /// When that began: whatever is counted has come since.
    since: SystemTime,
    /// How long it took.
    took: Duration,
}

impl Checked {
    /// Refuses a target whose text is not that of its plans, or that they could end.
    pub(super) fn new(prepared: Prepared, config: &WatchConfig) -> Result<Self, Failure> {
        let Prepared { target, executable, file } = prepared;
        let name = describe(&target);
        let mut place = Place { target, executable, bias: 0, name };
        // Of a process alone nothing is asked that lies in its executable.
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

    /// Attaches every plan; whatever fails leaves nothing attached. Writes nothing to the log.
    pub(super) fn attach(self, config: &WatchConfig) -> Result<Begun, Failure> {
        let Self { place, file } = self;
        let (since, began) = (SystemTime::now(), Instant::now());
        let attach =
            |(index, found, plan)| attached::Begun::attach(&place, &file, index, (found, plan), config);
        let programs = plans(&place, config).map(attach).collect::<Result<_, _>>()?;
        Ok(Begun { place, file, programs, since, took: began.elapsed() })
    }
}

/// The plans of a target's frameworks that are to be watched, each with the number and the name of its framework.
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

/// Takes over the programs of each framework that is watched, and says which are and which are not.
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
        // What a framework's release can't tell is said by `inspect`. A spec's author has asked for what is missing.
        for note in plan.notes.iter().filter(|_| found.spec.is_some()) {
            warn!("{}: {}: {}", place.name, found.name, printable(note));
        }
        add_stats(stats, (found, plan), config);
    }
    Ok(attached)
}

impl Watch {
    /// Takes over a target with programs attached; whatever fails leaves nothing attached.
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

    /// What readers see of it.
    pub(super) fn face(&self) -> Arc<Face> {
        Arc::clone(&self.face)
    }

    /// Whether calls may still come in.
    pub(super) fn is_up(&self) -> bool {
        self.is_up
    }

    /// The process.
    pub(super) fn target(&self) -> &Target {
        &self.place.target
    }

    /// Whether much waits in the rings.
    pub(super) fn is_filling(&self) -> bool {
        self.attached.iter().any(Attached::is_filling)
    }

    /// Whether much waits in the rings, or did when they were drained since this was asked: who scrapes has them drained, too,
    /// and they fill on.
    pub(super) fn has_been_filling(&mut self) -> bool {
        std::mem::take(&mut self.was_filling) || self.is_filling()
    }

    /// How long ago the rings were drained.
    pub(super) fn left_alone_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.drained)
    }

    /// Takes out of each ring what others can wait for, for the tracer too.
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

    /// Drains, and publishes what a scrape may read.
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

    /// Looks after the calls in flight, and notices that the target has ended. The probes are then taken away beside
    /// everything else, since that takes the kernel its time and the other targets must not wait; the totals are
    /// kept.
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
        // Where there can be no thread they are taken away here, which is late for the others, but done.
        self.leaving = thread::Builder::new().spawn(move || drop_side_by_side(probes)).ok();
        if self.leaving.is_none() {
            self.end(tools, tracer);
        }
    }

    /// Shows what there has ever been of a target that has ended, once its probes are taken away.
    fn end(&mut self, tools: &mut Tools, tracer: &mut dyn Tracer) {
        self.detach();
        self.publish(tools, tracer);
        self.set_down();
    }

    /// To be called where something says that the target may have ended.
    pub(super) fn suspect_end(&mut self) {
        let now = Instant::now();
        (self.next_glance, self.next_close_look) = (now, now);
    }

    /// That a process has ended is told by [`Exits`](crate::target::Exits); all else is asked for now and then: with many
    /// targets that would be most of what the agent does.
    fn liveness(&mut self, now: Instant) -> Liveness {
        if now < self.next_glance {
            return Liveness::Running;
        }
        let target = &self.place.target;
        let seems_running = target.seems_running();
        // In the middle of an exec nothing else tells of it yet, and a read of its memory may hide one: then it is asked again
        // at the next check.
        self.next_glance = if seems_running { now + GLANCE_EVERY } else { now };
        if now < self.next_close_look && seems_running {
            return Liveness::Running;
        }
        self.next_close_look = now + LOOK_CLOSELY_EVERY;
        target.liveness()
    }

    /// Chooses the calls of which durations are taken, from soon on; they are counted all the same.
    pub(super) fn set_latency(&mut self, latency: Latency) {
        for attached in &mut self.attached {
            attached.set_latency(latency);
        }
        self.note_latency_sources();
    }

    /// Whether probes at the starts are being put in place, or taken away.
    pub(super) fn is_changing(&self) -> bool {
        self.attached.iter().any(Attached::is_changing)
    }

    /// Whether there is a choice.
    pub(super) fn has_windows(&self) -> bool {
        self.attached.iter().any(Attached::has_windows)
    }

    /// Whether calls that have recorded their start were seen.
    pub(super) fn has_records(&self) -> bool {
        self.attached.iter().any(Attached::has_records)
    }

    /// The target, for messages.
    pub(super) fn name(&self) -> &str {
        &self.place.name
    }

    /// Shows where durations come from now, and says so if calls have begun or ceased to record their starts.
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

    /// Has each framework do what is to be done from time to time, and shows what has come of it.
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

    /// Says that the target is no longer watched, and lets go of all but what is shown of it. Only once its last calls are
    /// published, and says so last: who sees it down sees all there will ever be.
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

    /// To be called of a target that is up when the agent ends: one that lives on is not shown as one that has ended.
    pub(super) fn leave(&mut self) {
        if self.place.target.liveness() == Liveness::Running {
            self.is_up = false;
            return;
        }
        self.set_down();
    }

    /// Takes the probes away, and waits until they are. Takes some 200 ms, for all targets together if run side by
    /// side.
    pub(super) fn detach(&mut self) {
        drop_side_by_side(self.take_probes());
        if let Some(leaving) = self.leaving.take() {
            // A panic there has been reported, and leaves nothing attached.
            let _ = leaving.join();
        }
    }

    fn take_probes(&mut self) -> Vec<Probes> {
        let probes: Vec<_> = self.attached.iter_mut().filter_map(Attached::take_probes).collect();
        // Of a target that is down there are none, and no more to come.
        if !probes.is_empty() {
            self.face.begin_to_leave();
        }
        probes
    }

    /// Whether its calls are watched, or were.
    pub(super) fn has_calls(&self) -> bool {
        self.face.lock_stats().has_calls()
    }

    /// The class of the sites of each kind of probe, copy by copy.
    pub(super) fn cost_classes(&self) -> Vec<PerProbe<Option<CostClass>>> {
        self.attached.iter().map(Attached::cost_classes).collect()
    }

    /// What the programs have counted of their hits, copy by copy.
    pub(super) fn counts(&self) -> Vec<CopyCounts> {
        self.attached.iter().map(Attached::counts).collect()
    }

    /// How often the programs for each kind of probe have run and for how long, while the kernel measured it, copy by copy;
    /// `None` while some can't be asked, and once they are taken away.
    pub(super) fn run_times(&self) -> Option<Vec<PerProbe<RunTimes>>> {
        if !self.is_up {
            return None;
        }
        self.attached.iter().map(Attached::run_times).collect()
    }

    /// What the programs have counted, of all frameworks. Once the target is down that is kept of [`KEPT`] alone.
    pub(super) fn counter(&self, counter: Counter) -> u64 {
        let kept = self.kept.iter().find(|(of, _)| *of == counter).map_or(0, |(_, count)| *count);
        kept + self.attached.iter().map(|attached| attached.counter(counter)).sum::<u64>()
    }

    /// CPU time of the target since it started; `None` once it has ended.
    pub(super) fn cpu_time(&self) -> Option<Duration> {
        self.is_up.then(|| self.place.target.cpu_time()).flatten()
    }

    /// Calls counted, and those of them whose duration is not known.
    pub(super) fn summary(&self) -> (u64, u64) {
        let counters = self.face.lock_stats().counters;
        (counters.finished, without_duration(&counters))
    }

    /// Says so where a choice of the user's changes nothing for this target.
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

/// Finished calls that are in no histogram, whatever the reason.
fn without_duration(counters: &CounterValues) -> u64 {
    let CounterValues { unpaired, sampled_out, ring_full, ring_full_recorded, clock_set, .. } = counters;
    unpaired + sampled_out + ring_full + ring_full_recorded + clock_set
}

/// Native functions are in no module and in no Go program.
fn with_versions(found: &Found, go_version: &str) -> String {
    let after = |separator: &str, version: &str| {
        if version.is_empty() { String::new() } else { format!("{separator}{version}") }
    };
    // A spec without a module has no release.
    let version = if found.module.is_empty() { "" } else { &found.version };
    format!("{}{}{}", found.name, after(" ", version), after(", ", go_version))
}

fn at(module: &str) -> String {
    if module.is_empty() { String::new() } else { format!("at {module} ") }
}

fn drop_side_by_side(probes: Vec<Probes>) {
    thread::scope(|scope| {
        for probes in probes {
            // Where there can be no thread what it would drop is dropped at once.
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

/// What is asked for of a target that is down, too: how often it has passed limits.
const KEPT: [Counter; 3] = [Counter::LabelSetRefused, Counter::RefusedFull, Counter::RefusedNested];
/// How often a target is looked at that has not been told to have ended: it may have started another program.
const GLANCE_EVERY: Duration = Duration::from_millis(500);
/// How often all is asked that tells whether a target runs.
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
            // Of calls that are unpaired, and of calls that have a duration.
            ring_full_unpaired: 1,
            recorded: 32,
            ..CounterValues::default()
        };
        assert_eq!(without_duration(&counters), 31);
    }
}
