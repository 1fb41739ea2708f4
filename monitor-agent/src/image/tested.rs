//! Where a Go function has what another one gave it: the branch by which it tests an error right behind the call, and
//! the place on the stack where it keeps its own first argument meanwhile.
//!
//! A probe there tells that something has failed, with what, and for whom, at the cost of an emulated instruction; one at the
//! function's returns would be single-stepped. Arguments in registers have a place of their own on the stack, which the
//! caller leaves free for them (cmd/compile/abi-internal.md @ go1.26): that of the first one is the word behind the return
//! address.

use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, MemorySize, Mnemonic, OpAccess, OpKind, Register,
    UsedMemory,
};

use super::{
    CodeError, SiteChoice, SiteKind,
    code::{Body, jumps_near},
};

/// Where the first argument's place begins, from where the stack pointer is at the entry.
const KEPT: i64 = 8;
/// Its bytes.
const WORD: i64 = 8;

/// A branch by which a function tests an error that another one has given it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestedCall {
    /// The branch. The error is in RBX and RCX there, if there is one; else RBX is zero.
    pub site: SiteChoice,
    /// How far above the stack pointer the function's first argument lies then.
    pub kept_at: u16,
}

/// Finds the only call of `callee` in a Go function, which starts at address `entry` and consists of `code`. What it calls gives
/// one word, and then an error.
///
/// # Errors
/// [`CodeError::NotTested`] if that call is not there once, or the error is not tested right behind it;
/// [`CodeError::NotKept`] if the argument is not proven to lie in its place there.
pub fn tested_call(code: &[u8], entry: u64, callee: u64) -> Result<TestedCall, CodeError> {
    let body = Body::decode(code, entry)?;
    let index = tested(&body, callee).ok_or(CodeError::NotTested)?;
    let depth = Kept::prove(&body).and_then(|depths| depths.get(index).copied().flatten());
    let kept_at = depth.and_then(|depth| u16::try_from(depth + KEPT).ok()).ok_or(CodeError::NotKept)?;
    let site = body.describe(
        index,
        SiteKind::Tested,
        "the branch on what a function that it calls has given back",
        code,
    )?;
    Ok(TestedCall { site, kept_at })
}

/// The branch behind the only call, which nothing leads to but that call.
fn tested(body: &Body, callee: u64) -> Option<usize> {
    let is_call = |i: &Instruction| i.flow_control() == FlowControl::Call && i.near_branch_target() == callee;
    let mut calls = body.instructions.iter().enumerate().filter(|(_, i)| is_call(i));
    let (call, first) = calls.next().filter(|_| callee != 0)?;
    let mut behind = body.instructions.iter().enumerate().skip(call + 1);
    let (_, test) = behind.find(|(_, i)| i.mnemonic() != Mnemonic::Nop)?;
    let (index, branch) = behind.next()?;
    let is_between = |to: u64| first.ip() < to && to <= branch.ip();
    let is_led_to = body.instructions.iter().any(|i| jumps_near(i) && is_between(i.near_branch_target()));
    let is_tested = test.code() == Code::Test_rm64_r64
        && test.op0_register() == Register::RBX
        && test.op1_register() == Register::RBX
        && matches!(branch.mnemonic(), Mnemonic::Je | Mnemonic::Jne)
        && branch.is_jcc_short_or_near();
    (is_tested && calls.next().is_none() && !is_led_to).then_some(index)
}

/// Proves that a function keeps its first argument in its place.
struct Kept<'a> {
    body: &'a Body,
    factory: InstructionInfoFactory,
    /// Bytes on the stack above each instruction, from the entry on; `None` where nothing leads to.
    depths: Vec<Option<i64>>,
}

impl<'a> Kept<'a> {
    /// The depth at each instruction, if the argument is in its place at all behind the prologue.
    fn prove(body: &'a Body) -> Option<Vec<Option<i64>>> {
        let depths = depths(body)?;
        let mut kept = Kept { body, factory: InstructionInfoFactory::new(), depths };
        let (store, ways_out) = kept.stored()?;
        // One call runs it once: else it might store something else the second time.
        let ways_back: Vec<_> = ways_out.iter().map(|(_, back)| *back).collect();
        body.check_once(store, &ways_back).ok()?;
        let is_free = |index: usize| {
            index == store || ways_out.iter().any(|(start, back)| (*start..=*back).contains(&index))
        };
        for index in (0..body.instructions.len()).filter(|index| !is_free(*index)) {
            if kept.may_change(index)? {
                return None;
            }
        }
        Some(kept.depths)
    }

    /// The instruction that puts the argument into its place, on the straight way from the entry; and the stack check's ways
    /// out of that, from where to where, on which the place is written before the function is entered again.
    fn stored(&mut self) -> Option<(usize, Vec<(usize, usize)>)> {
        let mut ways_out = Vec::new();
        for (index, i) in self.body.instructions.iter().enumerate() {
            match i.flow_control() {
                FlowControl::Next => {}
                FlowControl::ConditionalBranch => {
                    let back = self.body.way_out(i.near_branch_target())?;
                    ways_out.push((self.body.index_of(i.near_branch_target())?, back));
                    continue;
                }
                _ => return None,
            }
            let depth = self.depths.get(index).copied().flatten()?;
            let is_store = i.mnemonic() == Mnemonic::Mov
                && i.op0_kind() == OpKind::Memory
                && i.memory_base() == Register::RSP
                && i.memory_index() == Register::None
                && i.memory_size() == MemorySize::UInt64
                && i.memory_displacement64().cast_signed().checked_sub(depth) == Some(KEPT);
            if is_store {
                let is_argument = i.op1_kind() == OpKind::Register && i.op1_register() == Register::RAX;
                return is_argument.then_some((index, ways_out));
            }
            let info = self.factory.info(i);
            let is_written = |used: &iced_x86::UsedRegister| {
                used.register().full_register() == Register::RAX && writes(used.access())
            };
            if info.used_registers().iter().any(is_written) {
                return None;
            }
        }
        None
    }

    /// Whether an instruction may write to the place, or learns where it is; `None` where it can't be told.
    fn may_change(&mut self, index: usize) -> Option<bool> {
        let i = self.body.instructions.get(index)?;
        let Some(depth) = self.depths.get(index).copied().flatten() else {
            // Padding.
            return matches!(i.mnemonic(), Mnemonic::Int3 | Mnemonic::Nop).then_some(false);
        };
        if i.mnemonic() == Mnemonic::Lea && i.memory_base() == Register::RSP {
            let at = i.memory_displacement64().cast_signed().checked_sub(depth)?;
            return Some((KEPT..KEPT + WORD).contains(&at));
        }
        // What is reckoned from another register may be anywhere.
        let is_copied = i.mnemonic() == Mnemonic::Mov && i.op1_register() == Register::RSP;
        let is_from_frame = i.mnemonic() == Mnemonic::Lea && i.memory_base() == Register::RBP;
        if is_from_frame || is_copied && i.op0_register() != Register::RBP {
            return Some(true);
        }
        let info = self.factory.info(i);
        let own = info.used_memory().iter().filter(|used| writes(used.access()));
        let mut own = own.filter(|used| matches!(used.base(), Register::RSP | Register::RBP));
        Some(own.any(|used| overlaps(used, depth)))
    }
}

/// Whether what is written, at this depth, is in the place, or can't be told to be elsewhere.
fn overlaps(used: &UsedMemory, depth: i64) -> bool {
    if used.base() != Register::RSP || used.index() != Register::None {
        return true;
    }
    let Some(start) = used.displacement().cast_signed().checked_sub(depth) else { return true };
    let size = i64::try_from(used.memory_size().size()).unwrap_or(i64::MAX);
    size == 0 || (start < KEPT + WORD && start.saturating_add(size) > KEPT)
}

fn writes(access: OpAccess) -> bool {
    !matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
}

/// How many bytes each instruction has between the stack pointer and where that is at the entry; `None` in all if ways that
/// come together differ in it, one returns elsewhere, or it can't be followed.
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
        let target = || body.index_of(i.near_branch_target());
        match i.flow_control() {
            FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => {
                ways.push((index + 1, after));
            }
            FlowControl::ConditionalBranch => ways.extend([(index + 1, after), (target()?, after)]),
            FlowControl::UnconditionalBranch => ways.push((target()?, after)),
            FlowControl::Return if after != 0 => return None,
            FlowControl::Return | FlowControl::Exception | FlowControl::Interrupt => {}
            _ => return None,
        }
    }
    Some(depths)
}

/// How many bytes an instruction puts onto the stack; `None` if it can't be told. A call takes away what it has put there.
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

    // What the Go compilers named made of the second of these methods (padding cut), and how far away the first one lies:
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

    /// Offset and text of the branch, and where the argument lies.
    fn tested_in(code: &[u8], distance: u64) -> Result<(u64, String, u16), CodeError> {
        tested_call(code, ENTRY, ENTRY - distance).map(|found| {
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

    #[test]
    fn an_error_that_is_put_elsewhere_first_is_refused() {
        let (hex, distance) = AGAIN_1_26_NO_OPTIMISATION;
        assert_eq!(tested_in(&bytes(hex), distance), Err(CodeError::NotTested));
    }

    /// The function as Go 1.26 makes it, with other bytes at a place.
    fn changed(offset: usize, was: &str, is: &str) -> Result<(u64, String, u16), CodeError> {
        let (mut code, was, is) = (bytes(AGAIN_1_26.0), bytes(was), bytes(is));
        assert_eq!((&code[offset..offset + was.len()], was.len()), (&*was, is.len()), "{offset:#x}");
        code[offset..offset + is.len()].copy_from_slice(&is);
        tested_in(&code, AGAIN_1_26.1)
    }

    #[test]
    fn an_argument_that_may_lie_elsewhere_is_refused() {
        // Among the function's own variables.
        let (hex, distance) = AGAIN_1_20;
        assert_eq!(tested_in(&bytes(hex), distance), Err(CodeError::NotKept));
        for (offset, was, is) in [
            // Another one is put there: mov [rsp+0x38], rbx.
            (0x0e, "4889442438", "48895c2438"),
            // The register has changed before: mov rax, rsp.
            (0x07, "4889e5", "4889e0"),
            // Something else is put there later: mov [rsp+0x38], rcx, and a half of it.
            (0x53, "48894c2420", "48894c2438"),
            (0x53, "48894c2420", "48894c2434"),
            // Its address is taken: lea rbx, [rsp+0x38].
            (0x71, "488b5c2420", "488d5c2438"),
            // Something else may know where that is: mov rbx, rsp, and lea rbx, [rbp+0x18].
            (0x31, "488b5c2418", "4889e39090"),
            (0x71, "488b5c2420", "488d5d1890"),
            // The stack pointer is somewhere: mov rsp, rbp.
            (0x07, "4889e5", "4889ec"),
            // It is not back where it was as the function returns: add rsp, 0x20.
            (0x4d, "4883c428", "4883c420"),
            // What puts it there is run again: the jump to the beginning of the loop goes there.
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
        // Nothing of that name, and a function that is called twice.
        assert_eq!(tested_call(&bytes(AGAIN_1_26.0), ENTRY, 0), Err(CodeError::NotTested));
        assert_eq!(tested_in(&bytes(AGAIN_1_26.0), 0x20), Err(CodeError::NotTested));
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are(mut code in prop::collection::vec(any::<u8>(), 0..64), at in 0_usize..154) {
            let _ = tested_call(&code, ENTRY, ENTRY - 0x60);
            let whole = bytes(AGAIN_1_26.0);
            code.splice(0..0, whole.into_iter().take(at));
            let _ = tested_call(&code, ENTRY, ENTRY - 0x60);
        }
    }
}
