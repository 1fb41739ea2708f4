//! Where in a function to put a probe.
//!
//! A probe must see the arguments where the caller left them, run once for each call, and be cheap. On
//! x86-64 the kernel emulates a few instructions and single-steps all others, which costs an exception
//! more: in a virtual machine, 0.6 against 10 microseconds. A Go function starts with a stack check, and
//! is entered again from its first instruction when the check has made the stack larger or has given way
//! to another goroutine, so the first instruction may run twice for one call. Behind the check Go 1.21
//! and later push `rbp`: emulated, once for each call, all arguments in place.

use std::{collections::BTreeSet, fmt};

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Formatter, Instruction, IntelFormatter, Mnemonic, OpKind,
    Register,
};
use thiserror::Error;

/// A check's way out: fewer than ten stores of arguments, a call, as many loads, a jump.
const MAX_WAY_OUT: usize = 64;
/// The longest check has five instructions.
const MAX_PROLOGUE: usize = 16;
/// Functions have a few.
const MAX_RETURNS: usize = 32;
/// Decoding this much takes a few milliseconds.
pub(super) const MAX_CODE: usize = 256 << 10;

/// What a probe costs, the dearer the later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CostClass {
    /// The kernel emulates the instruction: about half a microsecond for each hit.
    Emulated,
    /// The kernel puts an address of its own in place of the return address, and emulates the jump to the right one.
    Returned,
    /// The kernel single-steps the instruction: several microseconds, ten and more in a virtual machine.
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
    /// The instruction behind the stack check: one hit for each call.
    AfterStackCheck,
    /// The branch of the stack check, a JBE. A hit with the carry or the zero flag set must be skipped:
    /// the branch will be taken, and the function will be entered again.
    StackCheckBranch,
    /// The first instruction of a function without stack check, or its frame push: one hit for each call.
    Entry,
    /// An instruction with which the function returns: one hit for each call, at one of them.
    Return,
    /// The branch by which the function tests what a call has given it: one hit each time that this returns.
    Tested,
    /// Behind that branch, where only an error leads to: one hit for each.
    Failed,
}

impl SiteKind {
    /// Whether a hit there is the beginning of a call of the function.
    #[must_use]
    pub fn is_at_entry(self) -> bool {
        matches!(self, Self::AfterStackCheck | Self::StackCheckBranch | Self::Entry)
    }
}

/// A place for a probe in a function.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SiteChoice {
    /// Bytes from the function's first instruction.
    pub offset: u64,
    /// The instruction there, as Intel writes it: `push rbp`.
    pub instruction: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What a probe there costs.
    pub cost: CostClass,
    /// What a hit there means.
    pub kind: SiteKind,
    /// Why there.
    pub why: String,
}

/// Why no probe can be put into a function.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CodeError {
    /// There are no instructions.
    #[error("the function is empty")]
    Empty,
    /// The function is larger than any that is worth probing.
    #[error("the function has {len} bytes, too many to analyse")]
    TooLong {
        /// Its size in bytes.
        len: usize,
    },
    /// Its bytes are not all instructions.
    #[error("the bytes at +{offset:#x} are no instruction")]
    Undecodable {
        /// Bytes from the function's first instruction.
        offset: u64,
    },
    /// There is not one call of a function, or what it gives is not tested right behind it.
    #[error("the function does not test what is given back to it right behind the only call")]
    NotTested,
    /// Its first argument can't be proven to lie in one place all the time.
    #[error("the function's first argument is not surely kept in its place on the stack")]
    NotKept,
    /// No instruction returns.
    #[error("the function does not return")]
    NoReturn,
    /// More returns than are worth a probe each.
    #[error("the function has more than {MAX_RETURNS} instructions that return")]
    TooManyReturns,
    /// It goes on in another function, which returns in its place.
    #[error("the instruction at +{from:#x} jumps to another function, which returns in place of this one")]
    LeftByJump {
        /// The jump.
        from: u64,
    },
    /// It may go on in another function, which then returns in its place.
    #[error(
        "where the instruction at +{from:#x} jumps to can't be told from the code: to another function, it may be, which \
         returns in place of this one"
    )]
    MayBeLeftByJump {
        /// The jump.
        from: u64,
    },
    /// The kernel refuses a probe on it: `is_prefix_bad` in arch/x86/kernel/uprobes.c.
    #[error("the instruction at +{offset:#x} has the prefix `lock`, and the kernel probes none that has")]
    Locked {
        /// Bytes from the function's first instruction.
        offset: u64,
    },
    /// The same with a prefix that names a segment, `fs` and `gs` excepted.
    #[error(
        "the instruction at +{offset:#x} has the prefix of a segment (`cs`, `ds`, `es` or `ss`), and the kernel probes none \
         that has"
    )]
    Segmented {
        /// Bytes from the function's first instruction.
        offset: u64,
    },
    /// An instruction jumps back to the site or before it, so that one call could hit it twice.
    #[error(
        "the instruction at +{from:#x} jumps to +{to:#x}: a probe at +{site:#x} could run twice for one call"
    )]
    Reentered {
        /// The place that was considered.
        site: u64,
        /// The jump.
        from: u64,
        /// Where it goes.
        to: u64,
    },
}

/// Chooses the site for a probe that wants the arguments of a Go function, which starts at address
/// `entry` and consists of `code`.
///
/// At the site all argument registers of Go's calling convention, the stack pointer and the goroutine
/// (R14) are as the caller left them.
pub fn go_entry_site(code: &[u8], entry: u64) -> Result<SiteChoice, CodeError> {
    let body = Body::decode(code, entry)?;
    let prologue = Prologue::read(&body);
    let (index, kind, why) = prologue.choose(&body)?;
    body.check_once(index, &prologue.ways_back)?;
    body.describe(index, kind, why, code)
}

/// The site that tools take which do not look at the code: the function's first instruction. It may run twice for one
/// call, and is mostly one that the kernel single-steps.
pub fn first_instruction(code: &[u8], entry: u64) -> Result<SiteChoice, CodeError> {
    Body::decode(code, entry)?.describe(0, SiteKind::Entry, "the first instruction, whatever it is", code)
}

/// The sites at which a native function returns. At each the results are in the registers of its calling convention. A
/// panic or an exception leaves the function without one.
///
/// # Errors
/// [`CodeError::LeftByJump`] or [`CodeError::MayBeLeftByJump`] if another function may return in its place: an indirect
/// jump must be that of a `switch` by distances. A jump to an address in a table looks the same as that to a function in a
/// table of functions.
pub fn return_sites(code: &[u8], entry: u64) -> Result<Vec<SiteChoice>, CodeError> {
    returns(code, entry, jumps_by_distance)
}

/// The same for a Go function; R14 has the goroutine at each of them.
///
/// # Errors
/// As for [`return_sites`]. Go makes jumps to addresses in a table of `switch` alone.
pub fn go_return_sites(code: &[u8], entry: u64) -> Result<Vec<SiteChoice>, CodeError> {
    returns(code, entry, |before, _| before.last().is_some_and(jumps_by_go_table))
}

/// The sites at which a function returns. `stays` tells of the last of some instructions, an indirect jump, that it goes
/// on in the function, by them and by the addresses that jumps lead to.
fn returns(
    code: &[u8],
    entry: u64,
    stays: impl Fn(&[Instruction], &BTreeSet<u64>) -> bool,
) -> Result<Vec<SiteChoice>, CodeError> {
    let body = Body::decode(code, entry)?;
    let end = entry.saturating_add(code.len() as u64);
    let is_indirect = |i: &Instruction| i.flow_control() == FlowControl::IndirectBranch;
    // Most functions have no indirect jump, and need none of them.
    let asked = body.instructions.iter().any(is_indirect);
    let named = body.instructions.iter().filter(|i| asked && jumps_near(i));
    let targets: BTreeSet<u64> = named.map(Instruction::near_branch_target).collect();
    let mut returns = Vec::new();
    for (index, instruction) in body.instructions.iter().enumerate() {
        let leaves = !(entry..end).contains(&instruction.near_branch_target());
        match instruction.flow_control() {
            FlowControl::Return => returns.push(index),
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch if leaves => {
                return Err(CodeError::LeftByJump { from: body.offset(instruction) });
            }
            FlowControl::IndirectBranch => {
                let before = body.instructions.get(..=index).unwrap_or_default();
                if !stays(before, &targets) {
                    return Err(CodeError::MayBeLeftByJump { from: body.offset(instruction) });
                }
            }
            _ => {}
        }
    }
    // Before their texts are made: a large function may consist of nothing else.
    match returns.len() {
        0 => return Err(CodeError::NoReturn),
        1..=MAX_RETURNS => {}
        _ => return Err(CodeError::TooManyReturns),
    }
    let site = |index| body.describe(index, SiteKind::Return, "one of the function's returns", code);
    returns.into_iter().map(site).collect()
}

/// Whether the last of some instructions jumps by a distance from a table to the address of that table, as compilers make it
/// of a `switch` in code that may lie anywhere: `movsxd rax, dword ptr [rdx+rdi*4]; add rax, rdx; jmp rax`. Nothing jumps
/// in between.
fn jumps_by_distance(before: &[Instruction], targets: &BTreeSet<u64>) -> bool {
    let [.., load, add, jump] = before else { return false };
    let (loaded, table) = (load.op0_register(), load.memory_base());
    let is_load = load.code() == Code::Movsxd_r64_rm32
        && load.op1_kind() == OpKind::Memory
        && load.memory_index() != Register::None
        && load.memory_index_scale() == 4
        && loaded != table;
    let added = (add.op0_register(), add.op1_register());
    let is_sum = matches!(add.code(), Code::Add_r64_rm64 | Code::Add_rm64_r64)
        && add.op0_kind() == OpKind::Register
        && add.op1_kind() == OpKind::Register
        && (added == (loaded, table) || added == (table, loaded));
    let is_jump = jump.code() == Code::Jmp_rm64
        && jump.op0_kind() == OpKind::Register
        && jump.op0_register() == added.0;
    is_load && is_sum && is_jump && ![add, jump].iter().any(|i| targets.contains(&i.ip()))
}

/// Whether an instruction jumps as Go does for a `switch`, to an address in a table (`BlockAMD64JUMPTABLE` in
/// cmd/compile/internal/amd64/ssa.go @ go1.26). A call in place of a return it makes by a register.
fn jumps_by_go_table(jump: &Instruction) -> bool {
    jump.code() == Code::Jmp_rm64
        && jump.op0_kind() == OpKind::Memory
        && jump.memory_base() != Register::None
        && jump.memory_index() != Register::None
        && jump.memory_index_scale() == 8
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

    /// The number of the instruction at an address.
    pub(super) fn index_of(&self, address: u64) -> Option<usize> {
        self.instructions.binary_search_by_key(&address, Instruction::ip).ok()
    }

    fn offset(&self, instruction: &Instruction) -> u64 {
        instruction.ip().wrapping_sub(self.entry)
    }

    /// Whether a branch of the prologue leads to the part that asks for more stack: spills, one call,
    /// reloads, and a jump back to the entry. Gives the index of that jump.
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

    /// Proves that one call hits the site once: nothing jumps to it, or to something before it from which
    /// it is reached again, but the `expected` jumps, which are the stack check's own way back to the entry.
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

/// The straight path from the entry, as far as it leaves all arguments in place.
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
            // Something that only looks like a stack check.
            return Self { checks: Vec::new(), ways_back: Vec::new(), push: None };
        }
        prologue
    }

    /// The cheapest place that is right.
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

/// Whether an instruction can belong to a stack check: it continues with the next one and writes no more
/// than flags and R12 or R13, which Go's calling convention leaves free at the entry
/// (cmd/compile/abi-internal.md @ go1.26).
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

/// Whether an instruction compares with a stack guard of the goroutine: `stackguard0` or `stackguard1` in
/// `g` (runtime/runtime2.go @ go1.17 to go1.27).
fn compares_stack_guard(i: &Instruction) -> bool {
    i.mnemonic() == Mnemonic::Cmp
        && i.memory_base() == Register::R14
        && i.memory_index() == Register::None
        && matches!(i.memory_displacement64(), 0x10 | 0x18)
}

/// Whether an instruction goes to a place that it names.
pub(super) fn jumps_near(i: &Instruction) -> bool {
    matches!(i.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64)
}

/// Whether an instruction has the prefix of a segment that the kernel refuses. The disassembler tells one prefix of a segment
/// at most.
fn names_segment(bytes: &[u8]) -> bool {
    let is_prefix = |byte: &&u8| {
        matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3)
    };
    let mut prefixes = bytes.iter().take_while(is_prefix);
    prefixes.any(|byte| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e))
}

/// What the kernel does with an instruction under a probe: `branch_setup_xol_ops` and
/// `push_setup_xol_ops` in arch/x86/kernel/uprobes.c @ v5.15. (Later kernels emulate more; none of it
/// stands where it would be chosen.)
pub(super) fn cost(i: &Instruction) -> CostClass {
    let emulated = match i.code() {
        Code::Push_r64
        | Code::Nopd
        | Code::Nopq
        | Code::Jmp_rel8_64
        | Code::Jmp_rel32_64
        | Code::Call_rel32_64 => true,
        // All of the form jCC: not jrcxz and loop.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENTRY: u64 = 0x45_4000;

    // What the Go compilers named made of these functions (padding cut):
    //
    //     func sum(p []byte) (n int) { for _, b := range p { n += int(b) }; return n }
    //     func (t *T) small(a int, p []byte) int { return t.n + a + sum(p) }
    //     func medium(p []byte) int { var x [512]byte; copy(x[:], p); return sum(x[:]) }
    //     func huge(p []byte) int { var x [8192]byte; copy(x[:], p); return sum(x[:]) }
    //     //go:nosplit
    //     func nosplit(p *T) int { return p.n * leaf(3) }
    //     func leaf(a int) int { return a * 3 }
    //     func loop(a int) int { for { a = a*a + 1; if a&255 == 0 { return a } } }
    const SMALL_1_17: &str = "493b661076454883ec2048896c2418488d6c241848894c2438488944242848895c24304889c84889fb4889f1\
        e8afffffff488b542430488b7424284803164801d0488b6c24184883c420c3488944240848895c241048894c241848897c2420488974\
        2428e85775ffff488b442408488b5c2410488b4c2418488b7c2420488b742428e979ffffff";
    const SMALL_1_20_NO_OPTIMISATION: &str = "493b661076654883ec3048896c2428488d6c2428488944243848895c244048894c244848\
        897c2450488974245848c7442418000000004889c84889fb4889f190e81bffffff4889442420488b5424388402488b12480354244048\
        01d04889442418488b6c24284883c430c3488944240848895c241048894c241848897c24204889742428e8d76fffff488b442408488b\
        5c2410488b4c2418488b7c2420488b742428e959ffffff";
    const SMALL_1_20_RACE: &str = "493b66100f868a0000004883ec3048896c2428488d6c2428488974245848897c245048894c2448488944\
        243848895c2440488b442430e8858fffff488b442448488b5c2450488b4c2458e8f1feffff4889442420488b4c243884014889c86690\
        e8bb79ffff488b4c2440488b54243848030a48894c2418e8848fffff488b4c2418488b542420488d040a488b6c24284883c430c34889\
        44240848895c241048894c241848897c24204889742428e8ae40ffff488b442408488b5c2410488b4c2418488b7c2420488b742428e9\
        30ffffff";
    const SMALL_1_21: &str = "493b6610763b554889e54883ec1848894c2438488944242848895c24304889c84889fb4889f1e8b5ffffff48\
        8b542430488b7424284803164801d04883c4185dc3488944240848895c241048894c241848897c24204889742428e8a183ffff488b44\
        2408488b5c2410488b4c2418488b7c2420488b742428eb86";
    const SMALL_1_26_NO_OPTIMISATION: &str = "493b6610765b554889e54883ec28488944243848895c244048894c244848897c24504889\
        74245848c7442418000000004889c84889fb4889f1e842ffffff4889442420488b5424388402488b1248035424404801d04889442418\
        4883c4285d90c3488944240848895c241048894c241848897c24204889742428e80122ffff488b442408488b5c2410488b4c2418488b\
        7c2420488b742428e963ffffff";
    const SMALL_1_26_RACE: &str = "493b6610767b554889e54883ec2848897c245048894c2448488944243848895c24404889742458488b44\
        2430e84ffbfeff488b442448488b5c2450488b4c2458e8fbfeffff4889442420488b4424388400e8eae5feff488b4c2440488b542438\
        48030a48894c2418e853fbfeff488b4c2418488b542420488d040a4883c4285dc3488944240848895c241048894c241848897c242048\
        89742428e801b6feff488b442408488b5c2410488b4c2418488b7c2420488b742428e943ffffff";
    const MEDIUM_1_20: &str = "4c8da42460feffff4d3b66100f86830000004881ec200200004889ac2418020000488dac2418020000488984\
        24280200004881fb00020000b900020000480f4ccb488d7c241848896c24f0488d6c24f0e82396ffff488b6d00488d54241866904839\
        d074104889c34889d0e8709dffff488d5424184889d0bb000200004889d9e8bbfeffff488bac24180200004881c420020000c3488944\
        240848895c241048894c2418e8976fffff488b442408488b5c2410488b4c2418e943ffffff";
    const MEDIUM_1_26: &str = "4c8da42460feffff4d3b66100f867c000000554889e54881ec180200004889842428020000488d542418be08\
        000000440f113a440f117a10440f117a20440f117a304883c240ffce75e54881fb00020000b900020000480f4ccb488d542418904839\
        d074104889c34889d0e8b042ffff488d5424184889d0bb000200004889d9e8dbfeffff4881c4180200005dc3488944240848895c2410\
        48894c24180f1f00e8bb21ffff488b442408488b5c2410488b4c2418e947ffffff";
    const HUGE_1_20: &str = "4989e44981eca01f0000727b4d3b661076754881ec202000004889ac2418200000488dac2418200000488984\
        24282000004881fb00200000ba00200000480f4cd3488d7c2418b9000400004889c331c0f348ab488d4424184839c3740d4889d1e8bb\
        9cffff488d442418bb002000004889d9e809feffff488bac24182000004881c420200000c3488944240848895c241048894c2418e8e5\
        6effff488b442408488b5c2410488b4c2418e951ffffff";
    const HUGE_1_27: &str = "4989e44981eca01f000072674d3b66107661554889e54881ec182000004889842428200000488d7c2418b900\
        0400004889c231c0f348ab4881fb00200000b900200000480f4ccb488d4424184839c2740d4889d3e88796ffff488d442418bb002000\
        0089d9e836feffff4881c4182000005dc3488944240848895c241048894c2418e87976ffff488b442408488b5c2410488b4c2418e965\
        ffffff";
    const NOSPLIT_1_20: &str = "4883ec1048896c2408488d6c24084889442418b803000000e823000000488b4c2418488b09480fafc1488b6c\
        24084883c410c3";
    const NOSPLIT_1_26: &str =
        "554889e54883ec084889442418b803000000e829000000488b4c2418488b09480fafc14883c4085dc3";
    const LEAF_1_26: &str = "488d0440c3";
    const LOOP_1_26: &str = "480fafc048ffc00fb6c84885c975f1c3";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> =
            hex.bytes().filter_map(|c| char::from(c).to_digit(16)?.try_into().ok()).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    fn site(hex: &str) -> SiteChoice {
        go_entry_site(&bytes(hex), ENTRY).expect("a site")
    }

    fn found(hex: &str) -> (u64, String, SiteKind, CostClass) {
        let site = site(hex);
        (site.offset, site.instruction, site.kind, site.cost)
    }

    fn push_at(offset: u64, kind: SiteKind) -> (u64, String, SiteKind, CostClass) {
        (offset, "push rbp".to_owned(), kind, CostClass::Emulated)
    }

    #[test]
    fn since_go_1_21_the_site_is_the_push_behind_the_check() {
        assert_eq!(found(SMALL_1_21), push_at(6, SiteKind::AfterStackCheck));
        assert_eq!(found(MEDIUM_1_26), push_at(18, SiteKind::AfterStackCheck));
        assert_eq!(found(HUGE_1_27), push_at(18, SiteKind::AfterStackCheck));
        assert_eq!(found(SMALL_1_26_NO_OPTIMISATION), push_at(6, SiteKind::AfterStackCheck));
        assert_eq!(found(SMALL_1_26_RACE), push_at(6, SiteKind::AfterStackCheck));
        assert_eq!(site(SMALL_1_21).bytes, [0x55]);
    }

    #[test]
    fn before_go_1_21_the_site_is_the_branch_of_the_check() {
        for (hex, offset) in
            [(SMALL_1_17, 4), (MEDIUM_1_20, 12), (SMALL_1_20_RACE, 4), (SMALL_1_20_NO_OPTIMISATION, 4)]
        {
            let site = site(hex);
            assert_eq!((site.offset, site.kind), (offset, SiteKind::StackCheckBranch));
            assert_eq!(site.cost, CostClass::Emulated);
            assert!(site.instruction.starts_with("jbe "), "{}", site.instruction);
        }
    }

    #[test]
    fn a_check_with_two_branches_is_left_behind() {
        let expected =
            (18, "sub rsp, 0x2020".to_owned(), SiteKind::AfterStackCheck, CostClass::SingleStepped);
        assert_eq!(found(HUGE_1_20), expected);
    }

    #[test]
    fn without_a_check_the_site_is_the_entry() {
        assert_eq!(found(NOSPLIT_1_26), push_at(0, SiteKind::Entry));
        assert_eq!((site(NOSPLIT_1_20).offset, site(NOSPLIT_1_20).cost), (0, CostClass::SingleStepped));
        assert_eq!((site(LEAF_1_26).offset, site(LEAF_1_26).cost), (0, CostClass::SingleStepped));
    }

    #[test]
    fn the_first_instruction_is_the_check_which_is_single_stepped() {
        let first = first_instruction(&bytes(SMALL_1_21), ENTRY).expect("a site");
        assert_eq!((first.offset, first.kind, first.cost), (0, SiteKind::Entry, CostClass::SingleStepped));
        assert!(first.instruction.starts_with("cmp rsp,"), "{}", first.instruction);
    }

    #[test]
    fn a_site_that_one_call_could_hit_twice_is_refused() {
        let refused = go_entry_site(&bytes(LOOP_1_26), ENTRY);
        assert_eq!(refused, Err(CodeError::Reentered { site: 0, from: 13, to: 0 }));
        // cmp rsp, [r14+0x10]; jbe out; push rbp; jmp ...; ret; out: call; jmp entry
        for (jump, to) in [("fd", 6), ("fb", 4), ("f7", 0)] {
            let code = bytes(&format!("493b6610 7604 55 eb{jump} c3 e800000000 ebef"));
            assert_eq!(go_entry_site(&code, ENTRY), Err(CodeError::Reentered { site: 6, from: 7, to }));
        }
    }

    #[test]
    fn a_push_behind_a_changed_argument_is_not_used() {
        // mov rax, rbx; push rbp; pop rbp; ret
        let site = site("4889d8 55 5d c3");
        assert_eq!((site.offset, site.kind), (0, SiteKind::Entry));
        // An assembly function loads the goroutine first: mov r14, fs:[-8]; cmp rsp, [r14+0x10]; jbe; push.
        let code = bytes("644c8b3425f8ffffff 493b6610 7603 55 5d c3 e800000000 ebe7");
        assert!(matches!(go_entry_site(&code, ENTRY), Err(CodeError::Reentered { site: 0, to: 0, .. })));
    }

    #[test]
    fn a_branch_without_the_guard_is_no_stack_check() {
        // test rax, rax; jbe; push rbp; pop rbp; ret; call; jmp entry: a loop, entered again by itself.
        let refused = go_entry_site(&bytes("4885c0 7603 55 5d c3 e800000000 ebf1"), ENTRY);
        assert_eq!(refused, Err(CodeError::Reentered { site: 0, from: 13, to: 0 }));
    }

    #[test]
    fn every_return_is_a_site() {
        // test eax, eax; je +1; ret; ret; int3
        let code = [0x85, 0xc0, 0x74, 0x01, 0xc3, 0xc3, 0xcc];
        let sites = return_sites(&code, 0x1000).expect("sites");
        let found: Vec<_> =
            sites.iter().map(|site| (site.offset, site.cost, site.instruction.as_str())).collect();
        assert_eq!(found, [(4, CostClass::SingleStepped, "ret"), (5, CostClass::SingleStepped, "ret")]);
    }

    #[test]
    fn a_function_that_does_not_return_itself_has_no_returns() {
        let error = |code: &[u8]| return_sites(code, 0x1000).expect_err("no sites");
        assert_eq!(error(&[0x90, 0x90]), CodeError::NoReturn);
        assert_eq!(error(&[0x85, 0xc0, 0xeb, 0x7f, 0xc3]), CodeError::LeftByJump { from: 2 });
        assert_eq!(error(&[0x74, 0x7f, 0xc3]), CodeError::LeftByJump { from: 0 });
        assert_eq!(error(&[0xc3; MAX_RETURNS + 1]), CodeError::TooManyReturns);
        // A jump inside the function.
        assert!(return_sites(&[0xeb, 0x00, 0xc3], 0x1000).is_ok());
    }

    #[test]
    fn a_function_that_may_be_left_by_an_indirect_jump_has_no_returns() {
        let error = |hex: &str| return_sites(&bytes(hex), ENTRY).expect_err("no sites");
        // if (!p) return 0; return p->operations->get(p);
        //
        // test rdi, rdi; je +6; mov rax, [rdi]; jmp [rax+16]; xor eax, eax; ret
        assert_eq!(error("4885ff 7406 488b07 ff6010 31c0 c3"), CodeError::MayBeLeftByJump { from: 8 });
        for (hex, from) in [
            // return elsewhere(x), without a stub: jmp [rip+0x1000]
            ("85ff 7406 ff2500100000 c3", 4),
            // jmp rax
            ("85ff 7402 ffe0 c3", 4),
            // return handlers[x](y), where the code may lie anywhere, and where it may not:
            // lea rax, [rip+0x1000]; jmp [rax+rdi*8], and jmp [rdi*8+0x402000]
            ("488d0500100000 ff24f8 c3", 7),
            ("ff24fd00204000 c3", 0),
            // A distance that is in no table: movsxd rax, [rdx]; add rax, rdx; jmp rax
            ("486302 4801d0 ffe0 c3", 6),
        ] {
            assert_eq!(error(hex), CodeError::MayBeLeftByJump { from }, "{hex}");
        }
    }

    #[test]
    fn a_function_with_a_switch_returns_itself() {
        let returns = |sites: Vec<SiteChoice>| sites.iter().map(|site| site.offset).collect::<Vec<_>>();
        // lea rdx, [rip+0x1000]; movsxd rax, [rdx+rdi*4]; add rax, rdx; notrack jmp rax; mov eax, 1; ret; xor eax, eax; ret
        let switch = "488d1500100000 486304ba 4801d0 3effe0 b801000000 c3 31c0 c3";
        assert_eq!(return_sites(&bytes(switch), ENTRY).map(returns), Ok(vec![22, 25]));
        // The sum in the other register: add rdx, rax; jmp rdx
        let other = switch.replace("4801d0 3effe0", "4801c2 ffe2");
        assert_eq!(return_sites(&bytes(&other), ENTRY).map(returns), Ok(vec![21, 24]));
        // Something else jumps to the jump as well.
        let joined = bytes(&format!("{switch} ebf2"));
        assert_eq!(return_sites(&joined, ENTRY), Err(CodeError::MayBeLeftByJump { from: 14 }));
        // As Go makes it: lea rcx, [rip+0x1000]; jmp [rcx+rax*8]; ret. And a call in place of a return: jmp rcx.
        let go = bytes("488d0d00100000 ff24c1 c3");
        assert_eq!(go_return_sites(&go, ENTRY).map(returns), Ok(vec![10]));
        assert_eq!(go_return_sites(&bytes("ffe1 c3"), ENTRY), Err(CodeError::MayBeLeftByJump { from: 0 }));
    }

    #[test]
    fn returns_are_counted_before_they_are_described() {
        // The first could not be probed: cs ret
        let code = [&[0x2e][..], &[0xc3; MAX_RETURNS + 1]].concat();
        assert_eq!(return_sites(&code, ENTRY), Err(CodeError::TooManyReturns));
    }

    #[test]
    fn an_instruction_with_the_prefix_of_a_segment_is_refused() {
        for prefix in ["26", "2e", "36", "3e", "642e", "f33e"] {
            let refused = return_sites(&bytes(&format!("90 {prefix}c3")), ENTRY);
            assert_eq!(refused, Err(CodeError::Segmented { offset: 1 }), "{prefix}");
            // A nop.
            let refused = first_instruction(&bytes(&format!("{prefix}90 c3")), ENTRY);
            assert_eq!(refused, Err(CodeError::Segmented { offset: 0 }), "{prefix}");
        }
        // mov rax, fs:[-8]; ret
        let code = bytes("64488b0425f8ffffff c3");
        assert!(first_instruction(&code, ENTRY).is_ok_and(|site| site.offset == 0));
    }

    #[test]
    fn bytes_that_are_no_function_are_refused() {
        assert_eq!(go_entry_site(&[], ENTRY), Err(CodeError::Empty));
        assert_eq!(go_entry_site(&[0x55, 0x06], ENTRY), Err(CodeError::Undecodable { offset: 1 }));
        let long = vec![0x90; MAX_CODE + 1];
        assert_eq!(go_entry_site(&long, ENTRY), Err(CodeError::TooLong { len: MAX_CODE + 1 }));
        // The compare is all there is, at the end of the address space.
        assert!(go_entry_site(&bytes("493b6610"), u64::MAX - 2).is_ok_and(|site| site.offset == 0));
    }

    #[test]
    fn only_what_the_kernel_emulates_counts_as_cheap() {
        for (hex, expected) in [
            ("55", CostClass::Emulated),
            ("4154", CostClass::Emulated),
            ("90", CostClass::Emulated),
            ("7500", CostClass::Emulated),
            ("0f8500000000", CostClass::Emulated),
            ("e800000000", CostClass::Emulated),
            ("e900000000", CostClass::Emulated),
            ("6655", CostClass::SingleStepped),
            ("6690", CostClass::SingleStepped),
            ("0f1f00", CostClass::SingleStepped),
            ("e300", CostClass::SingleStepped),
            ("e200", CostClass::SingleStepped),
            ("4889e5", CostClass::SingleStepped),
            ("c3", CostClass::SingleStepped),
        ] {
            let code = bytes(hex);
            let instruction = Decoder::with_ip(64, &code, ENTRY, DecoderOptions::NONE).decode();
            assert_eq!(cost(&instruction), expected, "{}", text(&instruction));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_whole_instruction_or_an_error(code in prop::collection::vec(any::<u8>(), 0..300)) {
            check(&code)?;
        }

        #[test]
        fn damaged_functions_give_a_whole_instruction_or_an_error(
            which in 0_usize..5,
            at in any::<prop::sample::Index>(),
            value in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut code = bytes([SMALL_1_17, MEDIUM_1_26, HUGE_1_20, HUGE_1_27, SMALL_1_26_RACE][which]);
            let at = at.index(code.len());
            code[at] = value;
            code.truncate(cut.index(code.len() * 2));
            check(&code)?;
        }
    }

    fn check(code: &[u8]) -> Result<(), TestCaseError> {
        let Ok(site) = go_entry_site(code, ENTRY) else {
            return Ok(());
        };
        let start = usize::try_from(site.offset).expect("a small offset");
        prop_assert_eq!(&code[start..start + site.bytes.len()], &*site.bytes);
        // The site is where an instruction starts when the code is read from the entry.
        let starts: Vec<u64> =
            Decoder::with_ip(64, code, 0, DecoderOptions::NONE).into_iter().map(|i| i.ip()).collect();
        prop_assert!(starts.contains(&site.offset));
        Ok(())
    }
}
