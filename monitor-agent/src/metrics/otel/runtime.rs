//! The metrics of the Go runtime.

use std::str::FromStr;

use thiserror::Error;

use super::{AttributeValue, Attributes, Data, Distribution, Metric, Scope};
use crate::goruntime::{GcCycles, Readings};

/// The names of the runtime's metrics that are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GoNames {
    /// The names in the library up to v0.61.
    pub old: bool,
    /// The names in the library since then.
    pub new: bool,
}

/// The error for an invalid choice of names.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{0}` is not a choice of names: old, new or both")]
pub struct GoNamesError(String);

impl FromStr for GoNames {
    type Err = GoNamesError;

    fn from_str(text: &str) -> Result<Self, GoNamesError> {
        match text {
            "old" => Ok(Self { old: true, new: false }),
            "new" => Ok(Self { old: false, new: true }),
            "both" => Ok(Self { old: true, new: true }),
            _ => Err(GoNamesError(text.to_owned())),
        }
    }
}

impl GoNames {
    /// Reads the value of `OTEL_GO_X_DEPRECATED_RUNTIME_METRICS` as the library does (`internal/x/x.go` @ v0.72.0): if
    /// it is true, the old names are used as well.
    #[must_use]
    pub fn of_variable(value: &str) -> Self {
        Self { old: matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"), new: true }
    }
}

/// The state of a Go runtime.
#[derive(Clone, Copy, Debug)]
pub struct Runtime<'a> {
    /// The runtime's own statistics.
    pub readings: &'a Readings,
    /// The pauses of its garbage collector since the agent's first look.
    pub pauses: &'a Pauses,
    /// The age of the process, in milliseconds.
    pub uptime_ms: Option<u64>,
    /// The start of the process, in nanoseconds since 1970; the runtime counts from then on.
    pub since_ns: u64,
}

/// The pauses of a garbage collector since the first look, as far as they were seen: the runtime keeps the last 256.
#[derive(Clone, Debug)]
pub struct Pauses {
    distribution: Distribution,
    /// When the collections were first read, in nanoseconds since 1970.
    since_ns: Option<u64>,
    /// The number of collections at the last reading.
    collections: u64,
}

/// The default bounds of the SDK's histograms, whatever the unit.
const BOUNDS: [f64; 15] =
    [0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1000.0, 2500.0, 5000.0, 7500.0, 10000.0];

impl Default for Pauses {
    fn default() -> Self {
        let distribution =
            Distribution { bounds: BOUNDS.to_vec(), counts: vec![0; BOUNDS.len() + 1], sum: 0.0 };
        Self { distribution, since_ns: None, collections: 0 }
    }
}

impl Pauses {
    /// Adds the pauses of the collections since the last reading. The first reading adds none: a previous agent may
    /// have reported the pauses that the runtime still has.
    pub fn add_new(&mut self, cycles: &GcCycles, now_ns: u64) {
        let new = cycles.count.saturating_sub(self.collections);
        let new = usize::try_from(new).unwrap_or(usize::MAX).min(cycles.pauses_ns.len());
        self.collections = self.collections.max(cycles.count);
        if self.since_ns.is_none() {
            self.since_ns = Some(now_ns);
            return;
        }
        let (_, new) = cycles.pauses_ns.split_at(cycles.pauses_ns.len() - new);
        for pause in new {
            let pause = float(*pause);
            let place = BOUNDS.partition_point(|bound| *bound < pause);
            if let Some(count) = self.distribution.counts.get_mut(place) {
                *count += 1;
            }
            self.distribution.sum += pause;
        }
    }
}

/// Builds the two scopes of a runtime's metrics, both of one library: the values that the runtime counts itself, and
/// those counted from outside. A value that could not be read is absent.
pub(super) fn scopes(runtime: &Runtime<'_>, names: GoNames) -> [Scope; 2] {
    let scope = |since_ns, by_target, metrics| Scope {
        name: "go.opentelemetry.io/contrib/instrumentation/runtime",
        version: "0.72.0",
        since_ns,
        by_target,
        metrics,
    };
    let (mut counted, mut seen) = (Vec::new(), Vec::new());
    if names.old {
        counted.extend(old(runtime));
        seen.extend(old_pauses(runtime));
    }
    if names.new {
        counted.extend(new(runtime.readings));
    }
    let seen_since_ns = runtime.pauses.since_ns.unwrap_or(runtime.since_ns);
    [scope(runtime.since_ns, true, counted), scope(seen_since_ns, false, seen)]
}

/// For monotonic sums, which only rise.
const RISES: bool = true;
const VARIES: bool = false;

fn sum(
    name: &'static str,
    description: &'static str,
    unit: &'static str,
    monotonic: bool,
    value: Option<u64>,
) -> Option<Metric> {
    let points = vec![(Attributes::new(), clamped(value?))];
    Some(Metric { name, description, unit, data: Data::Sum { monotonic, points } })
}

/// Builds `process.runtime.go.*` (`internal/deprecatedruntime/runtime.go` @ v0.72.0).
fn old(runtime: &Runtime<'_>) -> impl Iterator<Item = Metric> {
    let Runtime { readings, uptime_ms, .. } = runtime;
    let first = [
        sum("runtime.uptime", "Milliseconds since application was initialized", "ms", RISES, *uptime_ms),
        sum(
            "process.runtime.go.goroutines",
            "Number of goroutines that currently exist",
            "",
            VARIES,
            readings.goroutines,
        ),
        sum(
            "process.runtime.go.cgo.calls",
            "Number of cgo calls made by the current process",
            "",
            VARIES,
            readings.unsigned("/cgo/go-to-c-calls:calls"),
        ),
    ];
    first.into_iter().chain(old_memory(readings)).chain(old_collections(readings)).flatten()
}

fn old_memory(readings: &Readings) -> [Option<Metric>; 8] {
    let of = |name| readings.unsigned(name);
    let (objects, unused, free, released) = (
        of("/memory/classes/heap/objects:bytes"),
        of("/memory/classes/heap/unused:bytes"),
        of("/memory/classes/heap/free:bytes"),
        of("/memory/classes/heap/released:bytes"),
    );
    let (idle, in_use) = (added(free, released), added(objects, unused));
    let live = of("/gc/heap/objects:objects");
    [
        sum("process.runtime.go.mem.heap_alloc", "Bytes of allocated heap objects", "By", VARIES, objects),
        sum("process.runtime.go.mem.heap_idle", "Bytes in idle (unused) spans", "By", VARIES, idle),
        sum("process.runtime.go.mem.heap_inuse", "Bytes in in-use spans", "By", VARIES, in_use),
        sum("process.runtime.go.mem.heap_objects", "Number of allocated heap objects", "", VARIES, live),
        sum(
            "process.runtime.go.mem.heap_released",
            "Bytes of idle spans whose physical memory has been returned to the OS",
            "By",
            VARIES,
            released,
        ),
        sum(
            "process.runtime.go.mem.heap_sys",
            "Bytes of heap memory obtained from the OS",
            "By",
            VARIES,
            added(idle, in_use),
        ),
        // Go has not counted these for a long time: always zero.
        sum(
            "process.runtime.go.mem.lookups",
            "Number of pointer lookups performed by the runtime",
            "",
            RISES,
            live.map(|_| 0),
        ),
        sum(
            "process.runtime.go.mem.live_objects",
            "Number of live objects is the number of cumulative Mallocs - Frees",
            "",
            VARIES,
            live,
        ),
    ]
}

fn old_collections(readings: &Readings) -> [Option<Metric>; 2] {
    let gc = readings.gc.as_ref();
    [
        sum(
            "process.runtime.go.gc.count",
            "Number of completed garbage collection cycles",
            "",
            RISES,
            gc.map(|gc| gc.count),
        ),
        sum(
            "process.runtime.go.gc.pause_total_ns",
            "Cumulative nanoseconds in GC stop-the-world pauses since the program started",
            "ns",
            RISES,
            gc.map(|gc| gc.pause_total_ns),
        ),
    ]
}

fn old_pauses(runtime: &Runtime<'_>) -> Option<Metric> {
    runtime.readings.gc.is_some().then(|| Metric {
        name: "process.runtime.go.gc.pause_ns",
        description: "Amount of nanoseconds in GC stop-the-world pauses",
        unit: "ns",
        data: Data::Histogram(vec![(Attributes::new(), runtime.pauses.distribution.clone())]),
    })
}

/// Builds `go.*` (`runtime.go` @ v0.72.0, with the descriptions of `semconv/v1.43.0/goconv` of OpenTelemetry for Go).
fn new(readings: &Readings) -> impl Iterator<Item = Metric> {
    new_memory(readings).into_iter().chain(new_rest(readings)).flatten()
}

fn new_memory(readings: &Readings) -> [Option<Metric>; 5] {
    let of = |name| readings.unsigned(name);
    // The maximum value means that there is no limit.
    let limit =
        of("/gc/gomemlimit:bytes").filter(|limit| i64::try_from(*limit).is_ok_and(|limit| limit < i64::MAX));
    [
        memory_used(readings),
        sum(
            "go.memory.limit",
            "Go runtime memory limit configured by the user, if a limit exists.",
            "By",
            VARIES,
            limit,
        ),
        sum(
            "go.memory.allocated",
            "Memory allocated to the heap by the application.",
            "By",
            RISES,
            of("/gc/heap/allocs:bytes"),
        ),
        sum(
            "go.memory.allocations",
            "Count of allocations to the heap by the application.",
            "{allocation}",
            RISES,
            of("/gc/heap/allocs:objects"),
        ),
        sum(
            "go.memory.gc.goal",
            "Heap size target for the end of the GC cycle.",
            "By",
            VARIES,
            of("/gc/heap/goal:bytes"),
        ),
    ]
}

fn memory_used(readings: &Readings) -> Option<Metric> {
    let stacks = readings.unsigned("/memory/classes/heap/stacks:bytes")?;
    let total = readings.unsigned("/memory/classes/total:bytes")?;
    let released = readings.unsigned("/memory/classes/heap/released:bytes")?;
    let kind =
        |kind: &str| Attributes::from([("go.memory.type".to_owned(), AttributeValue::Text(kind.to_owned()))]);
    let other = total.saturating_sub(released).saturating_sub(stacks);
    let points = vec![(kind("stack"), clamped(stacks)), (kind("other"), clamped(other))];
    Some(Metric {
        name: "go.memory.used",
        description: "Memory used by the Go runtime.",
        unit: "By",
        data: Data::Sum { monotonic: VARIES, points },
    })
}

fn new_rest(readings: &Readings) -> [Option<Metric>; 3] {
    let of = |name| readings.unsigned(name);
    [
        sum(
            "go.goroutine.count",
            "Count of live goroutines.",
            "{goroutine}",
            VARIES,
            of("/sched/goroutines:goroutines"),
        ),
        sum(
            "go.processor.limit",
            "The number of OS threads that can execute user-level Go code simultaneously.",
            "{thread}",
            VARIES,
            of("/sched/gomaxprocs:threads"),
        ),
        sum(
            "go.config.gogc",
            "Heap size target percentage configured by the user, otherwise 100.",
            "%",
            VARIES,
            of("/gc/gogc:percent"),
        ),
    ]
}

fn added(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    Some(one?.wrapping_add(other?))
}

/// Clamps a value to `i64::MAX`, as the library does.
fn clamped(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "a pause has less than 2^53 ns")]
fn float(pause: u64) -> f64 {
    pause as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cycles(count: u64, pauses_ns: &[u64]) -> GcCycles {
        GcCycles { count, pauses_ns: pauses_ns.to_vec(), ..GcCycles::default() }
    }

    #[test]
    fn each_pause_is_counted_once() {
        let mut pauses = Pauses::default();
        pauses.add_new(&cycles(0, &[]), 1);
        pauses.add_new(&cycles(2, &[7, 20_000]), 2);
        pauses.add_new(&cycles(2, &[7, 20_000]), 3);
        assert_eq!((pauses.distribution.count(), pauses.distribution.sum), (2, 20_007.0));
        pauses.add_new(&cycles(3, &[7, 20_000, 10]), 4);
        assert_eq!((pauses.distribution.counts[2], pauses.distribution.count()), (2, 3));
        // There were more collections than the runtime keeps: only the kept pauses are added.
        pauses.add_new(&cycles(900, &[1, 1]), 5);
        assert_eq!(pauses.distribution.count(), 5);
    }

    #[test]
    fn pauses_are_counted_from_the_first_reading_on_and_sums_by_the_runtime() {
        let mut pauses = Pauses::default();
        let mut scopes = |now_ns, count, pauses_ns: &[u64]| {
            let gc = cycles(count, pauses_ns);
            pauses.add_new(&gc, now_ns);
            let readings = Readings { gc: Some(gc), ..Readings::default() };
            let runtime = Runtime { readings: &readings, pauses: &pauses, uptime_ms: Some(5), since_ns: 10 };
            let [counted, seen] = scopes(&runtime, GoNames { old: true, new: true });
            assert_eq!((counted.since_ns, counted.by_target, counted.name), (10, true, seen.name));
            let names: Vec<_> = counted.metrics.iter().map(|metric| metric.name).collect();
            assert!(names.contains(&"process.runtime.go.gc.pause_total_ns"), "{names:?}");
            let Data::Histogram(points) = &seen.metrics[0].data else { panic!("{:?}", seen.metrics) };
            (seen.since_ns, seen.by_target, points[0].1.count())
        };
        assert_eq!(scopes(70, 2, &[7, 8]), (70, false, 0));
        assert_eq!(scopes(90, 5, &[7, 8, 9, 9, 9]), (70, false, 3));
    }
}
