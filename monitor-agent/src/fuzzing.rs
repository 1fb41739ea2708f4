//! The functions that the fuzz targets in `fuzz/` call. Each runs one parser of untrusted input.
//!
//! An input passes if the function returns soon: a [`Metered`] file counts reads and panics past a bound, so that a
//! fuzzer finds slow inputs like crashes. The tests run the corpus and damaged files through the same functions, and
//! also bound time and memory.

#![expect(clippy::missing_panics_doc, reason = "a panic is how a fuzzer is told")]

#[cfg(test)]
mod memory;
#[cfg(test)]
mod tests;

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use monitor_ebpf::{LABELS, LabelSet, TEXT_BYTES};

use crate::{
    frameworks,
    image::{
        Demangler, GoVersion, Image, Kind, Parts, Source, Type, WantedError, go_entry_site, go_return_sites,
        native_entry_site, return_sites, tested_call,
    },
    pipeline::{Executable, Framework, Labels},
    plan::{Inspection, Wanted},
    specs::{FILE_MAX, SpecError, Specs, read},
};

/// One fuzz target.
#[derive(Debug)]
pub struct Target {
    /// Name of the target, and of its directory in `fuzz/corpus/`.
    pub name: &'static str,
    /// Runs the target on any input.
    pub run: fn(&[u8]),
    /// Directories in `fuzz/seeds/` with valid inputs to start from.
    pub seeds: &'static [&'static str],
}

/// All targets.
pub static TARGETS: [Target; 10] = [
    Target { name: "elf", run: elf, seeds: &["files"] },
    Target { name: "buildinfo", run: buildinfo, seeds: &["files"] },
    Target { name: "pclntab", run: pclntab, seeds: &["files"] },
    Target { name: "types", run: types, seeds: &["files"] },
    Target { name: "dwarf", run: dwarf, seeds: &["dwarf"] },
    Target { name: "code", run: code, seeds: &["functions"] },
    Target { name: "labels", run: labels, seeds: &["label-sets"] },
    Target { name: "symbol", run: symbol, seeds: &["symbols"] },
    Target { name: "plan", run: plan, seeds: &["files", "native"] },
    Target { name: "spec", run: spec, seeds: &["specs"] },
];

/// Parses the ELF level of a file: headers, segments, notes, relocations.
pub fn elf(data: &[u8]) {
    const PIECE: usize = 64;
    let Some(image) = parse(data) else { return };
    let _ = (image.build_id(), image.link_base());
    for segment in image.segments() {
        let last = segment.address.saturating_add(segment.file_size).saturating_sub(PIECE as u64);
        for address in [segment.address, last] {
            let read = image.read(address, PIECE);
            assert!(
                read.is_err()
                    || image.read_only(address, PIECE).is_none_or(|same| Ok(same) == read.map_err(drop))
            );
        }
        if let Some(offset) = image.file_offset(segment.address) {
            assert!(offset < data.len() as u64, "an offset outside the file");
        }
    }
}

/// Parses the Go build info of a file.
pub fn buildinfo(data: &[u8]) {
    if let Some(Ok(info)) = parse(data).map(|image| image.build_info()) {
        let _ = GoVersion::parse(&info.go_version);
    }
}

/// Parses the function table of a file.
pub fn pclntab(data: &[u8]) {
    const FUNCTIONS: usize = 16;
    let Some(image) = parse(data) else { return };
    let Ok(go) = image.go() else { return };
    for function in go.functions_named(&|_| true).unwrap_or_default().iter().take(FUNCTIONS) {
        let _ = go.code(function).map(|code| go_entry_site(&code, function.entry));
        let _ = go.stand_in(function, None);
    }
}

/// Parses the itabs of a file, and the types that they refer to.
pub fn types(data: &[u8]) {
    let Some(image) = parse(data) else { return };
    let Ok(go) = image.go() else { return };
    for itab in go.itabs().unwrap_or_default() {
        for address in [itab.interface, itab.concrete] {
            let Ok(found) = go.type_at(address) else { continue };
            check_type(&found);
            let inner = found.elem.into_iter().chain(found.fields.iter().map(|field| field.type_address));
            inner.filter_map(|address| go.type_at(address).ok()).for_each(|found| check_type(&found));
        }
    }
}

fn check_type(found: &Type) {
    assert!(found.kind == Kind::Struct || found.fields.is_empty());
    assert!(found.fields.iter().all(|field| field.offset <= found.size));
}

/// Searches the DWARF of a file for two structs, one of which the seeds have, and for variables of the Go runtime.
pub fn dwarf(data: &[u8]) {
    let names = ["example.com/pkg.T", "example.com/pkg.Missing"].map(str::to_owned).into();
    let Some(image) = parse(data) else { return };
    if let Ok(Some(structs)) = image.dwarf_structs(&names) {
        assert!(structs.keys().all(|name| names.contains(name)));
    }
    let paths = ["sched.gFree.list.size", "sched#", "g.goid", "work.mode"].into();
    if let Ok(Some(found)) = image.dwarf_runtime(&paths) {
        assert!(found.places.keys().all(|path| paths.contains(&**path)));
        assert!(found.variables.keys().all(|name| found.described.contains(name)));
    }
}

/// Finds sites of all kinds in a function that calls itself. The first eight bytes of the input are its address.
pub fn code(data: &[u8]) {
    let Some((entry, code)) = data.split_first_chunk() else { return };
    let entry = u64::from_le_bytes(*entry);
    let tested = |error, kept, only_errors| {
        let wanted = WantedError { error, kept, only_errors };
        tested_call(code, entry, entry, wanted).map(|tested| tested.site)
    };
    let tested = [tested(1, 0, false), tested(0, 3, true)];
    let entries = [go_entry_site(code, entry), native_entry_site(code, entry)];
    let returns = [
        return_sites(code, entry, Some(&Parts::default())),
        return_sites(code, entry, None),
        go_return_sites(code, entry),
    ];
    for site in entries.into_iter().chain(tested).flatten().chain(returns.into_iter().flatten().flatten()) {
        let start = usize::try_from(site.offset).expect("an offset in the function");
        assert_eq!(code.get(start..start + site.bytes.len()), Some(&*site.bytes));
    }
}

/// Decodes a label set as the programs write it. Lookups of constants return as many bytes as requested.
pub fn labels(data: &[u8]) {
    let mut bytes = data.iter().copied();
    let mut next = || bytes.next().unwrap_or_default();
    let mut set = LabelSet { side: next(), call_type: next(), failed: next(), ..LabelSet::EMPTY };
    (set.stream, set.error) = (next(), u32::from(next()));
    set.retry = u16::from_le_bytes([next(), next()]);
    set.lengths = std::array::from_fn(|_| next());
    set.marks = std::array::from_fn(|_| next());
    set.text = std::array::from_fn(|_| std::array::from_fn(|_| next()));
    for (framework, room) in [(Framework::Kitex, TEXT_BYTES), (Framework::Grpc, LABELS * TEXT_BYTES)] {
        let labels = Labels::decode(&set, &Lookups(framework));
        for name in [&labels.caller, &labels.callee, &labels.method, &labels.retry] {
            // An invalid byte becomes a character of three bytes.
            assert!(name.len() <= 3 * room + '…'.len_utf8());
            assert!(!name.is_empty());
        }
    }
}

/// An executable with constants at all even addresses.
struct Lookups(Framework);

impl Executable for Lookups {
    fn framework(&self) -> Framework {
        self.0
    }

    fn constant(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        assert!(length <= LABELS * TEXT_BYTES, "a lookup of {length} bytes");
        address.is_multiple_of(2).then(|| vec![b'x'; length])
    }

    fn error_class(&self, _: u32) -> &'static str {
        "other"
    }

    fn protocol(&self, number: u16) -> Option<String> {
        number.is_multiple_of(2).then(|| "GRPC".to_owned())
    }
}

/// Demangles a function's symbol into its names in the source, and reads its parameters.
pub fn symbol(data: &[u8]) {
    let Ok(symbol) = str::from_utf8(data) else { return };
    let names = Demangler::default().names(symbol);
    assert!(names.len() <= 3 && names.iter().all(|name| name.len() <= 4_096));
    let _ = Demangler::default().parameters(symbol).is_some_and(|known| known.may_be_string(0));
}

/// Makes the plans that `inspect` and `run` make of a file.
pub fn plan(data: &[u8]) {
    plans(data);
}

/// Does the same as [`plan`]. Returns the number of plans for native functions.
fn plans(data: &[u8]) -> usize {
    const BIAS: u64 = 0x5555_5555_0000;
    // The bounds of reading apply to each image separately.
    let native = parse(data).map_or(0, |image| native_plans(&image));
    let Some(image) = parse(data) else { return native };
    let Ok(inspection) = Inspection::of(&image, &Specs::default()) else { return native };
    for found in &inspection.frameworks {
        match &found.plan {
            Ok(plan) => {
                for wanted in [Wanted::default(), Wanted::ALL] {
                    let _ = plan.recipe(BIAS, wanted);
                }
                let (image, address) =
                    (&image, u64::from(u16::from_le_bytes([data[data.len() - 2], data[data.len() - 1]])));
                let _ = (plan.labels(), plan.error_class(image, image.link_base().wrapping_add(address)));
            }
            Err(refusal) => assert!(!refusal.to_string().is_empty()),
        }
    }
    native
}

/// Plans a probe for every function in the symbol table, by symbol and by name in the source, as for a program that Go
/// has not built. Returns the number of plans.
fn native_plans(image: &Image) -> usize {
    const SPEC: &str = "name = \"any\"\n[[native]]\nname = \"any\"\nkey = \"thread\"\nallow_expensive = true\n\
                        returns = { by = \"instructions\" }\n[[native.start]]\nfunction = \"*\"\nat_most = 64\n";
    let mut plans = 0;
    for spec in [SPEC, &SPEC.replace("\"*\"", "\"*::*\"")] {
        let specs =
            Specs::of(vec![read("any.toml", spec).expect("a good spec")]).expect("one goes with itself");
        let Ok(inspection) = Inspection::of_specs(image, &specs) else { return plans };
        for found in inspection.frameworks {
            match found.plan {
                Ok(plan) => {
                    assert!(plan.recipe(0, Wanted::ALL).is_ok());
                    plans += 1;
                }
                Err(refusal) => assert!(!refusal.to_string().is_empty()),
            }
        }
    }
    plans
}

/// Parses a user's spec. It gives an error with a position, or a plan or a refusal for a program with Kitex or, if the
/// spec is native, for one that Go has not built. Parses the same text as a framework's file, too.
pub fn spec(data: &[u8]) {
    const PROGRAM: &[u8] = include_bytes!("../../fuzz/seeds/files/3");
    const NATIVE: &[u8] = include_bytes!("../../fuzz/seeds/native/0");
    let Ok(text) = str::from_utf8(data) else { return };
    if let Err(error) = frameworks::read("framework.toml", text) {
        check_place(text, &error);
    }
    let spec = match read("spec.toml", text) {
        Ok(spec) => spec,
        Err(error) => return check_place(text, &error),
    };
    let Some(image) = parse(if spec.is_native() { NATIVE } else { PROGRAM }) else { return };
    let specs = Specs::of(vec![spec]).expect("one goes with itself");
    for found in Inspection::of_specs(&image, &specs).expect("a program").frameworks {
        match found.plan {
            Ok(plan) => assert!(plan.recipe(0, Wanted::ALL).is_ok_and(|recipe| recipe.by_site != 0)),
            Err(refusal) => assert!(!refusal.to_string().is_empty()),
        }
    }
}

/// Checks that an error has a position in the text, unless the text is too long.
fn check_place(text: &str, error: &SpecError) {
    let SpecError::At { line, column, what, .. } = error else {
        return assert!(text.len() > FILE_MAX, "{error}");
    };
    let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
    assert!((1..=lines).contains(line) && *column >= 1 && !what.is_empty());
}

fn parse(data: &[u8]) -> Option<Image> {
    Image::parse(Box::new(Metered::new(data))).ok()
}

/// A file in memory that bounds the number of reads and of bytes read.
struct Metered {
    data: Vec<u8>,
    bytes: AtomicU64,
    reads: AtomicU64,
}

impl Metered {
    /// The limit of reads, however small.
    const READS: u64 = 200_000;
    /// The limit of bytes read is `TIMES` times the length of the file, plus `BYTES`.
    const TIMES: u64 = 64;
    const BYTES: u64 = 32 << 20;

    fn new(data: &[u8]) -> Self {
        Self { data: data.to_vec(), bytes: AtomicU64::new(0), reads: AtomicU64::new(0) }
    }
}

impl Source for Metered {
    fn len(&self) -> u64 {
        Source::len(&self.data)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let reads = self.reads.fetch_add(1, Ordering::Relaxed);
        let bytes = self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        assert!(reads < Self::READS, "more reads than any file is worth");
        assert!(bytes <= Self::BYTES + Self::TIMES * self.len(), "{bytes} bytes read of {}", self.len());
        self.data.read_at(offset, buf)
    }
}
