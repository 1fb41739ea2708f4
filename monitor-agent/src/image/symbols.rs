//! The symbol table, where the file still has one.

use std::collections::HashMap;

use object::{LittleEndian as LE, elf, pod::slice_from_all_bytes};

use super::{
    Image, ImageError,
    elf::{file_header, read_bytes, read_table},
};

const WHAT: &str = "symbol table";
/// Programs of 100 MB have half a million.
const MAX_SYMBOLS: u64 = 1 << 22;
const MAX_NAMES: u64 = 64 << 20;
/// Symbols are read in pieces of this many.
const PIECE: u64 = 1 << 14;
const SYMBOL: u64 = size_of::<elf::Sym64<LE>>() as u64;

impl Image {
    /// The addresses of those of the variables and functions that the file's symbol table has. A file without a table
    /// has none. Where a name is there twice, its first place is given.
    pub fn symbols(&self, names: &[&'static str]) -> Result<HashMap<&'static str, u64>, ImageError> {
        let mut found = HashMap::new();
        let source = self.source();
        let header = file_header(source)?;
        let (offset, count) = (header.e_shoff.get(LE), usize::from(header.e_shnum.get(LE)));
        if offset == 0 || count == 0 {
            return Ok(found);
        }
        let sections: Vec<elf::SectionHeader64<LE>> = read_table(source, offset, count, "section headers")?;
        let Some(table) = sections.iter().find(|s| s.sh_type.get(LE) == elf::SHT_SYMTAB) else {
            return Ok(found);
        };
        let strings = usize::try_from(table.sh_link.get(LE)).ok().and_then(|index| sections.get(index));
        let strings = strings.ok_or_else(|| ImageError::malformed("its symbol table has no names"))?;
        let (text_size, symbols) = (strings.sh_size.get(LE), table.sh_size.get(LE) / SYMBOL);
        if text_size > MAX_NAMES || symbols > MAX_SYMBOLS {
            return Err(ImageError::malformed("its symbol table is too large"));
        }
        let text_size = usize::try_from(text_size).unwrap_or(0);
        let text = read_bytes(source, strings.sh_offset.get(LE), text_size, WHAT)?;
        let mut first = 0;
        while first < symbols && found.len() < names.len() {
            let piece = PIECE.min(symbols - first);
            let at = table.sh_offset.get(LE).saturating_add(first * SYMBOL);
            let data = read_bytes(source, at, usize::try_from(piece * SYMBOL).unwrap_or(0), WHAT)?;
            let piece_of: &[elf::Sym64<LE>] = slice_from_all_bytes(&data).unwrap_or_default();
            for symbol in piece_of {
                if let Some(name) = named(symbol, &text, names) {
                    found.entry(name).or_insert(symbol.st_value.get(LE));
                }
            }
            first += piece;
        }
        Ok(found)
    }
}

/// Which of the names is a symbol's.
fn named(symbol: &elf::Sym64<LE>, text: &[u8], names: &[&'static str]) -> Option<&'static str> {
    let start = usize::try_from(symbol.st_name.get(LE)).ok()?;
    let rest = text.get(start..)?;
    let is_name = |name: &&&'static str| {
        rest.starts_with(name.as_bytes()) && rest.get(name.len()).is_some_and(|&end| end == 0)
    };
    (symbol.st_value.get(LE) != 0).then(|| names.iter().find(is_name).copied())?
}
