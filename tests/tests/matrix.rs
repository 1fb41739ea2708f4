//! A part of the compatibility matrix: the newest and the oldest cell, and others in turn. `cargo xtask matrix` tests
//! all cells.

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail, ensure};
use monitor_tests::{
    matrix::{
        Matrix,
        watch::{self, Verdict},
    },
    side_by_side,
};

/// How many cells are tested besides the fixed ones. Each may have to compile Kitex first, which takes a minute or two.
const OTHERS: usize = 1;
/// How many cells are tested at once: while one is built, another is watched.
const AT_ONCE: usize = 2;

#[test]
fn cells_count_exactly() -> Result<()> {
    let matrix = Matrix::read()?;
    let mut cells = matrix.chosen(OTHERS);
    ensure!(!cells.is_empty(), "no cell is chosen");
    // Cells that may have to be built come first. The fixed ones are watched meanwhile.
    cells.reverse();
    let cells = Mutex::new(cells.into_iter());
    let next = || cells.lock().unwrap_or_else(PoisonError::into_inner).next();
    side_by_side(0..AT_ONCE, |_| {
        while let Some(cell) = next() {
            match watch::cell(&matrix, cell) {
                Verdict::Supported(report) => eprintln!("{cell}: {} calls", report.calls),
                other => bail!("{cell}: {other:?}"),
            }
        }
        Ok(())
    })
}
