//! The ELF level: headers, segments, sections, relocations, notes.

use std::sync::OnceLock;

use object::LittleEndian as LE;
use object::elf;
use object::pod::{Pod, from_bytes};

use super::bytes::{u32_at, u64_at};
use super::{
    BuildInfo, GoImage, ImageError, Source, buildinfo,
    contents::{Contents, Form},
    go,
};

/// The kernel maps segments at multiples of this.
const PAGE: u64 = 4096;
/// Linkers write fewer than ten; a search through all of them stays cheap.
const MAX_SEGMENTS: usize = 128;
const MAX_SECTION_NAMES: u64 = 1 << 20;
/// The largest single read: the function names of very large programs fit.
const MAX_READ: usize = 48 << 20;
const MAX_NOTES: u64 = 64 << 10;
const MAX_BUILD_ID: usize = 256;
/// A Kitex program of 29 MB has 0.2 million; this many take 32 MB.
const MAX_RELOCATIONS: usize = 2_000_000;
const MAX_DYNAMIC: u64 = 64 << 10;
/// `ELF_NOTE_GOBUILDID_TAG` in cmd/internal/buildid/note.go @ go1.26.
const NT_GO_BUILD_ID: elf::NoteType = elf::NoteType(4);
/// Tags of the dynamic section: address and size of the table of relocations with addends.
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
/// Tables are read in pieces of this size.
const CHUNK: usize = 256 << 10;
/// How much is searched: a sparse file can claim to be of any size.
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
}

/// A part of the file that is mapped into the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Segment {
    /// Link-time virtual address of its first byte.
    pub address: u64,
    /// Where it starts in the file, in bytes.
    pub offset: u64,
    /// How many bytes come from the file.
    pub file_size: u64,
    /// How many bytes there are in memory; those behind `file_size` start as zeros.
    pub memory_size: u64,
    /// The process may read it.
    pub readable: bool,
    /// The process may write it.
    pub writable: bool,
    /// The process may execute it.
    pub executable: bool,
}

impl Segment {
    /// Whether all of `len` bytes at `address` come from the file.
    fn holds(&self, address: u64, len: u64) -> bool {
        let end = address.checked_add(len);
        address >= self.address && end.is_some_and(|end| end <= self.address + self.file_size)
    }
}

/// A mapped section as the header table describes it; trusted as a hint only.
struct Section {
    name: Vec<u8>,
    address: u64,
    size: u64,
}

/// A section of debug information, which is in the file only.
struct DebugSection {
    name: Vec<u8>,
    offset: u64,
    size: u64,
    form: Form,
}

/// The link-time value that the dynamic linker adds the bias to and stores at `address`.
struct Relocation {
    address: u64,
    value: u64,
}

impl Image {
    /// Reads the headers of an executable: nothing of what it contains.
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
            segments,
            source,
        };
        image.build_id = build_id(&image, &headers);
        Ok(image)
    }

    /// The file's bytes.
    pub(super) fn source(&self) -> &dyn Source {
        &*self.source
    }

    /// What tells builds apart: the GNU build id in hexadecimal, else Go's build id.
    pub fn build_id(&self) -> Option<&str> {
        self.build_id.as_deref()
    }

    /// The page that the first byte of the lowest segment was linked for. What a process adds to all
    /// addresses is the start of its lowest mapping of the file minus this. Not 0 in Go's own
    /// position-independent files.
    pub fn link_base(&self) -> u64 {
        self.segments.iter().map(|s| s.address).min().unwrap_or(0) & !(PAGE - 1)
    }

    /// The parts of the file that are mapped, in the order of the file's table.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Where in the file the instruction at `address` is; `None` if it is not code from the file.
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        let segment = self.segments.iter().find(|s| s.executable && s.holds(address, 1))?;
        Some(address - segment.address + segment.offset)
    }

    /// The `len` bytes at `address` as the program was linked: in a position-independent file, with the
    /// addresses that relocations would store (without bias). The range must lie in one segment and come
    /// from the file.
    pub fn read(&self, address: u64, len: usize) -> Result<Vec<u8>, ImageError> {
        let segment = self.segment(address, len as u64)?;
        self.read_in(segment, address, len)
    }

    /// The `len` bytes at `address` if the process cannot have written to them: all of them come from
    /// the file and lie in a segment that is not writable.
    pub fn read_only(&self, address: u64, len: usize) -> Option<Vec<u8>> {
        let segment = self.segment(address, len as u64).ok()?;
        if segment.writable { None } else { self.read_in(segment, address, len).ok() }
    }

    /// What the Go linker wrote about the program: release, modules, settings.
    pub fn build_info(&self) -> Result<BuildInfo, ImageError> {
        buildinfo::read(self)
    }

    /// The tables that every Go program carries for its own runtime, checked against each other.
    pub fn go(&self) -> Result<GoImage<'_>, ImageError> {
        go::open(self)
    }

    /// How many bytes there are from `address` to where the segment's file contents end; none outside.
    pub(super) fn left_at(&self, address: u64) -> u64 {
        self.segment(address, 1).map_or(0, |segment| segment.address + segment.file_size - address)
    }

    /// Up to `max` bytes at `address`: fewer where the segment's file contents end, at least one.
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

    /// What is in the section of debug information with this name, `.debug_` left out; `None` where there is
    /// none.
    pub(super) fn debug_section(&self, name: &str) -> Result<Option<Contents<'_>>, ImageError> {
        let called = |prefix: &str| {
            let name = [prefix, name].concat();
            self.debug_sections.iter().find(|s| s.size > 0 && s.name == name.as_bytes())
        };
        let Some(section) = called(".debug_").or_else(|| called(".zdebug_")) else { return Ok(None) };
        Contents::open(&*self.source, section.form, section.offset, section.size).map(Some)
    }

    /// Visits the bytes of a range in pieces, until `visit` gives a value. All pieces but the last have a
    /// length that is a multiple of 4096. The range is cut where the segment's file contents end, and where
    /// it is larger than any program's.
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

    /// Visits the segments that `choose` accepts as [`Image::scan`] does, each from the first multiple of
    /// `align` on.
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

    fn relocations(&self) -> Result<&[Relocation], ImageError> {
        if let Some(known) = self.relocations.get() {
            return Ok(known);
        }
        let read = self.read_relocations()?;
        Ok(self.relocations.get_or_init(|| read))
    }

    /// The relative relocations of the dynamic section, by address. Go's own linker stores their values
    /// in place as well; the system's linker, used with cgo, does not. (Packed relocations, `DT_RELR`,
    /// always have their values in place.)
    fn read_relocations(&self) -> Result<Vec<Relocation>, ImageError> {
        const ENTRY: usize = size_of::<elf::Rela64<LE>>();
        let Some((mut at, size)) = self.relocation_table()? else {
            return Ok(Vec::new());
        };
        let mut left = usize::try_from(size).unwrap_or(usize::MAX) / ENTRY;
        if left > MAX_RELOCATIONS {
            return Err(ImageError::malformed(format!(
                "it has {left} relocations, more than a program needs"
            )));
        }
        let mut found = Vec::with_capacity(left);
        while left > 0 {
            let count = left.min(CHUNK / ENTRY);
            let segment = self.segment(at, (count * ENTRY) as u64)?;
            let piece = self.read_raw(segment, at, count * ENTRY)?;
            found.extend(piece.chunks_exact(ENTRY).filter_map(relative));
            at += piece.len() as u64;
            left -= count;
        }
        // A stable sort would take half as much memory again.
        found.sort_unstable_by_key(|r| (r.address, r.value));
        // No linker writes two for one place; a file that does must not cost more for it.
        found.dedup_by_key(|r| r.address);
        Ok(found)
    }

    /// Address and size of the table of relocations with addends.
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

fn relative(entry: &[u8]) -> Option<Relocation> {
    let (entry, _) = from_bytes::<elf::Rela64<LE>>(entry).ok()?;
    let found = Relocation { address: entry.r_offset.get(LE), value: entry.r_addend.get(LE).cast_unsigned() };
    (entry.r_type(LE, false) == elf::R_X86_64_RELATIVE).then_some(found)
}

/// Stores the values of the relocations that touch `data`, which was read from `address`.
fn relocate(relocations: &[Relocation], address: u64, data: &mut [u8]) {
    let end = address.saturating_add(data.len() as u64);
    let first = relocations.partition_point(|r| r.address.saturating_add(8) <= address);
    for r in relocations.iter().skip(first).take_while(|r| r.address < end) {
        for (i, byte) in (0..).zip(r.value.to_le_bytes()) {
            let offset = r.address.checked_add(i).and_then(|at| at.checked_sub(address));
            let index = offset.and_then(|offset| usize::try_from(offset).ok());
            if let Some(slot) = index.and_then(|i| data.get_mut(i)) {
                *slot = byte;
            }
        }
    }
}

pub(super) fn file_header(source: &dyn Source) -> Result<elf::FileHeader64<LE>, ImageError> {
    const WHAT: &str = "ELF header";
    let len = source.len();
    if len == 0 {
        return Err(ImageError::Empty);
    }
    // As many of the identification bytes as there are: a short text file is not a truncated ELF file.
    let mut ident = [0; 16];
    let have = usize::try_from(len).map_or(16, |len| len.min(16));
    source.read_at(0, &mut ident[..have])?;
    if ident[..4] != elf::ELFMAG {
        return Err(ImageError::NotElf);
    }
    if have < ident.len() {
        return Err(ImageError::Truncated { what: WHAT });
    }
    check_ident(ident)?;
    let header: elf::FileHeader64<LE> = read_pod(source, 0, WHAT)?;
    check_header(&header)?;
    Ok(header)
}

fn check_ident(ident: [u8; 16]) -> Result<(), ImageError> {
    match elf::FileClass(ident[4]) {
        elf::ELFCLASS64 => {}
        elf::ELFCLASS32 => return Err(ImageError::WrongClass),
        other => {
            return Err(ImageError::malformed(format!("its ELF header has the unknown class {}", other.0)));
        }
    }
    match elf::DataEncoding(ident[5]) {
        elf::ELFDATA2LSB => Ok(()),
        elf::ELFDATA2MSB => Err(ImageError::WrongEndian),
        other => Err(ImageError::malformed(format!("its ELF header has the unknown byte order {}", other.0))),
    }
}

fn check_header(header: &elf::FileHeader64<LE>) -> Result<(), ImageError> {
    let machine = header.e_machine.get(LE);
    if machine != elf::EM_X86_64 {
        return Err(ImageError::WrongMachine(machine_name(machine)));
    }
    match header.e_type.get(LE) {
        elf::ET_EXEC | elf::ET_DYN => Ok(()),
        elf::ET_REL => Err(ImageError::NotExecutable("an object file")),
        elf::ET_CORE => Err(ImageError::NotExecutable("a core dump")),
        _ => Err(ImageError::NotExecutable("an ELF file of an unknown type")),
    }
}

fn machine_name(machine: elf::Machine) -> String {
    let name = match machine {
        elf::EM_AARCH64 => "arm64",
        elf::EM_RISCV => "RISC-V",
        elf::EM_PPC64 => "PowerPC",
        elf::EM_S390 => "S/390",
        elf::EM_LOONGARCH => "LoongArch",
        elf::EM_MIPS => "MIPS",
        elf::EM_BPF => "eBPF",
        _ => return format!("the processor with ELF number {}", machine.0),
    };
    name.to_owned()
}

fn program_headers(
    source: &dyn Source,
    header: &elf::FileHeader64<LE>,
) -> Result<Vec<elf::ProgramHeader64<LE>>, ImageError> {
    if usize::from(header.e_phentsize.get(LE)) != size_of::<elf::ProgramHeader64<LE>>() {
        return Err(ImageError::malformed("its program headers have an unknown size"));
    }
    let count = header.e_phnum.get(LE);
    read_table(source, header.e_phoff.get(LE), usize::from(count), "program headers")
}

fn segments(headers: &[elf::ProgramHeader64<LE>], len: u64) -> Result<Vec<Segment>, ImageError> {
    let mut segments = Vec::new();
    for header in headers.iter().filter(|h| h.p_type.get(LE) == elf::PT_LOAD) {
        if segments.len() == MAX_SEGMENTS {
            return Err(ImageError::malformed("it has more segments than a program needs"));
        }
        segments.push(segment(header, len)?);
    }
    if segments.is_empty() {
        return Err(ImageError::malformed("it has no segment to load"));
    }
    let mut sorted = segments.clone();
    sorted.sort_unstable_by_key(|s| s.address);
    // In a process the later one would hide the other. No linker makes such a file.
    if !sorted.is_sorted_by(|one, next| one.address + one.memory_size <= next.address) {
        return Err(ImageError::malformed("its segments overlap"));
    }
    Ok(segments)
}

fn segment(header: &elf::ProgramHeader64<LE>, len: u64) -> Result<Segment, ImageError> {
    let flags = header.p_flags.get(LE);
    let segment = Segment {
        address: header.p_vaddr.get(LE),
        offset: header.p_offset.get(LE),
        file_size: header.p_filesz.get(LE),
        memory_size: header.p_memsz.get(LE),
        readable: flags.contains(elf::PF_R),
        writable: flags.contains(elf::PF_W),
        executable: flags.contains(elf::PF_X),
    };
    if segment.file_size > segment.memory_size || segment.address.checked_add(segment.memory_size).is_none() {
        return Err(ImageError::malformed("a segment has an impossible size"));
    }
    match segment.offset.checked_add(segment.file_size) {
        Some(end) if end <= len => Ok(segment),
        _ => Err(ImageError::Truncated { what: "segments" }),
    }
}

/// The mapped sections and those of debug information, or none where the table was stripped.
fn sections(
    source: &dyn Source,
    header: &elf::FileHeader64<LE>,
) -> Result<(Vec<Section>, Vec<DebugSection>), ImageError> {
    const WHAT: &str = "section headers";
    let (offset, count) = (header.e_shoff.get(LE), usize::from(header.e_shnum.get(LE)));
    if offset == 0 || count == 0 {
        return Ok((Vec::new(), Vec::new()));
    }
    if usize::from(header.e_shentsize.get(LE)) != size_of::<elf::SectionHeader64<LE>>() {
        return Err(ImageError::malformed("its section headers have an unknown size"));
    }
    let headers: Vec<elf::SectionHeader64<LE>> = read_table(source, offset, count, WHAT)?;
    let Some(strings) = headers.get(usize::from(header.e_shstrndx.get(LE).0)) else {
        return Ok((Vec::new(), Vec::new()));
    };
    if strings.sh_size.get(LE) > MAX_SECTION_NAMES {
        return Err(ImageError::malformed("its table of section names is too large"));
    }
    let size = usize::try_from(strings.sh_size.get(LE)).unwrap_or(0);
    let names = read_bytes(source, strings.sh_offset.get(LE), size, "section names")?;
    let mapped = headers.iter().filter_map(|h| section(h, &names)).collect();
    Ok((mapped, headers.iter().filter_map(|h| debug_section(h, &names)).collect()))
}

/// A section that is mapped into the process.
fn section(header: &elf::SectionHeader64<LE>, names: &[u8]) -> Option<Section> {
    if !header.sh_flags.get(LE).contains(elf::SHF_ALLOC) {
        return None;
    }
    let name = section_name(header, names)?.to_vec();
    Some(Section { name, address: header.sh_addr.get(LE), size: header.sh_size.get(LE) })
}

/// A section of debug information that has contents.
fn debug_section(header: &elf::SectionHeader64<LE>, names: &[u8]) -> Option<DebugSection> {
    let flags = header.sh_flags.get(LE);
    if flags.contains(elf::SHF_ALLOC) || header.sh_type.get(LE) != elf::SHT_PROGBITS {
        return None;
    }
    let name = section_name(header, names)?;
    let form = if name.starts_with(b".zdebug_") {
        Form::Old
    } else if !name.starts_with(b".debug_") {
        return None;
    } else if flags.contains(elf::SHF_COMPRESSED) {
        Form::Compressed
    } else {
        Form::Plain
    };
    Some(DebugSection {
        name: name.to_vec(),
        offset: header.sh_offset.get(LE),
        size: header.sh_size.get(LE),
        form,
    })
}

fn section_name<'a>(header: &elf::SectionHeader64<LE>, names: &'a [u8]) -> Option<&'a [u8]> {
    // The longest name that is looked for has 23 bytes.
    const MAX_NAME: usize = 32;
    let name = names.get(usize::try_from(header.sh_name.get(LE)).ok()?..)?;
    let end = name.iter().take(MAX_NAME).position(|&b| b == 0)?;
    name.get(..end)
}

/// The build id from the notes. Go's linker mentions only its own note in the program headers, so the
/// sections are asked first. A file can be used without its notes: what is damaged is left out.
fn build_id(image: &Image, headers: &[elf::ProgramHeader64<LE>]) -> Option<String> {
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

/// Owner, type and content of each note, up to the first that is malformed. Parts are aligned to 4 bytes;
/// the notes that are aligned to 8 hold other things than build ids.
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

fn read_pod<T: Pod + Copy>(source: &dyn Source, offset: u64, what: &'static str) -> Result<T, ImageError> {
    let data = read_bytes(source, offset, size_of::<T>(), what)?;
    from_bytes::<T>(&data).map(|(value, _)| *value).map_err(|()| ImageError::Truncated { what })
}

pub(super) fn read_table<T: Pod + Copy>(
    source: &dyn Source,
    offset: u64,
    count: usize,
    what: &'static str,
) -> Result<Vec<T>, ImageError> {
    let data = read_bytes(source, offset, count.saturating_mul(size_of::<T>()), what)?;
    let entries = data.chunks_exact(size_of::<T>()).filter_map(|entry| from_bytes::<T>(entry).ok());
    Ok(entries.map(|(entry, _)| *entry).collect())
}

/// Bytes of the file; takes no memory for what lies behind its end.
pub(super) fn read_bytes(
    source: &dyn Source,
    offset: u64,
    len: usize,
    what: &'static str,
) -> Result<Vec<u8>, ImageError> {
    if offset.checked_add(len as u64).is_none_or(|end| end > source.len()) {
        return Err(ImageError::Truncated { what });
    }
    let mut data = vec![0; len];
    source.read_at(offset, &mut data)?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{BASE, DATA, FUNCTIONS, GoFile, RODATA, TEXT};
    use super::*;

    fn parse(file: Vec<u8>) -> Result<Image, ImageError> {
        Image::parse(Box::new(file))
    }

    /// A good file with some bytes replaced.
    fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
        let (mut file, _) = GoFile::of_release(26).build();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    }

    fn error(file: Vec<u8>) -> ImageError {
        parse(file).err().expect("an error")
    }

    #[test]
    fn what_is_no_program_is_told_apart() {
        assert!(matches!(error(Vec::new()), ImageError::Empty));
        assert!(matches!(error(b"hi".to_vec()), ImageError::NotElf));
        assert!(matches!(error(b"#!/bin/sh\nexec true\n".to_vec()), ImageError::NotElf));
        assert!(matches!(error(b"\x7fELF\x02\x01".to_vec()), ImageError::Truncated { what: "ELF header" }));
        assert!(matches!(error(patched(4, &[1])), ImageError::WrongClass));
        assert!(matches!(error(patched(5, &[2])), ImageError::WrongEndian));
        assert!(matches!(error(patched(4, &[7])), ImageError::Malformed { .. }));
        assert!(matches!(error(patched(18, &[183, 0])), ImageError::WrongMachine(name) if name == "arm64"));
        assert!(matches!(error(patched(16, &[1, 0])), ImageError::NotExecutable("an object file")));
        assert!(matches!(error(patched(16, &[4, 0])), ImageError::NotExecutable("a core dump")));
    }

    #[test]
    fn every_cut_of_a_file_is_seen() {
        let (whole, _) = GoFile::of_release(26).build();
        for len in (64..whole.len()).step_by(97) {
            let cut = error(whole[..len].to_vec());
            assert!(matches!(cut, ImageError::Truncated { .. }), "{len} bytes: {cut}");
        }
    }

    #[test]
    fn impossible_headers_are_refused() {
        // No program headers; none of a known size; more in the file than in memory; a wrapping address.
        for (at, bytes) in [(56, &[0_u8; 2][..]), (54, &[55, 0]), (64 + 40, &[1, 0]), (64 + 16, &[0xff; 8])] {
            assert!(matches!(error(patched(at, bytes)), ImageError::Malformed { .. }), "{at}");
        }
        // The second segment lies where the first ends.
        let overlapping = error(patched(64 + 56 + 16, &(TEXT + 1).to_le_bytes()));
        assert!(overlapping.to_string().ends_with("its segments overlap"), "{overlapping}");
        let beyond = error(patched(64 + 8, &[0xff; 8]));
        assert!(matches!(beyond, ImageError::Truncated { what: "segments" }), "{beyond}");
        let headers = error(patched(56, &[0xff, 0xff]));
        assert!(matches!(headers, ImageError::Truncated { what: "program headers" }), "{headers}");
    }

    #[test]
    fn a_file_gives_its_identity_and_places() {
        let (file, _) = GoFile::of_release(26).build();
        let image = parse(file).expect("an image");
        assert_eq!(image.build_id(), Some("abcd"));
        assert_eq!(image.link_base(), TEXT);
        assert_eq!(image.segments().len(), 3);
        assert_eq!(image.file_offset(TEXT + 3), Some(TEXT + 3 - BASE));
        assert_eq!(image.file_offset(RODATA), None);
        assert_eq!(image.file_offset(0), None);
        assert_eq!(image.read(TEXT, 4).expect("code"), FUNCTIONS[0].1[..4]);
        assert_eq!(image.read_only(TEXT, 4).expect("code"), FUNCTIONS[0].1[..4]);
        assert!(image.read_only(DATA, 4).is_none());
        assert!(image.read(DATA, 4).is_ok());
    }

    #[test]
    fn without_a_gnu_build_id_there_is_gos() {
        let (mut file, _) = GoFile::of_release(26).build();
        let at = file.windows(4).position(|w| w == b"GNU\0").expect("a note");
        file[at] = b'X';
        assert_eq!(parse(file).expect("an image").build_id(), Some("go-id"));
    }

    #[test]
    fn reads_outside_the_segments_fail_without_taking_memory() {
        let (file, _) = GoFile::of_release(26).build();
        let image = parse(file).expect("an image");
        for (address, len) in
            [(0, 1), (TEXT - 1, 4), (TEXT, 0x1000), (TEXT, usize::MAX), (u64::MAX, 1), (DATA, 1 << 40)]
        {
            assert!(
                matches!(image.read(address, len), Err(ImageError::Malformed { .. })),
                "{address:#x} {len}"
            );
            assert!(image.read_only(address, len).is_none());
        }
    }

    #[test]
    fn pointers_of_a_position_independent_file_come_from_its_relocations() {
        let (file, places) = GoFile { pie: true, ..GoFile::of_release(26) }.build();
        let offset = usize::try_from(places.variable - BASE).expect("an offset");
        assert_eq!(file[offset..offset + 8], [0; 8]);
        let image = parse(file).expect("an image");
        let pointer = image.read(places.variable, 8).expect("a pointer");
        assert_eq!(pointer, places.pointer.to_le_bytes());
        // Parts of a relocated word, from both sides.
        assert_eq!(image.read(places.variable, 3).expect("a part"), pointer[..3]);
        assert_eq!(image.read(places.variable + 3, 5).expect("a part"), pointer[3..]);
        assert_eq!(image.read_up_to(places.variable + 1, 2).expect("a part"), pointer[1..3]);
    }

    #[test]
    fn relocations_at_the_end_of_the_address_space_do_no_harm() {
        let mut data = [0; 4];
        let last = Relocation { address: u64::MAX - 3, value: u64::MAX };
        relocate(&[last], u64::MAX - 4, &mut data);
        assert_eq!(data, [0, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn files_are_read_where_they_are() {
        let (file, _) = GoFile::of_release(26).build();
        let path = std::env::temp_dir().join(format!("monitor-agent-image-{}", std::process::id()));
        std::fs::write(&path, &file).expect("a file");
        let opened = std::fs::File::open(&path).expect("the file");
        let image = Image::parse(Box::new(opened)).expect("an image");
        assert_eq!(image.read(TEXT, 4).expect("code"), FUNCTIONS[0].1[..4]);
        // The file shrinks while it is in use.
        std::fs::write(&path, b"").expect("a file");
        assert!(matches!(image.read(TEXT, 4), Err(ImageError::Truncated { .. })));
        std::fs::remove_file(&path).expect("the file");
    }

    proptest! {
        #[test]
        fn damaged_notes_end_the_list(data in prop::collection::vec(any::<u8>(), 0..200)) {
            let notes = Notes { data: &data };
            prop_assert!(notes.count() <= data.len() / 12);
        }

        #[test]
        fn any_bytes_behind_the_identification_are_an_image_or_an_error(
            tail in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let (good, _) = GoFile::of_release(26).build();
            let _ = parse([&good[..20], &tail].concat());
            let _ = parse([&good[..64], &tail].concat());
        }
    }
}
