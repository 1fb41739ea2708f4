//! Kernel memory of the agent's maps: the same number of bytes in each run, for the same number of possible
//! processors.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{
    MB, MIB,
    report::{float, row, table, verdict},
};
use crate::process::say;

/// Limit for the maps of an agent with one target, in MB, on machines with up to `AIM_PROCESSORS` possible
/// processors.
pub(super) const AIM_MB: f64 = 8.0;
const AIM_PROCESSORS: usize = 2;
/// Ways to run the agent that are known to exceed the aim. The table says so, and they are only compared with the
/// earlier run. With messages counted there is one more table, for as many streams as calls may be in flight.
const BEYOND: [&str; 1] = ["run --grpc.messages"];
/// Another kernel of the same release may need a little more for the same maps.
const TOLERANCE: f64 = 0.02;
/// The error for a baseline without these numbers.
const MISSING: &str =
    "the baseline has no memory of maps: run `cargo xtask bench --only programs --write`, which notes it";

/// The memory of all maps of an agent with one idle target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct MapMemory {
    /// Possible processors: each has rows of its own in some maps.
    processors: usize,
    /// The share by which it may exceed an earlier run's.
    tolerance: f64,
    /// By the way the agent runs.
    bytes: BTreeMap<String, u64>,
}

impl MapMemory {
    pub(super) fn new(processors: usize, bytes: BTreeMap<String, u64>) -> Self {
        Self { processors, tolerance: TOLERANCE, bytes }
    }

    /// Formats a table in Markdown.
    pub(super) fn table(&self) -> String {
        let memory = format!("kernel memory of its maps, where there can be {} processors", self.processors);
        let mut rows = vec![row(["the agent's", memory.as_str(), "aim"])];
        rows.extend(self.bytes.iter().map(|(way, bytes)| {
            let aim = self.aim().map(|aim| format!("≤ {AIM_MB} MB: {}", verdict(float(*bytes), aim)));
            vec![
                way.clone(),
                format!("{bytes} bytes, {:.2} MiB", float(*bytes) / MIB),
                aim.unwrap_or_default(),
            ]
        }));
        table(&rows)
    }

    /// Adds a complaint for each number that exceeds the aim, or an earlier run's by more than the tolerance. Fails
    /// if the earlier run lacks such numbers. Returns how many were compared.
    pub(super) fn compare(&self, baseline: Option<&Self>, complaints: &mut String) -> Result<usize> {
        for (way, bytes) in &self.bytes {
            let is_held = !BEYOND.contains(&way.as_str());
            if let Some(aim) = self.aim().filter(|aim| is_held && float(*bytes) > *aim) {
                writeln!(complaints, "the maps of `{way}` have {bytes} bytes, at most {aim} are aimed at")?;
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

    /// The aim in bytes; `None` for machines that it does not cover.
    fn aim(&self) -> Option<f64> {
        (self.processors <= AIM_PROCESSORS).then_some(AIM_MB * MB)
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
        let beyond = memory(2, &[("run", 8_000_001)]);
        let (_, text) = complaints(&beyond, &beyond);
        assert_eq!(text, "the maps of `run` have 8000001 bytes, at most 8000000 are aimed at\n");
        assert!(beyond.table().contains("| ≤ 8 MB: not met |"), "{}", beyond.table());
        let just = memory(2, &[("run", 8_000_000)]);
        assert_eq!(complaints(&just, &just), (1, String::new()));
        assert!(just.table().contains("| run         | 8000000 bytes, 7.63 MiB "), "{}", just.table());
        assert!(just.table().contains("| ≤ 8 MB: met |"), "{}", just.table());
    }

    #[test]
    fn what_is_known_to_be_beyond_the_aim_is_told_and_held_to_the_earlier_run() {
        let known = memory(2, &[("run --grpc.messages", 9_000_000)]);
        assert_eq!(complaints(&known, &known), (1, String::new()));
        assert!(known.table().contains("| ≤ 8 MB: not met |"), "{}", known.table());
        let more = memory(2, &[("run --grpc.messages", 9_200_000)]);
        let (_, text) = complaints(&more, &known);
        assert!(text.contains("at most 9180000 are allowed"), "{text}");
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
