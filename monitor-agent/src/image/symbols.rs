//! The symbol table, if the file still has one.

use std::collections::HashMap;

use object::{LittleEndian as LE, elf, pod::slice_from_all_bytes};

use super::{
    Image, ImageError,
    elf::{file_header, read_bytes, read_table},
};

const WHAT: &str = "symbol table";
/// The most symbols. Programs of 100 MB have half a million.
const MAX_SYMBOLS: u64 = 1 << 22;
const MAX_NAMES: u64 = 256 << 20;
/// The most bytes of all names together. Programs of 100 MB have 50 MB. Several symbols may share the bytes of one
/// name.
const MAX_TEXT: usize = 256 << 20;
/// The longest name that is compared.
const NAME_MAX: usize = 4096;
/// The number of symbols that are read at once.
const PIECE: u64 = 1 << 14;
/// The size of the pieces in which names are read. The symbols are read once for each piece.
const PIECE_TEXT: usize = 16 << 20;
const SYMBOL: u64 = size_of::<elf::Sym64<LE>>() as u64;

impl Image {
    /// Returns the addresses of the variables and functions with these names in the file's symbol table. A file without
    /// a table has none. If a name occurs twice, its first address is returned.
    pub fn symbols(&self, names: &[&'static str]) -> Result<HashMap<&'static str, u64>, ImageError> {
        let mut found = HashMap::new();
        let Some(table) = self.symbol_table(elf::SHT_SYMTAB)? else { return Ok(found) };
        table.visit_named(self, &mut |symbol, text| {
            if let Some(name) = named(symbol, text, names) {
                found.entry(name).or_insert(symbol.st_value.get(LE));
            }
            found.len() < names.len()
        })?;
        Ok(found)
    }

    /// Whether the file has only the symbols for the dynamic linker, which `strip` leaves.
    pub fn is_stripped(&self) -> Result<bool, ImageError> {
        Ok(self.symbol_table(elf::SHT_SYMTAB)?.is_none())
    }

    /// Visits the functions of both symbol tables that have an address and a size: name, address, size.
    pub(super) fn visit_functions(&self, visit: &mut dyn FnMut(&str, u64, u64)) -> Result<(), ImageError> {
        self.visit_sized(is_function, visit)
    }

    /// The same, and also symbols that may be of a part of a function: LLVM gives them no type.
    pub(super) fn visit_parts(&self, visit: &mut dyn FnMut(&str, u64, u64)) -> Result<(), ImageError> {
        let may_be_part = |symbol: &elf::Sym64<LE>| {
            is_function(symbol)
                || (symbol.st_type() == elf::STT_NOTYPE && symbol.st_shndx.get(LE) != elf::SHN_UNDEF)
        };
        self.visit_sized(may_be_part, visit)
    }

    /// Visits the wanted symbols that have an address and a size.
    fn visit_sized(
        &self,
        is_wanted: impl Fn(&elf::Sym64<LE>) -> bool,
        visit: &mut dyn FnMut(&str, u64, u64),
    ) -> Result<(), ImageError> {
        let mut left = MAX_TEXT;
        for kind in [elf::SHT_SYMTAB, elf::SHT_DYNSYM] {
            let Some(table) = self.symbol_table(kind)? else { continue };
            table.visit_named(self, &mut |symbol, text| {
                let (address, size) = (symbol.st_value.get(LE), symbol.st_size.get(LE));
                if !is_wanted(symbol) || address == 0 || size == 0 {
                    return true;
                }
                let name = name(text);
                if let Some(name) = name {
                    visit(name, address, size);
                }
                // To find that a text is not a name takes as long as the longest name.
                left = left.saturating_sub(name.map_or(NAME_MAX, str::len));
                left > 0
            })?;
            if left == 0 {
                return Err(ImageError::malformed("its symbols have longer names than any program's"));
            }
        }
        Ok(())
    }

    /// Whether the file's own table has local functions. If they were left out, as by `strip -x`, the parts of a
    /// function are unknown.
    pub(super) fn has_local_functions(&self) -> Result<bool, ImageError> {
        let Some(table) = self.symbol_table(elf::SHT_SYMTAB)? else { return Ok(false) };
        let mut has_one = false;
        table.visit(self, &mut |symbol| {
            has_one = is_function(symbol) && symbol.st_bind() == elf::STB_LOCAL;
            !has_one
        })?;
        Ok(has_one)
    }

    /// Returns the symbol table of a kind: the file's own, or the one for the dynamic linker.
    fn symbol_table(&self, kind: elf::SectionType) -> Result<Option<Table>, ImageError> {
        let source = self.source();
        let header = file_header(source)?;
        let (offset, count) = (header.e_shoff.get(LE), usize::from(header.e_shnum.get(LE)));
        if offset == 0 || count == 0 {
            return Ok(None);
        }
        let sections: Vec<elf::SectionHeader64<LE>> = read_table(source, offset, count, "section headers")?;
        let Some(table) = sections.iter().find(|section| section.sh_type.get(LE) == kind) else {
            return Ok(None);
        };
        let strings = usize::try_from(table.sh_link.get(LE)).ok().and_then(|index| sections.get(index));
        let strings = strings.ok_or_else(|| ImageError::malformed("its symbol table has no names"))?;
        let (text_size, symbols) = (strings.sh_size.get(LE), table.sh_size.get(LE) / SYMBOL);
        if text_size > MAX_NAMES || symbols > MAX_SYMBOLS {
            return Err(ImageError::malformed("its symbol table is too large"));
        }
        let text = (strings.sh_offset.get(LE), usize::try_from(text_size).unwrap_or(0));
        Ok(Some(Table { offset: table.sh_offset.get(LE), symbols, text }))
    }
}

/// A symbol table.
struct Table {
    /// Its offset in the file, and its number of symbols.
    offset: u64,
    symbols: u64,
    /// The offset of its names, and their size in bytes.
    text: (u64, usize),
}

impl Table {
    /// Visits the symbols until `visit` returns false, each with the text that begins with its name. The order is
    /// roughly that of the names: one piece of the text is in memory at a time.
    fn visit_named(
        &self,
        image: &Image,
        visit: &mut dyn FnMut(&elf::Sym64<LE>, &[u8]) -> bool,
    ) -> Result<(), ImageError> {
        let (offset, len) = self.text;
        let mut goes_on = true;
        for first in (0..len).step_by(PIECE_TEXT) {
            // The last name may end in the next piece.
            let size = (PIECE_TEXT + NAME_MAX).min(len - first);
            let text = read_bytes(image.source(), offset.saturating_add(first as u64), size, WHAT)?;
            self.visit(image, &mut |symbol| {
                let name = usize::try_from(symbol.st_name.get(LE)).unwrap_or(usize::MAX);
                let place = name.checked_sub(first).filter(|place| *place < PIECE_TEXT);
                let text = place.and_then(|place| text.get(place..));
                goes_on = text.is_none_or(|text| visit(symbol, text));
                goes_on
            })?;
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    /// Visits the symbols until `visit` returns false.
    fn visit(&self, image: &Image, visit: &mut dyn FnMut(&elf::Sym64<LE>) -> bool) -> Result<(), ImageError> {
        let mut first = 0;
        while first < self.symbols {
            let piece = PIECE.min(self.symbols - first);
            let at = self.offset.saturating_add(first * SYMBOL);
            let data = read_bytes(image.source(), at, usize::try_from(piece * SYMBOL).unwrap_or(0), WHAT)?;
            let symbols: &[elf::Sym64<LE>] = slice_from_all_bytes(&data).unwrap_or_default();
            if !symbols.iter().all(&mut *visit) {
                break;
            }
            first += piece;
        }
        Ok(())
    }
}

fn is_function(symbol: &elf::Sym64<LE>) -> bool {
    symbol.st_type() == elf::STT_FUNC
}

/// Returns the name at the beginning of a text, if it is one that a compiler makes.
fn name(text: &[u8]) -> Option<&str> {
    let text = text.get(..NAME_MAX).unwrap_or(text);
    let end = text.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(text.get(..end)?).ok().filter(|name| !name.is_empty())
}

/// Returns the name in `names` that a symbol has, if any. `text` begins with the symbol's name.
fn named(symbol: &elf::Sym64<LE>, text: &[u8], names: &[&'static str]) -> Option<&'static str> {
    let is_name = |name: &&&'static str| {
        text.starts_with(name.as_bytes()) && text.get(name.len()).is_some_and(|&end| end == 0)
    };
    (symbol.st_value.get(LE) != 0).then(|| names.iter().find(is_name).copied())?
}
