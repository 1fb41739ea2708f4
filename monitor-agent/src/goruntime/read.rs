//! Reading: from the variables to values.

use std::collections::BTreeMap;

use super::{
    Fault, Globals, Histogram, Layout, Memory, Readings, Sources, Value,
    globals::{MAX_GOROUTINES, first_thread, heap_points_back, pacer_agrees, processors},
    heap::{Heap, System, by_size, cycles},
    histogram,
    memory::{Block, at, slice, u32_at, u32s_at, u64_at},
    pacing::Pacing,
};

/// How often something that moves is read before it is left out.
const ATTEMPTS: usize = 5;
/// The same for what some programs move all the time: the heap, by reading their own statistics; and lists of goroutines.
const MORE_ATTEMPTS: usize = 50;
/// Go ends a program with more threads than ten thousand, unless it has raised the limit.
const MAX_THREADS: usize = 1 << 14;
/// A structure of the runtime; the largest that is read at once has 22 KB.
const MAX_BLOCK: u32 = 64 << 10;
/// How often the variables are looked for in a program that has just started.
const SEARCHES: u32 = 20;
/// How much of what there is to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// What `client_golang`'s collector shows by itself.
    #[default]
    Default,
    /// Everything.
    All,
}

/// Reads the Go runtime of one process, again and again.
pub struct Reader {
    memory: Box<dyn Memory>,
    sources: Sources,
    bias: u64,
    layout: Layout,
    globals: Option<Globals>,
    searches: u32,
    detail: Detail,
    /// All checks have agreed in one reading: the table is this program's.
    fits: bool,
    /// What counters were at before: lower ones are not believed.
    counters: BTreeMap<&'static str, u64>,
    /// The highest that each number was at.
    highest: BTreeMap<&'static str, f64>,
}

impl Reader {
    /// A reader of the process with this memory. `bias` is what the process adds to the addresses of its executable.
    #[must_use]
    pub fn new(memory: Box<dyn Memory>, sources: Sources, bias: u64, layout: Layout, detail: Detail) -> Self {
        Self {
            memory,
            sources,
            bias,
            layout,
            globals: None,
            searches: 0,
            detail,
            fits: false,
            counters: BTreeMap::new(),
            highest: BTreeMap::new(),
        }
    }

    /// Reads what can be read now, and gives what went wrong with the rest.
    pub fn read(&mut self) -> (Readings, Vec<Fault>) {
        let mut outcome = self.read_once();
        for _ in 1..ATTEMPTS {
            if !outcome.1.iter().any(|fault| matches!(fault, Fault::Fell(_))) {
                break;
            }
            outcome = self.read_once();
        }
        outcome
    }

    fn read_once(&mut self) -> (Readings, Vec<Fault>) {
        let globals = self.globals();
        let moment = Moment {
            memory: &*self.memory,
            layout: &self.layout,
            globals: &globals,
            readings: Readings::default(),
            faults: Vec::new(),
        };
        let (mut readings, mut faults, agree) = moment.take(self.detail);
        self.fits |= agree;
        if !self.fits {
            // One part that contradicts the table says that the others agree by chance.
            return (Readings::default(), faults);
        }
        self.drop_falling(&mut readings, &mut faults);
        self.keep_highest(&mut readings);
        (readings, faults)
    }

    /// Finds the variables when they are first asked for, and again while the program may not have started.
    fn globals(&mut self) -> Globals {
        if let Some(globals) = &self.globals {
            return globals.clone();
        }
        let found = Globals::find(&self.sources, self.bias, &self.layout, &*self.memory);
        self.searches += 1;
        if found.complete() || self.searches == SEARCHES {
            self.sources = Sources::default();
            self.globals = Some(found.clone());
        }
        found
    }

    /// Leaves out what never falls in the runtime, and has fallen: it was read wrong.
    fn drop_falling(&mut self, readings: &mut Readings, faults: &mut Vec<Fault>) {
        let counters = &mut self.counters;
        // Go 1.18 counts all objects of a span when it takes one, and takes back those that were not made.
        let taken_back = |name: &str| self.layout.minor() == 18 && name.starts_with("/gc/heap/allocs");
        readings.metrics.retain(|name, value| {
            let Some(now) = rising(name, value).filter(|_| !taken_back(name)) else { return true };
            let before = counters.entry(name).or_default();
            if now < *before {
                faults.push(Fault::Fell(name));
                return false;
            }
            *before = now;
            true
        });
    }

    /// Notes how high each number has been. Some that should only rise fall in the runtime itself: the program's own time, which
    /// is what the other classes leave of the whole, and sums whose parts are handed over as they are read.
    fn keep_highest(&mut self, readings: &mut Readings) {
        for (name, value) in &readings.metrics {
            #[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
            let now = match value {
                Value::Unsigned(value) => *value as f64,
                Value::Float(value) => *value,
                Value::Histogram(_) => continue,
            };
            let highest = self.highest.entry(name).or_default();
            *highest = now.max(*highest);
            readings.highest.insert(name, *highest);
        }
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("globals", &self.globals).finish_non_exhaustive()
    }
}

/// What of a value never falls in the runtime.
fn rising(name: &str, value: &Value) -> Option<u64> {
    const COUNTERS: [&str; 4] = ["/gc/heap/allocs:", "/gc/heap/frees:", "/gc/heap/tiny/", "/gc/cycles/"];
    match value {
        Value::Unsigned(value) => COUNTERS.iter().any(|start| name.starts_with(start)).then_some(*value),
        Value::Float(_) => None,
        Value::Histogram(histogram) => Some(histogram.counts.iter().copied().fold(0, u64::wrapping_add)),
    }
}

/// One reading under way.
struct Moment<'a> {
    memory: &'a dyn Memory,
    layout: &'a Layout,
    globals: &'a Globals,
    readings: Readings,
    faults: Vec<Fault>,
}

impl Moment<'_> {
    /// What was read, what went wrong, and whether all parts that can be checked agreed.
    fn take(mut self, detail: Detail) -> (Readings, Vec<Fault>, bool) {
        let threads = self.part(Self::threads);
        let processors =
            self.part(|moment| processors(moment.memory, moment.layout, moment.globals.get("runtime.allp")?));
        if let Some(threads) = &threads {
            self.readings.threads = Some(threads.len() as u64);
        }
        if let Some(processors) = &processors {
            self.set("/sched/gomaxprocs:threads", processors.len() as u64);
        }
        let collector = self.part_within(MORE_ATTEMPTS, Self::collector);
        let agree = threads.is_some() && processors.is_some() && collector.is_some();
        if threads.is_some()
            && let Some(processors) = &processors
        {
            self.part_within(MORE_ATTEMPTS, |moment| moment.goroutines(processors));
        }
        if detail == Detail::All {
            self.part(Self::cpu);
            self.part(Self::single_numbers);
            if threads.is_some() {
                self.part(Self::histograms);
                self.part_within(MORE_ATTEMPTS, Self::of_threads);
            }
            if let Some(processors) = &processors {
                self.part(|moment| moment.cleanups(processors));
                self.part(|moment| moment.goroutines_created(processors));
            }
        }
        (self.readings, self.faults, agree)
    }

    /// Tries a part until it comes to rest. What the release does not have is no fault.
    fn part<T>(&mut self, read: impl FnMut(&mut Self) -> Result<T, Fault>) -> Option<T> {
        self.part_within(ATTEMPTS, read)
    }

    fn part_within<T>(
        &mut self,
        attempts: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, Fault>,
    ) -> Option<T> {
        for attempt in 1..=attempts {
            match read(self) {
                Ok(value) => return Some(value),
                Err(Fault::NoPlace(_)) => return None,
                // A pointer that is not set yet leads nowhere.
                Err(Fault::Implausible(_) | Fault::Unreadable) if attempt < attempts => {}
                Err(fault) => {
                    self.faults.push(fault);
                    return None;
                }
            }
        }
        None
    }

    fn set(&mut self, name: &'static str, value: u64) {
        self.readings.metrics.insert(name, Value::Unsigned(value));
    }

    fn set_nanos(&mut self, name: &'static str, nanos: i64) {
        #[expect(clippy::cast_precision_loss, reason = "Go does the same")]
        self.readings.metrics.insert(name, Value::Float(nanos as f64 / 1e9));
    }

    fn set_histogram(&mut self, name: &'static str, histogram: Histogram) {
        self.readings.metrics.insert(name, Value::Histogram(histogram));
    }

    fn block(&self, global: &'static str, size: &'static str) -> Result<Block, Fault> {
        let size = self.layout.get(size)?;
        if size > MAX_BLOCK {
            return Err(Fault::Implausible("the size of a variable"));
        }
        Block::read(self.memory, self.globals.get(global)?, size)
    }

    /// All threads, by the list that starts with the newest.
    fn threads(&mut self) -> Result<Vec<u64>, Fault> {
        let next = self.layout.get("m.alllink")?;
        let mut threads = Vec::new();
        let mut thread = first_thread(self.memory, self.layout, self.globals.get("runtime.allm")?)?;
        while thread != 0 {
            if threads.len() == MAX_THREADS {
                return Err(Fault::Implausible("the list of threads"));
            }
            threads.push(thread);
            thread = u64_at(self.memory, at(thread, next))?;
        }
        self.scheduler_knows(threads.len())?;
        Ok(threads)
    }

    /// Sees that the scheduler has started and freed so many threads that these are left (`mcount` in runtime/proc.go),
    /// but for those that come or go right now.
    fn scheduler_knows(&self, threads: usize) -> Result<(), Fault> {
        let sched = self.globals.get("runtime.sched")?;
        let number = |path| -> Result<i64, Fault> {
            Ok(u64_at(self.memory, at(sched, self.layout.get(path)?))?.cast_signed())
        };
        let (started, freed) = (number("sched.mnext")?, number("sched.nmfreed")?);
        let limit = u32_at(self.memory, at(sched, self.layout.get("sched.maxmcount")?))?;
        let left = if freed < 0 { None } else { started.checked_sub(freed) };
        let left = left.and_then(|left| usize::try_from(left).ok());
        let near = left.is_some_and(|left| left.abs_diff(threads) <= 1 + threads / 16);
        if near && limit as usize >= threads {
            Ok(())
        } else {
            Err(Fault::Implausible("the number of threads"))
        }
    }

    /// `gcount` in runtime/proc.go: all there ever were, less those that wait for reuse.
    fn goroutines(&mut self, processors: &[u64]) -> Result<(), Fault> {
        const WHAT: Fault = Fault::Implausible("the number of goroutines");
        let layout = self.layout;
        let sched = self.globals.get("runtime.sched")?;
        let (_, all) = slice(self.memory, self.globals.get("runtime.allgs")?, MAX_GOROUTINES)?;
        let count = |count: u32| -> Result<u64, Fault> {
            u64::try_from(count.cast_signed()).ok().filter(|count| *count <= all).ok_or(WHAT)
        };
        let mut unused = 0;
        for waiting in self.waiting_for_reuse(processors)? {
            unused += count(waiting)?;
        }
        let system = count(u32_at(self.memory, at(sched, layout.get("sched.ngsys")?))?)?;
        let total = all.checked_sub(unused).ok_or(WHAT)?;
        let own = total.checked_sub(system).ok_or(WHAT)?;
        // Who asks in the process is one at least.
        self.readings.goroutines = Some(own.max(1));
        // Since Go 1.26 the runtime's own goroutines are counted there.
        let counted = if layout.minor() >= 26 { total } else { own };
        self.set("/sched/goroutines:goroutines", counted.max(1));
        Ok(())
    }

    /// How many goroutines the scheduler and each processor keep for reuse. Some dozens at a time go from one to the other
    /// (`gfput` and `gfget` in runtime/proc.go): then the scheduler has another number after those of the processors than
    /// before. In between they are in neither list for a moment, as for the runtime's own count (`gcount`).
    fn waiting_for_reuse(&self, processors: &[u64]) -> Result<Vec<u32>, Fault> {
        let layout = self.layout;
        let sched = self.globals.get("runtime.sched")?;
        let of_sched = match layout.find("sched.gFree.n") {
            Some(offset) => vec![at(sched, offset)],
            // Since Go 1.25, those with and without a stack are counted apart.
            None => vec![
                at(sched, layout.get("sched.gFree.stack.size")?),
                at(sched, layout.get("sched.gFree.noStack.size")?),
            ],
        };
        let kept = layout.find("p.gFree.n").map_or_else(|| layout.get("p.gFree.size"), Ok)?;
        let of_processors: Vec<_> = processors.iter().map(|processor| at(*processor, kept)).collect();
        let places = [&of_sched[..], &of_processors, &of_sched].concat();
        let mut counts = u32s_at(self.memory, &places)?;
        let again = counts.split_off(places.len() - of_sched.len());
        if counts.starts_with(&again) {
            Ok(counts)
        } else {
            Err(Fault::Implausible("the number of goroutines"))
        }
    }

    /// The memory statistics and the collector's, which belong together.
    fn collector(&mut self) -> Result<(), Fault> {
        let memstats_at = self.globals.get("runtime.memstats")?;
        let (mheap, controller) =
            (self.globals.get("runtime.mheap_")?, self.globals.get("runtime.gcController")?);
        heap_points_back(self.memory, self.layout, mheap, memstats_at)?;
        pacer_agrees(self.memory, self.layout, controller)?;
        let layout = self.layout;
        let memstats = self.block("runtime.memstats", "memstats#")?;
        let pacer = self.block("runtime.gcController", "gcController#")?;
        self.records_rest(&memstats)?;
        let heap = Heap::read(&memstats, layout)?;
        heap.check(&memstats, &pacer, layout)?;
        let cycles = cycles(&memstats, layout)?;
        let count = layout.get("memstats.numgc")?;
        if u32_at(self.memory, at(memstats_at, count))? != memstats.u32(count)? {
            return Err(Fault::Implausible("a collection in the middle"));
        }
        let forced = memstats.u32(layout.get("memstats.numforcedgc")?)?.into();
        let automatic =
            cycles.count.checked_sub(forced).ok_or(Fault::Implausible("the number of collections"))?;
        let in_use = |path| -> Result<u64, Fault> { u64_at(self.memory, at(mheap, layout.get(path)?)) };
        let system = System {
            stacks: memstats.u64(layout.get("memstats.stacks_sys")?)?,
            spans: memstats.u64(layout.get("memstats.mspan_sys")?)?,
            spans_in_use: in_use("mheap_.spanalloc.inuse")?,
            caches: memstats.u64(layout.get("memstats.mcache_sys")?)?,
            caches_in_use: in_use("mheap_.cachealloc.inuse")?,
            profiling: memstats.u64(layout.get("memstats.buckhash_sys")?)?,
            collector: memstats.u64(layout.get("memstats.gcMiscSys")?)?,
            other: memstats.u64(layout.get("memstats.other_sys")?)?,
        };
        system.check()?;
        let pacing = Pacing::read(&pacer, layout)?;
        self.set("/gc/cycles/total:gc-cycles", cycles.count);
        self.set("/gc/cycles/forced:gc-cycles", forced);
        self.set("/gc/cycles/automatic:gc-cycles", automatic);
        self.readings.gc = Some(cycles);
        self.set_heap(&heap);
        self.set_system(&heap, &system);
        self.set_pacing(&pacing);
        if let Some(dist) = layout.find("memstats.gcPauseDist") {
            self.set_histogram("/gc/pauses:seconds", histogram::read(&memstats, dist, layout)?);
        }
        Ok(())
    }

    /// Sees that the records of the heap were not being merged while they were read. Threads write to one of the three;
    /// a program that reads its statistics makes the next the one to write to, and then adds one of the others to the
    /// third and clears it (`consistentHeapStats` in runtime/mstats.go). So those two must read the same again; and what is
    /// counted in the one that is written to must not be less: then all three have had their turn meanwhile.
    fn records_rest(&self, memstats: &Block) -> Result<(), Fault> {
        const WHAT: Fault = Fault::Implausible("the heap while it was merged");
        let start = self.layout.get("memstats.heapStats.stats")?;
        let turn = self.layout.get("memstats.heapStats.gen")?;
        let record = self.layout.get("heapStatsDelta#")?;
        let size = turn.checked_sub(start).and_then(|size| size.checked_add(4)).ok_or(WHAT)?;
        let place = at(self.globals.get("runtime.memstats")?, start);
        let again = Block::read(self.memory, place, size.min(MAX_BLOCK))?;
        let written = memstats.u32(turn)?;
        // Sizes, which may fall, come before them.
        let counts = self.layout.get("heapStatsDelta.tinyAllocCount")? as usize / 8;
        let mut rest = again.u32(turn - start)? == written;
        for index in 0..3_u32 {
            let offset = index.saturating_mul(record);
            let (before, now) =
                (memstats.u64s(start.saturating_add(offset), record / 8)?, again.u64s(offset, record / 8)?);
            rest &= if index == written {
                let mut pairs = before.iter().zip(&now).skip(counts);
                pairs.all(|(before, now)| before.cast_signed() <= now.cast_signed())
            } else {
                before == now
            };
        }
        if rest { Ok(()) } else { Err(WHAT) }
    }

    fn set_heap(&mut self, heap: &Heap) {
        for (name, value) in [
            ("/gc/heap/allocs:bytes", heap.allocated),
            ("/gc/heap/allocs:objects", heap.allocs),
            ("/gc/heap/frees:bytes", heap.freed),
            ("/gc/heap/frees:objects", heap.frees),
            ("/gc/heap/objects:objects", heap.allocs - heap.frees),
            ("/gc/heap/tiny/allocs:objects", heap.tiny_allocs),
            ("/memory/classes/heap/free:bytes", heap.free),
            ("/memory/classes/heap/objects:bytes", heap.objects),
            ("/memory/classes/heap/released:bytes", heap.released),
            ("/memory/classes/heap/stacks:bytes", heap.stacks),
            ("/memory/classes/heap/unused:bytes", heap.spans - heap.objects),
        ] {
            self.set(name, value);
        }
        self.set_histogram(
            "/gc/heap/allocs-by-size:bytes",
            by_size(&heap.allocs_by_class, heap.large_allocs),
        );
        self.set_histogram("/gc/heap/frees-by-size:bytes", by_size(&heap.frees_by_class, heap.large_frees));
    }

    fn set_system(&mut self, heap: &Heap, system: &System) {
        let total = [
            heap.committed,
            heap.released,
            system.stacks,
            system.spans,
            system.caches,
            system.profiling,
            system.collector,
            system.other,
        ];
        for (name, value) in [
            ("/memory/classes/metadata/mcache/free:bytes", system.caches - system.caches_in_use),
            ("/memory/classes/metadata/mcache/inuse:bytes", system.caches_in_use),
            ("/memory/classes/metadata/mspan/free:bytes", system.spans - system.spans_in_use),
            ("/memory/classes/metadata/mspan/inuse:bytes", system.spans_in_use),
            ("/memory/classes/metadata/other:bytes", heap.collector.wrapping_add(system.collector)),
            ("/memory/classes/os-stacks:bytes", system.stacks),
            ("/memory/classes/other:bytes", system.other),
            ("/memory/classes/profiling/buckets:bytes", system.profiling),
            ("/memory/classes/total:bytes", total.into_iter().fold(0, u64::wrapping_add)),
        ] {
            self.set(name, value);
        }
    }

    fn set_pacing(&mut self, pacing: &Pacing) {
        self.set("/gc/heap/goal:bytes", pacing.goal);
        self.set("/gc/heap/live:bytes", pacing.marked);
        self.set("/gc/gogc:percent", pacing.percent);
        if let Some(limit) = pacing.limit {
            self.set("/gc/gomemlimit:bytes", limit);
        }
        if let Some([heap, stack, globals]) = pacing.scan {
            self.set("/gc/scan/heap:bytes", heap);
            self.set("/gc/scan/stack:bytes", stack);
            self.set("/gc/scan/globals:bytes", globals);
            self.set("/gc/scan/total:bytes", heap.wrapping_add(stack).wrapping_add(globals));
        }
    }

    /// Processor time, which the runtime adds up at the end of each collection.
    fn cpu(&mut self) -> Result<(), Fault> {
        /// `cpuStats` in runtime/mstats.go @ go1.20 to go1.27, in the order of its fields.
        const NAMES: [&str; 11] = [
            "/cpu/classes/gc/mark/assist:cpu-seconds",
            "/cpu/classes/gc/mark/dedicated:cpu-seconds",
            "/cpu/classes/gc/mark/idle:cpu-seconds",
            "/cpu/classes/gc/pause:cpu-seconds",
            "/cpu/classes/gc/total:cpu-seconds",
            "/cpu/classes/scavenge/assist:cpu-seconds",
            "/cpu/classes/scavenge/background:cpu-seconds",
            "/cpu/classes/scavenge/total:cpu-seconds",
            "/cpu/classes/idle:cpu-seconds",
            "/cpu/classes/user:cpu-seconds",
            "/cpu/classes/total:cpu-seconds",
        ];
        const WHAT: Fault = Fault::Implausible("the sum of processor times");
        let place = self.layout.get("work.cpuStats")?;
        let size = self.layout.get("cpuStats#")?;
        let times =
            Block::read(self.memory, at(self.globals.get("runtime.work")?, place), size.min(MAX_BLOCK))?;
        let times: Vec<i64> =
            (0..).step_by(8).take(NAMES.len()).map(|at| times.i64(at)).collect::<Result<_, _>>()?;
        let [
            assist,
            dedicated,
            gc_idle,
            pause,
            gc,
            scavenge_assist,
            scavenge_background,
            scavenge,
            idle,
            user,
            total,
        ] = times[..]
        else {
            return Err(WHAT);
        };
        let sum = |parts: &[i64]| parts.iter().try_fold(0_i64, |sum, part| sum.checked_add(*part));
        // Pauses are added at once, to the time of the collector too since Go 1.23; the sums follow.
        let is_sum = |parts: &[i64], whole: i64| {
            let ahead = sum(parts).and_then(|sum| sum.checked_sub(whole));
            ahead.is_some_and(|ahead| (0..=pause).contains(&ahead))
        };
        let adds_up = is_sum(&[assist, dedicated, gc_idle, pause], gc)
            && is_sum(&[gc, scavenge, idle, user], total)
            && sum(&[scavenge_assist, scavenge_background]) == Some(scavenge);
        // They were added up when a collection ended, if one has.
        let collected = self.readings.gc.as_ref().is_some_and(|cycles| cycles.count > 0);
        if !adds_up || total < i64::from(collected) {
            return Err(WHAT);
        }
        for (name, nanos) in NAMES.into_iter().zip(times) {
            self.set_nanos(name, nanos);
        }
        Ok(())
    }

    /// What the scheduler keeps as distributions.
    fn histograms(&mut self) -> Result<(), Fault> {
        let sched = self.block("runtime.sched", "sched#")?;
        for (name, path) in [
            ("/sched/latencies:seconds", "sched.timeToRun"),
            ("/gc/pauses:seconds", "sched.stwTotalTimeGC"),
            ("/sched/pauses/stopping/gc:seconds", "sched.stwStoppingTimeGC"),
            ("/sched/pauses/stopping/other:seconds", "sched.stwStoppingTimeOther"),
            ("/sched/pauses/total/gc:seconds", "sched.stwTotalTimeGC"),
            ("/sched/pauses/total/other:seconds", "sched.stwTotalTimeOther"),
        ] {
            if let Some(offset) = self.layout.find(path) {
                self.set_histogram(name, histogram::read(&sched, offset, self.layout)?);
            }
        }
        Ok(())
    }

    /// What each thread has a part of. One that exits leaves the list, and then adds its parts to those of the threads that are
    /// gone (`mexit` in runtime/proc.go): if none has meanwhile, nothing is counted twice.
    fn of_threads(&mut self) -> Result<(), Fault> {
        let gone = self.of_gone_threads()?;
        let threads = self.threads()?;
        let sum = |gone: Option<u64>, path: &'static str| -> Result<Option<u64>, Fault> {
            let Some(gone) = gone else { return Ok(None) };
            let part = self.layout.get(path)?;
            let sum = threads.iter().try_fold(gone, |sum, thread| {
                Ok::<_, Fault>(sum.wrapping_add(u64_at(self.memory, at(*thread, part))?))
            });
            sum.map(Some)
        };
        let [_, calls, locks] = gone;
        let calls = sum(calls, "m.ncgocall")?;
        let locks = sum(locks, "m.mLockProfile.waitTime")?;
        let waited = match self.layout.find("sched.totalMutexWaitTime") {
            Some(total) => Some(u64_at(self.memory, at(self.globals.get("runtime.sched")?, total))?),
            None => None,
        };
        if self.of_gone_threads()? != gone {
            return Err(Fault::Implausible("the list of threads"));
        }
        if let Some(calls) = calls {
            self.set("/cgo/go-to-c-calls:calls", calls);
        }
        if let Some(nanos) = waited {
            let nanos = nanos.wrapping_add(locks.unwrap_or_default());
            self.set_nanos("/sync/mutex/wait/total:seconds", nanos.cast_signed());
        }
        Ok(())
    }

    /// How many threads have exited, and of those the calls of C and the nanoseconds for which they waited for the runtime's own
    /// locks, where those are known.
    fn of_gone_threads(&self) -> Result<[Option<u64>; 3], Fault> {
        let sched = self.globals.get("runtime.sched")?;
        let number = |place: Option<u64>| place.map(|place| u64_at(self.memory, place)).transpose();
        let waited = self.layout.find("sched.totalRuntimeLockWaitTime");
        Ok([
            number(Some(at(sched, self.layout.get("sched.nmfreed")?)))?,
            number(self.globals.get("runtime.ncgocall").ok())?,
            number(waited.map(|offset| at(sched, offset)))?,
        ])
    }

    /// Variables that only a symbol table leads to.
    fn single_numbers(&mut self) -> Result<(), Fault> {
        if let (Ok(limiter), Some(cycle)) =
            (self.globals.get("runtime.gcCPULimiter"), self.layout.find("gcCPULimiter.lastEnabledCycle"))
        {
            let cycle = u64::from(u32_at(self.memory, at(limiter, cycle))?);
            let count = self.readings.gc.as_ref().map_or(u64::MAX, |cycles| cycles.count);
            // The one under way may be the last.
            if cycle > count.saturating_add(1) {
                return Err(Fault::Implausible("the limiter's last collection"));
            }
            self.set("/gc/limiter/last-enabled:gc-cycle", cycle);
        }
        if let Ok(size) = self.globals.get("runtime.startingStackSize") {
            self.set("/gc/stack/starting-size:bytes", u32_at(self.memory, size)?.into());
        }
        for (name, global) in [
            ("/gc/finalizers/queued:finalizers", "runtime.finqueued"),
            ("/gc/finalizers/executed:finalizers", "runtime.finexecuted"),
        ] {
            if let Ok(place) = self.globals.get(global) {
                self.set(name, u64_at(self.memory, place)?);
            }
        }
        Ok(())
    }

    fn cleanups(&mut self, processors: &[u64]) -> Result<(), Fault> {
        let Ok(queue) = self.globals.get("runtime.gcCleanups") else { return Ok(()) };
        let executed = u64_at(self.memory, at(queue, self.layout.get("gcCleanups.executed")?))?;
        let queued = at(queue, self.layout.get("gcCleanups.queued")?);
        let queued = self.with_processors(queued, processors, "p.cleanupsQueued")?;
        self.set("/gc/cleanups/executed:cleanups", executed);
        self.set("/gc/cleanups/queued:cleanups", queued);
        Ok(())
    }

    fn goroutines_created(&mut self, processors: &[u64]) -> Result<(), Fault> {
        let place = at(self.globals.get("runtime.sched")?, self.layout.get("sched.goroutinesCreated")?);
        let created = self.with_processors(place, processors, "p.goroutinesCreated")?;
        self.set("/sched/goroutines-created:goroutines", created);
        Ok(())
    }

    /// The number at a place, and the parts of it that processors have not handed over yet: they do as they are destroyed, and
    /// it is another then.
    fn with_processors(&self, place: u64, processors: &[u64], path: &'static str) -> Result<u64, Fault> {
        let part = self.layout.get(path)?;
        let number = u64_at(self.memory, place)?;
        let sum = processors.iter().try_fold(number, |sum, processor| {
            Ok::<_, Fault>(sum.wrapping_add(u64_at(self.memory, at(*processor, part))?))
        })?;
        if u64_at(self.memory, place)? == number {
            Ok(sum)
        } else {
            Err(Fault::Implausible("what processors hand over"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use proptest::prelude::*;

    use super::{super::Arch, *};
    use crate::image::GoVersion;

    /// Memory in which each word is chosen by a rule from its address.
    struct Rule<F>(F, Arc<AtomicUsize>);

    impl<F: Fn(u64) -> Option<u64> + Send> Memory for Rule<F> {
        fn read(&self, address: u64, buf: &mut [u8]) -> io::Result<()> {
            self.1.fetch_add(1, Ordering::Relaxed);
            for (place, byte) in (address..=u64::MAX).zip(buf.iter_mut()) {
                let word = self.0(place & !7).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
                *byte = word.to_le_bytes()[(place & 7) as usize];
            }
            Ok(())
        }
    }

    /// Reads such memory twice; gives the last reading and how many reads each took.
    fn read(minor: u32, rule: impl Fn(u64) -> Option<u64> + Send + 'static) -> (Readings, usize) {
        let reads = Arc::new(AtomicUsize::new(0));
        let memory = Box::new(Rule(rule, Arc::clone(&reads)));
        let layout = Layout::of(GoVersion { major: 1, minor, patch: 0 }, Arch::Amd64).expect("a table");
        let mut reader = Reader::new(memory, Sources::everywhere(0x10_0000), 0, layout, Detail::All);
        reader.read();
        let (readings, _) = reader.read();
        (readings, reads.load(Ordering::Relaxed) / 2)
    }

    #[test]
    fn memory_that_is_all_the_same_is_no_runtime() {
        for minor in 18..=27 {
            for word in [0, 1, 0x10_0000, u64::MAX, 1 << 63] {
                let (readings, reads) = read(minor, move |_| Some(word));
                assert_eq!((readings.goroutines, &readings.gc), (None, &None), "1.{minor}, {word:#x}");
                assert!(
                    !readings.metrics.contains_key("/memory/classes/total:bytes"),
                    "1.{minor}, {word:#x}"
                );
                assert!(reads < 500_000, "{reads} reads");
            }
        }
    }

    #[test]
    fn a_list_of_threads_without_an_end_is_given_up() {
        // Every thread's goroutine leads back, and the next thread is the same.
        let (readings, reads) = read(26, |_| Some(0x20_0000));
        assert_eq!(readings.threads, None);
        assert!((MAX_THREADS..500_000).contains(&reads), "{reads} reads");
    }

    #[test]
    fn where_there_is_no_memory_there_is_nothing() {
        let (readings, reads) = read(27, |_| None);
        assert!(readings.metrics.is_empty() && readings.gc.is_none() && readings.threads.is_none());
        assert!(reads < 100, "{reads} reads");
    }

    /// Where [`Sources::everywhere`] has the variables of these tests.
    const ALLGS: u64 = 0x10_0000;
    const ALLM: u64 = 0x11_0000;
    const CONTROLLER: u64 = 0x13_0000;
    const MEMSTATS: u64 = 0x14_0000;
    const SCHED: u64 = 0x16_0000;
    const NCGOCALL: u64 = 0x1c_0000;

    fn newest() -> Layout {
        Layout::of(GoVersion { major: 1, minor: 27, patch: 0 }, Arch::Amd64).expect("a table")
    }

    /// A field's place in a structure of the newest release.
    fn field(structure: u64, path: &str) -> u64 {
        at(structure, newest().find(path).expect("a field"))
    }

    /// Reads a part of memory in which each word is chosen by a rule from its address and the number of the read.
    fn part<T>(
        rule: impl Fn(u64, usize) -> u64 + Send,
        read: impl FnMut(&mut Moment<'_>) -> Result<T, Fault>,
    ) -> Option<T> {
        let reads = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&reads);
        let memory = Rule(move |place| Some(rule(place, count.load(Ordering::Relaxed))), reads);
        let layout = newest();
        let globals = Globals::find(&Sources::everywhere(ALLGS), 0, &layout, &memory);
        let mut moment = Moment {
            memory: &memory,
            layout: &layout,
            globals: &globals,
            readings: Readings::default(),
            faults: Vec::new(),
        };
        moment.part(read)
    }

    #[test]
    fn goroutines_that_change_places_meanwhile_are_counted_once() {
        const PROCESSORS: [u64; 2] = [0x40_0000, 0x41_0000];
        let sched = field(SCHED, "sched.gFree.stack.size");
        let processor = field(PROCESSORS[0], "p.gFree.size");
        for step in 0..12 {
            let rule = move |place: u64, reads: usize| match place {
                // So many there ever were.
                ALLGS => 1,
                _ if place == ALLGS + 8 || place == ALLGS + 16 => 1000,
                _ if place == sched => [100, 133][usize::from(reads > step)],
                _ if place == processor => [64, 31][usize::from(reads > step)],
                _ => 0,
            };
            let found = part(rule, |moment| {
                moment.goroutines(&PROCESSORS)?;
                Ok(moment.readings.goroutines)
            });
            assert_eq!(found, Some(Some(836)), "33 were handed over after {step} reads");
        }
    }

    #[test]
    fn a_thread_that_exits_meanwhile_is_counted_once() {
        const THREADS: [u64; 2] = [0x40_0000, 0x41_0000];
        const GOROUTINES: [u64; 2] = [0x50_0000, 0x51_0000];
        let [exiting, staying] = THREADS;
        let places = [
            (field(exiting, "m.alllink"), staying),
            (field(exiting, "m.g0"), GOROUTINES[0]),
            (field(staying, "m.g0"), GOROUTINES[1]),
            (field(GOROUTINES[0], "g.m"), exiting),
            (field(GOROUTINES[1], "g.m"), staying),
            (field(exiting, "m.ncgocall"), 7),
            (field(staying, "m.ncgocall"), 5),
            (field(SCHED, "sched.mnext"), 2),
            (field(SCHED, "sched.maxmcount"), 10_000),
        ];
        let exited = field(SCHED, "sched.nmfreed");
        for step in 0..30 {
            let rule = move |place: u64, reads: usize| match place {
                ALLM => [exiting, staying][usize::from(reads > step)],
                NCGOCALL => [0, 7][usize::from(reads > step)],
                _ if place == exited => u64::from(reads > step),
                _ => places.iter().find(|(there, _)| *there == place).map_or(0, |(_, word)| *word),
            };
            let found = part(rule, |moment| {
                moment.of_threads()?;
                Ok(moment.readings.unsigned("/cgo/go-to-c-calls:calls"))
            });
            assert_eq!(found, Some(Some(12)), "a thread exits after {step} reads");
        }
    }

    #[test]
    fn processors_that_hand_over_meanwhile_are_counted_once() {
        const PROCESSORS: [u64; 2] = [0x40_0000, 0x41_0000];
        let total = field(SCHED, "sched.goroutinesCreated");
        let part_of_it = field(PROCESSORS[1], "p.goroutinesCreated");
        for step in 0..12 {
            let rule = move |place: u64, reads: usize| match place {
                _ if place == total => [100, 107][usize::from(reads > step)],
                _ if place == part_of_it => [7, 0][usize::from(reads > step)],
                _ => 0,
            };
            let found = part(rule, |moment| {
                moment.goroutines_created(&PROCESSORS)?;
                Ok(moment.readings.unsigned("/sched/goroutines-created:goroutines"))
            });
            assert_eq!(found, Some(Some(107)), "7 were handed over after {step} reads");
        }
    }

    /// Whether the records of the heap seem to rest, if the one that is written to has these words in the second read.
    fn rests(tiny_allocs: u64, committed: u64) -> bool {
        let start = field(MEMSTATS, "memstats.heapStats.stats");
        let (counted, sized) =
            (field(start, "heapStatsDelta.tinyAllocCount"), field(start, "heapStatsDelta.committed"));
        let rule = move |place: u64, reads: usize| match (place, reads.is_multiple_of(2)) {
            (place, false) if place == counted => 50,
            (place, true) if place == counted => tiny_allocs,
            (place, false) if place == sized => 4096,
            (place, true) if place == sized => committed,
            _ => 0,
        };
        let found = part(rule, |moment| {
            let memstats = moment.block("runtime.memstats", "memstats#")?;
            moment.records_rest(&memstats)
        });
        found.is_some()
    }

    #[test]
    fn records_that_all_had_their_turn_meanwhile_do_not_rest() {
        assert!(rests(50, 4096));
        assert!(rests(60, 0), "sizes may fall");
        assert!(!rests(20, 8192), "the record was cleared in between");
    }

    /// Whether the heap is believed of whose free memory the pacer knows so much.
    fn is_believed(free: u64) -> bool {
        const MIB: u64 = 1 << 20;
        let start = field(MEMSTATS, "memstats.heapStats.stats");
        let (committed, spans) =
            (field(start, "heapStatsDelta.committed"), field(start, "heapStatsDelta.inHeap"));
        let known = field(CONTROLLER, "gcController.heapInUse");
        let known_free = field(CONTROLLER, "gcController.heapFree");
        let rule = move |place: u64, _: usize| match place {
            _ if place == committed => 100 * MIB,
            _ if place == spans || place == known => 10 * MIB,
            _ if place == known_free => free,
            _ => 0,
        };
        let found = part(rule, |moment| {
            let memstats = moment.block("runtime.memstats", "memstats#")?;
            let pacer = moment.block("runtime.gcController", "gcController#")?;
            Heap::read(&memstats, moment.layout)?.check(&memstats, &pacer, moment.layout)
        });
        found.is_some()
    }

    #[test]
    fn a_heap_of_which_too_much_is_kept_is_not_believed() {
        assert!(is_believed(90 << 20));
        assert!(!is_believed(40 << 20), "twice of what there is");
    }

    #[test]
    fn the_highest_stays_when_a_number_falls() {
        const USER: &str = "/cpu/classes/user:cpu-seconds";
        const CALLS: &str = "/cgo/go-to-c-calls:calls";
        let nowhere = Box::new(Rule(|_: u64| None, Arc::default()));
        let mut reader = Reader::new(nowhere, Sources::default(), 0, newest(), Detail::All);
        for (seconds, calls, highest) in
            [(-1.0, 3, [0.0, 3.0]), (2.5, 4, [2.5, 4.0]), (1.5, 2, [2.5, 4.0]), (-3.0, 9, [2.5, 9.0])]
        {
            let metrics = [(USER, Value::Float(seconds)), (CALLS, Value::Unsigned(calls))].into();
            let mut readings = Readings { metrics, ..Readings::default() };
            reader.keep_highest(&mut readings);
            assert_eq!(readings.highest, [(USER, highest[0]), (CALLS, highest[1])].into());
        }
        // What could not be read is absent.
        let mut readings = Readings::default();
        reader.keep_highest(&mut readings);
        assert!(readings.highest.is_empty());
    }

    proptest! {
        #[test]
        fn any_memory_ends_without_a_panic(
            minor in 18_u32..=27,
            seed in any::<u64>(),
            words in prop::collection::vec(any::<u64>(), 1..40),
        ) {
            // Addresses, small numbers, and whatever else.
            let rule = move |place: u64| {
                let hash = (place ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
                match hash % 5 {
                    0 => Some(0x10_0000 + (hash & 0xfff8)),
                    1 => Some(hash % 7),
                    2 => (!hash.is_multiple_of(64)).then_some(place),
                    _ => words.get(usize::try_from(hash).unwrap_or(0) % words.len()).copied(),
                }
            };
            let (readings, reads) = read(minor, rule);
            prop_assert!(readings.gc.is_none() && readings.goroutines.is_none_or(|count| count >= 1));
            prop_assert!(reads < 500_000, "{} reads", reads);
        }
    }
}
