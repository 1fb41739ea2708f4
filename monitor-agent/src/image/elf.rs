//! The ELF level: what lies at which address.

mod headers;
mod notes;
mod relocations;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use object::LittleEndian as LE;
use object::elf;

pub(super) use headers::{file_header, read_bytes, read_table};

use self::{
    headers::{program_headers, sections, segments},
    notes::build_id,
    relocations::{Relocation, relocate},
};
use super::{
    BuildInfo, GoImage, ImageError, Source, buildinfo,
    contents::{Contents, Form},
    go,
};

/// The kernel maps segments at multiples of this.
const PAGE: u64 = 4096;
/// The largest single read. The function names of very large programs fit.
const MAX_READ: usize = 48 << 20;
/// Tables are read in pieces of this size.
const CHUNK: usize = 256 << 10;
/// The most bytes that a search covers: a sparse file can claim any size.
const MAX_SCAN: u64 = 256 << 20;

/// One executable file.
pub struct Image {
    source: Box<dyn Source>,
    pie: bool,
    segments: Vec<Segment>,
    sections: Vec<Section>,
    debug_sections: Vec<DebugSection>,
    dynamic: Option<(u64, u64)>,
    build_id: Option<String>,
    relocations: OnceLock<Vec<Relocation>>,
    /// Where the Go runtime's tables are, or why they cannot be found. Set by the first search.
    go: OnceLock<Result<go::Found, ImageError>>,
}

/// A part of the file that is mapped into the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Segment {
    /// The link-time virtual address of its first byte.
    pub address: u64,
    /// Its offset in the file, in bytes.
    pub offset: u64,
    /// The number of bytes that come from the file.
    pub file_size: u64,
    /// The number of bytes in memory. The bytes beyond `file_size` start as zeros.
    pub memory_size: u64,
    /// Whether the process may read it.
    pub readable: bool,
    /// Whether the process may write it.
    pub writable: bool,
    /// Whether the process may execute it.
    pub executable: bool,
}

impl Segment {
    /// Whether all of `len` bytes at `address` come from the file.
    fn holds(&self, address: u64, len: u64) -> bool {
        let end = address.checked_add(len);
        address >= self.address && end.is_some_and(|end| end <= self.address + self.file_size)
    }
}

/// A mapped section according to the section headers. Trusted as a hint only.
struct Section {
    name: Vec<u8>,
    address: u64,
    size: u64,
}

/// A section of debug information, which is not mapped.
struct DebugSection {
    name: Vec<u8>,
    offset: u64,
    size: u64,
    form: Form,
}

impl Image {
    /// Reads the headers of an executable, and none of its contents.
    pub fn parse(source: Box<dyn Source>) -> Result<Self, ImageError> {
        let header = file_header(&*source)?;
        let headers = program_headers(&*source, &header)?;
        let segments = segments(&headers, source.len())?;
        let dynamic = headers.iter().find(|h| h.p_type.get(LE) == elf::PT_DYNAMIC);
        let (sections, debug_sections) = sections(&*source, &header)?;
        let mut image = Self {
            pie: header.e_type.get(LE) == elf::ET_DYN,
            sections,
            debug_sections,
            dynamic: dynamic.map(|h| (h.p_vaddr.get(LE), h.p_filesz.get(LE))),
            build_id: None,
            relocations: OnceLock::new(),
            go: OnceLock::new(),
            segments,
            source,
        };
        image.build_id = build_id(&image, &headers);
        Ok(image)
    }

    /// An empty image, for an executable that cannot be read.
    #[must_use]
    pub fn unread() -> Self {
        Self {
            source: Box::new(Vec::new()),
            pie: false,
            segments: Vec::new(),
            sections: Vec::new(),
            debug_sections: Vec::new(),
            dynamic: None,
            build_id: None,
            relocations: OnceLock::new(),
            go: OnceLock::new(),
        }
    }

    /// The file's bytes.
    pub(super) fn source(&self) -> &dyn Source {
        &*self.source
    }

    /// The id that distinguishes builds: the GNU build id in hexadecimal, or else Go's build id.
    pub fn build_id(&self) -> Option<&str> {
        self.build_id.as_deref()
    }

    /// The page for which the first byte of the lowest segment was linked. The bias of a process is the start of its
    /// lowest mapping of the file minus this address. Not 0 in Go's own position-independent files.
    pub fn link_base(&self) -> u64 {
        self.segments.iter().map(|s| s.address).min().unwrap_or(0) & !(PAGE - 1)
    }

    /// The parts of the file that are mapped, in the order of the program headers.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Returns the offset in the file of the instruction at `address`, or `None` if it is not code from the file.
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        let segment = self.segments.iter().find(|s| s.executable && s.holds(address, 1))?;
        Some(address - segment.address + segment.offset)
    }

    /// Reads `len` bytes at `address` as the program was linked: in a position-independent file, with the addresses
    /// that relocations would store (without bias). The range must lie in one segment and come from the file.
    pub fn read(&self, address: u64, len: usize) -> Result<Vec<u8>, ImageError> {
        let segment = self.segment(address, len as u64)?;
        self.read_in(segment, address, len)
    }

    /// Reads `len` bytes at `address` if the process cannot have written to them: all come from the file and lie in a
    /// segment that is not writable.
    pub fn read_only(&self, address: u64, len: usize) -> Option<Vec<u8>> {
        let segment = self.segment(address, len as u64).ok()?;
        if segment.writable { None } else { self.read_in(segment, address, len).ok() }
    }

    /// Reads what the Go linker recorded about the program: release, modules, settings.
    pub fn build_info(&self) -> Result<BuildInfo, ImageError> {
        buildinfo::read(self)
    }

    /// Finds the tables that every Go program carries for its own runtime, and checks them against each other. Searches
    /// only once, even if nothing is found: in a file without sections, the search may have to read everything.
    pub fn go(&self) -> Result<GoImage<'_>, ImageError> {
        let found = self.go.get_or_init(|| go::find(self)).clone()?;
        Ok(GoImage::new(self, found))
    }

    /// The number of bytes from `address` to the end of the segment's file contents, or 0 outside of all segments.
    pub(super) fn left_at(&self, address: u64) -> u64 {
        self.segment(address, 1).map_or(0, |segment| segment.address + segment.file_size - address)
    }

    /// Reads up to `max` bytes at `address`, fewer where the segment's file contents end, but at least one.
    pub(super) fn read_up_to(&self, address: u64, max: usize) -> Result<Vec<u8>, ImageError> {
        let segment = self.segment(address, 1)?;
        let left = segment.address + segment.file_size - address;
        self.read_in(segment, address, usize::try_from(left).map_or(max, |left| left.min(max)))
    }

    /// Address and size of the first section with one of these names, if the file has sections.
    pub(super) fn section(&self, names: &[&str]) -> Option<(u64, u64)> {
        let find = |name: &&str| self.sections.iter().find(|s| s.name == name.as_bytes() && s.size > 0);
        names.iter().find_map(find).map(|s| (s.address, s.size))
    }

    /// Opens the section of debug information with this name, without `.debug_`. `None` if there is none.
    pub(super) fn debug_section(&self, name: &str) -> Result<Option<Contents<'_>>, ImageError> {
        let called = |prefix: &str| {
            let name = [prefix, name].concat();
            self.debug_sections.iter().find(|s| s.size > 0 && s.name == name.as_bytes())
        };
        let Some(section) = called(".debug_").or_else(|| called(".zdebug_")) else { return Ok(None) };
        Contents::open(&*self.source, section.form, section.offset, section.size).map(Some)
    }

    /// Visits the bytes of a range in pieces, until `visit` returns a value. The length of every piece except the last
    /// is a multiple of 4096. The range is cut at the end of the segment's file contents and at [`MAX_SCAN`] bytes.
    pub(super) fn scan<T>(
        &self,
        address: u64,
        size: u64,
        visit: &mut dyn FnMut(u64, &[u8]) -> Option<T>,
    ) -> Result<Option<T>, ImageError> {
        let end = address.saturating_add(size.min(MAX_SCAN));
        let mut at = address;
        while at < end && self.segment(at, 1).is_ok() {
            let want = usize::try_from(end - at).map_or(CHUNK, |left| left.min(CHUNK));
            let piece = self.read_up_to(at, want)?;
            if let Some(found) = visit(at, &piece) {
                return Ok(Some(found));
            }
            at += piece.len() as u64;
        }
        Ok(None)
    }

    /// Visits the segments that `choose` accepts, like [`Image::scan`], each from the first multiple of `align` on.
    pub(super) fn scan_segments<T>(
        &self,
        choose: &dyn Fn(&Segment) -> bool,
        align: u64,
        visit: &mut dyn FnMut(u64, &[u8]) -> Option<T>,
    ) -> Result<Option<T>, ImageError> {
        let mut left = MAX_SCAN;
        for segment in self.segments.iter().filter(|s| choose(s)) {
            let Some(start) = segment.address.checked_next_multiple_of(align) else {
                continue;
            };
            let size = segment.file_size.saturating_sub(start - segment.address).min(left);
            left -= size;
            if let Some(found) = self.scan(start, size, visit)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn segment(&self, address: u64, len: u64) -> Result<&Segment, ImageError> {
        let outside = || {
            ImageError::malformed(format!(
                "it refers to {len} bytes at {address:#x}, outside what it contains"
            ))
        };
        self.segments.iter().find(|s| s.holds(address, len)).ok_or_else(outside)
    }

    fn read_in(&self, segment: &Segment, address: u64, len: usize) -> Result<Vec<u8>, ImageError> {
        let mut data = self.read_raw(segment, address, len)?;
        if self.pie && self.dynamic.is_some() {
            relocate(self.relocations()?, address, &mut data);
        }
        Ok(data)
    }

    fn read_raw(&self, segment: &Segment, address: u64, len: usize) -> Result<Vec<u8>, ImageError> {
        if len > MAX_READ {
            return Err(ImageError::malformed(format!(
                "a table of {len} bytes at {address:#x} is too large"
            )));
        }
        let mut data = vec![0; len];
        self.source.read_at(address - segment.address + segment.offset, &mut data)?;
        Ok(data)
    }
}
