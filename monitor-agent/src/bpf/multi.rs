//! Multi-uprobe links (Linux 6.6): all probes of a program in a process hang on one descriptor. Where a perf event's end
//! waits for that of every other on the machine, these are taken away side by side.
//!
//! aya can't ask for them: it makes the maps, and its parser gives the instructions.

use std::{
    arch::naked_asm,
    collections::HashSet,
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
    Ebpf, EbpfError,
    maps::{Map, MapData},
    programs::ProgramError,
};
use aya_obj::{Object, VerifierLog, generated::bpf_insn};

use super::{
    mapped::{Access, MappedWords},
    own_code::file_offset,
    syscall,
};

/// Room for what the verifier says of a program that it refuses.
const LOG_BYTES: usize = 1 << 20;

/// Programs that are loaded for such links.
pub(super) struct MultiPrograms {
    programs: Vec<(&'static str, OwnedFd)>,
}

impl MultiPrograms {
    /// Loads these programs of an object whose maps are made.
    pub(super) fn load(object: &[u8], made: &Ebpf, names: &[&'static str]) -> Result<Self, EbpfError> {
        let object = relocated(object, made)?;
        let load = |name: &&'static str| Ok((*name, load(&object, name)?));
        Ok(Self { programs: names.iter().map(load).collect::<Result<_, ProgramError>>()? })
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
}

/// The object, with the maps that aya has made of it in the places of its own.
fn relocated(object: &[u8], made: &Ebpf) -> Result<Object, EbpfError> {
    let mut object = Object::parse(object)?;
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let maps = std::mem::take(&mut object.maps);
    let made = made
        .maps()
        .filter_map(|(name, map)| Some((name, data(map)?.fd().as_fd().as_raw_fd(), maps.get(name)?)));
    object.relocate_maps(made, &sections)?;
    object.relocate_calls(&sections)?;
    Ok(object)
}

/// A map of one of the kinds that the programs have.
fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data) | Map::HashMap(data) | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

fn load(object: &Object, name: &str) -> Result<OwnedFd, ProgramError> {
    let missing = || ProgramError::InvalidName { name: name.to_owned() };
    let program = object.programs.get(name).ok_or_else(missing)?;
    let function = object.functions.get(&program.function_key()).ok_or_else(missing)?;
    let load =
        |log: &mut [u8]| syscall::load_for_multi_uprobes(name, &program.license, &function.instructions, log);
    load(&mut []).or_else(|_| {
        let mut log = vec![0; LOG_BYTES];
        load(&mut log).map_err(|io_error| {
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
