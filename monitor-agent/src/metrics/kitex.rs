//! Calls under the names of Kitex's in-process extension (`kitex-contrib/monitor-prometheus` @ v0.2.0).

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use prometheus::proto::MetricFamily;
use thiserror::Error;

use super::family::{FamilyBuilder, float};
use crate::pipeline::{Buckets, Histogram, Labels, Side, Snapshot};

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
}

impl Label {
    const ALL: [Self; 6] = [Self::Type, Self::Caller, Self::Callee, Self::Method, Self::Status, Self::Retry];

    fn name(self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Caller => "caller",
            Self::Callee => "callee",
            Self::Method => "method",
            Self::Status => "status",
            Self::Retry => "retry",
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
        }
    }
}

/// The labels of counters and histograms alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSelection(BTreeSet<Label>);

/// What is wrong with a list of labels.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LabelsError {
    /// There is no such label.
    #[error("`{0}` is not a label; choose from type, caller, callee, method, status, retry")]
    Unknown(String),
    /// A label is listed twice.
    #[error("label `{0}` is listed twice")]
    Twice(String),
}

impl Default for LabelSelection {
    /// What Kitex's documentation lists.
    fn default() -> Self {
        Self([Label::Type, Label::Caller, Label::Callee, Label::Method, Label::Status].into())
    }
}

impl LabelSelection {
    /// Whether a label was chosen.
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

/// One series after projection: label values in the order of the selection, and the target's label if any.
type Key = (Option<String>, Vec<String>);

/// The four families, for each target's snapshot. The first of a pair is the value of the label `target`, if
/// the series are to carry one.
#[must_use]
pub fn kitex(
    snapshots: &[(Option<String>, &Snapshot)],
    selection: &LabelSelection,
    buckets: &Buckets,
) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    for side in [Side::Client, Side::Server] {
        let (throughput_help, latency_help) = help(side);
        let mut throughput =
            FamilyBuilder::counter(&format!("kitex_{}_throughput", side.name()), throughput_help);
        let mut latency =
            FamilyBuilder::histogram(&format!("kitex_{}_latency_us", side.name()), latency_help);
        for ((target, values), (total, histogram)) in project(snapshots, side, selection, buckets) {
            let mut labels: Vec<(&str, &str)> =
                selection.0.iter().map(|label| label.name()).zip(values.iter().map(String::as_str)).collect();
            labels.extend(target.as_deref().map(|target| ("target", target)));
            throughput.push(&labels, float(total));
            if histogram.count() > 0 {
                latency.push_histogram(&labels, buckets.bounds(), &histogram);
            }
        }
        throughput.finish(&mut families);
        latency.finish(&mut families);
    }
    families
}

fn project(
    snapshots: &[(Option<String>, &Snapshot)],
    side: Side,
    selection: &LabelSelection,
    buckets: &Buckets,
) -> BTreeMap<Key, (u64, Histogram)> {
    let mut projected: BTreeMap<Key, (u64, Histogram)> = BTreeMap::new();
    for (target, snapshot) in snapshots {
        for series in snapshot.series.iter().filter(|series| series.labels.side == side) {
            let values = selection.0.iter().map(|label| label.value(&series.labels)).collect();
            let (total, histogram) = projected
                .entry((target.clone(), values))
                .or_insert_with(|| (0, Histogram::new(buckets.bounds().len())));
            *total += series.total;
            histogram.add(&series.histogram);
        }
    }
    projected
}

/// Help texts of the in-process extension (`tracer.go` @ v0.2.0), so that a scrape of either looks the same.
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
    use std::sync::Arc;

    use super::*;
    use crate::pipeline::{CallType, Series};

    fn series(method: &str, failed: bool, total: u64) -> Arc<Series> {
        let labels = Labels {
            side: Side::Client,
            call_type: CallType::PingPong,
            caller: "shop".into(),
            callee: "stock".into(),
            method: method.into(),
            failed,
            retry: "0".into(),
        };
        let histogram = Histogram { counts: vec![total, 0], sum_us: total * 3 };
        Arc::new(Series { labels: Arc::new(labels), total, histogram })
    }

    #[test]
    fn series_that_become_equal_are_summed() {
        let snapshot = Snapshot {
            series: vec![series("A", false, 1), series("B", false, 2), series("A", true, 4)],
            ..Snapshot::default()
        };
        let buckets = "10".parse().unwrap();
        let families = kitex(&[(None, &snapshot)], &"caller,status".parse().unwrap(), &buckets);
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
