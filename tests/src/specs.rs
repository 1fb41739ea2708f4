//! The specs of `docs/specs.md`, as files.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::paths;

/// All specs in `docs/specs.md`.
pub fn examples() -> Result<Vec<String>> {
    let path = paths::tests().with_file_name("docs").join("specs.md");
    let document = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let blocks = document.split("```toml\n").skip(1).filter_map(|rest| rest.split_once("```"));
    Ok(blocks.map(|(text, _)| text.to_owned()).collect())
}

/// The spec of this name in `docs/specs.md`.
pub fn text(name: &str) -> Result<String> {
    let wanted = format!("name = \"{name}\"");
    let found = examples()?.into_iter().find(|text| text.lines().next() == Some(wanted.as_str()));
    found.with_context(|| format!("no spec {name} in docs/specs.md"))
}

/// A file with this text.
pub fn file(name: &str, text: &str) -> Result<PathBuf> {
    let directory = paths::target().join("specs");
    fs::create_dir_all(&directory)?;
    let path = directory.join(format!("{name}.toml"));
    fs::write(&path, text)?;
    Ok(path)
}

/// A file with the spec of this name.
pub fn documented(name: &str) -> Result<PathBuf> {
    file(name, &text(name)?)
}
