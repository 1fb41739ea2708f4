//! The programs' stack usage, computed like the verifier's for every kernel. Newer kernels would give each function a
//! private stack, but the programs must not have one (`object.rs`).

use std::collections::{BTreeSet, HashSet};

use aya_obj::generated::{
    BPF_ADD, BPF_ALU64, BPF_CALL, BPF_JMP, BPF_K, BPF_LDX, BPF_MOV, BPF_PSEUDO_CALL, BPF_ST, BPF_STX, BPF_X,
    bpf_insn,
};

/// Limit for all frames of a call chain, in bytes.
const LIMIT: usize = 512;
/// A frame's size is rounded up to a multiple of this.
const STEP: usize = 32;
/// The frame pointer: the end of a function's stack.
const FRAME: usize = 10;
const REGISTERS: usize = 11;
/// Calls clobber the registers before this one.
const KEPT: usize = 6;
const CLASS: u8 = 0x07;

/// A program's instructions, function after function, and where each function begins.
struct Functions<'a> {
    instructions: &'a [bpf_insn],
    begins: BTreeSet<usize>,
}

impl<'a> Functions<'a> {
    fn of(instructions: &'a [bpf_insn]) -> Self {
        let called = (0..instructions.len()).filter_map(|at| call(instructions, at));
        Self { instructions, begins: called.chain([0]).collect() }
    }

    fn places(&self, begin: usize) -> std::ops::Range<usize> {
        begin..self.begins.range(begin + 1..).next().copied().unwrap_or(self.instructions.len())
    }

    /// Returns the call chain that needs most stack: where each function begins, and its bytes.
    fn deepest(&self, begin: usize) -> Vec<(usize, usize)> {
        let called: BTreeSet<_> = self.places(begin).filter_map(|at| call(self.instructions, at)).collect();
        let below = called.into_iter().map(|begin| self.deepest(begin)).max_by_key(|chain| sum(chain));
        let own = (begin, frame(&self.instructions[self.places(begin)]));
        [vec![own], below.unwrap_or_default()].concat()
    }
}

/// Returns where the function called by this instruction begins.
fn call(instructions: &[bpf_insn], at: usize) -> Option<usize> {
    let one = instructions[at];
    let is_call = u32::from(one.code) == BPF_JMP | BPF_CALL && u32::from(one.src_reg()) == BPF_PSEUDO_CALL;
    is_call.then(|| (at + 1).checked_add_signed(isize::try_from(one.imm).ok()?)).flatten()
}

/// Returns a function's frame size, from the lowest stack address that it computes or uses.
fn frame(instructions: &[bpf_insn]) -> usize {
    // Each register's offset from the frame pointer, in the order of the text, as the compiler computes addresses.
    let mut from_frame: [Option<i64>; REGISTERS] = [None; REGISTERS];
    from_frame[FRAME] = Some(0);
    let mut lowest = 0;
    for one in instructions {
        let (to, from) = (usize::from(one.dst_reg()), usize::from(one.src_reg()));
        let class = u32::from(one.code & CLASS);
        let code = u32::from(one.code);
        let base = if class == BPF_LDX { from_frame[from] } else { from_frame[to] };
        if [BPF_LDX, BPF_ST, BPF_STX].contains(&class) {
            lowest = lowest.min(base.map_or(0, |base| base + i64::from(one.off)));
        }
        if code == BPF_JMP | BPF_CALL {
            from_frame[..KEPT].fill(None);
        } else if code == BPF_ALU64 | BPF_MOV | BPF_X {
            from_frame[to] = from_frame[from];
        } else if code == BPF_ALU64 | BPF_ADD | BPF_K {
            from_frame[to] = from_frame[to].map(|offset| offset + i64::from(one.imm));
        } else if ![BPF_ST, BPF_STX, BPF_JMP].contains(&class) {
            from_frame[to] = None;
        }
        lowest = lowest.min(from_frame.iter().flatten().copied().min().unwrap_or_default());
    }
    usize::try_from(-lowest).unwrap_or_default().max(1).next_multiple_of(STEP)
}

fn sum(chain: &[(usize, usize)]) -> usize {
    chain.iter().map(|(_, bytes)| bytes).sum()
}

/// Describes a chain. Functions are recognised by their opcodes: when the linker appends them to a program, it
/// changes only numbers in their instructions.
fn told(
    program: &str,
    all: &[aya_obj::Function],
    linked: &Functions<'_>,
    chain: &[(usize, usize)],
) -> String {
    let codes = |instructions: &[bpf_insn]| instructions.iter().map(|one| one.code).collect::<Vec<_>>();
    let mut told = format!("{program}: {} bytes", sum(chain));
    for (begin, bytes) in chain {
        let wanted = codes(&linked.instructions[linked.places(*begin)]);
        let found = all.iter().find(|function| *begin > 0 && codes(&function.instructions) == wanted);
        let name = found.map_or(program, |function| &function.name);
        told.extend([format!(", {:#} {bytes}", rustc_demangle::demangle(name))]);
    }
    told
}

#[test]
fn every_program_fits_the_stack_that_older_kernels_give() {
    let mut object = aya_obj::Object::parse(super::object::OBJECT).expect("an object");
    let all: Vec<_> = object.functions.values().cloned().collect();
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections).expect("functions that can be linked");
    let mut over = Vec::new();
    for (name, program) in &object.programs {
        let functions = Functions::of(&object.functions[&program.function_key()].instructions);
        let chain = functions.deepest(0);
        if sum(&chain) > LIMIT {
            over.push(told(name, &all, &functions, &chain));
        }
    }
    assert!(!object.programs.is_empty() && over.is_empty(), "more than {LIMIT}:\n{}", over.join("\n"));
}
