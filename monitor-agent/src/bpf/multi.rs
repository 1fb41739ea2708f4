//! Multi-uprobe links (Linux 6.6): all probes of a program in a process hang on one descriptor. Where a perf event's end
//! waits for that of every other on the machine, these are taken away side by side.
//!
//! aya can't ask for them, and its loader parses the types of the whole kernel each time, which takes longer than all else
//! but the verifier. So its parser gives maps and instructions, and they are made and loaded here.

use std::{
    arch::naked_asm,
    collections::{HashMap, HashSet},
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    sync::OnceLock,
    thread,
};

use aya::{
    EbpfError,
    maps::{Map, MapData, MapError},
    programs::ProgramError,
    sys::SyscallError,
};
use aya_log::EbpfLogger;
use aya_obj::{EbpfSectionKind, Object, VerifierLog, generated::bpf_insn};
use log::Log;

use super::{
    mapped::{Access, MappedWords},
    object::Settings,
    own_code::file_offset,
    syscall,
};

/// Room for what the verifier says of a program that it refuses.
const LOG_BYTES: usize = 1 << 20;

/// An object that is loaded for such links: its maps, and those of its programs that are wanted.
pub(super) struct MultiPrograms {
    maps: HashMap<String, Map>,
    programs: Vec<(&'static str, OwnedFd)>,
}

impl MultiPrograms {
    /// Makes the maps of an object, and loads these programs of it.
    pub(super) fn load(
        object: &[u8],
        settings: &Settings<'_>,
        names: &[&'static str],
    ) -> Result<Self, EbpfError> {
        let mut object = Object::parse(object)?;
        let globals = settings.globals.iter().map(|(name, value)| (*name, (*value, true)));
        object.patch_map_data(globals.collect())?;
        let maps = make_maps(&mut object, settings)?;
        let load = |name: &&'static str| Ok((*name, load(&object, name)?));
        let programs = names.iter().map(load).collect::<Result<_, ProgramError>>()?;
        Ok(Self { maps, programs })
    }

    /// A map that was made.
    pub(super) fn map(&self, name: &str) -> Option<&Map> {
        self.maps.get(name)
    }

    /// The same, for whoever asks first.
    pub(super) fn take_map(&mut self, name: &str) -> Option<Map> {
        self.maps.remove(name)
    }

    /// A loaded program.
    pub(super) fn get(&self, name: &str) -> Option<&OwnedFd> {
        self.programs.iter().find(|(of, _)| *of == name).map(|(_, program)| program)
    }

    /// Puts a program at offsets of an executable, for one process only; closing what this gives takes it away.
    pub(super) fn attach(&self, name: &str, exe: &Path, pid: u32, offsets: &[u64]) -> io::Result<OwnedFd> {
        let program = self.get(name).ok_or_else(|| io::Error::other(format!("{name} is not loaded")))?;
        let exe = CString::new(exe.as_os_str().as_bytes())?;
        syscall::link_uprobes(program.as_fd(), &exe, pid, offsets)
    }

    /// What forwards the programs' own diagnostics.
    pub(super) fn logger(&self) -> Option<EbpfLogger<&'static dyn Log>> {
        let (_, program) = self.programs.first()?;
        let info = syscall::program_info(program.as_fd()).ok()?;
        EbpfLogger::init_from_id(info.id).ok()
    }
}

/// Makes an object's maps, and puts them into its instructions.
fn make_maps(object: &mut Object, settings: &Settings<'_>) -> Result<HashMap<String, Map>, EbpfError> {
    let parsed = std::mem::take(&mut object.maps);
    let mut made = Vec::with_capacity(parsed.len());
    for (name, map) in &parsed {
        let entries = settings.entries.iter().find(|(of, _)| of == name).map(|(_, entries)| *entries);
        made.push((name, map, make_map(name, map, entries)?));
    }
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let places = made.iter().map(|(name, map, data)| (name.as_str(), data.fd().as_fd().as_raw_fd(), *map));
    object.relocate_maps(places, &sections)?;
    object.relocate_calls(&sections)?;
    Ok(made.into_iter().map(|(name, map, data)| (name.clone(), of_kind(map.map_type(), data))).collect())
}

/// Makes a map, with what lies in it from the start.
fn make_map(name: &str, map: &aya_obj::Map, entries: Option<u32>) -> Result<MapData, MapError> {
    let mut map = map.clone();
    if let Some(entries) = entries {
        map.set_max_entries(entries);
    }
    let (value, is_constant) = (map.data().to_vec(), map.section_kind() == EbpfSectionKind::Rodata);
    let made = MapData::create(map, name, None)?;
    let failed = |call, io_error| MapError::SyscallError(SyscallError { call, io_error });
    if !value.is_empty() {
        let set = syscall::set_first(made.fd().as_fd(), &value);
        set.map_err(|error| failed("bpf_map_update_elem", error))?;
    }
    if is_constant {
        syscall::freeze(made.fd().as_fd()).map_err(|error| failed("bpf_map_freeze", error))?;
    }
    Ok(made)
}

/// A map as aya's types for its kind take it.
fn of_kind(kind: u32, data: MapData) -> Map {
    match kind {
        syscall::BPF_MAP_TYPE_HASH => Map::HashMap(data),
        syscall::BPF_MAP_TYPE_ARRAY => Map::Array(data),
        syscall::BPF_MAP_TYPE_RINGBUF => Map::RingBuf(data),
        _ => Map::Unsupported(data),
    }
}

/// Loads a program. One that is refused is tried once more, for what the verifier says of it: writing that makes a load
/// much slower.
fn load(object: &Object, name: &str) -> Result<OwnedFd, ProgramError> {
    let missing = || ProgramError::InvalidName { name: name.to_owned() };
    let program = object.programs.get(name).ok_or_else(missing)?;
    let function = object.functions.get(&program.function_key()).ok_or_else(missing)?;
    let load =
        |log: &mut [u8]| syscall::load_for_multi_uprobes(name, &program.license, &function.instructions, log);
    load(&mut []).or_else(|io_error| {
        let mut log = vec![0; LOG_BYTES];
        // The first error counts: the second may be that the log has no room for all.
        load(&mut log).map_err(|_| {
            let text = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
            ProgramError::LoadError { io_error, verifier_log: VerifierLog::new(text.into_owned()) }
        })
    })
}

/// Whether the kernel has such links, and they see every thread of a process: the first kernels that had them saw none
/// but the main thread. Tried once, on the agent itself.
pub(super) fn works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| sees_all_threads().unwrap_or(false))
}

fn sees_all_threads() -> io::Result<bool> {
    let word = syscall::mappable_word()?;
    let counted = MappedWords::new(word.as_fd(), 1, Access::Read)?;
    let program = syscall::load_for_multi_uprobes("hits", c"GPL", &count_in(&word), &mut [])?;
    let offsets = [file_offset(tried)?];
    let link = syscall::link_uprobes(program.as_fd(), c"/proc/self/exe", std::process::id(), &offsets)?;
    // Never the main thread.
    let caller = thread::spawn(|| tried());
    let seen = caller.join().is_ok() && counted.get(0) == 1;
    // The kernel takes its time for that, and nobody needs to wait.
    thread::spawn(move || drop(link));
    Ok(seen)
}

/// What is probed to try it.
#[unsafe(naked)]
extern "C" fn tried() {
    naked_asm!("push rbp", "pop rbp", "ret")
}

/// Instructions that add one to the first word of an array.
fn count_in(array: &OwnedFd) -> Vec<bpf_insn> {
    let mut code = vec![
        // r1: where the value of this map is; it takes two.
        instruction(0x18, 1, 2, array.as_raw_fd()),
        instruction(0, 0, 0, 0),
        instruction(0xb7, 2, 0, 1),
        // Atomically *r1 += r2.
        instruction(0xdb, 1, 2, 0),
    ];
    code.extend(nothing());
    code
}

/// `r0 = 0; exit`.
pub(super) fn nothing() -> [bpf_insn; 2] {
    [instruction(0xb7, 0, 0, 0), instruction(0x95, 0, 0, 0)]
}

/// An instruction: its code, registers, and number.
fn instruction(code: u8, to: u8, from: u8, number: i32) -> bpf_insn {
    bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(to, from),
        off: 0,
        imm: number,
    }
}
