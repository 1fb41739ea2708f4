//! The metrics of calls.

use std::{collections::BTreeMap, sync::LazyLock};

use super::{AttributeValue, Attributes, Data, Distribution, Metric, Resource, Scope, resource::real_name};
use crate::metrics::grpc::canonical_code_name;
use crate::pipeline::{Buckets, Framework, Histogram, Labels, Series, Side, Snapshot};

/// The default bounds of the SDK's histograms, in milliseconds (`sdk/metric/reader.go` @ v1.47.0 of OpenTelemetry for
/// Go). The bounds of the current conventions are the same without the first.
const BOUNDS: [u32; 15] = [0, 5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10000];

/// The buckets of the old and of the current conventions.
static BUCKETS: LazyLock<(Buckets, Buckets)> = LazyLock::new(|| {
    let [_, positive @ ..] = &BOUNDS;
    (Buckets::of_milliseconds(&BOUNDS, 1), Buckets::of_milliseconds(positive, 1_000))
});

/// Returns the buckets that durations must be distinguished by.
#[must_use]
pub fn buckets() -> [&'static Buckets; 2] {
    [&BUCKETS.0, &BUCKETS.1]
}

/// The semantic conventions for RPCs that are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conventions {
    /// The conventions up to v1.38.
    pub old: bool,
    /// The conventions since v1.39.
    pub new: bool,
}

impl Conventions {
    /// Reads a list as in `OTEL_SEMCONV_STABILITY_OPT_IN`: `rpc` selects the current names alone, `rpc/dup` both. Other
    /// words are ignored.
    #[must_use]
    pub fn of_opt_in(list: &str) -> Self {
        let has = |word| list.split(',').any(|part| part.trim() == word);
        let both = has("rpc/dup");
        Self { old: both || !has("rpc"), new: both || has("rpc") }
    }
}

/// Builds the scopes of a target's calls.
pub(super) fn scopes(
    resource: &Resource,
    snapshot: &Snapshot,
    conventions: Conventions,
    since_ns: u64,
) -> Vec<Scope> {
    let mut scopes = Vec::new();
    if conventions.old {
        let metric = |name, side| Metric {
            name,
            description: "",
            unit: "",
            data: histogram(snapshot, side, |labels| old(labels, resource), &BUCKETS.0, 1e6),
        };
        scopes.push(Scope {
            name: "github.com/kitex-contrib/obs-opentelemetry",
            version: "semver:0.39.0",
            since_ns,
            by_target: false,
            metrics: vec![
                metric("rpc.client.duration", Side::Client),
                metric("rpc.server.duration", Side::Server),
            ],
        });
    }
    if conventions.new {
        let metric = |name, description, side| Metric {
            name,
            description,
            unit: "s",
            data: histogram(snapshot, side, new, &BUCKETS.1, 1e9),
        };
        // The descriptions in the conventions' model/rpc/metrics.yaml @ v1.44.0.
        let (client, server) = (
            "Measures the duration of outgoing Remote Procedure Calls (RPC).",
            "Measures the duration of an incoming Remote Procedure Call (RPC).",
        );
        scopes.push(Scope {
            name: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            since_ns,
            by_target: false,
            metrics: vec![
                metric("rpc.client.call.duration", client, Side::Client),
                metric("rpc.server.call.duration", server, Side::Server),
            ],
        });
    }
    for scope in &mut scopes {
        scope.metrics.retain(|metric| !matches!(&metric.data, Data::Histogram(points) if points.is_empty()));
    }
    scopes
}

/// Builds the durations of calls by their attributes, in a unit of `unit` nanoseconds.
fn histogram(
    snapshot: &Snapshot,
    side: Side,
    attributes: impl Fn(&Labels) -> Attributes,
    buckets: &Buckets,
    unit: f64,
) -> Data {
    let mut points: BTreeMap<Attributes, Histogram> = BTreeMap::new();
    let timed = |series: &&std::sync::Arc<Series>| {
        let Series { labels, histogram, .. } = series.as_ref();
        // Operations of specs are no RPCs.
        let is_call = !matches!(labels.framework, Framework::Spec { .. });
        is_call && labels.side == side && histogram.count() > 0
    };
    for series in snapshot.series.iter().filter(timed) {
        let point = points.entry(attributes(&series.labels));
        point
            .and_modify(|histogram| histogram.add(&series.histogram))
            .or_insert_with(|| series.histogram.clone());
    }
    let distribution = |histogram: Histogram| Distribution {
        bounds: buckets.bounds().to_vec(),
        counts: histogram.counts(buckets),
        sum: float(histogram.sum_ns) / unit,
    };
    Data::Histogram(
        points.into_iter().map(|(attributes, histogram)| (attributes, distribution(histogram))).collect(),
    )
}

#[expect(
    clippy::cast_precision_loss,
    reason = "OpenTelemetry's sums are floats; exact up to 2^53 ns, 104 days"
)]
fn float(sum: u128) -> f64 {
    sum as f64
}

/// Returns the attributes of Kitex's extension (`tracing/metrics.go` @ v0.3.0), which copies some of the resource's.
fn old(labels: &Labels, resource: &Resource) -> Attributes {
    let failed = labels.failed || labels.panicked;
    let mut attributes = text([
        ("rpc.system", system(labels)),
        ("rpc.service", &labels.callee),
        ("rpc.method", &labels.method),
        ("status.code", if failed { "Error" } else { "Unset" }),
    ]);
    // gRPC has only one protocol, and Kitex's can't be read in every executable.
    if !labels.protocol.is_empty() {
        attributes.extend(text([("request.protocol", &labels.protocol)]));
    }
    attributes.extend(resource.of_points(labels));
    let caller = real_name(&labels.caller).filter(|_| labels.side == Side::Server);
    if let Some(caller) = caller {
        attributes.extend(text([("peer.service", caller)]));
    }
    attributes
}

/// Returns the attributes of the current conventions, as far as they are known.
fn new(labels: &Labels) -> Attributes {
    let method = match (real_name(&labels.callee), real_name(&labels.method)) {
        (_, None) => "_OTHER".to_owned(),
        (None, Some(method)) => method.to_owned(),
        (Some(service), Some(method)) => format!("{service}/{method}"),
    };
    let mut attributes = text([("rpc.system.name", system(labels)), ("rpc.method", &method)]);
    if labels.framework == Framework::Grpc {
        attributes.extend(of_status(labels));
        return attributes;
    }
    let error = match (labels.failed, labels.panicked, labels.error_class) {
        (false, false, _) => return attributes,
        (false, true, _) => "panic",
        (true, _, "other" | "none") => "_OTHER",
        (true, _, class) => class,
    };
    attributes.extend(text([("error.type", error)]));
    attributes
}

/// The codes that count as failures of a server; other codes are its clients' failures. For a client, every code but
/// `OK` is a failure (`interceptor.go`, `stats_handler.go` of otelgrpc @ v0.72.0).
const FAILURES_OF_SERVERS: [&str; 6] =
    ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"];

/// Returns the attributes for the status of a gRPC call.
fn of_status(labels: &Labels) -> Attributes {
    // A status that can't be read counts as an error.
    let Some(code) = labels.code else { return text([("error.type", "_OTHER")]) };
    let name = canonical_code_name(code);
    let mut attributes = text([("rpc.response.status_code", &name)]);
    let is_failure = match labels.side {
        Side::Client => labels.failed,
        Side::Server => FAILURES_OF_SERVERS.contains(&name.as_str()),
    };
    if is_failure {
        attributes.extend(text([("error.type", &name)]));
    }
    attributes
}

fn system(labels: &Labels) -> &'static str {
    match labels.framework {
        Framework::Kitex => "kitex",
        Framework::Grpc => "grpc",
        Framework::Spec { .. } => "",
    }
}

fn text<const N: usize>(pairs: [(&str, &str); N]) -> Attributes {
    pairs.map(|(name, value)| (name.to_owned(), AttributeValue::Text(value.to_owned()))).into()
}

#[cfg(test)]
mod tests {
    use monitor_ebpf::LabelSet;

    use super::*;
    use crate::{metrics::otel::Identity, pipeline::NoExecutable};

    #[test]
    fn what_stands_in_for_a_caller_is_no_peer() {
        let identity = Identity::new(1, "boot:7:8", None, "/bin/stock", &BTreeMap::new(), &[]);
        let resource = identity.resource(&Snapshot::default());
        let peer = |side, caller: &str| {
            let labels = Labels::decode(&LabelSet::EMPTY, &NoExecutable);
            let labels = Labels { side, caller: caller.to_owned(), ..labels };
            old(&labels, &resource).remove("peer.service")
        };
        for caller in ["unknown", "unreadable", "other"] {
            assert_eq!(peer(Side::Server, caller), None, "{caller}");
        }
        assert_eq!(peer(Side::Server, "shop"), Some(AttributeValue::Text("shop".to_owned())));
        assert_eq!(peer(Side::Client, "shop"), None);
    }

    #[test]
    fn what_stands_in_for_a_name_is_no_method() {
        let method = |callee: &str, method: &str| {
            let labels = Labels::decode(&LabelSet::EMPTY, &NoExecutable);
            let labels = Labels { callee: callee.to_owned(), method: method.to_owned(), ..labels };
            let method = new(&labels).remove("rpc.method");
            let Some(AttributeValue::Text(method)) = method else { panic!("{method:?} is no text") };
            method
        };
        assert_eq!(method("Stock", "Lookup"), "Stock/Lookup");
        for instead in ["unknown", "unreadable", "other"] {
            assert_eq!(method(instead, instead), "_OTHER");
            assert_eq!(method("Stock", instead), "_OTHER");
            assert_eq!(method(instead, "Lookup"), "Lookup");
        }
    }

    #[test]
    fn calls_without_a_choice_of_protocols_have_none() {
        let identity = Identity::new(1, "boot:7:8", None, "/bin/stock", &BTreeMap::new(), &[]);
        let resource = identity.resource(&Snapshot::default());
        let of = |protocol: &str| {
            let labels = Labels::decode(&LabelSet::EMPTY, &NoExecutable);
            old(&Labels { protocol: protocol.to_owned(), ..labels }, &resource).remove("request.protocol")
        };
        assert_eq!(of(""), None);
        assert_eq!(of("Framed"), Some(AttributeValue::Text("Framed".to_owned())));
    }

    #[test]
    fn codes_of_grpc_have_their_canonical_names() {
        let names = [0, 1, 4, 16, 99].map(canonical_code_name);
        assert_eq!(names, ["OK", "CANCELLED", "DEADLINE_EXCEEDED", "UNAUTHENTICATED", "CODE(99)"]);
    }

    /// Returns the attributes of a gRPC call with this code.
    fn of_grpc(side: Side, code: Option<u32>) -> Attributes {
        let labels = Labels::decode(&LabelSet::EMPTY, &NoExecutable);
        new(&Labels { framework: Framework::Grpc, side, code, failed: code != Some(0), ..labels })
    }

    #[test]
    fn a_status_of_grpc_is_a_failure_of_a_server_or_its_clients() {
        let servers = [2, 4, 12, 13, 14, 15];
        for code in (0..=16).chain([99]) {
            let name = AttributeValue::Text(canonical_code_name(code));
            for (side, is_failure) in [(Side::Client, code != 0), (Side::Server, servers.contains(&code))] {
                let attributes = of_grpc(side, Some(code));
                assert_eq!(attributes.get("rpc.response.status_code"), Some(&name), "{side:?}");
                let error = attributes.get("error.type");
                assert_eq!(error, is_failure.then_some(&name), "{side:?}, {code}");
            }
        }
    }

    #[test]
    fn a_code_of_grpc_that_cannot_be_read_is_an_error_of_no_known_type() {
        for side in [Side::Client, Side::Server] {
            let attributes = of_grpc(side, None);
            assert_eq!(attributes["error.type"], AttributeValue::Text("_OTHER".to_owned()));
            assert!(!attributes.contains_key("rpc.response.status_code"));
        }
    }

    #[test]
    fn names_are_chosen_as_instrumentation_libraries_do_it() {
        let chosen = |list| {
            let Conventions { old, new } = Conventions::of_opt_in(list);
            (old, new)
        };
        for list in ["", "http", "rpcs", "http/dup,database"] {
            assert_eq!(chosen(list), (true, false), "{list}");
        }
        assert_eq!(chosen("http, rpc"), (false, true));
        assert_eq!(chosen("rpc/dup"), (true, true));
        assert_eq!(chosen("rpc,rpc/dup"), (true, true));
    }
}
