//! Operations of users' specs, under the names that the specs give.

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
    pipeline::{Buckets, Histogram, Ladder, Snapshot},
    specs::{Spec, Specs},
};

/// The label of the target, if it has one, then the values of the spec's labels.
type Key<'a> = (Option<&'a str>, Vec<Cow<'a, str>>);

/// Builds the families of all specs from each target's snapshot. The first element of a pair is the value of the label
/// `target`, if there is one.
#[must_use]
pub fn operations(
    snapshots: &[(Option<String>, &Snapshot)],
    specs: &Specs,
    buckets: &Buckets,
    ladder: &Arc<Ladder>,
) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    for (_, spec) in specs.iter() {
        of_spec(snapshots, (specs, spec), buckets, ladder, &mut families);
    }
    families
}

fn of_spec(
    snapshots: &[(Option<String>, &Snapshot)],
    (specs, spec): (&Specs, &Arc<Spec>),
    buckets: &Buckets,
    ladder: &Arc<Ladder>,
    families: &mut Vec<MetricFamily>,
) {
    let mut sums: BTreeMap<Key<'_>, (u64, Histogram)> = BTreeMap::new();
    for (target, snapshot) in snapshots {
        for series in snapshot.series.iter().filter(|series| series.total > 0) {
            let Some((of, operation)) = series.labels.operation(specs) else { continue };
            if of.name != spec.name {
                continue;
            }
            let key = (target.as_deref(), series.labels.values(operation));
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
