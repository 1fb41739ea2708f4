//! Texts that must not change.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

/// Compares a text with a file in `goldens/`. If they differ, the text is written to a file, to be inspected or copied.
pub(crate) fn check(name: &str, text: &str) -> Result<()> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens").join(name);
    if fs::read_to_string(&golden).is_ok_and(|expected| expected == text) {
        return Ok(());
    }
    let found = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&found, text)?;
    let (golden, found) = (golden.display(), found.display());
    bail!("not as in the golden file: diff {golden} {found}\nif it is right so: cp {found} {golden}")
}
