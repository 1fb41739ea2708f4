//! The view of the Go runtime against `client_golang`: the same families, help texts, types, series and buckets.
//!
//! `tests/targets/golden` wrote the expected text with the real collector, all metrics of Go 1.27.

use std::{collections::BTreeMap, fs, path::Path};

use monitor_agent::{
    export::text,
    goruntime::{Detail, GcCycles, Histogram, Readings, Value},
    metrics,
};
use serde::Deserialize;

/// Metrics that the agent does not read; `docs/metrics.md` says why.
const NOT_READ: [&str; 5] = [
    "go_sched_goroutines_not_in_go_goroutines",
    "go_sched_goroutines_runnable_goroutines",
    "go_sched_goroutines_running_goroutines",
    "go_sched_goroutines_waiting_goroutines",
    "go_sched_threads_total_threads",
];

#[derive(Deserialize)]
struct Description {
    name: String,
}

/// The text without values, and without what the agent does not read.
fn shape(text: &str) -> Vec<String> {
    let names = |line: &str, name: &str| line.split([' ', '{']).any(|word| word == name);
    let kept = text.lines().filter(|line| !NOT_READ.iter().any(|name| names(line, name)));
    let shape = kept.map(|line| match line.rsplit_once(' ') {
        Some((series, _)) if !line.starts_with('#') => series.to_owned(),
        _ => line.to_owned(),
    });
    shape.collect()
}

/// The runtime's own bounds of durations, from the words of its documentation: powers of two from 2^8 ns on, each
/// divided by four, and what is below by four too.
fn durations() -> Histogram {
    let mut bounds = vec![f64::NEG_INFINITY];
    bounds.extend([0, 64, 128, 192].map(|nanos| f64::from(nanos) / 1e9));
    for power in 8..47 {
        bounds.extend([4.0, 5.0, 6.0, 7.0].map(|quarters| quarters / 4.0 * 2_f64.powi(power) / 1e9));
    }
    bounds.extend([2_f64.powi(47) / 1e9, f64::INFINITY]);
    Histogram { counts: vec![0; bounds.len() - 1], bounds }
}

fn sizes() -> Histogram {
    let classes = [
        1, 9, 17, 25, 33, 49, 65, 81, 97, 113, 129, 145, 161, 177, 193, 209, 225, 241, 257, 289, 321, 353,
        385, 417, 449, 481, 513, 577, 641, 705, 769, 897, 1025, 1153, 1281, 1409, 1537, 1793, 2049, 2305,
        2689, 3073, 3201, 3457, 4097, 4865, 5377, 6145, 6529, 6785, 6913, 8193, 9473, 9729, 10241, 10881,
        12289, 13569, 14337, 16385, 18433, 19073, 20481, 21761, 24577, 27265, 28673, 32769,
    ];
    let bounds: Vec<f64> = classes.iter().map(|size| f64::from(*size)).chain([f64::INFINITY]).collect();
    Histogram { counts: vec![0; bounds.len() - 1], bounds }
}

#[test]
fn families_are_those_of_client_golang() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path| fs::read_to_string(here.join(path)).expect("a file of the repository");
    let expected = shape(&read("tests/golden/go_collector.txt"));
    let descriptions: Vec<Description> =
        serde_json::from_str(&read("src/metrics/runtime_metrics.json")).expect("the descriptions");
    let value = |name: &str| match name {
        "/gc/heap/allocs-by-size:bytes" | "/gc/heap/frees-by-size:bytes" => Value::Histogram(sizes()),
        "/sync/mutex/wait/total:seconds" => Value::Float(0.0),
        _ if name.ends_with(":seconds") => Value::Histogram(durations()),
        _ if name.ends_with(":cpu-seconds") => Value::Float(0.0),
        _ => Value::Unsigned(1),
    };
    let metrics: BTreeMap<&'static str, Value> = descriptions
        .into_iter()
        .map(|description| {
            let name: &'static str = description.name.leak();
            (name, value(name))
        })
        .collect();
    let gc = Some(GcCycles::default());
    let readings = Readings { goroutines: Some(1), threads: Some(1), gc, metrics, ..Readings::default() };
    let version =
        expected.iter().find_map(|line| line.strip_prefix("go_info{version=\"")?.strip_suffix("\"}"));
    let families = metrics::go(&readings, version.expect("a version"), Detail::All);
    let ours = shape(&text::encode(&families));
    for (number, (ours, theirs)) in (1..).zip(ours.iter().zip(&expected)) {
        assert_eq!(ours, theirs, "line {number}");
    }
    assert_eq!(ours.len(), expected.len());
}
