//! The function table: names, addresses and arguments of all functions.

use super::{GoImage, Slice, number, to_len};
use crate::image::bytes::u32_at;
use crate::image::code::goes_on_elsewhere;
use crate::image::{Image, ImageError};

/// No function that is worth probing is larger. Decoding this much takes a few milliseconds.
const MAX_CODE: u64 = 256 << 10;
/// Tables are read in pieces of this size.
const WINDOW: usize = 256 << 10;
/// The least that one move in a table costs of the budget, however few bytes it reads.
const MIN_COST: u64 = 4096;
/// The largest function tables have a hundred megabytes.
const MAX_TABLE: u64 = 256 << 20;
/// The most functions in an answer. No sensible question has more.
pub(super) const MAX_FOUND: usize = 1 << 16;
/// The longest name that is compared. Most names of functions are shorter than a hundred bytes, since they do not
/// include type arguments.
pub(super) const MAX_NAME: usize = 1 << 10;
/// The most bytes of all names in an answer.
pub(super) const MAX_NAMES: usize = 16 << 20;

/// The index of the data that describes a function's arguments.
const ARGUMENTS: u8 = 5;
/// The longest description of arguments (`TraceArgsMaxLen` in internal/abi/type.go @ go1.27).
const ARGUMENTS_MAX: usize = 171;
/// The most tables of a function, which has a handful.
pub(super) const MAX_TABLES: u32 = 64;

/// A function of the runtime that every program has, since the runtime's own `main` defers. Each release marks it as a
/// wrapper (`funcIDs` in cmd/internal/objabi/funcid.go @ go1.18 to go1.27). The id of wrappers differs between
/// releases.
pub(crate) const A_WRAPPER: &str = "runtime.deferreturn";
/// The flag of functions in assembly (`FuncFlagAsm` in internal/abi/symtab.go @ go1.21 to go1.27, `FuncFlag_ASM`
/// before).
const ASSEMBLY: u8 = 1 << 2;
/// The largest wrapper that only jumps to another function. It has five instructions. Without optimisation it first
/// stores its arguments on the stack and reloads them: ten bytes more for each of the nine words in registers, and
/// twelve or so for each of the fifteen floating-point numbers.
const MAX_WRAPPER: u64 = 512;

/// A function of the program. Addresses are link-time virtual addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// The linker's name, such as `net/http.(*Server).Serve`.
    pub name: String,
    /// Address of its first instruction.
    pub entry: u64,
    /// Address after its last byte. Includes the padding up to the next function.
    pub end: u64,
    /// Address of its record in the function table.
    pub record: u64,
}

/// Why a function is not Go code of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StandIn {
    /// The compiler made it to call another function.
    Wrapper,
    /// It is written in assembly.
    Assembly,
}

/// The formats of the function table, by the magic number in its header
/// (internal/abi/symtab.go @ go1.26).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TableFormat {
    /// Go 1.16 and 1.17: function addresses.
    Go116,
    /// Go 1.18 and 1.19: offsets from the start of the text.
    Go118,
    /// Since Go 1.20: the same, with other names for generated symbols.
    Go120,
}

impl TableFormat {
    pub(super) fn of_magic(magic: u32) -> Option<Self> {
        match magic {
            0xffff_fffa => Some(Self::Go116),
            0xffff_fff0 => Some(Self::Go118),
            0xffff_fff1 => Some(Self::Go120),
            _ => None,
        }
    }

    pub(super) fn of_release(minor: u32) -> Self {
        match minor {
            ..=17 => Self::Go116,
            18..=19 => Self::Go118,
            20.. => Self::Go120,
        }
    }

    /// Returns where the header holds the distances to the names and to the table.
    pub(super) fn header_offsets(self) -> (usize, usize) {
        if self == Self::Go116 { (24, 56) } else { (32, 64) }
    }

    /// The size of one number in the table, an address or an offset, in bytes.
    pub(super) fn width(self) -> u64 {
        if self == Self::Go116 { 8 } else { 4 }
    }
}

impl GoImage<'_> {
    /// Returns the functions whose name `matches`, in the order of their addresses. Fails if there are more than
    /// 65,536. Reads the whole table once. Type arguments are written `[...]`. A function in assembly can be found
    /// twice under one name: as itself, and as the compiler's wrapper with register arguments. Names of more than a
    /// kilobyte match nothing.
    pub fn functions_named(&self, matches: &dyn Fn(&str) -> bool) -> Result<Vec<Function>, ImageError> {
        self.some_functions_named(MAX_FOUND, matches)
    }

    /// The same, but fails if there are more than `most`.
    pub(crate) fn some_functions_named(
        &self,
        most: usize,
        matches: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<Function>, ImageError> {
        let module = &self.module;
        let names = self.image.read(module.names.address, to_len(module.names.len)?)?;
        let mut names = Names::new(&names);
        let width = self.format.width();
        let width_bytes = to_len(width)?;
        let mut rows = Window::new(self.image, module.functions);
        let mut records = Window::new(self.image, module.functions);
        let mut found = Vec::new();
        let mut room = MAX_NAMES;
        let mut entry = self.entry(rows.get(0, width_bytes)?)?;
        for row in 0..module.function_count {
            let at = 2 * width * row;
            let record_at = number(rows.get(at + width, width_bytes)?)?;
            let end = self.entry(rows.get(at + 2 * width, width_bytes)?)?;
            if end < entry {
                return Err(ImageError::malformed("its Go function table is not in order"));
            }
            // In a function's record, the offset of its name follows the entry (`_func` in runtime/runtime2.go @
            // go1.26).
            let name_at = number(records.get(record_at.saturating_add(width), 4)?)?;
            let name = names.get(name_at)?;
            if let Some(name) = sought(name)
                && matches(name)
            {
                let left = room.checked_sub(name.len()).filter(|_| found.len() < most);
                room = left
                    .ok_or_else(|| ImageError::malformed("too many of its Go functions have such a name"))?;
                let record = module.functions.address.saturating_add(record_at);
                found.push(Function { name: name.to_owned(), entry, end, record });
            }
            entry = end;
        }
        Ok(found)
    }

    /// Returns the instructions of a function, including the padding after it.
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

    /// Returns the layout of a function's arguments, as the runtime has it for tracebacks (`FUNCDATA_ArgInfo`,
    /// internal/abi/symtab.go and internal/abi/type.go @ go1.27): a `w` for each word, a digit for each smaller value,
    /// braces around the parts of one argument, a `*` where the compiler left out the rest. `None` if there is no
    /// layout: before Go 1.18, and for assembly.
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

    /// Returns the id by which the runtime recognises wrappers: the id of the wrapper that every program has, if it is
    /// among `functions`, or else the id known for the release. `None` for Go 1.17, where ids are not read.
    pub fn wrapper_id(&self, functions: &[Function]) -> Result<Option<u8>, ImageError> {
        if self.format == TableFormat::Go116 {
            return Ok(None);
        }
        let one = functions.iter().find(|function| function.name == A_WRAPPER);
        let marks = one.map(|function| self.id_and_flags(function)).transpose()?;
        // 0 is the id of ordinary functions.
        let id = marks.map(|(id, _)| id).filter(|id| *id != 0);
        let id = id.or_else(|| wrapper_id_of_release(self.version.minor));
        if id.is_none() {
            let version = self.version.to_string();
            let why = format!("{A_WRAPPER} doesn't tell which functions the compiler made to call others");
            return Err(ImageError::UnsupportedGo { version, why });
        }
        Ok(id)
    }

    /// Returns why a function is not Go code of the program, if it is not: it is in assembly, or the compiler made it
    /// to call another function, such as the method of a pointer for the method of a value. `wrapper` is the [id of
    /// wrappers](Self::wrapper_id). Always `None` for Go 1.17.
    pub fn stand_in(&self, function: &Function, wrapper: Option<u8>) -> Result<Option<StandIn>, ImageError> {
        if self.format == TableFormat::Go116 {
            return Ok(None);
        }
        let (id, flags) = self.id_and_flags(function)?;
        if flags & ASSEMBLY != 0 {
            return Ok(Some(StandIn::Assembly));
        }
        let is_short = (1..=MAX_WRAPPER).contains(&function.end.saturating_sub(function.entry));
        // A wrapper that only jumps does not have the id.
        let is_wrapper =
            wrapper == Some(id) || (is_short && goes_on_elsewhere(&self.code(function)?, function.entry));
        Ok(is_wrapper.then_some(StandIn::Wrapper))
    }

    /// Returns a function's id and flags (`funcID` and `flag` of `_func` in runtime/runtime2.go @ go1.18 to go1.27).
    fn id_and_flags(&self, function: &Function) -> Result<(u8, u8), ImageError> {
        let head = self.image.read(function.record, self.record_size())?;
        match head.as_slice() {
            [.., id, flags, _, _] => Ok((*id, *flags)),
            _ => Err(ImageError::malformed("a record of its Go function table is cut")),
        }
    }

    /// The size of the fixed part of a function's record (`_func` in runtime/runtime2.go). Since Go 1.20 it includes
    /// the first line.
    pub(super) fn record_size(&self) -> usize {
        if self.version.minor < 20 { 40 } else { 44 }
    }

    /// Returns the address of a function from its number in the table.
    pub(super) fn entry(&self, data: &[u8]) -> Result<u64, ImageError> {
        let value = number(data)?;
        let entry =
            if self.format == TableFormat::Go116 { Some(value) } else { self.module.text.checked_add(value) };
        let inside = entry.filter(|entry| (self.module.text..=self.module.text_end).contains(entry));
        inside.ok_or_else(|| ImageError::malformed("its Go function table refers outside the code"))
    }
}

/// Returns the id of wrappers in a known release (`funcID_wrapper` in runtime/symtab.go @ go1.18 to go1.20,
/// `FuncIDWrapper` in internal/abi/symtab.go @ go1.21 to go1.27).
fn wrapper_id_of_release(minor: u32) -> Option<u8> {
    match minor {
        18..=21 => Some(21),
        22..=24 => Some(22),
        25..=27 => Some(23),
        _ => None,
    }
}

/// Returns a name if it can be compared: it is UTF-8 and not too long.
pub(super) fn sought(name: &[u8]) -> Option<&str> {
    if name.len() > MAX_NAME {
        return None;
    }
    str::from_utf8(name).ok()
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

/// The names of functions. Names hardly overlap: a file whose names have far more bytes than their table was made to
/// waste time.
pub(super) struct Names<'a> {
    data: &'a [u8],
    budget: usize,
}

impl<'a> Names<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { data, budget: data.len().saturating_mul(4) }
    }

    pub(super) fn get(&mut self, offset: u64) -> Result<&'a [u8], ImageError> {
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

/// A table that is read forward, in pieces. Going back is possible, but each move costs of a budget.
pub(super) struct Window<'a> {
    image: &'a Image,
    table: Slice,
    start: u64,
    piece: Vec<u8>,
    budget: u64,
}

impl<'a> Window<'a> {
    pub(super) fn new(image: &'a Image, table: Slice) -> Self {
        let budget = table.len.min(MAX_TABLE).saturating_mul(3).saturating_add(4 * WINDOW as u64);
        Self { image, table, start: 0, piece: Vec::new(), budget }
    }

    /// Returns `len` bytes at `offset` of the table.
    pub(super) fn get(&mut self, offset: u64, len: usize) -> Result<&[u8], ImageError> {
        let end = offset.checked_add(len as u64).filter(|&end| end <= self.table.len);
        let end = end.ok_or_else(|| ImageError::malformed("its Go function table refers outside itself"))?;
        if offset < self.start || end > self.start + self.piece.len() as u64 {
            self.move_to(offset)?;
        }
        let from = to_len(offset - self.start)?;
        let cut = || ImageError::malformed("its Go function table is cut");
        self.piece.get(from..from + len).ok_or_else(cut)
    }

    /// Returns up to `most` bytes at `offset`, fewer at the end of the table.
    pub(super) fn get_up_to(&mut self, offset: u64, most: usize) -> Result<&[u8], ImageError> {
        let left = self.table.len.saturating_sub(offset);
        self.get(offset, usize::try_from(left).map_or(most, |left| left.min(most)))
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
    use super::*;
    use crate::image::testing::GoFile;

    #[test]
    fn names_cannot_be_read_again_and_again() {
        let data = [[b'x'; 100].as_slice(), &[0]].concat();
        let mut names = Names { data: &data, budget: 250 };
        assert!(names.get(0).is_ok() && names.get(1).is_ok());
        assert!(names.get(2).is_err());
        assert!(names.get(101).is_err() && names.get(u64::MAX).is_err());
    }

    #[test]
    fn overlong_names_are_not_looked_for() {
        assert_eq!(sought(b"main.main"), Some("main.main"));
        assert!(sought(&[b'x'; MAX_NAME]).is_some());
        assert!(sought(&[b'x'; MAX_NAME + 1]).is_none() && sought(b"\xff").is_none());
    }

    #[test]
    fn a_table_cannot_be_read_back_and_forth() {
        let (bytes, places) = GoFile::of_release(26).build();
        let image = Image::parse(Box::new(bytes)).expect("an image");
        let mut window = Window::new(&image, Slice { address: places.rows, len: 64 });
        assert!(window.get(60, 4).is_ok() && window.get(0, 8).is_ok());
        assert!(window.get(60, 5).is_err() && window.get(u64::MAX, 4).is_err());
        let moves = (0..1000).take_while(|_| window.move_to(0).is_ok()).count();
        assert!((10..300).contains(&moves), "{moves}");
        // However large the table claims to be.
        let window = Window::new(&image, Slice { address: places.rows, len: u64::MAX });
        assert!(window.budget < 1 << 30, "{}", window.budget);
    }
}
