//! Kernel memory of the agent's maps: bytes that are the same in each run on machines with as many processors.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{
    MIB,
    report::{float, row, table, verdict},
};
use crate::process::say;

/// The most that the maps of an agent with one target should have, in MiB, where there can be so many processors.
pub(super) const AIM_MIB: f64 = 8.0;
const AIM_PROCESSORS: usize = 2;
/// Another kernel of the same release may take a little more for the same maps.
const TOLERANCE: f64 = 0.02;
/// Said of a baseline that was written before there were these numbers.
const MISSING: &str =
    "the baseline has no memory of maps: run `cargo xtask bench --only programs --write`, which notes it";

/// The memory of all maps of an agent with one target at rest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct MapMemory {
    /// That there can be: each has rows of its own in some maps.
    processors: usize,
    /// By what share it may be more than in an earlier run.
    tolerance: f64,
    /// By how the agent runs.
    bytes: BTreeMap<String, u64>,
}

impl MapMemory {
    pub(super) fn new(processors: usize, bytes: BTreeMap<String, u64>) -> Self {
        Self { processors, tolerance: TOLERANCE, bytes }
    }

    /// In Markdown.
    pub(super) fn table(&self) -> String {
        let memory = format!("kernel memory of its maps, where there can be {} processors", self.processors);
        let mut rows = vec![row(["the agent's", memory.as_str(), "aim"])];
        rows.extend(self.bytes.iter().map(|(way, bytes)| {
            let mib = float(*bytes) / MIB;
            let aim = self.aim().map(|aim| format!("≤ {aim} MiB: {}", verdict(mib, aim)));
            vec![way.clone(), format!("{bytes} bytes, {mib:.2} MiB"), aim.unwrap_or_default()]
        }));
        table(&rows)
    }

    /// Writes down what is more than was aimed at, or than in an earlier run by more than that allows; fails where that has no
    /// such numbers. Gives how many were compared.
    pub(super) fn compare(&self, baseline: Option<&Self>, complaints: &mut String) -> Result<usize> {
        for (way, bytes) in &self.bytes {
            let mib = float(*bytes) / MIB;
            if let Some(aim) = self.aim().filter(|aim| mib > *aim) {
                writeln!(complaints, "the maps of `{way}` have {mib:.2} MiB, at most {aim} are aimed at")?;
            }
        }
        let baseline = baseline.context(MISSING)?;
        if self.processors != baseline.processors {
            say(&format!(
                "the memory of maps is not compared: there can be {} processors, and {} in the baseline",
                self.processors, baseline.processors
            ));
            return Ok(0);
        }
        for (way, new) in &self.bytes {
            let old = baseline.bytes.get(way).with_context(|| format!("`{way}`: {MISSING}"))?;
            let limit = float(*old) * (1.0 + baseline.tolerance);
            if float(*new) > limit {
                writeln!(
                    complaints,
                    "the maps of `{way}` have {new} bytes, at most {limit:.0} are allowed (they had {old})"
                )?;
            }
        }
        Ok(self.bytes.len())
    }

    /// In MiB; none for machines that it is not about.
    fn aim(&self) -> Option<f64> {
        (self.processors <= AIM_PROCESSORS).then_some(AIM_MIB)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(processors: usize, bytes: &[(&str, u64)]) -> MapMemory {
        MapMemory::new(processors, bytes.iter().map(|(way, bytes)| ((*way).to_owned(), *bytes)).collect())
    }

    fn complaints(now: &MapMemory, baseline: &MapMemory) -> (usize, String) {
        let mut complaints = String::new();
        let compared = now.compare(Some(baseline), &mut complaints).unwrap();
        (compared, complaints)
    }

    #[test]
    fn maps_may_have_less_and_very_little_more() {
        let baseline = memory(2, &[("run", 7_000_000)]);
        for bytes in [1_000_000, 7_000_000, 7_139_000] {
            assert_eq!(complaints(&memory(2, &[("run", bytes)]), &baseline), (1, String::new()));
        }
        let (_, text) = complaints(&memory(2, &[("run", 7_150_000)]), &baseline);
        assert_eq!(
            text,
            "the maps of `run` have 7150000 bytes, at most 7140000 are allowed (they had 7000000)\n"
        );
    }

    #[test]
    fn what_is_beyond_the_aim_is_so_whatever_was_before() {
        let beyond = memory(2, &[("run", (8 << 20) + 1)]);
        let (_, text) = complaints(&beyond, &beyond);
        assert_eq!(text, "the maps of `run` have 8.00 MiB, at most 8 are aimed at\n");
        assert!(beyond.table().contains("| ≤ 8 MiB: not met |"), "{}", beyond.table());
        let just = memory(2, &[("run", 8 << 20)]);
        assert_eq!(complaints(&just, &just), (1, String::new()));
        assert!(just.table().contains("| run         | 8388608 bytes, 8.00 MiB "), "{}", just.table());
        assert!(just.table().contains("| ≤ 8 MiB: met |"), "{}", just.table());
    }

    #[test]
    fn other_numbers_of_processors_are_not_compared_and_have_no_aim() {
        let many = memory(64, &[("run", 20 << 20)]);
        assert_eq!(complaints(&many, &memory(2, &[("run", 7 << 20)])), (0, String::new()));
        assert_eq!(complaints(&many, &many), (1, String::new()));
        assert!(!many.table().contains("met"), "{}", many.table());
    }

    #[test]
    fn a_baseline_without_it_is_an_error_that_says_what_to_do() {
        let now = memory(2, &[("run", 1), ("run --capture.slow", 1)]);
        for baseline in [None, Some(memory(2, &[("run", 1)]))] {
            let error = now.compare(baseline.as_ref(), &mut String::new()).unwrap_err().to_string();
            assert!(error.contains("run `cargo xtask bench --only programs --write`"), "{error}");
        }
    }
}
