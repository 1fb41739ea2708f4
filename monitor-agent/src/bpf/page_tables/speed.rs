//! How much faster reads by page tables are than those by asking the kernel, on this processor.

use std::time::Duration;

use monitor_ebpf::{TEXT_BYTES, trial};

use super::{Known, MadeUp, Trial};
use crate::bpf::calibrate::{DISPLACING, displace, median};

/// How often reads are timed each way.
const CALLS: usize = 101;
/// Words of a text.
const WORDS: usize = TEXT_BYTES / size_of::<u64>();

/// How long the same reads take both ways, with what measuring takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Speed {
    by_tables: Duration,
    by_asking: Duration,
}

impl Speed {
    /// Times reads of the agent's own memory, for some five milliseconds.
    pub(super) fn measure(known: &Known) -> Result<Self, String> {
        let trial = Trial::begin(known)?;
        let made_up = MadeUp::new().map_err(|error| error.to_string())?;
        let mut memory = vec![1; DISPLACING];
        let mut time = |by_tables: bool| {
            displace(&mut memory);
            let proof = trial.read(&made_up.small[0].0[0], by_tables.into(), trial::TIMED)?;
            if proof.words[..WORDS] != made_up.small[trial::PAGES - 1].0[0][..WORDS] {
                return Err("they don't lead to the agent's own memory a second time".to_owned());
            }
            Ok(Duration::from_nanos(proof.took_ns))
        };
        let [mut by_tables, mut by_asking] = [const { Vec::new() }; 2];
        // In turn, so that both have the same disturbances.
        for _ in 0..CALLS {
            by_tables.push(time(true)?);
            by_asking.push(time(false)?);
        }
        let speed = Self { by_tables: median(by_tables), by_asking: median(by_asking) };
        let Self { by_tables, by_asking } = speed;
        let reads = trial::PAGES;
        log::debug!(
            "{reads} reads of memory take {by_tables:?} by page tables, {by_asking:?} by asking the kernel"
        );
        Ok(speed)
    }

    /// Whether programs should read by page tables: they take at most two thirds of the time.
    ///
    /// A little less time does not pay. Reads by page tables run through more code and touch more memory, which a target
    /// then misses in the caches: where programs took as long both ways, calls of a Kitex server took 1.01 times as much
    /// of its CPU time (docs/overhead.md, "Page tables").
    pub(super) fn is_worth_it(self) -> bool {
        self.by_tables * 3 <= self.by_asking * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_tables_must_be_much_faster() {
        let speed = |[by_tables, by_asking]: [u64; 2]| Speed {
            by_tables: Duration::from_nanos(by_tables),
            by_asking: Duration::from_nanos(by_asking),
        };
        for much_faster in [[100, 150], [150, 330]] {
            assert!(speed(much_faster).is_worth_it(), "{much_faster:?}");
        }
        for little_faster in [[101, 150], [130, 157], [157, 130]] {
            assert!(!speed(little_faster).is_worth_it(), "{little_faster:?}");
        }
    }
}
