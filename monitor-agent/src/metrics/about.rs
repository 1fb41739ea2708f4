//! The agent's metrics about itself and about how it watches: everything under `monitor_`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use prometheus::proto::MetricFamily;

use super::{
    family::{FamilyBuilder, float},
    overhead::{CostStats, OverheadStats, overhead},
};
use crate::pipeline::{CounterValues, Outcomes, Side};

/// The state of the agent itself.
#[derive(Clone, Debug, Default)]
pub struct AgentStats {
    /// CPU time used, user and system, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Resident memory, in bytes.
    pub resident_bytes: Option<u64>,
    /// The number of answered scrapes.
    pub scrapes: u64,
    /// Answers and pushes whose numbers were no newer than those before.
    pub stale_answers: u64,
    /// The number of HTTP connections that were cut off, by reason.
    pub connections_cut: Vec<(&'static str, u64)>,
    /// The number of HTTP requests that were answered with an error, by reason.
    pub requests_refused: Vec<(&'static str, u64)>,
    /// The event stream, if it is on.
    pub events: Option<EventStats>,
    /// The results of pushes by OTLP, if they are on.
    pub pushes: Option<PushStats>,
    /// The cost of probes on this machine, and the budget.
    pub costs: CostStats,
}

/// The readers of the event stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventStats {
    /// The current number of readers.
    pub readers: usize,
    /// Lines dropped since a reader had no room for them.
    pub dropped: u64,
}

/// The results of pushes by OTLP.
#[derive(Clone, Copy, Debug, Default)]
pub struct PushStats {
    /// Accepted pushes.
    pub sent: u64,
    /// Failed pushes.
    pub failed: u64,
    /// Data points that the collector rejected.
    pub rejected_points: u64,
}

/// The state of one target's monitoring.
#[derive(Clone, Debug, Default)]
pub struct TargetStats {
    /// The target's pid.
    pub pid: u32,
    /// Whether the target is still running and watched.
    pub up: bool,
    /// The target's executable.
    pub exe: String,
    /// The build id of the executable; empty if it has none.
    pub build_id: String,
    /// The watched frameworks.
    pub frameworks: Vec<FrameworkStats>,
    /// The Go release that built the executable.
    pub go_version: String,
    /// Where the durations of calls come from, for each copy of a framework.
    pub latency_sources: Vec<LatencySource>,
    /// Unexpected types among the calls.
    pub unexpected: Vec<UnexpectedType>,
    /// The values of the programs' counters.
    pub counters: CounterValues,
    /// The number of calls in flight.
    pub in_flight: u64,
    /// The number of calls that were in flight when the target ended.
    pub never_finished: u64,
    /// The number of calls given up as too old, read at the same moment as `in_flight`.
    pub aged: u64,
    /// The maximum number of label sets.
    pub label_sets_limit: u64,
    /// Bytes in the ring at the last look, before they were drained.
    pub ring_bytes: u64,
    /// The capacity of the ring, in bytes.
    pub ring_capacity: u64,
    /// The time that loading and attaching took.
    pub attach: Duration,
    /// The target's probes.
    pub sites: Vec<SiteStats>,
    /// The overhead of the probes.
    pub overhead: OverheadStats,
}

impl TargetStats {
    /// Returns whether the target's calls are watched.
    #[must_use]
    pub fn has_calls(&self) -> bool {
        !self.frameworks.is_empty()
    }

    /// Returns all values of `monitor_events_lost_total`, by reason.
    fn losses(&self) -> [(&'static str, u64); 9] {
        let counters = &self.counters;
        let ring_full = counters.ring_full + counters.ring_full_unpaired + counters.ring_full_recorded;
        [
            ("ring_full", ring_full),
            ("clock_set", counters.clock_set),
            ("finish_unknown_type", counters.finishes_unknown_type),
            ("finish_unreadable", counters.finishes_unread),
            ("start_unreadable", counters.starts_unread),
            ("label_table_failed", counters.finishes_lost + counters.finishes_lost_unpaired),
            ("size_unreadable", counters.sizes_unread),
            ("message", counters.messages_lost),
            ("start_label_table_failed", counters.starts_lost),
        ]
    }

    /// Returns the total number of losses, whatever the reason.
    #[must_use]
    pub fn events_lost(&self) -> u64 {
        self.losses().iter().map(|(_, count)| count).sum()
    }
}

/// A framework in a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameworkStats {
    /// The framework's name.
    pub name: String,
    /// The framework's version.
    pub version: String,
}

/// The source of call durations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LatencySource {
    /// Probes at start and finish of each call.
    Probes,
    /// Probes at the finish of each call, and at the start within windows.
    Windows,
    /// Probes at the finish of each call, and starts that the calls record themselves.
    Recorded,
    /// No durations are measured.
    Nowhere,
}

impl LatencySource {
    /// Returns the value of the label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Probes => "probes",
            Self::Windows => "windows",
            Self::Recorded => "recorded",
            Self::Nowhere => "none",
        }
    }
}

/// An unexpected type among the calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnexpectedType {
    /// The interface that the value was passed as.
    pub interface: String,
    /// The type; `unknown` if it could not be found.
    pub concrete: String,
    /// The number of hits with this type.
    pub hits: u64,
}

/// One probe.
#[derive(Clone, Debug, Default)]
pub struct SiteStats {
    /// The role of the site: `start`, `finish`, `count` or `enter`.
    pub role: &'static str,
    /// The function.
    pub symbol: String,
    /// The probed instruction.
    pub instruction: String,
    /// The probe's offset in the executable's file.
    pub file_offset: u64,
    /// The cost class of a hit: `emulated`, `single-stepped` or `return-probe`.
    pub cost_class: &'static str,
}

/// Builds all families under `monitor_`.
#[must_use]
pub fn about(agent: &AgentStats, targets: &[TargetStats]) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    about_agent(agent, &mut families);
    about_targets(targets, &mut families);
    let watched: Vec<_> = targets.iter().filter(|target| target.has_calls()).cloned().collect();
    about_calls(&watched, &mut families);
    about_sides(&watched, &mut families);
    about_types(&watched, &mut families);
    overhead(&agent.costs, watched.iter().map(|target| (target.pid, &target.overhead)), &mut families);
    families
}

fn about_agent(agent: &AgentStats, families: &mut Vec<MetricFamily>) {
    FamilyBuilder::gauge("monitor_build_info", "The agent's version; always 1.")
        .with(&[("version", env!("CARGO_PKG_VERSION"))], 1.0)
        .finish(families);
    let mut cpu = FamilyBuilder::counter(
        "monitor_agent_cpu_seconds_total",
        "CPU time the agent used, user and system.",
    );
    if let Some(seconds) = agent.cpu_seconds {
        cpu.push(&[], seconds);
    }
    cpu.finish(families);
    let mut memory =
        FamilyBuilder::gauge("monitor_agent_resident_memory_bytes", "Memory the agent has resident.");
    if let Some(bytes) = agent.resident_bytes {
        memory.push(&[], float(bytes));
    }
    memory.finish(families);
    FamilyBuilder::counter("monitor_scrapes_total", "Scrapes answered.")
        .with(&[], float(agent.scrapes))
        .finish(families);
    FamilyBuilder::counter(
        "monitor_stale_answers_total",
        "Answers and pushes with what was there before, since what is there by now could not be read in time.",
    )
    .with(&[], float(agent.stale_answers))
    .finish(families);
    about_peers(agent, families);
    if let Some(pushes) = agent.pushes {
        FamilyBuilder::counter("monitor_otlp_exports_total", "Pushes by OTLP, by what became of them.")
            .with(&[("outcome", "sent")], float(pushes.sent))
            .with(&[("outcome", "failed")], float(pushes.failed))
            .finish(families);
        FamilyBuilder::counter(
            "monitor_otlp_rejected_points_total",
            "Points that the collector has thrown away, as it said.",
        )
        .with(&[], float(pushes.rejected_points))
        .finish(families);
    }
    let Some(events) = agent.events else { return };
    FamilyBuilder::gauge("monitor_event_readers", "Programs that read the event stream.")
        .with(&[], float(events.readers as u64))
        .finish(families);
    FamilyBuilder::counter(
        "monitor_event_lines_dropped_total",
        "Lines of the event stream that a reader did not take in time; it is told how many.",
    )
    .with(&[], float(events.dropped))
    .finish(families);
}

/// Adds the families about HTTP connections and requests that failed.
fn about_peers(agent: &AgentStats, families: &mut Vec<MetricFamily>) {
    let cut = FamilyBuilder::counter(
        "monitor_http_connections_cut_total",
        "HTTP connections that the agent has cut off with a request or an answer on its way, by reason.",
    );
    let refused = FamilyBuilder::counter(
        "monitor_http_requests_refused_total",
        "HTTP requests that got an error of the agent's in place of an answer, by reason.",
    );
    for (mut family, counts) in [(cut, &agent.connections_cut), (refused, &agent.requests_refused)] {
        for &(reason, count) in counts {
            family.push(&[("reason", reason)], float(count));
        }
        family.finish(families);
    }
}

fn about_targets(targets: &[TargetStats], families: &mut Vec<MetricFamily>) {
    let mut info = FamilyBuilder::gauge("monitor_target_info", "What a target runs; always 1.");
    let mut up = FamilyBuilder::gauge(
        "monitor_target_up",
        "1 while the target lives and is watched, 0 after its end.",
    );
    let mut attach = FamilyBuilder::gauge(
        "monitor_attach_seconds",
        "Time it took to load the programs and attach the probes.",
    );
    let mut sites = FamilyBuilder::gauge(
        "monitor_probe_site_info",
        "A probe, the instruction under it and what a hit costs; always 1.",
    );
    for target in targets {
        let pid = target.pid.to_string();
        let none = [FrameworkStats::default()];
        let frameworks = if target.has_calls() { &target.frameworks[..] } else { &none };
        for (index, framework) in frameworks.iter().enumerate() {
            // Several copies of a framework in one executable may look the same.
            if frameworks.iter().take(index).any(|earlier| earlier == framework) {
                continue;
            }
            info.push(
                &[
                    ("target", &pid),
                    ("exe", &target.exe),
                    ("build_id", &target.build_id),
                    ("framework", &framework.name),
                    ("framework_version", &framework.version),
                    ("go_version", &target.go_version),
                ],
                1.0,
            );
        }
        up.push(&[("target", &pid)], if target.up { 1.0 } else { 0.0 });
        if target.has_calls() {
            attach.push(&[("target", &pid)], target.attach.as_secs_f64());
        }
        // The probes on the returns of one function have equal labels, and so may a spec's probe and a framework's.
        let mut told = BTreeSet::new();
        for site in &target.sites {
            let labels = [
                ("target", &pid[..]),
                ("role", site.role),
                ("symbol", &site.symbol),
                ("instruction", &site.instruction),
                ("cost_class", site.cost_class),
            ];
            if told.insert(labels) {
                sites.push(&labels, 1.0);
            }
        }
    }
    for family in [info, up, attach, sites] {
        family.finish(families);
    }
}

/// A counter or gauge with one value for each target, or with several that one more label distinguishes.
struct PerTarget {
    gauge: bool,
    name: &'static str,
    help: &'static str,
    /// The name of the label that distinguishes the values; empty for a single value.
    label: &'static str,
    values: fn(&TargetStats) -> Vec<(&'static str, f64)>,
}

const PER_TARGET: &[PerTarget] = &[
    PerTarget {
        gauge: false,
        name: "monitor_starts_total",
        help: "Starts of calls seen.",
        label: "",
        values: |target| vec![("", float(target.counters.starts))],
    },
    PerTarget {
        gauge: false,
        name: "monitor_finishes_total",
        help: "Finished calls seen: timed, unpaired (start not seen), timed by the start that they have \
               recorded, sampled out (start not watched), or with their duration lost, of a start that was seen or of \
               one that they have recorded; and ends of streams that came again or too early, which are no calls.",
        label: "outcome",
        values: |target| {
            vec![
                ("timed", float(target.counters.records_timed)),
                ("unpaired", float(target.counters.unpaired)),
                ("recorded", float(target.counters.recorded)),
                ("recorded_lost", float(target.counters.clock_set + target.counters.ring_full_recorded)),
                ("sampled_out", float(target.counters.sampled_out)),
                ("lost", float(target.counters.ring_full)),
                ("repeated", float(target.counters.repeated)),
            ]
        },
    },
    PerTarget {
        gauge: false,
        name: "monitor_events_lost_total",
        help: "What was lost of calls, by reason. Only with finish_unknown_type, finish_unreadable and label_table_failed is a \
               call missing in the throughput; ring_full and clock_set lose a duration, size_unreadable a call's bytes, \
               message a stream's message, start_label_table_failed a start under its labels, start_unreadable all of a start.",
        label: "reason",
        values: |target| target.losses().map(|(reason, count)| (reason, float(count))).to_vec(),
    },
    PerTarget {
        gauge: false,
        name: "monitor_unpaired_starts_total",
        help: "Starts that no finish will be matched with, by reason.",
        label: "reason",
        values: |target| {
            vec![
                ("in_flight_full", float(target.counters.refused_full)),
                ("nested_too_deep", float(target.counters.refused_nested)),
                ("abandoned", float(target.counters.abandoned)),
                ("aged", float(target.aged)),
                ("sampled_out", float(target.counters.starts_sampled_out)),
                ("label_table_failed", float(target.counters.finishes_lost)),
                ("target_ended", float(target.never_finished)),
                ("unknown_type", float(target.counters.starts_unknown_type)),
            ]
        },
    },
    PerTarget {
        gauge: false,
        name: "monitor_unpaired_finishes_total",
        help: "Finished calls without a duration, by reason.",
        label: "reason",
        values: |target| {
            vec![
                ("start_not_seen", float(target.counters.unpaired)),
                ("sampled_out", float(target.counters.sampled_out)),
            ]
        },
    },
    PerTarget {
        gauge: true,
        name: "monitor_calls_in_flight",
        help: "Calls that have started and not finished, of those whose start was seen and kept.",
        label: "",
        values: |target| vec![("", float(target.in_flight))],
    },
    PerTarget {
        gauge: true,
        name: "monitor_label_sets",
        help: "Combinations of labels in use.",
        label: "",
        values: |target| vec![("", float(target.counters.label_sets))],
    },
    PerTarget {
        gauge: true,
        name: "monitor_label_sets_limit",
        help: "Combinations of labels that are kept; past them `other` stands in for names.",
        label: "",
        values: |target| vec![("", float(target.label_sets_limit))],
    },
    PerTarget {
        gauge: false,
        name: "monitor_label_sets_refused_total",
        help: "Finished calls counted under `other`, since the limit on label sets was reached.",
        label: "",
        values: |target| vec![("", float(target.counters.label_sets_refused))],
    },
    PerTarget {
        gauge: false,
        name: "monitor_labels_unreadable_total",
        help: "Labels of calls that could not be read, by reason. Those not in memory are looked up in the \
               executable where they can't have changed.",
        label: "reason",
        values: |target| {
            vec![
                ("not_in_memory", float(target.counters.label_faults)),
                ("implausible", float(target.counters.labels_unreadable)),
            ]
        },
    },
    PerTarget {
        gauge: false,
        name: "monitor_labels_cut_total",
        help: "Names of finished calls that are longer than what is kept of one, and end in an ellipsis: each call counts \
               once for each.",
        label: "",
        values: |target| vec![("", float(target.counters.labels_cut))],
    },
    PerTarget {
        gauge: true,
        name: "monitor_ring_bytes",
        help: "Bytes that waited in the ring buffer when the agent last drained it.",
        label: "",
        values: |target| vec![("", float(target.ring_bytes))],
    },
    PerTarget {
        gauge: true,
        name: "monitor_ring_capacity_bytes",
        help: "Bytes that the ring buffer holds.",
        label: "",
        values: |target| vec![("", float(target.ring_capacity))],
    },
];

fn about_calls(targets: &[TargetStats], families: &mut Vec<MetricFamily>) {
    for family in PER_TARGET {
        let mut builder = if family.gauge {
            FamilyBuilder::gauge(family.name, family.help)
        } else {
            FamilyBuilder::counter(family.name, family.help)
        };
        for target in targets {
            let pid = target.pid.to_string();
            for (value, number) in (family.values)(target) {
                if family.label.is_empty() {
                    builder.push(&[("target", &pid)], number);
                } else {
                    builder.push(&[("target", &pid), (family.label, value)], number);
                }
            }
        }
        builder.finish(families);
    }
}

/// Adds the families about what became of each side's calls.
fn about_sides(targets: &[TargetStats], families: &mut Vec<MetricFamily>) {
    let mut calls = FamilyBuilder::counter(
        "monitor_calls_total",
        "Finished calls by what became of them: `finished` are all; timed, unpaired, sampled out, lost and those pending \
         add up to it.",
    );
    let mut sampled = FamilyBuilder::gauge(
        "monitor_latency_sampled_ratio",
        "Share of the finished calls that have a duration.",
    );
    let mut sources = FamilyBuilder::gauge(
        "monitor_latency_source_info",
        "Where durations come from: probes at each start and finish, at the starts in windows only, starts that the \
         target records, or none; always 1.",
    );
    let mut pending = FamilyBuilder::gauge(
        "monitor_calls_pending",
        "Finished calls that were counted, and whose durations were still on their way.",
    );
    for target in targets {
        let pid = target.pid.to_string();
        for (side, outcomes) in
            [(Side::Client, target.counters.client), (Side::Server, target.counters.server)]
        {
            let Outcomes { finished, timed, unpaired, sampled_out, lost, pending: on_their_way } = outcomes;
            let target = ("target", pid.as_str());
            for (outcome, count) in [
                ("finished", finished),
                ("timed", timed),
                ("unpaired", unpaired),
                ("sampled_out", sampled_out),
                ("lost", lost),
            ] {
                calls.push(&[target, ("side", side.name()), ("outcome", outcome)], float(count));
            }
            pending.push(&[target, ("side", side.name())], float(on_their_way));
            if finished > 0 {
                sampled.push(&[target, ("side", side.name())], float(timed) / float(finished));
            }
        }
        let of_target: BTreeSet<_> = target.latency_sources.iter().collect();
        for source in of_target {
            sources.push(&[("target", &pid), ("source", source.name())], 1.0);
        }
    }
    calls.finish(families);
    pending.finish(families);
    sampled.finish(families);
    sources.finish(families);
}

fn about_types(targets: &[TargetStats], families: &mut Vec<MetricFamily>) {
    let mut hits = FamilyBuilder::counter(
        "monitor_unexpected_types_total",
        "Hits of probes with a type that was not expected; it is never read as if it were another.",
    );
    for target in targets {
        let pid = target.pid.to_string();
        let mut sums: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for found in &target.unexpected {
            *sums.entry((&found.interface, &found.concrete)).or_default() += found.hits;
        }
        if target.counters.unexpected_not_kept > 0 {
            *sums.entry(("other", "other")).or_default() += target.counters.unexpected_not_kept;
        }
        for ((interface, concrete), sum) in sums {
            hits.push(&[("target", &pid), ("interface", interface), ("type", concrete)], float(sum));
        }
    }
    hits.finish(families);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page and the metric agree: no loss is left out.
    #[test]
    fn whatever_is_lost_is_in_the_sum() {
        let counters = CounterValues {
            ring_full: 1,
            ring_full_unpaired: 2,
            ring_full_recorded: 4,
            clock_set: 8,
            finishes_unknown_type: 16,
            finishes_lost: 32,
            finishes_lost_unpaired: 64,
            sizes_unread: 128,
            messages_lost: 256,
            starts_lost: 512,
            starts_unread: 1024,
            finishes_unread: 2048,
            ..CounterValues::default()
        };
        assert_eq!(TargetStats { counters, ..TargetStats::default() }.events_lost(), 4_095);
    }
}
