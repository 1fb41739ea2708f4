//! The compatibility matrix: releases of Kitex and of gRPC-Go, releases of Go and ways to build, each tested with every
//! kind of call.
//!
//! `matrix.json` lists the cells. [`Cell::build`] builds the program of one, [`watch`] runs the agent on it and
//! compares the counts, [`report`] writes `docs/compatibility.md`.

pub mod report;
pub mod watch;

mod build;
mod fork;

use std::{collections::BTreeMap, fmt};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::{paths, whose_turn::whose_turn};

/// The content of `tests/matrix.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    /// Releases of Kitex: for earlier ones, the program is built from other files.
    tags: Vec<String>,
    /// Ways to build, by name.
    pub builds: BTreeMap<String, Build>,
    /// The numbers that are not compared.
    racy: Vec<Racy>,
    /// The cells to test.
    pub cells: Vec<Cell>,
}

/// A number that changes while the tracer and the agent read it, each at a different time.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Racy {
    callee: String,
    side: String,
    number: String,
    why: String,
}

/// A way to build.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Build {
    /// A description for people.
    pub about: String,
    flags: Vec<String>,
    /// Whether cgo is used. If absent, Go decides.
    cgo: Option<bool>,
    /// Whether the symbol table is stripped after the build.
    strip: bool,
    /// Whether to optimize with a profile that the program has made of itself.
    profile: bool,
    /// Build tags that add files to the gRPC-Go program. The modules for each release are in a directory of that name.
    tags: String,
    source: Source,
}

/// Where the sources of Kitex are.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Source {
    /// In the module cache.
    #[default]
    Modules,
    /// Below the program's own `vendor/`, with modules disabled.
    Vendored,
    /// In a copy under another import path.
    Renamed,
    /// In a copy whose structs have fields moved and added.
    Altered,
}

/// A framework in the matrix.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Framework {
    /// Kitex: `targets/calls`.
    #[default]
    Kitex,
    /// gRPC-Go: `targets/grpc`.
    Grpc,
}

impl Framework {
    /// The framework's name, for people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Kitex => "Kitex",
            Self::Grpc => "gRPC-Go",
        }
    }

    /// The program that makes the framework's calls, which is also the directory of its sources.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Kitex => "calls",
            Self::Grpc => "grpc",
        }
    }
}

/// One combination of a release of a framework, a release of Go and a way to build.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// The framework.
    #[serde(default)]
    pub framework: Framework,
    /// The release of the framework, such as `v0.16.3`.
    pub release: String,
    /// The release of Go, such as `1.26.8`.
    pub go: String,
    /// The name of the way to build.
    #[serde(default = "default_build")]
    pub build: String,
    /// Whether every run of the tests includes the cell.
    #[serde(default)]
    pub fixed: bool,
    /// Why the cell is known not to build. If set, the cell is not tested.
    #[serde(default)]
    pub not_buildable: Option<String>,
}

fn default_build() -> String {
    "default".to_owned()
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let framework = if self.framework == Framework::Grpc { "grpc-" } else { "" };
        write!(f, "{framework}{}-go{}-{}", self.release, self.go, self.build)
    }
}

impl Matrix {
    /// Reads `tests/matrix.json`.
    pub fn read() -> Result<Self> {
        let path = paths::tests().join("matrix.json");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let matrix: Self = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        for cell in &matrix.cells {
            ensure!(matrix.builds.contains_key(&cell.build), "{cell}: no such way to build");
            Release::of(&cell.release).with_context(|| cell.to_string())?;
        }
        Ok(matrix)
    }

    /// Returns the cells for one run of the tests: if `MONITOR_MATRIX` is set, those whose name contains one of its
    /// words, else the fixed ones and, in turn, `others` of the others.
    #[must_use]
    pub fn chosen(&self, others: usize) -> Vec<&Cell> {
        let buildable = self.cells.iter().filter(|cell| cell.not_buildable.is_none());
        if let Ok(words) = std::env::var("MONITOR_MATRIX") {
            return buildable.filter(|cell| holds_one(&cell.to_string(), words.split(','))).collect();
        }
        let (fixed, rest): (Vec<_>, Vec<_>) = buildable.partition(|cell| cell.fixed);
        let begin = whose_turn() % rest.len().max(1);
        fixed
            .into_iter()
            .chain(rest.iter().cycle().skip(begin).take(others.min(rest.len())).copied())
            .collect()
    }

    /// Returns the build tags that select the files for a release of Kitex.
    fn tags(&self, release: &str) -> Result<String> {
        let release = Release::of(release)?;
        let mut tags = Vec::new();
        for boundary in &self.tags {
            if release < Release::of(boundary)? {
                tags.push(format!("kitex_before_{}", boundary.replace('.', "_")));
            }
        }
        Ok(tags.join(","))
    }
}

fn holds_one<'a>(name: &str, mut words: impl Iterator<Item = &'a str>) -> bool {
    words.any(|word| !word.is_empty() && name.contains(word))
}

/// A release as numbers, for comparison.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Release([u32; 3]);

impl Release {
    /// Parses `v0.16.3`, `0.16.2` or `0.16`.
    fn of(text: &str) -> Result<Self> {
        let mut numbers = [0; 3];
        let parts = text.trim_start_matches('v').split('.').collect::<Vec<_>>();
        ensure!(parts.len() <= numbers.len(), "{text} is no release");
        for (number, part) in numbers.iter_mut().zip(parts) {
            *number = part.parse().with_context(|| format!("{text} is no release"))?;
        }
        Ok(Self(numbers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_those_of_later_releases() {
        let matrix = Matrix::read().unwrap();
        assert_eq!(matrix.tags("v0.16.3").unwrap(), "");
        assert_eq!(matrix.tags("v0.16.0").unwrap(), "kitex_before_0_16_2");
        assert!(matrix.tags("v0.9.1").unwrap().starts_with("kitex_before_0_10,kitex_before_0_11,"));
        assert!(matrix.tags("newest").is_err());
    }

    #[test]
    fn every_cell_has_its_turn_and_a_name_of_its_own() {
        let matrix = Matrix::read().unwrap();
        let names = matrix.cells.iter().map(ToString::to_string).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(names.len(), matrix.cells.len());
        let buildable = matrix.cells.iter().filter(|cell| cell.not_buildable.is_none()).count();
        assert_eq!(matrix.chosen(usize::MAX).len(), buildable);
        let few = matrix.chosen(2);
        assert_eq!(few.len(), matrix.cells.iter().filter(|cell| cell.fixed).count() + 2);
    }
}
