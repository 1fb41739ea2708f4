//! Tries all cells of the compatibility matrix and writes the results.

use std::{fs, time::Instant};

use anyhow::{Result, bail};
use monitor_tests::matrix::{
    Cell, Framework, Matrix, report,
    watch::{self, Verdict},
};

use crate::{
    process::{root, say},
    setup,
};

/// Tries the cells whose name contains one of the filters. Without filters tries all and writes
/// `docs/compatibility.md`; with the name of a framework, tries its cells and writes its part. Fails unless every
/// cell that can be built is supported.
pub(crate) fn run(filters: &[String]) -> Result<()> {
    let framework = match filters {
        [name] if name == "kitex" => Some(Framework::Kitex),
        [name] if name == "grpc" => Some(Framework::Grpc),
        _ => None,
    };
    let is_chosen = |cell: &Cell| match framework {
        Some(framework) => cell.framework == framework,
        None => filters.is_empty() || filters.iter().any(|filter| cell.to_string().contains(filter)),
    };
    setup::agent_and_go("matrix")?;
    let matrix = Matrix::read()?;
    let mut results = Vec::new();
    for cell in matrix.cells.iter().filter(|cell| is_chosen(cell)) {
        let name = cell.to_string();
        let begin = Instant::now();
        let verdict = watch::cell(&matrix, cell);
        println!("{name}: {} ({:.0} s)", shown(&verdict), begin.elapsed().as_secs_f64());
        results.push((cell, verdict));
    }
    if results.is_empty() {
        bail!("no cell has such a name; tests/matrix.json lists them");
    }
    if filters.is_empty() || framework.is_some() {
        let path = root().join("docs/compatibility.md");
        let before = fs::read_to_string(&path)?;
        fs::write(&path, report::document(&matrix, &results, &before))?;
        say(&format!("written: {}", path.display()));
    }
    let failed = results.iter().filter(|(_, verdict)| fails(verdict)).count();
    if failed > 0 {
        bail!("{failed} of {} cells fail or are refused", results.len());
    }
    Ok(())
}

/// Whether this is a failure. A refusal is one: the agent should refuse no cell.
fn fails(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Failed(_) | Verdict::Refused(_))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_that_is_refused_fails() {
        let why = || "why".to_owned();
        assert!(fails(&Verdict::Refused(why())) && fails(&Verdict::Failed(why())));
        assert!(!fails(&Verdict::NotBuildable(why())));
    }
}
