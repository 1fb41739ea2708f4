//! CPU time by class.

use super::{
    super::{
        Fault,
        memory::{Block, at},
    },
    MAX_BLOCK, Moment,
};

impl Moment<'_> {
    /// Reads the CPU times, which the runtime adds up at the end of each collection.
    pub(super) fn cpu(&mut self) -> Result<(), Fault> {
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
        // A pause is added at once, since Go 1.23 also to the time of the collector. The sums follow later.
        let is_sum = |parts: &[i64], whole: i64| {
            let ahead = sum(parts).and_then(|sum| sum.checked_sub(whole));
            ahead.is_some_and(|ahead| (0..=pause).contains(&ahead))
        };
        let adds_up = is_sum(&[assist, dedicated, gc_idle, pause], gc)
            && is_sum(&[gc, scavenge, idle, user], total)
            && sum(&[scavenge_assist, scavenge_background]) == Some(scavenge);
        // The times were added up if a collection has ended.
        let collected = self.readings.gc.as_ref().is_some_and(|cycles| cycles.count > 0);
        if !adds_up || total < i64::from(collected) {
            return Err(WHAT);
        }
        for (name, nanos) in NAMES.into_iter().zip(times) {
            self.set_nanos(name, nanos);
        }
        Ok(())
    }
}
