//! The runtime's module data, which has the addresses of everything else.
//!
//! Its layout differs by release (`moduledata` in runtime/symtab.go @ go1.17 to go1.27). So it is accepted only if it
//! agrees with the function table's own header, which no other data in the file does by chance.

use super::{Slice, functions::TableFormat};
use crate::image::bytes::{u32_at, u64_at};
use crate::image::{GoVersion, Image, ImageError};

const MODULE_DATA: usize = 400;
/// The most function tables found in a file without sections, which is searched for them. More than one or two make no
/// sense.
const MAX_CANDIDATES: usize = 4;
/// The most pointers to the function table that are checked. A program has a handful.
const MAX_POINTERS: usize = 1000;
/// The most functions. The largest Go programs have a million.
const MAX_FUNCTIONS: u64 = 1 << 22;

/// The offsets of those parts of the module data that moved between releases.
struct Layout {
    types: usize,
    types_end: usize,
    /// The offset of the address of function data, since Go 1.18. Functions refer to it by distance.
    function_data: Option<usize>,
    itabs: ItabPlace,
}

#[derive(Clone, Copy)]
enum ItabPlace {
    /// A slice of pointers at this offset.
    Pointers(usize),
    /// One after the other. Their distance from the types, and their size, are at these offsets.
    Packed(usize, usize),
}

impl Layout {
    fn of_release(minor: u32) -> Self {
        let (types, types_end, function_data, itabs) = match minor {
            ..=17 => (280, 288, None, ItabPlace::Pointers(344)),
            18..=19 => (280, 288, Some(304), ItabPlace::Pointers(360)),
            20..=25 => (296, 304, Some(320), ItabPlace::Pointers(376)),
            26 => (296, 304, Some(320), ItabPlace::Pointers(384)),
            27.. => (296, 312, Some(344), ItabPlace::Packed(320, 328)),
        };
        Self { types, types_end, function_data, itabs }
    }
}

/// The values of the module data that are used, after checks.
#[derive(Clone, Copy)]
pub(super) struct ModuleData {
    pub(super) names: Slice,
    /// Tables of values by instruction.
    pub(super) values: Slice,
    pub(super) functions: Slice,
    pub(super) function_count: u64,
    pub(super) text: u64,
    pub(super) text_end: u64,
    pub(super) types: u64,
    pub(super) types_end: u64,
    pub(super) function_data: Option<u64>,
    pub(super) itabs: Itabs,
}

#[derive(Clone, Copy)]
pub(super) enum Itabs {
    Pointers(Slice),
    Packed(Slice),
}

/// Returns the addresses where the file's function table is, or may be.
pub(super) fn find_tables(image: &Image) -> Result<Vec<u64>, ImageError> {
    if let Some((address, _)) = image.section(&[".gopclntab", ".data.rel.ro.gopclntab"]) {
        return Ok(vec![address]);
    }
    let mut found = Vec::new();
    image.scan_segments(&|s| !s.executable, 8, &mut |at, piece| {
        let headers = piece.chunks(8).enumerate().filter(|(_, chunk)| table_format(chunk).is_some());
        found.extend(headers.map(|(i, _)| at + 8 * i as u64).take(MAX_CANDIDATES - found.len()));
        (found.len() == MAX_CANDIDATES).then_some(())
    })?;
    Ok(found)
}

/// Returns the format of the table with this header: magic, two zeros, instruction quantum 1, pointer size 8.
pub(super) fn table_format(header: &[u8]) -> Option<TableFormat> {
    let format = TableFormat::of_magic(u32_at(header, 0)?)?;
    (header.get(4..8)? == [0, 0, 1, 8]).then_some(format)
}

/// Finds the module data of the function table at `table`.
pub(super) fn find_module_data(
    image: &Image,
    version: GoVersion,
    table: u64,
    header: &[u8],
    format: TableFormat,
) -> Result<Option<ModuleData>, ImageError> {
    let check = |at: u64| {
        let data = image.read_up_to(at, MODULE_DATA).ok()?;
        module_data(image, &Layout::of_release(version.minor), format, table, header, &data)
    };
    // This section exists since Go 1.26 and holds nothing else.
    if let Some(found) = image.section(&[".go.module"]).and_then(|(address, _)| check(address)) {
        return Ok(Some(found));
    }
    // The first field of the module data is a pointer to the function table.
    let pointer = table.to_le_bytes();
    let mut left = MAX_POINTERS;
    image.scan_segments(&|s| s.writable, 8, &mut |at, piece| {
        let words = piece.chunks_exact(8).enumerate().filter(|(_, word)| *word == pointer);
        let mut places = words.map(|(i, _)| at + 8 * i as u64).take(left);
        places.find_map(|at| {
            left -= 1;
            check(at)
        })
    })
}

/// Returns the module data in `data`, if it is valid.
fn module_data(
    image: &Image,
    layout: &Layout,
    format: TableFormat,
    table: u64,
    header: &[u8],
    data: &[u8],
) -> Option<ModuleData> {
    let word = |offset: usize| u64_at(data, offset);
    let slice = |offset: usize| Some(Slice { address: word(offset)?, len: word(offset + 8)? });
    let (names_at, functions_at) = format.header_offsets();
    let (names, values) = (slice(8)?, slice(80)?);
    let functions = slice(104)?;
    let rows = slice(128)?;
    let function_count = u64_at(header, 8)?;
    let (first, last) = (word(160)?, word(168)?);
    let (text, text_end) = (word(176)?, word(184)?);
    let (types, types_end) = (word(layout.types)?, word(layout.types_end)?);

    let agrees = word(0)? == table
        && names.address == table.checked_add(u64_at(header, names_at)?)?
        && functions.address == table.checked_add(u64_at(header, functions_at)?)?
        && rows.address == functions.address
        && (1..=MAX_FUNCTIONS).contains(&function_count)
        && rows.len == function_count.checked_add(1)?
        && rows.len.checked_mul(2 * format.width())? <= functions.len.checked_add(format.width())?
        && functions.len <= image.left_at(functions.address)
        && text <= first
        && first < last
        && last <= text_end
        && types < types_end
        && image.file_offset(text).is_some()
        && image.file_offset(text_end.checked_sub(1)?).is_some()
        && image.read_up_to(types, 1).is_ok();
    if !agrees {
        return None;
    }
    let itabs = match layout.itabs {
        ItabPlace::Pointers(at) => Itabs::Pointers(slice(at)?),
        ItabPlace::Packed(offset, size) => {
            Itabs::Packed(Slice { address: types.checked_add(word(offset)?)?, len: word(size)? })
        }
    };
    let function_data = layout.function_data.and_then(word);
    Some(ModuleData {
        names,
        values,
        functions,
        function_count,
        text,
        text_end,
        types,
        types_end,
        function_data,
        itabs,
    })
}
