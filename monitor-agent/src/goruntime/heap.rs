//! The heap and the runtime's other memory, from its own statistics.

use super::{Fault, GcCycles, Histogram, Layout, memory::Block};

/// The number of pauses that the runtime keeps.
const PAUSES: u32 = 256;
/// `SizeClassToSize` in internal/runtime/gc/sizeclasses.go @ go1.27, the same since Go 1.18.
#[rustfmt::skip]
const SIZE_CLASSES: [u64; 68] = [
    0, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256, 288, 320, 352, 384, 416, 448,
    480, 512, 576, 640, 704, 768, 896, 1024, 1152, 1280, 1408, 1536, 1792, 2048, 2304, 2688, 3072, 3200, 3456, 4096,
    4864, 5376, 6144, 6528, 6784, 6912, 8192, 9472, 9728, 10240, 10880, 12288, 13568, 14336, 16384, 18432, 19072, 20480,
    21760, 24576, 27264, 28672, 32768,
];

/// The runtime's own memory, in bytes.
pub(super) struct System {
    pub(super) stacks: u64,
    pub(super) spans: u64,
    pub(super) spans_in_use: u64,
    pub(super) caches: u64,
    pub(super) caches_in_use: u64,
    pub(super) profiling: u64,
    pub(super) collector: u64,
    pub(super) other: u64,
}

impl System {
    pub(super) fn check(&self) -> Result<(), Fault> {
        let fits = self.spans_in_use <= self.spans && self.caches_in_use <= self.caches;
        if fits { Ok(()) } else { Err(Fault::Implausible("the memory of spans and caches")) }
    }
}

/// The heap, in bytes and objects: `heapStatsAggregate` in runtime/metrics.go.
pub(super) struct Heap {
    pub(super) committed: u64,
    pub(super) released: u64,
    /// Spans of objects, used or not.
    pub(super) spans: u64,
    pub(super) stacks: u64,
    pub(super) collector: u64,
    pub(super) free: u64,
    pub(super) objects: u64,
    pub(super) allocated: u64,
    pub(super) freed: u64,
    pub(super) allocs: u64,
    pub(super) frees: u64,
    pub(super) tiny_allocs: u64,
    pub(super) large_allocs: u64,
    pub(super) large_frees: u64,
    pub(super) allocs_by_class: Vec<u64>,
    pub(super) frees_by_class: Vec<u64>,
}

impl Heap {
    /// Sums up the three records that the runtime's threads use in turn.
    pub(super) fn read(memstats: &Block, layout: &Layout) -> Result<Self, Fault> {
        const WHAT: Fault = Fault::Implausible("the heap");
        let start = layout.get("memstats.heapStats.stats")?;
        let record = layout.get("heapStatsDelta#")?;
        if layout.get("heapStatsDelta.smallAllocCount#")? as usize != SIZE_CLASSES.len() * 8 {
            return Err(Fault::Implausible("the number of size classes"));
        }
        let records = [0, 1, 2].map(|index: u32| start.saturating_add(index.saturating_mul(record)));
        let number = |offset: u32| -> Result<u64, Fault> {
            records.iter().try_fold(0_u64, |sum, start| {
                Ok(sum.wrapping_add(memstats.u64(start.saturating_add(offset))?))
            })
        };
        let field = |path| number(layout.get(path)?);
        let classes = |path| -> Result<Vec<u64>, Fault> {
            let first = layout.get(path)?;
            (0..).step_by(8).take(SIZE_CLASSES.len()).map(|at| number(first.saturating_add(at))).collect()
        };
        // A single record may be negative; the sum is not.
        let size =
            |path| field(path).and_then(|size| if size.cast_signed() < 0 { Err(WHAT) } else { Ok(size) });
        let (allocs_by_class, frees_by_class) =
            (classes("heapStatsDelta.smallAllocCount")?, classes("heapStatsDelta.smallFreeCount")?);
        let (large_allocs, large_frees) =
            (field("heapStatsDelta.largeAllocCount")?, field("heapStatsDelta.largeFreeCount")?);
        let count = |classes: &[u64], large: u64| classes.iter().copied().fold(large, u64::wrapping_add);
        let bytes = |classes: &[u64], large: u64| {
            let sizes = classes.iter().zip(SIZE_CLASSES).map(|(count, size)| count.wrapping_mul(size));
            sizes.fold(large, u64::wrapping_add)
        };
        let (committed, spans, stacks, work_buffers) = (
            size("heapStatsDelta.committed")?,
            size("heapStatsDelta.inHeap")?,
            size("heapStatsDelta.inStacks")?,
            size("heapStatsDelta.inWorkBufs")?,
        );
        let program_bits = match layout.find("heapStatsDelta.inPtrScalarBits") {
            Some(offset) => number(offset)?,
            None => 0,
        };
        let collector = work_buffers.wrapping_add(program_bits);
        let allocated = bytes(&allocs_by_class, field("heapStatsDelta.largeAlloc")?);
        let freed = bytes(&frees_by_class, field("heapStatsDelta.largeFree")?);
        let used = [spans, stacks, collector].into_iter().try_fold(0, u64::checked_add).ok_or(WHAT)?;
        let heap = Self {
            committed,
            released: size("heapStatsDelta.released")?,
            spans,
            stacks,
            collector,
            free: committed.checked_sub(used).ok_or(WHAT)?,
            objects: allocated.checked_sub(freed).ok_or(WHAT)?,
            allocs: count(&allocs_by_class, large_allocs),
            frees: count(&frees_by_class, large_frees),
            allocated,
            freed,
            tiny_allocs: field("heapStatsDelta.tinyAllocCount")?,
            large_allocs,
            large_frees,
            allocs_by_class,
            frees_by_class,
        };
        if heap.objects > heap.spans || heap.frees > heap.allocs { Err(WHAT) } else { Ok(heap) }
    }

    /// Checks that the runtime's other account has about the same heap, and about as much free memory. While a program
    /// reads its own statistics, one record is for a moment merged into another and not yet cleared, which doubles all
    /// sums.
    pub(super) fn check(&self, memstats: &Block, pacer: &Block, layout: &Layout) -> Result<(), Fault> {
        /// Bytes that may come and go between two reads.
        const SLACK: u64 = 256 << 10;
        let known = match layout.find("gcController.heapInUse") {
            Some(in_use) => pacer.u64(in_use)?,
            // Go 1.18 keeps it in the statistics.
            None => memstats.u64(layout.get("memstats.heap_inuse")?)?,
        };
        let near = |ours: u64, known: u64| {
            let (small, large) = (ours.min(known), ours.max(known));
            large <= small.saturating_add(small / 2).saturating_add(SLACK)
        };
        // Committed memory minus what is used for other purposes (`readmemstats_m` in runtime/mstats.go).
        let is_kept = match layout.find("gcController.heapFree") {
            Some(free) => near(self.spans.saturating_add(self.free), known.saturating_add(pacer.u64(free)?)),
            None => true,
        };
        let agrees = near(self.spans, known) && is_kept;
        if agrees { Ok(()) } else { Err(Fault::Implausible("the size of the heap")) }
    }
}

/// Returns objects by size. Class 0 is not used; large objects follow the last class.
pub(super) fn by_size(classes: &[u64], large: u64) -> Histogram {
    #[expect(clippy::cast_precision_loss, reason = "sizes up to 32 KiB")]
    let mut bounds: Vec<f64> = SIZE_CLASSES.iter().map(|size| (size + 1) as f64).collect();
    bounds.push(f64::INFINITY);
    let counts = classes.iter().skip(1).copied().chain([large]).collect();
    Histogram { counts, bounds }
}

/// Reads the collections as `readGCStats_m` in runtime/mstats.go does.
pub(super) fn cycles(memstats: &Block, layout: &Layout) -> Result<GcCycles, Fault> {
    const WHAT: Fault = Fault::Implausible("the pauses of collections");
    let count = memstats.u32(layout.get("memstats.numgc")?)?;
    let total = memstats.u64(layout.get("memstats.pause_total_ns")?)?;
    let last = memstats.u64(layout.get("memstats.last_gc_unix")?)?;
    // The newest is at index count − 1, and those before the first collection are 0.
    let mut pauses = memstats.u64s(layout.get("memstats.pause_ns")?, PAUSES)?;
    pauses.truncate(count.min(PAUSES) as usize);
    let sum = pauses.iter().try_fold(0, |sum: u64, pause| sum.checked_add(*pause)).ok_or(WHAT)?;
    let adds_up = if count <= PAUSES { sum == total } else { sum <= total };
    if !adds_up || (count == 0) != (last == 0) {
        return Err(WHAT);
    }
    let oldest = count % PAUSES;
    if count > PAUSES {
        pauses.rotate_left(oldest as usize);
    }
    Ok(GcCycles { count: count.into(), pause_total_ns: total, last_unix_ns: last, pauses_ns: pauses })
}
