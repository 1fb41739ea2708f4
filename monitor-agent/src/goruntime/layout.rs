//! The offsets of fields in the runtime's structures, by Go release.

use std::{
    collections::{BTreeMap, HashMap},
    sync::LazyLock,
};

use serde::Deserialize;

use super::{Fault, Unknown};
use crate::image::{GoVersion, RuntimePlaces};

/// An architecture for which there are tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

/// The file that `cargo xtask gotable` writes, with one column for each release.
#[derive(Deserialize)]
struct Tables {
    releases: Vec<String>,
    amd64: Rows,
    arm64: Rows,
}

type Rows = BTreeMap<String, Vec<Option<u32>>>;

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let empty = || Tables { releases: Vec::new(), amd64: Rows::new(), arm64: Rows::new() };
    serde_json::from_str(include_str!("layouts.json")).unwrap_or_else(|_| empty())
});

/// The offsets and sizes of one release.
///
/// A path is the name of a variable or type of the package `runtime`, followed by a field: `sched.gFree.n`. Its value
/// is an offset in bytes. A path that ends in `#` has a size in bytes.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    minor: u32,
    release: &'static str,
    places: HashMap<&'static str, u32>,
}

impl Layout {
    /// Returns the table for a release, if there is one. It is that of the newest bug-fix release of the series that is
    /// not newer, since fixes have moved fields too. For releases before the first table of a series it is the first:
    /// nothing has moved before.
    #[must_use]
    pub fn of(version: GoVersion, arch: Arch) -> Option<Self> {
        let tables = &*TABLES;
        let releases = tables.releases.iter().map(|name| GoVersion::parse(name)).enumerate();
        let series = releases.filter_map(|(column, known)| {
            let known = known.filter(|known| (known.major, known.minor) == (version.major, version.minor));
            known.map(|known| (column, known.patch))
        });
        let series: Vec<_> = series.collect();
        let not_newer = series.iter().rev().find(|(_, patch)| *patch <= version.patch);
        let (column, _) = *not_newer.or(series.first())?;
        let rows = match arch {
            Arch::Amd64 => &tables.amd64,
            Arch::Arm64 => &tables.arm64,
        };
        let place = |(path, row): (&'static String, &'static Vec<Option<u32>>)| {
            Some((path.as_str(), row.get(column).copied().flatten()?))
        };
        let release = tables.releases.get(column)?;
        Some(Self { minor: version.minor, release, places: rows.iter().filter_map(place).collect() })
    }

    /// Returns the release from which the table was made.
    #[must_use]
    pub fn release(&self) -> &'static str {
        self.release
    }

    /// Returns all paths that any release has.
    pub(super) fn paths() -> impl Iterator<Item = &'static str> {
        TABLES.amd64.keys().map(String::as_str)
    }

    /// Takes the values of a program's DWARF for everything that it describes.
    pub(super) fn told_by(mut self, dwarf: &RuntimePlaces) -> Self {
        for path in Self::paths().filter(|path| dwarf.describes(path)) {
            match dwarf.places.get(path).and_then(|place| u32::try_from(*place).ok()) {
                Some(place) => self.places.insert(path, place),
                None => self.places.remove(path),
            };
        }
        self
    }

    /// Checks that the DWARF of a program agrees on everything that it describes.
    pub(super) fn compare(&self, dwarf: &RuntimePlaces) -> Result<(), Unknown> {
        for path in Self::paths().filter(|path| dwarf.describes(path)) {
            let (table, dwarf) = (self.find(path).map(u64::from), dwarf.places.get(path).copied());
            if table != dwarf {
                let (path, release) = (path.to_owned(), self.release.to_owned());
                return Err(Unknown::OffsetDiffers { path, release, table, dwarf });
            }
        }
        Ok(())
    }

    /// Returns the minor version: 26 for Go 1.26.
    #[must_use]
    pub fn minor(&self) -> u32 {
        self.minor
    }

    /// Returns the offset or size at a path, if the release has it.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<u32> {
        self.places.get(path).copied()
    }

    /// Returns the offset or size at a path, or an error if the release does not have it.
    pub(super) fn get(&self, path: &'static str) -> Result<u32, Fault> {
        self.find(path).ok_or(Fault::NoPlace(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(minor: u32, arch: Arch) -> Option<Layout> {
        Layout::of(GoVersion { major: 1, minor, patch: 3 }, arch)
    }

    #[test]
    fn there_is_a_table_for_each_release() {
        for arch in [Arch::Amd64, Arch::Arm64] {
            for minor in 18..=27 {
                let layout = layout(minor, arch).expect("a table");
                assert_eq!(layout.find("m.g0"), Some(0), "1.{minor}");
                assert_eq!(layout.find("p.id"), Some(0), "1.{minor}");
                assert_eq!(layout.find("gcController.memoryLimit").is_some(), minor >= 19, "1.{minor}");
                assert_eq!(layout.find("work.cpuStats").is_some(), minor >= 20, "1.{minor}");
            }
            assert!(layout(17, arch).is_none() && layout(28, arch).is_none());
        }
    }

    #[test]
    fn a_fix_that_moved_fields_has_a_table_of_its_own() {
        let place = |minor, patch| {
            Layout::of(GoVersion { major: 1, minor, patch }, Arch::Amd64)
                .and_then(|known| known.find("m.alllink"))
        };
        assert_eq!((place(23, 0), place(23, 11), place(23, 12)), (Some(328), Some(328), Some(352)));
        assert_eq!((place(24, 0), place(24, 5), place(24, 6)), (Some(328), Some(328), Some(352)));
        // Newer than any table, and older than any.
        assert_eq!((place(24, 99), place(22, 3)), (Some(352), place(22, 12)));
    }

    #[test]
    fn the_processors_differ_where_padding_does() {
        let place = |arch| layout(26, arch).and_then(|layout| layout.find("mheap_.spanalloc.inuse"));
        assert_eq!((place(Arch::Amd64), place(Arch::Arm64)), (Some(92368), Some(101_136)));
    }
}
