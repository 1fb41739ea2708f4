//! Compares what the agent reads from a target's memory with what Go's runtime reports in the target.
//!
//! The tests use the oldest and the newest Go, and one of the others by the number of the commit. `cargo xtask gotable
//! --check` runs all of them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use monitor_agent::{
    goruntime::{Arch, Detail, Fault, Known, Layout, Reader, Readings, Value},
    image::Image,
    metrics,
    target::Target,
};
use monitor_tests::{
    agent::Agent,
    process::Process,
    side_by_side,
    targets::{Flavour, NEWEST_GO, OLDEST_GO, Program, go_releases},
};
use serde_json::Value as Json;

/// By how many bytes the memory of a target at rest may change between two readings.
const MOVES: f64 = 96.0 * 1024.0;
/// The same for objects.
const OBJECTS: f64 = 600.0;
/// By how many bytes the memory for span descriptors may then change.
const SPANS: f64 = 4.0 * 1024.0;
/// The unit in which the runtime allocates memory for span descriptors.
const CHUNK: f64 = 16.0 * 1024.0;

/// Metrics that the agent does not read, for reasons in `docs/metrics.md`.
const NOT_READ: [&str; 5] = [
    "/sched/goroutines/not-in-go:goroutines",
    "/sched/goroutines/runnable:goroutines",
    "/sched/goroutines/running:goroutines",
    "/sched/goroutines/waiting:goroutines",
    "/sched/threads/total:threads",
];
/// Metrics that the agent also reads for older releases, which do not have them.
const READ_BEFORE: [&str; 9] = [
    "/cgo/go-to-c-calls:calls",
    "/gc/cleanups/executed:cleanups",
    "/gc/cleanups/queued:cleanups",
    "/gc/finalizers/executed:finalizers",
    "/gc/finalizers/queued:finalizers",
    "/gc/gogc:percent",
    "/gc/gomemlimit:bytes",
    "/gc/heap/live:bytes",
    "/sched/gomaxprocs:threads",
];
/// Metrics that can only be found by a symbol table.
const NAMED_ONLY: [&str; 7] = [
    "/cgo/go-to-c-calls:calls",
    "/gc/cleanups/executed:cleanups",
    "/gc/cleanups/queued:cleanups",
    "/gc/finalizers/executed:finalizers",
    "/gc/finalizers/queued:finalizers",
    "/gc/limiter/last-enabled:gc-cycle",
    "/gc/stack/starting-size:bytes",
];

struct Runtime {
    process: Process,
    reader: Reader,
}

impl Runtime {
    fn start(executable: &Path) -> Result<Self> {
        Self::of(Process::start_command(&mut Command::new(executable))?, executable, None)
    }

    /// Prepares to read a process that runs `executable`, by the table of the release `minor` if given, else of the
    /// release that built it.
    fn of(process: Process, executable: &Path, minor: Option<u32>) -> Result<Self> {
        let image = Image::parse(Box::new(File::open(executable)?))?;
        let target = Target::open(process.pid())?;
        let bias = target.load_bias(image.link_base())?;
        let memory = target.memory()?;
        let known = Known::of(&image)?;
        let mut version = image.go()?.version();
        version.minor = minor.unwrap_or(version.minor);
        let layout = Layout::of(version, Arch::Amd64).context("no layout")?;
        let reader = Reader::new(Box::new(memory), known.sources, bias, layout, Detail::All);
        Ok(Self { process, reader })
    }

    fn read(&mut self) -> Result<Readings> {
        let (readings, faults) = self.reader.read();
        ensure!(faults.is_empty(), "{faults:?}");
        Ok(readings)
    }

    /// Waits until no metric changes. After a collection, the runtime sweeps and returns memory for a while.
    fn settle(&mut self) -> Result<()> {
        let rest = |readings: &Readings| {
            let classes = readings.metrics.iter().filter(|(name, _)| name.starts_with("/memory/classes/"));
            let classes: Vec<_> = classes.map(|(_, value)| value.clone()).collect();
            (classes, readings.gc.clone(), readings.goroutines)
        };
        let begin = Instant::now();
        let mut before = rest(&self.read()?);
        while begin.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(50));
            let now = rest(&self.read()?);
            if now == before {
                return Ok(());
            }
            before = now;
        }
        bail!("the target does not come to rest")
    }

    /// Compares the target's report with two readings, one before and one after it. Returns the report.
    fn compare(&mut self, stripped: bool) -> Result<Json> {
        self.settle()?;
        let before = self.read()?;
        let report = self.process.command("report")?;
        let after = self.read()?;
        let mut wrong = exact(&before, &after, &report)?;
        wrong.extend(numbers(&before, &after, &report, stripped)?);
        wrong.extend(histograms(&before, &after, &report)?);
        ensure!(wrong.is_empty(), "before, in the process, after:\n{}", wrong.join("\n"));
        Ok(report)
    }
}

/// Compares what does not change at rest. Only the number of threads may change, since the scheduler may start one at
/// any time.
fn exact(ours: &Readings, after: &Readings, report: &Json) -> Result<Vec<String>> {
    let gc = ours.gc.as_ref().context("no collections")?;
    // The program lists the newest pause first.
    let pauses: Vec<u64> =
        report["pauses_ns"].as_array().into_iter().flatten().rev().filter_map(Json::as_u64).collect();
    let mut wrong = Vec::new();
    if pauses != gc.pauses_ns {
        wrong.push(format!("pauses: {:?}, {pauses:?}", gc.pauses_ns));
    }
    for (name, ours) in [
        ("goroutines", ours.goroutines),
        ("gc", Some(gc.count)),
        ("pause_total_ns", Some(gc.pause_total_ns)),
        ("last_gc_ns", Some(gc.last_unix_ns)),
    ] {
        if ours.is_none() || ours != report[name].as_u64() {
            wrong.push(format!("{name}: {ours:?}, {}", report[name]));
        }
    }
    let (threads, theirs) = ((ours.threads, after.threads), report["threads"].as_u64());
    if threads.0.is_none() || theirs < threads.0 || theirs > threads.1 {
        wrong.push(format!("threads: {threads:?}, {theirs:?}"));
    }
    Ok(wrong)
}

/// By how much a metric may change between two readings.
fn slack(name: &str) -> f64 {
    match name {
        // Memory to be scanned is counted when it is allocated, by whole spans.
        "/gc/scan/heap:bytes" | "/gc/scan/total:bytes" => 2.0 * MOVES,
        "/memory/classes/metadata/mspan/inuse:bytes" => SPANS,
        "/memory/classes/metadata/mspan/free:bytes" => CHUNK,
        "/memory/classes/metadata/other:bytes" => MOVES,
        _ if name.starts_with("/memory/classes/heap/") => MOVES,
        _ if name.starts_with("/gc/heap/") && name.ends_with(":bytes") && !name.contains("goal") => MOVES,
        _ if name.starts_with("/gc/heap/") && name.ends_with(":objects") => OBJECTS,
        "/memory/classes/total:bytes" | "/memory/classes/other:bytes" => MOVES,
        _ => 0.0,
    }
}

fn float(value: &Value) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "compared as Prometheus would show them")]
    match value {
        Value::Unsigned(value) => Some(*value as f64),
        Value::Float(value) => Some(*value),
        Value::Histogram(_) => None,
    }
}

fn numbers(before: &Readings, after: &Readings, report: &Json, stripped: bool) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let told = ["unsigned", "floats"].iter().filter_map(|kind| report[*kind].as_object()).flatten();
    let told: BTreeMap<&str, f64> =
        told.filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?))).collect();
    ensure!(!told.is_empty(), "the target says nothing");
    for (name, theirs) in &told {
        let ours = |readings: &Readings| readings.metrics.get(name).and_then(float);
        match (ours(before), ours(after)) {
            (Some(before), Some(after)) => {
                let slack = slack(name);
                if *theirs < before.min(after) - slack || *theirs > before.max(after) + slack {
                    wrong.push(format!("{name}: {before}, {theirs}, {after}"));
                }
            }
            _ if NOT_READ.contains(name) || stripped && NAMED_ONLY.contains(name) => {}
            (before, after) => wrong.push(format!("{name}: {before:?}, {theirs}, {after:?}")),
        }
    }
    for (name, value) in &before.metrics {
        if float(value).is_some() && !told.contains_key(name) && !READ_BEFORE.contains(name) {
            wrong.push(format!("{name}: read, but the release has no such metric"));
        }
    }
    Ok(wrong)
}

fn histograms(before: &Readings, after: &Readings, report: &Json) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let told = report["histograms"].as_object().context("no histograms")?;
    for (name, theirs) in told {
        let of = |readings: &Readings| match readings.metrics.get(name.as_str()) {
            Some(Value::Histogram(histogram)) => Some(histogram.clone()),
            _ => None,
        };
        let (Some(before), Some(after)) = (of(before), of(after)) else {
            wrong.push(format!("{name}: not read"));
            continue;
        };
        let bounds: Vec<_> =
            theirs["buckets"].as_array().into_iter().flatten().filter_map(Json::as_f64).collect();
        let ours: Vec<_> = before.bounds.iter().map(|bound| bound.clamp(-f64::MAX, f64::MAX)).collect();
        if bounds != ours {
            wrong.push(format!("{name}: other bounds"));
        }
        let counts: Vec<_> =
            theirs["counts"].as_array().into_iter().flatten().filter_map(Json::as_u64).collect();
        // When a processor takes a span, Go 1.18 counts all of its objects. When the processor gives the span up, it
        // subtracts those that were not allocated. So the count may fall, but still lies between the two readings.
        let between = |at: usize, count: &u64| {
            let (one, other) = (before.counts[at], after.counts[at]);
            (one.min(other)..=one.max(other)).contains(count)
        };
        if counts.len() != before.counts.len()
            || !counts.iter().enumerate().all(|(at, count)| between(at, count))
        {
            wrong.push(format!("{name}: {:?}, {counts:?}, {:?}", before.counts, after.counts));
        }
    }
    for (name, value) in &before.metrics {
        if matches!(value, Value::Histogram(_)) && !told.contains_key(*name) {
            wrong.push(format!("{name}: read, but the release has no such metric"));
        }
    }
    Ok(wrong)
}

/// Takes a target through everything that changes its metrics, and compares after each step.
fn life(executable: &Path, stripped: bool) -> Result<()> {
    let mut runtime = Runtime::start(executable)?;
    // Causes first-time allocations.
    runtime.process.command("report")?;
    runtime.compare(stripped).context("at the start")?;
    let commands = [
        "allocate 20000",
        "goroutines 1000",
        "gc 3",
        "goroutines 10",
        "gogc 50",
        "procs 3",
        "free",
        "gc 300",
        "gogc -1",
    ];
    for command in commands {
        runtime.process.command(command)?;
        runtime.compare(stripped).with_context(|| format!("after `{command}`"))?;
    }
    ensure!(runtime.process.quit()?.success());
    let (readings, faults) = runtime.reader.read();
    ensure!(
        readings.metrics.is_empty() && readings.goroutines.is_none(),
        "read from a process that has ended"
    );
    ensure!(!faults.is_empty() && faults.iter().all(|fault| *fault == Fault::Unreadable), "{faults:?}");
    Ok(())
}

#[test]
fn values_are_those_of_the_runtime_itself() -> Result<()> {
    let mut wrong = Vec::new();
    for release in go_releases() {
        // Most of the time, they wait until a target is at rest.
        let flavours = [(Flavour::Default, false), (Flavour::StrippedPie, true)];
        let outcome = side_by_side(flavours, |(flavour, stripped)| {
            let executable = Program::Runtime.build_with(release, flavour)?;
            life(&executable, stripped).with_context(|| format!("{release}, {flavour:?}"))
        });
        wrong.extend(outcome.err().map(|error| format!("{error:#}")));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}

/// Keeps only the metrics that readings and report have in common. How many there are does not matter here.
fn common(readings: &mut [&mut Readings], report: &mut Json) {
    for kind in ["unsigned", "floats", "histograms"] {
        let Some(told) = report[kind].as_object_mut() else { continue };
        told.retain(|name, _| readings.iter().all(|readings| readings.metrics.contains_key(name.as_str())));
    }
    let told =
        |name: &str| ["unsigned", "floats", "histograms"].iter().any(|kind| !report[*kind][name].is_null());
    for readings in readings {
        readings.metrics.retain(|name, _| told(name));
    }
}

/// Whatever can be read by another release's table must be right.
#[test]
fn a_table_that_does_not_fit_gives_no_wrong_value() -> Result<()> {
    let mut wrong = Vec::new();
    for some in go_releases().chunks(2) {
        let outcome = side_by_side(some.iter().copied(), by_every_table);
        wrong.extend(outcome.err().map(|error| format!("{error:#}")));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Reads a program built by one release, by the tables of all releases.
fn by_every_table(release: &'static str) -> Result<()> {
    let executable = Program::Runtime.build_with(release, Flavour::Default)?;
    let mut wrong = Vec::new();
    let (mut fitting, mut others) = (0, 0);
    for minor in 18..=27 {
        let process = Process::start_command(&mut Command::new(&executable))?;
        let mut runtime = Runtime::of(process, &executable, Some(minor))?;
        for command in ["allocate 20000", "goroutines 500", "gc 3", "goroutines 10"] {
            runtime.process.command(command)?;
        }
        thread::sleep(Duration::from_millis(100));
        let (mut before, _) = runtime.reader.read();
        let mut report = runtime.process.command("report")?;
        let (mut after, _) = runtime.reader.read();
        common(&mut [&mut before, &mut after], &mut report);
        if before.metrics.is_empty() {
            others += 1;
            continue;
        }
        fitting += 1;
        let mut found = numbers(&before, &after, &report, true)?;
        found.extend(histograms(&before, &after, &report)?);
        found.extend(exact(&before, &after, &report)?);
        wrong.extend(found.into_iter().map(|line| format!("{release} read as 1.{minor}: {line}")));
    }
    // Its own table fits, and perhaps an identical one.
    ensure!(fitting > 0 && others >= 6, "{release}: {fitting} tables fit, {others} do not");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Reads a target that continuously allocates, collects garbage and reads its own statistics.
#[test]
fn under_load_nothing_is_torn() -> Result<()> {
    for release in go_releases() {
        let mut runtime = Runtime::start(&Program::Runtime.build_with(release, Flavour::Default)?)?;
        runtime.process.command("churn 4")?;
        let (mut faults, mut goals, mut before) = (Vec::new(), 0, 0);
        let mut seconds: BTreeMap<&str, f64> = BTreeMap::new();
        let mut shown: BTreeMap<String, f64> = BTreeMap::new();
        for _ in 0..10_000 {
            let (readings, failed) = runtime.reader.read();
            faults.extend(failed);
            let allocated = readings.unsigned("/gc/heap/allocs:bytes").unwrap_or(before);
            // Go 1.18 later subtracts objects that it has counted ahead.
            ensure!(
                allocated >= before || release == OLDEST_GO,
                "{release}: {before} bytes, then {allocated}"
            );
            before = allocated;
            let objects = readings.unsigned("/memory/classes/heap/objects:bytes").unwrap_or_default();
            ensure!(objects < 1 << 30, "{release}: {objects} bytes of objects");
            // All floats are times, which accumulate. Only the program's own time is computed as a difference.
            for (name, value) in &readings.metrics {
                let Value::Float(now) = value else { continue };
                let before = seconds.insert(name, *now).unwrap_or_default();
                ensure!(*now >= before || *name == USER, "{release}: {name}: {before}, then {now}");
            }
            check_user_time(&seconds).with_context(|| release.to_owned())?;
            for family in metrics::go(&readings, release, Detail::All) {
                let name = family.name();
                // With Go 1.18 these counters may fall too, since `client_golang` does not prevent it.
                let may_fall = release == OLDEST_GO && name.starts_with("go_memstats_");
                if may_fall || !name.ends_with("_total") {
                    continue;
                }
                let now = family.get_metric()[0].get_counter().get_value();
                let before = shown.insert(name.to_owned(), now).unwrap_or_default();
                ensure!(now >= before, "{release}: {name}: {before}, then {now}");
            }
            goals += u32::from(readings.metrics.contains_key("/gc/heap/goal:bytes"));
        }
        ensure!(before > 100 << 20, "{release}: the target allocated {before} bytes only");
        ensure!(shown.len() >= 8, "{release}: counters {shown:?} only");
        ensure!(
            faults.is_empty(),
            "{release}: {} faults, {goals} goals: {:?}",
            faults.len(),
            &faults[..faults.len().min(9)]
        );
        runtime.process.command("churn 0")?;
    }
    Ok(())
}

/// The program's own CPU time.
const USER: &str = "/cpu/classes/user:cpu-seconds";

/// Fails unless the program's own time is the total minus the other classes, within rounding, or more. The runtime
/// computes it when a collection ends (`accumulate` in runtime/mstats.go), and it may decrease then. Pauses are added
/// to the collector's time before that. Releases before Go 1.20 have no classes.
fn check_user_time(seconds: &BTreeMap<&str, f64>) -> Result<()> {
    let Some(user) = seconds.get(USER) else { return Ok(()) };
    let class = |name: &str| {
        let name = format!("/cpu/classes/{name}:cpu-seconds");
        seconds.get(name.as_str()).copied().with_context(|| format!("no {name}"))
    };
    let rest = class("total")? - class("gc/total")? - class("scavenge/total")? - class("idle")?;
    ensure!(user - rest > -1e-6, "{user} s of its own, {rest} s that others leave");
    Ok(())
}

/// The agent serves the metrics of a stripped service as long as it lives, and only those requested.
#[test]
fn the_agent_serves_them() -> Result<()> {
    let mut server = Process::start(Program::Kitex, Flavour::Stripped, &["server"])?;
    let agent = Agent::attach(&[server.pid()], &[])?;
    let scrape = agent.scrape()?;
    let gauge = |name: &str| scrape.value(name, &[]).with_context(|| format!("no {name}"));
    ensure!(gauge("go_goroutines")? >= 1.0 && gauge("go_threads")? >= 2.0);
    ensure!(gauge("go_memstats_heap_alloc_bytes")? > 100_000.0);
    ensure!(gauge("go_memstats_heap_alloc_bytes")? < gauge("process_virtual_memory_bytes")?);
    assert_eq!(scrape.value("go_gc_gogc_percent", &[]), Some(100.0));
    let own = |name: &&String| name.starts_with("go_");
    ensure!(scrape.families.keys().filter(own).count() == 29, "{:?}", scrape.families.keys());
    let errors: Vec<_> =
        scrape.samples("monitor_read_errors_total").filter(|sample| sample.value > 0.0).collect();
    ensure!(errors.is_empty(), "{errors:?}");
    server.quit()?;
    let begin = Instant::now();
    let target = server.pid().to_string();
    while agent.scrape()?.value("monitor_target_up", &[("target", &target)]) != Some(0.0) {
        ensure!(begin.elapsed() < Duration::from_secs(10), "the end of the target is not noticed");
        thread::sleep(Duration::from_millis(50));
    }
    ensure!(agent.scrape()?.families.keys().all(|name| !name.starts_with("go_")));
    agent.terminate()?;
    Ok(())
}

/// The evidence for the places of variables, in each kind of build.
#[test]
fn evidence_is_what_the_executable_has() -> Result<()> {
    let table = format!("table for {NEWEST_GO}");
    let both = format!("DWARF, {table}");
    for (flavour, offsets, variables) in [
        (Flavour::Default, &both, "symbol table, DWARF"),
        (Flavour::Pie, &both, "symbol table, DWARF"),
        (Flavour::NoSymbols, &both, "DWARF"),
        (Flavour::Stripped, &table, "instructions of the runtime"),
    ] {
        let executable = Program::Runtime.build_with(NEWEST_GO, flavour)?;
        let known = Known::of(&Image::parse(Box::new(File::open(&executable)?))?)?;
        ensure!(known.evidence.offsets == *offsets, "{flavour:?}: {:?}", known.evidence);
        ensure!(known.evidence.variables == variables, "{flavour:?}: {:?}", known.evidence);
        ensure!(known.evidence.note.is_none(), "{flavour:?}: {:?}", known.evidence);
    }
    life(&Program::Runtime.build_with(NEWEST_GO, Flavour::NoSymbols)?, false)
}

/// A test's own copy of an executable. It is removed when dropped.
struct Altered(PathBuf);

impl Drop for Altered {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Makes a copy of an executable in which every occurrence of `from` is replaced by `to`.
fn altered(executable: &Path, from: &[u8], to: &[u8]) -> Result<Altered> {
    let mut bytes = fs::read(executable)?;
    let places: Vec<_> = (0..bytes.len() - from.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
    ensure!(!places.is_empty() && from.len() == to.len(), "nothing to alter");
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    let name = format!(
        "monitor-goruntime-{}-{}",
        std::process::id(),
        String::from_utf8_lossy(to).trim_matches('\0')
    );
    let file = Altered(std::env::temp_dir().join(name));
    fs::write(&file.0, bytes)?;
    fs::set_permissions(&file.0, fs::Permissions::from_mode(0o755))?;
    Ok(file)
}

/// What can't be proven is left out completely, logged in one line, and counted.
#[test]
fn a_runtime_that_is_not_known_has_no_metrics() -> Result<()> {
    let plain = Program::Runtime.build_with(NEWEST_GO, Flavour::NoSymbols)?;
    let stripped = Program::Runtime.build_with(NEWEST_GO, Flavour::Stripped)?;
    for (executable, from, to, reason, said) in [
        // A field with another name in the DWARF; a future release; a vendor's tool chain.
        (
            &plain,
            "ngsys\0",
            "ngsyz\0",
            "evidence_differs",
            "sched.ngsys is 96 in the table for go1.27.3 and not there in the DWARF",
        ),
        (&stripped, NEWEST_GO, "go1.99.3", "no_table", "where go1.99.3 keeps them is not known"),
        (&stripped, NEWEST_GO, "go1.27-v", "no_table", "go1.27-v is not a release of Go's own"),
    ] {
        let executable = altered(executable, from.as_bytes(), to.as_bytes())?;
        let process = Process::start_command(&mut Command::new(&executable.0))?;
        let agent = Agent::attach(&[process.pid()], &["--metrics", "go,process"])?;
        let (first, scrape) = (agent.scrape()?, agent.scrape()?);
        ensure!(
            scrape.families.keys().all(|name| !name.starts_with("go_")),
            "{to}: {:?}",
            scrape.families.keys()
        );
        ensure!(scrape.families.contains_key("process_threads"), "{to}");
        let target = process.pid().to_string();
        for (scrape, kind) in [(&first, "first"), (&scrape, "second")] {
            let counted =
                scrape.value("monitor_read_errors_total", &[("target", &target), ("reason", reason)]);
            ensure!(counted == Some(1.0), "{to}: {kind}: {counted:?}");
        }
        let log = agent.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains(" WARN ")).collect();
        ensure!(lines.len() == 1 && lines[0].contains(said), "{to}: {lines:?}");
        agent.terminate()?;
    }
    // If DWARF agrees with the table, a vendor's tool chain is accepted like Go's own.
    let vendor = altered(&plain, NEWEST_GO.as_bytes(), b"go1.27-v")?;
    Runtime::start(&vendor.0)?.compare(false)?;
    Ok(())
}

/// Checks the limit that the agent promises, in its own CPU time.
#[test]
fn a_hundred_thousand_goroutines_are_read_in_five_milliseconds() -> Result<()> {
    const READINGS: u32 = 200;
    let mut runtime = Runtime::start(&Program::Runtime.build(Flavour::Default)?)?;
    runtime.process.command("goroutines 100000")?;
    runtime.settle()?;
    let begin = cpu_time()?;
    for _ in 0..READINGS {
        ensure!(runtime.read()?.goroutines.is_some_and(|count| count > 100_000));
    }
    let each = cpu_time()?.saturating_sub(begin) / READINGS;
    println!("a reading takes {each:?}");
    ensure!(each < Duration::from_millis(5), "a reading takes {each:?}");
    Ok(())
}

/// CPU time of this process, user and kernel.
fn cpu_time() -> Result<Duration> {
    let mut time = std::mem::MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: `time` is valid for writes, and the call fills it when it succeeds.
    let time = unsafe {
        ensure!(libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, time.as_mut_ptr()) == 0, "no clock");
        time.assume_init()
    };
    Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
}
