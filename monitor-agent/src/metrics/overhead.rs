//! The cost of watching to the targets.

use prometheus::proto::MetricFamily;

use super::family::{FamilyBuilder, float};

/// The overhead of one target's probes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OverheadStats {
    /// The recent share of the target's CPU time that the probes take.
    pub ratio: Option<f64>,
    /// The time of one run of a program, in seconds, by the role of its sites.
    pub runs: Vec<(&'static str, f64)>,
    /// What is shed to keep the budget, if there is one.
    pub shedding: Option<SheddingStats>,
}

/// What is shed for one target to keep a budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SheddingStats {
    /// How much detail is left out: 0 for none, 3 for all durations.
    pub level: usize,
    /// Steps down so far.
    pub shed: u64,
    /// Steps up so far.
    pub restored: u64,
    /// Whether the budget is exceeded with nothing left to shed.
    pub is_exhausted: bool,
}

/// Costs that are the same for all targets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CostStats {
    /// The time of a hit with an empty program, in seconds, by the instruction's cost class.
    pub hits: Vec<(&'static str, f64)>,
    /// The budget, as a ratio.
    pub budget: Option<f64>,
}

/// Builds the families about cost. Targets are given by their pids.
pub(super) fn overhead<'a>(
    costs: &CostStats,
    targets: impl Iterator<Item = (u32, &'a OverheadStats)>,
    families: &mut Vec<MetricFamily>,
) {
    let mut hits = FamilyBuilder::gauge(
        "monitor_probe_hit_cost_seconds",
        "What the kernel takes on this machine for a hit of a probe whose program does nothing.",
    );
    for (class, seconds) in &costs.hits {
        hits.push(&[("cost_class", class)], *seconds);
    }
    let mut budget = FamilyBuilder::gauge(
        "monitor_overhead_budget_ratio",
        "The part of a target's CPU time that its probes may take.",
    );
    if let Some(ratio) = costs.budget {
        budget.push(&[], ratio);
    }
    let mut ratio = FamilyBuilder::gauge(
        "monitor_target_overhead_ratio",
        "The part of a target's CPU time that its probes take, hits and programs together.",
    );
    let mut runs = FamilyBuilder::gauge(
        "monitor_program_run_seconds",
        "What one run of a program in the kernel takes, sampled.",
    );
    let mut level = FamilyBuilder::gauge(
        "monitor_shed_level",
        "How much detail is left out to keep the budget: 0 for none, 3 for all durations.",
    );
    let mut exhausted = FamilyBuilder::gauge(
        "monitor_budget_exhausted",
        "1 while the probes take more than the budget with nothing left to give up, else 0.",
    );
    let mut steps = FamilyBuilder::counter("monitor_shed_steps_total", "Changes of the level, by direction.");
    for (pid, stats) in targets {
        let pid = pid.to_string();
        let target = ("target", pid.as_str());
        if let Some(now) = stats.ratio {
            ratio.push(&[target], now);
        }
        for (role, seconds) in &stats.runs {
            runs.push(&[target, ("role", role)], *seconds);
        }
        let Some(shedding) = stats.shedding else { continue };
        level.push(&[target], float(shedding.level as u64));
        exhausted.push(&[target], if shedding.is_exhausted { 1.0 } else { 0.0 });
        steps.push(&[target, ("direction", "shed")], float(shedding.shed));
        steps.push(&[target, ("direction", "restored")], float(shedding.restored));
    }
    for family in [hits, budget, ratio, runs, level, exhausted, steps] {
        family.finish(families);
    }
}
