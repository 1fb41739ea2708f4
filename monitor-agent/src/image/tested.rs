//! Where a Go function has an error that another function has returned to it: the branch that tests the error right
//! after the call, the code that runs if there is one, and the stack slot where the function keeps one of its own
//! arguments.
//!
//! A probe there shows that something has failed, with which error and for which object. At the branch it costs an
//! emulated instruction for each return of the callee. After the branch it costs nothing, unless the callee has failed.
//! Probes at the function's returns would be single-stepped. The caller reserves stack slots for the arguments in
//! registers, in the order of the registers (cmd/compile/abi-internal.md @ go1.26): the slot of the first argument is
//! the word after the return address.

use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, MemorySize, Mnemonic, OpAccess, OpKind, Register,
    UsedMemory,
};

use super::{
    CodeError, SiteChoice, SiteKind,
    code::{Body, jumps_near},
};

/// The size of a return address, and of each argument, in bytes.
const WORD: i64 = 8;
/// The registers of the words that a function takes or returns, in this order (cmd/compile/abi-internal.md @ go1.26).
const REGISTERS: [Register; 9] = [
    Register::RAX,
    Register::RBX,
    Register::RCX,
    Register::RDI,
    Register::RSI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

/// The number of argument words that are in registers.
pub const REGISTER_WORDS: usize = REGISTERS.len();

/// The error to look for. All words are in registers.
#[derive(Clone, Copy, Debug)]
pub struct WantedError {
    /// The index of the error's first word in the callee's results.
    pub error: usize,
    /// The index of the word in the function's own arguments that it must have kept.
    pub kept: usize,
    /// Whether to choose the place that only errors reach, instead of the branch.
    pub only_errors: bool,
}

/// A place where a function has an error that another function has returned to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestedCall {
    /// The branch, or the first instruction after it if there is an error. The error is still in its two registers. At
    /// the branch, the first of them is zero if there is no error.
    pub site: SiteChoice,
    /// How far above the stack pointer the function's argument lies at the site, in bytes.
    pub kept_at: u16,
}

/// Finds the only call of `callee` in a Go function, which starts at address `entry` and consists of `code`.
///
/// # Errors
/// [`CodeError::NotTested`] if there is not exactly one such call, the error is not tested right after it, or something
/// else leads to the place. [`CodeError::NotKept`] if the argument is not proven to lie in its own stack slot there.
pub fn tested_call(
    code: &[u8],
    entry: u64,
    callee: u64,
    wanted: WantedError,
) -> Result<TestedCall, CodeError> {
    let body = Body::decode(code, entry)?;
    let error = REGISTERS.get(wanted.error).ok_or(CodeError::NotTested)?;
    let branch = tested(&body, callee, *error).ok_or(CodeError::NotTested)?;
    let (index, kind, why) = if wanted.only_errors {
        let index = behind(&body, branch).ok_or(CodeError::NotTested)?;
        (index, SiteKind::Failed, "what only an error leads to that a function which it calls has given back")
    } else {
        (branch, SiteKind::Tested, "the branch on what a function that it calls has given back")
    };
    let place = Kept::prove(&body, wanted.kept, index).and_then(|place| u16::try_from(place).ok());
    let kept_at = place.ok_or(CodeError::NotKept)?;
    Ok(TestedCall { site: body.describe(index, kind, why, code)?, kept_at })
}

/// Returns the instruction that runs next if there is an error, and only then: nothing but the branch leads to it.
fn behind(body: &Body, branch: usize) -> Option<usize> {
    let test = body.instructions.get(branch)?;
    let is_next = test.mnemonic() == Mnemonic::Je;
    let index = if is_next { branch + 1 } else { body.index_of(test.near_branch_target())? };
    let first = body.instructions.get(index)?;
    let leads = |(other, i): (usize, &Instruction)| {
        other != branch && jumps_near(i) && i.near_branch_target() == first.ip()
    };
    let before = body.instructions.get(index.checked_sub(1)?)?;
    let ends = matches!(
        before.flow_control(),
        FlowControl::UnconditionalBranch | FlowControl::Return | FlowControl::Exception
    );
    let is_led_to = body.instructions.iter().enumerate().any(leads);
    ((is_next || ends) && !is_led_to).then_some(index)
}

/// Returns the branch after the only call, if nothing but that call leads to it.
fn tested(body: &Body, callee: u64, error: Register) -> Option<usize> {
    let is_call = |i: &Instruction| i.flow_control() == FlowControl::Call && i.near_branch_target() == callee;
    let mut calls = body.instructions.iter().enumerate().filter(|(_, i)| is_call(i));
    let (call, first) = calls.next().filter(|_| callee != 0)?;
    let mut behind = body.instructions.iter().enumerate().skip(call + 1);
    let (_, test) = behind.find(|(_, i)| i.mnemonic() != Mnemonic::Nop)?;
    let (index, branch) = behind.next()?;
    let is_between = |to: u64| first.ip() < to && to <= branch.ip();
    let is_led_to = body.instructions.iter().any(|i| jumps_near(i) && is_between(i.near_branch_target()));
    let is_tested = test.code() == Code::Test_rm64_r64
        && test.op0_register() == error
        && test.op1_register() == error
        && matches!(branch.mnemonic(), Mnemonic::Je | Mnemonic::Jne)
        && branch.is_jcc_short_or_near();
    (is_tested && calls.next().is_none() && !is_led_to).then_some(index)
}

/// Proves that a function has one of its arguments in its stack slot.
struct Kept<'a> {
    body: &'a Body,
    factory: InstructionInfoFactory,
    /// The register that holds the argument at the entry.
    register: Register,
    /// The start of the slot, relative to the stack pointer at the entry.
    home: i64,
    /// The stack's growth since the entry at each instruction, in bytes. `None` if nothing leads to the instruction.
    depths: Vec<Option<i64>>,
}

/// Where the argument certainly is when an instruction begins, on every path to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    in_register: bool,
    at_home: bool,
}

impl<'a> Kept<'a> {
    /// Returns how far above the stack pointer the argument's slot begins at an instruction, if the argument is there.
    fn prove(body: &'a Body, argument: usize, at: usize) -> Option<i64> {
        let register = *REGISTERS.get(argument)?;
        let home = i64::try_from(argument + 1).ok()? * WORD;
        let depths = depths(body)?;
        if comes_back(body, &depths)? {
            return None;
        }
        let mut kept = Kept { body, factory: InstructionInfoFactory::new(), register, home, depths };
        if (0..body.instructions.len()).any(|index| kept.tells_address(index)) {
            return None;
        }
        let held = kept.followed()?;
        for (index, held) in held.iter().enumerate() {
            let Some(held) = held else { continue };
            let is_right = kept.stores(index) && held.in_register;
            if kept.writes_home(index)? && !is_right {
                return None;
            }
        }
        let is_there = held.get(at).copied().flatten().is_some_and(|held| held.at_home);
        let depth = kept.depths.get(at).copied().flatten()?;
        if is_there { depth.checked_add(home) } else { None }
    }

    /// Returns where the argument is at each instruction: what holds on all paths to it.
    fn followed(&mut self) -> Option<Vec<Option<Held>>> {
        let mut all: Vec<Option<Held>> = vec![None; self.body.instructions.len()];
        let mut ways = vec![(0, Held { in_register: true, at_home: false })];
        while let Some((index, held)) = ways.pop() {
            let known = all.get_mut(index)?;
            let both = known.map_or(held, |known| Held {
                in_register: known.in_register && held.in_register,
                at_home: known.at_home && held.at_home,
            });
            if known.replace(both) == Some(both) {
                continue;
            }
            let after = self.after(index, both)?;
            ways.extend(next(self.body, index)?.into_iter().flatten().map(|next| (next, after)));
        }
        Some(all)
    }

    /// Returns where the argument is after an instruction.
    fn after(&mut self, index: usize, held: Held) -> Option<Held> {
        let i = self.body.instructions.get(index)?;
        if self.stores(index) {
            return Some(Held { at_home: held.in_register, ..held });
        }
        let is_loaded = i.mnemonic() == Mnemonic::Mov
            && i.op0_kind() == OpKind::Register
            && i.op0_register() == self.register
            && self.is_home(index);
        if is_loaded {
            return Some(Held { in_register: held.at_home, ..held });
        }
        let is_call = matches!(i.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
        let register = self.register;
        let info = self.factory.info(i);
        let is_written = |used: &iced_x86::UsedRegister| {
            used.register().full_register() == register && writes(used.access())
        };
        let is_lost = is_call || info.used_registers().iter().any(is_written);
        Some(Held {
            in_register: held.in_register && !is_lost,
            at_home: held.at_home && !self.writes_home(index)?,
        })
    }

    /// Whether an instruction stores the argument's register in its slot.
    fn stores(&self, index: usize) -> bool {
        self.body.instructions.get(index).is_some_and(|i| {
            i.mnemonic() == Mnemonic::Mov
                && i.op0_kind() == OpKind::Memory
                && i.op1_kind() == OpKind::Register
                && i.op1_register() == self.register
                && self.is_home(index)
        })
    }

    /// Whether the memory operand of an instruction is exactly the slot.
    fn is_home(&self, index: usize) -> bool {
        let (Some(i), Some(depth)) =
            (self.body.instructions.get(index), self.depths.get(index).copied().flatten())
        else {
            return false;
        };
        i.memory_base() == Register::RSP
            && i.memory_index() == Register::None
            && i.memory_size() == MemorySize::UInt64
            && i.memory_displacement64().cast_signed().checked_sub(depth) == Some(self.home)
    }

    /// Whether an instruction reveals the address of the slot. An instruction that nothing leads to does not: its code
    /// never comes back.
    fn tells_address(&self, index: usize) -> bool {
        let (Some(i), Some(depth)) =
            (self.body.instructions.get(index), self.depths.get(index).copied().flatten())
        else {
            return false;
        };
        if i.mnemonic() == Mnemonic::Lea && i.memory_base() == Register::RSP {
            let at = i.memory_displacement64().cast_signed().checked_sub(depth);
            return at.is_none_or(|at| (self.home..self.home + WORD).contains(&at));
        }
        // An address computed from another register may be anywhere.
        let is_copied = i.mnemonic() == Mnemonic::Mov && i.op1_register() == Register::RSP;
        let is_from_frame = i.mnemonic() == Mnemonic::Lea && i.memory_base() == Register::RBP;
        is_from_frame || is_copied && i.op0_register() != Register::RBP
    }

    /// Whether an instruction may write to the slot. `None` if nothing leads to it.
    fn writes_home(&mut self, index: usize) -> Option<bool> {
        let depth = self.depths.get(index).copied().flatten()?;
        let home = self.home;
        let info = self.factory.info(self.body.instructions.get(index)?);
        let own = info.used_memory().iter().filter(|used| writes(used.access()));
        let mut own = own.filter(|used| matches!(used.base(), Register::RSP | Register::RBP));
        Some(own.any(|used| overlaps(used, depth, home)))
    }
}

/// Returns the instructions that may follow one, or `None` if they are unknown.
fn next(body: &Body, index: usize) -> Option<[Option<usize>; 2]> {
    let i = body.instructions.get(index)?;
    let target = || body.index_of(i.near_branch_target());
    Some(match i.flow_control() {
        FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => [Some(index + 1), None],
        FlowControl::ConditionalBranch => [Some(index + 1), Some(target()?)],
        FlowControl::UnconditionalBranch => [Some(target()?), None],
        FlowControl::Return | FlowControl::Exception | FlowControl::Interrupt => [None, None],
        _ => return None,
    })
}

/// Whether a write at this depth overlaps the slot that begins at `home`, or may do so.
fn overlaps(used: &UsedMemory, depth: i64, home: i64) -> bool {
    if used.base() != Register::RSP || used.index() != Register::None {
        return true;
    }
    let Some(start) = used.displacement().cast_signed().checked_sub(depth) else { return true };
    let size = i64::try_from(used.memory_size().size()).unwrap_or(i64::MAX);
    size == 0 || (start < home + WORD && start.saturating_add(size) > home)
}

fn writes(access: OpAccess) -> bool {
    !matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
}

/// Returns the distance between the stack pointer at each instruction and at the entry, in bytes. `None` altogether if
/// it differs between paths that join, if a path returns at another depth, or if a path cannot be followed.
fn depths(body: &Body) -> Option<Vec<Option<i64>>> {
    let mut depths: Vec<Option<i64>> = vec![None; body.instructions.len()];
    let mut ways = vec![(0, 0)];
    while let Some((index, depth)) = ways.pop() {
        match depths.get_mut(index)? {
            Some(known) if *known == depth => continue,
            Some(_) => return None,
            unknown => *unknown = Some(depth),
        }
        let i = body.instructions.get(index)?;
        let after = i64::checked_add(depth, grown(i)?)?;
        if i.flow_control() == FlowControl::Return && after != 0 {
            return None;
        }
        ways.extend(next(body, index)?.into_iter().flatten().map(|next| (next, after)));
    }
    Some(depths)
}

/// Whether code that nothing leads to continues in code that is reached, or `None` if it cannot be followed. The
/// runtime jumps to such code: after a recovered panic, to what the function still has to do before it returns. Padding
/// counts only if a path leads through it.
fn comes_back(body: &Body, depths: &[Option<i64>]) -> Option<bool> {
    let is_padding = |i: &Instruction| matches!(i.mnemonic(), Mnemonic::Int3 | Mnemonic::Nop);
    let unreached = body.instructions.iter().zip(depths).enumerate();
    let unreached = unreached.filter(|(_, (i, depth))| depth.is_none() && !is_padding(i));
    let mut ways: Vec<usize> = unreached.map(|(index, _)| index).collect();
    let mut seen = vec![false; depths.len()];
    while let Some(index) = ways.pop() {
        if depths.get(index)?.is_some() {
            return Some(true);
        }
        if std::mem::replace(seen.get_mut(index)?, true) {
            continue;
        }
        ways.extend(next(body, index)?.into_iter().flatten());
    }
    Some(false)
}

/// Returns how many bytes an instruction pushes onto the stack, or `None` if that is unknown. A call pops what it has
/// pushed.
fn grown(i: &Instruction) -> Option<i64> {
    let is_of_pointer = i.op0_kind() == OpKind::Register && i.op0_register().full_register() == Register::RSP;
    let is_number = i.op_count() == 2 && !matches!(i.op1_kind(), OpKind::Register | OpKind::Memory);
    match i.mnemonic() {
        Mnemonic::Call | Mnemonic::Ret | Mnemonic::Cmp | Mnemonic::Test => Some(0),
        Mnemonic::Sub if is_of_pointer && is_number => Some(i.immediate(1).cast_signed()),
        Mnemonic::Add if is_of_pointer && is_number => i.immediate(1).cast_signed().checked_neg(),
        Mnemonic::Enter | Mnemonic::Leave => None,
        _ if is_of_pointer => None,
        _ => Some(-i64::from(i.stack_pointer_increment())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENTRY: u64 = 0x45_4000;
    /// The error is the second word. The first argument is kept.
    const FIRST: WantedError = WantedError { error: 1, kept: 0, only_errors: false };

    // What the Go compilers named made of the second of these methods (padding cut), and the distance of the first one:
    //
    //     func (j *job) attempt(n int) (bool, error) { … }
    //     func (j *job) again(n int) error {
    //         for {
    //             j.note(n)
    //             done, err := j.attempt(n)
    //             if err != nil { j.note(1); return err }
    //             if done { return nil }
    //             n++
    //         }
    //     }
    const AGAIN_1_20: (&str, u64) = (
        "493b66100f867f0000004883ec3848896c2430488d6c24304889442428eb0d488b5c241848ffc3488b44242848895c2418e8aaffffff48\
         8b442428488b5c2418e85bffffff4885db751284c074d131c031db488b6c24304883c438c348894c242048895c2410488b442428bb0100\
         0000e86bffffff488b442410488b5c2420488b6c24304883c438c3488944240848895c2410e808a4fdff488b442408488b5c2410e959ff\
         ffff",
        0x60,
    );
    const AGAIN_1_26: (&str, u64) = (
        "493b66107676554889e54883ec284889442438eb0d488b5c241848ffc3488b44243848895c2418e8b4ffffff488b442438488b5c2418e8\
         65ffffff0f1f4400004885db750e84c074cc31c031db4883c4285dc348894c242048895c2410488b442438bb01000000e874ffffff488b\
         442410488b5c24204883c4285dc3488944240848895c2410e895f6fdff488b442408488b5c2410e966ffffff",
        0x60,
    );
    const AGAIN_1_26_RACE: (&str, u64) = (
        "493b66100f8693000000554889e54883ec28488944243848895c2440488b442430e83af4fcff488b442440eb08488b44241848ffc04889\
         4424184889c3488b442438e819ffffff488b442438488b5c2418e80afeffff4885db751484c074ce90e83bf4fcff31c031db4883c4285d\
         c348894c242048895c2410488b442438bb01000000e8d8feffffe813f4fcff488b442410488b5c24204883c4285dc3488944240848895c\
         2410e874aefcff488b442408488b5c2410e945ffffff",
        0x1a0,
    );
    const AGAIN_1_26_NO_OPTIMISATION: (&str, u64) = (
        "493b66100f86cb000000554889e54883ec58488944246848895c2470440f117c2418eb00eb00488b5c2470488b442468e8abffffff440f\
         117c2438488b5c2470488b442468e8f6feffff8844241648895c243848894c24400fb65424168854241748895c244848894c24500fb654\
         24178854241548895c242848894c243066904885db7502eb29488b442468bb01000000e84affffff488b442428488b5c24304889442418\
         48895c24204883c4585dc3807c2415007502eb10440f117c241831c031db4883c4585dc348ff442470eb00e94fffffff48894424084889\
         5c241090e89bf4fdff488b442408488b5c2410e90cffffff",
        0xc0,
    );

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<_> = hex.chars().filter(|c| !c.is_whitespace()).collect();
        let byte = |pair: &[char]| u8::from_str_radix(&String::from_iter(pair), 16).expect("hex");
        digits.chunks(2).map(byte).collect()
    }

    /// Returns offset and text of the branch, and where the argument lies.
    fn tested_in(code: &[u8], distance: u64) -> Result<(u64, String, u16), CodeError> {
        tested_call(code, ENTRY, ENTRY - distance, FIRST).map(|found| {
            assert_eq!(
                (found.site.cost, found.site.kind),
                (super::super::CostClass::Emulated, SiteKind::Tested)
            );
            (found.site.offset, found.site.instruction, found.kept_at)
        })
    }

    #[test]
    fn the_branch_behind_the_call_and_the_argument_are_found() {
        for ((hex, distance), (offset, kept_at)) in
            [(AGAIN_1_26, (0x43, 0x38)), (AGAIN_1_26_RACE, (0x59, 0x38))]
        {
            let found = tested_in(&bytes(hex), distance).unwrap_or_else(|why| panic!("{hex}: {why}"));
            assert!(found.1.starts_with("jne"), "{found:?}");
            assert_eq!((found.0, found.2), (offset, kept_at));
        }
    }

    // What Go 1.26 made of the second of these methods, without its closure, and the distance of the first one:
    //
    //     func (j *job) send(n int) error { … }
    //     func (j *job) reply(n int, to *job) (err error) {
    //         defer func() { j.note(n) }()
    //         if err := to.send(n); err != nil { j.note(len(err.Error())); to.note(1); return err }
    //         return nil
    //     }
    const REPLY_1_26: (&str, u64) = (
        "493b66100f86f7000000554889e54883ec5866440fd67c2450488944246848894c2478c644241700440f117c2428488d150b0100004889\
         542438488944244048895c2448488d5424384889542450c6442417014889c8e825ffffff0f1f4400004885c0746248895c242048894424\
         18488b48184889d8ffd1488b4424680f1f00e8dbfeffff488b442478bb01000000e8ccfeffff488b4c241848894c2428488b4c24204889\
         4c2430c644241700488b542450488b0affd1488b442428488b5c24304883c4585dc3440f117c2428c644241700488b542450488b02ffd0\
         488b5c2430488b4424284883c4585dc3e88f99fbff488b442428488b5c24304883c4585dc3488944240848895c241048894c2418e84b21\
         ffff488b442408488b5c2410488b4c2418e9d7feffff",
        0x80,
    );
    const TO: WantedError = WantedError { error: 0, kept: 2, only_errors: true };

    #[test]
    fn what_only_an_error_leads_to_is_found() {
        let (hex, distance) = REPLY_1_26;
        let found = tested_call(&bytes(hex), ENTRY, ENTRY - distance, TO).expect("a place");
        let site = (found.site.kind, found.site.offset, found.site.instruction.as_str());
        assert_eq!((site, found.kept_at), ((SiteKind::Failed, 0x65, "mov [rsp+0x20], rbx"), 0x78));
    }

    #[test]
    fn what_may_not_be_an_error_or_whose_is_not_known_is_refused() {
        use CodeError::{NotKept, NotTested};
        let (hex, distance) = REPLY_1_26;
        for (offset, was, is, expected) in [
            // Something else jumps there: jmp in place of padding.
            (0x7d, "0f1f00", "ebe690", NotTested),
            // Another value is stored in the argument's slot: mov [rsp+0x78], rdx.
            (0x1e, "48894c2478", "4889542478", NotKept),
            // The code after a panic continues in the middle.
            (0xf1, "488b442428", "e9d1ffffff", NotKept),
        ] {
            let (mut code, was, is) = (bytes(hex), bytes(was), bytes(is));
            assert_eq!((&code[offset..offset + was.len()], was.len()), (&*was, is.len()), "{offset:#x}");
            code[offset..offset + is.len()].copy_from_slice(&is);
            assert_eq!(tested_call(&code, ENTRY, ENTRY - distance, TO), Err(expected), "{offset:#x}");
        }
        let none = WantedError { kept: 9, ..TO };
        assert_eq!(tested_call(&bytes(hex), ENTRY, ENTRY - distance, none), Err(NotKept));
    }

    #[test]
    fn an_error_that_is_put_elsewhere_first_is_refused() {
        let (hex, distance) = AGAIN_1_26_NO_OPTIMISATION;
        assert_eq!(tested_in(&bytes(hex), distance), Err(CodeError::NotTested));
    }

    /// The function as Go 1.26 makes it, with other bytes at an offset.
    fn changed(offset: usize, was: &str, is: &str) -> Result<(u64, String, u16), CodeError> {
        let (mut code, was, is) = (bytes(AGAIN_1_26.0), bytes(was), bytes(is));
        assert_eq!((&code[offset..offset + was.len()], was.len()), (&*was, is.len()), "{offset:#x}");
        code[offset..offset + is.len()].copy_from_slice(&is);
        tested_in(&code, AGAIN_1_26.1)
    }

    #[test]
    fn an_argument_that_may_lie_elsewhere_is_refused() {
        // The argument lies among the function's own variables.
        let (hex, distance) = AGAIN_1_20;
        assert_eq!(tested_in(&bytes(hex), distance), Err(CodeError::NotKept));
        for (offset, was, is) in [
            // Another value is stored there: mov [rsp+0x38], rbx.
            (0x0e, "4889442438", "48895c2438"),
            // The register has changed before: mov rax, rsp.
            (0x07, "4889e5", "4889e0"),
            // Something else is stored there later: mov [rsp+0x38], rcx, and in half of it.
            (0x53, "48894c2420", "48894c2438"),
            (0x53, "48894c2420", "48894c2434"),
            // Its address is taken: lea rbx, [rsp+0x38].
            (0x71, "488b5c2420", "488d5c2438"),
            // Something else may know its address: mov rbx, rsp, and lea rbx, [rbp+0x18].
            (0x31, "488b5c2418", "4889e39090"),
            (0x71, "488b5c2420", "488d5d1890"),
            // The stack pointer is unknown: mov rsp, rbp.
            (0x07, "4889e5", "4889ec"),
            // The function returns with another stack pointer: add rsp, 0x20.
            (0x4d, "4883c428", "4883c420"),
            // The store is run again: the jump to the beginning of the loop goes there.
            (0x47, "74cc", "74c5"),
        ] {
            let found = changed(offset, was, is);
            assert_eq!(found, Err(CodeError::NotKept), "{offset:#x} {is}");
        }
    }

    #[test]
    fn what_is_no_test_of_what_was_given_is_refused() {
        for (offset, was, is) in [
            // test rax, rax, and test bl, bl with a prefix that changes nothing.
            (0x40, "4885db", "4885c0"),
            (0x40, "4885db", "4084db"),
            // js in place of jne.
            (0x43, "750e", "780e"),
            // Something jumps to the test.
            (0x47, "74cc", "74f7"),
        ] {
            assert_eq!(changed(offset, was, is), Err(CodeError::NotTested), "{offset:#x} {is}");
        }
        // No such function, and a function that is called twice.
        assert_eq!(tested_call(&bytes(AGAIN_1_26.0), ENTRY, 0, FIRST), Err(CodeError::NotTested));
        assert_eq!(tested_in(&bytes(AGAIN_1_26.0), 0x20), Err(CodeError::NotTested));
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are(mut code in prop::collection::vec(any::<u8>(), 0..64), at in 0_usize..154) {
            let _ = tested_call(&code, ENTRY, ENTRY - 0x60, FIRST);
            let whole = bytes(AGAIN_1_26.0);
            code.splice(0..0, whole.into_iter().take(at));
            let _ = tested_call(&code, ENTRY, ENTRY - 0x60, FIRST);
        }
    }
}
