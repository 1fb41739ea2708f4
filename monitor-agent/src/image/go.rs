//! What the Go runtime keeps in a program for itself: module data, function table, itabs.
//!
//! The module data of the runtime says where everything else is. Its layout differs by release
//! (`moduledata` in runtime/symtab.go @ go1.17 to go1.27), so it is believed only when it agrees with the
//! function table's own header, which no other data in the file does by chance.

mod inlined;

use std::cell::{Cell, OnceCell};
use std::collections::HashMap;

use super::bytes::{u32_at, u64_at};
use super::{GoVersion, Image, ImageError};

/// No function that is worth probing is larger; decoding this much takes a few milliseconds.
const MAX_CODE: u64 = 256 << 10;
/// A Kitex program has a thousand.
const MAX_ITABS: usize = 1 << 17;
const MODULE_DATA: usize = 400;
/// `ITab` in internal/abi/iface.go @ go1.27, with one method.
const ITAB: u64 = 32;
/// Tables are read in pieces of this size.
const WINDOW: usize = 256 << 10;
/// What one move in a table costs of a budget, however few bytes it gives.
const MIN_COST: u64 = 4096;
/// The largest function tables have a hundred megabytes.
const MAX_TABLE: u64 = 256 << 20;
/// What one read of type data costs of a budget.
const MIN_TYPE_COST: u64 = 64;
/// Types are read where they are needed, some of them several times; the plan of a Kitex program reads a tenth of
/// them.
const TYPE_READS: u64 = 4;
/// However small the type data is.
const MIN_TYPE_READS: u64 = 1 << 20;
/// However large the type data is. This bounds the names that are kept too.
const MAX_TYPE_READS: u64 = 32 << 20;
/// Files without sections are searched for function tables; more than one or two means nonsense.
const MAX_CANDIDATES: usize = 4;
/// How many pointers to the function table are looked at; a program has a handful.
const MAX_POINTERS: usize = 1000;
/// The largest Go programs have a million functions.
const MAX_FUNCTIONS: u64 = 1 << 22;
/// No question that makes sense has more functions for an answer.
const MAX_FOUND: usize = 1 << 16;

/// Number of the data with a function's arguments.
const ARGUMENTS: u8 = 5;
/// It is never longer (`TraceArgsMaxLen` in internal/abi/type.go @ go1.27).
const ARGUMENTS_MAX: usize = 171;
/// A function has a handful of tables.
const MAX_TABLES: u32 = 64;

/// The Go side of an executable.
pub struct GoImage<'a> {
    pub(super) image: &'a Image,
    pub(super) version: GoVersion,
    format: TableFormat,
    module: ModuleData,
    /// How much type data may still be read. Types may name each other and share their parts: a small file could
    /// keep the agent busy with them for hours.
    type_budget: Cell<u64>,
    /// What was inlined into each function, once somebody asks.
    trees: OnceCell<Vec<inlined::Tree>>,
}

/// A function of the program. Addresses are link-time virtual addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// The linker's name, such as `net/http.(*Server).Serve`.
    pub name: String,
    /// Address of its first instruction.
    pub entry: u64,
    /// Address behind its last byte; padding up to the next function included.
    pub end: u64,
    /// Address of its record in the function table.
    pub record: u64,
}

/// A pair of an interface type and a concrete type that the linker knew of. An interface value with that
/// concrete type in it holds the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Itab {
    /// Its own link-time address.
    pub address: u64,
    /// Address of the interface's type descriptor.
    pub interface: u64,
    /// Address of the concrete type's descriptor.
    pub concrete: u64,
}

/// The formats of the function table, by the magic number in its header
/// (internal/abi/symtab.go @ go1.26).
#[derive(Clone, Copy, PartialEq, Eq)]
enum TableFormat {
    /// Go 1.16 and 1.17: function addresses.
    Go116,
    /// Go 1.18 and 1.19: offsets from the start of the text.
    Go118,
    /// Since Go 1.20: the same with other names for generated symbols.
    Go120,
}

impl TableFormat {
    fn of_magic(magic: u32) -> Option<Self> {
        match magic {
            0xffff_fffa => Some(Self::Go116),
            0xffff_fff0 => Some(Self::Go118),
            0xffff_fff1 => Some(Self::Go120),
            _ => None,
        }
    }

    fn of_release(minor: u32) -> Self {
        match minor {
            ..=17 => Self::Go116,
            18..=19 => Self::Go118,
            20.. => Self::Go120,
        }
    }

    /// Where the header says how far the names and the table are from it.
    fn header_offsets(self) -> (usize, usize) {
        if self == Self::Go116 { (24, 56) } else { (32, 64) }
    }

    /// The size of one number in the table: an address or an offset.
    fn width(self) -> u64 {
        if self == Self::Go116 { 8 } else { 4 }
    }
}

/// Where a release keeps the parts of its module data that moved over time.
struct Layout {
    types: usize,
    types_end: usize,
    /// Where function data is that functions refer to by distance, since Go 1.18.
    function_data: Option<usize>,
    itabs: ItabPlace,
}

#[derive(Clone, Copy)]
enum ItabPlace {
    /// A slice of pointers at this offset.
    Pointers(usize),
    /// One behind the other; distance from the types, and size, at these offsets.
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

/// The values of the module data that are used, checked.
#[derive(Clone, Copy)]
struct ModuleData {
    names: Slice,
    /// Tables of values by instruction.
    values: Slice,
    functions: Slice,
    function_count: u64,
    text: u64,
    text_end: u64,
    types: u64,
    types_end: u64,
    function_data: Option<u64>,
    itabs: Itabs,
}

#[derive(Clone, Copy)]
struct Slice {
    address: u64,
    len: u64,
}

#[derive(Clone, Copy)]
enum Itabs {
    Pointers(Slice),
    Packed(Slice),
}

/// Finds and checks the module data of `image`.
pub(super) fn open(image: &Image) -> Result<GoImage<'_>, ImageError> {
    let name = image.build_info()?.go_version;
    let unsupported = |why: &str| ImageError::UnsupportedGo { version: name.clone(), why: why.to_owned() };
    let version = GoVersion::parse(&name)
        .ok_or_else(|| unsupported("this names no Go release (garble, for one, removes it)"))?;
    if (version.major, version.minor) < (1, 17) {
        return Err(unsupported("before Go 1.17, arguments are not passed in registers"));
    }
    if version.major > 1 {
        return Err(unsupported("only Go 1 is known"));
    }
    let tables = find_tables(image)?;
    let format = TableFormat::of_release(version.minor);
    for &table in &tables {
        let header = image.read(table, 80)?;
        if table_format(&header) != Some(format) {
            continue;
        }
        if let Some(module) = find_module_data(image, version, table, &header, format)? {
            let types = (module.types_end - module.types).min(image.left_at(module.types));
            let budget = types.saturating_mul(TYPE_READS).saturating_add(MIN_TYPE_READS).min(MAX_TYPE_READS);
            return Ok(GoImage {
                image,
                version,
                format,
                module,
                type_budget: Cell::new(budget),
                trees: OnceCell::new(),
            });
        }
    }
    Err(ImageError::malformed(if tables.is_empty() {
        "it has no Go function table; it may be compressed or obfuscated".to_owned()
    } else {
        format!("its Go function table is not one of {version}; the program may be obfuscated (garble)")
    }))
}

/// The addresses where the file's function table is, or may be.
fn find_tables(image: &Image) -> Result<Vec<u64>, ImageError> {
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

/// The format of the table whose header this is: magic, two zeros, instruction quantum 1, pointer size 8.
fn table_format(header: &[u8]) -> Option<TableFormat> {
    let format = TableFormat::of_magic(u32_at(header, 0)?)?;
    (header.get(4..8)? == [0, 0, 1, 8]).then_some(format)
}

/// Finds the module data of the function table at `table`.
fn find_module_data(
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
    // The section exists since Go 1.26 and holds nothing else.
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

/// The module data in `data`, if that is what it is.
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

impl GoImage<'_> {
    /// The Go release that built the program.
    #[must_use]
    pub fn version(&self) -> GoVersion {
        self.version
    }

    /// The functions whose name `matches`, in the order of their addresses; at most 65,536. Reads the whole
    /// table once. Type arguments are written `[...]`. A function in assembly can be found twice under one
    /// name: once as itself, once as the compiler's wrapper with register arguments.
    pub fn functions_named(&self, matches: &dyn Fn(&str) -> bool) -> Result<Vec<Function>, ImageError> {
        let module = &self.module;
        let names = self.image.read(module.names.address, to_len(module.names.len)?)?;
        let mut names = Names { data: &names, budget: names.len().saturating_mul(4) };
        let width = self.format.width();
        let width_bytes = to_len(width)?;
        let mut rows = Window::new(self.image, module.functions);
        let mut records = Window::new(self.image, module.functions);
        let mut found = Vec::new();
        let mut entry = self.entry(rows.get(0, width_bytes)?)?;
        for row in 0..module.function_count {
            let at = 2 * width * row;
            let record_at = number(rows.get(at + width, width_bytes)?)?;
            let end = self.entry(rows.get(at + 2 * width, width_bytes)?)?;
            if end < entry {
                return Err(ImageError::malformed("its Go function table is not in order"));
            }
            // Behind the entry in a function's record comes the place of its name (`_func` in
            // runtime/runtime2.go @ go1.26).
            let name_at = number(records.get(record_at.saturating_add(width), 4)?)?;
            let name = names.get(name_at)?;
            if let Ok(name) = str::from_utf8(name)
                && matches(name)
            {
                if found.len() == MAX_FOUND {
                    return Err(ImageError::malformed("too many of its Go functions have such a name"));
                }
                let record = module.functions.address.saturating_add(record_at);
                found.push(Function { name: name.to_owned(), entry, end, record });
            }
            entry = end;
        }
        Ok(found)
    }

    /// The instructions of a function, padding behind it included.
    pub fn code(&self, function: &Function) -> Result<Vec<u8>, ImageError> {
        let len = function.end.checked_sub(function.entry).filter(|&len| len <= MAX_CODE);
        let len = len.ok_or_else(|| {
            let (entry, end) = (function.entry, function.end);
            ImageError::malformed(format!("a function from {entry:#x} to {end:#x} has an impossible size"))
        })?;
        if self.image.file_offset(function.entry).is_none() {
            return Err(ImageError::malformed(format!("a function at {:#x} is not code", function.entry)));
        }
        self.image.read(function.entry, to_len(len)?)
    }

    /// How a function's arguments lie, as the runtime has it for tracebacks (`FUNCDATA_ArgInfo`, internal/abi/symtab.go
    /// and internal/abi/type.go @ go1.27): a `w` for each word and a digit for what is smaller, braces around what is
    /// one argument, a `*` where the compiler left the rest out. `None` where it says nothing: before Go 1.18, and for
    /// assembly.
    pub fn arguments(&self, function: &Function) -> Result<Option<String>, ImageError> {
        let fixed = self.record_size();
        let Some(base) = self.module.function_data else { return Ok(None) };
        let head = self.image.read(function.record, fixed)?;
        let (Some(tables), Some(data)) = (u32_at(&head, 28), head.last().copied()) else { return Ok(None) };
        if tables > MAX_TABLES || data <= ARGUMENTS {
            return Ok(None);
        }
        let at = fixed as u64 + 4 * (u64::from(tables) + u64::from(ARGUMENTS));
        let offset = number(&self.image.read(function.record.saturating_add(at), 4)?)?;
        if offset == u64::from(u32::MAX) {
            return Ok(None);
        }
        let text = self.image.read_up_to(base.saturating_add(offset), ARGUMENTS_MAX)?;
        Ok(arguments_of(&text))
    }

    /// The size of the fixed part of a function's record (`_func` in runtime/runtime2.go): since Go 1.20 with the first
    /// line.
    fn record_size(&self) -> usize {
        if self.version.minor < 20 { 40 } else { 44 }
    }

    /// All itabs that the linker made.
    pub fn itabs(&self) -> Result<Vec<Itab>, ImageError> {
        match self.module.itabs {
            Itabs::Pointers(links) => self.linked_itabs(links),
            Itabs::Packed(range) => self.packed_itabs(range),
        }
    }

    /// The address of something in the type data, from its distance to the start.
    pub(super) fn type_offset(&self, offset: u32) -> Result<u64, ImageError> {
        let address = self.module.types.checked_add(u64::from(offset));
        let inside = address.filter(|&address| address < self.module.types_end);
        inside.ok_or_else(|| ImageError::malformed("its Go type data refers outside itself"))
    }

    /// Takes the cost of reading so many bytes of type data from the budget.
    pub(super) fn pay_for_type(&self, len: usize) -> Result<(), ImageError> {
        self.type_budget.set(self.type_budget.get().saturating_sub((len as u64).max(MIN_TYPE_COST)));
        self.check_types()
    }

    /// Fails once more type data was asked for than any question is worth: from then on no type can be read, and
    /// one that was not found may be there.
    pub fn check_types(&self) -> Result<(), ImageError> {
        if self.type_budget.get() == 0 {
            return Err(ImageError::malformed("its Go types refer to each other without end"));
        }
        Ok(())
    }

    /// Whether a type descriptor can be at this address.
    pub(super) fn holds_type(&self, address: u64) -> bool {
        (self.module.types..self.module.types_end).contains(&address)
    }

    /// The address of a function from the number in the table.
    fn entry(&self, data: &[u8]) -> Result<u64, ImageError> {
        let value = number(data)?;
        let entry =
            if self.format == TableFormat::Go116 { Some(value) } else { self.module.text.checked_add(value) };
        let inside = entry.filter(|entry| (self.module.text..=self.module.text_end).contains(entry));
        inside.ok_or_else(|| ImageError::malformed("its Go function table refers outside the code"))
    }

    /// Up to Go 1.26: a list of pointers.
    fn linked_itabs(&self, links: Slice) -> Result<Vec<Itab>, ImageError> {
        let count = to_len(links.len)?;
        if count > MAX_ITABS {
            return Err(too_many_itabs());
        }
        if count == 0 {
            return Ok(Vec::new());
        }
        let pointers = self.image.read(links.address, count * 8)?;
        let addresses = pointers.chunks_exact(8).filter_map(|pointer| u64_at(pointer, 0));
        addresses.map(|address| self.itab(address)).collect()
    }

    /// Since Go 1.27: the itabs themselves, each as long as its interface has methods.
    fn packed_itabs(&self, range: Slice) -> Result<Vec<Itab>, ImageError> {
        let mut found = Vec::new();
        let mut method_counts = HashMap::new();
        let mut at = 0;
        while at < range.len {
            if found.len() == MAX_ITABS {
                return Err(too_many_itabs());
            }
            let address = range.address.checked_add(at).ok_or_else(|| ImageError::malformed("itabs"))?;
            let itab = self.itab(address)?;
            found.push(itab);
            let methods = match method_counts.get(&itab.interface) {
                Some(&count) => count,
                None => *method_counts.entry(itab.interface).or_insert(self.method_count(itab.interface)?),
            };
            at = at.saturating_add(self.itab_size(address, methods)?);
        }
        Ok(found)
    }

    fn itab(&self, address: u64) -> Result<Itab, ImageError> {
        let data = self.image.read(address, 16)?;
        let pair = u64_at(&data, 0).zip(u64_at(&data, 8));
        let pair =
            pair.filter(|&(interface, concrete)| self.holds_type(interface) && self.holds_type(concrete));
        let (interface, concrete) =
            pair.ok_or_else(|| ImageError::malformed(format!("there is no Go itab at {address:#x}")))?;
        Ok(Itab { address, interface, concrete })
    }

    /// `(*ITab).Size` in internal/abi/iface.go @ go1.27.
    fn itab_size(&self, address: u64, methods: u64) -> Result<u64, ImageError> {
        let first = self.image.read(address.saturating_add(ITAB - 8), 8)?;
        let implemented = u64_at(&first, 0) != Some(0);
        Ok(if implemented { (ITAB - 8).saturating_add(methods.max(1).saturating_mul(8)) } else { ITAB })
    }

    /// How many methods an interface has (`InterfaceType` in internal/abi/type.go @ go1.27).
    fn method_count(&self, interface: u64) -> Result<u64, ImageError> {
        let data = self.image.read(interface.saturating_add(64), 8)?;
        u64_at(&data, 0).ok_or_else(too_many_itabs)
    }
}

/// See [`GoImage::arguments`].
fn arguments_of(data: &[u8]) -> Option<String> {
    let mut text = String::new();
    let mut bytes = data.iter();
    loop {
        match *bytes.next()? {
            0xff => return Some(text),
            0xfe => text.push('{'),
            0xfd => text.push('}'),
            0xfc | 0xfb => text.push('*'),
            0xf0.. => return None,
            _ => text.push(match *bytes.next()? {
                8 => 'w',
                size @ (1 | 2 | 4) => char::from(b'0' + size),
                _ => return None,
            }),
        }
    }
}

fn too_many_itabs() -> ImageError {
    ImageError::malformed("it has more Go itabs than a program needs")
}

fn to_len(len: u64) -> Result<usize, ImageError> {
    usize::try_from(len).map_err(|_| ImageError::malformed(format!("a table of {len} bytes is too large")))
}

/// The number of 4 or 8 bytes in `data`.
fn number(data: &[u8]) -> Result<u64, ImageError> {
    let value = u64_at(data, 0).or_else(|| u32_at(data, 0).map(u64::from));
    value.ok_or_else(|| ImageError::malformed("its Go function table is cut"))
}

/// The names of functions. Names are nearly disjoint, so reading far more bytes than there are means that
/// a file was made to waste time.
struct Names<'a> {
    data: &'a [u8],
    budget: usize,
}

impl<'a> Names<'a> {
    fn get(&mut self, offset: u64) -> Result<&'a [u8], ImageError> {
        let text = usize::try_from(offset).ok().and_then(|offset| self.data.get(offset..));
        let name = text.and_then(|text| text.get(..text.iter().position(|&b| b == 0)?));
        let name = name.ok_or_else(|| ImageError::malformed("a Go function name lies outside its table"))?;
        match self.budget.checked_sub(name.len()) {
            Some(left) => self.budget = left,
            None => return Err(ImageError::malformed("its Go function names overlap")),
        }
        Ok(name)
    }
}

/// A table that is read forward, in pieces. Going back is possible but costs of a budget.
struct Window<'a> {
    image: &'a Image,
    table: Slice,
    start: u64,
    piece: Vec<u8>,
    budget: u64,
}

impl<'a> Window<'a> {
    fn new(image: &'a Image, table: Slice) -> Self {
        let budget = table.len.min(MAX_TABLE).saturating_mul(3).saturating_add(4 * WINDOW as u64);
        Self { image, table, start: 0, piece: Vec::new(), budget }
    }

    /// `len` bytes at `offset` of the table.
    fn get(&mut self, offset: u64, len: usize) -> Result<&[u8], ImageError> {
        let end = offset.checked_add(len as u64).filter(|&end| end <= self.table.len);
        let end = end.ok_or_else(|| ImageError::malformed("its Go function table refers outside itself"))?;
        if offset < self.start || end > self.start + self.piece.len() as u64 {
            self.move_to(offset)?;
        }
        let from = to_len(offset - self.start)?;
        let cut = || ImageError::malformed("its Go function table is cut");
        self.piece.get(from..from + len).ok_or_else(cut)
    }

    fn move_to(&mut self, offset: u64) -> Result<(), ImageError> {
        let left = to_len(self.table.len - offset)?;
        let out_of_order = || ImageError::malformed("its Go function table is not in order");
        let address = self.table.address.checked_add(offset).ok_or_else(out_of_order)?;
        self.piece = self.image.read_up_to(address, left.min(WINDOW))?;
        self.start = offset;
        let cost = (self.piece.len() as u64).max(MIN_COST);
        self.budget = self.budget.checked_sub(cost).ok_or_else(out_of_order)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{BASE, FUNCTIONS, GoFile, Places, TEXT};
    use super::super::{Kind, SiteKind, go_entry_site};
    use super::*;

    fn image(file: Vec<u8>) -> Image {
        Image::parse(Box::new(file)).expect("an image")
    }

    fn variants() -> impl Iterator<Item = GoFile> {
        let releases = (17..=28).map(GoFile::of_release);
        let pie = releases.flat_map(|file| [GoFile { pie: true, ..file.clone() }, file]);
        pie.flat_map(|file| [GoFile { sections: false, ..file.clone() }, file])
    }

    fn put(file: &mut [u8], address: u64, bytes: &[u8]) {
        let at = usize::try_from(address - BASE).expect("an offset");
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    #[test]
    fn functions_are_found_in_every_release() {
        for file in variants() {
            let (bytes, _) = file.build();
            let image = image(bytes);
            let go = image.go().unwrap_or_else(|e| panic!("go1.{} pie={}: {e}", file.minor, file.pie));
            assert_eq!(go.version().minor, file.minor);
            let found = go.functions_named(&|_| true).expect("functions");
            let mut entry = TEXT;
            for (function, (name, code)) in found.iter().zip(FUNCTIONS) {
                assert_eq!((&*function.name, function.entry), (name, entry));
                assert_eq!(go.code(function).expect("code"), code);
                entry = function.end;
            }
            assert_eq!(found.len(), FUNCTIONS.len());
            let named = go.functions_named(&|name| name.ends_with(".(*T).Do")).expect("functions");
            let site = go_entry_site(&go.code(&named[0]).expect("code"), named[0].entry).expect("a site");
            assert_eq!((named.len(), site.kind, site.offset), (1, SiteKind::Entry, 0));
        }
    }

    #[test]
    fn itabs_are_found_in_every_release() {
        for file in variants() {
            let (bytes, places) = file.build();
            let image = image(bytes);
            let itabs = image.go().expect("a Go image").itabs().expect("itabs");
            let pairs: Vec<_> = itabs.iter().map(|i| (i.interface, i.concrete)).collect();
            let (interface, pointer, object) = (places.interface, places.pointer, places.object);
            assert_eq!(
                pairs,
                [(interface, pointer), (interface, object), (interface, pointer)],
                "{}",
                file.minor
            );
        }
    }

    #[test]
    fn build_info_is_found_in_every_release() {
        for file in variants() {
            let (bytes, _) = file.build();
            let info = image(bytes).build_info().expect("build info");
            assert_eq!((&*info.go_version, &*info.path), (&*file.version, "example.com/pkg"));
            assert_eq!(info.main.expect("a module").version, "v1.2.3");
        }
    }

    #[test]
    fn a_program_without_build_info_is_not_go() {
        for sections in [true, false] {
            let (mut bytes, places) = GoFile { sections, ..GoFile::of_release(26) }.build();
            put(&mut bytes, places.build_info, b"something else");
            let image = image(bytes);
            assert!(matches!(image.build_info(), Err(ImageError::NotGo)));
            assert!(matches!(image.go(), Err(ImageError::NotGo)));
        }
    }

    #[test]
    fn unknown_releases_are_named() {
        for version in ["go1.16.9", "unknown", "go2.1"] {
            let (bytes, _) = GoFile { version: version.to_owned(), ..GoFile::of_release(26) }.build();
            match image(bytes).go().err() {
                Some(ImageError::UnsupportedGo { version: named, .. }) => assert_eq!(named, version),
                other => panic!("{version}: {other:?}"),
            }
        }
    }

    /// Why a release 1.26 with some bytes changed is refused.
    fn refusal(change: impl Fn(&mut [u8], Places)) -> String {
        let (mut bytes, places) = GoFile::of_release(26).build();
        change(&mut bytes, places);
        let image = image(bytes);
        let result = image.go().and_then(|go| go.functions_named(&|_| true).and_then(|_| go.itabs()));
        match result.err() {
            Some(ImageError::Malformed { what }) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_obfuscated_program_is_called_so() {
        let what = refusal(|file, places| put(file, places.table, &[0x12, 0x34, 0x56, 0x78]));
        assert!(what.contains("garble"), "{what}");
        let what = refusal(|file, places| put(file, places.names, &[b'x'; 400]));
        assert!(what.contains("function"), "{what}");
    }

    #[test]
    fn module_data_that_disagrees_is_not_believed() {
        // Number of functions, start of the text, of the names, start and size of the table.
        for offset in [128 + 8, 176, 8, 104, 104 + 8, 128, 160, 0] {
            let what = refusal(|file, places| put(file, places.module + offset, &[0xff; 8]));
            assert!(what.contains("not one of go1.26.3"), "{offset}: {what}");
        }
    }

    #[test]
    fn functions_out_of_order_are_refused() {
        let what = refusal(|file, places| put(file, places.rows + 8, &[0xff, 0xff, 0xff, 0x7f]));
        assert!(what.contains("outside the code"), "{what}");
        let what = refusal(|file, places| put(file, places.rows + 16, &[1, 0, 0, 0]));
        assert!(what.contains("not in order"), "{what}");
        let what = refusal(|file, places| put(file, places.rows + 4, &[0xff, 0xff, 0xff, 0x7f]));
        assert!(what.contains("outside itself"), "{what}");
    }

    #[test]
    fn names_cannot_be_read_again_and_again() {
        let data = [[b'x'; 100].as_slice(), &[0]].concat();
        let mut names = Names { data: &data, budget: 250 };
        assert!(names.get(0).is_ok() && names.get(1).is_ok());
        assert!(names.get(2).is_err());
        assert!(names.get(101).is_err() && names.get(u64::MAX).is_err());
    }

    #[test]
    fn a_table_cannot_be_read_back_and_forth() {
        let (bytes, places) = GoFile::of_release(26).build();
        let image = image(bytes);
        let mut window = Window::new(&image, Slice { address: places.rows, len: 64 });
        assert!(window.get(60, 4).is_ok() && window.get(0, 8).is_ok());
        assert!(window.get(60, 5).is_err() && window.get(u64::MAX, 4).is_err());
        let moves = (0..1000).take_while(|_| window.move_to(0).is_ok()).count();
        assert!((10..300).contains(&moves), "{moves}");
        // However large it claims to be.
        let window = Window::new(&image, Slice { address: places.rows, len: u64::MAX });
        assert!(window.budget < 1 << 30, "{}", window.budget);
    }

    #[test]
    fn code_must_be_code() {
        let (bytes, places) = GoFile::of_release(26).build();
        let image = image(bytes);
        let go = image.go().expect("a Go image");
        for (entry, end) in
            [(TEXT + 4, TEXT), (places.table, places.table + 8), (TEXT, u64::MAX), (TEXT, TEXT + 4096)]
        {
            assert!(go.code(&Function { name: String::new(), entry, end, record: 0 }).is_err(), "{entry:#x}");
        }
    }

    /// Everything that can be asked of an image.
    fn ask(file: Vec<u8>) {
        let Ok(image) = Image::parse(Box::new(file)) else {
            return;
        };
        let _ = image.build_info();
        let Ok(go) = image.go() else {
            return;
        };
        for function in go.functions_named(&|_| true).unwrap_or_default() {
            let _ = go.code(&function).map(|code| go_entry_site(&code, function.entry));
            let _ = go.inlined_into(&function);
        }
        for itab in go.itabs().unwrap_or_default() {
            for address in [itab.interface, itab.concrete] {
                let Ok(found) = go.type_at(address) else { continue };
                assert!(found.kind == Kind::Struct || found.fields.is_empty());
                let _ = found.elem.map(|elem| go.type_at(elem));
            }
        }
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(
            minor in 17_u32..=27,
            pie in any::<bool>(),
            sections in any::<bool>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let (mut file, _) = GoFile { pie, sections, ..GoFile::of_release(minor) }.build();
            // The parts that are not padding.
            let places: Vec<usize> = (0..file.len()).filter(|&i| file[i] != 0).collect();
            for (at, value) in changes {
                file[places[at.index(places.len())]] = value;
            }
            if let Some(cut) = cut {
                file.truncate(cut.index(file.len()));
            }
            ask(file);
        }

        #[test]
        fn words_with_extreme_values_never_panic(
            minor in 17_u32..=27,
            at in any::<prop::sample::Index>(),
            value in prop::sample::select(vec![0, 1, u64::MAX, u64::MAX - 7, 1 << 63, 1 << 32, TEXT, u64::from(u32::MAX)]),
        ) {
            let (mut file, _) = GoFile::of_release(minor).build();
            let places: Vec<usize> = (0..file.len() / 8).filter(|&i| file[8 * i..8 * i + 8] != [0; 8]).collect();
            let at = 8 * places[at.index(places.len())];
            file[at..at + 8].copy_from_slice(&value.to_le_bytes());
            ask(file);
        }
    }
}
