//! Reads variables and computes values, part by part. A part that does not come to rest, or contradicts itself, is left
//! out.

mod collector;
mod cpu;
mod named;
mod scheduler;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::{Fault, Globals, Histogram, Layout, Memory, Readings, Sources, Value, memory::Block};

/// How often changing data is read before it is left out.
const ATTEMPTS: usize = 5;
/// The same for data that some programs change all the time: the heap, when they read their own statistics, and lists
/// of goroutines.
const MORE_ATTEMPTS: usize = 50;
/// The most bytes of a structure of the runtime. The largest one that is read at once has 22 KB.
const MAX_BLOCK: u32 = 64 << 10;
/// How often the variables are searched for in a program that has just started.
const SEARCHES: u32 = 20;

/// How much of the available data to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// What `client_golang`'s collector shows by default.
    #[default]
    Default,
    /// Everything.
    All,
}

/// Reads the Go runtime of one process repeatedly.
pub struct Reader {
    memory: Box<dyn Memory>,
    sources: Sources,
    bias: u64,
    layout: Layout,
    globals: Option<Globals>,
    searches: u32,
    detail: Detail,
    /// All checks have passed in one reading: the table fits this program.
    fits: bool,
    /// The last values of counters. Lower ones are rejected.
    counters: BTreeMap<&'static str, u64>,
    /// The highest value of each number so far.
    highest: BTreeMap<&'static str, f64>,
}

impl Reader {
    /// Creates a reader of a process's memory. `bias` is what the process adds to the addresses of its executable.
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

    /// Reads what can be read now. Returns it with the faults of the rest.
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
            // If one part contradicts the table, the others agree only by chance.
            return (Readings::default(), faults);
        }
        self.drop_falling(&mut readings, &mut faults);
        self.keep_highest(&mut readings);
        (readings, faults)
    }

    /// Finds the variables at the first call, and searches again while the program may not have started.
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

    /// Drops values that never fall in the runtime, but have fallen: they were misread.
    fn drop_falling(&mut self, readings: &mut Readings, faults: &mut Vec<Fault>) {
        let counters = &mut self.counters;
        // Go 1.18 counts all objects of a span when it takes the span, and later subtracts those that were not
        // allocated.
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

    /// Keeps the highest value of each number. Some numbers that should only rise fall in the runtime itself: the
    /// program's own time, which is what the other classes leave of the whole, and sums whose parts are handed over as
    /// they are read.
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

/// Returns the part of a value that never falls in the runtime.
fn rising(name: &str, value: &Value) -> Option<u64> {
    const COUNTERS: [&str; 4] = ["/gc/heap/allocs:", "/gc/heap/frees:", "/gc/heap/tiny/", "/gc/cycles/"];
    match value {
        Value::Unsigned(value) => COUNTERS.iter().any(|start| name.starts_with(start)).then_some(*value),
        Value::Float(_) => None,
        Value::Histogram(histogram) => Some(histogram.counts.iter().copied().fold(0, u64::wrapping_add)),
    }
}

/// One reading in progress.
struct Moment<'a> {
    memory: &'a dyn Memory,
    layout: &'a Layout,
    globals: &'a Globals,
    readings: Readings,
    faults: Vec<Fault>,
}

impl Moment<'_> {
    /// Returns the readings, the faults, and whether all parts that can be checked agreed.
    fn take(mut self, detail: Detail) -> (Readings, Vec<Fault>, bool) {
        let threads = self.part(Self::threads);
        let processors = self.part(Self::processors);
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

    /// Reads a part until it comes to rest. It is no fault if the release does not have the part.
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
}
