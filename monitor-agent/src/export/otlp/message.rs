//! Conversion of telemetry to OTLP messages.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Histogram, HistogramDataPoint, Metric as Message, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric, number_data_point,
    },
    resource::v1::Resource,
};

use super::Temporality;
use crate::metrics::otel::{AttributeValue, Attributes, Data, Distribution, Metric, Scope, Telemetry};

/// The most points in a message: collectors accept messages of 4 MiB by default.
const POINTS_MAX: usize = 1_000;

/// The identity of a point: target, scope, metric, attributes.
type Key = (u32, &'static str, &'static str, Attributes);

/// A value of a point.
#[derive(Clone, Debug)]
enum Value {
    Sum(i64),
    Distribution(Distribution),
}

/// The state that the collector has taken, from which later points continue.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// The base of the next differences, with its time: the last values taken, or the first ones read.
    values: BTreeMap<Key, (Value, u64)>,
    /// The earliest time of a message that lies before the start of a scope, because the clock was set back. Sums start
    /// there from then on: if the start moved along, each point would begin a new sum.
    set_back_to: Option<u64>,
}

impl Taken {
    /// Records that the collector has taken a batch.
    pub(super) fn add(&mut self, batch: Batch) {
        let time_ns = batch.time_ns;
        if batch.is_set_back {
            self.set_back_to = Some(self.start(time_ns));
        }
        self.values.extend(batch.values.into_iter().map(|(key, value)| (key, (value, time_ns))));
    }

    /// Returns the start time reported for a sum that began at `since_ns`.
    fn start(&self, since_ns: u64) -> u64 {
        self.set_back_to.map_or(since_ns, |earliest_ns| earliest_ns.min(since_ns))
    }

    /// Records the first values of sums that the target counts by itself. Their differences begin there, since an
    /// earlier agent may have sent what came before.
    pub(super) fn begin(&mut self, pid: u32, telemetry: &Telemetry, time_ns: u64) {
        for scope in telemetry.scopes.iter().filter(|scope| scope.by_target) {
            for metric in &scope.metrics {
                let Data::Sum { monotonic: true, points } = &metric.data else { continue };
                for (attributes, value) in points {
                    let key = (pid, scope.name, metric.name, attributes.clone());
                    self.values.entry(key).or_insert((Value::Sum(*value), time_ns));
                }
            }
        }
    }
}

/// A message, and the values that the collector has once it takes the message.
pub(super) struct Batch {
    pub(super) request: ExportMetricsServiceRequest,
    values: Vec<(Key, Value)>,
    time_ns: u64,
    /// A scope in the telemetry starts after `time_ns`: the clock was set back.
    is_set_back: bool,
}

/// Converts a target's telemetry to messages.
pub(super) fn batches(
    pid: u32,
    telemetry: &Telemetry,
    time_ns: u64,
    temporality: Temporality,
    taken: &Taken,
) -> Vec<Batch> {
    let mut batches =
        Batches { telemetry, time_ns, done: Vec::new(), open: Vec::new(), values: Vec::new(), points: 0 };
    for scope in &telemetry.scopes {
        for metric in &scope.metrics {
            let source = MetricSource { pid, scope, metric, time_ns, temporality, taken };
            source.add_to(&mut batches);
        }
    }
    batches.close();
    batches.done
}

/// Batches under construction.
struct Batches<'a> {
    telemetry: &'a Telemetry,
    time_ns: u64,
    done: Vec<Batch>,
    open: Vec<ScopeMetrics>,
    values: Vec<(Key, Value)>,
    points: usize,
}

impl Batches<'_> {
    fn add(&mut self, scope: &Scope, metric: Message, points: usize, values: Vec<(Key, Value)>) {
        if self.points + points > POINTS_MAX {
            self.close();
        }
        self.points += points;
        self.values.extend(values);
        let same = |open: &&mut ScopeMetrics| open.scope.as_ref().is_some_and(|open| open.name == scope.name);
        if let Some(open) = self.open.last_mut().filter(same) {
            return open.metrics.push(metric);
        }
        let name = InstrumentationScope {
            name: scope.name.to_owned(),
            version: scope.version.to_owned(),
            ..InstrumentationScope::default()
        };
        self.open.push(ScopeMetrics { scope: Some(name), metrics: vec![metric], ..ScopeMetrics::default() });
    }

    fn close(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let attributes = pairs(&self.telemetry.resource.told_apart());
        let resource = ResourceMetrics {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_metrics: std::mem::take(&mut self.open),
            ..ResourceMetrics::default()
        };
        self.done.push(Batch {
            request: ExportMetricsServiceRequest { resource_metrics: vec![resource] },
            values: std::mem::take(&mut self.values),
            time_ns: self.time_ns,
            is_set_back: self.telemetry.scopes.iter().any(|scope| scope.since_ns > self.time_ns),
        });
        self.points = 0;
    }
}

/// One metric of a target at one time.
struct MetricSource<'a> {
    pid: u32,
    scope: &'a Scope,
    metric: &'a Metric,
    time_ns: u64,
    temporality: Temporality,
    taken: &'a Taken,
}

impl MetricSource<'_> {
    fn add_to(&self, batches: &mut Batches<'_>) {
        match &self.metric.data {
            Data::Sum { monotonic, points } => {
                for points in points.chunks(POINTS_MAX) {
                    self.add_sums(*monotonic, points, batches);
                }
            }
            Data::Histogram(points) => {
                for points in points.chunks(POINTS_MAX) {
                    self.add_distributions(points, batches);
                }
            }
        }
    }

    /// Returns when the first point of a series starts. Further points with differences start where the one before ended.
    fn since(&self, is_delta: bool) -> u64 {
        let since_ns = self.scope.since_ns;
        if is_delta { since_ns } else { self.taken.start(since_ns) }
    }

    fn add_sums(&self, monotonic: bool, points: &[(Attributes, i64)], batches: &mut Batches<'_>) {
        let is_delta = monotonic && self.temporality == Temporality::Delta;
        let mut values = Vec::new();
        let mut data_points = Vec::new();
        for (attributes, value) in points {
            let mut shown = *value;
            let mut start_ns = self.since(is_delta);
            if is_delta {
                let key = self.key(attributes);
                let mut risen_to = *value;
                if let Some((Value::Sum(before), time_ns)) = self.taken.values.get(&key) {
                    // The base is from this very time: there is no interval yet.
                    if *time_ns == self.time_ns {
                        continue;
                    }
                    // A value below the last one adds nothing until it exceeds it.
                    risen_to = risen_to.max(*before);
                    shown = risen_to.saturating_sub(*before);
                    start_ns = *time_ns;
                }
                values.push((key, Value::Sum(risen_to)));
            }
            data_points.push(NumberDataPoint {
                attributes: pairs(attributes),
                start_time_unix_nano: self.start(start_ns),
                time_unix_nano: self.time_ns,
                value: Some(number_data_point::Value::AsInt(shown)),
                ..NumberDataPoint::default()
            });
        }
        let count = data_points.len();
        if count == 0 {
            return;
        }
        let data = metric::Data::Sum(Sum {
            data_points,
            aggregation_temporality: number(is_delta),
            is_monotonic: monotonic,
        });
        batches.add(self.scope, self.message(data), count, values);
    }

    fn add_distributions(&self, points: &[(Attributes, Distribution)], batches: &mut Batches<'_>) {
        let is_delta = self.temporality != Temporality::Cumulative;
        let mut values = Vec::new();
        let mut data_points = Vec::new();
        for (attributes, value) in points {
            let mut shown = value.clone();
            let mut start_ns = self.since(is_delta);
            if is_delta {
                let key = self.key(attributes);
                if let Some((Value::Distribution(before), time_ns)) = self.taken.values.get(&key) {
                    shown = value.since(before);
                    start_ns = *time_ns;
                }
                // An SDK omits empty histogram points too (`internal/aggregate/histogram.go` @ v1.47.0), but not points
                // of observable sums.
                if shown.count() == 0 {
                    continue;
                }
                values.push((key, Value::Distribution(value.clone())));
            }
            data_points.push(HistogramDataPoint {
                attributes: pairs(attributes),
                start_time_unix_nano: self.start(start_ns),
                time_unix_nano: self.time_ns,
                count: shown.count(),
                sum: Some(shown.sum),
                explicit_bounds: shown.bounds,
                bucket_counts: shown.counts,
                ..HistogramDataPoint::default()
            });
        }
        let count = data_points.len();
        if count == 0 {
            return;
        }
        let data =
            metric::Data::Histogram(Histogram { data_points, aggregation_temporality: number(is_delta) });
        batches.add(self.scope, self.message(data), count, values);
    }

    /// Returns the start of a point. It is never after its time, even if the clock was set back in between.
    fn start(&self, since_ns: u64) -> u64 {
        since_ns.min(self.time_ns)
    }

    fn key(&self, attributes: &Attributes) -> Key {
        (self.pid, self.scope.name, self.metric.name, attributes.clone())
    }

    fn message(&self, data: metric::Data) -> Message {
        Message {
            name: self.metric.name.to_owned(),
            description: self.metric.description.to_owned(),
            unit: self.metric.unit.to_owned(),
            data: Some(data),
            ..Message::default()
        }
    }
}

fn number(is_delta: bool) -> i32 {
    let temporality =
        if is_delta { AggregationTemporality::Delta } else { AggregationTemporality::Cumulative };
    temporality as i32
}

fn pairs(attributes: &Attributes) -> Vec<KeyValue> {
    let pair = |(name, value): (&String, &AttributeValue)| {
        let value = match value {
            AttributeValue::Text(text) => any_value::Value::StringValue(text.clone()),
            AttributeValue::Number(number) => any_value::Value::IntValue(*number),
        };
        KeyValue { key: name.clone(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
    };
    attributes.iter().map(pair).collect()
}
