//! A part of the compatibility matrix: the newest and the oldest cell, and others in turn. `cargo xtask matrix` tries all.

use anyhow::{Result, ensure};
use monitor_tests::matrix::{
    Matrix,
    watch::{self, Verdict},
};

/// How many cells are tried besides the fixed ones: each may have to compile Kitex first, which takes a minute or two.
const OTHERS: usize = 1;

#[test]
fn cells_count_exactly() -> Result<()> {
    let matrix = Matrix::read()?;
    let cells = matrix.chosen(OTHERS);
    ensure!(!cells.is_empty(), "no cell is chosen");
    for cell in cells {
        match watch::cell(&matrix, cell) {
            Verdict::Supported(report) => eprintln!("{cell}: {} calls", report.calls),
            other => panic!("{cell}: {other:?}"),
        }
    }
    Ok(())
}
