//! Errors between the agent and the kernel.

use std::io;

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use thiserror::Error;

use super::{features::version, kernel_release};
use crate::{
    descriptors::{advice_on_system, is_out_of_descriptors},
    target::ReturnHazard,
};

/// Why programs could not be loaded or attached.
#[derive(Debug, Error)]
pub enum BpfError {
    /// A capability is missing.
    #[error(
        "the kernel refuses to {action}: permission denied (missing here: {missing}); \
         run as root, or give the agent CAP_SYS_ADMIN, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
    )]
    Permission {
        /// What was tried.
        action: &'static str,
        /// Capabilities that this process lacks, or "none".
        missing: String,
    },
    /// The kernel has no memory for a map.
    #[error(
        "the kernel has no memory to {action} ({words}): choose a lower --max-in-flight, --max-label-sets or --ring-bytes",
        words = in_words(source)
    )]
    Memory {
        /// What was tried.
        action: &'static str,
        /// The kernel's error.
        source: anyhow::Error,
    },
    /// The agent has reached its limit of file descriptors.
    #[error("can't {action}: {source}{}", advice_on_system(source))]
    Descriptors {
        /// What was tried.
        action: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// The attempt could end the agent itself.
    #[error("can't {action}, on the agent itself: {why}")]
    Hazard {
        /// What was not tried.
        action: &'static str,
        /// Why it could.
        why: ReturnHazard,
    },
    /// The kernel does not support it.
    #[error(
        "this kernel can't {action}: {words}; Linux 5.15 or later with uprobes and BPF is needed",
        words = in_words(source)
    )]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// The kernel's error.
        source: anyhow::Error,
    },
}

impl BpfError {
    pub(super) fn from_ebpf(action: &'static str, error: EbpfError) -> Self {
        let code = match &error {
            EbpfError::MapError(error) => map_code(error),
            EbpfError::ProgramError(error) => program_code(error),
            _ => None,
        };
        Self::new(action, code, error.into())
    }

    pub(super) fn from_map(action: &'static str, error: MapError) -> Self {
        Self::new(action, map_code(&error), error.into())
    }

    pub(super) fn from_io(action: &'static str, error: io::Error) -> Self {
        Self::new(action, error.raw_os_error(), error.into())
    }

    pub(super) fn missing(action: &'static str, what: &str) -> Self {
        Self::Kernel { action, source: anyhow::anyhow!("the eBPF object has no {what}") }
    }

    fn new(action: &'static str, code: Option<i32>, source: anyhow::Error) -> Self {
        match code {
            Some(libc::EPERM | libc::EACCES) => (),
            // E2BIG for a map: larger than its kind allows.
            Some(libc::ENOMEM | libc::E2BIG) => return Self::Memory { action, source },
            Some(code @ (libc::EMFILE | libc::ENFILE)) => {
                return Self::Descriptors { action, source: io::Error::from_raw_os_error(code) };
            }
            _ => return Self::Kernel { action, source },
        }
        let missing = crate::target::missing_capabilities().join(", ");
        let missing = if missing.is_empty() { with_all_capabilities(&kernel_release()) } else { missing };
        Self::Permission { action, missing }
    }
}

/// Returns why a kernel of this release may refuse a process that lacks no capability.
fn with_all_capabilities(release: &str) -> String {
    let usual = "none: is BPF locked down, or filtered by seccomp?";
    // In these releases maps and programs beyond the limit fail with EPERM (`bpf_charge_memlock` in
    // `kernel/bpf/syscall.c`, Linux 5.10).
    match version(release) {
        Some(version) if version < COUNTED_BY_CGROUP => format!(
            "{usual} Or is RLIMIT_MEMLOCK too low, which limits maps before Linux 5.11? This is {release}, and 5.15 or \
             later is needed"
        ),
        _ => usual.to_owned(),
    }
}

/// The first release that charges maps to the memory cgroup instead of `RLIMIT_MEMLOCK`.
const COUNTED_BY_CGROUP: (u32, u32) = (5, 11);

/// Joins an error and its causes. Some errors repeat their causes, or consist of nothing but their cause.
fn in_words(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| {
        if text.contains(&cause) {
            return text;
        }
        match cause.strip_prefix(text.rsplit(": ").next().unwrap_or_default()) {
            Some(rest) => text + rest,
            None => format!("{text}: {cause}"),
        }
    })
}

fn map_code(error: &MapError) -> Option<i32> {
    match error {
        MapError::CreateError { io_error, .. } => io_error.raw_os_error(),
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

fn program_code(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let code = io_error.raw_os_error();
            // A refusal by the verifier is EACCES too, and always has a log. A program that it accepts has a log as
            // well, and may still fail for want of a descriptor.
            let is_told = verifier_log.to_string().trim().is_empty() || is_out_of_descriptors(io_error);
            code.filter(|_| is_told)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::{in_words, with_all_capabilities};

    #[test]
    fn what_limits_maps_on_old_kernels_is_named_there_alone() {
        for old in ["5.10.0-21-amd64", "5.4.277", "4.19.0", "3.10.0-1160.el7.x86_64", "5.10-rc1"] {
            let text = with_all_capabilities(old);
            assert!(text.contains("RLIMIT_MEMLOCK") && text.contains("seccomp"), "{text}");
            assert!(text.contains(&format!("This is {old}, and 5.15 or later is needed")), "{text}");
        }
        for new in ["5.11.0", "5.15.189", "6.18.44", "10.0", "", "unknown"] {
            let text = with_all_capabilities(new);
            assert_eq!(text, "none: is BPF locked down, or filtered by seccomp?", "{new}");
        }
    }

    #[test]
    fn every_cause_is_said_once() {
        let error = anyhow!("no such type").context("failed to make `A`: no such type").context("map error");
        assert_eq!(in_words(&error), "map error: failed to make `A`: no such type");
        let error = anyhow!("failed to make `A`: no such type").context("map error: failed to make `A`");
        assert_eq!(in_words(&error), "map error: failed to make `A`: no such type");
    }
}
