//! Tries all cells of the compatibility matrix and writes what came of them.

use std::{fs, time::Instant};

use anyhow::{Result, bail};
use monitor_tests::matrix::{
    Matrix, report,
    watch::{self, Verdict},
};

use crate::{
    process::{root, say},
    setup,
};

/// Tries the cells whose name holds one of the filters; without a filter, all, and writes `docs/compatibility.md`.
pub(crate) fn run(filters: &[String]) -> Result<()> {
    setup::agent_and_go("matrix")?;
    let matrix = Matrix::read()?;
    let mut results = Vec::new();
    for cell in &matrix.cells {
        let name = cell.to_string();
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter)) {
            continue;
        }
        let begin = Instant::now();
        let verdict = watch::cell(&matrix, cell);
        println!("{name}: {} ({:.0} s)", shown(&verdict), begin.elapsed().as_secs_f64());
        results.push((cell, verdict));
    }
    if results.is_empty() {
        bail!("no cell has such a name; tests/matrix.json lists them");
    }
    if filters.is_empty() {
        let path = root().join("docs/compatibility.md");
        fs::write(&path, report::document(&matrix, &results))?;
        say(&format!("written: {}", path.display()));
    }
    let failed = results.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Failed(_))).count();
    if failed > 0 {
        bail!("{failed} of {} cells fail", results.len());
    }
    Ok(())
}

fn shown(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Supported(report) => {
            format!("supported, {} calls and {} messages", report.calls, report.messages)
        }
        Verdict::Refused(reason) => format!("refused: {reason}"),
        Verdict::NotBuildable(reason) => format!("not buildable: {reason}"),
        Verdict::Failed(reason) => format!("FAILS: {reason}"),
    }
}
