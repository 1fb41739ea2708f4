//! Calls under the names of Kitex's in-process extension (`kitex-contrib/monitor-prometheus` @ v0.2.0).

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    str::FromStr,
    sync::Arc,
};

use monitor_ebpf::extra;
use prometheus::proto::MetricFamily;
use thiserror::Error;

use super::family::{FamilyBuilder, float};
use crate::pipeline::{Buckets, Framework, Histogram, Labels, Series, Side, Snapshot, StreamKind};

/// A label that a user can choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Label {
    /// `type`: pingpong, oneway or streaming.
    Type,
    /// `caller`: the calling service.
    Caller,
    /// `callee`: the called service.
    Callee,
    /// `method`: the method.
    Method,
    /// `status`: succeed or error.
    Status,
    /// `retry`: how often the call was retried.
    Retry,
    /// `error_class`: the class of the error that it finished with.
    ErrorClass,
}

impl Label {
    const ALL: [Self; 7] =
        [Self::Type, Self::Caller, Self::Callee, Self::Method, Self::Status, Self::Retry, Self::ErrorClass];

    fn name(self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Caller => "caller",
            Self::Callee => "callee",
            Self::Method => "method",
            Self::Status => "status",
            Self::Retry => "retry",
            Self::ErrorClass => "error_class",
        }
    }

    fn value(self, labels: &Labels) -> String {
        match self {
            Self::Type => labels.call_type.name().to_owned(),
            Self::Caller => labels.caller.clone(),
            Self::Callee => labels.callee.clone(),
            Self::Method => labels.method.clone(),
            Self::Status => labels.status().to_owned(),
            Self::Retry => labels.retry.clone(),
            Self::ErrorClass => labels.error_class.to_owned(),
        }
    }
}

/// The labels of counters and histograms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSelection(BTreeSet<Label>);

/// An error in a list of labels.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LabelsError {
    /// The label does not exist.
    #[error("`{0}` is not a label; choose from type, caller, callee, method, status, retry, error_class")]
    Unknown(String),
    /// A label is listed twice.
    #[error("label `{0}` is listed twice")]
    Twice(String),
}

impl Default for LabelSelection {
    /// The labels in Kitex's documentation.
    fn default() -> Self {
        Self([Label::Type, Label::Caller, Label::Callee, Label::Method, Label::Status].into())
    }
}

impl LabelSelection {
    /// Returns the chosen labels that a message has. It has no outcome of its own.
    fn of_messages(&self) -> Self {
        let has =
            |label: &Label| matches!(label, Label::Type | Label::Caller | Label::Callee | Label::Method);
        Self(self.0.iter().copied().filter(has).collect())
    }

    /// Returns whether a label was chosen.
    #[must_use]
    pub fn contains(&self, label: Label) -> bool {
        self.0.contains(&label)
    }
}

impl FromStr for LabelSelection {
    type Err = LabelsError;

    fn from_str(text: &str) -> Result<Self, LabelsError> {
        let mut labels = BTreeSet::new();
        for word in text.split(',') {
            let word = word.trim();
            let Some(label) = Label::ALL.into_iter().find(|label| label.name() == word) else {
                return Err(LabelsError::Unknown(word.to_owned()));
            };
            if !labels.insert(label) {
                return Err(LabelsError::Twice(word.to_owned()));
            }
        }
        Ok(Self(labels))
    }
}

/// The key of a series after projection: the target's label, if any, and the label values in the order of the
/// selection.
type Key = (Option<String>, Vec<String>);

/// How calls are shown.
#[derive(Clone, Debug)]
pub struct KitexView {
    /// The labels of counters and histograms.
    pub labels: LabelSelection,
    /// The bounds of the histograms.
    pub buckets: Arc<Buckets>,
}

/// Builds the families of calls from each target's snapshot; families of bytes and messages only if any were counted.
/// The first element of a pair is the value of the label `target`, if there is one.
#[must_use]
pub fn kitex(snapshots: &[(Option<String>, &Snapshot)], view: &KitexView) -> Vec<MetricFamily> {
    let KitexView { labels: selection, buckets } = view;
    let mut families = Vec::new();
    for side in [Side::Client, Side::Server] {
        let (throughput_help, latency_help) = help(side);
        let mut throughput =
            FamilyBuilder::counter(&format!("kitex_{}_throughput", side.name()), throughput_help);
        let mut latency =
            FamilyBuilder::histogram(&format!("kitex_{}_latency_us", side.name()), latency_help);
        for (key, (total, histogram)) in project(snapshots, side, selection) {
            let labels = shown(&key, selection);
            throughput.push(&labels, float(total));
            if histogram.count() > 0 {
                latency.push_histogram(&labels, buckets, &histogram, float(histogram.sum_us));
            }
        }
        throughput.finish(&mut families);
        latency.finish(&mut families);
        bytes(snapshots, side, selection, &mut families);
        messages(snapshots, side, selection, &mut families);
    }
    families
}

/// Returns the names and values of a series' labels.
fn shown<'a>((target, values): &'a Key, selection: &LabelSelection) -> Vec<(&'static str, &'a str)> {
    let names = selection.0.iter().map(|label| label.name());
    let mut labels: Vec<_> = names.zip(values.iter().map(String::as_str)).collect();
    labels.extend(target.as_deref().map(|target| ("target", target)));
    labels
}

/// Builds the families of the bytes of calls, for copies of Kitex whose RPC statistics have them.
fn bytes(
    snapshots: &[(Option<String>, &Snapshot)],
    side: Side,
    selection: &LabelSelection,
    families: &mut Vec<MetricFamily>,
) {
    for (kind, word, help) in [
        (extra::BYTES_SENT, "send", "Bytes written for RPCs, as their own statistics count them."),
        (extra::BYTES_RECEIVED, "recv", "Bytes read for RPCs, as their own statistics count them."),
    ] {
        let mut family = FamilyBuilder::counter(&format!("kitex_{}_{word}_bytes", side.name()), help);
        let of_series = |series: &Series| (series.total > 0).then(|| series.extras[kind as usize]);
        for (key, bytes) in sums(snapshots, |snapshot| &snapshot.with_bytes, side, selection, of_series) {
            family.push(&shown(&key, selection), float(bytes));
        }
        family.finish(families);
    }
}

/// Builds the families of the messages of streams.
fn messages(
    snapshots: &[(Option<String>, &Snapshot)],
    side: Side,
    selection: &LabelSelection,
    families: &mut Vec<MetricFamily>,
) {
    const KINDS: [StreamKind; 5] = [
        StreamKind::Unknown,
        StreamKind::Unary,
        StreamKind::Client,
        StreamKind::Server,
        StreamKind::Bidirectional,
    ];
    let selection = selection.of_messages();
    let mut family = FamilyBuilder::counter(
        &format!("kitex_{}_stream_messages", side.name()),
        "Messages that went over streams, by kind of stream and direction.",
    );
    for (number, direction) in [(extra::MESSAGES_SENT, "sent"), (extra::MESSAGES_RECEIVED, "received")] {
        for kind in KINDS {
            let of_series = |series: &Series| {
                let messages = series.extras[number as usize];
                (series.labels.stream == kind && messages > 0).then_some(messages)
            };
            for (key, messages) in sums(snapshots, |snapshot| &snapshot.series, side, &selection, of_series) {
                let mut labels = shown(&key, &selection);
                labels.extend([("kind", kind.name()), ("direction", direction)]);
                family.push(&labels, float(messages));
            }
        }
    }
    family.finish(families);
}

/// Sums a value of these series over the series that become equal.
fn sums(
    snapshots: &[(Option<String>, &Snapshot)],
    series: fn(&Snapshot) -> &[Arc<Series>],
    side: Side,
    selection: &LabelSelection,
    number: impl Fn(&Series) -> Option<u64>,
) -> BTreeMap<Key, u64> {
    let mut sums = BTreeMap::new();
    for (target, snapshot) in snapshots {
        for series in series(snapshot).iter().filter(|series| is_of(&series.labels, side)) {
            let Some(number) = number(series) else { continue };
            let values = selection.0.iter().map(|label| label.value(&series.labels)).collect();
            *sums.entry((target.clone(), values)).or_default() += number;
        }
    }
    sums
}

/// Returns whether the labels belong to a Kitex call on this side.
fn is_of(labels: &Labels, side: Side) -> bool {
    labels.framework == Framework::Kitex && labels.side == side
}

fn project(
    snapshots: &[(Option<String>, &Snapshot)],
    side: Side,
    selection: &LabelSelection,
) -> BTreeMap<Key, (u64, Histogram)> {
    let mut projected: BTreeMap<Key, (u64, Histogram)> = BTreeMap::new();
    for (target, snapshot) in snapshots {
        let calls = |series: &&Arc<Series>| is_of(&series.labels, side) && series.total > 0;
        for series in snapshot.series.iter().filter(calls) {
            let values = selection.0.iter().map(|label| label.value(&series.labels)).collect();
            match projected.entry((target.clone(), values)) {
                Entry::Vacant(entry) => {
                    entry.insert((series.total, series.histogram.clone()));
                }
                Entry::Occupied(mut entry) => {
                    let (total, histogram) = entry.get_mut();
                    *total += series.total;
                    histogram.add(&series.histogram);
                }
            }
        }
    }
    projected
}

/// Returns the help texts of the in-process extension (`tracer.go` @ v0.2.0), so that a scrape of either looks the
/// same.
fn help(side: Side) -> (&'static str, &'static str) {
    match side {
        Side::Client => (
            "Total number of RPCs completed by the client, regardless of success or failure.",
            "Latency (microseconds) of the RPC until it is finished.",
        ),
        Side::Server => (
            "Total number of RPCs completed by the server, regardless of success or failure.",
            "Latency (microseconds) of RPC that had been application-level handled by the server.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{CallType, Changes, Extras, Ladder, Published};

    fn series(method: &str, failed: bool, total: u64) -> Arc<Series> {
        let labels = Labels {
            framework: Framework::Kitex,
            side: Side::Client,
            call_type: CallType::PingPong,
            caller: "shop".into(),
            callee: "stock".into(),
            method: method.into(),
            failed,
            retry: "0".into(),
            error_class: "none",
            protocol: String::new(),
            panicked: false,
            stream: StreamKind::Unknown,
            code: None,
            cut_names: 0,
        };
        // Each call took 3 µs.
        let ladder = Arc::new(Ladder::of([&buckets()]));
        let mut counts = vec![0; ladder.limits() + 1];
        counts[ladder.index(3_000)] = total;
        let histogram = Histogram::of(ladder, counts, (total * 3, u128::from(total) * 3_000));
        Arc::new(Series { labels: Arc::new(labels), total, histogram, extras: Extras::default() })
    }

    fn view(labels: &str) -> KitexView {
        KitexView { labels: labels.parse().unwrap(), buckets: Arc::new(buckets()) }
    }

    fn buckets() -> Buckets {
        "10".parse().unwrap()
    }

    #[test]
    fn bytes_that_were_not_counted_are_absent() {
        let uncounted = Snapshot { series: vec![series("A", false, 1)], ..Snapshot::default() };
        let counted = Snapshot { with_bytes: uncounted.series.clone(), ..uncounted.clone() };
        let bytes = |snapshot: &Snapshot| {
            let families = kitex(&[(None, snapshot)], &view("method"));
            families.iter().filter(|family| family.name().ends_with("_bytes")).count()
        };
        assert_eq!((bytes(&uncounted), bytes(&counted)), (0, 2));
    }

    #[test]
    fn of_two_copies_only_that_which_records_bytes_has_any() {
        let changes = |method, has_bytes| Changes {
            series: vec![(0, series(method, false, 1))],
            has_bytes,
            ..Changes::default()
        };
        let published = Published::default();
        published.update(vec![changes("Counted", true), changes("Uncounted", false)]);
        let snapshot = published.get();
        let families = kitex(&[(None, snapshot.as_ref())], &view("method"));
        let methods = |name: &str| -> Vec<_> {
            let family = families.iter().find(|family| family.name() == name);
            let metrics = family.into_iter().flat_map(MetricFamily::get_metric);
            metrics.map(|metric| metric.get_label()[0].value().to_owned()).collect()
        };
        assert_eq!(methods("kitex_client_throughput"), ["Counted", "Uncounted"]);
        assert_eq!(methods("kitex_client_send_bytes"), ["Counted"]);
        assert_eq!(methods("kitex_client_recv_bytes"), ["Counted"]);
    }

    #[test]
    fn messages_have_no_outcome_and_are_no_calls() {
        let mut messages = series("Chat", false, 0);
        let changed = Arc::make_mut(&mut messages);
        Arc::make_mut(&mut changed.labels).stream = StreamKind::Bidirectional;
        changed.extras[extra::MESSAGES_RECEIVED as usize] = 7;
        let mut calls = series("Chat", false, 2);
        Arc::make_mut(&mut calls).extras[extra::BYTES_SENT as usize] = 100;
        let series = vec![messages, calls];
        let snapshot = Snapshot { with_bytes: series.clone(), series, ..Snapshot::default() };
        let families = kitex(&[(None, &snapshot)], &view("method,status"));
        let values: Vec<_> = families
            .iter()
            .filter(|family| family.name() != "kitex_client_latency_us")
            .flat_map(|family| {
                family.get_metric().iter().map(|metric| {
                    let labels: Vec<_> =
                        metric.get_label().iter().map(|label| label.value().to_owned()).collect();
                    (family.name().to_owned(), labels.join(" "), metric.get_counter().get_value())
                })
            })
            .collect();
        let expected = [
            ("kitex_client_throughput", "Chat succeed", 2.0),
            ("kitex_client_send_bytes", "Chat succeed", 100.0),
            ("kitex_client_recv_bytes", "Chat succeed", 0.0),
            ("kitex_client_stream_messages", "received bidirectional Chat", 7.0),
        ];
        assert_eq!(values, expected.map(|(name, labels, value)| (name.to_owned(), labels.to_owned(), value)));
    }

    #[test]
    fn series_that_become_equal_are_summed() {
        let snapshot = Snapshot {
            series: vec![series("A", false, 1), series("B", false, 2), series("A", true, 4)],
            ..Snapshot::default()
        };
        let families = kitex(&[(None, &snapshot)], &view("caller,status"));
        assert_eq!(families.len(), 2);
        let counts: Vec<_> =
            families[0].get_metric().iter().map(|metric| metric.get_counter().get_value()).collect();
        assert_eq!(counts, [4.0, 3.0]);
        let names: Vec<_> =
            families[0].get_metric()[0].get_label().iter().map(|label| label.name().to_owned()).collect();
        assert_eq!(names, ["caller", "status"]);
        assert_eq!(families[1].get_metric()[1].get_histogram().get_sample_count(), 3);
    }

    #[test]
    fn labels_are_chosen_by_name() {
        assert_eq!("type,caller,callee,method,status".parse(), Ok(LabelSelection::default()));
        assert!("retry, method".parse::<LabelSelection>().unwrap().contains(Label::Retry));
        assert_eq!("".parse::<LabelSelection>(), Err(LabelsError::Unknown(String::new())));
        assert_eq!("code".parse::<LabelSelection>(), Err(LabelsError::Unknown("code".into())));
        assert_eq!("type,type".parse::<LabelSelection>(), Err(LabelsError::Twice("type".into())));
    }
}
