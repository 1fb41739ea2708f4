//! Calls in flight: their number, and the age of the oldest.

use std::collections::BTreeMap;

use monitor_ebpf::{LABELS, label};
use prometheus::proto::MetricFamily;

use super::{
    Label, LabelSelection,
    family::{FamilyBuilder, float},
    grpc::type_name,
};
use crate::pipeline::{Side, StreamKind};

/// The maximum number of combinations of names. Calls beyond it are shown under `other`.
const GROUPS: usize = 1_024;
/// The name shown for calls past the limit.
const OTHER: &str = "other";
/// Nanoseconds in a second.
const NANOS: f64 = 1e9;

/// The calls in flight of a target, by side and names.
#[derive(Clone, Debug, Default)]
pub struct UnderwayCalls {
    kitex: Groups<[String; LABELS]>,
    /// gRPC calls, by kind, service and method.
    grpc: Groups<(StreamKind, [String; 2])>,
    /// Calls that are in no family, or were gone by the time their names had been read.
    pub others: u64,
    /// Whether only some of Kitex's calls are seen, so that none of them are shown.
    pub is_sample: bool,
    /// Calls that were in flight when the target ended.
    pub never_finished: u64,
    /// All calls given up as too old up to that moment.
    pub aged: u64,
}

/// Groups of calls, by side and names.
#[derive(Clone, Debug)]
struct Groups<N>(BTreeMap<(Side, N), Group>);

/// Calls with the same names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Group {
    count: u64,
    /// The age of the oldest call, in nanoseconds.
    oldest_ns: u64,
}

impl UnderwayCalls {
    /// Adds a call of Kitex with its age in nanoseconds.
    pub fn add(&mut self, side: Side, names: [String; LABELS], age_ns: u64) {
        self.kitex.add(side, names, age_ns, |names| names.map(|_| OTHER.to_owned()));
    }

    /// Adds a call of gRPC, with its service and method, and its age in nanoseconds.
    pub fn add_grpc(&mut self, side: Side, kind: StreamKind, names: [String; 2], age_ns: u64) {
        self.grpc.add(side, (kind, names), age_ns, |(kind, names)| (kind, names.map(|_| OTHER.to_owned())));
    }

    /// Returns the number of all calls.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.others + self.kitex.count() + self.grpc.count()
    }

    /// Drops the names of Kitex's calls and keeps only their number.
    pub fn hide_kitex(&mut self) {
        self.others += self.kitex.count();
        self.kitex = Groups::default();
        self.is_sample = true;
    }

    /// Keeps the names of an earlier look, so that their series continue, with zero calls if there are none now.
    /// Kitex's names are not kept if its calls are a sample. gRPC's calls never are.
    pub fn keep_names(&mut self, earlier: &Self) {
        if !self.is_sample {
            self.kitex.keep_names(&earlier.kitex);
        }
        self.grpc.keep_names(&earlier.grpc);
    }
}

impl<N> Default for Groups<N> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<N: Ord + Clone> Groups<N> {
    fn add(&mut self, side: Side, names: N, age_ns: u64, other: impl FnOnce(N) -> N) {
        let mut key = (side, names);
        if self.0.len() >= GROUPS && !self.0.contains_key(&key) {
            key.1 = other(key.1);
        }
        let group = self.0.entry(key).or_default();
        group.count += 1;
        group.oldest_ns = group.oldest_ns.max(age_ns);
    }

    fn count(&self) -> u64 {
        self.0.values().map(|group| group.count).sum()
    }

    fn keep_names(&mut self, earlier: &Self) {
        for key in earlier.0.keys() {
            if self.0.len() >= GROUPS {
                return;
            }
            self.0.entry(key.clone()).or_default();
        }
    }
}

/// Builds the families of Kitex's calls in flight, with those of the chosen labels that are known before a call
/// finishes. The first element of a pair is the value of the label `target`, if there is one.
#[must_use]
pub fn underway(targets: &[(Option<String>, UnderwayCalls)], labels: &LabelSelection) -> Vec<MetricFamily> {
    families("kitex", targets, |calls, side| project(calls, side, labels))
}

/// Builds the families of gRPC's calls in flight, likewise.
#[must_use]
pub fn underway_grpc(targets: &[(Option<String>, UnderwayCalls)]) -> Vec<MetricFamily> {
    families("grpc", targets, |calls, side| {
        let of_side = calls.grpc.0.iter().filter(|((of, _), _)| *of == side);
        let pairs = |kind: StreamKind, [service, method]: &[String; 2]| {
            let names = [("grpc_service", service), ("grpc_method", method)];
            let names = names.map(|(name, value)| (name, value.clone()));
            [("grpc_type", type_name(kind).to_owned())].into_iter().chain(names).collect()
        };
        of_side.map(|((_, (kind, names)), group)| (pairs(*kind, names), *group)).collect()
    })
}

fn families(
    framework: &str,
    targets: &[(Option<String>, UnderwayCalls)],
    groups: impl Fn(&UnderwayCalls, Side) -> BTreeMap<Pairs, Group>,
) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    for side in [Side::Client, Side::Server] {
        let name = side.name();
        let mut count = FamilyBuilder::gauge(
            &format!("{framework}_{name}_in_flight"),
            "Calls that have started and not finished.",
        );
        let mut age = FamilyBuilder::gauge(
            &format!("{framework}_{name}_oldest_call_age_seconds"),
            "For how long the oldest of the calls in flight has been under way; 0 where there is none.",
        );
        for (target, calls) in targets {
            for (values, group) in groups(calls, side) {
                let mut pairs: Vec<(&str, &str)> = Vec::new();
                pairs.extend(target.as_deref().map(|target| ("target", target)));
                pairs.extend(values.iter().map(|(name, value)| (*name, value.as_str())));
                count.push(&pairs, float(group.count));
                age.push(&pairs, float(group.oldest_ns) / NANOS);
            }
        }
        count.finish(&mut families);
        age.finish(&mut families);
    }
    families
}

/// The names and values of labels.
type Pairs = Vec<(&'static str, String)>;

/// Projects the groups of a side onto the chosen labels. Groups that become equal are merged.
fn project(calls: &UnderwayCalls, side: Side, labels: &LabelSelection) -> BTreeMap<Pairs, Group> {
    let known = [
        (Label::Caller, "caller", label::CALLER),
        (Label::Callee, "callee", label::CALLEE),
        (Label::Method, "method", label::METHOD),
    ];
    let known = known.into_iter().filter(|(label, ..)| labels.contains(*label)).collect::<Vec<_>>();
    let mut groups: BTreeMap<Pairs, Group> = BTreeMap::new();
    for ((_, names), group) in calls.kitex.0.iter().filter(|((of, _), _)| *of == side) {
        let pairs = known.iter().map(|(_, name, index)| (*name, names[*index].clone())).collect();
        let sum = groups.entry(pairs).or_default();
        sum.count += group.count;
        sum.oldest_ns = sum.oldest_ns.max(group.oldest_ns);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(method: &str) -> [String; LABELS] {
        ["shop", "stock", method].map(str::to_owned)
    }

    fn values(families: &[MetricFamily], name: &str) -> Vec<(Vec<String>, f64)> {
        let family = families.iter().find(|family| family.name() == name).unwrap();
        let of = |metric: &prometheus::proto::Metric| {
            metric.get_label().iter().map(|pair| pair.value().to_owned()).collect()
        };
        family.get_metric().iter().map(|metric| (of(metric), metric.get_gauge().get_value())).collect()
    }

    #[test]
    fn calls_are_summed_under_the_chosen_labels() {
        let mut calls = UnderwayCalls::default();
        calls.add(Side::Client, names("Get"), 2_000_000_000);
        calls.add(Side::Client, names("Get"), 5_000_000_000);
        calls.add(Side::Client, names("Put"), 1_000_000_000);
        let labels = "callee,status".parse().unwrap();
        let families = underway(&[(None, calls.clone())], &labels);
        assert_eq!(values(&families, "kitex_client_in_flight"), [(vec!["stock".to_owned()], 3.0)]);
        let age = values(&families, "kitex_client_oldest_call_age_seconds");
        assert_eq!(age, [(vec!["stock".to_owned()], 5.0)]);
        assert_eq!(families.len(), 2, "no series of servers");
    }

    #[test]
    fn series_go_on_without_calls() {
        let mut earlier = UnderwayCalls::default();
        earlier.add(Side::Server, names("Get"), 7);
        let mut now = UnderwayCalls::default();
        now.keep_names(&earlier);
        assert_eq!(now.count(), 0);
        let families = underway(&[(Some("7".to_owned()), now)], &"method".parse().unwrap());
        assert_eq!(
            values(&families, "kitex_server_in_flight"),
            [(vec!["Get".to_owned(), "7".to_owned()], 0.0)]
        );
    }

    #[test]
    fn a_sample_of_kitexs_calls_takes_no_series_of_grpc() {
        let mut earlier = UnderwayCalls::default();
        earlier.add(Side::Server, names("Get"), 7);
        earlier.add_grpc(Side::Server, StreamKind::Unary, ["shop.Stock", "Get"].map(str::to_owned), 7);
        let mut now = UnderwayCalls { is_sample: true, ..UnderwayCalls::default() };
        now.keep_names(&earlier);
        assert!(underway(&[(None, now.clone())], &LabelSelection::default()).is_empty());
        let families = underway_grpc(&[(None, now)]);
        let labels: Vec<_> = ["Get", "shop.Stock", "unary"].map(str::to_owned).into();
        assert_eq!(values(&families, "grpc_server_in_flight"), [(labels, 0.0)]);
    }

    #[test]
    fn names_without_end_become_other() {
        let mut calls = UnderwayCalls::default();
        for number in 0..2 * GROUPS {
            calls.add(Side::Client, names(&number.to_string()), 1);
        }
        assert_eq!(calls.count(), 2 * GROUPS as u64);
        assert_eq!(calls.kitex.0.len(), GROUPS + 1);
    }

    #[test]
    fn calls_of_grpc_are_apart() {
        let mut calls = UnderwayCalls::default();
        let names = || ["shop.Stock", "Watch"].map(str::to_owned);
        calls.add_grpc(Side::Server, StreamKind::Server, names(), 3_000_000_000);
        calls.add_grpc(Side::Server, StreamKind::Server, names(), 1);
        assert_eq!(calls.count(), 2);
        assert!(underway(&[(None, calls.clone())], &LabelSelection::default()).is_empty());
        let families = underway_grpc(&[(None, calls)]);
        let labels: Vec<_> = ["Watch", "shop.Stock", "server_stream"].map(str::to_owned).into();
        assert_eq!(values(&families, "grpc_server_in_flight"), [(labels.clone(), 2.0)]);
        assert_eq!(values(&families, "grpc_server_oldest_call_age_seconds"), [(labels, 3.0)]);
    }
}
