//! The slowest calls, and the last failed calls, of each label set.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, VecDeque},
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use serde::Serialize;

use super::fields::{CallFields, DetailFields, micros};
use crate::{
    pipeline::{Details, FinishedCall, Labels, Side, Tracer},
    time::rfc3339,
};

/// The maximum size of an answer without its end, in bytes: the HTTP server has room for a few answers of this size.
/// The kept calls of a target with many label sets can exceed it.
const ANSWER_MAX: usize = 16 << 20;

/// Keeps some calls of each label set. Shared by the pipeline, which adds calls, and by the requests that read them.
#[derive(Debug)]
pub struct SlowCalls {
    /// How many slow and how many failed calls are kept for each label set.
    limit: usize,
    /// The label sets, by the address of their labels, which the entry keeps alive.
    sets: Mutex<HashMap<usize, KeptSet>>,
}

/// The calls that a request wants: those that match all given values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// The target's pid.
    pub target: Option<u32>,
    /// The side.
    pub side: Option<Side>,
    /// The method.
    pub method: Option<String>,
}

/// A label set with its kept calls.
#[derive(Clone, Debug)]
struct KeptSet {
    target: u32,
    labels: Arc<Labels>,
    /// Has its own lock: a request copies the calls of one label set after the other, while calls of all other label
    /// sets can be added.
    calls: SharedKept,
}

type SharedKept = Arc<Mutex<Kept>>;

/// The kept calls of a label set.
#[derive(Debug, Default)]
struct Kept {
    /// The slowest calls, unordered. `fastest` is the duration of the call that is replaced next.
    slowest: Vec<Call>,
    fastest: Duration,
    /// The last failed calls, the newest last.
    failed: VecDeque<Call>,
}

#[derive(Clone, Copy, Debug)]
struct Call {
    time_ns: u64,
    duration: Option<Duration>,
    details: Option<Details>,
}

impl SlowCalls {
    /// Keeps up to `limit` slow and `limit` failed calls of each label set.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, sets: Mutex::default() }
    }

    fn keep(&self, call: &FinishedCall<'_>) {
        let mut sets = lock(&self.sets);
        let set = sets.entry(Arc::as_ptr(call.labels).addr()).or_insert_with(|| KeptSet {
            target: call.target,
            labels: Arc::clone(call.labels),
            calls: Arc::default(),
        });
        let mut kept = lock(&set.calls);
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

    /// Returns the wanted calls as JSON. Label sets are ordered by their names, slowest and newest calls come first. If
    /// the answer gets too large, the last label sets are left out, and it contains their number.
    #[must_use]
    pub fn json(&self, wish: &Wish) -> String {
        self.json_within(ANSWER_MAX, wish)
    }

    /// Builds the JSON in pieces, so that never more than the answer is built.
    fn json_within(&self, bytes: usize, wish: &Wish) -> String {
        let sets = self.wanted(wish);
        // Sets may differ only in labels that an answer does not show, such as retries. One combination of labels may
        // have two numbers, and two copies of a framework may have the same labels.
        let mut shown: BTreeMap<ShownLabels<'_>, Vec<&SharedKept>> = BTreeMap::new();
        for set in &sets {
            shown.entry(ShownLabels::of(set)).or_default().push(&set.calls);
        }
        let mut left_out = shown.len();
        let mut json = "{\"calls\":[".to_owned();
        for (index, (labels, calls)) in shown.into_iter().enumerate() {
            let described = Kept::of(&calls).described(labels, self.limit);
            // Writing text and numbers to memory can't fail.
            let described = serde_json::to_string(&described).unwrap_or_default();
            if json.len() + described.len() >= bytes {
                break;
            }
            json.push_str(if index > 0 { "," } else { "" });
            json.push_str(&described);
            left_out -= 1;
        }
        json.push(']');
        if left_out > 0 {
            // Can't fail either.
            let _ = write!(json, ",\"left_out\":{left_out}");
        }
        json.push('}');
        json
    }

    /// Returns the wanted label sets. New calls only wait while pointers are copied.
    fn wanted(&self, wish: &Wish) -> Vec<KeptSet> {
        lock(&self.sets).values().filter(|set| wish.takes(set)).cloned().collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tracer for Arc<SlowCalls> {
    /// Operations of specs have other labels, and are not kept.
    fn finish(&mut self, call: &FinishedCall<'_>) {
        if !call.labels.is_operation() {
            self.keep(call);
        }
    }
}

impl Wish {
    fn takes(&self, set: &KeptSet) -> bool {
        self.target.is_none_or(|target| target == set.target)
            && self.side.is_none_or(|side| side == set.labels.side)
            && self.method.as_ref().is_none_or(|method| *method == set.labels.method)
    }
}

impl Kept {
    /// Copies all of these. Their locks are held one after the other.
    fn of(these: &[&SharedKept]) -> Self {
        let mut all = Self::default();
        for one in these {
            let one = lock(one);
            all.slowest.extend_from_slice(&one.slowest);
            all.failed.extend(&one.failed);
        }
        all
    }

    /// Keeps a slow call. Most calls are faster than all kept calls and cost one comparison.
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

    fn described(mut self, labels: ShownLabels<'_>, limit: usize) -> DescribedSet<'_> {
        self.slowest.sort_by_key(|call| std::cmp::Reverse((call.duration, call.time_ns)));
        self.slowest.truncate(limit);
        let mut failed: Vec<_> = self.failed.into();
        failed.sort_by_key(|call| std::cmp::Reverse(call.time_ns));
        failed.truncate(limit);
        DescribedSet {
            labels,
            slowest: self.slowest.iter().map(described).collect(),
            failed: failed.iter().map(described).collect(),
        }
    }
}

/// The labels of a part of the answer, unique in it. The order of the fields is the order of the parts.
#[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
struct ShownLabels<'a> {
    #[serde(flatten)]
    call: CallFields<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Cow<'static, str>>,
}

impl<'a> ShownLabels<'a> {
    fn of(set: &'a KeptSet) -> Self {
        Self { call: CallFields::of(set.target, &set.labels), error: set.labels.error() }
    }
}

/// One part of the answer; `docs/events.md` explains its fields.
#[derive(Serialize)]
struct DescribedSet<'a> {
    #[serde(flatten)]
    labels: ShownLabels<'a>,
    slowest: Vec<DescribedCall>,
    failed: Vec<DescribedCall>,
}

#[derive(Serialize)]
struct DescribedCall {
    time: String,
    duration_us: Option<u64>,
    #[serde(flatten)]
    details: DetailFields,
}

fn described(call: &Call) -> DescribedCall {
    DescribedCall {
        time: rfc3339(UNIX_EPOCH + Duration::from_nanos(call.time_ns)),
        duration_us: micros(call.duration),
        details: DetailFields::of(call.details),
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Instant};

    use monitor_ebpf::LabelSet;
    use serde_json::Value;

    use super::*;
    use crate::pipeline::{Framework, NoExecutable};

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
        let [bad, good] = &report[..] else { unreachable!() };
        assert_eq!(durations(&good["slowest"]), [Some(9), Some(8), Some(7)]);
        assert_eq!((durations(&good["failed"]), &good["error"]), (vec![], &Value::Null));
        assert_eq!(durations(&bad["slowest"]), [Some(9), Some(7), Some(7)]);
        // The start of the last call was not seen.
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
    fn no_two_parts_of_an_answer_look_the_same() {
        let calls = Arc::new(SlowCalls::new(2));
        let echo = Labels::clone(&labels("Echo", false));
        let alike = [
            Labels { retry: "1".to_owned(), ..echo.clone() },
            Labels { protocol: "GRPC".to_owned(), ..echo.clone() },
            Labels { panicked: true, ..echo.clone() },
            echo,
        ];
        for (us, labels) in (1..).zip(alike) {
            finish(&calls, &Arc::new(labels), us, Some(us));
        }
        let ask = Labels { framework: Framework::Grpc, ..Labels::clone(&labels("Ask", true)) };
        for code in [99, 5, 98] {
            finish(&calls, &Arc::new(Labels { code: Some(code), ..ask.clone() }), 1, Some(1));
        }
        let report = report(&calls, &Wish::default());
        let shown = report.iter().map(|set| (set["method"].as_str(), set["error"].as_str()));
        let expected = [
            (Some("Ask"), Some("Code(98)")),
            (Some("Ask"), Some("Code(99)")),
            (Some("Ask"), Some("NotFound")),
            (Some("Echo"), None),
        ];
        assert_eq!(shown.collect::<Vec<_>>(), expected);
        assert_eq!(durations(&report[3]["slowest"]), [Some(4), Some(3)]);
    }

    #[test]
    fn an_answer_ends_at_a_limit_and_says_so() {
        let calls = Arc::new(SlowCalls::new(2));
        let whole = || calls.json_within(usize::MAX, &Wish::default());
        for method in ["A", "B", "C"] {
            finish(&calls, &labels(method, false), 1, Some(1));
        }
        let fits = whole();
        finish(&calls, &labels("D", false), 1, Some(1));
        let all = whole();
        for (bytes, methods, left_out) in [
            (all.len(), vec!["A", "B", "C", "D"], Value::Null),
            (fits.len(), vec!["A", "B", "C"], 1.into()),
            (fits.len() - 10, vec!["A", "B"], 2.into()),
            (0, vec![], 4.into()),
        ] {
            let json = calls.json_within(bytes, &Wish::default());
            let report: Value = serde_json::from_str(&json).expect("JSON");
            let sets = report["calls"].as_array().expect("a list");
            let given: Vec<_> = sets.iter().filter_map(|set| set["method"].as_str()).collect();
            assert_eq!((given, &report["left_out"]), (methods, &left_out), "{bytes}");
        }
        assert_eq!(calls.json(&Wish::default()), all);
    }

    /// While a request copies the calls of one label set, calls of another can be added.
    #[test]
    fn calls_are_kept_while_someone_asks() {
        let patience = Duration::from_secs(10);
        let calls = &Arc::new(SlowCalls::new(2));
        finish(calls, &labels("Echo", false), 1, Some(1));
        let echo = Arc::clone(&lock(&calls.sets).values().next().expect("a label set").calls);
        let held = lock(&echo);
        thread::scope(|scope| {
            let asks = scope.spawn(move || calls.json(&Wish::default()));
            // Waits until the request holds a pointer, too.
            let begin = Instant::now();
            while Arc::strong_count(&echo) < 3 && begin.elapsed() < patience {
                thread::yield_now();
            }
            let (kept, is_kept) = mpsc::channel();
            scope.spawn(move || {
                finish(calls, &labels("Store", false), 1, Some(1));
                kept.send(())
            });
            let is_kept = is_kept.recv_timeout(patience);
            let is_answered = asks.is_finished();
            drop(held);
            assert_eq!((is_kept, is_answered), (Ok(()), false));
        });
        assert_eq!(report(calls, &Wish::default()).len(), 2);
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
