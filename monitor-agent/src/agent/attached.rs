//! One plan attached to one target, and the state of its calls.

use std::{
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

use monitor_ebpf::{Counter, NO_SCRATCH, Recipe, extra, record_flag};
use tracing::warn;

use super::{
    Latency, WatchConfig,
    asking::Asking,
    call::{BATCH, Batch, Call, Turn, by_batches, records_of_a_turn},
    clock::Clock,
    in_flight::CopyInFlight,
    names::Names,
    prepare::Executable,
    probes::{Probes, Unseen},
    sites::{attach_sites, load, sites, starts_by_turns},
    unexpected::Unexpected,
    verify::{check_in_place, check_text, still_running},
};
use crate::{
    bpf::{Asked, Maps, ProgramLog, Programs, RunTimes},
    failure::Failure,
    image::CostClass,
    metrics::{LatencySource, UnexpectedType},
    pipeline::{
        Aggregate, Changes, CopyCounts, EventKind, KnownLabels, Labels, Ladder, Losses, Lost, PerProbe,
        ProbeKind, Tracer,
    },
    plan::{Found, Plan, Role, Site, Wanted},
    target::Target,
};

/// Flags of records that are not of timed calls.
const NOT_TIMED: u32 = record_flag::UNPAIRED | record_flag::STARTED;
/// Maximum number of records taken out of the ring while totals are read.
const LATE: usize = 65_536;
/// The longest time between two searches for calls that are too old.
const AGEING_AT_MOST: Duration = Duration::from_mins(1);

/// A target, its executable, and the distance between their addresses.
pub(super) struct Place {
    pub(super) target: Target,
    pub(super) executable: Arc<Executable>,
    /// The load bias: added to link-time addresses.
    pub(super) bias: u64,
    /// The target's name in messages.
    pub(super) name: String,
}

/// One framework of a target, with its probes.
pub(super) struct Attached {
    probes: Option<Probes>,
    program_log: Option<ProgramLog>,
    maps: Maps,
    /// The recipe that the programs were loaded with.
    recipe: Recipe,
    names: Names,
    labels: KnownLabels,
    aggregate: Aggregate,
    losses: Losses,
    /// Records that came while the totals were read. They belong to the next snapshot.
    waiting: Batch,
    unexpected: Unexpected,
    /// The programs send starts.
    has_starts: bool,
    /// The programs add up the bytes of calls.
    has_bytes: bool,
    /// Calls may record their own starts.
    may_be_recorded: bool,
    asking: Asking,
    max_age: Duration,
    last_ageing: Instant,
    cost_classes: PerProbe<Option<CostClass>>,
}

/// A plan's programs, attached. Whether their probes are in place has not been checked yet.
pub(super) struct Begun {
    /// Index of the framework in the executable.
    pub(super) framework: usize,
    recipe: Recipe,
    programs: Programs,
    maps: Maps,
    /// The executable's file.
    file: Arc<File>,
}

impl Begun {
    /// Loads a plan's programs and attaches them to its sites, which takes the kernel some time. On failure nothing
    /// stays attached. Logs nothing, so that several targets can be attached to side by side.
    pub(super) fn attach(
        place: &Place,
        file: &Arc<File>,
        framework: usize,
        (found, plan): (&Found, &Plan),
        config: &WatchConfig,
    ) -> Result<Self, Failure> {
        let sites = sites(plan, config.wanted);
        let recipe = plan
            .recipe(place.bias, config.wanted)
            .map_err(|refusal| Failure::of_refusal(&place.name, &found.name, &refusal))?;
        let mut programs = load(&recipe, &sites, config)?;
        let maps = programs.maps()?;
        attach_sites(&mut programs, place, file, &sites)?;
        Ok(Self { framework, recipe, programs, maps, file: Arc::clone(file) })
    }
}

impl Attached {
    /// Refuses a plan that does not match the running code. Returns whether one of its sites already has a probe. Must
    /// be called before the plan is attached.
    pub(super) fn check(place: &Place, plan: &Plan, config: &WatchConfig) -> Result<bool, Failure> {
        let mut is_probed = false;
        for site in sites(plan, config.wanted) {
            is_probed |= check_text(place, site)?;
        }
        Ok(is_probed)
    }

    /// Takes over programs whose probes must be in place by now. On failure nothing stays attached.
    pub(super) fn new(
        place: &Place,
        begun: Begun,
        (found, plan): (&Found, &Plan),
        config: &WatchConfig,
        ladder: &Arc<Ladder>,
    ) -> Result<Self, Failure> {
        let Begun { framework, recipe, programs, maps, file } = begun;
        let sites = sites(plan, config.wanted);
        let program_log = if config.program_log_level > 0 { programs.log() } else { None };
        still_running(&place.target)?;
        for site in &sites {
            check_in_place(place, site)?;
        }
        warn_of_what_is_missing(place, (found, plan), &recipe, config.wanted);
        let sampling = Arc::clone(maps.sampling());
        let probes = Probes::new(programs, sampling, (file, place), starts_by_turns(plan));
        Ok(Self {
            probes: Some(probes),
            program_log,
            maps,
            names: Names::new(place, framework),
            labels: KnownLabels::default(),
            aggregate: Aggregate::new(Arc::clone(ladder)),
            losses: Losses::default(),
            waiting: Vec::new(),
            unexpected: Unexpected::new(&recipe, place),
            has_starts: found.spec.is_none() && config.wanted.starts,
            has_bytes: config.wanted.sizes && recipe.has_sizes(),
            may_be_recorded: recipe.shapes.iter().any(|shape| shape.recorded.time_at != NO_SCRATCH),
            asking: Asking::default(),
            recipe,
            max_age: config.max_call_age,
            last_ageing: Instant::now(),
            cost_classes: cost_classes(&sites),
        })
    }

    /// Takes one turn's records out of the ring, for the tracer too. Returns how many bytes waited in the ring. The
    /// batch is empty before and after.
    pub(super) fn drain(
        &mut self,
        turn: Turn,
        place: &Place,
        clock: &mut Clock,
        batch: &mut Batch,
        tracer: &mut dyn Tracer,
    ) -> u64 {
        let Self { maps, labels, aggregate, names, waiting, .. } = self;
        let decode = |maps: &Maps, number| Labels::decode(&maps.label_set(number), names);
        let target = place.target.pid();
        // Records that come during the drain have not waited.
        let ring_bytes = maps.waiting_bytes();
        let limit = records_of_a_turn(turn, ring_bytes);
        batch.append(waiting);
        by_batches(
            maps,
            batch,
            limit,
            |maps, batch| maps.drain(BATCH, |record, more| batch.push((record, more))),
            || {
                clock.sync();
                *clock
            },
            |maps, (record, more), clock| {
                let labels = labels.get(record.label_set, || decode(maps, record.label_set));
                Call { target, record, more: *more, labels, clock }.hand_over(aggregate, tracer);
            },
        );
        let time_ns = clock.now_ns();
        self.losses.tell_new(
            |counter| maps.counter(counter),
            |event, reason, count| {
                if event == EventKind::Finish || self.has_starts {
                    tracer.lost(&Lost { target, time_ns, event, reason, count });
                }
            },
        );
        if let Some(log) = &mut self.program_log {
            log.flush();
        }
        self.choose_whom_to_ask();
        ring_bytes
    }

    /// Chooses which calls are asked for the start that they have recorded: all or a few, unless none is to be asked.
    /// Must follow a drain, since calls that wait in the ring may have records.
    fn choose_whom_to_ask(&mut self) {
        if !self.may_be_recorded || self.probes.as_ref().is_none_or(Probes::is_off) {
            return;
        }
        let missed = self.maps.counter(Counter::SampledOut);
        if let Some(few) = self.asking.decide(self.aggregate.with_own_start(), missed) {
            self.maps.sampling().ask(if few { Asked::Few } else { Asked::All });
        }
    }

    /// Reads totals and counters, and returns what has changed since the last refresh. Must be called after a
    /// [`drain`](Self::drain) with a whole turn.
    pub(super) fn read_changes(&mut self) -> Changes {
        let Self { maps, labels, aggregate, names, waiting, .. } = self;
        let decode = |maps: &Maps, number| Labels::decode(&maps.label_set(number), names);
        for number in maps.label_sets() {
            let (total, extras) = (maps.total(number), maps.extras(number));
            // A number is allocated before its set is written, and calls are counted under it only afterwards. A set is
            // decoded once and kept, so it must not be decoded too early.
            if total == 0 && extras.iter().all(|extra| *extra == 0) {
                continue;
            }
            let labels = labels.get(number, || decode(maps, number));
            aggregate.total(number, labels, total, extras);
        }
        // Calls that were counted after the last record was taken out and before the totals were read.
        maps.drain(LATE, |record, more| waiting.push((record, more)));
        let records = waiting.iter().map(|(record, _)| *record).chain(maps.behind());
        let timed = records.filter(|record| record.flags & NOT_TIMED == 0);
        aggregate.waiting(
            timed.map(|record| labels.get(record.label_set, || decode(maps, record.label_set)).side),
        );
        let changes = aggregate.changes(&|counter, side| maps.counter_of(counter, side));
        Changes { has_bytes: self.has_bytes, ..changes }
    }

    /// Returns the value of a counter of its programs.
    pub(super) fn counter(&self, counter: Counter) -> u64 {
        self.maps.counter(counter)
    }

    /// Returns whether the ring must be drained sooner than usual.
    pub(super) fn is_filling(&self) -> bool {
        self.maps.is_filling()
    }

    /// Chooses the calls whose durations are taken. Takes effect soon, not immediately.
    pub(super) fn set_latency(&mut self, latency: Latency) {
        let Some(probes) = &mut self.probes else { return };
        let was_off = probes.is_off();
        probes.set_latency(latency);
        let is_off = probes.is_off();
        if is_off && !was_off {
            self.maps.sampling().ask(Asked::None);
        } else if was_off && !is_off {
            self.asking.begin_again(self.maps.counter(Counter::SampledOut));
            self.maps.sampling().ask(Asked::All);
        }
    }

    /// Returns whether its start probes can be removed, so that there is a choice.
    pub(super) fn has_windows(&self) -> bool {
        self.probes.as_ref().is_some_and(Probes::has_windows)
    }

    /// Returns whether its probes are being attached or removed.
    pub(super) fn is_changing(&self) -> bool {
        self.probes.as_ref().is_some_and(Probes::are_changing)
    }

    /// Returns whether any call was seen that had recorded its start.
    pub(super) fn has_records(&self) -> bool {
        self.aggregate.with_own_start() > 0
    }

    /// Returns where durations come from.
    pub(super) fn latency_source(&self) -> LatencySource {
        if !self.maps.sampling().in_windows() {
            return LatencySource::Probes;
        }
        match &self.probes {
            Some(probes) if probes.is_off() => LatencySource::Nowhere,
            Some(probes) if probes.are_recorded() => LatencySource::Recorded,
            _ => LatencySource::Windows,
        }
    }

    /// Returns whether the ring must be drained before [`maintain`](Self::maintain): its records decide whether a
    /// window is needed.
    pub(super) fn is_to_decide(&self, now: Instant) -> bool {
        self.may_be_recorded && self.probes.as_ref().is_some_and(|probes| probes.is_to_decide(now))
    }

    /// Forgets calls that are too old to be still in flight, looks up unexpected types, and opens and closes windows.
    /// Returns whether anything about such types has changed.
    pub(super) fn maintain(&mut self, now: Instant, place: &Place) -> bool {
        let Self { probes, maps, aggregate, .. } = self;
        if let Some(probes) = probes {
            let unseen = || Unseen::of(aggregate, maps.counter(Counter::SampledOut));
            probes.follow_schedule(now, place, self.max_age, || self.may_be_recorded.then(unseen));
        }
        let often = (self.max_age / 10).min(AGEING_AT_MOST);
        if now.saturating_duration_since(self.last_ageing) >= often {
            self.last_ageing = now;
            self.maps.in_flight().forget_older(self.max_age);
        }
        self.unexpected.ask_if_due(now, &self.maps, place)
    }

    /// Looks up unexpected types. Returns whether anything about them has changed.
    pub(super) fn ask_for_types(&mut self, place: &Place) -> bool {
        self.unexpected.ask(&self.maps, place)
    }

    /// Returns the calls in flight, with what it takes to read their names and to know whether they are all.
    pub(super) fn in_flight(&self) -> CopyInFlight {
        CopyInFlight {
            recipe: self.recipe,
            calls: Arc::clone(self.maps.in_flight()),
            sampling: Arc::clone(self.maps.sampling()),
            names: self.names.clone(),
        }
    }

    /// Returns the unexpected types.
    pub(super) fn unexpected(&self) -> impl Iterator<Item = &UnexpectedType> {
        self.unexpected.types()
    }

    /// Returns the cost class of the sites of each kind of probe; the most expensive one if they differ.
    pub(super) fn cost_classes(&self) -> PerProbe<Option<CostClass>> {
        self.cost_classes
    }

    /// Returns what its programs have counted of their hits.
    pub(super) fn counts(&self) -> CopyCounts {
        CopyCounts { hits: self.hits(), watched: self.watched() }
    }

    /// Returns the hits that the programs have counted, for each kind of probe.
    fn hits(&self) -> PerProbe<u64> {
        let maps = &self.maps;
        let counted =
            |counters: &[Counter]| counters.iter().map(|counter| maps.counter(*counter)).sum::<u64>();
        let mut hits: PerProbe<u64> = PerProbe::default();
        hits[ProbeKind::Start as usize] =
            counted(&[Counter::Starts, Counter::StartUnknownType, Counter::StartUnread]);
        hits[ProbeKind::Finish as usize] = counted(&[
            Counter::FinishUnknownType,
            Counter::FinishUnread,
            Counter::FinishLost,
            Counter::FinishLostUnpaired,
            Counter::FinishRepeated,
        ]);
        hits[ProbeKind::Message as usize] = counted(&[Counter::MessageLost]);
        hits[ProbeKind::Entry as usize] = counted(&[Counter::MessageEntered]);
        for number in maps.label_sets() {
            hits[ProbeKind::Finish as usize] += maps.total(number);
            let extras = maps.extras(number);
            hits[ProbeKind::Message as usize] +=
                extras[extra::MESSAGES_SENT as usize] + extras[extra::MESSAGES_RECEIVED as usize];
        }
        // Where messages are counted as functions return, this counter has all hits, including those without a message.
        let messages = &mut hits[ProbeKind::Message as usize];
        *messages = (*messages).max(counted(&[Counter::MessageLeft]));
        hits
    }

    /// Returns for how long its starts were watched; `None` if they always are.
    fn watched(&self) -> Option<Duration> {
        self.probes.as_ref().filter(|probes| probes.has_windows()).map(Probes::watched)
    }

    /// Returns how often its programs for each kind of probe have run and for how long, while the kernel measured it.
    /// `None` while probes are being attached or removed, and after they are removed.
    pub(super) fn run_times(&self) -> Option<PerProbe<RunTimes>> {
        let programs = self.probes.as_ref()?.programs()?;
        let mut sums: PerProbe<RunTimes> = PerProbe::default();
        for role in [Role::Start, Role::Finish, Role::Sent, Role::Received, Role::Entered] {
            let sum = &mut sums[probe_kind(role) as usize];
            *sum = sum.plus(programs.run_times(role));
        }
        Some(sums)
    }

    /// Returns the probes. Dropping them removes them.
    pub(super) fn take_probes(&mut self) -> Option<Probes> {
        self.program_log = None;
        self.probes.take()
    }
}

/// Returns the kind of probe for a site's role.
fn probe_kind(role: Role) -> ProbeKind {
    match role {
        Role::Start => ProbeKind::Start,
        Role::Finish => ProbeKind::Finish,
        Role::Sent | Role::Received => ProbeKind::Message,
        Role::Entered => ProbeKind::Entry,
    }
}

/// Returns the cost class of these sites for each kind of probe. Rare sites are left out, since few hits occur there.
fn cost_classes(sites: &[&Site]) -> PerProbe<Option<CostClass>> {
    let mut classes: PerProbe<Option<CostClass>> = PerProbe::default();
    for site in sites.iter().filter(|site| !site.is_rare()) {
        let class = &mut classes[probe_kind(site.role) as usize];
        *class = (*class).max(Some(site.cost));
    }
    classes
}

/// Logs what can't be seen of a target's calls, and what was requested but is not there.
fn warn_of_what_is_missing(place: &Place, (found, plan): (&Found, &Plan), recipe: &Recipe, wanted: Wanted) {
    let (name, its) = (&place.name, format!("its {} {}", found.name, found.version));
    let is_framework = found.spec.is_none();
    for note in &plan.unwatched {
        warn!("{name}: of {its}, {note}");
    }
    if is_framework && wanted.sizes && !recipe.has_sizes() {
        warn!("{name}: {its} does not record the bytes of calls, so they are not counted");
    }
    if is_framework && wanted.peers && recipe.shapes.iter().all(|shape| shape.peer_at == NO_SCRATCH) {
        warn!("{name}: the peers of {its} calls can't be read");
    }
    if wanted.retries && !plan.tells_retries() {
        warn!(
            "{name}: how often calls of {its} are retried can't be read, so clients' label retry is unreadable"
        );
    }
    if plan.wants_messages(wanted) && plan.message_sites.is_empty() {
        warn!("{name}: {its} has no functions that messages of streams go through, so they are not counted");
    }
}
