//! The scheduler: threads, processors, goroutines, and their waiting times.

use super::{
    super::{
        Fault,
        globals::{MAX_GOROUTINES, first_thread, processors},
        histogram,
        memory::{at, slice, u32_at, u32s_at, u64_at},
    },
    Moment,
};

/// The most threads. Go ends a program with more than ten thousand, unless the program has raised the limit.
pub(super) const MAX_THREADS: usize = 1 << 14;

impl Moment<'_> {
    /// Returns the processors of the scheduler.
    pub(super) fn processors(&mut self) -> Result<Vec<u64>, Fault> {
        processors(self.memory, self.layout, self.globals.get("runtime.allp")?)
    }

    /// Returns all threads, from the list that starts with the newest.
    pub(super) fn threads(&mut self) -> Result<Vec<u64>, Fault> {
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

    /// Checks the number of threads against those that the scheduler has started and freed (`mcount` in
    /// runtime/proc.go). A few may come or go in between.
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

    /// Counts goroutines as `gcount` in runtime/proc.go does: all that ever existed, minus those that wait for reuse.
    pub(super) fn goroutines(&mut self, processors: &[u64]) -> Result<(), Fault> {
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
        // In the process, the caller itself is one.
        self.readings.goroutines = Some(own.max(1));
        // Since Go 1.26 this count includes the runtime's own goroutines.
        let counted = if layout.minor() >= 26 { total } else { own };
        self.set("/sched/goroutines:goroutines", counted.max(1));
        Ok(())
    }

    /// Returns how many goroutines the scheduler and each processor keep for reuse. They move between these lists some
    /// dozens at a time (`gfput` and `gfget` in runtime/proc.go). If they do, the scheduler's number differs before and
    /// after those of the processors are read. While they move, they are for a moment in neither list, also for the
    /// runtime's own count (`gcount`).
    fn waiting_for_reuse(&self, processors: &[u64]) -> Result<Vec<u32>, Fault> {
        let layout = self.layout;
        let sched = self.globals.get("runtime.sched")?;
        let of_sched = match layout.find("sched.gFree.n") {
            Some(offset) => vec![at(sched, offset)],
            // Since Go 1.25 those with and without a stack are counted separately.
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

    pub(super) fn goroutines_created(&mut self, processors: &[u64]) -> Result<(), Fault> {
        let place = at(self.globals.get("runtime.sched")?, self.layout.get("sched.goroutinesCreated")?);
        let created = self.with_processors(place, processors, "p.goroutinesCreated")?;
        self.set("/sched/goroutines-created:goroutines", created);
        Ok(())
    }

    /// Returns the number at `place` plus the parts that processors have not handed over yet. They do so when they are
    /// destroyed, which changes the number.
    pub(super) fn with_processors(
        &self,
        place: u64,
        processors: &[u64],
        path: &'static str,
    ) -> Result<u64, Fault> {
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

    /// Reads sums of which each thread has a part. A thread that exits leaves the list, and then adds its parts to
    /// those of the threads that are gone (`mexit` in runtime/proc.go). If none has exited in between, nothing is
    /// counted twice.
    pub(super) fn of_threads(&mut self) -> Result<(), Fault> {
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

    /// Returns the number of threads that have exited, their calls of C, and the nanoseconds for which they waited for
    /// the runtime's own locks. The last two are `None` if they are not known.
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

    /// Reads the distributions of the scheduler.
    pub(super) fn histograms(&mut self) -> Result<(), Fault> {
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
}
