//! Doing: one plan attached to one target, and the state of its calls.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use tracing::{info, warn};

use super::{
    RunConfig, describe,
    prepare::{Executable, Prepared},
    verify::{self, Text},
};
use crate::{
    bpf::{Maps, Programs},
    failure::{Failure, Kind},
    metrics::{Label, SiteStats, TargetStats, process::ProcessReader},
    pipeline::{Aggregate, Buckets, Labels, Published},
    plan::{Found, Plan, Role, cost_name},
    target::{Liveness, Target, TargetError},
};

/// Bytes that a record takes in the ring, header included.
const RECORD_BYTES: u64 = 32;
/// Records taken out of a ring before others get a turn.
const BATCH: usize = 65_536;

/// What readers see of a watch. Shared with the server.
#[derive(Debug)]
pub(super) struct Face {
    /// The target's pid.
    pub(super) pid: u32,
    /// Since when it is watched.
    pub(super) since: SystemTime,
    /// The calls.
    pub(super) published: Published,
    /// All else.
    stats: Mutex<TargetStats>,
    /// The process in `/proc`; `None` once it has ended.
    pub(super) process: Mutex<Option<ProcessReader>>,
}

impl Face {
    /// The numbers, to read or to change.
    pub(super) fn lock_stats(&self) -> MutexGuard<'_, TargetStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A target with probes attached, or one that has ended and whose totals are kept.
pub(super) struct Watch {
    target: Target,
    executable: Arc<Executable>,
    bias: u64,
    programs: Option<Programs>,
    /// Takes the probes away from a target that has ended.
    leaving: Option<JoinHandle<()>>,
    logger: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    maps: Maps,
    aggregate: Aggregate,
    face: Arc<Face>,
}

impl Watch {
    /// Attaches every plan of a prepared target; whatever fails leaves nothing attached.
    pub(super) fn attach_all(
        prepared: Prepared,
        config: &RunConfig,
        buckets: &Arc<Buckets>,
    ) -> Result<Self, Failure> {
        let Prepared { target, executable } = prepared;
        let shared = Arc::clone(&executable);
        // The agent knows one framework so far, so an executable has one plan.
        let Some((found, plan)) = shared.inspection.plans().next() else {
            return Err(super::unattachable(&describe(&target), &shared.inspection));
        };
        Self::attach(target, executable, found, plan, config, buckets)
    }

    fn attach(
        target: Target,
        executable: Arc<Executable>,
        found: &Found,
        plan: &Plan,
        config: &RunConfig,
        buckets: &Arc<Buckets>,
    ) -> Result<Self, Failure> {
        let began = Instant::now();
        let name = describe(&target);
        let bias = target.load_bias(executable.image.link_base())?;
        for site in &plan.sites {
            check_text(&target, bias, site, &name)?;
        }
        // Reading how often a call was retried costs the target some reads.
        let recipe = plan.recipe(bias, config.labels.contains(Label::Retry));
        let mut programs = Programs::load(&recipe, config.limits, config.program_log_level)?;
        let maps = programs.maps()?;
        let logger = if config.program_log_level > 0 { programs.logger() } else { None };
        for role in [Role::Finish, Role::Start] {
            for site in plan.sites.iter().filter(|site| site.role == role) {
                let attached = programs.attach(role, &target.exe(), target.pid(), site.file_offset);
                // A process that ends in the middle makes the kernel's error misleading.
                attached.map_err(|error| still_running(&target).err().unwrap_or_else(|| error.into()))?;
            }
        }
        still_running(&target)?;
        for site in &plan.sites {
            check_in_place(&target, bias, site, &name)?;
        }
        let stats = TargetStats {
            pid: target.pid(),
            up: true,
            exe: target.exe_name().to_owned(),
            build_id: executable.inspection.build_id.clone().unwrap_or_default(),
            framework: found.name.to_owned(),
            framework_version: found.version.clone(),
            go_version: executable.inspection.go_version.clone(),
            label_sets_limit: config.limits.label_sets.into(),
            ring_capacity: config.limits.ring_bytes.into(),
            attach: began.elapsed(),
            sites: plan
                .sites
                .iter()
                .map(|site| SiteStats {
                    role: site.role.name(),
                    symbol: site.symbol.clone(),
                    instruction: site.instruction.clone(),
                    file_offset: site.file_offset,
                    cost_class: cost_name(site.cost),
                })
                .collect(),
            ..TargetStats::default()
        };
        info!("attached to {name}: {} {}, {}", found.name, found.version, executable.inspection.go_version);
        let face = Arc::new(Face {
            pid: target.pid(),
            since: SystemTime::now(),
            published: Published::default(),
            stats: Mutex::new(stats),
            process: Mutex::new(ProcessReader::open(target.pid()).ok()),
        });
        let aggregate = Aggregate::new(Arc::clone(buckets));
        Ok(Self {
            target,
            executable,
            bias,
            programs: Some(programs),
            leaving: None,
            logger,
            maps,
            aggregate,
            face,
        })
    }

    /// What readers see of it.
    pub(super) fn face(&self) -> Arc<Face> {
        Arc::clone(&self.face)
    }

    /// Whether calls may still come in.
    pub(super) fn is_up(&self) -> bool {
        self.programs.is_some() || self.leaving.is_some()
    }

    /// Takes everything out of the ring, and publishes what a scrape may read.
    pub(super) fn drain(&mut self) {
        let Self { maps, aggregate, executable, bias, .. } = self;
        let mut records = 0;
        // Decoding labels needs the maps, which taking records out holds.
        let mut batch = Vec::new();
        loop {
            batch.clear();
            let taken = maps.drain(BATCH, |record| batch.push(record));
            for record in &batch {
                aggregate.record(record, &mut |number| labels(maps, executable, *bias, number));
            }
            records += taken;
            // A ring that is filled as fast as it is emptied must not keep the others waiting.
            if taken < BATCH || records >= 16 * BATCH {
                break;
            }
        }
        for number in maps.label_sets() {
            let total = maps.total(number);
            aggregate.total(number, total, &mut |number| labels(maps, executable, *bias, number));
        }
        let snapshot = aggregate.snapshot(&|counter| maps.counter(counter));
        let counters = snapshot.counters;
        self.face.published.set(snapshot);
        let mut stats = self.face.lock_stats();
        stats.counters = counters;
        stats.ring_bytes = records as u64 * RECORD_BYTES;
        drop(stats);
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// Notices that the target has ended. The probes are then taken away beside everything else, since that takes the
    /// kernel its time and the other targets must not wait; the totals are kept.
    pub(super) fn check(&mut self) {
        if self.leaving.as_ref().is_some_and(JoinHandle::is_finished) {
            self.detach();
            self.drain();
            self.set_down();
            return;
        }
        if self.programs.is_none() {
            return;
        }
        let what = match self.target.liveness() {
            Liveness::Running => return,
            Liveness::Exited => "has ended",
            Liveness::Replaced => "has started another program",
        };
        warn!("{} {what}; its totals are kept", describe(&self.target));
        let programs = self.programs.take();
        self.leaving = Some(std::thread::spawn(move || drop(programs)));
    }

    /// Says that the target is no longer watched. Only once its last calls are published: who sees it down sees
    /// all there will ever be.
    pub(super) fn set_down(&mut self) {
        self.face.lock_stats().up = false;
        *self.face.process.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Takes the probes away, and waits until they are. Takes some 200 ms, for all targets together if run side by
    /// side.
    pub(super) fn detach(&mut self) {
        self.logger = None;
        drop(self.programs.take());
        if let Some(leaving) = self.leaving.take() {
            // A panic there has been reported, and leaves nothing attached.
            let _ = leaving.join();
        }
    }

    /// Calls counted, and those of them whose duration is not known.
    pub(super) fn summary(&self) -> (u64, u64) {
        let counters = self.face.lock_stats().counters;
        (counters.finished, counters.unpaired + counters.ring_full)
    }
}

fn labels(maps: &Maps, executable: &Executable, bias: u64, number: u32) -> Labels {
    Labels::decode(&maps.label_set(number), &|address, length| {
        executable.image.read_only(address.wrapping_sub(bias), length)
    })
}

fn still_running(target: &Target) -> Result<(), Failure> {
    match target.liveness() {
        Liveness::Running => Ok(()),
        Liveness::Exited => Err(TargetError::Ended(target.pid()).into()),
        Liveness::Replaced => Err(TargetError::Replaced(target.pid()).into()),
    }
}

/// Refuses a function whose text is not the file's.
fn check_text(target: &Target, bias: u64, site: &crate::plan::Site, name: &str) -> Result<(), Failure> {
    match verify::text(target, bias, site) {
        Ok(Text::Original | Text::Probed) => Ok(()),
        Ok(Text::Different) => Err(Failure::new(
            Kind::Unprovable,
            format!(
                "{name}: the code of {} in memory is not that of the file: it was patched or remapped, so a \
                 probe there can't be trusted",
                site.symbol
            ),
        )),
        Err(error) => unread(target, name, error),
    }
}

/// Refuses probes that will never fire.
fn check_in_place(target: &Target, bias: u64, site: &crate::plan::Site, name: &str) -> Result<(), Failure> {
    match verify::text(target, bias, site) {
        Ok(Text::Probed) => Ok(()),
        Ok(_) => Err(Failure::new(
            Kind::Unprovable,
            format!(
                "{name}: the probe at {} is not in its memory: its text is no longer mapped from the file, so \
                 the probe would never fire",
                site.symbol
            ),
        )),
        Err(error) => unread(target, name, error),
    }
}

/// Calls are counted without access to the target's memory; only the check is left out.
fn unread(target: &Target, name: &str, error: TargetError) -> Result<(), Failure> {
    still_running(target)?;
    if !matches!(error, TargetError::Permission { .. }) {
        return Err(error.into());
    }
    warn!("{name}: its code is not compared with its file: {error}");
    Ok(())
}

/// How long a scrape may be behind: a drain every so often.
pub(super) const DRAIN_EVERY: Duration = Duration::from_millis(50);
/// How often targets are looked after.
pub(super) const CHECK_EVERY: Duration = Duration::from_millis(200);
