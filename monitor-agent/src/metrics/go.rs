//! The Go runtime of a process, as `client_golang` shows it.
//!
//! Names, types, help texts and arithmetic are those of its collector for the Go runtime (`prometheus/go_collector.go`
//! and `prometheus/go_collector_latest.go` @ v1.24.1). A value that could not be read is absent, never zero.

use std::sync::LazyLock;

use prometheus::proto::MetricFamily;
use serde::Deserialize;

use super::family::{FamilyBuilder, float};
use crate::goruntime::{Detail, GcCycles, Histogram, Readings, Value};

/// Go's description of one of its metrics.
#[derive(Deserialize)]
struct Description {
    /// The name, such as `/gc/heap/goal:bytes`.
    name: String,
    /// Whether the value only rises.
    cumulative: bool,
    text: String,
}

/// All metrics of Go 1.27 except those of GODEBUG settings, written by `tests/targets/golden`.
static DESCRIPTIONS: LazyLock<Vec<Description>> =
    LazyLock::new(|| serde_json::from_str(include_str!("runtime_metrics.json")).unwrap_or_default());

/// The metrics that are shown by default.
const BY_DEFAULT: [&str; 3] = ["/gc/gogc:percent", "/gc/gomemlimit:bytes", "/sched/gomaxprocs:threads"];

/// A metric with a name from before `runtime/metrics`: the sum of current metrics.
struct MemStat {
    name: &'static str,
    help: &'static str,
    parts: &'static [&'static str],
}

const MEM_STATS: &[MemStat] = &[
    MemStat {
        name: "go_memstats_alloc_bytes",
        help: "Number of bytes allocated in heap and currently in use. Equals to \
               /memory/classes/heap/objects:bytes.",
        parts: &["/memory/classes/heap/objects:bytes"],
    },
    MemStat {
        name: "go_memstats_alloc_bytes_total",
        help: "Total number of bytes allocated in heap until now, even if released already. Equals to \
               /gc/heap/allocs:bytes.",
        parts: &["/gc/heap/allocs:bytes"],
    },
    MemStat {
        name: "go_memstats_sys_bytes",
        help: "Number of bytes obtained from system. Equals to /memory/classes/total:byte.",
        parts: &["/memory/classes/total:bytes"],
    },
    MemStat {
        name: "go_memstats_mallocs_total",
        help: "Total number of heap objects allocated, both live and gc-ed. Semantically a counter version \
               for go_memstats_heap_objects gauge. Equals to /gc/heap/allocs:objects + \
               /gc/heap/tiny/allocs:objects.",
        parts: &["/gc/heap/allocs:objects", "/gc/heap/tiny/allocs:objects"],
    },
    MemStat {
        name: "go_memstats_frees_total",
        help: "Total number of heap objects frees. Equals to /gc/heap/frees:objects + \
               /gc/heap/tiny/allocs:objects.",
        parts: &["/gc/heap/frees:objects", "/gc/heap/tiny/allocs:objects"],
    },
    MemStat {
        name: "go_memstats_heap_alloc_bytes",
        help: "Number of heap bytes allocated and currently in use, same as go_memstats_alloc_bytes. Equals \
               to /memory/classes/heap/objects:bytes.",
        parts: &["/memory/classes/heap/objects:bytes"],
    },
    MemStat {
        name: "go_memstats_heap_sys_bytes",
        help: "Number of heap bytes obtained from system. Equals to /memory/classes/heap/objects:bytes + \
               /memory/classes/heap/unused:bytes + /memory/classes/heap/released:bytes + \
               /memory/classes/heap/free:bytes.",
        parts: &[
            "/memory/classes/heap/objects:bytes",
            "/memory/classes/heap/unused:bytes",
            "/memory/classes/heap/released:bytes",
            "/memory/classes/heap/free:bytes",
        ],
    },
    MemStat {
        name: "go_memstats_heap_idle_bytes",
        help: "Number of heap bytes waiting to be used. Equals to /memory/classes/heap/released:bytes + \
               /memory/classes/heap/free:bytes.",
        parts: &["/memory/classes/heap/released:bytes", "/memory/classes/heap/free:bytes"],
    },
    MemStat {
        name: "go_memstats_heap_inuse_bytes",
        help: "Number of heap bytes that are in use. Equals to /memory/classes/heap/objects:bytes + \
               /memory/classes/heap/unused:bytes",
        parts: &["/memory/classes/heap/objects:bytes", "/memory/classes/heap/unused:bytes"],
    },
    MemStat {
        name: "go_memstats_heap_released_bytes",
        help: "Number of heap bytes released to OS. Equals to /memory/classes/heap/released:bytes.",
        parts: &["/memory/classes/heap/released:bytes"],
    },
    MemStat {
        name: "go_memstats_heap_objects",
        help: "Number of currently allocated objects. Equals to /gc/heap/objects:objects.",
        parts: &["/gc/heap/objects:objects"],
    },
    MemStat {
        name: "go_memstats_stack_inuse_bytes",
        help: "Number of bytes obtained from system for stack allocator in non-CGO environments. Equals to \
               /memory/classes/heap/stacks:bytes.",
        parts: &["/memory/classes/heap/stacks:bytes"],
    },
    MemStat {
        name: "go_memstats_stack_sys_bytes",
        help: "Number of bytes obtained from system for stack allocator. Equals to \
               /memory/classes/heap/stacks:bytes + /memory/classes/os-stacks:bytes.",
        parts: &["/memory/classes/heap/stacks:bytes", "/memory/classes/os-stacks:bytes"],
    },
    MemStat {
        name: "go_memstats_mspan_inuse_bytes",
        help: "Number of bytes in use by mspan structures. Equals to \
               /memory/classes/metadata/mspan/inuse:bytes.",
        parts: &["/memory/classes/metadata/mspan/inuse:bytes"],
    },
    MemStat {
        name: "go_memstats_mspan_sys_bytes",
        help: "Number of bytes used for mspan structures obtained from system. Equals to \
               /memory/classes/metadata/mspan/inuse:bytes + /memory/classes/metadata/mspan/free:bytes.",
        parts: &["/memory/classes/metadata/mspan/inuse:bytes", "/memory/classes/metadata/mspan/free:bytes"],
    },
    MemStat {
        name: "go_memstats_mcache_inuse_bytes",
        help: "Number of bytes in use by mcache structures. Equals to \
               /memory/classes/metadata/mcache/inuse:bytes.",
        parts: &["/memory/classes/metadata/mcache/inuse:bytes"],
    },
    MemStat {
        name: "go_memstats_mcache_sys_bytes",
        help: "Number of bytes used for mcache structures obtained from system. Equals to \
               /memory/classes/metadata/mcache/inuse:bytes + /memory/classes/metadata/mcache/free:bytes.",
        parts: &["/memory/classes/metadata/mcache/inuse:bytes", "/memory/classes/metadata/mcache/free:bytes"],
    },
    MemStat {
        name: "go_memstats_buck_hash_sys_bytes",
        help: "Number of bytes used by the profiling bucket hash table. Equals to \
               /memory/classes/profiling/buckets:bytes.",
        parts: &["/memory/classes/profiling/buckets:bytes"],
    },
    MemStat {
        name: "go_memstats_gc_sys_bytes",
        help: "Number of bytes used for garbage collection system metadata. Equals to \
               /memory/classes/metadata/other:bytes.",
        parts: &["/memory/classes/metadata/other:bytes"],
    },
    MemStat {
        name: "go_memstats_other_sys_bytes",
        help: "Number of bytes used for other system allocations. Equals to /memory/classes/other:bytes.",
        parts: &["/memory/classes/other:bytes"],
    },
    MemStat {
        name: "go_memstats_next_gc_bytes",
        help: "Number of heap bytes when next garbage collection will take place. Equals to \
               /gc/heap/goal:bytes.",
        parts: &["/gc/heap/goal:bytes"],
    },
];

/// Builds the families of a process that Go release `version` built.
#[must_use]
pub fn go(readings: &Readings, version: &str, detail: Detail) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    FamilyBuilder::gauge("go_info", "Information about the Go environment.")
        .with(&[("version", version)], 1.0)
        .finish(&mut families);
    let goroutines = ("go_goroutines", "Number of goroutines that currently exist.", readings.goroutines);
    let threads = ("go_threads", "Number of OS threads created.", readings.threads);
    for (name, help, value) in [goroutines, threads] {
        if let Some(value) = value {
            FamilyBuilder::gauge(name, help).with(&[], float(value)).finish(&mut families);
        }
    }
    if let Some(cycles) = &readings.gc {
        collections(cycles, &mut families);
    }
    for stat in MEM_STATS {
        let parts: Option<Vec<u64>> = stat.parts.iter().map(|part| readings.unsigned(part)).collect();
        if let Some(parts) = parts {
            let value = float(parts.into_iter().fold(0, u64::wrapping_add));
            let cumulative = stat.name.ends_with("_total");
            let family = if cumulative { FamilyBuilder::counter } else { FamilyBuilder::gauge };
            family(stat.name, stat.help).with(&[], value).finish(&mut families);
        }
    }
    let shown =
        |description: &&Description| detail == Detail::All || BY_DEFAULT.contains(&description.name.as_str());
    for description in DESCRIPTIONS.iter().filter(shown) {
        if let Some(value) = readings.metrics.get(description.name.as_str()) {
            described(description, value, readings).finish(&mut families);
        }
    }
    families
}

/// Adds a summary of the last pauses of the garbage collector.
fn collections(cycles: &GcCycles, families: &mut Vec<MetricFamily>) {
    const QUARTERS: [(usize, f64); 5] = [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)];
    let mut pauses = cycles.pauses_ns.clone();
    pauses.sort_unstable();
    // The same choice as in debug.ReadGCStats: runtime/debug/garbage.go.
    let place = |quarter: usize| (pauses.len() * quarter / 4).min(pauses.len().saturating_sub(1));
    let pause = |quarter| pauses.get(place(quarter)).copied().unwrap_or_default();
    let mut summary = FamilyBuilder::summary(
        "go_gc_duration_seconds",
        "A summary of the wall-time pause (stop-the-world) duration in garbage collection cycles.",
    );
    let quantiles = QUARTERS.iter().map(|&(quarter, rank)| (rank, seconds(pause(quarter))));
    summary.push_summary(&[], quantiles, cycles.count, seconds(cycles.pause_total_ns));
    summary.finish(families);
    FamilyBuilder::gauge(
        "go_memstats_last_gc_time_seconds",
        "Number of seconds since 1970 of last garbage collection.",
    )
    .with(&[], float(cycles.last_unix_ns) / 1e9)
    .finish(families);
}

/// Converts nanoseconds to seconds as Go's `Duration.Seconds` does.
fn seconds(nanos: u64) -> f64 {
    const SECOND: u64 = 1_000_000_000;
    float(nanos / SECOND) + float(nanos % SECOND) / 1e9
}

fn described(description: &Description, value: &Value, readings: &Readings) -> FamilyBuilder {
    let name = name(description, value);
    let help = format!("{} Sourced from {}.", description.text, description.name);
    let number = |now: f64| {
        if !description.cumulative {
            return FamilyBuilder::gauge(&name, &help).with(&[], now);
        }
        // The collector keeps its own counters, which begin at 0 and never fall, even if the runtime's do.
        let highest = readings.highest.get(description.name.as_str()).copied().unwrap_or_default();
        FamilyBuilder::counter(&name, &help).with(&[], now.max(highest))
    };
    match value {
        Value::Unsigned(value) => number(float(*value)),
        Value::Float(value) => number(*value),
        Value::Histogram(histogram) => {
            let exact = match description.name.as_str() {
                "/gc/heap/allocs-by-size:bytes" => readings.unsigned("/gc/heap/allocs:bytes"),
                "/gc/heap/frees-by-size:bytes" => readings.unsigned("/gc/heap/frees:bytes"),
                _ => None,
            };
            let mut family = FamilyBuilder::histogram(&name, &help);
            push(&mut family, histogram, &description.name, exact.map(float));
            family
        }
    }
}

/// Returns the Prometheus name: `/a/b-c:unit` becomes `go_a_b_c_unit`, with `_total` if it is a number that only rises.
fn name(description: &Description, value: &Value) -> String {
    let plain = description.name.replace(['/', '-', ':', '*'], "_");
    let total = description.cumulative && !matches!(value, Value::Histogram(_));
    format!("go{plain}{}", if total { "_total" } else { "" })
}

/// Adds a histogram with fewer buckets. If the exact sum is unknown, it is the sum of lower bounds.
fn push(family: &mut FamilyBuilder, histogram: &Histogram, name: &str, exact: Option<f64>) {
    let fewer = if name.ends_with(":seconds") {
        up_to_a_second(multiples(&histogram.bounds, 10.0))
    } else {
        multiples(&histogram.bounds, 2.0)
    };
    let counts = merged(histogram, &fewer);
    let total = counts.iter().copied().fold(0, u64::wrapping_add);
    let sum = exact.unwrap_or_else(|| {
        let weights = fewer.iter().zip(&counts).filter(|(_, count)| **count != 0);
        weights.map(|(bound, count)| bound * float(*count)).sum()
    });
    // Upper bounds are exclusive in Go and inclusive in Prometheus.
    let upper = fewer.iter().skip(1).take_while(|bound| bound.is_finite()).map(|bound| bound.next_down());
    family.push_buckets(&[], upper.zip(counts.iter().copied()), total, sum);
}

/// Keeps the bounds that are at least `factor` times the last kept one. Minus infinity is left out: values below the
/// first bound are in the first bucket.
fn multiples(bounds: &[f64], factor: f64) -> Vec<f64> {
    let mut bounds = bounds.iter().copied().skip_while(|bound| *bound == f64::NEG_INFINITY);
    let mut kept: Vec<f64> = bounds.next().into_iter().collect();
    for bound in bounds {
        if kept.last().is_none_or(|last| bound >= last * factor) {
            kept.push(bound);
        }
    }
    kept
}

fn up_to_a_second(mut bounds: Vec<f64>) -> Vec<f64> {
    if let Some(place) = bounds.iter().position(|bound| *bound > 1.0) {
        bounds.truncate(place);
        bounds.push(f64::INFINITY);
    }
    bounds
}

/// Merges the counts of a histogram into fewer buckets.
fn merged(histogram: &Histogram, fewer: &[f64]) -> Vec<u64> {
    let mut counts = vec![0_u64; fewer.len().saturating_sub(1)];
    let mut place = 0;
    for (count, upper) in histogram.counts.iter().zip(histogram.bounds.iter().skip(1)) {
        if let Some(sum) = counts.get_mut(place) {
            *sum = sum.wrapping_add(*count);
        }
        if fewer.get(place + 1) == Some(upper) {
            place += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantiles(pauses_ns: Vec<u64>) -> Vec<f64> {
        let mut families = Vec::new();
        collections(&GcCycles { pauses_ns, ..GcCycles::default() }, &mut families);
        let metric = families[0].get_metric()[0].get_summary().get_quantile().to_vec();
        metric.iter().map(prometheus::proto::Quantile::value).collect()
    }

    #[test]
    fn quantiles_are_those_of_read_gc_stats() {
        // The results of debug.ReadGCStats for these pauses.
        assert_eq!(quantiles(vec![]), [0.0; 5]);
        assert_eq!(quantiles(vec![1000]), [1e-6; 5]);
        assert_eq!(quantiles(vec![2000, 1000]), [1e-6, 1e-6, 2e-6, 2e-6, 2e-6]);
        assert_eq!(quantiles((1..=10).map(|pause| pause * 1000).collect()), [1e-6, 3e-6, 6e-6, 8e-6, 1e-5]);
    }

    #[test]
    fn what_is_below_the_first_bound_is_in_the_first_bucket() {
        let histogram = Histogram {
            counts: vec![1, 2, 4, 8, 16],
            bounds: vec![f64::NEG_INFINITY, 0.0, 1e-3, 1e-2, 2.0, f64::INFINITY],
        };
        let fewer = up_to_a_second(multiples(&histogram.bounds, 10.0));
        assert_eq!(fewer, [0.0, 1e-3, 1e-2, f64::INFINITY]);
        assert_eq!(merged(&histogram, &fewer), [3, 4, 24]);
    }

    #[test]
    fn counters_stay_where_they_were_highest() {
        const USER: &str = "/cpu/classes/user:cpu-seconds";
        const BYTES: &str = "/gc/heap/allocs:bytes";
        const GOAL: &str = "/gc/heap/goal:bytes";
        let values =
            [(USER, Value::Float(-1.5)), (BYTES, Value::Unsigned(100)), (GOAL, Value::Unsigned(100))];
        let mut readings = Readings { metrics: values.into(), ..Readings::default() };
        let shown = |readings: &Readings, wanted: &str| {
            let families = go(readings, "go1.27.3", Detail::All);
            let metric = families.iter().find(|family| family.name() == wanted)?.get_metric()[0].clone();
            // A metric that is not a gauge has a gauge value of 0, and likewise for counters.
            Some(metric.get_counter().get_value() + metric.get_gauge().get_value())
        };
        assert_eq!(shown(&readings, "go_cpu_classes_user_cpu_seconds_total"), Some(0.0));
        readings.highest = [(USER, 2.5), (BYTES, 200.0), (GOAL, 200.0)].into();
        assert_eq!(shown(&readings, "go_cpu_classes_user_cpu_seconds_total"), Some(2.5));
        assert_eq!(shown(&readings, "go_gc_heap_allocs_bytes_total"), Some(200.0));
        assert_eq!(shown(&readings, "go_gc_heap_goal_bytes"), Some(100.0), "a gauge");
        assert_eq!(shown(&readings, "go_memstats_alloc_bytes_total"), Some(100.0), "no guard there either");
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let families = go(&Readings::default(), "go1.26.8", Detail::All);
        assert_eq!(families.iter().map(MetricFamily::name).collect::<Vec<_>>(), ["go_info"]);
    }
}
