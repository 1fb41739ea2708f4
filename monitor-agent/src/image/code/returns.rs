//! Where a function returns, and the proof that no other returns in its place.

use std::collections::BTreeSet;

use iced_x86::{Code, FlowControl, Instruction, OpKind, Register};

use super::{Body, CodeError, SiteChoice, SiteKind, jumps_near};

/// Functions have a few.
pub(super) const MAX_RETURNS: usize = 32;

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

#[cfg(test)]
mod tests {
    use super::super::{
        CostClass,
        tests::{ENTRY, bytes},
    };
    use super::*;

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
}
