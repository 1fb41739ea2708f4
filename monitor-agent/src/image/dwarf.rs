//! Struct layouts from DWARF, if a program has it.
//!
//! Go's linker writes every type of a program into the unit of package `runtime`, after that package's functions
//! (`movetomodule` in cmd/link/internal/ld/dwarf.go @ go1.26), with its name in place (`DW_FORM_string`). Units are
//! read one after the other, until everything wanted is found: the section is neither inflated nor held as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use gimli::{
    Abbreviation, Abbreviations, Attribute, AttributeValue, DebugAbbrev, DebugAbbrevOffset, DebugInfo,
    DebugInfoOffset, EndianSlice, EntriesRaw, LittleEndian, UnitHeader, UnitOffset, constants as dw,
};

use super::bytes::{u32_at, u64_at};
use super::contents::Contents;
use super::{Image, ImageError};

/// The largest unit. The one with the types of a Kitex program of 30 MB has 1.5 MB.
const MAX_UNIT: u64 = 32 << 20;
/// All of Go's abbreviations take less than a kilobyte. This leaves room for the abbreviations of C code.
const MAX_ABBREVIATIONS: u64 = 4 << 20;
/// The most bytes of one unit's abbreviations.
const MAX_TABLE: usize = 64 << 10;
/// The same limit as for Go's type metadata.
const MAX_FIELDS: usize = 4096;
/// The most entries and attributes that are read. Each takes some nanoseconds, and a file of 30 MB has two million. The
/// size alone is no bound, since an attribute can take no bytes.
const MAX_STEPS: u64 = 100_000_000;
const STEPS_PER_UNIT: u64 = 16;

/// The layout of a struct type according to the DWARF.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StructLayout {
    /// The size of a value, in bytes.
    pub size: u64,
    /// The offset of each field, in bytes from the start of the struct.
    pub fields: BTreeMap<String, u64>,
}

impl Image {
    /// Returns the layouts that the DWARF has of Go struct types with these names, each with the full path of its
    /// package: `github.com/cloudwego/kitex/pkg/rpcinfo.rpcInfo`. Types that it does not mention are left out. `None`
    /// for a program without DWARF.
    pub fn dwarf_structs(
        &self,
        names: &BTreeSet<String>,
    ) -> Result<Option<BTreeMap<String, StructLayout>>, ImageError> {
        let mut found = BTreeMap::new();
        let has_dwarf = self.go_units(&mut |walk, unit| {
            structs(walk, unit, names, &mut found)?;
            Ok(if found.len() < names.len() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok(has_dwarf.then_some(found))
    }

    /// Visits the units of Go code in order, until `visit` breaks. Returns false for a program without DWARF.
    pub(super) fn go_units(&self, visit: &mut Visit<'_>) -> Result<bool, ImageError> {
        let Some(info) = self.debug_section("info")? else { return Ok(false) };
        let Some(mut abbreviations) = self.debug_section("abbrev")? else {
            return Err(ImageError::dwarf("it has no abbreviations"));
        };
        if abbreviations.left() > MAX_ABBREVIATIONS {
            return Err(ImageError::dwarf("it has more abbreviations than a program needs"));
        }
        let mut tables = Vec::new();
        abbreviations.append(&mut tables, abbreviations.left())?;
        Walk { steps: MAX_STEPS }.section(info, &tables, visit)?;
        Ok(true)
    }
}

impl From<gimli::Error> for ImageError {
    fn from(error: gimli::Error) -> Self {
        Self::dwarf(error.to_string())
    }
}

pub(super) type Bytes<'a> = EndianSlice<'a, LittleEndian>;
type Visit<'v> = dyn FnMut(&mut Walk, &Unit<'_>) -> Result<ControlFlow<()>, ImageError> + 'v;

/// A unit of Go code.
pub(super) struct Unit<'a> {
    /// The offset of the unit in its section.
    start: u64,
    /// The path of the unit's package.
    pub(super) name: Option<&'a str>,
    header: &'a UnitHeader<Bytes<'a>>,
    abbreviations: &'a Abbreviations,
}

impl<'a> Unit<'a> {
    /// The entries from `from` on, or from the start without it.
    pub(super) fn entries(&self, from: Option<UnitOffset>) -> Result<EntriesRaw<'a, Bytes<'a>>, ImageError> {
        Ok(self.header.entries_raw(self.abbreviations, from)?)
    }

    /// The offset in the section that an attribute refers to.
    pub(super) fn target(&self, attribute: &Attribute<Bytes<'_>>) -> Option<u64> {
        match attribute.raw_value() {
            AttributeValue::UnitRef(place) => Some(self.in_section(place)),
            AttributeValue::DebugInfoRef(DebugInfoOffset(place)) => Some(place as u64),
            _ => None,
        }
    }

    pub(super) fn in_section(&self, UnitOffset(place): UnitOffset) -> u64 {
        self.start.saturating_add(place as u64)
    }

    /// Converts an offset in the section, if it lies in this unit.
    pub(super) fn place(&self, in_section: u64) -> Option<UnitOffset> {
        let place = usize::try_from(in_section.checked_sub(self.start)?).ok()?;
        (place < self.header.length_including_self()).then_some(UnitOffset(place))
    }
}

/// Reads entries, within bounds.
pub(super) struct Walk {
    /// The number of steps left.
    steps: u64,
}

impl Walk {
    fn section(
        &mut self,
        mut info: Contents<'_>,
        tables: &[u8],
        visit: &mut Visit<'_>,
    ) -> Result<(), ImageError> {
        let mut buffer = Vec::new();
        let size = info.left();
        // All Go code of a program shares one table of abbreviations.
        let mut known: Option<(usize, Abbreviations)> = None;
        while info.left() > 0 {
            let start = size - info.left();
            next_unit(&mut info, &mut buffer)?;
            self.step(STEPS_PER_UNIT)?;
            let header = DebugInfo::new(&buffer, LittleEndian).header_from_offset(DebugInfoOffset(0))?;
            let DebugAbbrevOffset(at) = header.debug_abbrev_offset();
            let abbreviations = match known.take() {
                Some((offset, abbreviations)) if offset == at => abbreviations,
                _ => self.abbreviations(tables, at)?,
            };
            let mut unit = Unit { start, name: None, header: &header, abbreviations: &abbreviations };
            if self.is_go(&mut unit)? && visit(self, &unit)?.is_break() {
                break;
            }
            known = Some((at, abbreviations));
        }
        Ok(())
    }

    fn abbreviations(&mut self, tables: &[u8], at: usize) -> Result<Abbreviations, ImageError> {
        let table = tables.get(at..).unwrap_or_default();
        let table = table.get(..MAX_TABLE).unwrap_or(table);
        self.step(table.len() as u64)?;
        Ok(DebugAbbrev::new(table, LittleEndian).abbreviations(DebugAbbrevOffset(0))?)
    }

    fn is_go(&mut self, unit: &mut Unit<'_>) -> Result<bool, ImageError> {
        let mut entries = unit.entries(None)?;
        let Some(entry) = entries.read_abbreviation()? else { return Ok(false) };
        let mut language = None;
        self.attributes(&mut entries, entry, |attribute| match attribute.name() {
            dw::DW_AT_language => language = attribute.udata_value(),
            dw::DW_AT_name => unit.name = text(&attribute),
            _ => {}
        })?;
        Ok(entry.has_children() && language == Some(u64::from(dw::DW_LANG_Go.0)))
    }

    /// Returns the fields of the struct whose entry was just read, in the order of the DWARF.
    pub(super) fn members<'a>(
        &mut self,
        unit: &Unit<'a>,
        entries: &mut EntriesRaw<'a, Bytes<'a>>,
    ) -> Result<Vec<Member<'a>>, ImageError> {
        let mut members = Vec::new();
        let depth = entries.next_depth();
        while entries.next_depth() >= depth {
            let at = entries.next_depth();
            let Some(entry) = entries.read_abbreviation()? else { continue };
            let (mut name, mut offset, mut type_at) = (None, None, None);
            self.attributes(entries, entry, |attribute| match attribute.name() {
                dw::DW_AT_name => name = text(&attribute),
                dw::DW_AT_data_member_location => offset = attribute.udata_value(),
                dw::DW_AT_type => type_at = unit.target(&attribute).and_then(|at| unit.place(at)),
                _ => {}
            })?;
            if at == depth
                && entry.tag() == dw::DW_TAG_member
                && let Some((name, offset)) = name.zip(offset)
            {
                members.push(Member { name, offset, type_at });
            }
            if members.len() > MAX_FIELDS {
                return Err(ImageError::dwarf("a struct has an impossible number of fields"));
            }
        }
        Ok(members)
    }

    /// Visits the attributes of an entry. (gimli's `skip_attributes` adds up lengths unchecked.)
    pub(super) fn attributes<'a>(
        &mut self,
        entries: &mut EntriesRaw<'a, Bytes<'a>>,
        entry: &Abbreviation,
        mut visit: impl FnMut(Attribute<Bytes<'a>>),
    ) -> Result<(), ImageError> {
        self.step(1 + entry.attributes().len() as u64)?;
        for specification in entry.attributes() {
            visit(entries.read_attribute_inline(*specification)?);
        }
        Ok(())
    }

    fn step(&mut self, steps: u64) -> Result<(), ImageError> {
        let left = self.steps.checked_sub(steps);
        self.steps = left.ok_or_else(|| ImageError::dwarf("it takes too long to read"))?;
        Ok(())
    }
}

/// A field of a struct.
pub(super) struct Member<'a> {
    pub(super) name: &'a str,
    /// The offset in bytes from the start of the struct.
    pub(super) offset: u64,
    /// Where the unit describes its type.
    pub(super) type_at: Option<UnitOffset>,
}

/// Finds structs among the types of a unit, which are children of its first entry.
fn structs(
    walk: &mut Walk,
    unit: &Unit<'_>,
    names: &BTreeSet<String>,
    found: &mut BTreeMap<String, StructLayout>,
) -> Result<(), ImageError> {
    let mut entries = unit.entries(None)?;
    while !entries.is_empty() && found.len() < names.len() {
        let depth = entries.next_depth();
        let Some(entry) = entries.read_abbreviation()? else { continue };
        if depth != 1 || entry.tag() != dw::DW_TAG_structure_type {
            walk.attributes(&mut entries, entry, |_| {})?;
            continue;
        }
        let (mut name, mut size) = (None, None);
        walk.attributes(&mut entries, entry, |attribute| match attribute.name() {
            dw::DW_AT_name => name = text(&attribute),
            dw::DW_AT_byte_size => size = attribute.udata_value(),
            _ => {}
        })?;
        let (Some(name), Some(size)) = (name.filter(|name| names.contains(*name)), size) else { continue };
        let members = if entry.has_children() { walk.members(unit, &mut entries)? } else { Vec::new() };
        let fields = members.into_iter().map(|member| (member.name.to_owned(), member.offset)).collect();
        found.insert(name.to_owned(), StructLayout { size, fields });
    }
    Ok(())
}

/// Returns text that is stored in the attribute itself, as Go stores it.
pub(super) fn text<'a>(attribute: &Attribute<Bytes<'a>>) -> Option<&'a str> {
    match attribute.raw_value() {
        AttributeValue::String(text) => std::str::from_utf8(text.slice()).ok(),
        _ => None,
    }
}

/// Reads the next unit, including its length.
fn next_unit(info: &mut Contents<'_>, unit: &mut Vec<u8>) -> Result<(), ImageError> {
    /// Marks a length in the 8 bytes that follow.
    const LONG: u32 = 0xffff_ffff;
    info.take_into(unit, 4)?;
    let length = match u32_at(unit, 0) {
        Some(LONG) => {
            info.append(unit, 8)?;
            u64_at(unit, 4)
        }
        length => length.map(u64::from),
    };
    match length {
        Some(length) if length <= MAX_UNIT => info.append(unit, length),
        _ => Err(ImageError::dwarf("a unit is too large")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;
    use std::time::{Duration, Instant};

    use flate2::{Compression, write::ZlibEncoder};
    use proptest::prelude::*;

    use super::super::testing::GoFile;
    use super::*;

    const NAME: &str = "example.com/pkg.T";
    const GO: u8 = 22;
    const C: u8 = 12;

    /// Abbreviations in the forms that Go's linker uses: unit, function, struct, member.
    fn abbreviations() -> Vec<u8> {
        let mut table = Vec::new();
        // Name, language.
        table.extend([1, 0x11, 1, 0x03, 0x08, 0x13, 0x0b, 0, 0]);
        // Name, frame base.
        table.extend([2, 0x2e, 1, 0x03, 0x08, 0x40, 0x0a, 0, 0]);
        // Name, size, and two attributes of Go's own.
        table.extend([3, 0x13, 1, 0x03, 0x08, 0x0b, 0x0f, 0x80, 0x52, 0x0b, 0x84, 0x52, 0x01, 0, 0]);
        // Name, offset, type, embedded.
        table.extend([4, 0x0d, 0, 0x03, 0x08, 0x38, 0x0f, 0x49, 0x10, 0x83, 0x52, 0x0c, 0, 0]);
        table.push(0);
        table
    }

    fn name(entry: &mut Vec<u8>, name: &str) {
        entry.extend(name.as_bytes());
        entry.push(0);
    }

    /// A unit with these entries, in the layout of a DWARF version.
    fn unit(version: u8, language: u8, entries: &[Vec<u8>]) -> Vec<u8> {
        let mut unit = vec![version, 0];
        match version {
            5 => unit.extend([1, 8, 0, 0, 0, 0]),
            _ => unit.extend([0, 0, 0, 0, 8]),
        }
        unit.push(1);
        name(&mut unit, "runtime");
        unit.push(language);
        unit.extend(entries.concat());
        unit.push(0);
        let length = u32::try_from(unit.len()).expect("a small unit").to_le_bytes();
        [&length[..], &unit].concat()
    }

    /// A function with a struct inside, which is not one of the program's types.
    fn function() -> Vec<u8> {
        let mut entry = vec![2];
        name(&mut entry, "main.main");
        entry.extend([1, 0x9c]);
        entry.extend(struct_type(NAME, 1, &[]));
        entry.push(0);
        entry
    }

    fn struct_type(type_name: &str, size: u8, fields: &[(&str, u8)]) -> Vec<u8> {
        let mut entry = vec![3];
        name(&mut entry, type_name);
        entry.extend([size, 25]);
        entry.extend(0x50_0000_u64.to_le_bytes());
        for (field, offset) in fields {
            entry.push(4);
            name(&mut entry, field);
            entry.extend([*offset, 1, 2, 3, 4, 0]);
        }
        entry.push(0);
        entry
    }

    fn wanted(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn file(unmapped: Vec<(&'static str, u64, Vec<u8>)>) -> Vec<u8> {
        GoFile { unmapped, ..GoFile::of_release(26) }.build().0
    }

    fn plain(info: Vec<u8>, abbreviations: Vec<u8>) -> Vec<u8> {
        file(vec![(".debug_info", 0, info), (".debug_abbrev", 0, abbreviations)])
    }

    /// The good sections, compressed, each after a header made for its size.
    fn compressed(header: &dyn Fn(u64) -> Vec<u8>, flags: u64, names: [&'static str; 2]) -> Vec<u8> {
        let pack = |(name, data): (&'static str, Vec<u8>)| {
            let mut encoder = ZlibEncoder::new(header(data.len() as u64), Compression::default());
            encoder.write_all(&data).expect("memory");
            (name, flags, encoder.finish().expect("memory"))
        };
        file(names.into_iter().zip([good(), abbreviations()]).map(pack).collect())
    }

    fn compressed_as_elf_does() -> Vec<u8> {
        const SHF_COMPRESSED: u64 = 1 << 11;
        let header = |size| [1, size, 1].map(u64::to_le_bytes).concat();
        compressed(&header, SHF_COMPRESSED, [".debug_info", ".debug_abbrev"])
    }

    fn compressed_the_old_way() -> Vec<u8> {
        let header = |size: u64| [b"ZLIB", &size.to_be_bytes()[..]].concat();
        compressed(&header, 0, [".zdebug_info", ".zdebug_abbrev"])
    }

    /// Valid files, one for each form of the sections.
    pub(crate) fn files() -> Vec<Vec<u8>> {
        vec![plain(good(), abbreviations()), compressed_as_elf_does(), compressed_the_old_way()]
    }

    fn look_at(file: Vec<u8>, names: &[&str]) -> Result<Option<Found>, ImageError> {
        Image::parse(Box::new(file)).expect("an image").dwarf_structs(&wanted(names))
    }

    fn look(info: Vec<u8>, abbreviations: Vec<u8>, names: &[&str]) -> Result<Found, ImageError> {
        Ok(look_at(plain(info, abbreviations), names)?.expect("DWARF"))
    }

    type Found = BTreeMap<String, StructLayout>;

    fn good() -> Vec<u8> {
        let other = struct_type("example.com/pkg.Other", 16, &[("a", 0)]);
        let found = struct_type(NAME, 32, &[("base", 0), ("Name", 16)]);
        [
            unit(5, C, &[struct_type(NAME, 2, &[])]),
            unit(4, GO, &[function()]),
            unit(5, GO, &[function(), other, found]),
        ]
        .concat()
    }

    fn layout() -> StructLayout {
        let fields = [("base", 0), ("Name", 16)].map(|(name, offset)| (name.to_owned(), offset));
        StructLayout { size: 32, fields: BTreeMap::from(fields) }
    }

    #[test]
    fn structs_are_found_by_their_whole_name() {
        let found = look(good(), abbreviations(), &[NAME, "example.com/pkg.Missing"]).expect("layouts");
        assert_eq!(found, BTreeMap::from([(NAME.to_owned(), layout())]));
    }

    #[test]
    fn a_program_without_dwarf_has_none() {
        assert!(look_at(file(Vec::new()), &[NAME]).expect("no error").is_none());
        let stripped = GoFile { sections: false, ..GoFile::of_release(26) };
        assert!(look_at(stripped.build().0, &[NAME]).expect("no error").is_none());
        // A file with half of the DWARF is damaged, not without DWARF.
        let half = look_at(file(vec![(".debug_info", 0, good())]), &[NAME]);
        assert!(matches!(half, Err(ImageError::Dwarf(_))), "{half:?}");
    }

    #[test]
    fn sections_may_be_compressed() {
        for file in [compressed_as_elf_does(), compressed_the_old_way()] {
            let found = look_at(file, &[NAME]).expect("layouts").expect("DWARF");
            assert_eq!(found, BTreeMap::from([(NAME.to_owned(), layout())]));
        }
    }

    #[test]
    fn nothing_is_read_past_what_is_looked_for() {
        let info = [good(), vec![0xff; 40]].concat();
        assert_eq!(look(info.clone(), abbreviations(), &[NAME]).expect("layouts")[NAME], layout());
        assert!(look(info, abbreviations(), &["example.com/pkg.Missing"]).is_err());
    }

    #[test]
    fn what_lies_inside_a_struct_is_not_its_field() {
        let mut outer = struct_type(NAME, 32, &[("base", 0), ("Name", 16)]);
        outer.pop();
        outer.extend(struct_type("inner", 8, &[("other", 4)]));
        outer.push(0);
        assert_eq!(look(unit(5, GO, &[outer]), abbreviations(), &[NAME]).expect("layouts")[NAME], layout());
    }

    #[test]
    fn units_may_have_long_lengths() {
        // A 64-bit unit: its length and the offset of its abbreviations take 8 bytes.
        let short = unit(5, GO, &[struct_type(NAME, 32, &[])]);
        let mut long = vec![0xff; 4];
        long.extend((short.len() as u64).to_le_bytes());
        long.extend(&short[4..12]);
        long.extend([0; 4]);
        long.extend(&short[12..]);
        assert_eq!(look(long, abbreviations(), &[NAME]).expect("layouts")[NAME].size, 32);
    }

    #[test]
    fn damage_is_an_error() {
        let info = good();
        let cut = look(info[..info.len() - 4].to_vec(), abbreviations(), &[NAME]);
        assert!(matches!(cut, Err(ImageError::Dwarf(_))), "{cut:?}");
        let mut open = unit(5, GO, &[struct_type(NAME, 32, &[("base", 0)])]);
        // Neither the struct nor the unit ends.
        open.truncate(open.len() - 2);
        let length = u32::try_from(open.len() - 4).expect("a small unit");
        open[..4].copy_from_slice(&length.to_le_bytes());
        assert!(look(open, abbreviations(), &[NAME]).is_err());
        assert!(look(good(), vec![0], &[NAME]).is_err());
        for length in [0_u32, 1, 0x7fff_ffff, 0xffff_fff0] {
            let info = [&length.to_le_bytes()[..], &[0; 64]].concat();
            assert!(look(info, abbreviations(), &[NAME]).is_err(), "{length:#x}");
        }
    }

    #[test]
    fn entries_that_take_no_bytes_to_describe_do_not_take_forever() {
        // An abbreviation with 30 000 attributes that are flags, and a million entries that use it.
        let mut table = vec![1, 0x11, 1, 0x03, 0x08, 0x13, 0x0b, 0, 0, 2, 0x34, 0];
        table.extend([0x3f, 0x19].repeat(30_000));
        table.extend([0, 0, 0]);
        let info = unit(5, GO, &[vec![2; 1 << 20]]);
        let begin = Instant::now();
        let error = look(info, table, &[NAME]).expect_err("too long").to_string();
        assert!(error.contains("takes too long"), "{error}");
        assert!(begin.elapsed() < Duration::from_mins(1));
    }

    #[test]
    fn lengths_that_overflow_are_errors() {
        // A block with the largest possible length, then an attribute of a fixed size.
        let mut table = vec![1, 0x11, 1, 0x03, 0x08, 0x13, 0x0b, 0, 0, 2, 0x34, 0, 0x02, 0x09, 0x0b, 0x0b];
        table.extend([0, 0, 0]);
        let block = [&[2][..], &[0xff; 9], &[1, 7]].concat();
        assert!(look(unit(5, GO, &[block]), table, &[NAME]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_layouts_or_an_error(
            info in prop::collection::vec(any::<u8>(), 1..300),
            table in prop::collection::vec(any::<u8>(), 1..100),
        ) {
            let _ = look(info.clone(), abbreviations(), &[NAME]);
            let _ = look(info, table, &[NAME]);
        }

        #[test]
        fn a_changed_byte_ends_in_layouts_or_an_error(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let (mut info, mut table) = (good(), abbreviations());
            let at = at.index(info.len() + table.len());
            match at.checked_sub(info.len()) {
                None => info[at] = byte,
                Some(at) => table[at] = byte,
            }
            let _ = look(info, table, &[NAME]);
        }

        #[test]
        fn headers_with_extreme_values_end_in_layouts_or_an_error(
            file in prop::sample::select(files()),
            word in 0_usize..100,
            value in prop::sample::select(vec![0, 1, 1 << 11, 1 << 32, 1 << 63, u64::MAX, u64::MAX - 7]),
        ) {
            // The section headers and what precedes them: names, and the ends of the sections.
            let mut file = file;
            let at = file.len() - 8 * (word + 1);
            file[at..at + 8].copy_from_slice(&value.to_le_bytes());
            if let Ok(image) = Image::parse(Box::new(file)) {
                let _ = image.dwarf_structs(&wanted(&[NAME]));
            }
        }
    }
}
