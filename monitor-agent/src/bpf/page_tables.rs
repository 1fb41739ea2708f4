//! How this kernel keeps page tables, found out and proved on the agent itself: see [`monitor_ebpf::PageTables`].
//!
//! The kernel's description of its types provides the offsets in its structures. The kernel does not reveal the
//! address of the direct map, where all memory is mapped. It is a multiple of 1 GiB, and the agent's own root table
//! lies in it, so each candidate is tried. The right one leads to bytes that the agent has made up, and no wrong one
//! does. But with a wrong one programs read arbitrary addresses, so none is tried where memory may be mapped that
//! must not be read.

mod speed;

use std::{
    arch::naked_asm,
    ffi::c_void,
    fmt::Display,
    fs,
    io::{self, Read as _},
    os::fd::OwnedFd,
    path::Path,
    process,
    sync::OnceLock,
    thread,
};

use aya::{
    maps::Array,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use monitor_ebpf::{PROOF_WORDS, PageTables, Proof, Recipe, name};
use speed::Speed;

use super::{
    kernel_types::{KernelTypes, Kind},
    load::bytes_of,
    object::{Numbers, Object, ProbeLinks, Settings, detach_all},
    own_code::file_offset,
};

/// How programs read a target's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryReads {
    /// By page tables where that was proved to work and found to be faster, otherwise with the kernel's helper.
    #[default]
    Best,
    /// By page tables where that was proved to work, otherwise with the kernel's helper.
    Tables,
    /// With the kernel's helper.
    Kernel,
}

/// The parameters of programs that walk page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Part of the recipe.
    pub(super) tables: PageTables,
    /// Patched into the instructions.
    pub(super) numbers: Numbers,
    /// How long reads take.
    speed: Speed,
}

impl Known {
    /// Whether programs should read by page tables, since this is faster.
    pub(super) fn is_worth_it(&self) -> bool {
        self.speed.is_worth_it()
    }
}

/// The kernel's alignment of the direct map, in bytes (arch/x86/mm/kaslr.c).
const STEP: u64 = 1 << 30;
/// The lowest address of the direct map, with four and with five levels of tables.
const FIRST: [u64; 2] = [0xffff_8880_0000_0000, 0xff11_0000_0000_0000];
/// Drivers of devices by which a hypervisor takes back memory that the kernel leaves mapped.
const TAKERS: [&str; 2] = ["/sys/bus/virtio/drivers/virtio_mem", "/sys/bus/vmbus/drivers/hv_balloon"];
/// Pages of each size that are tried.
const SAMPLES: usize = 4;
/// Size of a page, and of a large one, in bytes.
const PAGE: usize = 4_096;
const LARGE_PAGE: usize = 2 << 20;

/// Returns the parameters of programs that read in this way; `None` if they use the kernel's helper.
pub(super) fn parameters(reads: MemoryReads) -> Option<&'static Known> {
    match reads {
        MemoryReads::Best => known().ok().filter(|known| known.is_worth_it()),
        MemoryReads::Tables => known().ok(),
        MemoryReads::Kernel => None,
    }
}

/// Returns what was found, tried only once, or why programs have to use the kernel's helper for each read.
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
    if !may_read_kernel() {
        return Err(
            "no program may read the kernel's memory: it is locked down for confidentiality".to_owned()
        );
    }
    let types = fs::read("/sys/kernel/btf/vmlinux").map_err(|error| format!("no kernel types: {error}"))?;
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let mut known = described(&types, &read("/proc/cpuinfo")?)?;
    drop(types);
    // In sysfs, which has the types too: if the driver is not listed, the kernel has none.
    let links = links(&TAKERS).map_err(|error| format!("the drivers can't be looked at: {error}"))?;
    if let Some(why) = unreadable(&read("/proc/meminfo")?, &links) {
        return Err(why);
    }
    let length =
        memory_length(&read("/proc/zoneinfo")?).ok_or("/proc/zoneinfo does not tell where memory ends")?;
    known.tables.memory = prove(&known, length)?;
    known.speed = Speed::measure(&known)?;
    Ok(known)
}

/// Whether programs may read kernel memory. This asks the kernel itself: `securityfs`, which has the lockdown state,
/// may not be mounted.
fn may_read_kernel() -> bool {
    is_helper_supported(ProgramType::KProbe, BpfHelper::BPF_FUNC_probe_read_kernel).unwrap_or(false)
}

/// Collects what must be known before anything is tried.
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
    Ok(Known { tables, numbers, speed: Speed::default() })
}

/// Returns the number of bits of a physical address: `address sizes : 48 bits physical, 48 bits virtual`.
fn physical_bits(processor: &str) -> Option<u32> {
    let sizes = value(processor, "address sizes")?;
    let bits: u32 = sizes.split_whitespace().next()?.parse().ok()?;
    // Page table entries have room for no more.
    (32..=52).contains(&bits).then_some(bits)
}

/// Whether the processor has a feature that the kernel uses.
fn has_flag(processor: &str, flag: &str) -> bool {
    value(processor, "flags").is_some_and(|flags| flags.split_whitespace().any(|one| one == flag))
}

fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(found, _)| found.trim() == key).map(|(_, value)| value)
}

/// Returns why memory may be mapped that must not be read, if so: from `/proc/meminfo` and the links in the
/// directories of [`TAKERS`].
///
/// A guest that reads memory which it has not accepted is ended (`drivers/firmware/efi/unaccepted_memory.c` @ v6.5).
/// The line is present where the kernel may accept memory late; accepted memory stays accepted. Pages that the
/// drivers have taken away must not be read either (`PageOffline`, `include/linux/page-flags.h` @ v5.14), and nothing
/// reports which pages these are.
fn unreadable(memory: &str, links: &[String]) -> Option<String> {
    let unaccepted = value(memory, "Unaccepted").map(str::trim);
    if let Some(size) = unaccepted.filter(|size| *size != "0 kB") {
        return Some(format!("memory that this machine has not accepted yet may not be read: {size}"));
    }
    // A driver's directory has a link to its module beside those to its devices.
    let device = links.iter().find(|link| !link.ends_with("/module"))?;
    Some(format!("memory that {device} takes away may not be read"))
}

/// Returns the links in these directories, which need not exist.
fn links(directories: &[&str]) -> io::Result<Vec<String>> {
    let mut links = Vec::new();
    for directory in directories {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_symlink() {
                links.push(entry.path().display().to_string());
            }
        }
    }
    Ok(links)
}

/// Returns where memory ends: after the last page of any zone.
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

/// Finds the direct map: the address by which programs reach the agent's own memory. Also proves that taking a page
/// away is counted as a flush.
fn prove(known: &Known, length: u64) -> Result<u64, String> {
    let trial = Trial::begin(known)?;
    let made_up = MadeUp::new().map_err(|error| error.to_string())?;
    let root = trial.read(&made_up.small[0].0[0], 0, 1)?.root;
    let first = FIRST[usize::from(known.tables.levels == 5)];
    let mut places = (0..=length / STEP).map_while(|step| {
        let place = (root & !(STEP - 1)).checked_sub(step * STEP)?;
        (place >= first).then_some(place)
    });
    let leads = |place: u64| made_up.samples().all(|sample| trial.leads_to(sample, place, length));
    let place = places.find(|place| leads(*place)).ok_or("they don't lead to the agent's own memory")?;
    let flushes = || trial.read(&Sample::default(), 0, 1).map(|proof| proof.flushes);
    let before = flushes()?;
    made_up.take_away();
    if flushes()? <= before {
        return Err("it is not counted that a page was taken away".to_owned());
    }
    Ok(place)
}

/// The words that are compared, at the beginning of a page.
type Sample = [u64; PROOF_WORDS];

/// A page of the agent's own memory.
#[repr(align(4096))]
struct Page([Sample; PAGE / size_of::<Sample>()]);

/// Random bytes that occur nowhere else, on small and large pages.
struct MadeUp {
    small: Box<[Page]>,
    /// The kernel may back these with large pages.
    large: Box<[Page]>,
}

impl MadeUp {
    fn new() -> io::Result<Self> {
        let pages = |count| {
            // SAFETY: consists of integers, for which zero is valid.
            unsafe { Box::<[Page]>::new_zeroed_slice(count).assume_init() }
        };
        let (mut small, mut large) = (pages(SAMPLES), pages(2 * LARGE_PAGE / PAGE));
        // SAFETY: whole pages of the list, whose content stays as it is. Without large pages the call fails
        // harmlessly.
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

    /// Takes a page away; from then on it reads as zeros.
    fn take_away(self) {
        let mut pages = self.small;
        // SAFETY: the whole list, of integers, for which zero is valid.
        unsafe { libc::madvise(pages.as_mut_ptr().cast(), size_of_val(&*pages), libc::MADV_DONTNEED) };
    }

    /// Returns one sample for each page that was written to.
    fn samples(&self) -> impl Iterator<Item = &Sample> {
        let step = self.large.len() / SAMPLES;
        self.small.iter().chain(self.large.iter().step_by(step)).map(|page| &page.0[0])
    }
}

/// The program that reads by page tables, attached to a function of the agent itself.
struct Trial {
    /// `None` once dropped.
    object: Option<Object>,
    links: Vec<OwnedFd>,
}

impl Trial {
    fn begin(known: &Known) -> Result<Self, String> {
        let recipe = Recipe { tables: known.tables, ..Recipe::EMPTY };
        let mut settings = Settings::smallest();
        settings.globals.push((name::RECIPE, bytes_of(&recipe)));
        settings.numbers = Some(known.numbers);
        let load = Object::load(&settings, &[name::PROVE], ProbeLinks::Best);
        let failed = |error: &dyn Display| format!("page tables can't be tried: {error}");
        let object = load.map_err(|error| failed(&error))?;
        let attach = || {
            let offset = file_offset(tried as *const c_void)?;
            object.attach(name::PROVE, Path::new("/proc/self/exe"), process::id(), &[offset])
        };
        let links = attach().map_err(|error| failed(&error))?;
        Ok(Self { object: Some(object), links })
    }

    /// Reads a sample of the agent's memory, for a direct map at `memory` that is `length` bytes long.
    fn read(&self, sample: &Sample, memory: u64, length: u64) -> Result<Proof, String> {
        tried(sample.as_ptr().expose_provenance() as u64, memory, length);
        self.proof()
    }

    /// Returns the result of the last read.
    fn proof(&self) -> Result<Proof, String> {
        let map = self.object.as_ref().and_then(|object| object.map(name::PROOF)).ok_or("no proof")?;
        let proofs = Array::<_, Proof>::try_from(map).map_err(|error| error.to_string())?;
        proofs.get(&0, 0).map_err(|error| error.to_string())
    }

    fn leads_to(&self, sample: &Sample, memory: u64, length: u64) -> bool {
        self.read(sample, memory, length).is_ok_and(|proof| proof.words == *sample)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // The kernel takes a while for this, and nothing needs to wait. The object is dropped after its program's
        // links.
        let (links, object) = (std::mem::take(&mut self.links), self.object.take());
        let _ = thread::Builder::new().spawn(move || {
            detach_all(links);
            drop(object);
        });
    }
}

/// The probed function: the program reads its arguments.
#[unsafe(naked)]
extern "C" fn tried(address: u64, memory: u64, length: u64) {
    naked_asm!("push rbp", "pop rbp", "ret")
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        os::unix::fs::symlink,
        ptr,
        sync::{
            Mutex, MutexGuard, PoisonError,
            atomic::{AtomicBool, Ordering},
        },
        time::{Duration, Instant},
    };

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
    fn nothing_is_tried_where_memory_may_not_be_read() {
        let memory = |size: &str| format!("MemTotal:    16 kB\nUnaccepted:  {size}\nHugePages_Total:   0\n");
        let [module, device] = ["module", "virtio3"].map(|link| format!("{}/{link}", TAKERS[0]));
        let none = memory("       0 kB");
        let links = [module, device];
        for memory in ["", "MemTotal:    16 kB\nUnevictable:    8 kB\n", none.as_str()] {
            assert_eq!(unreadable(memory, &[]), None, "{memory}");
            assert_eq!(unreadable(memory, &links[..1]), None, "{memory}");
            let why = unreadable(memory, &links).expect("a reason");
            assert!(why.contains(&links[1]), "{why}");
        }
        for size in ["    4096 kB", "10 kB", "", "0 MB"] {
            let why = unreadable(&memory(size), &[]).expect("a reason");
            assert!(why.ends_with(size.trim()), "{why}");
        }
    }

    #[test]
    fn drivers_have_the_links_that_are_in_their_directories() {
        let directory = env::temp_dir().join(format!("monitor-drivers-{}", process::id()));
        let [driver, missing] = ["virtio_mem", "hv_balloon"].map(|name| directory.join(name));
        fs::create_dir_all(&driver).expect("a directory");
        fs::write(driver.join("bind"), "").expect("a file");
        symlink("../virtio3", driver.join("virtio3")).expect("a link");
        let paths = [&driver, &missing].map(|path| path.to_str().expect("UTF-8"));
        let found = links(&paths);
        fs::remove_dir_all(&directory).expect("it is there");
        assert_eq!(found.expect("they can be read"), [format!("{}/virtio3", paths[0])]);
        assert!(links(&["/proc/self/status"]).is_err());
    }

    #[test]
    fn what_is_no_description_of_types_is_refused() {
        for types in [&b""[..], b"nothing of the kind", &[0x9f, 0xeb, 1, 0]] {
            assert!(described(types, PROCESSOR).is_err());
        }
    }

    /// What programs read at an address of the agent by tables that are known; `None` if the tables don't lead there.
    ///
    /// Needs a kernel with everything required, and permission: `tests/tests/reads.rs` fails where the kernel has it
    /// and the agent does not use it.
    struct Reader {
        trial: Trial,
        /// Each caller of the function runs all programs attached to it.
        _alone: MutexGuard<'static, ()>,
    }

    impl Reader {
        fn new() -> Option<Self> {
            static ALONE: Mutex<()> = Mutex::new(());
            let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
            // What has worked for the agent works again. If it has not, there is nothing to test.
            let trial = Trial::begin(known().ok()?).expect("a trial like that which has worked");
            Some(Self { trial, _alone: alone })
        }

        fn read(&self, address: usize) -> Option<Sample> {
            self.read_late(address, 0)
        }

        /// Reads as if `missed` flushes had been missed.
        fn read_late(&self, address: usize, missed: u64) -> Option<Sample> {
            tried(address as u64, missed, 0);
            let proof = self.trial.proof().unwrap();
            (proof.is_read == 1).then_some(proof.words)
        }

        fn flushes(&self) -> u64 {
            tried(0, 0, 0);
            self.trial.proof().unwrap().flushes
        }
    }

    /// Pages of the agent's own memory: address and length in bytes.
    struct Pages(*mut c_void, usize);

    impl Pages {
        fn new(length: usize, protection: libc::c_int, flags: libc::c_int) -> Self {
            // SAFETY: a new mapping.
            let start = unsafe {
                libc::mmap(ptr::null_mut(), length, protection, flags | libc::MAP_ANONYMOUS, -1, 0)
            };
            assert_ne!(start, libc::MAP_FAILED);
            Self(start, length)
        }

        fn address(&self) -> usize {
            self.0.expose_provenance()
        }
    }

    /// Writes a sample to the beginning of a writable page.
    fn fill(page: *mut c_void, sample: Sample) {
        // SAFETY: the caller's own page, to which there are no references.
        unsafe { page.cast::<Sample>().write_volatile(sample) }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            // SAFETY: the mapping made in `new`.
            unsafe { libc::munmap(self.0, self.1) };
        }
    }

    const BOTH: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
    const SAMPLE: Sample = [0x1122_3344_5566_7788; PROOF_WORDS];

    #[test]
    fn memory_of_all_kinds_is_read_or_left_to_the_kernel() {
        static IN_FILE: Page = Page([SAMPLE; PAGE / size_of::<Sample>()]);
        let Some(reader) = Reader::new() else { return };
        let private = Pages::new(2 * PAGE, BOTH, libc::MAP_PRIVATE);
        fill(private.0, SAMPLE);
        let shared = Pages::new(PAGE, BOTH, libc::MAP_SHARED);
        fill(shared.0, SAMPLE);
        let large = Pages::new(4 * LARGE_PAGE, BOTH, libc::MAP_PRIVATE);
        // SAFETY: the whole mapping, whose content stays as it is.
        unsafe { libc::madvise(large.0, large.1, libc::MADV_HUGEPAGE) };
        let in_large = large.0.map_addr(|start| start.next_multiple_of(LARGE_PAGE) + LARGE_PAGE / 2);
        fill(in_large, SAMPLE);
        let on_stack = Page([SAMPLE; PAGE / size_of::<Sample>()]);
        assert_eq!(IN_FILE.0[0], SAMPLE);
        for (what, address) in [
            ("private", private.address()),
            ("shared", shared.address()),
            ("large", in_large.expose_provenance()),
            ("of a file", IN_FILE.0.as_ptr().expose_provenance()),
            ("stack", on_stack.0.as_ptr().expose_provenance()),
        ] {
            assert_eq!(reader.read(address), Some(SAMPLE), "{what}");
            // What was read before a page was taken away may be anything.
            assert_eq!(reader.read_late(address, 1), None, "{what}");
        }

        let nobodys = Pages::new(PAGE, libc::PROT_NONE, libc::MAP_PRIVATE);
        let untouched = Pages::new(PAGE, BOTH, libc::MAP_PRIVATE);
        let only_read = Pages::new(PAGE, BOTH, libc::MAP_PRIVATE);
        // SAFETY: a readable mapping.
        assert_eq!(unsafe { only_read.0.cast::<Sample>().read_volatile() }, [0; PROOF_WORDS]);
        let taken_back = Pages::new(PAGE, BOTH, libc::MAP_PRIVATE);
        fill(taken_back.0, SAMPLE);
        // SAFETY: a mapping of its own.
        unsafe { libc::mprotect(taken_back.0, PAGE, libc::PROT_NONE) };
        for (what, address) in [
            ("nobody may read it", nobodys.address()),
            ("never touched", untouched.address()),
            ("the page of zeros", only_read.address()),
            ("nobody may read it any more", taken_back.address()),
            ("on two pages", private.address() + PAGE - 8),
            ("nowhere", 0x1000),
            ("no address", usize::MAX / 2),
            ("the kernel's", usize::MAX - 0xffff),
        ] {
            assert_eq!(reader.read(address), None, "{what}");
        }
    }

    /// Both ways must lead to the agent's own memory each time.
    #[test]
    fn reads_are_timed_both_ways() {
        let Some(_alone) = Reader::new() else { return };
        let speed = Speed::measure(known().expect("a reader has it")).expect("what has worked once");
        assert_ne!(speed, Speed::default());
    }

    /// Takes a page away in one of four ways, after which there is another one. The page begins a large one.
    ///
    /// # Safety
    /// There must be no references to the large page.
    unsafe fn take_away(place: *mut c_void, way: u64) {
        let again = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: the caller vouches for it.
        unsafe {
            match way % 4 {
                0 => {
                    libc::madvise(place, PAGE, libc::MADV_DONTNEED);
                }
                1 => {
                    libc::mprotect(place, PAGE, libc::PROT_NONE);
                    libc::mprotect(place, PAGE, BOTH);
                }
                2 => {
                    libc::mmap(place, PAGE, BOTH, again, -1, 0);
                }
                // Together with its table.
                _ => {
                    libc::mmap(place, LARGE_PAGE, BOTH, again, -1, 0);
                }
            }
        }
    }

    #[test]
    fn whatever_takes_a_page_away_is_counted() {
        let Some(reader) = Reader::new() else { return };
        let pages = Pages::new(2 * LARGE_PAGE, BOTH, libc::MAP_PRIVATE);
        let place = pages.0.map_addr(|start| start.next_multiple_of(LARGE_PAGE));
        for way in 0..4 {
            fill(place, SAMPLE);
            let before = reader.flushes();
            // SAFETY: pages of `pages`, which nothing else uses.
            unsafe { take_away(place, way) };
            assert!(reader.flushes() > before, "{way}");
        }
    }

    /// One thread keeps taking a page away and putting another one there, in all ways; a second thread allocates the
    /// freed memory and writes to it. A read must return what was there at some time, or nothing.
    #[test]
    fn what_is_taken_away_meanwhile_is_never_read_as_something_else() {
        const OWN: u64 = 0x0123_4567_0000_0000;
        const OTHERS: u64 = 0xbad0_bad0_bad0_bad0;
        let Some(reader) = Reader::new() else { return };
        let pages = Pages::new(2 * LARGE_PAGE, BOTH, libc::MAP_PRIVATE);
        let place = pages.address().next_multiple_of(LARGE_PAGE);
        let is_over = AtomicBool::new(false);
        let (mut reads, mut left, mut wrong) = (0_u64, 0_u64, None);
        thread::scope(|scope| {
            scope.spawn(|| {
                let place = ptr::with_exposed_provenance_mut(place);
                for round in (1..=u64::from(u32::MAX)).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                    fill(place, [OWN | round; PROOF_WORDS]);
                    // SAFETY: pages of `pages`, which nothing else uses.
                    unsafe { take_away(place, round) }
                }
            });
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let taken = Pages::new(16 * PAGE, BOTH, libc::MAP_PRIVATE);
                    for page in 0..16 {
                        fill(taken.0.map_addr(|start| start + page * PAGE), [OTHERS; PROOF_WORDS]);
                    }
                }
            });
            let begin = Instant::now();
            // A panic here would leave the other threads running.
            while wrong.is_none() && begin.elapsed() < Duration::from_secs(3) {
                match reader.read(place) {
                    Some(words) => {
                        reads += 1;
                        let is_own = |word: &u64| *word == 0 || word & !u64::from(u32::MAX) == OWN;
                        wrong = Some(words).filter(|words| !words.iter().all(is_own));
                    }
                    None => left += 1,
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
        eprintln!("{reads} reads, {left} left to the kernel");
        assert_eq!(wrong, None, "after {reads} reads");
        assert!(reads > 1_000 && left > 0, "{reads} reads, {left} left to the kernel");
    }
}
