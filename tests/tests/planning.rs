//! What planning costs: little for a real program, and not much more for one that was made to be expensive.
//!
//! These tests are a separate and small program, since the kernel includes its memory in that of the agents that it
//! starts.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::{Ended, executable},
    native, specs,
    targets::{Flavour, Program},
    usage,
};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_mins(1);
const UNREADABLE: i32 = 5;
const UNPROVABLE: i32 = 6;

fn inspect(path: &Path) -> Command {
    let mut command = Command::new(executable().expect("the agent"));
    command.args(["inspect", "--exe"]).arg(path);
    command
}

#[test]
fn a_real_program_is_planned_at_once() -> Result<()> {
    for flavour in Flavour::ALL {
        let program = Program::Kitex.build(flavour)?;
        // A copy, since the original may be running: the kernel keeps mapped pages in memory.
        let copy = Lie::about(&program, "real")?;
        usage::forget(&copy.path)?;
        let (ended, usage) = usage::run(&mut inspect(&copy.path), PATIENCE)?;
        ensure!(ended.code == Some(0) && ended.stdout.contains("can be watched"), "{ended:#?}");
        ensure!(usage.wall < Duration::from_secs(1), "{flavour:?}: {usage:?}");
        ensure!(usage.peak < 60 * MIB, "{flavour:?}: {usage:?}");
    }
    Ok(())
}

/// Inspects a program that may have been made to take much time and memory. Fails if it does.
fn inspected(lie: &Lie) -> Result<Ended> {
    let (ended, usage) = usage::run(&mut inspect(&lie.path), PATIENCE)?;
    // CPU time does not depend on what else the machine does.
    ensure!(usage.cpu < Duration::from_secs(2) && usage.peak < 100 * MIB, "{usage:?}: {ended:#?}");
    Ok(ended)
}

/// Fails unless a program is refused quickly and with little memory, in one sentence that contains these words.
fn refused(lie: &Lie, code: i32, words: &str) -> Result<()> {
    let ended = inspected(lie)?;
    let path = lie.path.to_str().context("no UTF-8")?;
    ensure!(ended.code == Some(code), "the exit code is not {code}: {ended:#?}");
    // Everything else about the program goes to stdout.
    let sentence = ended.stderr.strip_prefix("monitor-agent: ").context("no sentence")?;
    ensure!(sentence.contains(path) && sentence.contains(words), "not {words:?}: {ended:#?}");
    ensure!(sentence.len() < 500 + path.len() && !sentence.contains(char::is_control), "{ended:#?}");
    Ok(())
}

/// A copy of a program with false contents. It is removed when dropped.
struct Lie {
    path: PathBuf,
    file: File,
}

impl Drop for Lie {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Lie {
    /// Makes a copy next to the program, since the kernel can't drop the cache of a file in tmpfs.
    fn about(program: &Path, name: &str) -> Result<Self> {
        let path = program.with_file_name(format!("lie-{name}-{}", std::process::id()));
        fs::copy(program, &path)?;
        let file = File::options().read(true).write(true).open(&path)?;
        Ok(Self { path, file })
    }

    fn about_kitex(name: &str) -> Result<Self> {
        Self::about(&Program::Kitex.build(Flavour::Stripped)?, name)
    }

    fn bytes(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len)?];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    fn word(&self, at: u64) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes(at, 8)?.try_into().expect("eight bytes")))
    }

    fn small(&self, at: u64, len: u64) -> Result<u64> {
        let bytes = self.bytes(at, len)?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn put(&self, at: u64, words: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Ok(self.file.write_all_at(&bytes, at)?)
    }

    /// Returns the section of this name.
    fn section(&self, name: &str) -> Result<Section> {
        let (table, count, names) = (self.word(0x28)?, self.small(0x3c, 2)?, self.small(0x3e, 2)?);
        let names_at = self.word(table + 64 * names + 24)?;
        let wanted = [name.as_bytes(), &[0]].concat();
        for header in (0..count).map(|number| table + 64 * number) {
            let at = names_at + self.small(header, 4)?;
            if self.bytes(at, wanted.len() as u64).is_ok_and(|name| name == wanted) {
                return Ok(Section {
                    header,
                    address: self.word(header + 16)?,
                    offset: self.word(header + 24)?,
                    size: self.word(header + 32)?,
                });
            }
        }
        anyhow::bail!("no section {name}")
    }

    /// Returns the file offset of the program header with index `number`, from 0, among those of this kind.
    fn segment(&self, kind: u64, number: usize) -> Result<u64> {
        let (table, count) = (self.word(0x20)?, self.small(0x38, 2)?);
        let mut headers = Vec::new();
        for header in (0..count).map(|number| table + 56 * number) {
            if self.small(header, 4)? == kind {
                headers.push(header);
            }
        }
        headers.get(number).copied().with_context(|| format!("no segment {kind}"))
    }

    /// Returns the file offset of the module data, which starts with pointers to the function table and to its names.
    fn module_data(&self) -> Result<u64> {
        let table = self.section(".gopclntab")?;
        let names = table.address + self.word(table.offset + 32)?;
        let start = [table.address.to_le_bytes(), names.to_le_bytes()].concat();
        for section in [".go.module", ".noptrdata", ".data"] {
            let Ok(section) = self.section(section) else { continue };
            let found = find(&self.bytes(section.offset, section.size)?, &start);
            if let Some(at) = found.first() {
                return Ok(section.offset + at);
            }
        }
        anyhow::bail!("no module data")
    }

    /// Maps `size` bytes after the end of the file at `MORE`, with the program header of the stack. Returns their file
    /// offset.
    fn map_more(&self, size: u64) -> Result<u64> {
        let at = self.file.metadata()?.len().next_multiple_of(4096);
        self.file.set_len(at + size)?;
        self.put(self.segment(GNU_STACK, 0)?, &[LOAD | READ << 32, at, MORE, MORE, size, size, 4096])?;
        Ok(at)
    }

    /// Makes `words`, at `MORE`, the program's type data, and `pairs` of interface and type its itabs.
    fn put_types(&self, mut words: Vec<u64>, pairs: impl ExactSizeIterator<Item = [u64; 2]>) -> Result<()> {
        let module = self.module_data()?;
        // Since Go 1.27, the size of the types is between their bounds, and there are no pointers to itabs.
        let newest = self.word(module + 296)? + self.word(module + 304)? == self.word(module + 312)?;
        let count = pairs.len() as u64;
        let itabs = MORE + 8 * words.len() as u64;
        pairs.for_each(|[interface, concrete]| words.extend([interface, concrete, 0, 0]));
        let list = MORE + 8 * words.len() as u64;
        words.extend((0..count).map(|number| itabs + 32 * number));
        let size = 8 * words.len() as u64;
        self.put(self.map_more(size)?, &words)?;
        if newest {
            return self.put(module + 296, &[MORE, size, MORE + size, itabs - MORE, 32 * count]);
        }
        self.put(module + 296, &[MORE, MORE + size])?;
        // Go 1.26 has one more word before the list.
        [376, 384].iter().try_for_each(|slice| self.put(module + slice, &[list, count]))
    }

    /// Returns file offset and address of each description of a field of this name (name, type, offset).
    fn fields(&self, name: &str) -> Result<Vec<(u64, u64)>> {
        let data = self.section(".rodata")?;
        let bytes = self.bytes(data.offset, data.size)?;
        let text = [&[u8::try_from(name.len())?], name.as_bytes()].concat();
        let [text] = find(&bytes, &text)[..] else { anyhow::bail!("{name} is not there once") };
        // The flags come before the length.
        let pointers = find(&bytes, &(data.address + text - 1).to_le_bytes());
        ensure!(!pointers.is_empty(), "no field {name}");
        Ok(pointers.into_iter().map(|at| (data.offset + at, data.address + at)).collect())
    }
}

impl Lie {
    /// Replaces the program's symbols by functions of these names, each as often as given.
    fn put_symbols(&self, names: &[(String, u64)]) -> Result<()> {
        let (text, table, strings) =
            (self.section(".text")?, self.section(".symtab")?, self.section(".strtab")?);
        let text_number = (text.header - self.word(0x28)?) / 64;
        let (mut symbols, mut bytes) = (vec![[0; 3]], vec![0]);
        for (name, count) in names {
            let head = bytes.len() as u64 | GLOBAL_FUNCTION << 32 | text_number << 48;
            symbols.extend((0..*count).map(|_| [head, text.address, 1]));
            bytes.extend_from_slice(name.as_bytes());
            bytes.push(0);
        }
        let at = self.file.metadata()?.len().next_multiple_of(8);
        let symbols = symbols.concat();
        self.put(at, &symbols)?;
        let names_at = at + 8 * symbols.len() as u64;
        self.file.write_all_at(&bytes, names_at)?;
        self.put(table.header + 24, &[at, names_at - at])?;
        self.put(strings.header + 24, &[names_at, bytes.len() as u64])
    }
}

#[derive(Clone, Copy)]
struct Section {
    header: u64,
    address: u64,
    offset: u64,
    size: u64,
}

const LOAD: u64 = 1;
const NOTE: u64 = 4;
const DYNAMIC: u64 = 2;
const GNU_STACK: u64 = 0x6474_e551;
const READ: u64 = 4;
/// The type and binding of a symbol.
const GLOBAL_FUNCTION: u64 = 0x12;
/// The kind of a Go type.
const STRUCT: u64 = 25;
/// An address that no program of these tests uses.
const MORE: u64 = 0x1000_0000;

fn find(bytes: &[u8], wanted: &[u8]) -> Vec<u64> {
    let found = bytes.windows(wanted.len()).enumerate().filter(|(_, window)| *window == wanted);
    found.map(|(at, _)| at as u64).collect()
}

#[test]
fn headers_that_lie() -> Result<()> {
    let lie = Lie::about_kitex("overlap")?;
    // Maps the code a second time, where the read-only data begins.
    let data = lie.segment(LOAD, 1)?;
    lie.put(lie.segment(NOTE, 0)?, &[LOAD | READ << 32, 0, lie.word(data + 16)?, 0, 4096, 4096])?;
    refused(&lie, UNREADABLE, "its segments overlap")?;

    let lie = Lie::about_kitex("overflow")?;
    lie.put(lie.segment(LOAD, 1)? + 8, &[u64::MAX - 100])?;
    refused(&lie, UNREADABLE, "truncated")?;
    let lie = Lie::about_kitex("wrap")?;
    lie.put(lie.segment(LOAD, 1)? + 16, &[u64::MAX - 100])?;
    refused(&lie, UNREADABLE, "impossible size")?;
    let lie = Lie::about_kitex("itself")?;
    lie.put(0x20, &[0])?;
    refused(&lie, UNREADABLE, "is malformed")?;

    let lie = Lie::about_kitex("sections")?;
    let (table, text) = (lie.section(".gopclntab")?, lie.section(".text")?);
    lie.put(table.header + 16, &[text.address, text.offset, text.size])?;
    refused(&lie, UNPROVABLE, "function table")?;
    let lie = Lie::about_kitex("names")?;
    let names = lie.word(0x28)? + 64 * lie.small(0x3e, 2)?;
    lie.put(names + 32, &[1 << 40])?;
    refused(&lie, UNREADABLE, "section names")
}

#[test]
fn relocations_that_lie() -> Result<()> {
    for (size, words) in [(1 << 40, "relocations, more than"), (40 << 20, "outside what it contains")] {
        let lie = Lie::about(&Program::Kitex.build(Flavour::Pie)?, "relocations")?;
        let dynamic = lie.word(lie.segment(DYNAMIC, 0)? + 8)?;
        let mut entries = (0..).map(|number| dynamic + 16 * number);
        let size_at = entries.find(|&at| lie.word(at).is_ok_and(|tag| tag == 8)).context("no table")?;
        lie.put(size_at + 8, &[size])?;
        refused(&lie, UNPROVABLE, words)?;
    }
    Ok(())
}

#[test]
fn a_file_that_is_nearly_all_hole() -> Result<()> {
    const SIZE: u64 = 1 << 40;
    let lie = Lie::about_kitex("hole")?;
    let info = lie.section(".go.buildinfo")?;
    lie.put(info.offset, &[0])?;
    lie.put(0x28, &[0])?;
    let data = lie.segment(LOAD, 2)?;
    lie.file.set_len(SIZE + lie.word(data + 8)?)?;
    lie.put(data + 32, &[SIZE, SIZE])?;
    refused(&lie, UNPROVABLE, "not a Go program")
}

#[test]
fn a_release_that_lies() -> Result<()> {
    let lie = Lie::about_kitex("release")?;
    let info = lie.section(".go.buildinfo")?;
    let len = lie.small(info.offset + 32, 1)?;
    let text: Vec<_> =
        b"\x1b[31m\nall is well\n".iter().copied().cycle().take(usize::try_from(len)?).collect();
    lie.file.write_all_at(&text, info.offset + 33)?;
    refused(&lie, UNPROVABLE, "\\u{1b}[31m\\n")?;
    // A length of a gigabyte, then one longer than the section.
    lie.put(info.offset + 32, &[0x04_ffff_ffff])?;
    refused(&lie, UNPROVABLE, "build information is damaged")?;
    lie.put(info.offset + 32, &[0x08_80])?;
    refused(&lie, UNPROVABLE, "build information is damaged")
}

#[test]
fn a_function_table_that_lies() -> Result<()> {
    // An impossible number of functions, both in the table and in the module data.
    let lie = Lie::about_kitex("count")?;
    let (table, module) = (lie.section(".gopclntab")?, lie.module_data()?);
    lie.put(table.offset + 8, &[1 << 40])?;
    lie.put(module + 136, &[(1 << 40) + 1])?;
    refused(&lie, UNPROVABLE, "function table is not one of")?;

    let lie = Lie::about_kitex("outside")?;
    let rows = table.offset + lie.word(table.offset + 64)?;
    lie.put(rows + 8 * 1000, &[lie.word(rows + 8 * 1000)? | 0x7fff_ffff << 32])?;
    refused(&lie, UNPROVABLE, "refers outside itself")
}

/// Returns a copy in which the last word of functions with these arguments is half as long. The arguments are encoded
/// as the runtime has them for tracebacks.
fn with_shorter(arguments: &[u8], name: &str) -> Result<Lie> {
    let lie = Lie::about_kitex(name)?;
    let places = find(&fs::read(&lie.path)?, arguments);
    ensure!(!places.is_empty(), "no such arguments: {arguments:?}");
    let size = arguments.iter().rposition(|byte| *byte == 8).context("no word")?;
    for at in places {
        lie.file.write_all_at(&[4], at + size as u64)?;
    }
    Ok(lie)
}

#[test]
fn arguments_that_lie() -> Result<()> {
    // A receiver and three interface values.
    const ARGUMENTS: &[u8] =
        &[0, 8, 0xfe, 8, 8, 16, 8, 0xfd, 0xfe, 24, 8, 32, 8, 0xfd, 0xfe, 40, 8, 48, 8, 0xfd, 0xff];
    let lie = with_shorter(ARGUMENTS, "arguments")?;
    refused(&lie, UNPROVABLE, "DoFinish has the arguments w{ww}{ww}{w4}, not w{ww}{ww}{ww}")
}

#[test]
fn arguments_of_messages_that_lie() -> Result<()> {
    // A time and an error in one struct on the stack, followed by the places for a receiver and two interface values.
    const ARGUMENTS: &[u8] = &[
        40, 8, 0xfe, 48, 8, 56, 8, 0xfd, 0xfe, 64, 8, 72, 8, 0xfd, 0xfe, 0xfe, 0, 8, 8, 8, 16, 8, 0xfd, 0xfe,
        24, 8, 32, 8, 0xfd, 0xfd, 0xff,
    ];
    const WHY: &str =
        "HandleStreamSendEvent has the arguments w{ww}{ww}{{www}{w4}}, not w{ww}{ww}{{www}{ww}}";
    let ended = inspected(&with_shorter(ARGUMENTS, "messages")?)?;
    ensure!(ended.code == Some(0) && ended.stdout.contains(WHY), "{ended:#?}");
    Ok(())
}

/// A table of a terabyte, which takes no space on the disk. Its rows send the reader back and forth.
#[test]
fn a_function_table_without_end() -> Result<()> {
    const ROWS: u64 = 1 << 20;
    const SIZE: u64 = 1 << 40;
    let lie = Lie::about_kitex("to-and-fro")?;
    let (table, module) = (lie.section(".gopclntab")?, lie.module_data()?);
    let more = lie.map_more(SIZE)?;
    // All functions have the empty name: overlong ones would be noticed first.
    lie.file.write_all_at(&[0], table.offset + lie.word(table.offset + 32)?)?;
    let rows: Vec<u64> = (0..ROWS).map(|row| if row % 2 == 0 { 0 } else { (64 << 20) << 32 }).collect();
    for (number, piece) in rows.chunks(1 << 15).enumerate() {
        lie.put(more + (number << 18) as u64, piece)?;
    }
    lie.put(table.offset + 8, &[ROWS])?;
    lie.put(table.offset + 64, &[MORE.wrapping_sub(table.address)])?;
    lie.put(module + 104, &[MORE, SIZE, SIZE, MORE, ROWS + 1, ROWS + 1])?;
    refused(&lie, UNPROVABLE, "not in order")
}

#[test]
fn types_that_lie() -> Result<()> {
    const NOWHERE: u64 = 0xdead_0000_0000;
    let lie = Lie::about_kitex("type")?;
    for (at, _) in lie.fields("serviceName")? {
        lie.put(at + 8, &[NOWHERE])?;
    }
    refused(&lie, UNPROVABLE, "outside its struct")?;

    let lie = Lie::about_kitex("field-name")?;
    for (at, _) in lie.fields("serviceName")? {
        lie.put(at, &[NOWHERE])?;
    }
    refused(&lie, UNPROVABLE, "outside what it contains")?;

    // A length of a gigabyte.
    let lie = Lie::about_kitex("long-name")?;
    let (at, _) = lie.fields("serviceName")?[0];
    let name = lie.word(at)?;
    let data = lie.section(".rodata")?;
    lie.put(name - data.address + data.offset, &[0x04ff_ffff_ff00])?;
    refused(&lie, UNPROVABLE, "no Go name at")?;

    // A struct that contains itself.
    let lie = Lie::about_kitex("loop")?;
    let bytes = lie.bytes(data.offset, data.size)?;
    for (at, address) in lie.fields("serviceName")? {
        // The descriptor of a struct has the address of the first field at offset 56.
        for owner in find(&bytes, &address.to_le_bytes()) {
            lie.put(at + 8, &[data.address + owner - 56])?;
        }
    }
    drop(bytes);
    refused(&lie, UNPROVABLE, "not a string")
}

#[test]
fn dwarf_that_lies() -> Result<()> {
    // False sizes: that of the section, and the one that it claims to have when decompressed.
    for name in [".debug_info", ".debug_abbrev"] {
        for inflated in [false, true] {
            let lie = Lie::about(&Program::Kitex.build(Flavour::Default)?, "dwarf")?;
            let section = lie.section(name)?;
            lie.put(if inflated { section.offset + 8 } else { section.header + 32 }, &[1 << 40])?;
            let ended = inspected(&lie)?;
            // A witness that can't be read contradicts nothing.
            ensure!(ended.code == Some(0) && ended.stdout.contains("note"), "{name}: {ended:#?}");
        }
    }
    Ok(())
}

/// Each itab has another pair of types, and each type has thousands of fields, which are all the same: hours of reading
/// in a few megabytes.
#[test]
fn types_without_end() -> Result<()> {
    const TYPES: u32 = 100_000;
    const FIELDS: u64 = 4096;
    let lie = Lie::about_kitex("soup")?;
    let mut words = vec![0_u64];
    let name = MORE + 8;
    words.extend([0x6161_6161_6161_6400; 14]);
    let fields = MORE + 8 * words.len() as u64;
    let first = fields + 24 * FIELDS;
    (0..FIELDS).for_each(|_| words.extend([name, first, 0]));
    for _ in 0..TYPES {
        words.extend([8, 0, STRUCT << 56, 0, 0, name - MORE, 0, fields, FIELDS, FIELDS]);
    }
    lie.put_types(words, (0..TYPES).map(|number| [first + 80 * u64::from(number); 2]))?;
    refused(&lie, UNPROVABLE, "without end")
}

/// The memory for the framework's types is bounded, however often they are used.
#[test]
fn itabs_without_end() -> Result<()> {
    const INTERFACE: u64 = 20 << 56 | 1 << 32;
    const POINTER: u64 = 22 << 56;
    let lie = Lie::about_kitex("itabs")?;
    // A name, and the path of a package in the framework.
    let texts = b"\0\0\0\0\0\0\0\0\0\x05pkg.I\0\0\x1cgithub.com/cloudwego/kitex/x\0\0";
    let mut words: Vec<u64> =
        texts.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))).collect();
    let (name, package) = (8, 16);
    let interface = MORE + 8 * words.len() as u64;
    words.extend([16, 0, INTERFACE, 0, 0, name, 0, 0, 0, 0, package, 0]);
    let object = MORE + 8 * words.len() as u64;
    words.extend([8, 0, STRUCT << 56, 0, 0, name, 0, 0, 0, 0]);
    let pointer = MORE + 8 * words.len() as u64;
    words.extend([8, 0, POINTER, 0, 0, name, object, 0, 0, 0]);
    lie.put_types(words, (0..100_000_u32).map(|_| [interface, pointer]))?;
    refused(&lie, UNPROVABLE, "more Go itabs of the framework")
}

/// Each spec asks its own questions: many may ask for types that do not exist, and each time all types of the program
/// are searched.
#[test]
fn types_that_are_nowhere() -> Result<()> {
    const SPECS: usize = 16;
    let jobs = specs::text("jobs")?.replace("\"main.job\"", "\"main.nowhere\"");
    let mut command = inspect(&Program::Kitex.build(Flavour::Stripped)?);
    for number in 0..SPECS {
        let name = format!("nowhere_{number}");
        let text = jobs.replace("name = \"jobs\"", &format!("name = \"{name}\""));
        // No two specs may watch the same function.
        let text = text.replace("(*queue)", &format!("(*queue{number})"));
        command.arg("--spec").arg(specs::file(&name, &text)?);
    }
    let (ended, usage) = usage::run(&mut command, PATIENCE)?;
    let said = format!("{}{}", ended.stdout, ended.stderr);
    ensure!(said.contains("function main.(*queue0).begin is not in the executable"), "{ended:#?}");
    ensure!(!said.contains("without end"), "{ended:#?}");
    ensure!(usage.peak < 100 * MIB, "{usage:?}");
    Ok(())
}

/// Twenty thousand functions of the framework, each in its own copy, below a path of a thousand characters.
#[test]
fn functions_without_end() -> Result<()> {
    const COUNT: u32 = 20_000;
    const NAME: &str = "/pkg/rpcinfo.(*TraceController).DoStart\0";
    const LENGTH: u32 = 960 + 40;
    let lie = Lie::about_kitex("functions")?;
    let (table, module) = (lie.section(".gopclntab")?, lie.module_data()?);
    // Rows and records are pairs of 32 bits: where the code begins, and where the record or the name is.
    let records = 8 * (COUNT + 1);
    let mut bytes = Vec::new();
    let mut pairs = |second: u32| bytes.extend_from_slice(&[[0; 4], second.to_le_bytes()].concat());
    (0..COUNT).for_each(|number| pairs(records + 8 * number));
    pairs(0);
    (0..COUNT).for_each(|number| pairs(LENGTH * number));
    let functions = bytes.len() as u64;
    (0..COUNT).for_each(|number| bytes.extend_from_slice(format!("{number:0>960}{NAME}").as_bytes()));
    let names = bytes.len() as u64 - functions;
    ensure!(names == u64::from(COUNT * LENGTH), "{names}");
    let more = lie.map_more(bytes.len() as u64)?;
    lie.file.write_all_at(&bytes, more)?;
    let from_table = (MORE + functions).wrapping_sub(table.address);
    lie.put(table.offset + 8, &[COUNT.into()])?;
    lie.put(table.offset + 32, &[from_table])?;
    lie.put(table.offset + 64, &[MORE.wrapping_sub(table.address)])?;
    lie.put(module + 8, &[MORE + functions, names, names])?;
    let rows = u64::from(COUNT) + 1;
    lie.put(module + 104, &[MORE, functions, functions, MORE, rows, rows])?;
    refused(&lie, UNPROVABLE, "too many of its Go functions have such a name")
}

/// Mangled names that are huge, that are nested deeper than those of any program, or that expand to a thousand times
/// their length. A spec that asks for a name of the source causes all of them to be demangled.
#[test]
fn names_of_symbols_without_end() -> Result<()> {
    // Each type is a pair of the previous one.
    let pairs = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ".chars().map(|last| format!("S_IS{last}_S{last}_E"));
    let names = [
        format!("_Z1f{}i", "P".repeat(1 << 20)),
        format!("_ZN{}E", "1a".repeat(1 << 20)),
        format!("_Z1f{}i", "P".repeat(1_000)),
        format!("_ZN{}E", "1a".repeat(500)),
        format!("_Z1f{}{}", "1AI".repeat(250), "E".repeat(250)),
        format!("_RNv{}", "Nv".repeat(500)),
        format!("_Z1f1AIiiE{}", pairs.collect::<Vec<_>>().concat()),
    ];
    let lie = Lie::about(&native::corners(native::Build::Default)?, "names")?;
    lie.put_symbols(&names.map(|name| (name, 1_000)))?;
    let spec = specs::file("no-such-name", &specs::text("stock")?.replace("stock_lookup", "no::such(name)"))?;
    let (ended, usage) = usage::run(inspect(&lie.path).arg("--spec").arg(&spec), PATIENCE)?;
    let said = "no-such-name.toml:17:12: function no::such(name) is not among the symbols";
    ensure!(ended.code == Some(UNPROVABLE) && ended.stderr.contains(said), "{ended:#?}");
    ensure!(usage.cpu < Duration::from_secs(2) && usage.peak < 100 * MIB, "{usage:?}");
    Ok(())
}
