//! How this kernel keeps page tables, found out and proved on the agent itself: see [`monitor_ebpf::PageTables`].
//!
//! Where its structures have what is needed, the kernel's description of its types says. Where all memory is mapped it
//! tells nobody: that is a multiple of 1 GiB, and the agent's own first table lies behind it, so each that comes into
//! question is tried. The right one leads to bytes that the agent has made up; no wrong one does.

use std::{
    arch::naked_asm,
    ffi::c_void,
    fs,
    io::{self, Read as _},
    os::fd::OwnedFd,
    path::Path,
    process,
    sync::OnceLock,
    thread,
};

use aya::maps::Array;
use monitor_ebpf::{PROOF_WORDS, PageTables, Proof, Recipe, name};

use super::{
    kernel_types::{KernelTypes, Kind},
    load::bytes_of,
    object::{Numbers, Object, ProbeLinks, Settings, detach_all},
    own_code::file_offset,
};

/// How programs read a target's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryReads {
    /// By page tables where that was proved to work, else by asking the kernel.
    #[default]
    Best,
    /// By asking the kernel.
    Kernel,
}

/// What programs need to go by page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// For the recipe.
    pub(super) tables: PageTables,
    /// For the instructions.
    pub(super) numbers: Numbers,
}

/// Bytes that the kernel's place for all memory is a multiple of (arch/x86/mm/kaslr.c).
const STEP: u64 = 1 << 30;
/// Where that place begins at the earliest, with four tables and with five.
const FIRST: [u64; 2] = [0xffff_8880_0000_0000, 0xff11_0000_0000_0000];
/// Pages of each kind that are tried.
const SAMPLES: usize = 4;
/// Bytes of a page, and of a large one.
const PAGE: usize = 4_096;
const LARGE_PAGE: usize = 2 << 20;

/// What was found out, once; or why programs have to ask the kernel for each read.
pub(super) fn known() -> Result<&'static Known, &'static str> {
    static KNOWN: OnceLock<Result<Known, String>> = OnceLock::new();
    let known = KNOWN.get_or_init(|| {
        let found = find();
        if let Err(why) = &found {
            log::debug!("the kernel is asked for each read of a target's memory: {why}");
        }
        found
    });
    known.as_ref().map_err(String::as_str)
}

fn find() -> Result<Known, String> {
    if !cfg!(target_arch = "x86_64") {
        return Err("page tables are known for x86-64 only".to_owned());
    }
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if lockdown.contains("[confidentiality]") {
        return Err("the kernel is locked down for confidentiality".to_owned());
    }
    let types = fs::read("/sys/kernel/btf/vmlinux").map_err(|error| format!("no kernel types: {error}"))?;
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let mut known = described(&types, &read("/proc/cpuinfo")?)?;
    drop(types);
    let length =
        memory_length(&read("/proc/zoneinfo")?).ok_or("/proc/zoneinfo does not tell where memory ends")?;
    known.tables.memory = prove(&known, length)?;
    Ok(known)
}

/// What is to be known before anything is tried.
fn described(types: &[u8], processor: &str) -> Result<Known, String> {
    let types = KernelTypes::parse(types).ok_or("the kernel types can't be read")?;
    let lacks = |what: &str| format!("the kernel has no {what}");
    let number = |kind, name| types.number(kind, name).ok_or_else(|| lacks(name));
    let offset = |structure, path: &[&str]| {
        let found = types.offset(number(Kind::Struct, structure)?, path);
        found.ok_or_else(|| lacks(&format!("{structure}.{}", path.join("."))))
    };
    let numbers = Numbers {
        cast: number(Kind::Function, "bpf_rdonly_cast")?,
        structure: number(Kind::Struct, "pt_regs")?,
    };
    let physical = physical_bits(processor).ok_or_else(|| lacks("size of addresses in /proc/cpuinfo"))?;
    let tables = PageTables {
        memory: 0,
        frame: (1 << physical) - PAGE as u64,
        mm_at: offset("task_struct", &["mm"])?,
        root_at: offset("mm_struct", &["pgd"])?,
        levels: if has_flag(processor, "la57") { 5 } else { 4 },
        flushes_at: offset("mm_struct", &["context", "tlb_gen"])?,
    };
    Ok(Known { tables, numbers })
}

/// How many bits an address of memory has: `address sizes : 48 bits physical, 48 bits virtual`.
fn physical_bits(processor: &str) -> Option<u32> {
    let sizes = value(processor, "address sizes")?;
    let bits: u32 = sizes.split_whitespace().next()?.parse().ok()?;
    // No entry has room for more.
    (32..=52).contains(&bits).then_some(bits)
}

/// Whether a processor can do something, and the kernel makes use of it.
fn has_flag(processor: &str, flag: &str) -> bool {
    value(processor, "flags").is_some_and(|flags| flags.split_whitespace().any(|one| one == flag))
}

fn value<'a>(processor: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = processor.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(found, _)| found.trim() == key).map(|(_, value)| value)
}

/// Where memory ends: the last page of any zone.
fn memory_length(zones: &str) -> Option<u64> {
    let (mut spanned, mut length) = (0, None);
    for line in zones.lines() {
        let mut words = line.split_whitespace();
        let (key, value) = (words.next(), words.next().and_then(|value| value.parse::<u64>().ok()));
        match (key, value) {
            (Some("spanned"), Some(pages)) => spanned = pages,
            (Some("start_pfn:"), Some(first)) => {
                length = length.max(first.checked_add(spanned)?.checked_mul(PAGE as u64));
            }
            _ => {}
        }
    }
    length.filter(|length| *length > 0)
}

/// Where all memory is mapped: what leads programs to the agent's own.
fn prove(known: &Known, length: u64) -> Result<u64, String> {
    let trial = Trial::begin(known).map_err(|error| format!("page tables can't be tried: {error}"))?;
    let made_up = MadeUp::new().map_err(|error| error.to_string())?;
    let root = trial.read(&made_up.small[0].0[0], 0, 1)?.root;
    let first = FIRST[usize::from(known.tables.levels == 5)];
    let mut places = (0..=length / STEP).map_while(|step| {
        let place = (root & !(STEP - 1)).checked_sub(step * STEP)?;
        (place >= first).then_some(place)
    });
    let leads = |place: u64| made_up.samples().all(|sample| trial.leads_to(sample, place, length));
    places.find(|place| leads(*place)).ok_or_else(|| "they don't lead to the agent's own memory".to_owned())
}

/// What is compared, at the beginning of a page.
type Sample = [u64; PROOF_WORDS];

/// A page of the agent's own.
#[repr(align(4096))]
struct Page([Sample; PAGE / size_of::<Sample>()]);

/// Bytes that are nowhere else, on pages of both kinds.
struct MadeUp {
    small: Box<[Page]>,
    /// The kernel may back it with large pages.
    large: Box<[Page]>,
}

impl MadeUp {
    fn new() -> io::Result<Self> {
        let pages = |count| {
            // SAFETY: made of numbers, for which zero is a value.
            unsafe { Box::<[Page]>::new_zeroed_slice(count).assume_init() }
        };
        let (mut small, mut large) = (pages(SAMPLES), pages(2 * LARGE_PAGE / PAGE));
        // SAFETY: whole pages of the list, which stay as they are; without large pages it is refused, and nothing is lost.
        unsafe { libc::madvise(large.as_mut_ptr().cast(), size_of_val(&*large), libc::MADV_HUGEPAGE) };
        let mut random = fs::File::open("/dev/urandom")?;
        let step = large.len() / SAMPLES;
        for page in small.iter_mut().chain(large.iter_mut().step_by(step)) {
            for word in &mut page.0[0] {
                let mut bytes = [0; 8];
                random.read_exact(&mut bytes)?;
                *word = u64::from_ne_bytes(bytes);
            }
        }
        Ok(Self { small, large })
    }

    /// One for each page that was written to.
    fn samples(&self) -> impl Iterator<Item = &Sample> {
        let step = self.large.len() / SAMPLES;
        self.small.iter().chain(self.large.iter().step_by(step)).map(|page| &page.0[0])
    }
}

/// The program that reads by page tables, at a function of the agent's own.
struct Trial {
    object: Object,
    links: Vec<OwnedFd>,
}

impl Trial {
    fn begin(known: &Known) -> Result<Self, String> {
        let recipe = Recipe { tables: known.tables, ..Recipe::EMPTY };
        let mut settings = Settings::smallest();
        settings.globals.push((name::RECIPE, bytes_of(&recipe)));
        settings.numbers = Some(known.numbers);
        let load = Object::load(&settings, &[name::PROVE], ProbeLinks::Best);
        let object = load.map_err(|error| error.to_string())?;
        let attach = || {
            let offset = file_offset(tried as *const c_void)?;
            object.attach(name::PROVE, Path::new("/proc/self/exe"), process::id(), &[offset])
        };
        let links = attach().map_err(|error| error.to_string())?;
        Ok(Self { object, links })
    }

    /// What lies at an address of the agent's own, if so much memory is mapped at that place.
    fn read(&self, sample: &Sample, memory: u64, length: u64) -> Result<Proof, String> {
        tried(sample.as_ptr().expose_provenance() as u64, memory, length);
        let map = self.object.map(name::PROOF).ok_or("no proof")?;
        let proofs = Array::<_, Proof>::try_from(map).map_err(|error| error.to_string())?;
        proofs.get(&0, 0).map_err(|error| error.to_string())
    }

    fn leads_to(&self, sample: &Sample, memory: u64, length: u64) -> bool {
        self.read(sample, memory, length).is_ok_and(|proof| proof.words == *sample)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // The kernel takes its time for that, and nobody needs to wait.
        let links = std::mem::take(&mut self.links);
        thread::spawn(move || detach_all(links));
    }
}

/// What is probed to try it: the program takes its arguments.
#[unsafe(naked)]
extern "C" fn tried(address: u64, memory: u64, length: u64) {
    naked_asm!("push rbp", "pop rbp", "ret")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESSOR: &str = "processor\t: 0\nflags\t\t: fpu pse la57x sme\nbugs\t\t: la57\n\
                             address sizes\t: 43 bits physical, 48 bits virtual\npower management:\n\nprocessor\t: 1\n";

    #[test]
    fn a_processor_tells_the_size_of_addresses_and_what_it_can_do() {
        assert_eq!(physical_bits(PROCESSOR), Some(43));
        assert!(has_flag(PROCESSOR, "sme") && !has_flag(PROCESSOR, "la57") && !has_flag("", "la57"));
        for wrong in
            ["", "address sizes\t: many bits", "address sizes: 53 bits physical", "address sizes: 1 bits"]
        {
            assert_eq!(physical_bits(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn zones_tell_where_memory_ends() {
        let zones = "Node 0, zone      DMA\n  per-node stats\n        spanned  4095\n        present  3998\n  start_pfn:           1\n\
                     Node 0, zone   Normal\n        spanned  2048\n  start_pfn:           8192\n\
                     Node 0, zone  Movable\n        spanned  0\n  start_pfn:           0\n";
        assert_eq!(memory_length(zones), Some(10_240 * 4_096));
        assert_eq!(memory_length(""), None);
        assert_eq!(memory_length("spanned 0\nstart_pfn: 0\n"), None);
        assert_eq!(memory_length("spanned 18446744073709551615\nstart_pfn: 1\n"), None);
    }

    #[test]
    fn what_is_no_description_of_types_is_refused() {
        for types in [&b""[..], b"nothing of the kind", &[0x9f, 0xeb, 1, 0]] {
            assert!(described(types, PROCESSOR).is_err());
        }
    }
}
