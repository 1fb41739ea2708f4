//! What the server may ask: the faces of all watches, made into families and into the page.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use prometheus::proto::MetricFamily;

use super::{RunConfig, watch::Face};
use crate::{
    events::{Readers, SlowCalls, Wish},
    export::http::{Backend, SiteStatus, Status, TargetStatus},
    metrics::{
        AgentStats, EventStats, Family, FamilyBuilder, KitexView, Selection, TargetStats, UnderwayCalls,
        about, kitex, merge, process::ProcessReader, underway,
    },
    pipeline::{Ladder, Snapshot},
};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Board {
    faces: Mutex<Vec<Arc<Face>>>,
    metrics: Selection,
    view: KitexView,
    /// What durations are counted between.
    ladder: Arc<Ladder>,
    /// Those who read events, if anybody can.
    readers: Option<Arc<Readers>>,
    /// Calls that are kept, if any are.
    slow_calls: Option<Arc<SlowCalls>>,
    /// Series carry the label `target` in `/metrics`.
    several: bool,
    ready: AtomicBool,
    scrapes: AtomicU64,
    /// The agent itself, in `/proc`.
    own: Mutex<Option<ProcessReader>>,
    started: SystemTime,
}

impl Board {
    pub(super) fn new(config: &RunConfig, readers: Option<Arc<Readers>>) -> Self {
        Self {
            readers,
            slow_calls: config.slow_calls.map(|limit| Arc::new(SlowCalls::new(limit))),
            faces: Mutex::default(),
            metrics: config.metrics.clone(),
            view: KitexView { labels: config.labels.clone(), buckets: Arc::new(config.buckets.clone()) },
            ladder: Arc::new(Ladder::of([&config.buckets])),
            several: config.pids.len() > 1,
            ready: AtomicBool::new(false),
            scrapes: AtomicU64::new(0),
            own: Mutex::new(ProcessReader::open(std::process::id()).ok()),
            started: SystemTime::now(),
        }
    }

    pub(super) fn ladder(&self) -> &Arc<Ladder> {
        &self.ladder
    }

    /// The calls that are kept, if any are.
    pub(super) fn slow_calls(&self) -> Option<Arc<SlowCalls>> {
        self.slow_calls.clone()
    }

    pub(super) fn add(&self, face: Arc<Face>) {
        self.faces.lock().unwrap_or_else(PoisonError::into_inner).push(face);
    }

    pub(super) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    fn faces(&self) -> Vec<Arc<Face>> {
        self.faces.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn families(&self, faces: &[Arc<Face>], with_target: bool) -> Vec<MetricFamily> {
        let snapshots: Vec<(Option<String>, Arc<Snapshot>)> = faces
            .iter()
            .map(|face| (with_target.then(|| face.pid.to_string()), face.published.get()))
            .collect();
        let snapshots: Vec<_> =
            snapshots.iter().map(|(target, snapshot)| (target.clone(), snapshot.as_ref())).collect();
        let underway_calls: Vec<_> =
            faces.iter().map(|face| (with_target.then(|| face.pid.to_string()), face.underway())).collect();
        let stats: Vec<_> =
            faces.iter().zip(&underway_calls).map(|(face, (_, calls))| stats(face, calls)).collect();
        let mut families = Vec::new();
        if self.metrics.contains(Family::Kitex) {
            families.extend(kitex(&snapshots, &self.view));
            families.extend(underway(&underway_calls, &self.view.labels));
        }
        families.extend(processes(faces, with_target));
        families.extend(go_runtimes(faces, with_target));
        families.extend(about(&self.agent_stats(), &stats));
        families
    }

    fn agent_stats(&self) -> AgentStats {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let own = own.as_mut().map(ProcessReader::read).unwrap_or_default();
        AgentStats {
            cpu_seconds: own.cpu_seconds,
            resident_bytes: own.resident_bytes,
            scrapes: self.scrapes.load(Ordering::Relaxed),
            events: self
                .readers
                .as_ref()
                .map(|readers| EventStats { readers: readers.count(), dropped: readers.dropped() }),
        }
    }
}

/// What is to be said of how a target is watched.
fn stats(face: &Face, underway: &UnderwayCalls) -> TargetStats {
    let mut stats = face.lock_stats().clone();
    stats.in_flight = underway.count();
    stats.never_finished = underway.never_finished;
    stats
}

/// The frameworks of a target and its Go release, for people.
fn frameworks(stats: &TargetStats) -> String {
    let frameworks = stats.frameworks.iter().map(|one| format!("{} {}", one.name, one.version));
    let go = (!stats.go_version.is_empty()).then(|| stats.go_version.clone());
    frameworks.chain(go).collect::<Vec<_>>().join(", ")
}

fn state(stats: &TargetStats) -> &'static str {
    match (stats.up, stats.has_calls()) {
        (false, _) => "ended",
        (true, true) => "attached",
        (true, false) => "watched without calls",
    }
}

/// The `/proc` gauges of the targets that still live.
fn processes(faces: &[Arc<Face>], with_target: bool) -> Vec<MetricFamily> {
    let targets = faces
        .iter()
        .filter_map(|face| {
            let stats = face.process.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.read();
            Some((with_target.then(|| face.pid.to_string()), stats.families()))
        })
        .collect();
    merge(targets)
}

/// The Go runtimes of the targets that still live, and what could not be read of them.
fn go_runtimes(faces: &[Arc<Face>], with_target: bool) -> Vec<MetricFamily> {
    let mut errors = FamilyBuilder::counter(
        "monitor_read_errors_total",
        "What of the target's memory could not be read for the metrics of its Go runtime, by reason.",
    );
    let targets = faces
        .iter()
        .filter_map(|face| {
            let pid = face.pid.to_string();
            let mut go = face.go.lock().unwrap_or_else(PoisonError::into_inner);
            let go = go.as_mut()?;
            let families = go.families();
            for (reason, count) in go.errors() {
                errors.push(&[("target", &pid), ("reason", reason)], f64::from(*count));
            }
            Some((with_target.then_some(pid), families))
        })
        .collect();
    let mut families = merge(targets);
    errors.finish(&mut families);
    families
}

impl Backend for Board {
    fn ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    fn gather(&self) -> Vec<MetricFamily> {
        self.scrapes.fetch_add(1, Ordering::Relaxed);
        self.families(&self.faces(), self.several)
    }

    fn gather_target(&self, pid: u32) -> Option<Vec<MetricFamily>> {
        self.scrapes.fetch_add(1, Ordering::Relaxed);
        let face = self.faces().into_iter().find(|face| face.pid == pid)?;
        Some(self.families(&[face], false))
    }

    fn calls(&self, wish: &Wish) -> Option<String> {
        Some(self.slow_calls.as_ref()?.json(wish))
    }

    fn status(&self) -> Status {
        let targets = self
            .faces()
            .iter()
            .map(|face| {
                let stats = face.lock_stats().clone();
                let calls = (stats.counters.finished, stats.counters.ring_full);
                let calls = stats.has_calls().then_some(calls);
                TargetStatus {
                    pid: face.pid,
                    framework: frameworks(&stats),
                    state: state(&stats).to_owned(),
                    exe: stats.exe,
                    since: Some(face.since),
                    calls,
                    sites: stats
                        .sites
                        .into_iter()
                        .map(|site| SiteStatus {
                            role: site.role.to_owned(),
                            symbol: site.symbol,
                            offset: site.file_offset,
                            instruction: site.instruction,
                            cost: site.cost_class.to_owned(),
                        })
                        .collect(),
                }
            })
            .collect();
        Status { version: env!("CARGO_PKG_VERSION").to_owned(), started: self.started, targets }
    }
}
