//! The names of OpenTelemetry's exporter for Prometheus (`go.opentelemetry.io/otel/exporters/prometheus` @ v0.69.0,
//! with `github.com/prometheus/otlptranslator` @ v1.0.0 and its default strategy).

use std::collections::BTreeMap;

use prometheus::proto::MetricFamily;

use super::{AttributeValue, Attributes, Data, Metric, Telemetry};
use crate::metrics::family::{FamilyBuilder, float};

/// Builds a target's metrics as families, including `target_info`.
#[must_use]
pub fn families(telemetry: &Telemetry) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    let resource = labels(&telemetry.resource.attributes);
    FamilyBuilder::gauge("target_info", "Target metadata")
        .with(&borrowed(&resource), 1.0)
        .finish(&mut families);
    for scope in &telemetry.scopes {
        let of_scope = [
            ("otel_scope_name", scope.name),
            ("otel_scope_schema_url", ""),
            ("otel_scope_version", scope.version),
        ];
        for metric in &scope.metrics {
            family(metric, &of_scope).finish(&mut families);
        }
    }
    families
}

fn family(metric: &Metric, of_scope: &[(&str, &str)]) -> FamilyBuilder {
    let name = name(metric);
    let all = |attributes: &Attributes| {
        let mut labels = labels(attributes);
        // Replaces an attribute that has one of these names.
        labels.extend(of_scope.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        labels
    };
    match &metric.data {
        Data::Sum { monotonic, points } => {
            let family = if *monotonic { FamilyBuilder::counter } else { FamilyBuilder::gauge };
            let mut family = family(&name, metric.description);
            for (attributes, value) in points {
                family.push(&borrowed(&all(attributes)), signed(*value));
            }
            family
        }
        Data::Histogram(points) => {
            let mut family = FamilyBuilder::histogram(&name, metric.description);
            for (attributes, value) in points {
                let buckets = value.bounds.iter().copied().zip(value.counts.iter().copied());
                family.push_buckets(&borrowed(&all(attributes)), buckets, value.count(), value.sum);
            }
            family
        }
    }
}

/// Returns a metric's name with underscores, followed by its unit and a suffix for its kind.
fn name(metric: &Metric) -> String {
    let mut tokens: Vec<&str> = metric.name.split(['.', '_']).filter(|token| !token.is_empty()).collect();
    let unit = match metric.unit {
        "By" => Some("bytes"),
        "%" => Some("percent"),
        "s" => Some("seconds"),
        "ms" => Some("milliseconds"),
        "ns" => Some("nanoseconds"),
        // A unit in braces is only an annotation.
        _ => None,
    };
    if let Some(unit) = unit.filter(|unit| !tokens.contains(unit)) {
        tokens.push(unit);
    }
    if matches!(metric.data, Data::Sum { monotonic: true, .. }) {
        tokens.retain(|token| *token != "total");
        tokens.push("total");
    }
    tokens.join("_")
}

/// Converts attributes to labels by name. Attributes whose names become the same label are joined: their values in the
/// order of the attributes' names, separated by `;` (`compatibility/prometheus_and_openmetrics.md` of OpenTelemetry's
/// specification @ v1.50.0).
fn labels(attributes: &Attributes) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in attributes {
        let value = match value {
            AttributeValue::Text(text) => text.clone(),
            AttributeValue::Number(number) => number.to_string(),
        };
        let name = label_name(name);
        if let Some(joined) = labels.get_mut(&name) {
            joined.push(';');
            joined.push_str(&value);
        } else {
            labels.insert(name, value);
        }
    }
    labels
}

/// Converts an attribute's name to a label's name. Runs of characters that Prometheus does not allow become one
/// underscore.
fn label_name(name: &str) -> String {
    let mut label = String::with_capacity(name.len());
    for character in name.chars() {
        let allowed = if character.is_ascii_alphanumeric() { character } else { '_' };
        if allowed != '_' || !label.ends_with('_') {
            label.push(allowed);
        }
    }
    if label.starts_with(|first: char| first.is_ascii_digit()) { format!("key_{label}") } else { label }
}

fn borrowed(labels: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
    labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

fn signed(value: i64) -> f64 {
    let size = float(value.unsigned_abs());
    if value < 0 { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &'static str, unit: &'static str, monotonic: bool) -> String {
        let data = Data::Sum { monotonic, points: Vec::new() };
        super::name(&Metric { name, description: "", unit, data })
    }

    /// The names that the exporter gave in `tests/targets/inside`.
    #[test]
    fn names_are_those_of_the_exporter() {
        assert_eq!(named("rpc.server.duration", "", false), "rpc_server_duration");
        assert_eq!(named("rpc.server.call.duration", "s", false), "rpc_server_call_duration_seconds");
        assert_eq!(named("go.memory.allocated", "By", true), "go_memory_allocated_bytes_total");
        assert_eq!(named("go.memory.allocations", "{allocation}", true), "go_memory_allocations_total");
        assert_eq!(named("go.config.gogc", "%", false), "go_config_gogc_percent");
        assert_eq!(named("runtime.uptime", "ms", true), "runtime_uptime_milliseconds_total");
        assert_eq!(
            named("process.runtime.go.gc.pause_total_ns", "ns", true),
            "process_runtime_go_gc_pause_ns_nanoseconds_total"
        );
    }

    #[test]
    fn labels_have_names_that_prometheus_takes() {
        assert_eq!(label_name("telemetry.sdk.language"), "telemetry_sdk_language");
        assert_eq!(label_name("a--b"), "a_b");
        assert_eq!(label_name("1st"), "key_1st");
    }

    #[test]
    fn attributes_that_become_one_label_are_joined() {
        let text = |name: &str, value: &str| (name.to_owned(), AttributeValue::Text(value.to_owned()));
        let pid = ("process.pid".to_owned(), AttributeValue::Number(7));
        // The order is that of the attributes' names: `.` comes before `_`.
        let attributes = Attributes::from([
            text("a_b", "2"),
            text("a.b", "1"),
            text("a-b", "0"),
            text("process_pid", "x"),
            pid,
        ]);
        let joined = [("a_b", "0;1;2"), ("process_pid", "7;x")];
        assert_eq!(borrowed(&labels(&attributes)), joined);
    }

    #[test]
    fn no_attribute_takes_the_place_of_a_scope() {
        let name = AttributeValue::Text("mine".to_owned());
        let points = vec![(Attributes::from([("otel.scope.name".to_owned(), name)]), 1)];
        let data = Data::Sum { monotonic: false, points };
        let metric = Metric { name: "a", description: "", unit: "", data };
        let mut families = Vec::new();
        family(&metric, &[("otel_scope_name", "library")]).finish(&mut families);
        let labels = families[0].get_metric()[0].get_label();
        let labels: Vec<_> = labels.iter().map(|label| (label.name(), label.value())).collect();
        assert_eq!(labels, [("otel_scope_name", "library")]);
    }
}
