//! The notes of a file, which hold its build id.

use object::{LittleEndian as LE, elf};

use super::{super::bytes::u32_at, Image, headers::MAX_SEGMENTS};

const MAX_NOTES: u64 = 64 << 10;
const MAX_BUILD_ID: usize = 256;
/// `ELF_NOTE_GOBUILDID_TAG` in cmd/internal/buildid/note.go @ go1.26.
const NT_GO_BUILD_ID: elf::NoteType = elf::NoteType(4);

/// Returns the build id from the notes. Go's linker lists only its own note in the program headers, so the sections are
/// read first. A file is usable without its notes: damaged ones are ignored.
pub(super) fn build_id(image: &Image, headers: &[elf::ProgramHeader64<LE>]) -> Option<String> {
    let sections =
        [".note.gnu.build-id", ".note.go.buildid"].into_iter().filter_map(|name| image.section(&[name]));
    let segments = headers.iter().filter(|h| h.p_type.get(LE) == elf::PT_NOTE).take(MAX_SEGMENTS);
    let places = sections.chain(segments.map(|h| (h.p_vaddr.get(LE), h.p_filesz.get(LE))));
    let mut go = None;
    for (address, size) in places {
        let size = usize::try_from(size.min(MAX_NOTES)).unwrap_or(0);
        let notes = image.segment(address, size as u64).and_then(|s| image.read_raw(s, address, size));
        for (owner, kind, content) in (Notes { data: &notes.unwrap_or_default() }) {
            match (owner, kind) {
                (b"GNU\0", elf::NT_GNU_BUILD_ID) => return Some(hex(content)),
                (b"Go\0\0", NT_GO_BUILD_ID) => go = go.or_else(|| String::from_utf8(content.to_vec()).ok()),
                _ => {}
            }
        }
    }
    go
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Iterates over owner, type and content of each note, up to the first that is malformed. Parts are aligned to 4 bytes:
/// notes aligned to 8 do not hold build ids.
struct Notes<'a> {
    data: &'a [u8],
}

impl<'a> Iterator for Notes<'a> {
    type Item = (&'a [u8], elf::NoteType, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let owner_len = usize::try_from(u32_at(self.data, 0)?).ok()?;
        let content_len = usize::try_from(u32_at(self.data, 4)?).ok()?;
        let kind = elf::NoteType(u32_at(self.data, 8)?);
        let owner_end = 12_usize.checked_add(owner_len)?;
        let content_at = owner_end.checked_next_multiple_of(4)?;
        let content_end = content_at.checked_add(content_len)?;
        let owner = self.data.get(12..owner_end)?;
        let content =
            self.data.get(content_at..content_end).filter(|&content| content.len() <= MAX_BUILD_ID)?;
        self.data = self.data.get(content_end.checked_next_multiple_of(4)?..).unwrap_or_default();
        Some((owner, kind, content))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn damaged_notes_end_the_list(data in prop::collection::vec(any::<u8>(), 0..200)) {
            let notes = Notes { data: &data };
            prop_assert!(notes.count() <= data.len() / 12);
        }
    }
}
