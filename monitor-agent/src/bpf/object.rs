//! The eBPF object in the kernel: its maps, the programs in use, and their links to sites.
//!
//! aya's parser provides maps and instructions. This module creates and loads them itself: aya does not support
//! multi-uprobe links, and its loader parses the types of the whole kernel each time, which takes longer than
//! everything but the verifier.

use std::{
    collections::{HashMap, HashSet},
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    thread,
};

use aya::{
    EbpfError, include_bytes_aligned,
    maps::{Map, MapData, MapError},
    programs::ProgramError,
    sys::SyscallError,
};
use aya_obj::{
    EbpfSectionKind, ProgramSection, VerifierLog,
    generated::{
        BPF_ALU64, BPF_CALL, BPF_DW, BPF_F_NO_PREALLOC, BPF_IMM, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_MOV,
        BPF_PSEUDO_KFUNC_CALL, BPF_PSEUDO_MAP_FD, bpf_insn,
    },
};
use monitor_ebpf::{name, patched};

use super::{
    ProgramLog, RunTimes,
    features::version,
    kernel_release,
    multi::{self, instruction},
    perf,
    syscall::{self, AT_ONCE, AttachType, Probe, Room},
};

/// The object, built by `cargo xtask ebpf` and kept in the repository: building the agent needs cargo only.
pub(super) static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/monitor.bpf.o"));

/// How probes are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProbeLinks {
    /// Multi-uprobe links where the kernel has them, otherwise perf events.
    #[default]
    Best,
    /// One perf event for each site, as before Linux 6.6. For tests and comparisons.
    Perf,
}

/// Parameters for loading an object.
pub(super) struct Settings<'a> {
    /// Values of its constants, by name.
    pub(super) globals: Vec<(&'static str, &'a [u8])>,
    /// Sizes of maps, by name; other maps keep the object's size.
    pub(super) entries: Vec<(&'static str, u32)>,
    /// The numbers needed by programs that walk page tables.
    pub(super) numbers: Option<Numbers>,
}

impl Settings<'_> {
    /// Returns settings with the smallest maps, for programs that use none of them.
    pub(super) fn smallest() -> Self {
        let mut entries = vec![(name::RECORDS, SMALLEST_RING)];
        let unused = [
            name::IN_FLIGHT,
            name::OBJECTS,
            name::ENDED,
            name::SPILL,
            name::LABEL_IDS,
            name::LABEL_SETS,
            name::TOTALS,
        ];
        entries.extend(unused.map(|map| (map, 1)));
        Self { globals: Vec::new(), entries, numbers: None }
    }
}

/// Size in bytes: whole pages, a power of two.
const SMALLEST_RING: u32 = 4096;

/// BTF numbers of types in the running kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    /// The function `bpf_rdonly_cast`.
    pub(super) cast: u32,
    /// A structure that begins with [`patched::WORDS`] words.
    pub(super) structure: u32,
}

/// Size of the buffer for the verifier's log of a refused program.
const LOG_BYTES: usize = 1 << 20;

/// A loaded object: its maps, and the programs in use.
pub(super) struct Object {
    maps: HashMap<String, Map>,
    programs: Vec<Program>,
    attach_type: AttachType,
    /// The program array of [`on_the_kernels_stack`]. Held open as long as the programs' descriptors: each time the
    /// last descriptor of such an array is closed, the kernel takes a reference to clear it, and leaks that reference
    /// if the previous clearing is still pending (`prog_array_map_clear`, kernel/bpf/arraymap.c @ v6.18). Tools that
    /// list all maps, such as bpftool, open and close the array once for each program that uses it.
    _calls: OwnedFd,
}

/// A loaded program.
struct Program {
    name: &'static str,
    descriptor: OwnedFd,
    /// Whether it runs where the probed function returns.
    is_return: bool,
}

/// Closes links in parallel, which detaches their probes: the kernel takes a while for each.
pub(super) fn detach_all(links: impl IntoIterator<Item = OwnedFd>) {
    thread::scope(|scope| {
        for link in links {
            // If no thread can be started, the closure is dropped here, and the link with it.
            let _ = thread::Builder::new().spawn_scoped(scope, move || drop(link));
        }
    });
}

impl Object {
    /// Creates the maps and loads these programs.
    pub(super) fn load(
        settings: &Settings<'_>,
        names: &[&'static str],
        links: ProbeLinks,
    ) -> Result<Self, EbpfError> {
        let has_multi_links = match links {
            ProbeLinks::Best => multi::works().map_err(|error| failed_call("bpf_link_create", error))?,
            ProbeLinks::Perf => false,
        };
        let attach_type = if has_multi_links { AttachType::MultiUprobes } else { AttachType::PerfEvent };
        let mut object = aya_obj::Object::parse(OBJECT)?;
        let globals = settings.globals.iter().map(|(name, value)| (*name, (*value, true)));
        object.patch_map_data(globals.collect())?;
        // Reserves descriptors for the maps, so that others that create links take them into account.
        let room = has_multi_links.then(|| Room::find(AT_ONCE)).transpose();
        let room = room.map_err(|error| failed_call("bpf_map_create", error))?;
        let maps = make_maps(&mut object, settings, room)?;
        for function in object.functions.values_mut() {
            patch(&mut function.instructions, settings.numbers);
        }
        let calls = syscall::program_array().map_err(|error| failed_call("bpf_map_create", error))?;
        let load = |name: &&'static str| load(&object, name, calls.as_fd(), attach_type);
        let programs = names.iter().map(load).collect::<Result<_, _>>()?;
        Ok(Self { maps, programs, attach_type, _calls: calls })
    }

    /// Returns a map by name.
    pub(super) fn map(&self, name: &str) -> Option<&Map> {
        self.maps.get(name)
    }

    /// Takes a map out of the object; `None` if it has been taken.
    pub(super) fn take_map(&mut self, name: &str) -> Option<Map> {
        self.maps.remove(name)
    }

    /// Returns the forwarder of the programs' own diagnostics.
    pub(super) fn log(&self) -> Option<ProgramLog> {
        ProgramLog::of(self.programs.first()?.descriptor.as_fd())
    }

    /// Attaches a program to offsets of an executable, for one process only, until the returned descriptors are
    /// closed.
    pub(super) fn attach(
        &self,
        name: &str,
        exe: &Path,
        pid: u32,
        offsets: &[u64],
    ) -> io::Result<Vec<OwnedFd>> {
        let program = self.program(name).ok_or_else(|| io::Error::other(format!("{name} is not loaded")))?;
        let exe = CString::new(exe.as_os_str().as_bytes())?;
        let is_return = program.is_return;
        let probe = Probe { program: program.descriptor.as_fd(), exe: &exe, pid, is_return };
        match self.attach_type {
            AttachType::MultiUprobes => Ok(vec![syscall::link_uprobes(&probe, offsets)?]),
            AttachType::PerfEvent => offsets.iter().map(|offset| perf::attach(&probe, *offset)).collect(),
        }
    }

    /// Returns how often and for how long a program has run; zeros if it is not loaded.
    pub(super) fn run_times(&self, name: &str) -> RunTimes {
        self.program(name).map(|program| RunTimes::of(program.descriptor.as_fd())).unwrap_or_default()
    }

    fn program(&self, name: &str) -> Option<&Program> {
        self.programs.iter().find(|program| program.name == name)
    }
}

/// Replaces the placeholders of [`patched`] with numbers of the running kernel. Without numbers, replaces the calls
/// with an instruction that every kernel accepts where it can't be reached.
fn patch(instructions: &mut [bpf_insn], numbers: Option<Numbers>) {
    for one in instructions {
        let code = u32::from(one.code);
        if code == BPF_ALU64 | BPF_MOV | BPF_K && one.imm == patched::STRUCTURE {
            one.imm = numbers.map_or(0, |numbers| numbers.structure.cast_signed());
        } else if code == BPF_JMP | BPF_CALL && one.imm == patched::CAST {
            if let Some(numbers) = numbers {
                one.set_src_reg(KERNEL_FUNCTION);
                one.imm = numbers.cast.cast_signed();
            } else {
                (one.code, one.imm) = (NOTHING_IN_R0, 0);
            }
        }
    }
}

/// Source register of a call: the target is a kernel function.
#[expect(clippy::cast_possible_truncation, reason = "a register has four bits")]
const KERNEL_FUNCTION: u8 = BPF_PSEUDO_KFUNC_CALL as u8;
/// Opcode of `r0 = 0`.
#[expect(clippy::cast_possible_truncation, reason = "a code is one byte")]
const NOTHING_IN_R0: u8 = (BPF_ALU64 | BPF_MOV | BPF_K) as u8;
/// Opcode of `if r0 == 0 goto`.
#[expect(clippy::cast_possible_truncation, reason = "a code is one byte")]
const IF_EQUAL: u8 = (BPF_JMP | BPF_JEQ | BPF_K) as u8;
/// Opcode of a call.
#[expect(clippy::cast_possible_truncation, reason = "a code is one byte")]
const CALL: u8 = (BPF_JMP | BPF_CALL) as u8;
/// Opcode of an eight-byte immediate, which takes two instructions.
#[expect(clippy::cast_possible_truncation, reason = "a code is one byte")]
const DOUBLE_WORD: u8 = (BPF_LD | BPF_IMM | BPF_DW) as u8;
/// Source register of an eight-byte immediate: it is a map's descriptor.
#[expect(clippy::cast_possible_truncation, reason = "a register has four bits")]
const MAP: u8 = BPF_PSEUDO_MAP_FD as u8;
/// `BPF_FUNC_tail_call` of include/uapi/linux/bpf.h.
const BPF_FUNC_TAIL_CALL: i32 = 12;

/// Creates an object's maps, using up the reserved descriptors, and writes their descriptors into the instructions.
fn make_maps(
    object: &mut aya_obj::Object,
    settings: &Settings<'_>,
    mut room: Option<Room>,
) -> Result<HashMap<String, Map>, EbpfError> {
    let parsed = std::mem::take(&mut object.maps);
    let mut made = Vec::with_capacity(parsed.len());
    for (name, map) in &parsed {
        let entries = settings.entries.iter().find(|(of, _)| of == name).map(|(_, entries)| *entries);
        made.push((name, map, make_map(name, map, entries)?));
        if let Some(room) = &mut room {
            room.use_one();
        }
    }
    drop(room);
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let places = made.iter().map(|(name, map, data)| (name.as_str(), data.fd().as_fd().as_raw_fd(), *map));
    object.relocate_maps(places, &sections)?;
    object.relocate_calls(&sections)?;
    Ok(made.into_iter().map(|(name, map, data)| (name.clone(), of_kind(map.map_type(), data))).collect())
}

/// Creates a map with its initial value.
fn make_map(name: &str, map: &aya_obj::Map, entries: Option<u32>) -> Result<MapData, MapError> {
    let mut map = map.clone();
    if !may_allocate(&kernel_release()) {
        allocate_at_once(&mut map);
    }
    if let Some(entries) = entries {
        map.set_max_entries(entries);
    }
    let (value, is_constant) = (map.data().to_vec(), map.section_kind() == EbpfSectionKind::Rodata);
    let made = MapData::create(map, name, None)?;
    if !value.is_empty() {
        let set = syscall::set_first(made.fd().as_fd(), &value);
        set.map_err(|error| failed_call("bpf_map_update_elem", error))?;
    }
    if is_constant {
        syscall::freeze(made.fd().as_fd()).map_err(|error| failed_call("bpf_map_freeze", error))?;
    }
    Ok(made)
}

/// Whether programs may insert into a hash map without preallocation on this release. Before Linux 6.1 the kernel
/// warns of it, and some machines panic on warnings (`check_map_prog_compatibility`, kernel/bpf/verifier.c @ v6.0).
/// Preallocating is harmless on kernels with the backported change.
fn may_allocate(release: &str) -> bool {
    version(release) >= Some((6, 1))
}

/// Preallocates a hash map's entries; otherwise each takes memory only while it exists.
fn allocate_at_once(map: &mut aya_obj::Map) {
    // The object has maps of this kind only.
    if let aya_obj::Map::Legacy(map) = map {
        map.def.map_flags &= !BPF_F_NO_PREALLOC;
    }
}

fn failed_call(call: &'static str, io_error: io::Error) -> MapError {
    MapError::SyscallError(SyscallError { call, io_error })
}

/// Wraps a map in the variant that aya's types expect.
fn of_kind(kind: u32, data: MapData) -> Map {
    match kind {
        syscall::BPF_MAP_TYPE_HASH => Map::HashMap(data),
        syscall::BPF_MAP_TYPE_ARRAY => Map::Array(data),
        syscall::BPF_MAP_TYPE_RINGBUF => Map::RingBuf(data),
        _ => Map::Unsupported(data),
    }
}

/// Returns a prologue for each program: a tail call that is jumped over, so that the verifier removes it. The kernel
/// gives a program with a tail call no private stack.
///
/// Since Linux 6.13 each function would otherwise have one private stack per CPU. The kernel assumes that a program
/// of this type is never interrupted by another run of itself on the same CPU (`bpf_enable_priv_stack`,
/// kernel/bpf/verifier.c @ v6.13). For uprobes this is wrong: two runs would overwrite each other's stack, including
/// the kernel's own pointers.
fn on_the_kernels_stack(calls: BorrowedFd<'_>) -> [bpf_insn; 6] {
    let nothing = instruction(NOTHING_IN_R0, 0, 0, 0);
    // Jumps over the four instructions after it.
    let over = bpf_insn { off: 4, ..instruction(IF_EQUAL, 0, 0, 0) };
    [
        nothing,
        over,
        instruction(DOUBLE_WORD, 2, MAP, calls.as_raw_fd()),
        instruction(0, 0, 0, 0),
        instruction(NOTHING_IN_R0, 3, 0, 0),
        instruction(CALL, 0, 0, BPF_FUNC_TAIL_CALL),
    ]
}

/// Loads a program. If the kernel refuses it, tries again with the verifier's log, which makes loading much slower.
fn load(
    object: &aya_obj::Object,
    name: &'static str,
    calls: BorrowedFd<'_>,
    attach_type: AttachType,
) -> Result<Program, ProgramError> {
    let missing = || ProgramError::InvalidName { name: name.to_owned() };
    let program = object.programs.get(name).ok_or_else(missing)?;
    let function = object.functions.get(&program.function_key()).ok_or_else(missing)?;
    let instructions = [&on_the_kernels_stack(calls), &*function.instructions].concat();
    let load =
        |log: &mut [u8]| syscall::load_program(name, &program.license, &instructions, attach_type, log);
    let loaded = load(&mut []).or_else(|io_error| {
        let mut log = vec![0; LOG_BYTES];
        // Return the first error: the second may only mean that the log is too small.
        load(&mut log).map_err(|_| {
            let text = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
            ProgramError::LoadError { io_error, verifier_log: VerifierLog::new(text.into_owned()) }
        })
    });
    let is_return = matches!(program.section, ProgramSection::URetProbe { .. });
    loaded.map(|descriptor| Program { name, descriptor, is_return })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::page_tables;

    /// `add r9, gs:[…]`: the first instruction, on x86-64, of a function with a private stack (`emit_priv_frame_ptr`,
    /// `arch/x86/net/bpf_jit_comp.c` @ v6.13).
    const OWN_STACK: [u8; 4] = [0x65, 0x4c, 0x03, 0x0c];

    fn has_own_stack(program: &OwnedFd) -> bool {
        let code = syscall::machine_code(program.as_fd()).expect("its code");
        assert!(code.len() > 32, "{code:x?}");
        code.windows(OWN_STACK.len()).any(|bytes| bytes == OWN_STACK)
    }

    /// Returns a program that writes to 512 bytes of its stack.
    fn large() -> Vec<bpf_insn> {
        let store = |off| bpf_insn { off, ..instruction(0x7a, 10, 0, 1) };
        [&[store(-512), store(-8)][..], &multi::nothing()].concat()
    }

    #[test]
    fn older_kernels_get_maps_that_are_whole_from_the_start() {
        for (release, expected) in [
            ("5.15.0-91-generic", false),
            ("6.0.19", false),
            ("6.1.0-56-cloud-amd64", true),
            ("6.18.44", true),
            ("10.0-rc1", true),
            ("", false),
        ] {
            assert_eq!(may_allocate(release), expected, "{release}");
        }
        let mut object = aya_obj::Object::parse(OBJECT).expect("an object");
        let one_by_one = |map: &aya_obj::Map| map.map_flags() & BPF_F_NO_PREALLOC != 0;
        assert!(object.maps.values().any(one_by_one));
        object.maps.values_mut().for_each(allocate_at_once);
        assert!(!object.maps.values().any(one_by_one));
    }

    #[test]
    fn no_program_has_a_stack_that_it_shares_with_others_on_its_processor() {
        let calls = syscall::program_array().expect("a map");
        let load = |code: &[bpf_insn]| {
            let loaded = syscall::load_program("large", c"GPL", code, AttachType::PerfEvent, &mut []);
            loaded.expect("it loads")
        };
        let release = kernel_release();
        let has_such = version(&release) >= Some((6, 13));
        // Later kernels may drop private stacks. Until then this check must be able to fail.
        if cfg!(target_arch = "x86_64") && has_such {
            assert!(has_own_stack(&load(&large())), "Linux {release} has no stacks of this kind any more");
        }
        let guarded = [&on_the_kernels_stack(calls.as_fd())[..], &large()].concat();
        assert!(!has_own_stack(&load(&guarded)), "Linux {release} does not mind calls of programs");
        let mut names = vec![
            name::START,
            name::FINISH,
            name::SENT,
            name::RECEIVED,
            name::ENTERED,
            name::NATIVE_START,
            name::NATIVE_FINISH,
            name::NATIVE_RETURN,
        ];
        let mut settings = Settings::smallest();
        settings.numbers = page_tables::known().ok().map(|known| known.numbers);
        // This program has no other way to read.
        names.extend(settings.numbers.map(|_| name::PROVE));
        let object = Object::load(&settings, &names, ProbeLinks::Best).expect("programs");
        for Program { name, descriptor, .. } in &object.programs {
            assert!(!has_own_stack(descriptor), "{name}");
        }
    }

    #[test]
    fn every_program_has_its_numbers_patched_or_nothing_left_of_them() {
        for numbers in [None, Some(Numbers { cast: 65_486, structure: 162 })] {
            let mut object = aya_obj::Object::parse(OBJECT).expect("an object");
            let mut found = [0; 2];
            for function in object.functions.values_mut() {
                let before = function.instructions.clone();
                patch(&mut function.instructions, numbers);
                for (was, is) in before.iter().zip(&function.instructions) {
                    if was.imm == patched::STRUCTURE {
                        found[0] += 1;
                        assert_eq!(is.imm, if numbers.is_some() { 162 } else { 0 });
                    } else if was.imm == patched::CAST {
                        found[1] += 1;
                        let wanted = if numbers.is_some() { (0x85, 2, 65_486) } else { (0xb7, 0, 0) };
                        assert_eq!((is.code, is.src_reg(), is.imm), wanted);
                    } else {
                        assert_eq!(format!("{was:?}"), format!("{is:?}"));
                    }
                }
            }
            assert!(found[0] == found[1] && found[0] > 10, "{found:?}");
        }
    }
}
