//! The values that the dynamic linker stores in a position-independent file.

use object::{LittleEndian as LE, elf, pod::from_bytes};

use super::{
    super::{ImageError, bytes::u64_at},
    CHUNK, Image,
};

/// The most relocations. A Kitex program of 29 MB has 0.2 million; one of 1.1 GB would have this many. They take 64 MB.
const MAX_RELOCATIONS: usize = 8_000_000;
const MAX_DYNAMIC: u64 = 64 << 10;
/// Tags of the dynamic section: address and size of the table of relocations with addends.
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;

/// The link-time value to which the dynamic linker adds the bias before it stores the sum at `address`.
///
/// 32 bits each: a position-independent file is linked for addresses from 0 on, and its code reaches 2 GiB. There are
/// many relocations, and they are kept as long as the file.
pub(super) struct Relocation {
    address: u32,
    value: u32,
}

impl Image {
    /// The relocations of a position-independent file, by address. Read on first use.
    pub(super) fn relocations(&self) -> Result<&[Relocation], ImageError> {
        if let Some(known) = self.relocations.get() {
            return Ok(known);
        }
        let read = self.read_relocations()?;
        Ok(self.relocations.get_or_init(|| read))
    }

    /// Reads the relative relocations of the dynamic section, by address. Go's own linker also stores their values in
    /// place. The system's linker, used with cgo, does not. (Packed relocations, `DT_RELR`, always have their values in
    /// place.)
    fn read_relocations(&self) -> Result<Vec<Relocation>, ImageError> {
        const ENTRY: usize = size_of::<elf::Rela64<LE>>();
        let Some((mut at, size)) = self.relocation_table()? else {
            return Ok(Vec::new());
        };
        let mut left = usize::try_from(size).unwrap_or(usize::MAX) / ENTRY;
        if left > MAX_RELOCATIONS {
            return Err(ImageError::malformed(format!(
                "it has {left} relocations, more than the {MAX_RELOCATIONS} that are read"
            )));
        }
        // Checked before memory is allocated for the whole table.
        self.segment(at, size)?;
        let mut found = Vec::with_capacity(left);
        while left > 0 {
            let count = left.min(CHUNK / ENTRY);
            let segment = self.segment(at, (count * ENTRY) as u64)?;
            let piece = self.read_raw(segment, at, count * ENTRY)?;
            for entry in piece.chunks_exact(ENTRY) {
                found.extend(relative(entry)?);
            }
            at += piece.len() as u64;
            left -= count;
        }
        // A stable sort would take half as much memory again.
        found.sort_unstable_by_key(|r| (r.address, r.value));
        // No linker writes two for one address. A file that does must not cost more.
        found.dedup_by_key(|r| r.address);
        Ok(found)
    }

    /// Returns address and size of the table of relocations with addends.
    fn relocation_table(&self) -> Result<Option<(u64, u64)>, ImageError> {
        let Some((address, size)) = self.dynamic else {
            return Ok(None);
        };
        let size = size.min(MAX_DYNAMIC);
        let segment = self.segment(address, size)?;
        let data = self.read_raw(segment, address, usize::try_from(size).unwrap_or(0))?;
        let (mut table, mut table_size) = (None, None);
        for entry in data.chunks_exact(16) {
            match (u64_at(entry, 0), u64_at(entry, 8)) {
                (Some(DT_RELA), value) => table = value,
                (Some(DT_RELASZ), value) => table_size = value,
                (Some(0), _) => break,
                _ => {}
            }
        }
        Ok(table.zip(table_size).filter(|&(_, size)| size > 0))
    }
}

/// Returns the relocation of an entry, if it is a relative one. Refuses one that does not fit: what the file has in its
/// place may be another value.
fn relative(entry: &[u8]) -> Result<Option<Relocation>, ImageError> {
    let read = from_bytes::<elf::Rela64<LE>>(entry).ok().map(|(entry, _)| entry);
    let Some(entry) = read.filter(|entry| entry.r_type(LE, false) == elf::R_X86_64_RELATIVE) else {
        return Ok(None);
    };
    let (address, value) = (entry.r_offset.get(LE), entry.r_addend.get(LE));
    let fitting = u32::try_from(address).ok().zip(u32::try_from(value).ok());
    let Some((address, value)) = fitting else {
        return Err(ImageError::malformed(format!(
            "its relocation of {address:#x} to {value:#x} lies beyond 4 GiB"
        )));
    };
    Ok(Some(Relocation { address, value }))
}

/// Stores the values of the relocations that touch `data`, which was read from `address`.
pub(super) fn relocate(relocations: &[Relocation], address: u64, data: &mut [u8]) {
    let end = address.saturating_add(data.len() as u64);
    let first = relocations.partition_point(|r| u64::from(r.address) + 8 <= address);
    for r in relocations.iter().skip(first).take_while(|r| u64::from(r.address) < end) {
        for (at, byte) in (u64::from(r.address)..).zip(u64::from(r.value).to_le_bytes()) {
            let index = at.checked_sub(address).and_then(|offset| usize::try_from(offset).ok());
            if let Some(slot) = index.and_then(|i| data.get_mut(i)) {
                *slot = byte;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relocations_at_the_end_of_what_a_file_may_have_do_no_harm() {
        let mut data = [0; 4];
        let last = Relocation { address: u32::MAX, value: u32::MAX };
        relocate(&[last], u64::from(u32::MAX) - 1, &mut data);
        assert_eq!(data, [0, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn a_relocation_that_does_not_fit_is_not_left_out() {
        const RELATIVE: u64 = 8;
        const ABSOLUTE: u64 = 1;
        let read = |address: u64, kind: u64, value: u64| {
            relative(&[address, kind, value].map(u64::to_le_bytes).concat())
        };
        let kept = read(8, RELATIVE, 9).expect("a relocation").map(|kept| (kept.address, kept.value));
        assert_eq!(kept, Some((8, 9)));
        for (address, value) in [(1 << 32, 9), (8, 1 << 32), (8, u64::MAX), (u64::MAX, u64::MAX)] {
            let error = read(address, RELATIVE, value).map(|_| ()).expect_err("an error").to_string();
            assert!(error.contains("lies beyond 4 GiB"), "{error}");
            assert!(read(address, ABSOLUTE, value).is_ok_and(|kept| kept.is_none()), "{address:#x}");
        }
    }
}
