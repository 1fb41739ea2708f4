//! Writes the specs of `docs/specs.md` to files.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{agent::run_to_end, paths};

/// Returns all specs in `docs/specs.md`.
pub fn examples() -> Result<Vec<String>> {
    let path = paths::tests().with_file_name("docs").join("specs.md");
    let document = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let blocks = document.split("```toml\n").skip(1).filter_map(|rest| rest.split_once("```"));
    Ok(blocks.map(|(text, _)| text.to_owned()).collect())
}

/// Returns the spec of this name in `docs/specs.md`.
pub fn text(name: &str) -> Result<String> {
    let wanted = format!("name = \"{name}\"");
    let found = examples()?.into_iter().find(|text| text.lines().next() == Some(wanted.as_str()));
    found.with_context(|| format!("no spec {name} in docs/specs.md"))
}

/// Writes a text to a file. The file appears completely or not at all, since tests that run in parallel may write the
/// same one.
pub fn file(name: &str, text: &str) -> Result<PathBuf> {
    static WRITTEN: AtomicUsize = AtomicUsize::new(0);
    let directory = paths::target().join("specs");
    fs::create_dir_all(&directory)?;
    let path = directory.join(format!("{name}.toml"));
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let unfinished = directory.join(format!("{name}.{}-{number}.new", std::process::id()));
    fs::write(&unfinished, text)?;
    fs::rename(unfinished, &path)?;
    Ok(path)
}

/// Writes the spec of this name in `docs/specs.md` to a file.
pub fn documented(name: &str) -> Result<PathBuf> {
    file(name, &text(name)?)
}

/// Returns a path as a command line argument.
///
/// # Panics
/// If it is not UTF-8.
#[must_use]
pub fn path(path: &Path) -> &str {
    path.to_str().expect("a path that is UTF-8")
}

/// Returns the output of `spec check` for the spec of this name in `docs/specs.md`, first without and then with an
/// executable. What differs from build to build is masked: the file's path, places in the executable, and DWARF as a
/// witness.
pub fn checked(name: &str, executable: &Path, patience: Duration) -> Result<String> {
    let file = documented(name)?;
    let file = file.to_str().context("a path that is not UTF-8")?;
    let executable = executable.to_str().context("a path that is not UTF-8")?;
    let mut said = String::new();
    for with in [vec![], vec!["--exe", executable]] {
        let ended = run_to_end(&[vec!["spec", "check", file], with].concat(), patience)?;
        ensure!(ended.code == Some(0) && ended.stderr.is_empty(), "{:?} {}", ended.code, ended.stderr);
        said.extend(ended.stdout.replace(file, "SPEC").lines().map(steady));
    }
    Ok(said)
}

fn steady(line: &str) -> String {
    match line.split_once(" at file offset 0x") {
        Some((instruction, place)) => {
            let behind = place.trim_start_matches(|c: char| c.is_ascii_hexdigit());
            format!("{instruction} at file offset 0xPLACE{behind}\n")
        }
        None => format!("{}\n", line.strip_suffix(", DWARF").unwrap_or(line)),
    }
}
