//! Reading a target's memory by its page tables: what programs have to know for it, and how they are tried.

/// How this kernel keeps a process's page tables, which lie in memory as everything does, and where it has all memory
/// mapped for itself. Reads take far less time so than those by `bpf_probe_read_user`.
///
/// The agent finds it out and proves it on itself. x86-64 only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageTables {
    /// Where the kernel has all memory mapped, one page behind the other (`page_offset_base`); 0 when programs
    /// are not to go by page tables.
    pub memory: u64,
    /// Bits of an entry that are an address.
    pub frame: u64,
    /// Offset of `mm` in `struct task_struct`.
    pub mm_at: u32,
    /// Offset of `pgd` in `struct mm_struct`.
    pub root_at: u32,
    /// How many tables lead to a page: 4, or 5.
    pub levels: u32,
    /// Offset of `context.tlb_gen` in `struct mm_struct`.
    pub flushes_at: u32,
}

impl PageTables {
    /// Programs ask the kernel for each read.
    pub const NONE: Self = Self { memory: 0, frame: 0, mm_at: 0, root_at: 0, levels: 0, flushes_at: 0 };
}

/// Numbers that the object has where the agent has to write what only the running kernel tells.
///
/// The verifier lets a program read the kernel's memory through pointers to the kernel's own types only, and has a
/// function that makes such a pointer of a number (`bpf_rdonly_cast`, Linux 6.2). The kernel puts a move in place of the
/// call. What is read there faults without harm if nothing is mapped, and is zero then.
pub mod patched {
    /// In place of the number of that function. Where there is none, the agent puts `r0 = 0` in place of the call,
    /// which the verifier must find unreachable.
    pub const CAST: i32 = 0x7fff_fe00;
    /// In place of the number of a structure that begins with [`WORDS`] words.
    pub const STRUCTURE: i32 = 0x7fff_fe01;
    /// Words that may be read through one such pointer. `struct pt_regs` begins with seventeen.
    pub const WORDS: usize = 16;
}

/// What the program that tries page tables has found.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Where the first table lies.
    pub root: u64,
    /// How often translations of addresses of the process have been flushed.
    pub flushes: u64,
    /// 1 if tables led somewhere.
    pub is_read: u64,
    /// What lies at the address that it was asked for.
    pub words: [u64; PROOF_WORDS],
}

/// Words that are compared.
pub const PROOF_WORDS: usize = patched::WORDS;

impl Proof {
    /// Nothing found yet.
    pub const NONE: Self = Self { root: 0, flushes: 0, is_read: 0, words: [0; PROOF_WORDS] };
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)` and made of integers of eight bytes.
    unsafe impl aya::Pod for super::Proof {}
}

const _: () = {
    assert!(size_of::<PageTables>() == 32);
    assert!(size_of::<Proof>() == 24 + PROOF_WORDS * 8);
};
