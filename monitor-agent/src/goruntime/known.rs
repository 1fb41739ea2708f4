//! What is known about the Go runtime in one executable, and the evidence.

use thiserror::Error;

use super::{Arch, Layout, Sources, globals::variables};
use crate::image::{GoVersion, Image, ImageError, RuntimePlaces};

/// Experiments of the tool chain that do not change the runtime's structures.
const HARMLESS: &str = " X:boringcrypto";

/// What a [`Reader`](super::Reader) needs of an executable.
#[derive(Clone, Debug)]
pub struct Known {
    /// The offsets of fields.
    pub layout: Layout,
    /// The addresses of variables, or the evidence from which they are found.
    pub sources: Sources,
    /// The evidence.
    pub evidence: Evidence,
}

/// The evidence for offsets and addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The evidence for the offsets of fields.
    pub offsets: String,
    /// The evidence for the addresses of variables.
    pub variables: String,
    /// What could not be read, and why.
    pub note: Option<String>,
}

/// Why nothing of the runtime can be read.
#[derive(Debug, Error)]
pub enum Unknown {
    /// There is no table for the release.
    #[error("where {0} keeps them is not known to this version of the agent")]
    NoTable(String),
    /// The release is not one of Go's own, and there is no DWARF to compare the table with.
    #[error(
        "{0} is not a release of Go's own, and without DWARF nothing shows that it keeps them where Go's own does"
    )]
    NotGos(String),
    /// The DWARF contradicts the table.
    #[error("{path} is {} in the table for {release} and {} in the DWARF", number(*table), number(*dwarf))]
    OffsetDiffers {
        /// The path of the field.
        path: String,
        /// The release for which the table is.
        release: String,
        /// The value in the table, if it has one.
        table: Option<u64>,
        /// The value in the DWARF, if it has one.
        dwarf: Option<u64>,
    },
    /// The DWARF contradicts the symbol table.
    #[error("{variable} is at {symbol:#x} by the symbol table and at {dwarf:#x} by the DWARF")]
    AddressDiffers {
        /// The variable.
        variable: &'static str,
        /// Its address in the symbol table.
        symbol: u64,
        /// Its address in the DWARF.
        dwarf: u64,
    },
    /// The executable can't be read.
    #[error("the executable {0}")]
    Image(#[from] ImageError),
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(|| "not there".to_owned(), |value| value.to_string())
}

impl Known {
    /// Examines an executable. Its DWARF must agree with the symbol table, and with the table if that is for exactly
    /// this release. If the table is for another release of the series, the DWARF takes precedence.
    pub fn of(image: &Image) -> Result<Self, Unknown> {
        let release = image.build_info()?.go_version;
        let layout = GoVersion::parse(&release).and_then(|version| Layout::of(version, Arch::Amd64));
        let layout = layout.ok_or_else(|| Unknown::NoTable(release.clone()))?;
        let (dwarf, note) = match dwarf(image) {
            Ok(dwarf) => (dwarf, None),
            // A damaged DWARF contradicts nothing.
            Err(error) => {
                (None, Some(format!("the executable {error}; what it says of the runtime is not heard")))
            }
        };
        if dwarf.is_none() && !is_gos_own(&release) {
            return Err(Unknown::NotGos(release));
        }
        let table = format!("table for {}", layout.release());
        let (layout, offsets) = match dwarf.as_ref().map(|dwarf| (dwarf, layout.compare(dwarf))) {
            None => (layout, table),
            Some((_, Ok(()))) => (layout, format!("DWARF, {table}")),
            Some((_, Err(differs))) if layout.release() == release => return Err(differs),
            // The table is for another release, so it proves nothing for this one.
            Some((dwarf, Err(_))) => (layout.told_by(dwarf), "DWARF".to_owned()),
        };
        let sources = Sources::of(image, dwarf.as_ref())?;
        let evidence = Evidence { offsets, variables: sources.evidence().to_owned(), note };
        Ok(Self { layout, sources, evidence })
    }
}

/// Returns what the DWARF describes, if it describes any of it.
fn dwarf(image: &Image) -> Result<Option<RuntimePlaces>, ImageError> {
    let paths = Layout::paths().chain(variables()).collect();
    Ok(image.dwarf_runtime(&paths)?.filter(|found| !found.described.is_empty()))
}

/// Whether a release is unmodified: one from which the tables are made, or another of its series.
fn is_gos_own(release: &str) -> bool {
    let numbers = release.strip_suffix(HARMLESS).unwrap_or(release).strip_prefix("go").unwrap_or_default();
    numbers.split('.').all(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_others_are_told_apart() {
        for release in ["go1.18", "go1.26.8", "go1.20.3 X:boringcrypto"] {
            assert!(is_gos_own(release), "{release}");
        }
        for release in [
            "go1.22.5-bigcorp",
            "go1.22.5 (Red Hat 1.22.5-1.el9)",
            "go1.21rc2",
            "devel go1.26-4d3bd1",
            "go1.25.1 X:greenteagc",
            "",
        ] {
            assert!(!is_gos_own(release), "{release}");
        }
    }
}
