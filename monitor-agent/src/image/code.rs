//! Where in a function to put a probe.
//!
//! A probe must see the arguments where the caller left them, run once for each call, and be cheap. On x86-64 the
//! kernel emulates a few instructions and single-steps all others, which costs an additional exception: in a virtual
//! machine, 10 instead of 0.6 microseconds. A Go function starts with a stack check. When the check has grown the stack
//! or yielded to another goroutine, the function is entered again from its first instruction. So the first instruction
//! may run twice for one call. After the check, Go 1.21 and later push `rbp`: emulated, once for each call, all
//! arguments in place.

mod returns;
#[cfg(test)]
mod tests;

use std::fmt;

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Formatter, Instruction, IntelFormatter, Mnemonic, OpKind,
    Register,
};
use thiserror::Error;

pub use returns::{Parts, go_return_sites, return_sites};

use self::returns::MAX_RETURNS;

/// The most instructions on the stack check's way out: fewer than ten stores of arguments, a call, as many loads, a
/// jump.
const MAX_WAY_OUT: usize = 64;
/// The longest check has five instructions.
const MAX_PROLOGUE: usize = 16;
/// Decoding this much takes a few milliseconds.
pub(super) const MAX_CODE: usize = 256 << 10;

/// What a probe costs, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CostClass {
    /// The kernel emulates the instruction: about half a microsecond for each hit.
    Emulated,
    /// The kernel replaces the return address with an address of its own, and emulates the jump to the right one.
    Returned,
    /// The kernel single-steps the instruction: several microseconds, ten or more in a virtual machine.
    SingleStepped,
}

impl fmt::Display for CostClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Emulated => "emulated",
            Self::SingleStepped => "single-stepped",
            Self::Returned => "return-probe",
        })
    }
}

/// What a hit at a site means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteKind {
    /// The instruction after the stack check: one hit for each call.
    AfterStackCheck,
    /// The branch of the stack check, a JBE. A hit with the carry or the zero flag set must be skipped: the branch will
    /// be taken, and the function will be entered again.
    StackCheckBranch,
    /// The function's first instruction, or one of a native function before which nothing branches: one hit for each
    /// call, unless a Go function's stack check runs the first instruction again.
    Entry,
    /// An instruction that returns: each call hits one of the function's returns, once.
    Return,
    /// The branch by which the function tests what its callee returned: one hit for each return of the callee.
    Tested,
    /// The instruction after that branch that only an error reaches: one hit for each error.
    Failed,
}

impl SiteKind {
    /// Whether a hit there is the start of a call of the function.
    #[must_use]
    pub fn is_at_entry(self) -> bool {
        matches!(self, Self::AfterStackCheck | Self::StackCheckBranch | Self::Entry)
    }
}

/// A place for a probe in a function.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SiteChoice {
    /// The distance from the function's first instruction, in bytes.
    pub offset: u64,
    /// The instruction there, in Intel syntax: `push rbp`.
    pub instruction: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What a probe there costs.
    pub cost: CostClass,
    /// What a hit there means.
    pub kind: SiteKind,
    /// Why this site was chosen.
    pub why: String,
}

/// Why a function has no site for a probe.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CodeError {
    /// The function has no instructions.
    #[error("the function is empty")]
    Empty,
    /// The function is larger than any that is worth probing.
    #[error("the function has {len} bytes, too many to analyse")]
    TooLong {
        /// Its size in bytes.
        len: usize,
    },
    /// Not all of its bytes are instructions.
    #[error("the bytes at +{offset:#x} are no instruction")]
    Undecodable {
        /// The distance from the function's first instruction, in bytes.
        offset: u64,
    },
    /// The callee is not called exactly once, or the function does not test its result right after the call.
    #[error("the function does not test what is given back to it right behind the only call")]
    NotTested,
    /// The argument that serves as the key cannot be proven to stay in one place.
    #[error("the function's first argument is not surely kept in its place on the stack")]
    NotKept,
    /// No instruction returns.
    #[error("the function does not return")]
    NoReturn,
    /// It has more returns than are worth a probe each.
    #[error("the function has more than {MAX_RETURNS} instructions that return")]
    TooManyReturns,
    /// It continues elsewhere, in another function or in a part of its own, which returns in its place.
    #[error("the instruction at +{from:#x} jumps out of the function, to what returns in its place")]
    LeftByJump {
        /// The jump.
        from: u64,
    },
    /// It may continue in another function, which then returns in its place.
    #[error(
        "where the instruction at +{from:#x} jumps to can't be told from the code: to another function, it may be, which \
         returns in place of this one"
    )]
    MayBeLeftByJump {
        /// The jump.
        from: u64,
    },
    /// It may continue in a part that lies elsewhere, which then returns in its place.
    #[error("its part {part} may return by itself, or enter it anew")]
    PartMayReturn {
        /// The part's symbol.
        part: String,
    },
    /// It is unknown whether it has such parts: the symbols of parts are local, and the executable has none.
    #[error("the executable has no local symbols, so whether it has parts can't be told")]
    PartsUnknown,
    /// It is unknown whether it has such parts: they may be named after any of its names.
    #[error("the function has more names than are looked at, so whether it has parts can't be told")]
    TooManyNames,
    /// It continues past its end.
    #[error(
        "the function's last instruction, at +{from:#x}, goes on behind its end, where another may return in place of this one"
    )]
    LeftAtEnd {
        /// The instruction.
        from: u64,
    },
    /// The instructions do not run in the sequence in which they were decoded.
    #[error(
        "the instruction at +{from:#x} jumps to +{to:#x}, where none begins as they follow each other: there may be data among \
         them, and what looks like a return may be none"
    )]
    OutOfStep {
        /// The jump or call.
        from: u64,
        /// Its target.
        to: u64,
    },
    /// A part of the function is called, and returns to the rest of it.
    #[error(
        "the instruction at +{from:#x} calls a part of the function, at +{to:#x}: which of the returns are the function's own \
         can't be told"
    )]
    CalledInside {
        /// The call.
        from: u64,
        /// Its target.
        to: u64,
    },
    /// What looks like a return may be data.
    #[error("nothing leads to what looks like a return at +{offset:#x}: it may be data")]
    Unreached {
        /// The distance from the function's first instruction, in bytes.
        offset: u64,
    },
    /// The kernel refuses to probe an instruction with this prefix: `is_prefix_bad` in arch/x86/kernel/uprobes.c.
    #[error("the instruction at +{offset:#x} has the prefix `lock`, and the kernel probes none that has")]
    Locked {
        /// The distance from the function's first instruction, in bytes.
        offset: u64,
    },
    /// The same for a segment prefix, except `fs` and `gs`.
    #[error(
        "the instruction at +{offset:#x} has the prefix of a segment (`cs`, `ds`, `es` or `ss`), and the kernel probes none \
         that has"
    )]
    Segmented {
        /// The distance from the function's first instruction, in bytes.
        offset: u64,
    },
    /// An instruction jumps back to the site or before it, so that one call could hit it twice.
    #[error(
        "the instruction at +{from:#x} jumps to +{to:#x}: a probe at +{site:#x} could run twice for one call"
    )]
    Reentered {
        /// The site that was considered.
        site: u64,
        /// The jump.
        from: u64,
        /// Its target.
        to: u64,
    },
}

/// Chooses the site for a probe that reads the arguments of a Go function, which starts at address `entry` and consists
/// of `code`.
///
/// At the site, all argument registers of Go's calling convention, the stack pointer and the goroutine (R14) are as the
/// caller left them.
pub fn go_entry_site(code: &[u8], entry: u64) -> Result<SiteChoice, CodeError> {
    let body = Body::decode(code, entry)?;
    let prologue = Prologue::read(&body);
    let (index, kind, why) = prologue.choose(&body)?;
    body.check_once(index, &prologue.ways_back)?;
    body.describe(index, kind, why, code)
}

/// Returns the site of tools that do not analyse the code: the function's first instruction. It may run twice for one
/// call, and the kernel single-steps it in most functions.
pub fn first_instruction(code: &[u8], entry: u64) -> Result<SiteChoice, CodeError> {
    Body::decode(code, entry)?.describe(0, SiteKind::Entry, "the first instruction, whatever it is", code)
}

/// Whether a Go function only continues elsewhere: it calls nothing, has no return, and jumps out of itself or to a
/// computed address. The compiler makes such functions for methods that a struct has from an embedded field. No
/// function that somebody wrote looks like this.
pub(super) fn goes_on_elsewhere(code: &[u8], entry: u64) -> bool {
    let Ok(body) = Body::decode(code, entry) else { return false };
    let end = entry.saturating_add(code.len() as u64);
    let leaves = |i: &Instruction| match i.flow_control() {
        FlowControl::UnconditionalBranch => !(entry..end).contains(&i.near_branch_target()),
        FlowControl::IndirectBranch => true,
        _ => false,
    };
    let comes_back = |i: &Instruction| {
        matches!(i.flow_control(), FlowControl::Return | FlowControl::Call | FlowControl::IndirectCall)
    };
    body.instructions.iter().any(leaves) && !body.instructions.iter().any(comes_back)
}

/// The instructions of a function.
pub(super) struct Body {
    entry: u64,
    pub(super) instructions: Vec<Instruction>,
}

impl Body {
    pub(super) fn decode(code: &[u8], entry: u64) -> Result<Self, CodeError> {
        if code.is_empty() {
            return Err(CodeError::Empty);
        }
        if code.len() > MAX_CODE {
            return Err(CodeError::TooLong { len: code.len() });
        }
        let decoder = Decoder::with_ip(64, code, entry, DecoderOptions::NONE);
        let instructions: Vec<_> = decoder.into_iter().collect();
        match instructions.iter().find(|i| i.is_invalid()) {
            Some(bad) => Err(CodeError::Undecodable { offset: bad.ip().wrapping_sub(entry) }),
            None => Ok(Self { entry, instructions }),
        }
    }

    /// The index of the instruction at an address.
    pub(super) fn index_of(&self, address: u64) -> Option<usize> {
        self.instructions.binary_search_by_key(&address, Instruction::ip).ok()
    }

    fn offset(&self, instruction: &Instruction) -> u64 {
        instruction.ip().wrapping_sub(self.entry)
    }

    /// Whether a branch of the prologue leads to the code that asks for more stack: spills, one call, reloads, and a
    /// jump back to the entry. Returns the index of that jump.
    pub(super) fn way_out(&self, target: u64) -> Option<usize> {
        let start = self.index_of(target)?;
        let mut calls = 0;
        for (index, i) in self.instructions.iter().enumerate().skip(start).take(MAX_WAY_OUT) {
            match i.flow_control() {
                FlowControl::Next => {}
                FlowControl::Call if calls == 0 => calls += 1,
                FlowControl::UnconditionalBranch if calls == 1 && i.near_branch_target() == self.entry => {
                    return Some(index);
                }
                _ => return None,
            }
        }
        None
    }

    /// Proves that one call hits the site once: nothing jumps to the site, or to an instruction before it from which it
    /// is reached again. The `expected` jumps are allowed: they are the stack check's own way back to the entry.
    pub(super) fn check_once(&self, index: usize, expected: &[usize]) -> Result<(), CodeError> {
        let site = self.instructions.get(index).map_or(0, |i| self.offset(i));
        for (i, instruction) in self.instructions.iter().enumerate() {
            if !jumps_near(instruction) {
                continue;
            }
            let to = instruction.near_branch_target().wrapping_sub(self.entry);
            let way_back = to == 0 && expected.contains(&i);
            let recursion = to == 0 && instruction.flow_control() == FlowControl::Call;
            if to <= site && !way_back && !recursion {
                return Err(CodeError::Reentered { site, from: self.offset(instruction), to });
            }
        }
        Ok(())
    }

    pub(super) fn describe(
        &self,
        index: usize,
        kind: SiteKind,
        why: &str,
        code: &[u8],
    ) -> Result<SiteChoice, CodeError> {
        let instruction = self.instructions.get(index).ok_or(CodeError::Empty)?;
        let offset = self.offset(instruction);
        if instruction.has_lock_prefix() {
            return Err(CodeError::Locked { offset });
        }
        let from = usize::try_from(offset).ok();
        let bytes = from.and_then(|from| code.get(from..from.checked_add(instruction.len())?));
        let bytes = bytes.ok_or(CodeError::Undecodable { offset })?;
        if names_segment(bytes) {
            return Err(CodeError::Segmented { offset });
        }
        Ok(SiteChoice {
            offset,
            instruction: text(instruction),
            bytes: bytes.to_vec(),
            cost: cost(instruction),
            kind,
            why: why.to_owned(),
        })
    }
}

/// The straight path from the entry, as long as it leaves all arguments in place.
struct Prologue {
    /// The branches of the stack check.
    checks: Vec<usize>,
    /// The jumps back to the entry from the stack check's way out.
    ways_back: Vec<usize>,
    /// The first push of the frame pointer, if the path leads there.
    push: Option<usize>,
}

impl Prologue {
    fn read(body: &Body) -> Self {
        let mut prologue = Self { checks: Vec::new(), ways_back: Vec::new(), push: None };
        let mut compared = false;
        for (index, i) in body.instructions.iter().enumerate().take(MAX_PROLOGUE) {
            if i.code() == Code::Push_r64 && i.op0_register() == Register::RBP {
                prologue.push = Some(index);
                break;
            }
            if i.flow_control() == FlowControl::ConditionalBranch {
                let Some(way_back) = body.way_out(i.near_branch_target()) else {
                    break;
                };
                prologue.checks.push(index);
                prologue.ways_back.push(way_back);
            } else if !keeps_arguments(i) {
                break;
            }
            compared |= compares_stack_guard(i);
        }
        if !prologue.checks.is_empty() && !compared {
            // This only looks like a stack check.
            return Self { checks: Vec::new(), ways_back: Vec::new(), push: None };
        }
        prologue
    }

    /// Returns the cheapest correct site.
    fn choose(&self, body: &Body) -> Result<(usize, SiteKind, &'static str), CodeError> {
        use SiteKind::{AfterStackCheck, Entry, StackCheckBranch};
        if let Some(push) = self.push {
            return Ok(if self.checks.is_empty() {
                (push, Entry, "the frame push of a function without stack check")
            } else {
                (push, AfterStackCheck, "the frame push behind the stack check")
            });
        }
        match self.checks.as_slice() {
            [] => Ok((0, Entry, "the first instruction: there is no stack check and no frame push to use")),
            [only] if body.instructions.get(*only).is_some_and(|i| i.mnemonic() == Mnemonic::Jbe) => {
                Ok((*only, StackCheckBranch, "the branch of the stack check: no frame push follows it"))
            }
            [.., last] => {
                let behind = last + 1;
                if behind >= body.instructions.len() {
                    return Err(CodeError::Empty);
                }
                Ok((
                    behind,
                    AfterStackCheck,
                    "the instruction behind the stack check: no frame push follows, and no branch decides alone",
                ))
            }
        }
    }
}

/// Whether an instruction can belong to a stack check: it continues with the next one and writes only flags and R12 or
/// R13, which Go's calling convention leaves free at the entry (cmd/compile/abi-internal.md @ go1.26).
fn keeps_arguments(i: &Instruction) -> bool {
    match i.mnemonic() {
        Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Nop | Mnemonic::Endbr64 => true,
        Mnemonic::Mov | Mnemonic::Lea | Mnemonic::Sub | Mnemonic::Add => {
            i.op0_kind() == OpKind::Register
                && matches!(i.op0_register().full_register(), Register::R12 | Register::R13)
        }
        _ => false,
    }
}

/// Whether an instruction compares with a stack guard of the goroutine: `stackguard0` or `stackguard1` in `g`
/// (runtime/runtime2.go @ go1.17 to go1.27).
fn compares_stack_guard(i: &Instruction) -> bool {
    i.mnemonic() == Mnemonic::Cmp
        && i.memory_base() == Register::R14
        && i.memory_index() == Register::None
        && matches!(i.memory_displacement64(), 0x10 | 0x18)
}

/// Whether an instruction has a direct target.
pub(super) fn jumps_near(i: &Instruction) -> bool {
    matches!(i.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64)
}

/// Whether an instruction has a segment prefix that the kernel refuses. Checks the bytes, since the disassembler
/// reports at most one segment prefix.
fn names_segment(bytes: &[u8]) -> bool {
    let is_prefix = |byte: &&u8| {
        matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3)
    };
    let mut prefixes = bytes.iter().take_while(is_prefix);
    prefixes.any(|byte| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e))
}

/// Returns what the kernel does with a probed instruction: `branch_setup_xol_ops` and `push_setup_xol_ops` in
/// arch/x86/kernel/uprobes.c @ v5.15. (Later kernels emulate more, including nops of several bytes. Sites are the same
/// on all kernels, and a hit on such a nop costs less there than reported here.)
pub(super) fn cost(i: &Instruction) -> CostClass {
    let emulated = match i.code() {
        Code::Push_r64
        | Code::Nopd
        | Code::Nopq
        | Code::Jmp_rel8_64
        | Code::Jmp_rel32_64
        | Code::Call_rel32_64 => true,
        // All conditional jumps jCC, but not jrcxz and loop.
        _ => i.is_jcc_short_or_near(),
    };
    if emulated { CostClass::Emulated } else { CostClass::SingleStepped }
}

fn text(instruction: &Instruction) -> String {
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    options.set_space_after_operand_separator(true);
    let mut text = String::new();
    formatter.format(instruction, &mut text);
    text
}
