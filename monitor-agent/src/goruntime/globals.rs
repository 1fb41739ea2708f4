//! The addresses of the runtime's global variables.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    Fault, Layout, Memory, Unknown,
    code::{Operand, operands},
    memory::{at, slice, u32_at, u64_at},
};
use crate::image::{Image, ImageError, RuntimePlaces};

/// More goroutines than memory holds.
pub(super) const MAX_GOROUTINES: u64 = 1 << 32;
/// The most processors that Go allows (`_MaxGomaxprocs` in runtime/runtime2.go @ go1.18; now less than 2^31).
pub(super) const MAX_PROCESSORS: u64 = 4096;
/// The initial limit of threads, set by `schedinit` (runtime/proc.go).
const MAX_THREADS_AT_START: u64 = 10_000;

/// The variables behind almost all values. They are also searched for in stripped programs.
const NEEDED: [&str; 8] = [
    "runtime.allgs",
    "runtime.allm",
    "runtime.allp",
    "runtime.gcController",
    "runtime.memstats",
    "runtime.mheap_",
    "runtime.sched",
    "runtime.work",
];
/// Single numbers, whose content does not identify them: only a symbol table or the DWARF gives their addresses.
const NAMED_ONLY: [&str; 6] = [
    "runtime.finexecuted",
    "runtime.finqueued",
    "runtime.gcCPULimiter",
    "runtime.gcCleanups",
    "runtime.ncgocall",
    "runtime.startingStackSize",
];
/// The functions in which the variables are searched for.
const FUNCTIONS: [&str; 7] = [
    "runtime.allgadd",
    "runtime.gcMarkTermination",
    "runtime.gcinit",
    "runtime.mallocinit",
    "runtime.mcommoninit",
    "runtime.procresize",
    "runtime.schedinit",
];

/// An executable's evidence for the addresses of the variables, as linked.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    symbols: HashMap<&'static str, u64>,
    operands: HashMap<&'static str, Vec<Operand>>,
    evidence: &'static str,
}

/// Returns the names of all variables.
fn names() -> impl Iterator<Item = &'static str> {
    NEEDED.into_iter().chain(NAMED_ONLY)
}

/// Returns the names of all variables in their package.
pub(super) fn variables() -> impl Iterator<Item = &'static str> {
    names().map(in_package)
}

fn in_package(name: &'static str) -> &'static str {
    name.strip_prefix("runtime.").unwrap_or(name)
}

impl Sources {
    /// Reads the symbol table and the DWARF. If they are incomplete, reads the instructions of the functions that use
    /// the variables.
    pub(super) fn of(image: &Image, dwarf: Option<&RuntimePlaces>) -> Result<Self, Unknown> {
        let names: Vec<_> = names().collect();
        // A damaged symbol table counts as none: the other sources decide.
        let symbols = image.symbols(&names).unwrap_or_default();
        let mut sources = Self { symbols, operands: HashMap::new(), evidence: "symbol table" };
        if let Some(dwarf) = dwarf {
            sources.evidence = if sources.is_complete() { "symbol table, DWARF" } else { "DWARF" };
            for variable in names {
                sources.hear(dwarf, variable)?;
            }
        }
        if !sources.is_complete() {
            sources.evidence = "instructions of the runtime";
            sources.look_into_functions(image)?;
        }
        Ok(sources)
    }

    /// Names the source of the addresses.
    pub(super) fn evidence(&self) -> &'static str {
        self.evidence
    }

    fn is_complete(&self) -> bool {
        NEEDED.iter().all(|name| self.symbols.contains_key(name))
    }

    /// Uses the address in the DWARF if the symbol table has none. If both have one, they must agree.
    fn hear(&mut self, dwarf: &RuntimePlaces, variable: &'static str) -> Result<(), Unknown> {
        let Some(address) = dwarf.variables.get(in_package(variable)).copied() else { return Ok(()) };
        let symbol = *self.symbols.entry(variable).or_insert(address);
        if symbol == address {
            return Ok(());
        }
        Err(Unknown::AddressDiffers { variable, symbol, dwarf: address })
    }

    fn look_into_functions(&mut self, image: &Image) -> Result<(), ImageError> {
        // An assembly function may be present twice.
        const MOST: usize = 2 * FUNCTIONS.len();
        let go = image.go()?;
        for function in go.some_functions_named(MOST, &|name| FUNCTIONS.contains(&name))? {
            if let Some(name) = FUNCTIONS.into_iter().find(|name| *name == function.name) {
                let found = operands(&go.code(&function)?, function.entry);
                self.operands.entry(name).or_default().extend(found);
            }
        }
        Ok(())
    }

    /// Returns a symbol table in which the variables are 64 KiB apart.
    #[cfg(test)]
    pub(super) fn everywhere(first: u64) -> Self {
        let places = (0..).map(|index| first + (index << 16));
        Self { symbols: names().zip(places).collect(), ..Self::default() }
    }

    /// Returns the operands of a function, with their addresses moved by `bias`.
    fn operands(&self, function: &'static str, bias: u64) -> Vec<Operand> {
        let moved = |o: &Operand| Operand { address: o.address.wrapping_add(bias), ..*o };
        self.operands.get(function).map(|found| found.iter().map(moved).collect()).unwrap_or_default()
    }

    fn addresses(&self, function: &'static str, bias: u64) -> BTreeSet<u64> {
        self.operands(function, bias).iter().map(|operand| operand.address).collect()
    }
}

/// The addresses of the variables in a process.
#[derive(Clone, Debug, Default)]
pub struct Globals(BTreeMap<&'static str, u64>);

impl Globals {
    /// Finds as many variables as it can. Without a symbol, a variable is the only operand of the functions with the
    /// content that the variable must have. That requires a program that has started.
    pub fn find(sources: &Sources, bias: u64, layout: &Layout, memory: &dyn Memory) -> Self {
        let named = sources.symbols.iter().map(|(name, address)| (*name, address.wrapping_add(bias)));
        let mut globals = Self(named.collect());
        let finder = Finder { sources, bias, layout, memory };
        // The heap is found by its pointers into the statistics.
        globals.look("runtime.memstats", || finder.memstats());
        let memstats = globals.get("runtime.memstats").ok();
        globals.look("runtime.mheap_", || finder.mheap(memstats?));
        globals.look("runtime.allgs", || finder.allgs());
        globals.look("runtime.allp", || finder.allp());
        globals.look("runtime.allm", || finder.allm());
        globals.look("runtime.sched", || finder.sched());
        globals.look("runtime.gcController", || finder.gc_controller());
        globals.look("runtime.work", || finder.work());
        globals
    }

    /// Returns the address of a variable.
    pub(super) fn get(&self, name: &'static str) -> Result<u64, Fault> {
        self.0.get(name).copied().ok_or(Fault::NotFound(name))
    }

    /// Whether all variables were found that can be found in a stripped program.
    #[must_use]
    pub fn complete(&self) -> bool {
        NEEDED.iter().all(|name| self.0.contains_key(name))
    }

    fn look(&mut self, name: &'static str, find: impl FnOnce() -> Option<u64>) {
        if !self.0.contains_key(name)
            && let Some(address) = find()
        {
            self.0.insert(name, address);
        }
    }
}

/// Returns the only element. One of two would be a guess.
fn only<T>(mut found: impl Iterator<Item = T>) -> Option<T> {
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

struct Finder<'a> {
    sources: &'a Sources,
    bias: u64,
    layout: &'a Layout,
    memory: &'a dyn Memory,
}

impl Finder<'_> {
    /// `gcMarkTermination` writes four fields of it, at known distances.
    fn memstats(&self) -> Option<u64> {
        let named = self.sources.addresses("runtime.gcMarkTermination", self.bias);
        let field = |path| self.layout.find(path);
        let anchor = field("memstats.last_gc_unix")?;
        let others =
            [field("memstats.pause_total_ns")?, field("memstats.pause_ns")?, field("memstats.numgc")?];
        let bases = named.iter().map(|address| address.wrapping_sub(anchor.into()));
        only(bases.filter(|base| others.iter().all(|offset| named.contains(&at(*base, *offset)))))
    }

    /// Two of its allocators point to their accounts in the statistics.
    fn mheap(&self, memstats: u64) -> Option<u64> {
        let fits = |base: &u64| heap_points_back(self.memory, self.layout, *base, memstats).is_ok();
        only(self.sources.addresses("runtime.mallocinit", self.bias).into_iter().filter(fits))
    }

    /// A slice whose first entry is the first goroutine.
    fn allgs(&self) -> Option<u64> {
        let goid = self.layout.find("g.goid")?;
        let fits = |base: &u64| {
            let first = slice(self.memory, *base, MAX_GOROUTINES)
                .and_then(|(pointer, _)| u64_at(self.memory, pointer))
                .and_then(|first| u64_at(self.memory, at(first, goid)));
            first == Ok(1)
        };
        only(self.sources.addresses("runtime.allgadd", self.bias).into_iter().filter(fits))
    }

    fn allp(&self) -> Option<u64> {
        let fits = |base: &u64| processors(self.memory, self.layout, *base).is_ok();
        only(self.sources.addresses("runtime.procresize", self.bias).into_iter().filter(fits))
    }

    fn allm(&self) -> Option<u64> {
        let fits = |base: &u64| first_thread(self.memory, self.layout, *base).is_ok();
        only(self.sources.addresses("runtime.mcommoninit", self.bias).into_iter().filter(fits))
    }

    /// `schedinit` stores the limit of threads.
    fn sched(&self) -> Option<u64> {
        let limit = self.layout.find("sched.maxmcount")?;
        let stores = self.sources.operands("runtime.schedinit", self.bias);
        let places = stores.iter().filter(|operand| operand.stored == Some(MAX_THREADS_AT_START));
        let places: BTreeSet<u64> =
            places.map(|operand| operand.address.wrapping_sub(limit.into())).collect();
        only(places.into_iter())
    }

    fn gc_controller(&self) -> Option<u64> {
        let minimum = self.layout.find("gcController.heapMinimum")?;
        // Memory of zeros agrees too: with a target of 0 percent.
        let fits = |base: &u64| {
            pacer_agrees(self.memory, self.layout, *base).is_ok()
                && u64_at(self.memory, at(*base, minimum)).is_ok_and(|minimum| minimum != 0)
        };
        only(self.sources.addresses("runtime.gcinit", self.bias).into_iter().filter(fits))
    }

    /// `gcinit` sets two adjacent semaphores of it, which are free while there is no collection.
    fn work(&self) -> Option<u64> {
        const FREE: u64 = 1 | 1 << 32;
        let (start, done) = (self.layout.find("work.startSema")?, self.layout.find("work.markDoneSema")?);
        if done != start.checked_add(4)? {
            return None;
        }
        let named = self.sources.addresses("runtime.gcinit", self.bias);
        let free = named.into_iter().filter(|place| u64_at(self.memory, *place) == Ok(FREE));
        only(free.map(|place| place.wrapping_sub(start.into())))
    }
}

/// Returns the processors of the scheduler. Each must have its index as its number.
pub(super) fn processors(memory: &dyn Memory, layout: &Layout, allp: u64) -> Result<Vec<u64>, Fault> {
    let id = layout.get("p.id")?;
    let (pointer, length) = slice(memory, allp, MAX_PROCESSORS)?;
    (0..length)
        .map(|index| {
            let processor = u64_at(memory, pointer.wrapping_add(index * 8))?;
            let own = u32_at(memory, at(processor, id))?;
            if u64::from(own) == index {
                Ok(processor)
            } else {
                Err(Fault::Implausible("a processor's number"))
            }
        })
        .collect()
}

/// Returns the newest thread. The list is valid if the goroutine of the newest thread that has one points back to the
/// thread: a thread is in the list a moment before it has one (`allocm` in runtime/proc.go), and may lose the processor
/// in that moment.
pub(super) fn first_thread(memory: &dyn Memory, layout: &Layout, allm: u64) -> Result<u64, Fault> {
    /// The most threads that are that new at once.
    const NEW: usize = 8;
    let first = u64_at(memory, allm)?;
    let mut thread = first;
    for _ in 0..NEW {
        if thread == 0 {
            break;
        }
        let goroutine = u64_at(memory, at(thread, layout.get("m.g0")?))?;
        if goroutine == 0 {
            thread = u64_at(memory, at(thread, layout.get("m.alllink")?))?;
            continue;
        }
        let back = u64_at(memory, at(goroutine, layout.get("g.m")?))?;
        return if back == thread { Ok(first) } else { Err(Fault::Implausible("a thread's goroutine")) };
    }
    Err(Fault::Implausible("a thread's goroutine"))
}

/// Checks that the allocators of spans and caches point to their accounts in the statistics.
pub(super) fn heap_points_back(
    memory: &dyn Memory,
    layout: &Layout,
    mheap: u64,
    memstats: u64,
) -> Result<(), Fault> {
    let points = |pointer, field| -> Result<bool, Fault> {
        Ok(u64_at(memory, at(mheap, layout.get(pointer)?))? == at(memstats, layout.get(field)?))
    };
    let agree = points("mheap_.spanalloc.stat", "memstats.mspan_sys")?
        && points("mheap_.cachealloc.stat", "memstats.mcache_sys")?;
    if agree { Ok(()) } else { Err(Fault::Implausible("the heap's account")) }
}

/// Checks that the minimum heap follows from the target percentage (`setGCPercent` in runtime/mgcpacer.go).
pub(super) fn pacer_agrees(memory: &dyn Memory, layout: &Layout, controller: u64) -> Result<(), Fault> {
    // The smaller one is for GOEXPERIMENT=heapminimum512kib.
    const DEFAULTS: [u64; 2] = [4 << 20, 512 << 10];
    let percent = u32_at(memory, at(controller, layout.get("gcController.gcPercent")?))?.cast_signed();
    let minimum = u64_at(memory, at(controller, layout.get("gcController.heapMinimum")?))?;
    // Without a target the percentage is -1, and the product wraps.
    let percent = i64::from(percent).cast_unsigned();
    let follows = |default: &u64| default.wrapping_mul(percent) / 100 == minimum;
    let limited = match layout.find("gcController.memoryLimit") {
        Some(limit) => u64_at(memory, at(controller, limit))?.cast_signed() >= 0,
        None => true,
    };
    let agrees = limited && DEFAULTS.iter().any(follows);
    if agrees { Ok(()) } else { Err(Fault::Implausible("the pacer's smallest heap")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::GoFile;

    /// Returns the evidence of a stripped program with `count` functions of one name, none of which uses a variable.
    fn sources(count: usize) -> Result<Sources, Unknown> {
        const CODE: &[u8] = &[0xc3, 0xcc, 0xcc, 0xcc];
        let more = vec![("runtime.schedinit", CODE); count];
        let (file, _) = GoFile { more, ..GoFile::of_release(26) }.build();
        Sources::of(&Image::parse(Box::new(file)).expect("an image"), None)
    }

    #[test]
    fn functions_of_one_name_are_few() {
        assert!(sources(2 * FUNCTIONS.len()).is_ok());
        let error = sources(2 * FUNCTIONS.len() + 1).expect_err("too many");
        assert!(error.to_string().contains("too many of its Go functions"), "{error}");
    }
}
