//! Operations of users' specs, under the names that those give.

use std::{
    borrow::Cow,
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use prometheus::proto::MetricFamily;

use super::{
    family::{FamilyBuilder, float},
    grpc::seconds,
};
use crate::{
    pipeline::{Buckets, Framework, Histogram, Labels, Ladder, Snapshot},
    specs::{Operation, Source, Spec, Specs},
};

/// A target's label if there is one, then the values of the spec's labels.
type Key<'a> = (Option<&'a str>, Vec<Cow<'a, str>>);

/// The families of all specs, for each target's snapshot. The first of a pair is the value of the label `target`, if the
/// series are to carry one.
#[must_use]
pub fn operations(
    snapshots: &[(Option<String>, &Snapshot)],
    specs: &Specs,
    buckets: &Buckets,
    ladder: &Arc<Ladder>,
) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    for (number, spec) in specs.iter() {
        of_spec(snapshots, (number, spec), buckets, ladder, &mut families);
    }
    families
}

fn of_spec(
    snapshots: &[(Option<String>, &Snapshot)],
    (number, spec): (u8, &Spec),
    buckets: &Buckets,
    ladder: &Arc<Ladder>,
    families: &mut Vec<MetricFamily>,
) {
    let mut sums: BTreeMap<Key<'_>, (u64, Histogram)> = BTreeMap::new();
    for (target, snapshot) in snapshots {
        for series in snapshot.series.iter().filter(|series| series.total > 0) {
            let Some(operation) = operation_of(number, spec, &series.labels) else { continue };
            let key = (target.as_deref(), values(operation, &series.labels));
            let (total, histogram) = match sums.entry(key) {
                Entry::Vacant(entry) => entry.insert((0, Histogram::new(Arc::clone(ladder)))),
                Entry::Occupied(entry) => entry.into_mut(),
            };
            *total += series.total;
            histogram.add(&series.histogram);
        }
    }
    let help = |what: &str| {
        if spec.help.is_empty() {
            format!("{what} of {}, as its spec describes them.", spec.name)
        } else {
            spec.help.clone()
        }
    };
    let mut totals = FamilyBuilder::counter(&format!("{}_total", spec.name), &help("Finished operations"));
    let mut durations = FamilyBuilder::histogram(
        &format!("{}_duration_seconds", spec.name),
        &help("Durations of operations"),
    );
    for ((target, values), (total, histogram)) in &sums {
        let mut labels: Vec<_> =
            spec.labels.iter().zip(values).map(|(name, value)| (name.as_str(), value.as_ref())).collect();
        labels.extend(target.map(|target| ("target", target)));
        totals.push(&labels, float(*total));
        if histogram.count() > 0 {
            durations.push_histogram(&labels, buckets, histogram, seconds(histogram.sum_ns));
        }
    }
    totals.finish(families);
    durations.finish(families);
}

/// The operation whose labels these are, if they are those of one of this spec.
fn operation_of<'a>(number: u8, spec: &'a Spec, labels: &Labels) -> Option<&'a Operation> {
    match labels.framework {
        Framework::Spec { spec: of, operation } if of == number => {
            spec.operations.get(usize::from(operation))
        }
        _ => None,
    }
}

/// The values of an operation's labels, in the order of their names.
fn values<'a>(operation: &'a Operation, labels: &'a Labels) -> Vec<Cow<'a, str>> {
    let mut names = [&labels.caller, &labels.callee, &labels.method].into_iter();
    let value = |source: &'a Source| -> Cow<'a, str> {
        match source {
            Source::Name(_) => names.next().map_or(Cow::Borrowed(""), |name| Cow::Borrowed(name.as_str())),
            Source::Number { zero, .. } => {
                number(labels.code.map(|code| operation.number(code)), zero.as_deref())
            }
            Source::Text(text) => Cow::Borrowed(text.as_str()),
            Source::Outcome([succeeded, failed]) => {
                Cow::Borrowed(if labels.failed { failed.as_str() } else { succeeded.as_str() })
            }
        }
    };
    operation.labels.iter().map(value).collect()
}

fn number(number: Option<i64>, zero: Option<&str>) -> Cow<'_, str> {
    match (number, zero) {
        (Some(0), Some(zero)) => Cow::Borrowed(zero),
        (Some(number), _) => Cow::Owned(number.to_string()),
        (None, _) => Cow::Borrowed("unreadable"),
    }
}
