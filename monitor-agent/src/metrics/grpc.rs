//! Calls of gRPC under the names of its Prometheus interceptors (`github.com/grpc-ecosystem/go-grpc-prometheus` @
//! v1.2.0, the same in `go-grpc-middleware/providers/prometheus` @ v1.1.0).

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use monitor_ebpf::{extra, status_code};
use prometheus::proto::MetricFamily;

use super::family::{FamilyBuilder, float};
use crate::{
    frameworks::known,
    pipeline::{Buckets, Framework, Histogram, Labels, Ladder, Series, Side, Snapshot, StreamKind},
};

/// `prometheus.DefBuckets` of `client_golang`, in milliseconds.
const MILLISECONDS: [u32; 11] = [5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000];

/// Returns the name of a code in other languages and in OpenTelemetry, such as `DEADLINE_EXCEEDED`. A code without a
/// name is written as in otelgrpc (`stats_handler.go` @ v0.72.0).
pub(super) fn canonical_code_name(code: u32) -> String {
    match known().code(code) {
        None => format!("CODE({code})"),
        Some("OK") => "OK".to_owned(),
        Some("Canceled") => "CANCELLED".to_owned(),
        Some(name) => {
            let breaks = |(at, letter): (usize, char)| {
                let space = (at > 0 && letter.is_ascii_uppercase()).then_some('_');
                space.into_iter().chain([letter.to_ascii_uppercase()])
            };
            name.char_indices().flat_map(breaks).collect()
        }
    }
}

/// Returns the value of the label `grpc_type`.
pub(super) fn type_name(kind: StreamKind) -> &'static str {
    match kind {
        StreamKind::Unary => "unary",
        StreamKind::Client => "client_stream",
        StreamKind::Server => "server_stream",
        StreamKind::Bidirectional => "bidi_stream",
        StreamKind::Unknown => "unknown",
    }
}

/// How calls of gRPC are shown.
#[derive(Clone, Debug)]
pub struct GrpcView {
    /// Bounds of the histograms.
    pub buckets: Arc<Buckets>,
    /// Whether messages are counted.
    pub messages: bool,
}

impl Default for GrpcView {
    /// The interceptors' defaults.
    fn default() -> Self {
        Self { buckets: Arc::new(Buckets::of_milliseconds(&MILLISECONDS, 1_000)), messages: false }
    }
}

/// The label of the target, if it has one, then type, service and method.
type Call<'a> = (Option<&'a str>, &'static str, &'a str, &'a str);

fn labels((target, kind, service, method): Call<'_>) -> Vec<(&'static str, &str)> {
    let mut labels = vec![("grpc_type", kind), ("grpc_service", service), ("grpc_method", method)];
    labels.extend(target.map(|target| ("target", target)));
    labels
}

/// Builds the families of gRPC calls from each target's snapshot. The first element of a pair is the value of the label
/// `target`, if there is one.
#[must_use]
pub fn grpc(
    snapshots: &[(Option<String>, &Snapshot)],
    view: &GrpcView,
    ladder: &Arc<Ladder>,
) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    for side in [Side::Client, Side::Server] {
        show(&Sums::of(snapshots, side, ladder), side, view, &mut families);
    }
    families
}

/// The calls of one side, over all targets.
#[derive(Default)]
struct Sums<'a> {
    started: BTreeMap<Call<'a>, u64>,
    /// Finished calls, also by code.
    handled: BTreeMap<(Call<'a>, Cow<'static, str>), u64>,
    handling: BTreeMap<Call<'a>, Histogram>,
    /// Messages received and sent.
    messages: [BTreeMap<Call<'a>, u64>; 2],
}

impl<'a> Sums<'a> {
    fn of(snapshots: &'a [(Option<String>, &Snapshot)], side: Side, ladder: &Arc<Ladder>) -> Self {
        let mut sums = Self::default();
        for (target, snapshot) in snapshots {
            for series in snapshot.series.iter().filter(|series| is_of(&series.labels, side)) {
                sums.add(call_of(target.as_deref(), series), series, ladder);
            }
        }
        sums
    }

    fn add(&mut self, call: Call<'a>, series: &Series, ladder: &Arc<Ladder>) {
        let starts = series.extras.get(extra::STARTED as usize).copied().unwrap_or(0);
        if starts > 0 {
            *self.started.entry(call).or_default() += starts;
        }
        if series.total > 0 {
            *self.handled.entry((call, series.labels.code_name())).or_default() += series.total;
        }
        for (sums, more) in self.messages.iter_mut().zip(messages_of(series)).filter(|(_, more)| *more > 0) {
            *sums.entry(call).or_default() += more;
        }
        if series.histogram.count() > 0 {
            let histogram = self.handling.entry(call).or_insert_with(|| Histogram::new(Arc::clone(ladder)));
            histogram.add(&series.histogram);
        }
    }
}

fn show(sums: &Sums<'_>, side: Side, view: &GrpcView, families: &mut Vec<MetricFamily>) {
    let [started_help, handled_help, handling_help] = help(side);
    let name = |what: &str| format!("grpc_{}_{what}", side.name());
    let mut family = FamilyBuilder::counter(&name("started_total"), started_help);
    for (call, starts) in &sums.started {
        family.push(&labels(*call), float(*starts));
    }
    family.finish(families);
    let mut family = FamilyBuilder::counter(&name("handled_total"), handled_help);
    for ((call, code), calls) in &sums.handled {
        let mut labels = labels(*call);
        labels.push(("grpc_code", code.as_ref()));
        family.push(&labels, float(*calls));
    }
    family.finish(families);
    let mut family = FamilyBuilder::histogram(&name("handling_seconds"), handling_help);
    for (call, histogram) in &sums.handling {
        family.push_histogram(&labels(*call), &view.buckets, histogram, seconds(histogram.sum_ns));
    }
    family.finish(families);
    if !view.messages {
        return;
    }
    for ((what, help), calls) in
        ["msg_received_total", "msg_sent_total"].iter().zip(help_of_messages(side)).zip(&sums.messages)
    {
        let mut family = FamilyBuilder::counter(&name(what), help);
        for (call, messages) in calls {
            family.push(&labels(*call), float(*messages));
        }
        family.finish(families);
    }
}

/// Returns the messages received and sent. Messages of a stream are counted one by one. A unary call has a request when
/// it starts and a reply if it ends well, as the interceptors count them.
fn messages_of(series: &Series) -> [u64; 2] {
    let extra = |number: u32| series.extras.get(number as usize).copied().unwrap_or(0);
    let Labels { stream, side, code, .. } = *series.labels;
    if stream != StreamKind::Unary {
        return [extra(extra::MESSAGES_RECEIVED), extra(extra::MESSAGES_SENT)];
    }
    let request = extra(extra::STARTED);
    let reply = if code == Some(status_code::OK) { series.total } else { 0 };
    match side {
        Side::Client => [reply, request],
        Side::Server => [request, reply],
    }
}

fn is_of(labels: &Labels, side: Side) -> bool {
    labels.framework == Framework::Grpc && labels.side == side
}

fn call_of<'a>(target: Option<&'a str>, series: &'a Series) -> Call<'a> {
    let labels = &series.labels;
    (target, type_name(labels.stream), &labels.callee, &labels.method)
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
pub(super) fn seconds(nanoseconds: u128) -> f64 {
    nanoseconds as f64 / 1e9
}

/// Returns the help texts for messages received and sent.
fn help_of_messages(side: Side) -> [&'static str; 2] {
    match side {
        Side::Client => [
            "Total number of RPC stream messages received by the client.",
            "Total number of gRPC stream messages sent by the client.",
        ],
        Side::Server => [
            "Total number of RPC stream messages received on the server.",
            "Total number of gRPC stream messages sent by the server.",
        ],
    }
}

/// Returns the help texts of the interceptors (`server_metrics.go`, `client_metrics.go` @ v1.2.0): started, handled,
/// durations.
fn help(side: Side) -> [&'static str; 3] {
    match side {
        Side::Client => [
            "Total number of RPCs started on the client.",
            "Total number of RPCs completed by the client, regardless of success or failure.",
            "Histogram of response latency (seconds) of the gRPC until it is finished by the application.",
        ],
        Side::Server => [
            "Total number of RPCs started on the server.",
            "Total number of RPCs completed on the server, regardless of success or failure.",
            "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server.",
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{CallType, Extras};

    fn series(side: Side, stream: StreamKind, code: Option<u32>, total: u64) -> Series {
        let labels = Labels {
            framework: Framework::Grpc,
            side,
            call_type: CallType::PingPong,
            caller: String::new(),
            callee: "shop.Stock".into(),
            method: "Lookup".into(),
            failed: code != Some(status_code::OK),
            retry: "0".into(),
            error_class: "none",
            protocol: String::new(),
            panicked: false,
            stream,
            code,
            cut_names: 0,
        };
        let mut extras = Extras::default();
        extras[extra::STARTED as usize] = 7;
        extras[extra::MESSAGES_RECEIVED as usize] = 20;
        extras[extra::MESSAGES_SENT as usize] = 30;
        let histogram = Histogram::new(Arc::new(Ladder::of([&*GrpcView::default().buckets])));
        Series { labels: Arc::new(labels), total, histogram, extras }
    }

    #[test]
    fn messages_of_unary_calls_follow_from_the_calls() {
        let well = Some(status_code::OK);
        for (side, stream, code, expected) in [
            (Side::Client, StreamKind::Unary, well, [5, 7]),
            (Side::Client, StreamKind::Unary, Some(14), [0, 7]),
            (Side::Server, StreamKind::Unary, well, [7, 5]),
            (Side::Server, StreamKind::Unary, None, [7, 0]),
            (Side::Server, StreamKind::Client, well, [20, 30]),
            (Side::Client, StreamKind::Unknown, well, [20, 30]),
        ] {
            let messages = messages_of(&series(side, stream, code, 5));
            assert_eq!(messages, expected, "{side:?} {stream:?} {code:?}");
        }
    }

    #[test]
    fn messages_are_shown_on_request_only() {
        let series = vec![Arc::new(series(Side::Server, StreamKind::Server, Some(status_code::OK), 5))];
        let snapshot = Snapshot { series, ..Snapshot::default() };
        for messages in [false, true] {
            let view = GrpcView { messages, ..GrpcView::default() };
            let ladder = Arc::new(Ladder::of([&*view.buckets]));
            let families = grpc(&[(None, &snapshot)], &view, &ladder);
            let names: Vec<_> = families.iter().map(MetricFamily::name).collect();
            assert_eq!(names.contains(&"grpc_server_msg_received_total"), messages, "{names:?}");
            assert_eq!(names.contains(&"grpc_server_msg_sent_total"), messages, "{names:?}");
        }
    }
}
