//! The slowest calls, and the last that failed, of each label set.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use serde::Serialize;

use crate::{
    export::time::rfc3339,
    pipeline::{Details, FinishedCall, Labels, Side, Tracer},
};

/// Keeps some calls of each label set. Shared by the pipeline, which hands it calls, and by those who ask.
#[derive(Debug)]
pub struct SlowCalls {
    /// How many slowest and how many failed calls are kept of a label set.
    limit: usize,
    /// By the address of the labels, which the entry keeps alive.
    sets: Mutex<HashMap<usize, Kept>>,
}

/// Which calls are wanted: those that have everything that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// The target's pid.
    pub target: Option<u32>,
    /// The side.
    pub side: Option<Side>,
    /// The method.
    pub method: Option<String>,
}

/// What is kept of a label set.
#[derive(Clone, Debug)]
struct Kept {
    target: u32,
    labels: Arc<Labels>,
    /// In no order; `fastest` is the duration of the one that goes next.
    slowest: Vec<Call>,
    fastest: Duration,
    /// The newest at the end.
    failed: VecDeque<Call>,
}

#[derive(Clone, Copy, Debug)]
struct Call {
    time_ns: u64,
    duration: Option<Duration>,
    details: Option<Details>,
}

impl SlowCalls {
    /// Keeps so many of each.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, sets: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Kept>> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, call: &FinishedCall<'_>) {
        let mut sets = self.lock();
        let kept = sets.entry(Arc::as_ptr(call.labels).addr()).or_insert_with(|| Kept {
            target: call.target,
            labels: Arc::clone(call.labels),
            slowest: Vec::new(),
            fastest: Duration::ZERO,
            failed: VecDeque::new(),
        });
        let this = Call { time_ns: call.time_ns, duration: call.duration, details: call.details };
        if call.labels.failed {
            kept.failed.push_back(this);
            if kept.failed.len() > self.limit {
                kept.failed.pop_front();
            }
        }
        if let Some(duration) = call.duration {
            kept.keep_slow(this, duration, self.limit);
        }
    }

    /// The calls that are wanted, as JSON; label sets in the order of their names, slowest and newest calls first.
    #[must_use]
    pub fn json(&self, wish: &Wish) -> String {
        let kept: Vec<Kept> = self.lock().values().filter(|kept| wish.takes(kept)).cloned().collect();
        // One combination of labels may have two numbers, and two copies of a framework may have the same.
        let mut sets: BTreeMap<(u32, Arc<Labels>), Kept> = BTreeMap::new();
        for one in kept {
            let known = sets.get_mut(&(one.target, Arc::clone(&one.labels)));
            match known {
                Some(known) => {
                    known.slowest.extend(one.slowest);
                    known.failed.extend(one.failed);
                }
                None => drop(sets.insert((one.target, Arc::clone(&one.labels)), one)),
            }
        }
        let calls = sets.into_values().map(|kept| kept.described(self.limit)).collect();
        // Text and numbers to memory can't fail.
        serde_json::to_string(&Report { calls }).unwrap_or_default()
    }
}

impl Tracer for Arc<SlowCalls> {
    /// Operations of specs have labels of their own: they are not kept.
    fn finish(&mut self, call: &FinishedCall<'_>) {
        if !call.labels.is_operation() {
            self.keep(call);
        }
    }
}

impl Wish {
    fn takes(&self, kept: &Kept) -> bool {
        self.target.is_none_or(|target| target == kept.target)
            && self.side.is_none_or(|side| side == kept.labels.side)
            && self.method.as_ref().is_none_or(|method| *method == kept.labels.method)
    }
}

impl Kept {
    /// Most calls are faster than all that are kept: they cost one comparison.
    fn keep_slow(&mut self, call: Call, duration: Duration, limit: usize) {
        if self.slowest.len() < limit {
            self.slowest.push(call);
        } else if duration > self.fastest {
            let fastest = self.slowest.iter_mut().min_by_key(|call| call.duration);
            if let Some(place) = fastest {
                *place = call;
            }
        } else {
            return;
        }
        self.fastest = self.slowest.iter().filter_map(|call| call.duration).min().unwrap_or_default();
    }

    fn described(mut self, limit: usize) -> DescribedSet {
        self.slowest.sort_by_key(|call| std::cmp::Reverse((call.duration, call.time_ns)));
        self.slowest.truncate(limit);
        let mut failed: Vec<_> = self.failed.into();
        failed.sort_by_key(|call| std::cmp::Reverse(call.time_ns));
        failed.truncate(limit);
        let labels = &self.labels;
        DescribedSet {
            target: self.target,
            side: labels.side.name(),
            caller: labels.caller.clone(),
            callee: labels.callee.clone(),
            method: labels.method.clone(),
            call_type: labels.call_type.name(),
            status: labels.status(),
            error: labels.failed.then_some(labels.error_class),
            slowest: self.slowest.iter().map(described).collect(),
            failed: failed.iter().map(described).collect(),
        }
    }
}

/// The answer, whose fields `docs/events.md` explains.
#[derive(Serialize)]
struct Report {
    calls: Vec<DescribedSet>,
}

#[derive(Serialize)]
struct DescribedSet {
    target: u32,
    side: &'static str,
    caller: String,
    callee: String,
    method: String,
    #[serde(rename = "type")]
    call_type: &'static str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    slowest: Vec<DescribedCall>,
    failed: Vec<DescribedCall>,
}

#[derive(Serialize)]
struct DescribedCall {
    time: String,
    duration_us: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    goroutine: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    received_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<SocketAddr>,
}

fn described(call: &Call) -> DescribedCall {
    DescribedCall {
        time: rfc3339(UNIX_EPOCH + Duration::from_nanos(call.time_ns)),
        duration_us: call.duration.map(|duration| duration.as_micros()),
        goroutine: call.details.map(|details| details.goroutine),
        sent_bytes: call.details.and_then(|details| details.sent_bytes),
        received_bytes: call.details.and_then(|details| details.received_bytes),
        peer: call.details.and_then(|details| details.peer),
    }
}

#[cfg(test)]
mod tests {
    use monitor_ebpf::LabelSet;
    use serde_json::Value;

    use super::*;
    use crate::pipeline::NoExecutable;

    fn labels(method: &str, failed: bool) -> Arc<Labels> {
        let labels = Labels::decode(&LabelSet::EMPTY, &NoExecutable);
        Arc::new(Labels { method: method.to_owned(), failed, error_class: "timeout", ..labels })
    }

    fn finish(calls: &Arc<SlowCalls>, labels: &Arc<Labels>, time_ns: u64, duration_us: Option<u64>) {
        let duration = duration_us.map(Duration::from_micros);
        Arc::clone(calls).finish(&FinishedCall {
            target: 7,
            label_set: 0,
            labels,
            time_ns,
            duration,
            has_own_start: false,
            details: None,
        });
    }

    fn report(calls: &SlowCalls, wish: &Wish) -> Vec<Value> {
        let report: Value = serde_json::from_str(&calls.json(wish)).expect("JSON");
        report["calls"].as_array().expect("a list").clone()
    }

    fn durations(list: &Value) -> Vec<Option<u64>> {
        list.as_array().expect("a list").iter().map(|call| call["duration_us"].as_u64()).collect()
    }

    #[test]
    fn the_slowest_and_the_last_failed_are_kept() {
        let calls = Arc::new(SlowCalls::new(3));
        let (good, bad) = (labels("Echo", false), labels("Echo", true));
        for (time, us) in [5, 9, 1, 7, 7, 2, 8].into_iter().enumerate() {
            finish(&calls, &good, time as u64, Some(us));
            finish(&calls, &bad, time as u64, (us != 8).then_some(us));
        }
        let report = report(&calls, &Wish::default());
        assert_eq!(report.len(), 2);
        let [good, bad] = &report[..] else { unreachable!() };
        assert_eq!(durations(&good["slowest"]), [Some(9), Some(8), Some(7)]);
        assert_eq!((durations(&good["failed"]), &good["error"]), (vec![], &Value::Null));
        assert_eq!(durations(&bad["slowest"]), [Some(9), Some(7), Some(7)]);
        // The last one's start was not seen.
        assert_eq!(durations(&bad["failed"]), [None, Some(2), Some(7)]);
        assert_eq!(bad["error"], "timeout");
        assert_eq!(bad["failed"][0]["time"], "1970-01-01T00:00:00.000000006Z");
    }

    #[test]
    fn equal_labels_are_one_set() {
        let calls = Arc::new(SlowCalls::new(2));
        for us in [1, 2, 3] {
            finish(&calls, &labels("Echo", false), us, Some(us));
        }
        let report = report(&calls, &Wish::default());
        assert_eq!(report.len(), 1);
        assert_eq!(durations(&report[0]["slowest"]), [Some(3), Some(2)]);
    }

    #[test]
    fn a_wish_chooses() {
        let calls = Arc::new(SlowCalls::new(2));
        finish(&calls, &labels("Echo", false), 1, Some(1));
        finish(&calls, &labels("Store", false), 1, Some(1));
        let of = |wish| report(&calls, &wish).len();
        assert_eq!(of(Wish { method: Some("Echo".to_owned()), ..Wish::default() }), 1);
        assert_eq!(of(Wish { target: Some(7), side: Some(Side::Client), ..Wish::default() }), 2);
        assert_eq!(of(Wish { target: Some(8), ..Wish::default() }), 0);
        assert_eq!(of(Wish { side: Some(Side::Server), ..Wish::default() }), 0);
    }
}
