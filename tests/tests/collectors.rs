//! Compares the agent's metrics of a Go runtime with those of collectors in the process: `client_golang`'s own handler,
//! series by series, and OpenTelemetry's instrumentation.
//!
//! A table in `docs/metrics.md` lists how far each metric may be off. Every metric is in one of its rows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use monitor_tests::{
    agent::Agent,
    process::Process,
    scrape::{Family, Kind, Sample, Scrape},
    side_by_side,
    targets::{Flavour, OLDEST_GO, Program, go_releases},
};
use serde_json::Value as Json;

/// Metrics that the agent does not serve, for reasons in `docs/metrics.md`. `client_golang` has the first two before
/// v1.20, always with the value 0.
const NOT_SERVED: [&str; 7] = [
    "go_memstats_lookups_total",
    "go_memstats_gc_cpu_fraction",
    "go_sched_goroutines_not_in_go_goroutines",
    "go_sched_goroutines_runnable_goroutines",
    "go_sched_goroutines_running_goroutines",
    "go_sched_goroutines_waiting_goroutines",
    "go_sched_threads_total_threads",
];
/// Metrics that can only be found by a symbol table.
const NAMED_ONLY: [&str; 7] = [
    "go_cgo_go_to_c_calls_calls_total",
    "go_gc_cleanups_executed_cleanups_total",
    "go_gc_cleanups_queued_cleanups_total",
    "go_gc_finalizers_executed_finalizers_total",
    "go_gc_finalizers_queued_finalizers_total",
    "go_gc_limiter_last_enabled_gc_cycle",
    "go_gc_stack_starting_size_bytes",
];
/// Metrics that the agent also serves for older releases, which do not have them.
const SERVED_BEFORE: [&str; 9] = [
    "go_cgo_go_to_c_calls_calls_total",
    "go_gc_cleanups_executed_cleanups_total",
    "go_gc_cleanups_queued_cleanups_total",
    "go_gc_finalizers_executed_finalizers_total",
    "go_gc_finalizers_queued_finalizers_total",
    "go_gc_gogc_percent",
    "go_gc_gomemlimit_bytes",
    "go_gc_heap_live_bytes",
    "go_sched_gomaxprocs_threads",
];

/// How far metrics may be off, by their names in `docs/metrics.md`. A name that ends in `*` is a prefix.
struct Slacks(Vec<(String, f64)>);

impl Slacks {
    fn read() -> Result<Self> {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docs/metrics.md");
        let text = fs::read_to_string(page)?;
        let (_, table) = text.split_once("### Beside the process's own collectors").context("no table")?;
        let rows = table.lines().skip_while(|line| !line.starts_with("|---"));
        let mut slacks = Vec::new();
        for row in rows.skip(1).take_while(|line| line.starts_with('|')) {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let ["", names, slack, ..] = cells[..] else { bail!("{row}") };
            let slack = match slack.split_whitespace().collect::<Vec<_>>()[..] {
                ["equal"] => 0.0,
                [number, "KiB"] => number.parse::<f64>()? * 1024.0,
                [number, _] => number.parse()?,
                _ => bail!("{row}"),
            };
            slacks.extend(names.split('`').skip(1).step_by(2).map(|name| (name.to_owned(), slack)));
        }
        Ok(Self(slacks))
    }

    fn of(&self, metric: &str) -> Result<f64> {
        let is_it = |name: &str| match name.strip_suffix('*') {
            Some(start) => metric.starts_with(start),
            None => metric == name,
        };
        // The longest matching name is the most specific.
        let found = self.0.iter().filter(|(name, _)| is_it(name)).max_by_key(|(name, _)| name.len());
        found.map(|(_, slack)| *slack).with_context(|| format!("no row has {metric}"))
    }
}

struct Watched {
    process: Process,
    agent: Agent,
    slacks: Slacks,
    release: &'static str,
    stripped: bool,
}

impl Watched {
    fn start(release: &'static str, flavour: Flavour) -> Result<Self> {
        let executable = Program::Collectors.build_with(release, flavour)?;
        let mut command = Command::new(executable);
        // Enables both generations of OpenTelemetry's names.
        let process = Process::start_command(command.env("OTEL_GO_X_DEPRECATED_RUNTIME_METRICS", "true"))?;
        let agent = Agent::attach(&[process.pid()], &["--metrics", "go", "--go.metrics", "all"])?;
        Ok(Self { process, agent, slacks: Slacks::read()?, release, stripped: flavour == Flavour::Stripped })
    }

    /// How much looser to compare. When Go 1.18 takes a span, it counts all of its objects, and later subtracts those
    /// that were not allocated.
    fn looseness(&self) -> f64 {
        if self.release == OLDEST_GO { 20.0 } else { 1.0 }
    }

    /// Waits until no metric changes.
    fn settle(&mut self) -> Result<()> {
        let rest = |scrape: &Scrape| -> BTreeMap<String, Family> {
            let moves = ["go_memory_classes_", "go_goroutines", "go_gc_duration_seconds"];
            let families = scrape.families.clone().into_iter();
            families.filter(|(name, _)| moves.iter().any(|start| name.starts_with(start))).collect()
        };
        let begin = Instant::now();
        let mut before = rest(&self.agent.scrape()?);
        while begin.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(50));
            let now = rest(&self.agent.scrape()?);
            if now == before {
                return Ok(());
            }
            before = now;
        }
        bail!("the target does not come to rest")
    }

    /// Returns the process's answer to a command, and the agent's scrapes before and after it. No garbage collection
    /// happens in between, although answering allocates.
    fn between_scrapes(&mut self, command: &str) -> Result<(Scrape, Json, Scrape)> {
        for _ in 0..5 {
            self.settle()?;
            let before = self.agent.scrape()?;
            let theirs = self.process.command(command)?;
            let after = self.agent.scrape()?;
            let collections = |scrape: &Scrape| scrape.value("go_gc_cycles_total_gc_cycles_total", &[]);
            if collections(&before) == collections(&after) {
                return Ok((before, theirs, after));
            }
        }
        bail!("each answer causes a collection")
    }

    fn compare(&mut self, of: &str) -> Result<()> {
        let (before, theirs, after) = self.between_scrapes(of)?;
        let theirs = Scrape::parse(theirs["text"].as_str().context("no text")?)?;
        let mut wrong = Vec::new();
        let go = theirs.families.iter().filter(|(name, _)| name.starts_with("go_"));
        for (name, family) in go.filter(|(name, _)| !name.starts_with("go_godebug_")) {
            let left_out = NOT_SERVED.contains(&&**name) || self.stripped && NAMED_ONLY.contains(&&**name);
            match (before.families.get(name), after.families.get(name)) {
                (Some(before), Some(after)) => {
                    wrong.extend(differences(
                        family,
                        before,
                        after,
                        self.slacks.of(name)? * self.looseness(),
                    ));
                }
                (None, None) if left_out => {}
                _ => wrong.push(format!("{name} is not served")),
            }
        }
        if of == "all" {
            let more = before.families.keys().filter(|name| name.starts_with("go_"));
            let more = more.filter(|name| !theirs.families.contains_key(*name));
            let more = more.filter(|name| !SERVED_BEFORE.contains(&&***name));
            wrong.extend(more.map(|name| format!("{name} is served, and the process does not have it")));
        }
        ensure!(wrong.is_empty(), "{of}: before, in the process, after:\n{}", wrong.join("\n"));
        Ok(())
    }

    /// Compares OpenTelemetry's metrics, which follow from those that the agent serves.
    fn compare_opentelemetry(&mut self) -> Result<()> {
        let (before, theirs, after) = self.between_scrapes("otel")?;
        let mut wrong = Vec::new();
        let mut seen = 0;
        for (key, theirs) in theirs["numbers"].as_object().context("no numbers")? {
            let theirs = theirs.as_f64().context("no number")?;
            let Some((parts, mut slack)) = sources(key) else {
                ensure!(["runtime.uptime", "process.runtime.go.mem.lookups"].contains(&&**key), "{key}");
                continue;
            };
            slack *= self.looseness();
            if self.stripped && parts.iter().any(|(_, name)| NAMED_ONLY.contains(name)) {
                continue;
            }
            let of = |scrape: &Scrape| -> Result<f64> {
                parts.iter().try_fold(0.0, |sum, (sign, name)| {
                    let samples = scrape.families.values().flat_map(|family| &family.samples);
                    let mut found = samples.filter(|sample| sample.name == *name && sample.labels.is_empty());
                    let found = found.next().with_context(|| format!("{key}: no {name}"))?;
                    Ok(sum + sign * found.value)
                })
            };
            let (before, after) = (of(&before)?, of(&after)?);
            if theirs < before.min(after) - slack || theirs > before.max(after) + slack {
                wrong.push(format!("{key}: {before}, {theirs}, {after}"));
            }
            seen += 1;
        }
        ensure!(
            wrong.is_empty() && seen >= 9,
            "{seen}; before, in the process, after:\n{}",
            wrong.join("\n")
        );
        Ok(())
    }
}

/// Lists where a family of the process is not between two scrapes of the agent.
fn differences(theirs: &Family, before: &Family, after: &Family, slack: f64) -> Vec<String> {
    if theirs.kind != before.kind {
        return vec![format!("{:?} instead of {:?}", before.kind, theirs.kind)];
    }
    let series = |family: &Family| -> BTreeSet<String> { family.samples.iter().map(key).collect() };
    let mut wrong = Vec::new();
    if series(theirs) != series(before) {
        wrong.push(format!("{:?} instead of {:?}", series(before), series(theirs)));
    }
    let value =
        |family: &Family, wanted: &str| family.samples.iter().find(|s| key(s) == wanted).map(|s| s.value);
    for sample in &theirs.samples {
        let key = key(sample);
        let (Some(before), Some(after)) = (value(before, &key), value(after, &key)) else { continue };
        // The sum of a histogram is in bytes, everything else in it is a count.
        let slack =
            if theirs.kind == Kind::Histogram && key.contains("_sum") { slack * 512.0 } else { slack };
        // On both sides, seconds are sums of floats.
        let slack = slack + before.abs() * 1e-12;
        if sample.value < before.min(after) - slack || sample.value > before.max(after) + slack {
            wrong.push(format!("{key}: {before}, {}, {after}", sample.value));
        }
    }
    wrong
}

fn key(sample: &Sample) -> String {
    format!("{}{:?}", sample.name, sample.labels)
}

/// The metrics of which an OpenTelemetry metric is the weighted sum, and how far it may be off.
fn sources(key: &str) -> Option<(&'static [(f64, &'static str)], f64)> {
    const BYTES: f64 = 96.0 * 1024.0;
    const OBJECTS: f64 = 600.0;
    let found: (&[(f64, &str)], f64) = match key {
        "process.runtime.go.goroutines" => (&[(1.0, "go_goroutines")], 0.0),
        "process.runtime.go.cgo.calls" => (&[(1.0, "go_cgo_go_to_c_calls_calls_total")], 0.0),
        "process.runtime.go.gc.count" | "process.runtime.go.gc.pause_ns" => {
            (&[(1.0, "go_gc_duration_seconds_count")], 0.0)
        }
        "process.runtime.go.gc.pause_total_ns" => (&[(1e9, "go_gc_duration_seconds_sum")], 0.5),
        "process.runtime.go.mem.heap_alloc" => (&[(1.0, "go_memstats_heap_alloc_bytes")], BYTES),
        "process.runtime.go.mem.heap_idle" => (&[(1.0, "go_memstats_heap_idle_bytes")], BYTES),
        "process.runtime.go.mem.heap_inuse" => (&[(1.0, "go_memstats_heap_inuse_bytes")], BYTES),
        "process.runtime.go.mem.heap_released" => (&[(1.0, "go_memstats_heap_released_bytes")], BYTES),
        "process.runtime.go.mem.heap_sys" => (&[(1.0, "go_memstats_heap_sys_bytes")], BYTES),
        "process.runtime.go.mem.heap_objects" | "process.runtime.go.mem.live_objects" => {
            (&[(1.0, "go_memstats_heap_objects")], OBJECTS)
        }
        "go.memory.used stack" => (&[(1.0, "go_memory_classes_heap_stacks_bytes")], BYTES),
        "go.memory.used other" => (
            &[
                (1.0, "go_memory_classes_total_bytes"),
                (-1.0, "go_memory_classes_heap_released_bytes"),
                (-1.0, "go_memory_classes_heap_stacks_bytes"),
            ],
            BYTES,
        ),
        "go.memory.limit" => (&[(1.0, "go_gc_gomemlimit_bytes")], 0.0),
        "go.memory.allocated" => (&[(1.0, "go_gc_heap_allocs_bytes_total")], BYTES),
        "go.memory.allocations" => (&[(1.0, "go_gc_heap_allocs_objects_total")], OBJECTS),
        "go.memory.gc.goal" => (&[(1.0, "go_gc_heap_goal_bytes")], 0.0),
        "go.goroutine.count" => (&[(1.0, "go_sched_goroutines_goroutines")], 0.0),
        "go.processor.limit" => (&[(1.0, "go_sched_gomaxprocs_threads")], 0.0),
        "go.config.gogc" => (&[(1.0, "go_gc_gogc_percent")], 0.0),
        "go.schedule.duration" => (&[(1.0, "go_sched_latencies_seconds_count")], 0.0),
        _ => return None,
    };
    Some(found)
}

/// Takes a target through everything that changes its metrics, and compares after each step.
fn life(release: &'static str, flavour: Flavour) -> Result<()> {
    let mut watched = Watched::start(release, flavour)?;
    // Causes first-time allocations.
    for _ in 0..2 {
        for of in ["default", "all", "otel"] {
            watched.process.command(of)?;
        }
    }
    for command in
        ["allocate 20000", "goroutines 500", "gc 3", "goroutines 10", "procs 3", "free", "gogc 200"]
    {
        watched.process.command(command)?;
        for of in ["all", "default"] {
            watched.compare(of).with_context(|| format!("after `{command}`"))?;
        }
        watched.compare_opentelemetry().with_context(|| format!("after `{command}`"))?;
    }
    watched.agent.terminate()?;
    ensure!(watched.process.quit()?.success());
    Ok(())
}

#[test]
fn series_are_those_of_the_collectors_inside() -> Result<()> {
    let mut wrong = Vec::new();
    for release in go_releases() {
        // Most of the time, they wait until a target is at rest.
        let outcome = side_by_side([Flavour::Default, Flavour::Stripped], |flavour| {
            life(release, flavour).with_context(|| format!("{release}, {flavour:?}"))
        });
        wrong.extend(outcome.err().map(|error| format!("{error:#}")));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}
