//! Where the DWARF locates the Go runtime's variables, and the fields in them.
//!
//! The linker describes a variable in a unit of its package. After those units, it describes the types of all packages
//! in another unit of package `runtime` (`dwarfDefineGlobal` and `movetomodule` in cmd/link/internal/ld/dwarf.go @
//! go1.26).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use gimli::{Attribute, AttributeValue, UnitOffset, constants as dw};

use super::bytes::u64_at;
use super::dwarf::{Bytes, Unit, Walk, text};
use super::{Image, ImageError};

/// The package whose variables and types are read, and the prefix of their names.
const PACKAGE: &str = "runtime";
const PREFIX: &str = "runtime.";
/// The most names that a type may have.
const MAX_NAMES_OF_A_TYPE: usize = 8;

/// What the DWARF describes of the package `runtime`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimePlaces {
    /// Link-time addresses of variables, by name without the package.
    pub variables: BTreeMap<String, u64>,
    /// The variables and structs whose types are described.
    pub described: BTreeSet<String>,
    /// Offsets and sizes in bytes, by path.
    pub places: BTreeMap<String, u64>,
}

impl RuntimePlaces {
    /// Whether the variable or struct that a path starts with is described.
    #[must_use]
    pub fn describes(&self, path: &str) -> bool {
        self.described.contains(split(path).0)
    }
}

impl Image {
    /// Returns where fields lie in the variables and structs of the package `runtime`, according to the DWARF. A path
    /// is the name of a variable or struct and of fields in it, such as `sched.gFree.n`, and stands for the distance in
    /// bytes from its start. With `#` at the end it stands for the size instead. `None` for a program without DWARF.
    pub fn dwarf_runtime(&self, paths: &BTreeSet<&str>) -> Result<Option<RuntimePlaces>, ImageError> {
        let roots: BTreeSet<&str> = paths.iter().map(|path| split(path).0).collect();
        let mut found = RuntimePlaces::default();
        // The offsets in the section of the roots' types.
        let mut types = BTreeMap::new();
        let has_dwarf = self.go_units(&mut |walk, unit| {
            if unit.name != Some(PACKAGE) {
                return Ok(ControlFlow::Continue(()));
            }
            roots_in(walk, unit, &roots, &mut types, &mut found)?;
            for path in paths {
                let root = split(path).0;
                let Some(type_at) = types.get(root).and_then(|at| unit.place(*at)) else { continue };
                found.described.insert(root.to_owned());
                if let Some(place) = place(walk, unit, type_at, path)? {
                    found.places.insert((*path).to_owned(), place);
                }
            }
            let is_last = !found.described.is_empty();
            Ok(if is_last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(has_dwarf.then_some(found))
    }
}

/// Splits a path into the variable or struct and the names of fields.
fn split(path: &str) -> (&str, impl Iterator<Item = &str>) {
    let mut names = path.trim_end_matches('#').split('.');
    (names.next().unwrap_or_default(), names)
}

/// Records the addresses of variables among the roots, and where the types of roots are described.
fn roots_in<'n>(
    walk: &mut Walk,
    unit: &Unit<'_>,
    roots: &BTreeSet<&'n str>,
    types: &mut BTreeMap<&'n str, u64>,
    found: &mut RuntimePlaces,
) -> Result<(), ImageError> {
    let mut entries = unit.entries(None)?;
    while !entries.is_empty() {
        let (at, depth) = (entries.next_offset(), entries.next_depth());
        let Some(entry) = entries.read_abbreviation()? else { continue };
        let is_variable = entry.tag() == dw::DW_TAG_variable;
        if depth != 1 || !(is_variable || entry.tag() == dw::DW_TAG_structure_type) {
            walk.attributes(&mut entries, entry, |_| {})?;
            continue;
        }
        let (mut name, mut address, mut type_at) = (None, None, None);
        walk.attributes(&mut entries, entry, |attribute| match attribute.name() {
            dw::DW_AT_name => name = text(&attribute),
            dw::DW_AT_location => address = fixed_address(&attribute),
            dw::DW_AT_type => type_at = unit.target(&attribute),
            _ => {}
        })?;
        let root = name.and_then(|name| roots.get(name.strip_prefix(PREFIX)?));
        let Some(root) = root.copied() else { continue };
        if !is_variable {
            types.entry(root).or_insert(unit.in_section(at));
            continue;
        }
        if let Some(address) = address {
            found.variables.insert(root.to_owned(), address);
        }
        // A variable takes precedence over a type of the same name.
        types.extend(type_at.map(|type_at| (root, type_at)));
    }
    Ok(())
}

/// Returns the address in an expression that consists of one, as for every variable of a package.
fn fixed_address(attribute: &Attribute<Bytes<'_>>) -> Option<u64> {
    let expression = match attribute.raw_value() {
        AttributeValue::Block(bytes) => bytes.slice(),
        AttributeValue::Exprloc(expression) => expression.0.slice(),
        _ => return None,
    };
    let is_address = expression.len() == 9 && expression.first() == Some(&dw::DW_OP_addr.0);
    is_address.then(|| u64_at(expression, 1)).flatten()
}

/// Returns the offset or size at a path, from the type of its root.
fn place(walk: &mut Walk, unit: &Unit<'_>, root: UnitOffset, path: &str) -> Result<Option<u64>, ImageError> {
    let (mut at, mut offset) = (root, 0_u64);
    for name in split(path).1 {
        let Some((field, type_at)) = field(walk, unit, at, name)? else { return Ok(None) };
        offset = offset.wrapping_add(field);
        at = type_at;
    }
    if path.ends_with('#') {
        Ok(describe(walk, unit, at)?.and_then(|(size, _)| size))
    } else {
        Ok(Some(offset))
    }
}

/// Returns offset and type of a field of the struct that is described at `at`.
fn field(
    walk: &mut Walk,
    unit: &Unit<'_>,
    at: UnitOffset,
    name: &str,
) -> Result<Option<(u64, UnitOffset)>, ImageError> {
    let Some((_, at)) = describe(walk, unit, at)? else { return Ok(None) };
    let mut entries = unit.entries(Some(at))?;
    let Some(entry) = entries.read_abbreviation()? else { return Ok(None) };
    walk.attributes(&mut entries, entry, |_| {})?;
    if entry.tag() != dw::DW_TAG_structure_type || !entry.has_children() {
        return Ok(None);
    }
    // In structs without a name, the package precedes the name of a field.
    let is_it = |known: &str| known == name || known.strip_prefix(PREFIX) == Some(name);
    let members = walk.members(unit, &mut entries)?;
    let found = members.iter().find(|member| is_it(member.name));
    Ok(found.and_then(|member| Some((member.offset, member.type_at?))))
}

/// Returns the size of the type that is described at `at`, and where its last name is described.
fn describe(
    walk: &mut Walk,
    unit: &Unit<'_>,
    mut at: UnitOffset,
) -> Result<Option<(Option<u64>, UnitOffset)>, ImageError> {
    for _ in 0..MAX_NAMES_OF_A_TYPE {
        let mut entries = unit.entries(Some(at))?;
        let Some(entry) = entries.read_abbreviation()? else { return Ok(None) };
        let (mut size, mut same_as) = (None, None);
        walk.attributes(&mut entries, entry, |attribute| match attribute.name() {
            dw::DW_AT_byte_size => size = attribute.udata_value(),
            dw::DW_AT_type => same_as = unit.target(&attribute).and_then(|at| unit.place(at)),
            _ => {}
        })?;
        match (entry.tag(), same_as) {
            (dw::DW_TAG_typedef, Some(same)) => at = same,
            _ => return Ok(Some((size, at))),
        }
    }
    Ok(None)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::super::testing::GoFile;
    use super::*;

    const ADDRESS: u64 = 0x56_4900;
    /// The paths that the tests look for.
    const PATHS: [&str; 7] = [
        "sched.ngsys",
        "sched.gFree.list.size",
        "sched#",
        "sched.list#",
        "g.goid",
        "sched.none",
        "work.mode",
    ];

    /// Abbreviations in the forms that Go's linker uses: unit, variable, struct, member, typedef, array.
    fn abbreviations() -> Vec<u8> {
        let forms: [(u8, u8, &[u8]); 6] = [
            (0x11, 1, &[0x03, 0x08, 0x13, 0x0b]),
            (0x34, 0, &[0x03, 0x08, 0x02, 0x0a, 0x49, 0x10]),
            (0x13, 1, &[0x03, 0x08, 0x0b, 0x0f]),
            (0x0d, 0, &[0x03, 0x08, 0x38, 0x0f, 0x49, 0x10]),
            (0x16, 0, &[0x03, 0x08, 0x49, 0x10]),
            (0x01, 0, &[0x0b, 0x0f]),
        ];
        let lines = (1..).zip(forms).flat_map(|(code, (tag, children, attributes))| {
            [&[code, tag, children][..], attributes, &[0, 0]].concat()
        });
        lines.chain([0]).collect()
    }

    /// A unit under construction.
    struct Entries(Vec<u8>);

    impl Entries {
        fn of_package(package: &str) -> Self {
            // Version 5, a unit of code, addresses of 8 bytes, the first abbreviations; the length comes last.
            let mut entries = Self(vec![0, 0, 0, 0, 5, 0, 1, 8, 0, 0, 0, 0]);
            entries.named(1, package);
            entries.0.push(22);
            entries
        }

        /// Begins an entry and returns its offset.
        fn named(&mut self, abbreviation: u8, name: &str) -> u32 {
            let at = u32::try_from(self.0.len()).expect("a small unit");
            self.0.push(abbreviation);
            self.0.extend(name.as_bytes());
            self.0.push(0);
            at
        }

        fn variable(&mut self, name: &str, address: u64, type_at: u32) {
            self.named(2, name);
            self.0.extend([9, 3]);
            self.0.extend(address.to_le_bytes());
            self.0.extend(type_at.to_le_bytes());
        }

        fn struct_type(&mut self, name: &str, size: u8, fields: &[(&str, u8, u32)]) -> u32 {
            let at = self.named(3, name);
            self.0.push(size);
            for (field, offset, type_at) in fields {
                self.named(4, field);
                self.0.push(*offset);
                self.0.extend(type_at.to_le_bytes());
            }
            self.0.push(0);
            at
        }

        fn typedef(&mut self, name: &str, type_at: u32) -> u32 {
            let at = self.named(5, name);
            self.0.extend(type_at.to_le_bytes());
            at
        }

        fn array(&mut self, size: u8) -> u32 {
            let at = u32::try_from(self.0.len()).expect("a small unit");
            self.0.extend([6, size]);
            at
        }

        fn finish(mut self) -> Vec<u8> {
            self.0.push(0);
            let length = u32::try_from(self.0.len() - 4).expect("a small unit");
            self.0[..4].copy_from_slice(&length.to_le_bytes());
            self.0
        }
    }

    /// A unit at an offset of the section, and two of its types.
    fn types(base: u32) -> (Vec<u8>, u32, u32) {
        let mut runtime = Entries::of_package(PACKAGE);
        let array = runtime.array(64) + base;
        let list = runtime.struct_type("runtime.gList", 16, &[("head", 0, array), ("size", 8, array)]) + base;
        let list = runtime.typedef("runtime.freeList", list) + base;
        // A struct without a name.
        let free = "struct { runtime.list runtime.freeList }";
        let free =
            runtime.struct_type(free, 24, &[("runtime.lock", 0, array), ("runtime.list", 8, list)]) + base;
        let fields = [("ngsys", 4, array), ("gFree", 16, free), ("list", 40, array)];
        let sched = runtime.struct_type("runtime.schedt", 104, &fields) + base;
        runtime.struct_type("runtime.g", 120, &[("goid", 112, array)]);
        // A type that refers to itself.
        let own = base + u32::try_from(runtime.0.len()).expect("a small unit");
        runtime.typedef("runtime.own", own);
        (runtime.finish(), sched, own)
    }

    fn variables(sched: u32, own: u32) -> Vec<u8> {
        let mut runtime = Entries::of_package(PACKAGE);
        runtime.variable("runtime.sched", ADDRESS, sched);
        runtime.variable("runtime.work", ADDRESS + 8, own);
        runtime.finish()
    }

    /// The unit of another package, the unit of the runtime's variables, and the unit of all types. References count
    /// from the start of the section.
    fn info() -> Vec<u8> {
        let mut other = Entries::of_package("main");
        let nothing = other.array(1);
        other.variable("runtime.sched", 1, nothing);
        let other = other.finish();
        let base = u32::try_from(other.len() + variables(0, 0).len()).expect("small units");
        let (types, sched, own) = types(base);
        [other, variables(sched, own), types].concat()
    }

    fn file(info: Vec<u8>, abbreviations: Vec<u8>) -> Vec<u8> {
        let unmapped = vec![(".debug_info", 0, info), (".debug_abbrev", 0, abbreviations)];
        GoFile { unmapped, ..GoFile::of_release(26) }.build().0
    }

    /// A file whose DWARF describes variables of the runtime.
    pub(crate) fn good_file() -> Vec<u8> {
        file(info(), abbreviations())
    }

    fn look(file: Vec<u8>) -> Result<Option<RuntimePlaces>, ImageError> {
        Image::parse(Box::new(file)).expect("an image").dwarf_runtime(&PATHS.into())
    }

    #[test]
    fn fields_are_found_through_structs_in_structs() {
        let found = look(good_file()).expect("no error").expect("DWARF");
        let places: Vec<_> = found.places.iter().map(|(path, place)| (&**path, *place)).collect();
        let expected = [
            ("g.goid", 112),
            ("sched#", 104),
            ("sched.gFree.list.size", 32),
            ("sched.list#", 64),
            ("sched.ngsys", 4),
        ];
        assert_eq!(places, expected);
        let variables: Vec<_> = found.variables.iter().map(|(name, address)| (&**name, *address)).collect();
        assert_eq!(variables, [("sched", ADDRESS), ("work", ADDRESS + 8)]);
        assert_eq!(found.described.len(), 3);
    }

    #[test]
    fn a_program_without_dwarf_says_nothing() {
        assert!(look(GoFile::of_release(26).build().0).expect("no error").is_none());
        assert!(look(file(info(), vec![0])).is_err());
        // No unit of the runtime.
        let other = file(Entries::of_package("main").finish(), abbreviations());
        assert_eq!(look(other).expect("no error"), Some(RuntimePlaces::default()));
    }

    proptest! {
        #[test]
        fn a_changed_byte_ends_in_places_or_an_error(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let (mut info, mut table) = (info(), abbreviations());
            let at = at.index(info.len() + table.len());
            match at.checked_sub(info.len()) {
                None => info[at] = byte,
                Some(at) => table[at] = byte,
            }
            let _ = look(file(info, table));
        }
    }
}
