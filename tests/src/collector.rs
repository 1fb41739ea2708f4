//! An OpenTelemetry Collector, and what it has received.

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
    targets::{Flavour, Program},
};

/// A running collector. Its receiver for OTLP listens for gRPC and for HTTP.
pub struct Collector {
    process: Process,
    ports: [u16; 2],
    points: Vec<Point>,
}

/// A point of a metric, as it was received.
#[derive(Clone, Debug)]
pub struct Point {
    /// The metric's name.
    pub metric: String,
    /// Attributes of the resource.
    pub resource: BTreeMap<String, String>,
    /// Attributes of the point.
    pub attributes: BTreeMap<String, String>,
    /// Whether it is what was added since the point before.
    pub is_delta: bool,
    /// Since when it counts, in nanoseconds since 1970.
    pub start: u64,
    /// When it was so.
    pub time: u64,
    /// Count of a histogram; value of a sum.
    pub count: i64,
    /// Sum of a histogram.
    pub sum: f64,
}

impl Collector {
    /// Starts a collector on free ports.
    pub fn start() -> Result<Self> {
        let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
        let ports = [listeners[0].local_addr()?.port(), listeners[1].local_addr()?.port()];
        drop(listeners);
        Self::start_on(ports)
    }

    /// Starts a collector on the ports of one that has ended.
    pub fn start_on(ports: [u16; 2]) -> Result<Self> {
        Self::start_with(ports, "")
    }

    /// Starts a collector that proves who it is, by the certificate and the key in these files.
    pub fn start_tls(certificate: &Path, key: &Path) -> Result<Self> {
        let ports = Self::start()?.ports;
        let (certificate, key) = (certificate.display(), key.display());
        Self::start_with(ports, &format!(", tls: {{cert_file: \"{certificate}\", key_file: \"{key}\"}}"))
    }

    /// Starts a collector whose receivers have more settings.
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

    /// All points so far.
    #[must_use]
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Takes points until there are those that are wanted.
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

    /// Ends the collector; gives all that it has received.
    pub fn end(mut self) -> Result<Vec<Point>> {
        ensure!(self.process.quit()?.success(), "the collector has failed");
        while let Ok(request) = self.process.answer(Duration::from_millis(100)) {
            take(&request, &mut self.points)?;
        }
        Ok(self.points)
    }
}

/// The newest of the cumulative points of a metric, and the sum of its deltas, of each combination of attributes.
#[must_use]
pub fn totals(points: &[Point], metric: &str) -> BTreeMap<BTreeMap<String, String>, i64> {
    let mut totals = BTreeMap::new();
    for point in points.iter().filter(|point| point.metric == metric) {
        let total = totals.entry(point.attributes.clone()).or_insert(0);
        *total = if point.is_delta { *total + point.count } else { point.count };
    }
    totals
}

fn take(request: &Value, points: &mut Vec<Point>) -> Result<()> {
    for resource in array(request, "resourceMetrics") {
        let of_resource = attributes(&resource["resource"])?;
        for metric in array(resource, "scopeMetrics").iter().flat_map(|scope| array(scope, "metrics")) {
            let data = ["histogram", "sum"].iter().map(|kind| &metric[*kind]).find(|data| data.is_object());
            let Some(data) = data else { bail!("a metric of another kind: {metric}") };
            for point in array(data, "dataPoints") {
                let count = if point["count"].is_null() { &point["asInt"] } else { &point["count"] };
                points.push(Point {
                    metric: metric["name"].as_str().context("no name")?.to_owned(),
                    resource: of_resource.clone(),
                    attributes: attributes(point)?,
                    is_delta: data["aggregationTemporality"] == 1,
                    start: number(&point["startTimeUnixNano"])?,
                    time: number(&point["timeUnixNano"])?,
                    // OTLP's JSON leaves out what is zero.
                    count: if count.is_null() { 0 } else { number(count)? },
                    sum: point["sum"].as_f64().unwrap_or_default(),
                });
            }
        }
    }
    Ok(())
}

fn array<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

/// OTLP's JSON has numbers of 64 bits as text.
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
