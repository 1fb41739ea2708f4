//! An OpenTelemetry Collector, and the points that it has received.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    paths,
    process::Process,
    scrape::Histogram,
    targets::{Flavour, Program},
};

/// How long the collector may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running collector. Its OTLP receiver listens for gRPC and for HTTP.
pub struct Collector {
    process: Process,
    ports: [u16; 2],
    points: Vec<Point>,
}

/// A point of a metric, as received.
#[derive(Clone, Debug)]
pub struct Point {
    /// The metric's name.
    pub metric: String,
    /// Attributes of the resource.
    pub resource: BTreeMap<String, String>,
    /// Attributes of the point.
    pub attributes: BTreeMap<String, String>,
    /// Whether the value is the difference from the previous point.
    pub is_delta: bool,
    /// The start of the point's interval, in nanoseconds since 1970.
    pub start: u64,
    /// The time of the point, in nanoseconds since 1970.
    pub time: u64,
    /// The count of a histogram, or the value of a sum.
    pub count: i64,
    /// A histogram's buckets, in the form that a scrape has.
    pub histogram: Option<Histogram>,
}

impl Collector {
    /// Starts a collector on free ports.
    pub fn start() -> Result<Self> {
        Self::start_on(free_ports()?)
    }

    /// Starts a collector on the ports of one that has ended.
    pub fn start_on(ports: [u16; 2]) -> Result<Self> {
        Self::start_with(ports, "")
    }

    /// Starts a collector that uses TLS, with the certificate and the key in these files.
    pub fn start_tls(certificate: &Path, key: &Path) -> Result<Self> {
        let (certificate, key) = (certificate.display(), key.display());
        Self::start_with(
            free_ports()?,
            &format!(", tls: {{cert_file: \"{certificate}\", key_file: \"{key}\"}}"),
        )
    }

    /// Starts a collector whose receivers have additional settings.
    fn start_with(ports: [u16; 2], more: &str) -> Result<Self> {
        let [grpc, http] = ports;
        let configuration = format!(
            "receivers:\n  otlp:\n    protocols:\n      grpc: {{endpoint: \"127.0.0.1:{grpc}\"{more}}}\n      \
             http: {{endpoint: \"127.0.0.1:{http}\"{more}}}\nexporters:\n  lines:\nservice:\n  telemetry:\n    \
             metrics: {{level: none}}\n    logs: {{level: error}}\n  pipelines:\n    \
             metrics: {{receivers: [otlp], exporters: [lines]}}\n"
        );
        let path = paths::target().join(format!("tmp/collector-{http}.yaml"));
        fs::create_dir_all(path.with_file_name(""))?;
        fs::write(&path, configuration)?;
        let executable = Program::Collector.build(Flavour::Default)?;
        let process = Process::start_command(Command::new(executable).arg(path))?;
        Ok(Self { process, ports, points: Vec::new() })
    }

    /// The ports for gRPC and HTTP.
    #[must_use]
    pub fn ports(&self) -> [u16; 2] {
        self.ports
    }

    /// Returns all points so far.
    #[must_use]
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Receives points until `wanted` holds for them.
    pub fn wait(&mut self, patience: Duration, wanted: impl Fn(&[Point]) -> bool) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !wanted(&self.points) {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "not received within {patience:?}; {} points were", self.points.len());
            let Ok(request) = self.process.answer(left) else { continue };
            take(&request, &mut self.points)?;
        }
        Ok(())
    }

    /// Ends the collector and returns all points that it has received.
    pub fn end(mut self) -> Result<Vec<Point>> {
        ensure!(self.process.quit()?.success(), "the collector has failed");
        loop {
            match self.process.answer(PATIENCE) {
                Ok(request) => take(&request, &mut self.points)?,
                // The collector has ended, so everything has been read.
                Err(error) if error.to_string().contains("has ended") => return Ok(self.points),
                Err(error) => return Err(error),
            }
        }
    }
}

fn free_ports() -> Result<[u16; 2]> {
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    Ok([listeners[0].local_addr()?.port(), listeners[1].local_addr()?.port()])
}

/// Returns, for each combination of attributes, the newest cumulative point of a metric, or the sum of its deltas.
#[must_use]
pub fn totals(points: &[Point], metric: &str) -> BTreeMap<BTreeMap<String, String>, i64> {
    let mut totals = BTreeMap::new();
    for point in points.iter().filter(|point| point.metric == metric) {
        let total = totals.entry(point.attributes.clone()).or_insert(0);
        *total = if point.is_delta { *total + point.count } else { point.count };
    }
    totals
}

/// Like [`totals`], for the buckets and the sum of a histogram.
pub fn distributions(
    points: &[Point],
    metric: &str,
) -> Result<BTreeMap<BTreeMap<String, String>, Histogram>> {
    let mut totals: BTreeMap<_, Histogram> = BTreeMap::new();
    for point in points.iter().filter(|point| point.metric == metric) {
        let now = point.histogram.clone().with_context(|| format!("no histogram: {point:?}"))?;
        let total = match totals.remove(&point.attributes) {
            Some(before) if point.is_delta => now.plus(&before).context("bounds that change")?,
            _ => now,
        };
        totals.insert(point.attributes.clone(), total);
    }
    Ok(totals)
}

fn take(request: &Value, points: &mut Vec<Point>) -> Result<()> {
    for resource in array(request, "resourceMetrics") {
        let of_resource = attributes(&resource["resource"])?;
        for metric in array(resource, "scopeMetrics").iter().flat_map(|scope| array(scope, "metrics")) {
            let data = ["histogram", "sum"].iter().map(|kind| &metric[*kind]).find(|data| data.is_object());
            let Some(data) = data else { bail!("a metric of another kind: {metric}") };
            let is_histogram = metric["histogram"].is_object();
            for point in array(data, "dataPoints") {
                let count = &point[if is_histogram { "count" } else { "asInt" }];
                // OTLP's JSON leaves out zeros.
                let count = if count.is_null() { 0 } else { number(count)? };
                points.push(Point {
                    metric: metric["name"].as_str().context("no name")?.to_owned(),
                    resource: of_resource.clone(),
                    attributes: attributes(point)?,
                    is_delta: data["aggregationTemporality"] == 1,
                    start: number(&point["startTimeUnixNano"])?,
                    time: number(&point["timeUnixNano"])?,
                    count,
                    histogram: is_histogram.then(|| histogram(point, count)).transpose()?,
                });
            }
        }
    }
    Ok(())
}

/// Parses a histogram with `count` values. It must have one bucket more than bounds, and the buckets must add up to
/// `count`.
fn histogram(point: &Value, count: i64) -> Result<Histogram> {
    let bound = |bound: &Value| bound.as_f64().with_context(|| format!("{bound} is no bound"));
    let bounds = array(point, "explicitBounds").iter().map(bound).collect::<Result<Vec<_>>>()?;
    let counts = array(point, "bucketCounts").iter().map(number::<u32>).collect::<Result<Vec<_>>>()?;
    ensure!(counts.len() == bounds.len() + 1, "{} buckets: {point}", counts.len());
    let all: i64 = counts.iter().map(|count| i64::from(*count)).sum();
    ensure!(all == count, "{all} values in the buckets: {point}");
    let mut up_to = 0.0;
    let bounds = bounds.into_iter().chain([f64::INFINITY]);
    let buckets = bounds.zip(counts).map(|(bound, count)| {
        up_to += f64::from(count);
        (bound, up_to)
    });
    let buckets = buckets.collect();
    Ok(Histogram { buckets, sum: point["sum"].as_f64().context("no sum")?, count: up_to })
}

fn array<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

/// Parses a 64-bit number, which OTLP's JSON has as text.
fn number<T: std::str::FromStr>(value: &Value) -> Result<T> {
    let number = value.as_str().and_then(|text| text.parse().ok());
    number.with_context(|| format!("{value} is no number"))
}

fn attributes(owner: &Value) -> Result<BTreeMap<String, String>> {
    let attribute = |pair: &Value| {
        let name = pair["key"].as_str().context("no key")?;
        let value = ["stringValue", "intValue"].iter().find_map(|kind| pair["value"][*kind].as_str());
        Ok((name.to_owned(), value.with_context(|| format!("no value: {pair}"))?.to_owned()))
    };
    array(owner, "attributes").iter().map(attribute).collect()
}
