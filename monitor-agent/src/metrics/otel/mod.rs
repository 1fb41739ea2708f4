//! Metrics in the model of OpenTelemetry: what goes out by OTLP, and, under the names that its Go exporter for
//! Prometheus would give, at `/metrics`.
//!
//! Two instrumentation libraries are stood in for: Kitex's extension (`kitex-contrib/obs-opentelemetry` @ v0.3.0) and
//! the one for the Go runtime (`go.opentelemetry.io/contrib/instrumentation/runtime` @ v0.72.0).

mod calls;
mod exposition;
mod resource;
mod runtime;

use std::collections::BTreeMap;

pub use calls::{Conventions, buckets};
pub use exposition::families;
pub use resource::{Identity, Resource, pairs};
pub use runtime::{GoNames, GoNamesError, Pauses, Runtime};

use crate::pipeline::Snapshot;

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttributeValue {
    /// Text.
    Text(String),
    /// A whole number.
    Number(i64),
}

/// Attributes by name.
pub type Attributes = BTreeMap<String, AttributeValue>;

/// One target's metrics at one moment.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// What the metrics are about.
    pub resource: Resource,
    /// The metrics, by the library that would have made them.
    pub scopes: Vec<Scope>,
}

/// An instrumentation library and its metrics.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Since when it measures, in nanoseconds since 1970.
    pub since_ns: u64,
    /// Whether the target itself keeps its sums, and has since before the agent came; else the agent does.
    pub by_target: bool,
    /// Its metrics that have points.
    pub metrics: Vec<Metric>,
}

/// A metric.
#[derive(Clone, Debug)]
pub struct Metric {
    /// Its name, with dots.
    pub name: &'static str,
    /// What it means.
    pub description: &'static str,
    /// Its unit, in UCUM; may be empty.
    pub unit: &'static str,
    /// Its points.
    pub data: Data,
}

/// Points of one kind. All of them are cumulative.
#[derive(Clone, Debug)]
pub enum Data {
    /// Sums, which only rise if they are monotonic.
    Sum {
        /// Whether they only rise.
        monotonic: bool,
        /// The sums.
        points: Vec<(Attributes, i64)>,
    },
    /// Distributions.
    Histogram(Vec<(Attributes, Distribution)>),
}

/// A distribution of what was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// Upper bounds of the buckets, inclusive, without the infinite one.
    pub bounds: Vec<f64>,
    /// Counts of the buckets, the infinite one last; not cumulated.
    pub counts: Vec<u64>,
    /// The sum of what was counted.
    pub sum: f64,
}

impl Distribution {
    /// How much was counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What was added since an earlier one of the same bounds.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let counts = self.counts.iter().zip(&before.counts);
        Self {
            bounds: self.bounds.clone(),
            counts: counts.map(|(now, before)| now.saturating_sub(*before)).collect(),
            sum: self.sum - before.sum,
        }
    }
}

/// How the agent stands in for the libraries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OtelView {
    /// Names of calls.
    pub conventions: Conventions,
    /// Names of the Go runtime.
    pub go: GoNames,
}

/// The metrics of a target: its calls, counted since a time, and its Go runtime if that could be read.
#[must_use]
pub fn telemetry(
    identity: &Identity,
    snapshot: &Snapshot,
    runtime: Option<&Runtime<'_>>,
    view: OtelView,
    since_ns: u64,
) -> Telemetry {
    let resource = identity.resource(snapshot);
    let mut scopes = calls::scopes(&resource, snapshot, view.conventions, since_ns);
    scopes.extend(runtime.into_iter().flat_map(|runtime| runtime::scopes(runtime, view.go)));
    scopes.retain(|scope| !scope.metrics.is_empty());
    Telemetry { resource, scopes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_told_of_counts_and_sum() {
        let distribution =
            |counts: [u64; 3], sum| Distribution { bounds: vec![1.0, 2.0], counts: counts.to_vec(), sum };
        let (before, now) = (distribution([1, 0, 2], 10.5), distribution([1, 3, 4], 24.0));
        assert_eq!(now.since(&before), distribution([0, 3, 2], 13.5));
        assert_eq!(now.since(&now), distribution([0, 0, 0], 0.0));
    }
}
