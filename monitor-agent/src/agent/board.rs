//! What the server can query: the faces of all watches, as metric families and for the page.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use prometheus::proto::MetricFamily;

use super::{RunConfig, WatchConfig, aside::FOR_A_SCRAPE, face::Face, go::GoRuntime, refreshes::Refreshes};
use crate::{
    events::{Readers, SlowCalls, Wish},
    export::{
        http::{Backend, Losses, SiteStatus, Status, TargetStatus},
        otlp::{Outcomes, Source, State},
    },
    goruntime::Readings,
    metrics::{
        AgentStats, CostStats, EventStats, Family, FamilyBuilder, GrpcView, KitexView, PushStats, Selection,
        TargetStats, UnderwayCalls, about, grpc, kitex, merge, operations,
        otel::{self, OtelView},
        process::ProcessReader,
        underway, underway_grpc,
    },
    pipeline::{Buckets, Budget, Ladder, Snapshot},
    specs::Specs,
};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Board {
    faces: Mutex<Vec<Arc<Face>>>,
    /// Readers of the faces request a refresh here first.
    refreshes: Refreshes,
    metrics: Selection,
    view: KitexView,
    otel: OtelView,
    grpc: GrpcView,
    specs: Specs,
    /// The bucket bounds in which durations are counted.
    ladder: Arc<Ladder>,
    /// The readers of events, if events can be read.
    readers: Option<Arc<Readers>>,
    /// The calls that are kept, if any.
    slow_calls: Option<Arc<SlowCalls>>,
    /// Series carry the label `target` in `/metrics`.
    several: bool,
    ready: AtomicBool,
    scrapes: AtomicU64,
    /// Connections cut and requests refused by the server.
    http_losses: Arc<Losses>,
    /// The results of pushes, if there are pushes.
    pushes: Option<Arc<Outcomes>>,
    /// What probes cost, as far as it is known.
    costs: Mutex<CostStats>,
    /// The agent's own process, in `/proc`.
    own: Mutex<Option<ProcessReader>>,
    started: SystemTime,
}

impl Board {
    pub(super) fn new(config: &RunConfig, readers: Option<Arc<Readers>>) -> Self {
        let watch = &config.watch;
        let grpc = GrpcView { messages: watch.wanted.grpc_messages, ..GrpcView::default() };
        Self {
            readers,
            slow_calls: config.slow_calls.map(|limit| Arc::new(SlowCalls::new(limit))),
            faces: Mutex::default(),
            refreshes: Refreshes::default(),
            metrics: watch.metrics.clone(),
            view: KitexView { labels: config.labels.clone(), buckets: Arc::new(config.buckets.clone()) },
            otel: watch.otel,
            ladder: Arc::new(ladder(config, &grpc)),
            grpc,
            specs: watch.specs.clone(),
            several: config.pids.len() > 1,
            ready: AtomicBool::new(false),
            scrapes: AtomicU64::new(0),
            http_losses: Arc::default(),
            pushes: config.otlp.as_ref().map(|_| Arc::default()),
            costs: Mutex::new(CostStats {
                hits: Vec::new(),
                budget: watch.overhead_budget.map(Budget::ratio),
            }),
            own: Mutex::new(ProcessReader::open(std::process::id()).ok()),
            started: SystemTime::now(),
        }
    }

    pub(super) fn ladder(&self) -> &Arc<Ladder> {
        &self.ladder
    }

    pub(super) fn refreshes(&self) -> &Refreshes {
        &self.refreshes
    }

    /// Returns the calls that are kept, if any.
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

    /// Returns all faces, after a refresh.
    fn newest_faces(&self) -> Vec<Arc<Face>> {
        self.refreshes.ask();
        self.faces()
    }

    fn families(&self, faces: &[Arc<Face>], with_target: bool) -> Vec<MetricFamily> {
        // First: what the agent uses at this point is what it uses most of the time.
        let agent_stats = self.agent_stats();
        // Before everything else about a target: if it is down by now, all that is read afterwards is final.
        let stats: Vec<_> = faces.iter().map(|face| face.lock_stats().clone()).collect();
        let snapshots: Vec<(Option<String>, Arc<Snapshot>)> = faces
            .iter()
            .map(|face| (with_target.then(|| face.pid.to_string()), face.published.get()))
            .collect();
        let snapshots: Vec<_> =
            snapshots.iter().map(|(target, snapshot)| (target.clone(), snapshot.as_ref())).collect();
        let (underway_calls, readings) = read_memory(faces);
        let stats = stats.into_iter().zip(&underway_calls).map(|(stats, calls)| with_underway(stats, calls));
        let stats: Vec<_> = stats.collect();
        let targets = snapshots.iter().map(|(target, _)| target.clone());
        let underway_calls: Vec<_> = targets.zip(underway_calls).collect();
        let mut families = Vec::new();
        if self.metrics.contains(Family::Kitex) {
            families.extend(kitex(&snapshots, &self.view));
            families.extend(underway(&underway_calls, &self.view.labels));
        }
        if self.metrics.contains(Family::Grpc) {
            families.extend(grpc(&snapshots, &self.grpc, &self.ladder));
            families.extend(underway_grpc(&underway_calls));
        }
        families.extend(operations(&snapshots, &self.specs, &self.grpc.buckets, &self.ladder));
        families.extend(processes(faces, with_target));
        if self.metrics.contains(Family::Go) {
            families.extend(go_runtimes(faces, &readings, with_target));
        }
        families.extend(read_errors(faces));
        if self.metrics.contains(Family::Otel) {
            let targets = faces.iter().zip(&readings).zip(&snapshots).filter_map(
                |((face, readings), (target, snapshot))| {
                    let telemetry = face.subject.as_ref()?.telemetry(snapshot, readings.as_ref(), self.otel);
                    Some((target.clone(), otel::families(&telemetry)))
                },
            );
            families.extend(merge(targets.collect()));
        }
        families.extend(about(&agent_stats, &stats));
        families
    }

    pub(super) fn http_losses(&self) -> Arc<Losses> {
        Arc::clone(&self.http_losses)
    }

    pub(super) fn pushes(&self) -> Option<Arc<Outcomes>> {
        self.pushes.clone()
    }

    /// Sets the seconds that a hit takes of a probe with an empty program, by the instruction's cost class.
    pub(super) fn set_hit_costs(&self, hits: Vec<(&'static str, f64)>) {
        self.costs.lock().unwrap_or_else(PoisonError::into_inner).hits = hits;
    }

    fn agent_stats(&self) -> AgentStats {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let own = own.as_mut().map(ProcessReader::read).unwrap_or_default();
        AgentStats {
            cpu_seconds: own.cpu_seconds,
            resident_bytes: own.resident_bytes,
            scrapes: self.scrapes.load(Ordering::Relaxed),
            stale_answers: self.refreshes.in_vain(),
            connections_cut: self.http_losses.connections_cut(),
            requests_refused: self.http_losses.requests_refused(),
            costs: self.costs.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            events: self
                .readers
                .as_ref()
                .map(|readers| EventStats { readers: readers.count(), dropped: readers.dropped() }),
            pushes: self.pushes.as_ref().map(|outcomes| PushStats {
                sent: outcomes.sent.load(Ordering::Relaxed),
                failed: outcomes.failed.load(Ordering::Relaxed),
                rejected_points: outcomes.rejected_points.load(Ordering::Relaxed),
            }),
        }
    }
}

/// Reads from the targets' memory the names of their calls in flight and the statistics of their Go runtimes. All
/// targets are read at the same time, so slow or blocked ones neither add up nor delay the others.
fn read_memory(faces: &[Arc<Face>]) -> (Vec<UnderwayCalls>, Vec<Option<Readings>>) {
    let begun: Vec<_> = faces.iter().map(|face| (face.begin_underway(), face.begin_go())).collect();
    let until = Instant::now() + FOR_A_SCRAPE;
    let taken = faces.iter().zip(begun);
    taken.map(|(face, (underway, go))| (face.take_underway(underway, until), face.take_go(go, until))).unzip()
}

/// Adds the counts of calls in flight to a target's statistics.
fn with_underway(stats: TargetStats, underway: &UnderwayCalls) -> TargetStats {
    let UnderwayCalls { never_finished, aged, .. } = *underway;
    TargetStats { in_flight: underway.count(), never_finished, aged, ..stats }
}

/// Returns the bucket bounds for durations that the selected families need.
fn ladder(config: &RunConfig, grpc: &GrpcView) -> Ladder {
    let WatchConfig { metrics, specs, .. } = &config.watch;
    let mut views: Vec<&Buckets> = Vec::new();
    if metrics.contains(Family::Kitex) {
        views.push(&config.buckets);
    }
    if metrics.contains(Family::Otel) {
        views.extend(otel::buckets());
    }
    if metrics.contains(Family::Grpc) || !specs.is_empty() {
        views.push(&grpc.buckets);
    }
    Ladder::of(views)
}

/// Returns a target's frameworks and its Go release, as text for people.
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

/// Returns the `/proc` gauges of the targets that still run.
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

/// Returns the metrics of the Go runtimes of the targets that still run.
fn go_runtimes(faces: &[Arc<Face>], readings: &[Option<Readings>], with_target: bool) -> Vec<MetricFamily> {
    let targets = faces.iter().zip(readings).filter_map(|(face, readings)| {
        let go = face.lock_go();
        let families = go.as_ref()?.families(readings.as_ref()?);
        Some((with_target.then(|| face.pid.to_string()), families))
    });
    merge(targets.collect())
}

/// Returns the counts of failed reads of the Go runtimes.
fn read_errors(faces: &[Arc<Face>]) -> Vec<MetricFamily> {
    let mut errors = FamilyBuilder::counter(
        "monitor_read_errors_total",
        "What of the target's memory could not be read for the metrics of its Go runtime, by reason.",
    );
    for face in faces {
        let pid = face.pid.to_string();
        let go = face.lock_go();
        for (reason, count) in go.iter().flat_map(GoRuntime::errors) {
            errors.push(&[("target", &pid), ("reason", reason)], f64::from(*count));
        }
    }
    let mut families = Vec::new();
    errors.finish(&mut families);
    families
}

impl Source for Board {
    fn telemetry(&self) -> Vec<State> {
        let faces = self.newest_faces();
        let subjects = faces.iter().filter_map(|face| Some((face, face.subject.as_ref()?)));
        let begun: Vec<_> = subjects
            .map(|(face, subject)| {
                // Before everything else about a target: if it is down by now, all that is read afterwards is final.
                let is_final = !face.lock_stats().up;
                (face, subject, is_final, face.begin_go())
            })
            .collect();
        let until = Instant::now() + FOR_A_SCRAPE;
        let states = begun.into_iter().map(|(face, subject, is_final, go)| {
            let readings = face.take_go(go, until);
            let telemetry = subject.telemetry(&face.published.get(), readings.as_ref(), self.otel);
            State { pid: face.pid, telemetry, is_final }
        });
        states.collect()
    }
}

impl Backend for Board {
    fn ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    fn standstill(&self) -> Option<Duration> {
        self.refreshes.standstill(Instant::now())
    }

    fn gather(&self) -> Vec<MetricFamily> {
        self.scrapes.fetch_add(1, Ordering::Relaxed);
        self.families(&self.newest_faces(), self.several)
    }

    fn gather_target(&self, pid: u32) -> Option<Vec<MetricFamily>> {
        self.scrapes.fetch_add(1, Ordering::Relaxed);
        let face = self.newest_faces().into_iter().find(|face| face.pid == pid)?;
        Some(self.families(&[face], false))
    }

    fn calls(&self, wish: &Wish) -> Option<String> {
        let calls = self.slow_calls.as_ref()?;
        self.refreshes.ask();
        Some(calls.json(wish))
    }

    fn status(&self) -> Status {
        let targets = self
            .newest_faces()
            .iter()
            .map(|face| {
                let stats = face.lock_stats().clone();
                let calls = (stats.counters.finished, stats.events_lost());
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
