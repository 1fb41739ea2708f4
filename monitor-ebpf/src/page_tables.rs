//! Reading a target's memory by its page tables: what the programs need for it, and how it is tested.

/// Layout of a process's page tables in this kernel, and the address at which the kernel maps all memory for itself,
/// which includes the tables. Such reads take far less time than those by `bpf_probe_read_user`.
///
/// The agent determines it and proves it on itself. x86-64 only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageTables {
    /// Address at which the kernel maps all memory, page after page (`page_offset_base`); 0 when programs must
    /// not use page tables.
    pub memory: u64,
    /// Bits of an entry that hold an address.
    pub frame: u64,
    /// Offset of `mm` in `struct task_struct`.
    pub mm_at: u32,
    /// Offset of `pgd` in `struct mm_struct`.
    pub root_at: u32,
    /// Number of levels of tables: 4 or 5.
    pub levels: u32,
    /// Offset of `context.tlb_gen` in `struct mm_struct`.
    pub flushes_at: u32,
}

impl PageTables {
    /// No page tables: programs ask the kernel for each read.
    pub const NONE: Self = Self { memory: 0, frame: 0, mm_at: 0, root_at: 0, levels: 0, flushes_at: 0 };
}

/// Placeholders in the object, which the agent replaces by numbers of the running kernel.
///
/// The verifier lets a program read kernel memory only through pointers to the kernel's own types. A kernel function
/// makes such a pointer from a number (`bpf_rdonly_cast`, Linux 6.2); the kernel replaces the call by a move. A read
/// where nothing is mapped faults without harm and gives zero.
pub mod patched {
    /// Placeholder for the number of that function. Where there is none, the agent replaces the call by `r0 = 0`,
    /// which the verifier must find unreachable.
    pub const CAST: i32 = 0x7fff_fe00;
    /// Placeholder for the number of a structure that begins with [`WORDS`] words.
    pub const STRUCTURE: i32 = 0x7fff_fe01;
    /// Number of words that may be read through one such pointer. `struct pt_regs` begins with seventeen.
    pub const WORDS: usize = 16;
}

/// What the program that tests page tables is to do: the third argument of the probed function, unless it is the length
/// of a mapping.
pub mod trial {
    /// Read words as programs do. The second argument is the number of flushes that are taken to have been missed.
    pub const AS_PROGRAMS: u64 = 0;
    /// Time reads of a text's length on [`PAGES`] pages in a row. The second argument is 1 for reads by page tables, 0 for
    /// reads by asking the kernel.
    pub const TIMED: u64 = u64::MAX;
    /// Number of pages, and of reads, that are timed together. A finish on a Kitex server has as many.
    pub const PAGES: usize = 4;
}

/// Result of the program that tests page tables.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Address of the top-level table.
    pub root: u64,
    /// How often the process's address translations have been flushed.
    pub flushes: u64,
    /// 1 if the words were read.
    pub is_read: u64,
    /// How long the timed reads took, in nanoseconds; see [`trial`].
    pub took_ns: u64,
    /// The words at the requested address.
    pub words: [u64; PROOF_WORDS],
}

/// Number of words that are compared.
pub const PROOF_WORDS: usize = patched::WORDS;

impl Proof {
    /// Nothing found yet.
    pub const NONE: Self = Self { root: 0, flushes: 0, is_read: 0, took_ns: 0, words: [0; PROOF_WORDS] };
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)` and made of integers of eight bytes.
    unsafe impl aya::Pod for super::Proof {}
}

const _: () = {
    assert!(size_of::<PageTables>() == 32);
    assert!(size_of::<Proof>() == 32 + PROOF_WORDS * 8);
};
