//! Doing: one plan attached to one target, and the state of its calls.

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use monitor_ebpf::{Counter, Detail, NO_SCRATCH, Peer, Recipe, Record, extra, record_flag};
use tracing::warn;

use super::{
    Latency, RunConfig,
    asking::Asking,
    clock::Clock,
    in_flight::CopyInFlight,
    names::Names,
    overhead::probe_kind,
    prepare::Executable,
    probes::{Probes, Unseen},
    unexpected::Unexpected,
    verify::{check_in_place, check_text, still_running},
};
use crate::{
    bpf::{Asked, Maps, More, Programs, RunTimes},
    failure::Failure,
    image::CostClass,
    metrics::{LatencySource, UnexpectedType},
    pipeline::{
        Aggregate, Changes, Details, EventKind, FinishedCall, KnownLabels, Labels, Ladder, Losses, Lost,
        PerProbe, ProbeKind, StartedCall, Tracer,
    },
    plan::{Found, Plan, Role, Site, Wanted},
    target::Target,
};

/// Bytes that a record takes in a ring at least: its header, and itself.
const RECORD_BYTES: usize = 8 + size_of::<Record>();
/// Flags of records that are not those of timed calls.
const NOT_TIMED: u32 = record_flag::UNPAIRED | record_flag::STARTED;
/// Records taken out of a ring in one go: few enough to stay in the processor's nearest cache until they are counted.
const BATCH: usize = 128;
/// Records taken out of a ring before others get a turn: one that is filled as fast as it is emptied must not keep them
/// waiting.
const TURN: usize = 1 << 20;
/// Records that may come while totals are read.
const LATE: usize = 65_536;

/// How much to take out of a ring.
#[derive(Clone, Copy)]
pub(super) enum Turn {
    /// What others can wait for.
    Short,
    /// All that waits, and what comes meanwhile, up to a short turn of it: what is left before a look is in no number that
    /// it gives, and after the probes are taken away the turn may be the last.
    Whole,
}

/// A target, its executable, and how far apart their addresses are.
pub(super) struct Place {
    pub(super) target: Target,
    pub(super) executable: Arc<Executable>,
    /// Added to link-time addresses.
    pub(super) bias: u64,
    /// The target in messages.
    pub(super) name: String,
}

/// One framework of a target, with its probes.
pub(super) struct Attached {
    probes: Option<Probes>,
    logger: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    maps: Maps,
    /// What the programs were loaded with.
    recipe: Recipe,
    names: Names,
    labels: KnownLabels,
    aggregate: Aggregate,
    losses: Losses,
    /// Records that came while the totals were read: they belong to the next snapshot.
    waiting: Batch,
    unexpected: Unexpected,
    /// Starts are sent.
    has_starts: bool,
    /// The programs add up the bytes of calls.
    has_bytes: bool,
    /// Calls may record their starts themselves.
    may_be_recorded: bool,
    asking: Asking,
    max_age: Duration,
    last_ageing: Instant,
    site_costs: Vec<(Role, CostClass)>,
}

/// Records on their way. All targets have theirs in one place: memory that was just used is near.
pub(super) type Batch = Vec<(Record, Option<More>)>;

/// A plan's programs, attached; nothing is known yet of whether their probes are seen to be in place.
pub(super) struct Begun {
    /// Which framework of the executable it is.
    pub(super) framework: usize,
    recipe: Recipe,
    programs: Programs,
    maps: Maps,
    /// The executable's.
    file: Arc<File>,
}

impl Begun {
    /// Loads a plan's programs and puts them at its sites, which takes the kernel its time; whatever fails leaves nothing
    /// attached. Writes nothing to the log, so that several targets can be attached to side by side.
    pub(super) fn attach(
        place: &Place,
        file: &Arc<File>,
        framework: usize,
        (found, plan): (&Found, &Plan),
        config: &RunConfig,
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
    /// Refuses a plan that doesn't fit what runs. To be called before it is attached.
    pub(super) fn check(place: &Place, plan: &Plan, config: &RunConfig) -> Result<(), Failure> {
        sites(plan, config.wanted).into_iter().try_for_each(|site| check_text(place, site))
    }

    /// Takes over programs whose probes must be in place by now; whatever fails leaves nothing attached.
    pub(super) fn new(
        place: &Place,
        begun: Begun,
        (found, plan): (&Found, &Plan),
        config: &RunConfig,
        ladder: &Arc<Ladder>,
    ) -> Result<Self, Failure> {
        let Begun { framework, recipe, mut programs, maps, file } = begun;
        let sites = sites(plan, config.wanted);
        let logger = if config.program_log_level > 0 { programs.logger() } else { None };
        still_running(&place.target)?;
        for site in &sites {
            check_in_place(place, site)?;
        }
        for note in &plan.unwatched {
            warn!("{}: of its {} {}, {note}", place.name, found.name, found.version);
        }
        let is_framework = found.spec.is_none();
        if is_framework && config.wanted.sizes && !recipe.has_sizes() {
            warn!(
                "{}: its {} {} does not record the bytes of calls, so they are not counted",
                place.name, found.name, found.version
            );
        }
        if is_framework
            && config.wanted.peers
            && recipe.shapes.iter().all(|shape| shape.peer_at == NO_SCRATCH)
        {
            warn!("{}: the peers of its {} {} calls can't be read", place.name, found.name, found.version);
        }
        if config.wanted.retries && !plan.tells_retries() {
            warn!(
                "{}: how often calls of its {} {} are retried can't be read, so clients' label retry is unreadable",
                place.name, found.name, found.version
            );
        }
        if is_framework && plan.wants_messages(config.wanted) && plan.message_sites.is_empty() {
            warn!(
                "{}: its {} {} has no functions that messages of streams go through, so they are not counted",
                place.name, found.name, found.version
            );
        }
        let exe = (file, place.target.pid());
        let probes = Probes::new(programs, Arc::clone(maps.sampling()), exe, starts_by_turns(plan));
        Ok(Self {
            probes: Some(probes),
            logger,
            maps,
            names: Names::new(place, framework),
            labels: KnownLabels::default(),
            aggregate: Aggregate::new(Arc::clone(ladder)),
            losses: Losses::default(),
            waiting: Vec::new(),
            unexpected: Unexpected::new(&recipe, place),
            has_starts: is_framework && config.wanted.starts,
            has_bytes: config.wanted.sizes && recipe.has_sizes(),
            may_be_recorded: recipe.shapes.iter().any(|shape| shape.recorded.time_at != NO_SCRATCH),
            asking: Asking::default(),
            recipe,
            max_age: config.max_call_age,
            last_ageing: Instant::now(),
            site_costs: sites
                .iter()
                .filter(|site| !site.is_rare())
                .map(|site| (site.role, site.cost))
                .collect(),
        })
    }

    /// Takes a turn's records out of the ring, for the tracer too; gives how many bytes waited in it. The batch is empty,
    /// and is again.
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
        // What comes while it is emptied has not waited.
        let ring_bytes = maps.waiting_bytes();
        let limit = records_of_a_turn(turn, ring_bytes);
        batch.append(waiting);
        by_batches(
            maps,
            batch,
            limit,
            |maps, batch| maps.drain(BATCH, |record, more| batch.push((record, more))),
            || {
                clock.look();
                *clock
            },
            |maps, (record, more), clock| {
                let labels = labels.get(record.label_set, || decode(maps, record.label_set));
                Call { target, record, more: *more, labels, clock }.hand_over(aggregate, tracer);
            },
        );
        let time_ns = clock.now_ns();
        self.losses.look(
            |counter| maps.counter(counter),
            |event, reason, count| {
                if event == EventKind::Finish || self.has_starts {
                    tracer.lost(&Lost { target, time_ns, event, reason, count });
                }
            },
        );
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        self.choose_whom_to_ask();
        ring_bytes
    }

    /// Asks all calls for the start that they have recorded, or a few, unless none is to be. By what has just been taken out of
    /// the ring: calls that wait there may have records.
    fn choose_whom_to_ask(&mut self) {
        if !self.may_be_recorded || self.probes.as_ref().is_none_or(Probes::is_off) {
            return;
        }
        let missed = self.maps.counter(Counter::SampledOut);
        if let Some(few) = self.asking.look(self.aggregate.with_own_start(), missed) {
            self.maps.sampling().ask(if few { Asked::Few } else { Asked::All });
        }
    }

    /// Reads totals and counters; gives what is new for a scrape. To be called after a [`drain`](Self::drain) with a whole
    /// turn.
    pub(super) fn look(&mut self) -> Changes {
        let Self { maps, labels, aggregate, names, waiting, .. } = self;
        let decode = |maps: &Maps, number| Labels::decode(&maps.label_set(number), names);
        for number in maps.label_sets() {
            let (total, extras) = (maps.total(number), maps.extras(number));
            // A number is given out before the set is written, and something is counted under it only afterwards. What is
            // decoded is kept for good.
            if total == 0 && extras.iter().all(|extra| *extra == 0) {
                continue;
            }
            let labels = labels.get(number, || decode(maps, number));
            aggregate.total(number, labels, total, extras);
        }
        // Calls that were counted after the last record was taken out, and before the totals were read.
        maps.drain(LATE, |record, more| waiting.push((record, more)));
        let records = waiting.iter().map(|(record, _)| *record).chain(maps.behind());
        let timed = records.filter(|record| record.flags & NOT_TIMED == 0);
        aggregate.waiting(
            timed.map(|record| labels.get(record.label_set, || decode(maps, record.label_set)).side),
        );
        let changes = aggregate.changes(&|counter, side| maps.counter_of(counter, side));
        Changes { has_bytes: self.has_bytes, ..changes }
    }

    /// What its programs have counted.
    pub(super) fn counter(&self, counter: Counter) -> u64 {
        self.maps.counter(counter)
    }

    /// Whether the ring must not be left alone for as long as usual.
    pub(super) fn is_filling(&self) -> bool {
        self.maps.is_filling()
    }

    /// Chooses the calls of which durations are taken, from soon on.
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

    /// Whether there is a choice.
    pub(super) fn has_windows(&self) -> bool {
        self.probes.as_ref().is_some_and(Probes::has_windows)
    }

    /// Whether calls that have recorded their start were seen.
    pub(super) fn has_records(&self) -> bool {
        self.aggregate.with_own_start() > 0
    }

    /// Where durations come from.
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

    /// Whether the ring is to be drained before this is looked after: what is in it tells whether there is need of a window.
    pub(super) fn is_to_decide(&self, now: Instant) -> bool {
        self.may_be_recorded && self.probes.as_ref().is_some_and(|probes| probes.is_to_decide(now))
    }

    /// Forgets calls that are too old to be still under way, finds out about types that were not expected, and opens
    /// and closes windows. Tells whether there is news about such types.
    pub(super) fn look_after(&mut self, now: Instant, place: &Place) -> bool {
        let Self { probes, maps, aggregate, .. } = self;
        if let Some(probes) = probes {
            let unseen =
                || Unseen { recorded: aggregate.with_own_start(), missed: maps.counter(Counter::SampledOut) };
            probes.look_after(now, place, self.max_age, || self.may_be_recorded.then(unseen));
        }
        let often = (self.max_age / 10).min(AGEING_AT_MOST);
        if now.saturating_duration_since(self.last_ageing) >= often {
            self.last_ageing = now;
            self.maps.in_flight().forget_older(self.max_age);
        }
        self.unexpected.look(now, &self.maps, place)
    }

    /// Finds out about types that were not expected; tells whether there is news.
    pub(super) fn ask_for_types(&mut self, place: &Place) -> bool {
        self.unexpected.ask(&self.maps, place)
    }

    /// The calls in flight, how to read their names, and whether they are all.
    pub(super) fn in_flight(&self) -> CopyInFlight {
        CopyInFlight {
            recipe: self.recipe,
            calls: Arc::clone(self.maps.in_flight()),
            sampling: Arc::clone(self.maps.sampling()),
            names: self.names.clone(),
        }
    }

    /// The types that were not expected.
    pub(super) fn unexpected(&self) -> impl Iterator<Item = &UnexpectedType> {
        self.unexpected.types()
    }

    /// What a hit costs at each of its sites.
    pub(super) fn site_costs(&self) -> impl Iterator<Item = (Role, CostClass)> {
        self.site_costs.iter().copied()
    }

    /// Hits that the programs have counted, for each kind of probe.
    pub(super) fn hits(&self) -> PerProbe<u64> {
        let maps = &self.maps;
        let counted =
            |counters: &[Counter]| counters.iter().map(|counter| maps.counter(*counter)).sum::<u64>();
        let mut hits = [
            counted(&[Counter::Starts, Counter::StartUnknownType, Counter::StartUnread]),
            counted(&[
                Counter::FinishUnknownType,
                Counter::FinishUnread,
                Counter::FinishLost,
                Counter::FinishLostUnpaired,
                Counter::FinishRepeated,
            ]),
            counted(&[Counter::MessageLost]),
            counted(&[Counter::MessageEntered]),
        ];
        for number in maps.label_sets() {
            hits[ProbeKind::Finish as usize] += maps.total(number);
            let extras = maps.extras(number);
            hits[ProbeKind::Message as usize] +=
                extras[extra::MESSAGES_SENT as usize] + extras[extra::MESSAGES_RECEIVED as usize];
        }
        // Where messages are counted as functions return, that is all hits, of what was no message, too.
        let messages = &mut hits[ProbeKind::Message as usize];
        *messages = (*messages).max(counted(&[Counter::MessageLeft]));
        hits
    }

    /// For how long its starts were watched; `None` where they always are.
    pub(super) fn watched(&self) -> Option<Duration> {
        self.probes.as_ref().filter(|probes| probes.has_windows()).map(Probes::watched)
    }

    /// How often its programs have run and for how long, while the kernel measured it; `None` while probes are
    /// being put in place or taken away, and afterwards.
    pub(super) fn run_times(&self) -> Option<impl Iterator<Item = (ProbeKind, RunTimes)>> {
        let programs = self.probes.as_ref()?.programs()?;
        let roles = [Role::Start, Role::Finish, Role::Sent, Role::Received, Role::Entered];
        Some(roles.into_iter().map(|role| (probe_kind(role), programs.run_times(role))))
    }

    /// Hands out the probes: dropping them takes them away.
    pub(super) fn take_probes(&mut self) -> Option<Probes> {
        self.logger = None;
        self.probes.take()
    }
}

/// A record, with all that it takes to make a call of it.
pub(super) struct Call<'a> {
    pub(super) target: u32,
    pub(super) record: &'a Record,
    pub(super) more: Option<More>,
    pub(super) labels: &'a Arc<Labels>,
    pub(super) clock: Clock,
}

impl Call<'_> {
    pub(super) fn hand_over(&self, aggregate: &mut Aggregate, tracer: &mut dyn Tracer) {
        let Record { label_set, flags, start_ns, duration_ns } = *self.record;
        let time_ns = self.clock.unix_ns(start_ns.saturating_add(duration_ns));
        if flags & record_flag::STARTED != 0 {
            let goroutine = self.more.map_or(0, |(detail, _)| detail.goroutine);
            return tracer.start(&StartedCall {
                target: self.target,
                labels: self.labels,
                time_ns,
                goroutine,
            });
        }
        let has_own_start = flags & record_flag::RECORDED != 0;
        let (time_ns, duration) = if has_own_start {
            (self.clock.unix_ns(duration_ns), self.clock.between(start_ns, duration_ns))
        } else {
            let is_paired = flags & record_flag::UNPAIRED == 0;
            (time_ns, is_paired.then(|| Duration::from_nanos(duration_ns)))
        };
        let details = self.more.map(details);
        let call = FinishedCall {
            target: self.target,
            label_set,
            labels: self.labels,
            time_ns,
            duration,
            has_own_start,
            details,
        };
        aggregate.finish(&call);
        tracer.finish(&call);
    }
}

fn details((detail, peer): More) -> Details {
    let [sent_bytes, received_bytes] = detail.sizes.map(|size| (size != Detail::UNREAD).then_some(size));
    Details { goroutine: detail.goroutine, sent_bytes, received_bytes, peer: peer.and_then(peer_address) }
}

/// An address as it was read; `None` where it was not.
fn peer_address(peer: Peer) -> Option<SocketAddr> {
    let ip = match peer.length {
        4 => IpAddr::from(*peer.address.first_chunk::<4>()?),
        16 => IpAddr::from(peer.address).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::try_from(peer.port).ok()?))
}

/// Takes records out of a ring batch by batch, until one is not full or there were so many, and hands them over by what `look`
/// says of the clocks once the batch is taken: a call in it may have begun after they were looked at before, and the time of
/// day been set in between.
///
/// Decoding labels needs the ring's maps, which taking records out holds: so each step is given them.
fn by_batches<M>(
    maps: &mut M,
    batch: &mut Batch,
    limit: usize,
    take: impl Fn(&mut M, &mut Batch) -> usize,
    mut look: impl FnMut() -> Clock,
    mut hand_over: impl FnMut(&M, &(Record, Option<More>), Clock),
) {
    let mut records = 0;
    loop {
        let taken = take(maps, batch);
        let clock = look();
        for record in batch.iter() {
            hand_over(maps, record, clock);
        }
        records += taken;
        batch.clear();
        if taken < BATCH || records >= limit {
            return;
        }
    }
}

/// Records to take in one turn out of a ring in which so many bytes wait.
fn records_of_a_turn(turn: Turn, waiting_bytes: u64) -> usize {
    let waiting = usize::try_from(waiting_bytes).unwrap_or(usize::MAX) / RECORD_BYTES;
    match turn {
        Turn::Short => TURN,
        Turn::Whole => waiting.saturating_add(TURN),
    }
}

/// The sites to attach, in the order of attaching: finishes first, so that no start is seen whose finish is not.
pub(super) fn sites(plan: &Plan, wanted: Wanted) -> Vec<&Site> {
    let of = |role| plan.sites.iter().filter(move |site| site.role == role);
    of(Role::Finish).chain(of(Role::Start)).chain(plan.wanted_message_sites(wanted)).collect()
}

/// Offsets of the starts whose probes may be taken away now and then. Starts of gRPC-Go are counted under their labels,
/// and a call has several: their probes stay.
fn starts_by_turns(plan: &Plan) -> Vec<u64> {
    let starts = plan.sites.iter().filter(|site| site.role == Role::Start && !plan.is_sited());
    starts.map(|site| site.file_offset).collect()
}

fn load(recipe: &Recipe, sites: &[&Site], config: &RunConfig) -> Result<Programs, Failure> {
    let mut roles: Vec<Role> = Vec::new();
    for site in sites {
        if !roles.contains(&site.role) {
            roles.push(site.role);
        }
    }
    Ok(Programs::load(recipe, &roles, config.limits, config.links, config.reads, config.program_log_level)?)
}

fn attach_sites(programs: &mut Programs, place: &Place, file: &File, sites: &[&Site]) -> Result<(), Failure> {
    let target = &place.target;
    for of_role in sites.chunk_by(|one, next| one.role == next.role) {
        let Some(first) = of_role.first() else { continue };
        let offsets: Vec<u64> = of_role.iter().map(|site| site.file_offset).collect();
        let attached = programs.attach(first.role, file, target.pid(), &offsets);
        // A process that ends in the middle makes the kernel's error misleading.
        attached.map_err(|error| still_running(target).err().unwrap_or_else(|| error.into()))?;
    }
    Ok(())
}

/// Calls are looked through for old ones at least this often.
const AGEING_AT_MOST: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, iter};

    use super::*;

    /// The time of day is set forward by an hour while the second batch is taken, and a call of that batch begins afterwards.
    #[test]
    fn no_call_is_timed_by_clocks_as_they_were_before_it_began() {
        const SECOND: u64 = 1_000_000_000;
        const HOUR: u64 = 3_600 * SECOND;
        let call = |start_ns, duration_ns| {
            (Record { label_set: 0, flags: record_flag::RECORDED, start_ns, duration_ns }, None)
        };
        let first: Batch = iter::repeat_n(call(20 * SECOND, 21 * SECOND), BATCH).collect();
        // One is under way meanwhile.
        let second: Batch = vec![call(29 * SECOND, 33 * SECOND), call(HOUR + 31 * SECOND, 33 * SECOND)];
        let set = RefCell::new(Clock::default());
        set.borrow_mut().look_at(SECOND, 0);
        let mut ring = vec![second, first];
        let take = |ring: &mut Vec<Batch>, batch: &mut Batch| {
            batch.append(&mut ring.pop().unwrap_or_default());
            if ring.is_empty() {
                set.borrow_mut().look_at(HOUR, 30 * SECOND);
            }
            batch.len()
        };
        let mut durations = Vec::new();
        let hand_over = |_: &Vec<Batch>, (record, _): &(Record, Option<More>), clock: Clock| {
            durations.push(clock.between(record.start_ns, record.duration_ns).map(|time| time.as_secs()));
        };
        by_batches(&mut ring, &mut Batch::new(), usize::MAX, take, || *set.borrow(), hand_over);
        durations.dedup();
        assert_eq!(durations, [Some(2), None, Some(2)]);
    }

    #[test]
    fn a_whole_turn_takes_all_that_a_ring_can_hold() {
        let (largest, little) = (1 << 30, 320);
        for waiting in [largest, little, 0] {
            assert_eq!(records_of_a_turn(Turn::Short, waiting), TURN);
        }
        // Of the smallest there is room for the most.
        assert_eq!(records_of_a_turn(Turn::Whole, largest), (1 << 25) + TURN);
        assert_eq!(records_of_a_turn(Turn::Whole, little), 10 + TURN);
        assert_eq!(records_of_a_turn(Turn::Whole, 0), TURN);
    }
}
