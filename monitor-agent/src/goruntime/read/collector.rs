//! The memory and the garbage collector.

use super::{
    super::{
        Fault,
        globals::{heap_points_back, pacer_agrees},
        heap::{Heap, System, by_size, cycles},
        histogram,
        memory::{Block, at, u32_at, u64_at},
        pacing::Pacing,
    },
    MAX_BLOCK, Moment,
};

impl Moment<'_> {
    /// Reads the statistics of the memory and of the collector, which belong together.
    pub(super) fn collector(&mut self) -> Result<(), Fault> {
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

    /// Checks that the records of the heap were not being merged while they were read. Threads write to one of the
    /// three. When a program reads its statistics, the next one becomes the one to write to. Then one of the other two
    /// is added to the third, and cleared (`consistentHeapStats` in runtime/mstats.go). So these two must be the same
    /// when read again. The counts in the one that is written to must not be lower: if they are, all three have had
    /// their turn in between.
    pub(super) fn records_rest(&self, memstats: &Block) -> Result<(), Fault> {
        const WHAT: Fault = Fault::Implausible("the heap while it was merged");
        let start = self.layout.get("memstats.heapStats.stats")?;
        let turn = self.layout.get("memstats.heapStats.gen")?;
        let record = self.layout.get("heapStatsDelta#")?;
        let size = turn.checked_sub(start).and_then(|size| size.checked_add(4)).ok_or(WHAT)?;
        let place = at(self.globals.get("runtime.memstats")?, start);
        let again = Block::read(self.memory, place, size.min(MAX_BLOCK))?;
        let written = memstats.u32(turn)?;
        // The sizes before the counts may fall.
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
}
