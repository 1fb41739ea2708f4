//! Measures how many records the agent decodes and aggregates per second, by `monitor-agent/benches/pipeline.rs`. In
//! addition to the rings that this makes itself, it gets two recorded ones: those of a Kitex server whose agent was
//! stopped for a while.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::Value;

use super::{
    machine::{Cores, pinned},
    recorded,
    report::{Spread, row, table, verdict},
    section::Section,
};
use crate::process::{cargo, output, root};

/// The aim in records per second.
const AIM: f64 = 2_000_000.0;

/// One line of the benchmark.
#[derive(Debug, Deserialize)]
struct Figure {
    what: String,
    label_sets: u32,
    per_second: Vec<f64>,
}

/// Builds the benchmark and runs it on one processor.
pub(super) fn measure(cores: Cores) -> Result<Section> {
    let bench = ["bench", "--quiet", "--locked", "--package", "monitor-agent", "--bench", "pipeline"];
    output(cargo().args(bench).arg("--no-run"))?;
    let directory = root().join("target/recorded");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    recorded::record(cores, &directory)?;
    let mut pinned = pinned(cores.others, Path::new(cargo().get_program()));
    let pinned = pinned.args(bench).arg("--").arg(&directory);
    let text = output(pinned.current_dir(root()).env_remove("LD_LIBRARY_PATH"))?;
    section(serde_json::from_str(&text).context("what the benchmark wrote")?)
}

fn section(results: Value) -> Result<Section> {
    let figures: Vec<Figure> = serde_json::from_value(results.clone())?;
    let mut rows = vec![row(["a full ring of", "label sets", "millions a second", "aim"])];
    for Figure { what, label_sets, per_second } in figures {
        let rate = Spread::of(per_second.iter().map(|rate| rate / 1e6));
        // Higher is better here.
        let met = verdict(AIM / 1e6, rate.median);
        rows.push(vec![
            what,
            label_sets.to_string(),
            rate.show(1),
            format!("≥ {} million: {met}", AIM / 1e6),
        ]);
    }
    Ok(Section { part: "pipeline", blocks: vec![("pipeline", table(&rows))], results, ..Section::default() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rate_is_compared_with_the_aim() {
        let figure = |rate: f64| json!({ "what": "records", "label_sets": 10, "per_second": [rate, rate, rate + 1e6] });
        let (_, text) = section(json!([figure(9e6), figure(1e6)])).unwrap().blocks.remove(0);
        assert!(text.contains("| 9.0 (9.0 to 10.0) | ≥ 2 million: met "), "{text}");
        assert!(text.contains("| 1.0 (1.0 to 2.0)  | ≥ 2 million: not met |"), "{text}");
    }
}
