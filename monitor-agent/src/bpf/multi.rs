//! Multi-uprobe links (Linux 6.6): one descriptor for all probes of a program in a process. Such links are removed in
//! parallel, while closing a perf event waits for every other one on the machine.

use std::{
    arch::naked_asm,
    ffi::c_void,
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{Mutex, PoisonError},
    thread,
};

use aya_obj::generated::bpf_insn;

use super::{
    mapped::{Access, MappedWords},
    own_code::file_offset,
    syscall::{self, AttachType, Probe},
};

/// Whether the kernel has multi-uprobe links that see every thread of a process: the first kernels with such links
/// saw only the main thread. Tried once, on the agent itself, by one thread at a time. An error means a lack of
/// descriptors, threads or memory, and says nothing about the kernel.
pub(super) fn works() -> io::Result<bool> {
    static WORKS: Mutex<Option<bool>> = Mutex::new(None);
    let mut known = WORKS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(works) = *known {
        return Ok(works);
    }
    let works = match sees_all_threads() {
        Err(error) if is_want(&error) => return Err(error),
        tried => tried.unwrap_or(false),
    };
    *known = Some(works);
    Ok(works)
}

/// Whether an operation failed for want of descriptors, threads or memory.
pub(super) fn is_want(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::ENOMEM))
}

fn sees_all_threads() -> io::Result<bool> {
    let probe = CountedProbe::at(tried as *const c_void, false)?;
    // The probe must be hit on a thread other than the main one.
    // SAFETY: calls without preconditions.
    let is_main = unsafe { libc::gettid() == libc::getpid() };
    if is_main {
        let caller = thread::Builder::new().spawn(|| tried())?;
        return Ok(caller.join().is_ok() && probe.hits() == 1);
    }
    tried();
    Ok(probe.hits() == 1)
}

/// A probe on one of the agent's own functions that counts its hits.
pub(super) struct CountedProbe {
    counted: MappedWords,
    link: Option<OwnedFd>,
}

impl CountedProbe {
    /// Attaches to the function's entry, or to its return.
    pub(super) fn at(function: *const c_void, is_return: bool) -> io::Result<Self> {
        let word = syscall::mappable_word()?;
        let counted = MappedWords::new(word.as_fd(), 1, Access::Read)?;
        let code = count_in(&word);
        let program = syscall::load_program("hits", c"GPL", &code, AttachType::MultiUprobes, &mut [])?;
        let pid = std::process::id();
        let probe = Probe { program: program.as_fd(), exe: c"/proc/self/exe", pid, is_return };
        let link = syscall::link_uprobes(&probe, &[file_offset(function)?])?;
        Ok(Self { counted, link: Some(link) })
    }

    /// Returns the number of hits.
    pub(super) fn hits(&self) -> u64 {
        self.counted.get(0)
    }
}

impl Drop for CountedProbe {
    fn drop(&mut self) {
        let link = self.link.take();
        // The kernel takes a while for this, and nothing needs to wait.
        let _ = thread::Builder::new().spawn(move || drop(link));
    }
}

/// The probed function.
#[unsafe(naked)]
extern "C" fn tried() {
    naked_asm!("push rbp", "pop rbp", "ret")
}

/// Returns instructions that add one to the first word of an array.
fn count_in(array: &OwnedFd) -> Vec<bpf_insn> {
    let mut code = vec![
        // r1: address of the map's value, in two instructions.
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

/// Encodes an instruction: opcode, registers and immediate.
pub(super) fn instruction(code: u8, to: u8, from: u8, number: i32) -> bpf_insn {
    bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(to, from),
        off: 0,
        imm: number,
    }
}
