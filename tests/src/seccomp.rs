//! Seccomp filters for the commands that tests start.

use std::{io, os::unix::process::CommandExt as _, process::Command};

use anyhow::Result;

/// Offsets in struct `seccomp_data` (`include/uapi/linux/seccomp.h`) on a little-endian machine.
const CALL: u32 = 0;
const FIRST_ARGUMENT: u32 = 16;

/// Puts a command under a filter that answers a system call with an action (`SECCOMP_RET_…`) and allows everything
/// else. If `first_argument` is given, only calls with it are affected.
pub fn on_call(command: &mut Command, call: u32, first_argument: Option<u32>, action: u32) -> Result<()> {
    let step = |code: u32, skip: u8, k: u32| -> Result<libc::sock_filter> {
        Ok(libc::sock_filter { code: u16::try_from(code)?, jt: 0, jf: skip, k })
    };
    let load = |at| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, at);
    let unless_equal = |k, skip| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, skip, k);
    let end = |k| step(libc::BPF_RET | libc::BPF_K, 0, k);
    let (act, allow) = (end(action)?, end(libc::SECCOMP_RET_ALLOW)?);
    let mut filter = match first_argument {
        None => vec![load(CALL)?, unless_equal(call, 1)?, act, allow],
        Some(argument) => vec![
            load(CALL)?,
            unless_equal(call, 3)?,
            load(FIRST_ARGUMENT)?,
            unless_equal(argument, 1)?,
            act,
            allow,
        ],
    };
    let len = u16::try_from(filter.len())?;
    let install = move || {
        let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
        // SAFETY: both calls take numbers and a pointer to `program`, which outlives them, as does the filter it points
        // to.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
        };
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec the closure makes two system calls and nothing else.
    unsafe { command.pre_exec(install) };
    Ok(())
}
