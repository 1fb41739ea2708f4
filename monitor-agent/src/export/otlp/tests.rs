//! What is pushed, and how failures are handled, with a collector that answers as a test wants.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError, atomic::AtomicI64},
};

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::any_value,
    metrics::v1::{HistogramDataPoint, NumberDataPoint, metric, number_data_point},
};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    metrics::otel::{self, Attributes, Conventions, Data, GoNames, Identity, Metric, OtelView, Scope},
    pipeline::{CallType, Extras, Framework, Histogram, Labels, Ladder, Series, Side, Snapshot, StreamKind},
    threads::testing::without_threads,
};

/// The messages that a collector received, in order.
type Asked = Arc<Mutex<Vec<ExportMetricsServiceRequest>>>;

/// Starts a collector. `answer` maps the name of the service to a status and, after an empty line, a body. Returns its
/// address and the messages that it receives.
async fn collector(answer: impl Fn(&str) -> &'static str + Send + Sync + 'static) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Asked::default();
    let (answer, messages) = (Arc::new(answer), Arc::clone(&asked));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, messages) = (Arc::clone(&answer), Arc::clone(&messages));
            tokio::spawn(async move {
                let Some(body) = body(&mut stream).await else { return };
                let message = ExportMetricsServiceRequest::decode(&*body).expect("a message");
                let answer = answer(&service(&message));
                let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
                messages.lock().unwrap_or_else(PoisonError::into_inner).push(message);
                let length = body.len();
                let text =
                    format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
                let _ = stream.write_all(text.as_bytes()).await;
            });
        }
    });
    (endpoint, asked)
}

/// Reads the body of a request, if one comes.
async fn body(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.expect("a length").parse().expect("a number");
            if bytes.len() >= end + 4 + length {
                return Some(bytes.split_off(end + 4));
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

fn service(message: &ExportMetricsServiceRequest) -> String {
    let resource = message.resource_metrics[0].resource.as_ref().expect("a resource");
    let name = resource.attributes.iter().find(|pair| pair.key == "service.name").expect("a name");
    let value = name.value.as_ref().and_then(|value| value.value.as_ref());
    let Some(any_value::Value::StringValue(name)) = value else { panic!("{value:?} is no text") };
    name.clone()
}

/// The telemetry of a target with this service name.
fn telemetry(service: &str, count: i64) -> Telemetry {
    telemetry_of("boot:7:8", service, count)
}

/// The same for one instance of the service.
fn telemetry_of(instance: &str, service: &str, count: i64) -> Telemetry {
    let environment = BTreeMap::from([("OTEL_SERVICE_NAME".to_owned(), service.to_owned())]);
    let identity = Identity::new(1, instance, None, "/bin/x", &environment, &[]);
    let resource = identity.resource(&Snapshot::default());
    let data = Data::Sum { monotonic: true, points: vec![(Attributes::new(), count)] };
    let metrics = vec![Metric { name: "some.count", description: "", unit: "", data }];
    let scope = Scope { name: "some", version: "1", since_ns: 1, by_target: false, metrics };
    Telemetry { resource, scopes: vec![scope] }
}

struct Targets(Vec<State>);

impl Source for Targets {
    fn telemetry(&self) -> Vec<State> {
        self.0.clone()
    }
}

/// The state of a target that is alive.
fn alive(pid: u32, telemetry: Telemetry) -> State {
    State { pid, telemetry, is_final: false }
}

/// Creates an exporter of the telemetry of these services.
fn exporter(endpoint: &str, services: &[&str]) -> Exporter {
    let variable = |name: &str| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| endpoint.to_owned());
    let settings = Settings::of(&variable).expect("settings");
    let client = Client::new(&settings).expect("a client");
    let targets = (1..).zip(services).map(|(pid, name)| alive(pid, telemetry(name, 1))).collect();
    let source = Arc::new(Targets(targets));
    Exporter::new(settings, client, source, Arc::default())
}

/// Pushes their telemetry once.
async fn push(endpoint: &str, services: &[&str], patience: Duration) -> Result<(), String> {
    exporter(endpoint, services).push(Instant::now() + patience).await
}

/// Returns the names of the services in the messages.
fn names(asked: &Asked) -> Vec<String> {
    asked.lock().unwrap_or_else(PoisonError::into_inner).iter().map(service).collect()
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn what_is_refused_for_good_holds_up_no_other() {
    let answer = |name: &str| match name {
        "bad" => "400 No",
        "worse" => "404 No",
        _ => "200 OK",
    };
    let (endpoint, asked) = collector(answer).await;
    let why = push(&endpoint, &["good", "bad", "worse", "fine"], LONG).await.expect_err("two were refused");
    assert!(why.contains("400"), "{why}");
    assert_eq!(names(&asked), ["good", "bad", "worse", "fine"]);
}

#[tokio::test]
async fn what_is_refused_for_now_holds_up_no_other_target() {
    let (endpoint, asked) = collector(|name| if name == "bad" { "503 No" } else { "200 OK" }).await;
    // No time to retry.
    let why = push(&endpoint, &["bad", "good", "fine"], Duration::ZERO).await.expect_err("one was refused");
    assert!(why.contains("503"), "{why}");
    assert_eq!(names(&asked), ["bad", "good", "fine"]);
}

#[tokio::test]
async fn a_round_begins_where_the_last_has_ended() {
    let answer = |name: &str| if name == "two" { "503 No\r\nretry-after: 3600" } else { "200 OK" };
    let (endpoint, asked) = collector(answer).await;
    let mut exporter = exporter(&endpoint, &["one", "two", "three"]);
    for expected in
        [&["one", "two"][..], &["two"], &["three", "one", "two"], &["two"], &["three", "one", "two"]]
    {
        let before = names(&asked).len();
        exporter.push(Instant::now() + LONG).await.expect_err("one was refused");
        assert_eq!(names(&asked)[before..], *expected);
    }
}

/// The deadline can cut off a round anywhere.
#[tokio::test]
async fn a_round_that_runs_out_of_time_is_gone_on_with() {
    let (endpoint, asked) = collector(|_| "503 No\r\nretry-after: 10").await;
    let mut exporter = exporter(&endpoint, &["one", "two"]);
    for _ in 0..2 {
        // The pause after the first attempt takes all of the time.
        let push = exporter.push(Instant::now() + LONG);
        assert!(tokio::time::timeout(Duration::from_secs(1), push).await.is_err());
    }
    assert_eq!(names(&asked), ["one", "two"]);
}

#[tokio::test]
async fn every_success_is_one() {
    for head in ["200 OK", "202 Accepted", "204 No Content"] {
        let (endpoint, asked) = collector(move |_| head).await;
        push(&endpoint, &["one", "two"], LONG).await.expect(head);
        assert_eq!(names(&asked), ["one", "two"], "{head}");
    }
}

/// The exporter goes on: it tries the next round as well.
#[test]
fn a_round_for_which_there_is_no_thread_has_failed() {
    let outcomes = without_threads(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (endpoint, asked) = collector(|_| "200 OK").await;
            let mut exporter = exporter(&endpoint, &["one"]);
            let why = exporter.push(Instant::now() + LONG).await.expect_err("no thread");
            assert!(why.contains("pids.max"), "{why}");
            exporter.round(LONG).await;
            exporter.round(LONG).await;
            assert!(names(&asked).is_empty());
            exporter.outcomes
        })
    });
    assert_eq!((outcomes.failed.load(Ordering::Relaxed), outcomes.sent.load(Ordering::Relaxed)), (2, 0));
}

/// Resolving a collector's name takes a thread, too.
#[test]
fn a_name_for_which_there_is_no_thread_is_tried_again() {
    for protocol in ["grpc", "http/protobuf"] {
        let variable = |name: &str| match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => Some("http://localhost:1".to_owned()),
            "OTEL_EXPORTER_OTLP_PROTOCOL" => Some(protocol.to_owned()),
            _ => None,
        };
        let settings = Settings::of(&variable).expect("settings");
        let refused = without_threads(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let client = Client::new(&settings).expect("a client");
                client.send(&ExportMetricsServiceRequest::default()).await.err().expect("no thread")
            })
        });
        assert!(matches!(refused.again, Again::AfterPause), "{protocol}: {}", refused.why);
        assert!(refused.why.contains("pids.max"), "{protocol}: {}", refused.why);
    }
}

#[tokio::test]
async fn a_time_that_never_comes_is_not_waited_for() {
    let (endpoint, asked) = collector(|_| "503 No\r\nretry-after: 18446744073709551615").await;
    let begin = Instant::now();
    let why = push(&endpoint, &["one", "two"], LONG).await.expect_err("refused");
    assert!(why.contains("503") && begin.elapsed() < LONG / 2, "{why}");
    // The collector wants no message now.
    assert_eq!(names(&asked), ["one"]);
}

/// Only the last round is sent before that time.
#[tokio::test]
async fn a_collector_that_says_when_to_come_again_is_left_alone_until_then() {
    let (endpoint, asked) = collector(|_| "429 No\r\nretry-after: 1").await;
    let mut exporter = exporter(&endpoint, &["one"]);
    exporter.settings.interval = Duration::from_millis(50);
    exporter.settings.export_timeout = Duration::from_millis(300);
    let (stop, stopped) = oneshot::channel();
    let stopping = async {
        while names(&asked).len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.send(()).expect("it runs");
    };
    let running = async { tokio::join!(exporter.run(stopped), stopping) };
    tokio::time::timeout(LONG, running).await.expect("an end");
    let messages = asked.lock().unwrap_or_else(PoisonError::into_inner);
    let times: Vec<_> = messages.iter().map(|message| first_point(message).time_unix_nano).collect();
    let [first, again, last] = times[..] else { panic!("{times:?}") };
    // The clocks of the time of day and of pauses differ a little.
    let nearly = 900_000_000;
    assert!(again - first > nearly && last - again < nearly, "{times:?}");
}

/// The answer of a collector that took a message and rejected one point.
const ONE_REJECTED: &str = "200 OK\r\n\r\n\x0a\x02\x08\x01";

/// A rejected difference is not sent again. With cumulative temporality the next round has the newer value.
#[tokio::test]
async fn a_round_of_which_points_are_thrown_away_has_failed() {
    for (temporality, expected) in
        [(Temporality::Cumulative, [5, 5, 8, 8]), (Temporality::Delta, [5, 5, 3, 3])]
    {
        let (endpoint, asked) = collector(|name| if name == "bad" { ONE_REJECTED } else { "200 OK" }).await;
        let mut exporter = exporter(&endpoint, &[]);
        exporter.settings.temporality = temporality;
        for count in [5, 8] {
            let targets = vec![alive(1, telemetry("good", count)), alive(2, telemetry("bad", count))];
            exporter.source = Arc::new(Targets(targets));
            exporter.round(LONG).await;
        }
        let Outcomes { sent, failed, rejected_points } = &*exporter.outcomes;
        let outcomes = [sent, failed, rejected_points].map(|outcome| outcome.load(Ordering::Relaxed));
        assert_eq!(outcomes, [0, 2, 2], "{temporality:?}");
        assert_eq!(names(&asked), ["good", "bad", "good", "bad"], "{temporality:?}");
        let messages = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let values: Vec<_> = messages.iter().map(|message| whole(first_point(message))).collect();
        assert_eq!(values, expected, "{temporality:?}");
    }
}

#[tokio::test]
async fn of_a_target_that_has_ended_what_is_thrown_away_counts_as_taken() {
    for temporality in [Temporality::Cumulative, Temporality::Delta] {
        let (endpoint, asked) = collector(|_| ONE_REJECTED).await;
        let mut exporter = exporter(&endpoint, &[]);
        exporter.settings.temporality = temporality;
        let ended = State { is_final: true, ..alive(1, telemetry("ended", 7)) };
        exporter.source = Arc::new(Targets(vec![ended]));
        for _ in 0..2 {
            exporter.round(LONG).await;
        }
        assert_eq!(names(&asked), ["ended"], "{temporality:?}");
    }
}

#[tokio::test]
async fn the_last_state_of_a_target_that_has_ended_is_sent_until_it_is_taken() {
    let attempts = AtomicU64::new(0);
    // The first attempt to send the ended target fails.
    let answer = move |name: &str| match name {
        "ended" if attempts.fetch_add(1, Ordering::Relaxed) == 0 => "400 No",
        _ => "200 OK",
    };
    let (endpoint, asked) = collector(answer).await;
    for temporality in [Temporality::Cumulative, Temporality::Delta] {
        let mut exporter = exporter(&endpoint, &[]);
        exporter.settings.temporality = temporality;
        let ended = State { is_final: true, ..alive(1, telemetry("ended", 7)) };
        exporter.source = Arc::new(Targets(vec![ended, alive(2, telemetry("lives", 1))]));
        for _ in 0..4 {
            exporter.round(LONG).await;
        }
    }
    let expected = [
        &["ended", "lives", "ended", "lives", "lives", "lives"][..],
        &["ended", "lives", "lives", "lives", "lives"],
    ];
    assert_eq!(names(&asked), expected.concat());
}

#[tokio::test]
async fn a_collector_that_wants_it_at_once_gets_it_after_a_pause() {
    let (endpoint, asked) = collector(|_| "429 No\r\nretry-after: 0").await;
    push(&endpoint, &["one"], Duration::from_secs(2)).await.expect_err("refused");
    // Pauses are at least a quarter, a half and one second, and at most twice as long.
    assert!((2..=4).contains(&names(&asked).len()), "{:?}", names(&asked));
}

/// Pushes deltas once to a collector that takes them. Returns the sum of the points of a metric.
fn taken(telemetry: &Telemetry, time_ns: u64, taken: &mut Taken, name: &str) -> i64 {
    let mut sum = 0;
    for batch in message::batches(1, telemetry, time_ns, Temporality::Delta, taken) {
        let scopes = batch.request.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
        let metrics = scopes.flat_map(|scope| &scope.metrics).filter(|metric| metric.name == name);
        for data in metrics.filter_map(|metric| metric.data.as_ref()) {
            sum += match data {
                metric::Data::Sum(data) => data.data_points.iter().map(whole).sum::<i64>(),
                metric::Data::Histogram(data) => {
                    let counts = data.data_points.iter().map(|point| i64::try_from(point.count));
                    counts.sum::<Result<i64, _>>().expect("few calls")
                }
                other => panic!("{other:?}"),
            };
        }
        taken.add(batch);
    }
    sum
}

fn whole(point: &NumberDataPoint) -> i64 {
    let Some(number_data_point::Value::AsInt(value)) = point.value else { panic!("{point:?}") };
    value
}

#[test]
fn a_sum_that_seems_to_fall_is_never_taken_back() {
    let mut before = Taken::default();
    let mut time_ns = 1;
    let deltas = [5, 3, 4, 9, 0, 9, 10].map(|value| {
        time_ns += 1;
        taken(&telemetry("shop", value), time_ns, &mut before, "some.count")
    });
    assert_eq!(deltas, [5, 0, 0, 4, 0, 0, 1]);
}

/// The same, if the target counts by itself.
fn counted_by_target(count: i64) -> Telemetry {
    let mut telemetry = telemetry("shop", count);
    telemetry.scopes[0].by_target = true;
    telemetry
}

fn first_point(message: &ExportMetricsServiceRequest) -> &NumberDataPoint {
    let data = message.resource_metrics[0].scope_metrics[0].metrics[0].data.as_ref();
    let Some(metric::Data::Sum(data)) = data else { panic!("{data:?} is no sum") };
    &data.data_points[0]
}

#[test]
fn what_a_target_counts_by_itself_begins_at_the_first_look() {
    let mut before = Taken::default();
    let mut points = |time_ns, count| {
        let telemetry = counted_by_target(count);
        before.begin(1, &telemetry, time_ns);
        let mut batches = message::batches(1, &telemetry, time_ns, Temporality::Delta, &before);
        let batch = batches.pop()?;
        assert!(batches.is_empty());
        let point = first_point(&batch.request);
        let shown = (whole(point), point.start_time_unix_nano, point.time_unix_nano);
        // A point that is not taken is sent again.
        if time_ns > 3 {
            before.add(batch);
        }
        Some(shown)
    };
    assert_eq!(points(2, 500), None);
    assert_eq!(points(3, 503), Some((3, 2, 3)));
    assert_eq!(points(4, 504), Some((4, 2, 4)));
    assert_eq!(points(5, 504), Some((0, 4, 5)));
    let all = message::batches(1, &counted_by_target(500), 2, Temporality::Cumulative, &Taken::default());
    assert_eq!(all.len(), 1);
}

/// After the clock is set back, sums start at the earlier time and continue from there.
#[test]
fn no_point_begins_after_its_time() {
    let identity = Identity::new(1, "boot:7:8", None, "/bin/shop-server", &BTreeMap::new(), &[]);
    let view = OtelView { conventions: Conventions { old: true, new: false }, go: GoNames::default() };
    let telemetry_of = |caller, total| {
        let series = vec![calls(Side::Server, caller, "shop", total)];
        let snapshot = Snapshot { series, ..Snapshot::default() };
        let calls = otel::telemetry(&identity, &snapshot, None, view, 10);
        let Telemetry { resource, mut scopes } = telemetry("shop", i64::try_from(total).expect("few calls"));
        scopes[0].since_ns = 10;
        scopes.extend(calls.scopes);
        Telemetry { resource, scopes }
    };
    let times = |batches: &[Batch]| -> Vec<(u64, u64)> {
        let resources = batches.iter().flat_map(|batch| &batch.request.resource_metrics);
        let metrics = resources.flat_map(|resource| &resource.scope_metrics).flat_map(|scope| &scope.metrics);
        let points = metrics.filter_map(|metric| metric.data.as_ref()).flat_map(|data| match data {
            metric::Data::Sum(data) => data.data_points.iter().map(of_sum).collect::<Vec<_>>(),
            metric::Data::Histogram(data) => data.data_points.iter().map(of_histogram).collect(),
            other => panic!("{other:?}"),
        });
        points.collect()
    };
    for (temporality, starts) in
        [(Temporality::Cumulative, [10, 5, 5, 5]), (Temporality::Delta, [10, 5, 5, 30])]
    {
        let mut before = Taken::default();
        for ((time_ns, total), start) in [(20, 1), (5, 2), (30, 3), (40, 4)].into_iter().zip(starts) {
            let batches = message::batches(1, &telemetry_of("web", total), time_ns, temporality, &before);
            assert_eq!(times(&batches), [(start, time_ns); 2], "{temporality:?}");
            for batch in batches {
                before.add(batch);
            }
        }
        // A series that appears later has the start of the cumulative ones, and with differences its own.
        let batches = message::batches(1, &telemetry_of("app", 4), 50, temporality, &before);
        let start = if temporality == Temporality::Delta { 10 } else { 5 };
        assert_eq!(times(&batches).last(), Some(&(start, 50)), "{temporality:?}");
    }
}

fn of_sum(point: &NumberDataPoint) -> (u64, u64) {
    (point.start_time_unix_nano, point.time_unix_nano)
}

fn of_histogram(point: &HistogramDataPoint) -> (u64, u64) {
    (point.start_time_unix_nano, point.time_unix_nano)
}

/// A target whose count rises by one with each reading.
struct Rising(AtomicI64);

impl Source for Rising {
    fn telemetry(&self) -> Vec<State> {
        vec![alive(1, counted_by_target(self.0.fetch_add(1, Ordering::Relaxed)))]
    }
}

#[tokio::test]
async fn the_first_round_has_what_has_risen_since_the_exporter_runs() {
    let outcomes: Arc<Outcomes> = Arc::default();
    let rounds_before_first = Arc::new(AtomicU64::new(u64::MAX));
    let (rounds, first) = (Arc::clone(&outcomes), Arc::clone(&rounds_before_first));
    // Records how many rounds preceded the first message; its own round is not over yet.
    let answer = move |_: &str| {
        first.fetch_min(rounds.sent.load(Ordering::Relaxed), Ordering::Relaxed);
        "200 OK"
    };
    let (endpoint, asked) = collector(answer).await;
    let mut exporter = exporter(&endpoint, &[]);
    exporter.settings.temporality = Temporality::Delta;
    exporter.settings.interval = Duration::from_millis(50);
    exporter.source = Arc::new(Rising(AtomicI64::new(500)));
    exporter.outcomes = outcomes;
    let begin = unix_ns(SystemTime::now());
    let (stop, stopped) = oneshot::channel();
    let stopping = async {
        while names(&asked).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.send(()).expect("it runs");
    };
    let running = async { tokio::join!(exporter.run(stopped), stopping) };
    tokio::time::timeout(LONG, running).await.expect("an end");
    assert_eq!(rounds_before_first.load(Ordering::Relaxed), 0);
    let messages = asked.lock().unwrap_or_else(PoisonError::into_inner);
    let point = first_point(&messages[0]);
    assert_eq!(whole(point), 1);
    assert!((begin..point.time_unix_nano).contains(&point.start_time_unix_nano), "{begin} {point:?}");
}

#[tokio::test]
async fn the_life_of_a_runtime_is_no_difference() {
    for (temporality, expected) in
        [(Temporality::Delta, vec!["shop"]), (Temporality::Cumulative, vec!["shop"; 2])]
    {
        let (endpoint, asked) = collector(|_| "200 OK").await;
        let mut exporter = exporter(&endpoint, &[]);
        exporter.settings.temporality = temporality;
        exporter.source = Arc::new(Targets(vec![alive(1, counted_by_target(500))]));
        for _ in 0..2 {
            exporter.push(Instant::now() + LONG).await.expect("taken");
        }
        assert_eq!(names(&asked), expected, "{temporality:?}");
    }
}

#[test]
fn replicas_are_different_resources() {
    let [one, other] = ["boot:7:8", "boot:9:8"].map(|instance| {
        let telemetry = telemetry_of(instance, "shop", 1);
        let mut batches = message::batches(1, &telemetry, 2, Temporality::Cumulative, &Taken::default());
        assert_eq!(batches.len(), 1);
        batches.remove(0).request.resource_metrics.remove(0)
    });
    assert_ne!(one.resource, other.resource);
    assert_eq!(one.scope_metrics, other.scope_metrics);
}

/// Calls between two services, each of which took a microsecond.
fn calls(side: Side, caller: &str, to: &str, total: u64) -> Arc<Series> {
    let labels = Labels {
        framework: Framework::Kitex,
        side,
        call_type: CallType::PingPong,
        caller: caller.to_owned(),
        callee: to.to_owned(),
        method: "Lookup".to_owned(),
        failed: false,
        retry: "0".to_owned(),
        error_class: "none",
        protocol: String::new(),
        panicked: false,
        stream: StreamKind::Unknown,
        code: None,
        cut_names: 0,
    };
    let ladder = Arc::new(Ladder::of(otel::buckets()));
    let mut counts = vec![0; ladder.limits() + 1];
    counts[ladder.index(1_000)] = total;
    let histogram = Histogram::of(ladder, counts, (total, u128::from(total) * 1_000));
    Arc::new(Series { labels: Arc::new(labels), total, histogram, extras: Extras::default() })
}

/// As in an SDK, for values that are recorded call by call.
#[test]
fn what_has_not_changed_is_no_difference() {
    let identity = Identity::new(1, "boot:7:8", None, "/bin/shop-server", &BTreeMap::new(), &[]);
    let view = OtelView { conventions: Conventions { old: true, new: false }, go: GoNames::default() };
    for (temporality, expected) in [(Temporality::Delta, [1, 0, 1]), (Temporality::Cumulative, [1; 3])] {
        let mut before = Taken::default();
        let messages = [(2, 5), (3, 5), (4, 6)].map(|(time_ns, total)| {
            let series = vec![calls(Side::Server, "web", "shop", total)];
            let snapshot = Snapshot { series, ..Snapshot::default() };
            let telemetry = otel::telemetry(&identity, &snapshot, None, view, 1);
            let batches = message::batches(1, &telemetry, time_ns, temporality, &before);
            let count = batches.len();
            for batch in batches {
                before.add(batch);
            }
            count
        });
        assert_eq!(messages, expected, "{temporality:?}");
    }
}

#[test]
fn calls_count_once_when_others_tell_the_name_of_the_service() {
    let identity = Identity::new(1, "boot:7:8", None, "/bin/shop-server", &BTreeMap::new(), &[]);
    let view = OtelView { conventions: Conventions { old: true, new: false }, go: GoNames::default() };
    let nameless = calls(Side::Client, "unknown", "stock", 3);
    let mut before = Taken::default();
    let mut pushed = |series: Vec<Arc<Series>>| {
        let snapshot = Snapshot { series, ..Snapshot::default() };
        let telemetry = otel::telemetry(&identity, &snapshot, None, view, 1);
        let name = telemetry.resource.attributes["service.name"].clone();
        (taken(&telemetry, 2, &mut before, "rpc.client.duration"), name)
    };
    let name = |name: &str| otel::AttributeValue::Text(name.to_owned());
    assert_eq!(pushed(vec![Arc::clone(&nameless)]), (3, name("unknown_service:shop-server")));
    let named = calls(Side::Server, "web", "shop", 2);
    assert_eq!(pushed(vec![nameless, Arc::clone(&named)]), (0, name("shop")));
    let more = calls(Side::Client, "unknown", "stock", 4);
    assert_eq!(pushed(vec![more, named]), (1, name("shop")));
}
