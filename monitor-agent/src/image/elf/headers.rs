//! The headers of a file: its kind, its segments, its sections.

use object::{
    LittleEndian as LE, elf,
    pod::{Pod, from_bytes},
};

use super::{
    super::{ImageError, Source, contents::Form},
    DebugSection, Section, Segment,
};

/// Linkers write fewer than ten. A search through this many stays cheap.
pub(super) const MAX_SEGMENTS: usize = 128;
const MAX_SECTION_NAMES: u64 = 1 << 20;

/// Reads the header of an executable that could run here.
pub(in crate::image) fn file_header(source: &dyn Source) -> Result<elf::FileHeader64<LE>, ImageError> {
    const WHAT: &str = "ELF header";
    let len = source.len();
    if len == 0 {
        return Err(ImageError::Empty);
    }
    // Read as many of the identification bytes as there are: a short text file is not a truncated ELF file.
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

pub(super) fn program_headers(
    source: &dyn Source,
    header: &elf::FileHeader64<LE>,
) -> Result<Vec<elf::ProgramHeader64<LE>>, ImageError> {
    if usize::from(header.e_phentsize.get(LE)) != size_of::<elf::ProgramHeader64<LE>>() {
        return Err(ImageError::malformed("its program headers have an unknown size"));
    }
    let count = header.e_phnum.get(LE);
    read_table(source, header.e_phoff.get(LE), usize::from(count), "program headers")
}

/// Returns the segments to load. Fails if they overlap.
pub(super) fn segments(headers: &[elf::ProgramHeader64<LE>], len: u64) -> Result<Vec<Segment>, ImageError> {
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
    // In a process, the later segment would hide the other. No linker makes such a file.
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

/// Returns the mapped sections and those of debug information, or none if the table was stripped.
pub(super) fn sections(
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

/// Returns a section that is mapped into the process.
fn section(header: &elf::SectionHeader64<LE>, names: &[u8]) -> Option<Section> {
    if !header.sh_flags.get(LE).contains(elf::SHF_ALLOC) {
        return None;
    }
    let name = section_name(header, names)?.to_vec();
    Some(Section { name, address: header.sh_addr.get(LE), size: header.sh_size.get(LE) })
}

/// Returns a section of debug information that has contents.
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
    // The longest name that is compared has 23 bytes.
    const MAX_NAME: usize = 32;
    let name = names.get(usize::try_from(header.sh_name.get(LE)).ok()?..)?;
    let end = name.iter().take(MAX_NAME).position(|&b| b == 0)?;
    name.get(..end)
}

fn read_pod<T: Pod + Copy>(source: &dyn Source, offset: u64, what: &'static str) -> Result<T, ImageError> {
    let data = read_bytes(source, offset, size_of::<T>(), what)?;
    from_bytes::<T>(&data).map(|(value, _)| *value).map_err(|()| ImageError::Truncated { what })
}

/// Reads the entries of a table.
pub(in crate::image) fn read_table<T: Pod + Copy>(
    source: &dyn Source,
    offset: u64,
    count: usize,
    what: &'static str,
) -> Result<Vec<T>, ImageError> {
    let data = read_bytes(source, offset, count.saturating_mul(size_of::<T>()), what)?;
    let entries = data.chunks_exact(size_of::<T>()).filter_map(|entry| from_bytes::<T>(entry).ok());
    Ok(entries.map(|(entry, _)| *entry).collect())
}

/// Reads bytes of the file. Allocates no memory for a range beyond its end.
pub(in crate::image) fn read_bytes(
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
