//! When the next collection is due.

use super::{Fault, Layout, memory::Block};

/// The state of the pacer.
pub(super) struct Pacing {
    pub(super) goal: u64,
    pub(super) marked: u64,
    pub(super) percent: u64,
    pub(super) limit: Option<u64>,
    /// Bytes to scan in heap, stacks and globals.
    pub(super) scan: Option<[u64; 3]>,
}

impl Pacing {
    pub(super) fn read(pacer: &Block, layout: &Layout) -> Result<Self, Fault> {
        let percent = pacer.i32(layout.get("gcController.gcPercent")?)?;
        let marked = pacer.u64(layout.get("gcController.heapMarked")?)?;
        let field = |path| layout.find(path).map(|offset| pacer.u64(offset)).transpose();
        let limit = field("gcController.memoryLimit")?;
        let goal = match (field("gcController.heapGoal")?, limit) {
            // Go 1.18 stores the goal.
            (Some(goal), _) => goal,
            (None, Some(limit)) => Goal::read(pacer, layout, marked, limit)?.bytes(),
            (None, None) => return Err(Fault::NoPlace("gcController.memoryLimit")),
        };
        // Shown since Go 1.21.
        let scan = if layout.minor() < 21 {
            None
        } else {
            let scan = ["gcController.heapScan", "gcController.lastStackScan", "gcController.globalsScan"];
            let [heap, stack, globals] =
                scan.map(|path| layout.get(path).and_then(|offset| pacer.u64(offset)));
            Some([heap?, stack?, globals?])
        };
        // Off is −1, which runtime/metrics shows as an unsigned number.
        Ok(Self { goal, marked, percent: i64::from(percent).cast_unsigned(), limit, scan })
    }
}

/// The inputs of the heap goal: `heapGoalInternal` in runtime/mgcpacer.go @ go1.19 to go1.27.
struct Goal {
    of_percentage: u64,
    least_distance: u64,
    triggered: u64,
    marked: u64,
    limit: u64,
    free: u64,
    allocated: u64,
    mapped: u64,
    /// Whether the headroom below the goal is a part of the goal, as since Go 1.21. Before, it is a fixed size.
    relative_headroom: bool,
}

impl Goal {
    fn read(pacer: &Block, layout: &Layout, marked: u64, limit: u64) -> Result<Self, Fault> {
        const WHAT: Fault = Fault::Implausible("the memory that is mapped");
        let field = |path| layout.get(path).and_then(|offset| pacer.u64(offset));
        let (allocated, freed) = (field("gcController.totalAlloc")?, field("gcController.totalFree")?);
        let goal = Self {
            of_percentage: field("gcController.gcPercentHeapGoal")?,
            least_distance: field("gcController.sweepDistMinTrigger")?,
            triggered: field("gcController.triggered")?,
            marked,
            limit,
            free: field("gcController.heapFree")?,
            allocated: allocated.checked_sub(freed).ok_or(WHAT)?,
            mapped: field("gcController.mappedReady")?,
            relative_headroom: layout.minor() >= 21,
        };
        // The runtime itself waits until this holds.
        let fits = goal.free.checked_add(goal.allocated).is_some_and(|used| used <= goal.mapped);
        if fits { Ok(goal) } else { Err(WHAT) }
    }

    fn bytes(&self) -> u64 {
        /// Bytes between the start of a collection and the goal.
        const RUNWAY: u64 = 64 << 10;
        let of_limit = self.of_limit();
        if of_limit < self.of_percentage {
            return of_limit;
        }
        let goal = self.of_percentage.max(self.least_distance);
        // No collection is in progress.
        if self.triggered == u64::MAX {
            return goal;
        }
        goal.max(self.triggered.saturating_add(RUNWAY))
    }

    fn of_limit(&self) -> u64 {
        const LEAST_HEADROOM: u64 = 1 << 20;
        const PERCENT: u64 = 3;
        let beside_heap = self.mapped - self.free - self.allocated;
        let over = self.mapped.saturating_sub(self.limit);
        let taken = beside_heap.saturating_add(over);
        if taken >= self.limit {
            return self.marked;
        }
        let goal = self.limit - taken;
        let relative = if self.relative_headroom { goal / 100 * PERCENT } else { 0 };
        let headroom = relative.max(LEAST_HEADROOM);
        let left = goal.saturating_sub(headroom);
        left.max(headroom).max(self.marked)
    }
}
