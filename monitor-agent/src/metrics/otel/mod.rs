//! Metrics in the model of OpenTelemetry: pushed by OTLP, and shown at `/metrics` under the names of its Go exporter
//! for Prometheus.
//!
//! They stand in for two instrumentation libraries: Kitex's extension (`kitex-contrib/obs-opentelemetry` @ v0.3.0) and
//! the library for the Go runtime (`go.opentelemetry.io/contrib/instrumentation/runtime` @ v0.72.0).

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

/// The value of an attribute.
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
    /// The resource that the metrics describe.
    pub resource: Resource,
    /// The metrics, by the library that they stand in for.
    pub scopes: Vec<Scope>,
}

/// An instrumentation library and its metrics.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The library's name.
    pub name: &'static str,
    /// The library's version.
    pub version: &'static str,
    /// The start of measuring, in nanoseconds since 1970.
    pub since_ns: u64,
    /// Whether the target itself keeps the sums, and has done so since before the agent came; if not, the agent keeps
    /// them.
    pub by_target: bool,
    /// The metrics that have points.
    pub metrics: Vec<Metric>,
}

/// A metric.
#[derive(Clone, Debug)]
pub struct Metric {
    /// The metric's name, with dots.
    pub name: &'static str,
    /// The metric's description.
    pub description: &'static str,
    /// The metric's unit, in UCUM; may be empty.
    pub unit: &'static str,
    /// The metric's points.
    pub data: Data,
}

/// The points of a metric. All are cumulative.
#[derive(Clone, Debug)]
pub enum Data {
    /// Sums, monotonic or not.
    Sum {
        /// Whether the sums only rise.
        monotonic: bool,
        /// The sums.
        points: Vec<(Attributes, i64)>,
    },
    /// Distributions.
    Histogram(Vec<(Attributes, Distribution)>),
}

/// A distribution of measured values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// The inclusive upper bounds of the buckets, without infinity.
    pub bounds: Vec<f64>,
    /// The counts of the buckets, the infinite bucket last; not cumulative.
    pub counts: Vec<u64>,
    /// The sum of the values.
    pub sum: f64,
}

impl Distribution {
    /// Returns the number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the difference to an earlier distribution with the same bounds.
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

/// How the agent stands in for the instrumentation libraries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OtelView {
    /// The names of the metrics of calls.
    pub conventions: Conventions,
    /// The names of the metrics of the Go runtime.
    pub go: GoNames,
}

/// Builds the metrics of a target: its calls, counted since a time, and its Go runtime if that could be read.
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
