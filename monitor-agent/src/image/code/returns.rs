//! Where a function returns, and the proof that no other function returns in its place.
//!
//! Instructions are decoded in sequence. This is what runs only if there is no data between them: a byte of data may
//! look like a return, and a probe would change it. So each jump must lead to the start of an instruction. Then
//! everything reached from the entry, along jumps and after calls, runs as it was decoded, and its returns are the
//! function's.
//!
//! Code that nothing leads to may still run, to handle an exception or a recovered panic. It calls the runtime before
//! it returns, which distinguishes it from data.
//!
//! The table of a `switch` may lead to any instruction of the function, and tables are not read. A table, like a jump or
//! an exception, may also lead to a part of the function that lies elsewhere, where the compiler has put the code that
//! throws or that handles what is thrown. Symbols show whether there is such a part, and its code shows whether it
//! returns.

use std::{collections::BTreeSet, iter, mem};

use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::{Body, CodeError, SiteChoice, SiteKind, jumps_near};

/// Most functions have a few.
pub(super) const MAX_RETURNS: usize = 32;

/// Returns the sites at which a native function returns. At each site, the results are in the registers of its calling
/// convention. A panic or an exception leaves the function without a return. `parts` are its parts that lie elsewhere,
/// if they are known. None of them returns.
///
/// # Errors
/// [`CodeError::LeftByJump`], [`CodeError::MayBeLeftByJump`] or [`CodeError::LeftAtEnd`] if another function may return
/// in its place. An indirect jump is accepted only if it belongs to a `switch` by distances, in a function whose parts
/// are known: a jump to an address in a table looks the same as a jump to a function in a table of functions.
/// [`CodeError::OutOfStep`], [`CodeError::CalledInside`] or [`CodeError::Unreached`] if what looks like a return may
/// not be one of the function's.
pub fn return_sites(code: &[u8], entry: u64, parts: Option<&Parts>) -> Result<Vec<SiteChoice>, CodeError> {
    let none = Parts::default();
    let is_known = parts.is_some();
    returns(code, entry, parts.unwrap_or(&none), |before, targets| {
        is_known && jumps_by_distance(before, targets)
    })
}

/// The same for a Go function. R14 holds the goroutine at each site.
///
/// # Errors
/// As for [`return_sites`]. Go uses jumps to addresses in a table for `switch` only.
pub fn go_return_sites(code: &[u8], entry: u64) -> Result<Vec<SiteChoice>, CodeError> {
    returns(code, entry, &Parts::default(), |before, _| before.last().is_some_and(jumps_by_go_table))
}

/// The parts of a function that lie elsewhere, none of which returns: the jumps between them and the function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// The targets of jumps from the function into the parts.
    entered: BTreeSet<u64>,
    /// The targets of jumps from the parts back into the function.
    left: BTreeSet<u64>,
}

impl Parts {
    /// Adds a part, unless it may return, or may lead to anything but itself and the code after `site` in the function,
    /// which each call must hit once. Part and function are given by code and start address.
    pub(in crate::image) fn add(&mut self, part: (&[u8], u64), whole: (&[u8], u64), site: u64) -> bool {
        let end = |(code, entry): (&[u8], u64)| entry.saturating_add(code.len() as u64);
        let is_inside = |target: u64| [part, whole].into_iter().any(|it| (it.1..end(it)).contains(&target));
        let (Ok(part), Ok(whole)) = (Body::decode(part.0, part.1), Body::decode(whole.0, whole.1)) else {
            return false;
        };
        // The instructions before the jump of a `switch` prove where it leads. A part must not jump past them.
        let is_jump = |i: &Instruction| i.flow_control() == FlowControl::IndirectBranch;
        let is_apart = |at: usize| !whole.instructions.iter().skip(at).take(2).any(is_jump);
        let is_behind = |target: u64| target.wrapping_sub(whole.entry) > site;
        let stays = |i: &Instruction| {
            let target = i.near_branch_target();
            match i.flow_control() {
                FlowControl::Call => !is_inside(target) || target == whole.entry,
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                    part.index_of(target).is_some()
                        || (is_behind(target) && whole.index_of(target).is_some_and(is_apart))
                }
                FlowControl::Return | FlowControl::IndirectBranch | FlowControl::XbeginXabortXend => false,
                _ => true,
            }
        };
        // Padding runs into whatever follows it.
        if filled_from(&part) == 0 || check_end(&part, None).is_err() || !part.instructions.iter().all(stays)
        {
            return false;
        }
        self.entered.extend(jumps_into(&whole, &part));
        self.left.extend(jumps_into(&part, &whole));
        true
    }
}

/// The targets in `to` of jumps from `from`.
fn jumps_into(from: &Body, to: &Body) -> impl Iterator<Item = u64> {
    let jumps = from.instructions.iter().filter(|i| jumps_near(i) && !is_call(i));
    jumps.map(Instruction::near_branch_target).filter(move |target| to.index_of(*target).is_some())
}

/// Returns the sites at which a function returns. `stays` decides whether the last of some instructions, an indirect
/// jump, continues in the function or its parts. It gets these instructions and the targets of all direct jumps.
fn returns(
    code: &[u8],
    entry: u64,
    parts: &Parts,
    stays: impl Fn(&[Instruction], &BTreeSet<u64>) -> bool,
) -> Result<Vec<SiteChoice>, CodeError> {
    let body = Body::decode(code, entry)?;
    let end = entry.saturating_add(code.len() as u64);
    let is_indirect = |i: &Instruction| i.flow_control() == FlowControl::IndirectBranch;
    // Most functions have no indirect jump, and need no targets.
    let asked = body.instructions.iter().any(is_indirect);
    let named = body.instructions.iter().filter(|i| asked && jumps_near(i));
    let targets: BTreeSet<u64> = named.map(Instruction::near_branch_target).collect();
    let mut returns = Vec::new();
    for (index, instruction) in body.instructions.iter().enumerate() {
        check_in_step(&body, instruction, end)?;
        let target = instruction.near_branch_target();
        let leaves = !(entry..end).contains(&target) && !parts.entered.contains(&target);
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
    // Counted before they are described: a large function may consist of nothing but returns.
    match returns.len() {
        0 => return Err(CodeError::NoReturn),
        1..=MAX_RETURNS => {}
        _ => return Err(CodeError::TooManyReturns),
    }
    let back = parts.left.iter().filter_map(|target| body.index_of(*target));
    let reached = (!asked).then(|| reached(&body, iter::once(0).chain(back).collect()));
    check_end(&body, reached.as_deref())?;
    if let Some(reached) = reached {
        check_reached(&body, &reached, &returns)?;
    }
    let site = |index| body.describe(index, SiteKind::Return, "one of the function's returns", code);
    returns.into_iter().map(site).collect()
}

/// Refuses a jump into the middle of an instruction, and a call of a part of the function. Such a part returns to the
/// rest of the function, or uses its return address for something else: a retpoline jumps by `ret`, and other code has
/// data after the call.
fn check_in_step(body: &Body, instruction: &Instruction, end: u64) -> Result<(), CodeError> {
    let target = instruction.near_branch_target();
    if !jumps_near(instruction) || !(body.entry..end).contains(&target) {
        return Ok(());
    }
    let (from, to) = (body.offset(instruction), target.wrapping_sub(body.entry));
    if body.index_of(target).is_none() {
        return Err(CodeError::OutOfStep { from, to });
    }
    let is_recursion = target == body.entry;
    if instruction.flow_control() == FlowControl::Call && !is_recursion {
        return Err(CodeError::CalledInside { from, to });
    }
    Ok(())
}

/// Refuses a function whose last instruction, if reached, runs into what follows the function. Without `reached`, any
/// instruction except padding may be reached, as by a `switch`.
fn check_end(body: &Body, reached: Option<&[bool]>) -> Result<(), CodeError> {
    let last = match reached {
        Some(reached) => reached.len().checked_sub(1).filter(|last| reached.get(*last) == Some(&true)),
        None => filled_from(body).checked_sub(1),
    };
    let Some(last) = last.and_then(|last| body.instructions.get(last)) else { return Ok(()) };
    // A call may be of a function that never returns, and an interrupt or halt ends a program.
    let goes_on = match last.flow_control() {
        FlowControl::Next => last.mnemonic() != Mnemonic::Hlt,
        FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend => true,
        _ => false,
    };
    if goes_on { Err(CodeError::LeftAtEnd { from: body.offset(last) }) } else { Ok(()) }
}

/// The index of the first instruction of the padding at the end.
fn filled_from(body: &Body) -> usize {
    let last = body.instructions.iter().rposition(|i| i.mnemonic() != Mnemonic::Nop);
    last.map_or(0, |last| last + 1)
}

/// Refuses a return that is reached neither from the entry nor after a call.
fn check_reached(body: &Body, reached: &[bool], returns: &[usize]) -> Result<(), CodeError> {
    let is_unreached = |index: &usize| reached.get(*index) == Some(&false);
    // In most functions, all returns are reached.
    if !returns.iter().any(is_unreached) {
        return Ok(());
    }
    let calls = body.instructions.iter().enumerate().filter(|(index, i)| is_unreached(index) && is_call(i));
    let behind_calls = self::reached(body, calls.map(|(index, _)| index + 1).collect());
    let is_unknown = |index: &&usize| is_unreached(index) && behind_calls.get(**index) == Some(&false);
    let unknown = returns.iter().find(is_unknown).and_then(|index| body.instructions.get(*index));
    unknown.map_or(Ok(()), |i| Err(CodeError::Unreached { offset: body.offset(i) }))
}

/// Returns which instructions are reached from some others. A call returns, unless only padding follows it.
fn reached(body: &Body, mut ways: Vec<usize>) -> Vec<bool> {
    let filled_from = filled_from(body);
    let mut reached = vec![false; body.instructions.len()];
    while let Some(index) = ways.pop() {
        let (Some(known), Some(i)) = (reached.get_mut(index), body.instructions.get(index)) else { continue };
        if mem::replace(known, true) {
            continue;
        }
        let ends = matches!(
            i.flow_control(),
            FlowControl::UnconditionalBranch
                | FlowControl::IndirectBranch
                | FlowControl::Return
                | FlowControl::Exception
        );
        let is_last_call = is_call(i) && index + 1 == filled_from;
        if !ends && !is_last_call {
            ways.push(index + 1);
        }
        if jumps_near(i) && !is_call(i) {
            ways.extend(body.index_of(i.near_branch_target()));
        }
    }
    reached
}

/// Whether an instruction calls a function. A system call is not one.
fn is_call(i: &Instruction) -> bool {
    match i.flow_control() {
        FlowControl::Call => jumps_near(i),
        FlowControl::IndirectCall => true,
        _ => false,
    }
}

/// Whether the last of some instructions jumps to the address of a table plus a distance from that table. Compilers
/// make this of a `switch` in position-independent code: `movsxd rax, dword ptr [rdx+rdi*4]; add rax, rdx; jmp rax`.
/// Nothing jumps in between.
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

/// Whether an instruction jumps to an address in a table, as Go does for a `switch` (`BlockAMD64JUMPTABLE` in
/// cmd/compile/internal/amd64/ssa.go @ go1.26). For a tail call, Go jumps by a register.
fn jumps_by_go_table(jump: &Instruction) -> bool {
    jump.code() == Code::Jmp_rm64
        && jump.op0_kind() == OpKind::Memory
        && jump.memory_base() != Register::None
        && jump.memory_index() != Register::None
        && jump.memory_index_scale() == 8
}

#[cfg(test)]
mod tests {
    use super::super::{
        CostClass,
        tests::{ENTRY, bytes},
    };
    use super::*;

    /// The returns of a function without parts elsewhere.
    fn return_sites(code: &[u8], entry: u64) -> Result<Vec<SiteChoice>, CodeError> {
        super::return_sites(code, entry, Some(&Parts::default()))
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
            // return handlers[x](y), in position-independent code and in other code:
            // lea rax, [rip+0x1000]; jmp [rax+rdi*8], and jmp [rdi*8+0x402000]
            ("488d0500100000 ff24f8 c3", 7),
            ("ff24fd00204000 c3", 0),
            // A distance that is not in a table: movsxd rax, [rdx]; add rax, rdx; jmp rax
            ("486302 4801d0 ffe0 c3", 6),
        ] {
            assert_eq!(error(hex), CodeError::MayBeLeftByJump { from }, "{hex}");
        }
    }

    #[test]
    fn a_function_with_a_switch_returns_itself() {
        let returns = |sites: Vec<SiteChoice>| sites.iter().map(|site| site.offset).collect::<Vec<_>>();
        // lea rdx, [rip+0x1000]; movsxd rax, [rdx+rdi*4]; add rax, rdx; notrack jmp rax; mov eax, 1; ret; xor eax, eax;
        // ret
        let switch = "488d1500100000 486304ba 4801d0 3effe0 b801000000 c3 31c0 c3";
        assert_eq!(return_sites(&bytes(switch), ENTRY).map(returns), Ok(vec![22, 25]));
        // Its table may lead to a part that lies elsewhere.
        let in_parts = super::return_sites(&bytes(switch), ENTRY, None);
        assert_eq!(in_parts, Err(CodeError::MayBeLeftByJump { from: 14 }));
        // Without a jump by a table, it is known where a function continues: ret
        assert!(super::return_sites(&bytes("c3"), ENTRY, None).is_ok());
        // The sum is in the other register: add rdx, rax; jmp rdx
        let other = switch.replace("4801d0 3effe0", "4801c2 ffe2");
        assert_eq!(return_sites(&bytes(&other), ENTRY).map(returns), Ok(vec![21, 24]));
        // Something else also jumps to the jump.
        let joined = bytes(&format!("{switch} ebf2"));
        assert_eq!(return_sites(&joined, ENTRY), Err(CodeError::MayBeLeftByJump { from: 14 }));
        // As Go makes it: lea rcx, [rip+0x1000]; jmp [rcx+rax*8]; ret. And a tail call: jmp rcx.
        let go = bytes("488d0d00100000 ff24c1 c3");
        assert_eq!(go_return_sites(&go, ENTRY).map(returns), Ok(vec![10]));
        assert_eq!(go_return_sites(&bytes("ffe1 c3"), ENTRY), Err(CodeError::MayBeLeftByJump { from: 0 }));
    }

    #[test]
    fn a_part_stays_in_its_function_unless_it_returns_or_leads_elsewhere() {
        // Sixteen bytes after the start of the part: lea rdx, [rip+0x1000]; movsxd rax, [rdx+rdi*4]; add rax, rdx; jmp
        // rax; ret
        let whole = bytes("488d1500100000 486304ba 4801d0 ffe0 c3");
        let stays_behind =
            |hex: &str, site| Parts::default().add((&bytes(hex), ENTRY), (&whole, ENTRY + 16), site);
        let stays = |hex: &str| stays_behind(hex, 0);
        for hex in [
            // As an exception continues: mov rdi, rbx; call elsewhere; and nop, or ud2
            "4889df e800100000",
            "4889df e800100000 90",
            "4889df e800100000 0f0b",
            // To the function's return, over a nop after a call by an address, and to its second instruction: jmp +30,
            // jmp +1, je +21
            "eb1e 90",
            "ff1500100000 eb01 90 cc",
            "7415 cc",
            // The function calls itself.
            "e80b000000 cc",
        ] {
            assert!(stays(hex), "{hex}");
        }
        for hex in [
            // ret; jmp rax; jmp [rip+0x1000]; jmp and je elsewhere
            "c3",
            "ffe0",
            "ff2500100000",
            "e900100000",
            "747f cc",
            // Into the middle of an instruction of the function, and of its own: jmp +15, and jmp -1
            "eb0f",
            "ebff",
            // To the jump of the `switch`, and to the instruction that computes its target: jmp +28, and jmp +25
            "eb1c",
            "eb19",
            // To the site that each call must hit once: je +14
            "740e cc",
            // A call of the function's return, and of its own end: call +27, and call +0
            "e81b000000 cc",
            "e800000000 cc",
            // Anything may follow it: mov rdi, rbx; nop; je +14
            "4889df",
            "90",
            "740e",
            // No instruction, and no bytes at all.
            "06",
            "",
        ] {
            assert!(!stays(hex), "{hex}");
        }
        // The same if the site is the second instruction.
        assert!(!stays_behind("7415 cc", 7));
    }

    #[test]
    fn a_jump_into_a_part_that_does_not_return_stays_in_the_function() {
        const PART: u64 = ENTRY + 64;
        let returns = |whole: &str, part: &str| {
            let (whole, mut parts) = (bytes(whole), Parts::default());
            assert!(parts.add((&bytes(part), PART), (&whole, ENTRY), 0), "{part}");
            let sites = super::return_sites(&whole, ENTRY, Some(&parts));
            sites.map(|sites| sites.iter().map(|site| site.offset).collect::<Vec<_>>())
        };
        // je to the part; nop; ret; mov eax, edi; ret
        let whole = "743e 90 c3 89f8 c3";
        assert_eq!(return_sites(&bytes(whole), ENTRY), Err(CodeError::LeftByJump { from: 0 }));
        // call elsewhere; int3
        assert_eq!(returns("743e 90 c3", "e800100000 cc"), Ok(vec![3]));
        assert_eq!(returns(whole, "e800100000 cc"), Err(CodeError::Unreached { offset: 6 }));
        // call elsewhere; jmp back, after the first return
        assert_eq!(returns(whole, "e800100000 ebbd"), Ok(vec![3, 6]));
        // je to the part; ret; mov eax, edi, at the end of the function. The part leads there, or does not.
        assert_eq!(returns("743e c3 89f8", "e800100000 cc"), Ok(vec![2]));
        assert_eq!(returns("743e c3 89f8", "e800100000 ebbc"), Err(CodeError::LeftAtEnd { from: 3 }));
        // Into the middle of its call, and past it: je +63, and je +68
        assert_eq!(returns("743f c3", "e800100000 cc"), Err(CodeError::LeftByJump { from: 0 }));
        assert_eq!(returns("7444 c3", "e800100000 cc"), Err(CodeError::LeftByJump { from: 0 }));
    }

    #[test]
    fn a_function_that_goes_on_behind_its_end_has_no_returns() {
        let switch = "488d1500100000 486304ba 4801d0 ffe0 c3";
        for (hex, from) in [
            // test edi, edi; je +1; ret; nop
            ("85ff 7401 c3 90".to_owned(), 5),
            // je +2; nop; ret; je to the nop
            ("7402 90 c3 74fc".to_owned(), 4),
            // A call that may return, with code after it: test edi, edi; je +1; ret; call elsewhere; mov eax, edi
            ("85ff 7401 c3 e800100000 89f8".to_owned(), 10),
            // mov eax, edi, or a jump to it, to which a table may lead
            (format!("{switch} 89f8"), 17),
            (format!("{switch} 89f8 90"), 17),
            (format!("{switch} 74fd"), 17),
        ] {
            let error = return_sites(&bytes(&hex), ENTRY).expect_err("no sites");
            assert_eq!(error, CodeError::LeftAtEnd { from }, "{hex}");
        }
        // Endings that compilers make, after test edi, edi; je +1; ret: call elsewhere; the same and nop; ud2; int3;
        // hlt; a call and int3; a call, nop and int3. Or after the return: nop.
        for end in ["e800100000", "e800100000 90", "0f0b", "cc", "f4", "e800100000 cc", "e800100000 90 cc"] {
            for begin in ["85ff 7401 c3", switch] {
                let sites = return_sites(&bytes(&format!("{begin} {end}")), ENTRY);
                assert!(sites.is_ok_and(|sites| sites.len() == 1), "{begin} {end}");
            }
        }
        for hex in ["c3 90".to_owned(), format!("{switch} 90")] {
            assert!(return_sites(&bytes(&hex), ENTRY).is_ok(), "{hex}");
        }
    }

    #[test]
    fn data_among_the_code_is_no_return() {
        let error = |hex: &str| return_sites(&bytes(hex), ENTRY).expect_err("no sites");
        // jmp +3; b8 c3 00, which is data; ret; nop. Decoded in sequence: jmp +3; mov eax, 0x90c300c3.
        assert_eq!(error("eb03 b8c300 c3 90"), CodeError::OutOfStep { from: 0, to: 5 });
        // je +4; ret; nop dword ptr [rax]; ret; jmp into the middle of the nop
        assert_eq!(error("7404 c3 0f1f 00 c3 ebfc"), CodeError::OutOfStep { from: 7, to: 5 });
        // jmp +1; c3, which is data; ret
        assert_eq!(error("eb01 c3 c3"), CodeError::Unreached { offset: 2 });
        // A system call does not distinguish it from data: ret; syscall; ret
        assert_eq!(error("c3 0f05 c3"), CodeError::Unreached { offset: 3 });
        // After the end: ret; int3; ret
        assert_eq!(go_return_sites(&bytes("c3 cc c3"), ENTRY), Err(CodeError::Unreached { offset: 2 }));
    }

    #[test]
    fn what_an_exception_is_handled_with_returns_as_well() {
        let returns = |hex: &str| {
            let sites = return_sites(&bytes(hex), ENTRY);
            sites.map(|sites| sites.iter().map(|site| site.offset).collect::<Vec<_>>())
        };
        // test edi, edi; je +1; ret; ret; mov rdi, rax; call elsewhere; ret
        assert_eq!(returns("85ff 7401 c3 c3 4889c7 e800100000 c3"), Ok(vec![4, 5, 14]));
        // The same with a call by an address, continued by code before it: ret; ret; mov rdi, rax; call [rip+0x1000];
        // jmp to the second
        assert_eq!(returns("c3 c3 4889c7 ff1500100000 ebf4"), Ok(vec![0, 1]));
        // What follows in the file does not follow at run time: ret; call elsewhere; ud2; ret
        assert_eq!(returns("c3 e800100000 0f0b c3"), Err(CodeError::Unreached { offset: 8 }));
    }

    #[test]
    fn a_function_of_which_a_part_is_called_has_no_returns() {
        let error = |hex: &str| return_sites(&bytes(hex), ENTRY).expect_err("no sites");
        // A retpoline: call +7; pause; lfence; jmp to the pause; mov [rsp], rax; ret
        let thunk = "e807000000 f390 0faee8 ebf9 48890424 c3";
        assert_eq!(error(thunk), CodeError::CalledInside { from: 0, to: 12 });
        // A text after the call: call +2; 68 69, which is data; pop rdi; ret
        assert_eq!(error("e802000000 6869 5f c3 9090"), CodeError::OutOfStep { from: 0, to: 7 });
        // A function that calls itself: call to the entry; ret
        assert!(return_sites(&bytes("e8fbffffff c3"), ENTRY).is_ok_and(|sites| sites.len() == 1));
    }

    #[test]
    fn returns_are_counted_before_they_are_described() {
        // The first could not be probed: cs ret
        let code = [&[0x2e][..], &[0xc3; MAX_RETURNS + 1]].concat();
        assert_eq!(return_sites(&code, ENTRY), Err(CodeError::TooManyReturns));
    }
}
