//! Single numbers, whose addresses only a symbol table or the DWARF gives.

use super::{
    super::{
        Fault,
        memory::{at, u32_at, u64_at},
    },
    Moment,
};

impl Moment<'_> {
    pub(super) fn single_numbers(&mut self) -> Result<(), Fault> {
        if let (Ok(limiter), Some(cycle)) =
            (self.globals.get("runtime.gcCPULimiter"), self.layout.find("gcCPULimiter.lastEnabledCycle"))
        {
            let cycle = u64::from(u32_at(self.memory, at(limiter, cycle))?);
            let count = self.readings.gc.as_ref().map_or(u64::MAX, |cycles| cycles.count);
            // The collection in progress may be the last one.
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

    pub(super) fn cleanups(&mut self, processors: &[u64]) -> Result<(), Fault> {
        let Ok(queue) = self.globals.get("runtime.gcCleanups") else { return Ok(()) };
        let executed = u64_at(self.memory, at(queue, self.layout.get("gcCleanups.executed")?))?;
        let queued = at(queue, self.layout.get("gcCleanups.queued")?);
        let queued = self.with_processors(queued, processors, "p.cleanupsQueued")?;
        self.set("/gc/cleanups/executed:cleanups", executed);
        self.set("/gc/cleanups/queued:cleanups", queued);
        Ok(())
    }
}
