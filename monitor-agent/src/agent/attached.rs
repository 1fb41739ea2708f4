//! Doing: one plan attached to one target, and the state of its calls.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use monitor_ebpf::Recipe;
use tracing::warn;

use super::{
    RunConfig,
    prepare::Executable,
    unexpected::Unexpected,
    verify::{check_in_place, check_text, still_running},
};
use crate::{
    bpf::{Maps, Programs},
    failure::Failure,
    metrics::UnexpectedType,
    pipeline::{self, Aggregate, Buckets, Labels, Snapshot},
    plan::{Found, Plan, Role, Site},
    target::Target,
};

/// Bytes that a record takes in the ring, header included.
const RECORD_BYTES: u64 = 32;
/// Records taken out of a ring before others get a turn.
const BATCH: usize = 65_536;

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
    programs: Option<Programs>,
    logger: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    maps: Maps,
    /// Which framework of the executable it is.
    framework: usize,
    aggregate: Aggregate,
    unexpected: Unexpected,
    /// The programs add up the bytes of calls.
    has_bytes: bool,
    max_age: Duration,
    last_ageing: Instant,
}

impl Attached {
    /// Attaches a plan; whatever fails leaves nothing attached.
    pub(super) fn attach(
        place: &Place,
        framework: usize,
        (found, plan): (&Found, &Plan),
        config: &RunConfig,
        buckets: &Arc<Buckets>,
    ) -> Result<Self, Failure> {
        let sites = sites(plan, config.wanted.messages);
        for site in &sites {
            check_text(place, site)?;
        }
        let recipe = plan
            .recipe(place.bias, config.wanted)
            .map_err(|refusal| Failure::of_refusal(&place.name, found.name, &refusal))?;
        let mut programs = load(&recipe, &sites, config)?;
        let maps = programs.maps()?;
        let logger = if config.program_log_level > 0 { programs.logger() } else { None };
        attach_sites(&mut programs, place, &sites)?;
        still_running(&place.target)?;
        for site in &sites {
            check_in_place(place, site)?;
        }
        if config.wanted.sizes && !recipe.has_sizes() {
            warn!(
                "{}: its {} {} does not record the bytes of calls, so they are not counted",
                place.name, found.name, found.version
            );
        }
        if config.wanted.messages && plan.message_sites.is_empty() {
            warn!(
                "{}: its {} {} has no functions that messages of streams go through, so they are not counted",
                place.name, found.name, found.version
            );
        }
        Ok(Self {
            programs: Some(programs),
            logger,
            maps,
            framework,
            aggregate: Aggregate::new(Arc::clone(buckets)),
            unexpected: Unexpected::new(&recipe, place),
            has_bytes: recipe.has_sizes(),
            max_age: config.max_call_age,
            last_ageing: Instant::now(),
        })
    }

    /// Takes everything out of the ring; gives what a scrape may read, and how many bytes there were.
    pub(super) fn drain(&mut self, place: &Place) -> (Snapshot, u64) {
        let Self { maps, aggregate, framework, .. } = self;
        let names = Names { place, plan: place.executable.plan(*framework) };
        let labels = |maps: &Maps, number| Labels::decode(&maps.label_set(number), &names);
        let mut records = 0;
        // Decoding labels needs the maps, which taking records out holds.
        let mut batch = Vec::new();
        loop {
            batch.clear();
            let taken = maps.drain(BATCH, |record| batch.push(record));
            for record in &batch {
                aggregate.record(record, &mut |number| labels(maps, number));
            }
            records += taken;
            // A ring that is filled as fast as it is emptied must not keep the others waiting.
            if taken < BATCH || records >= 16 * BATCH {
                break;
            }
        }
        for number in maps.label_sets() {
            let (total, extras) = (maps.total(number), maps.extras(number));
            aggregate.total(number, total, extras, &mut |number| labels(maps, number));
        }
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        let snapshot = aggregate.snapshot(&|counter| maps.counter(counter));
        (Snapshot { has_bytes: self.has_bytes, ..snapshot }, records as u64 * RECORD_BYTES)
    }

    /// Forgets calls that are too old to be still under way, and finds out about types that were not expected.
    pub(super) fn look_after(&mut self, place: &Place) {
        self.unexpected.look(&self.maps, place);
        let often = (self.max_age / 10).min(AGEING_AT_MOST);
        if self.last_ageing.elapsed() >= often {
            self.last_ageing = Instant::now();
            self.aggregate.aged(self.maps.forget_older(self.max_age));
        }
    }

    /// The types that were not expected.
    pub(super) fn unexpected(&self) -> impl Iterator<Item = &UnexpectedType> {
        self.unexpected.types()
    }

    /// Hands out the programs: dropping them takes the probes away.
    pub(super) fn take_programs(&mut self) -> Option<Programs> {
        self.logger = None;
        self.programs.take()
    }
}

/// The sites to attach, in the order of attaching: finishes first, so that no start is seen whose finish is not.
pub(super) fn sites(plan: &Plan, messages: bool) -> Vec<&Site> {
    let of = |role| plan.sites.iter().filter(move |site| site.role == role);
    let counts = plan.message_sites.iter().filter(|_| messages);
    of(Role::Finish).chain(of(Role::Start)).chain(counts).collect()
}

fn load(recipe: &Recipe, sites: &[&Site], config: &RunConfig) -> Result<Programs, Failure> {
    let mut roles: Vec<Role> = Vec::new();
    for site in sites {
        if !roles.contains(&site.role) {
            roles.push(site.role);
        }
    }
    Ok(Programs::load(recipe, &roles, config.limits, config.program_log_level)?)
}

fn attach_sites(programs: &mut Programs, place: &Place, sites: &[&Site]) -> Result<(), Failure> {
    let target = &place.target;
    for site in sites {
        let attached = programs.attach(site.role, &target.exe(), target.pid(), site.file_offset);
        // A process that ends in the middle makes the kernel's error misleading.
        attached.map_err(|error| still_running(target).err().unwrap_or_else(|| error.into()))?;
    }
    Ok(())
}

/// What label sets need of the executable.
struct Names<'a> {
    place: &'a Place,
    plan: Option<&'a Plan>,
}

impl pipeline::Executable for Names<'_> {
    fn constant(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        self.place.executable.image.read_only(address.wrapping_sub(self.place.bias), length)
    }

    fn error_class(&self, offset: u32) -> &'static str {
        let image = &self.place.executable.image;
        let address = image.link_base().wrapping_add(offset.into());
        self.plan.map_or("other", |plan| plan.error_class(image, address))
    }
}

/// Calls are looked through for old ones at least this often.
const AGEING_AT_MOST: Duration = Duration::from_mins(1);
