//! Functions that no Go compiler has made: where they are, and where in them to put a probe.
//!
//! Only their symbol is known: name, address and size. At their entry, arguments are in the registers of System V's
//! calling convention, and the stack pointer points to the return address.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::{
    CodeError, CostClass, Image, ImageError, Parts, SiteChoice, SiteKind,
    code::{Body, MAX_CODE, cost},
};

/// The most functions that are kept. A pattern of a spec may match a few.
const MAX_FOUND: usize = 1 << 14;
/// The most names that are kept of one address.
const NAMES_MAX: usize = 4;
/// The most parts of a function that are checked. Functions have one or two.
const PARTS_MAX: usize = 8;
/// The first push or branch of a function is one of its first few instructions.
const MAX_PROLOGUE: usize = 8;

/// A function in the symbol table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeFunction {
    /// Its name in the table, mangled if the compiler does that.
    pub name: String,
    /// Link-time address of its first instruction.
    pub entry: u64,
    /// Its size in bytes.
    pub size: u64,
    /// A bit for each user that wants the function.
    pub wanted_by: u64,
}

impl Image {
    /// Returns the functions that have a size and a wanted name, by address, each once. If a function has several
    /// names, the first wanted one is kept. `wanted_by` returns a bit for each user that wants a name. There are never
    /// more than some ten thousand functions.
    pub fn native_functions(
        &self,
        wanted_by: &mut dyn FnMut(&str) -> u64,
    ) -> Result<Vec<NativeFunction>, ImageError> {
        let mut found: BTreeMap<u64, NativeFunction> = BTreeMap::new();
        self.visit_functions(&mut |name, entry, size| {
            let wanted_by = if found.len() < MAX_FOUND { wanted_by(name) } else { 0 };
            if wanted_by != 0 {
                let new = || NativeFunction { name: name.to_owned(), entry, size, wanted_by: 0 };
                found.entry(entry).or_insert_with(new).wanted_by |= wanted_by;
            }
        })?;
        Ok(found.into_values().collect())
    }

    /// Returns the names of the functions at some addresses, a few of each. A function has several names if one is an
    /// alias, as C++ constructors have, or if the linker has merged functions with the same code.
    pub fn native_names(
        &self,
        entries: &BTreeSet<u64>,
    ) -> Result<BTreeMap<u64, BTreeSet<String>>, ImageError> {
        let mut names: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
        self.visit_functions(&mut |name, entry, _| {
            if entries.contains(&entry) {
                let known = names.entry(entry).or_default();
                if known.len() < NAMES_MAX {
                    known.insert(name.to_owned());
                }
            }
        })?;
        Ok(names)
    }

    /// Returns the parts of functions that lie elsewhere, by the addresses of the functions. Returns an error if they
    /// are unknown or may return. A symbol is of a part if it is a name of the function with a suffix, and its code
    /// shows whether it returns.
    pub fn native_parts(
        &self,
        functions: &[NativeFunction],
    ) -> Result<BTreeMap<u64, Result<Parts, CodeError>>, ImageError> {
        if !self.has_local_functions()? {
            let unknown = functions.iter().map(|function| (function.entry, Err(CodeError::PartsUnknown)));
            return Ok(unknown.collect());
        }
        let names = self.native_names(&functions.iter().map(|function| function.entry).collect())?;
        let mut parts: BTreeMap<&str, Vec<NativeFunction>> =
            names.values().flatten().map(|name| (name.as_str(), Vec::new())).collect();
        self.visit_parts(&mut |symbol, entry, size| {
            let parts = whole_of(symbol).and_then(|whole| parts.get_mut(whole));
            if let Some(parts) = parts.filter(|parts| parts.len() <= PARTS_MAX) {
                parts.push(NativeFunction { name: symbol.to_owned(), entry, size, wanted_by: 0 });
            }
        })?;
        let check = |function: &NativeFunction| {
            let names = names.get(&function.entry).filter(|names| names.len() < NAMES_MAX);
            let names = names.ok_or(CodeError::TooManyNames)?;
            let parts = names.iter().filter_map(|name| parts.get(name.as_str())).flatten();
            self.check_parts(function, parts)
        };
        Ok(functions.iter().map(|function| (function.entry, check(function))).collect())
    }

    /// Refuses a function if one of its parts may return.
    fn check_parts<'a>(
        &self,
        function: &NativeFunction,
        parts: impl Iterator<Item = &'a NativeFunction>,
    ) -> Result<Parts, CodeError> {
        // Code that cannot be read is unknown, like missing code.
        let code = |of: &NativeFunction| self.native_code(of).unwrap_or_default();
        let whole = code(function);
        // A function without a site is refused for that reason.
        let site = native_entry_site(&whole, function.entry).map_or(0, |site| site.offset);
        let mut known = Parts::default();
        let mut is_known =
            |part: &NativeFunction| known.add((&code(part), part.entry), (&whole, function.entry), site);
        let mut numbered = parts.enumerate();
        let part = numbered.find(|(number, part)| *number >= PARTS_MAX || !is_known(part));
        part.map_or(Ok(known), |(_, part)| Err(CodeError::PartMayReturn { part: part.name.clone() }))
    }

    /// Returns the instructions of a function.
    pub fn native_code(&self, function: &NativeFunction) -> Result<Vec<u8>, ImageError> {
        let size = usize::try_from(function.size).unwrap_or(usize::MAX);
        // One byte beyond the limit shows that the function is too long.
        self.read(function.entry, size.min(MAX_CODE + 1))
    }
}

/// Returns the suffixes of a symbol with their positions, the last one first. A compiler appends them to a function's
/// name for the code that it has made of the function. Names mangled by Rust contain dots as well.
fn suffixes(symbol: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_suffix = |text: &str| {
        !text.is_empty() && text.bytes().all(|c| c == b'_' || c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    let mut rest = symbol;
    std::iter::from_fn(move || {
        let (before, suffix) = rest.rsplit_once('.')?;
        rest = before;
        (!before.is_empty() && is_suffix(suffix)).then_some((before.len(), suffix))
    })
}

/// Returns the name of the whole function if the symbol is of a part of it: of code that rarely runs (`.cold` of gcc
/// and LLVM), or of code that LLVM has put into another section (`.__part.N`, and `.eh` for exceptions). Function and
/// part jump to each other in the middle, so neither the return address nor the arguments are where they are at an
/// entry.
fn whole_of(symbol: &str) -> Option<&str> {
    let part = suffixes(symbol).find(|(_, suffix)| matches!(*suffix, "cold" | "__part" | "eh"));
    part.and_then(|(at, _)| symbol.get(..at))
}

/// Whether a symbol is of a part of a function, not of a function that the source calls. Code that gcc has put into a
/// function of its own (`.part.N`) also counts as a part, although it is called and returns.
#[must_use]
pub fn is_native_part(symbol: &str) -> bool {
    whole_of(symbol).is_some() || suffixes(symbol).any(|(_, suffix)| suffix == "part")
}

/// Whether a symbol is of a thunk. In the virtual tables of C++, a thunk takes the place of a method if `this`, or the
/// result, must be adjusted. It continues in the method or calls it, so it would count the same call again.
#[must_use]
pub fn is_native_thunk(symbol: &str) -> bool {
    symbol.strip_prefix("_ZT").is_some_and(|kind| kind.starts_with(['h', 'v', 'c']))
}

/// Returns the name of the original function if the symbol shows that the compiler has made this one of it, with other
/// arguments: gcc leaves some out (`.constprop.N`), passes others instead or returns no result (`.isra.N`), or puts the
/// body of a loop (`._omp_fn.N`) or of a coroutine (`.actor`) into a function. LLVM does so too (`.omp_outlined`,
/// `.resume`).
#[must_use]
pub fn native_original(symbol: &str) -> Option<&str> {
    let is_other = |suffix: &str| {
        matches!(
            suffix,
            "constprop" | "isra" | "_omp_fn" | "omp_outlined" | "actor" | "resume" | "destroy" | "cleanup"
        )
    };
    let others = suffixes(symbol).filter(|(_, suffix)| is_other(suffix));
    others.last().and_then(|(at, _)| symbol.get(..at))
}

/// Chooses the site for a probe that reads the arguments of a function, and for one that needs its return address. At
/// the site, argument registers and stack pointer are as the caller left them, and one call hits it once.
pub fn native_entry_site(code: &[u8], entry: u64) -> Result<SiteChoice, CodeError> {
    let body = Body::decode(code, entry)?;
    if let Some(index) = emulated(&body)
        && body.check_once(index, &[]).is_ok()
    {
        let why =
            if index == 0 { "the first instruction" } else { "behind what leaves all arguments in place" };
        return body.describe(index, SiteKind::Entry, why, code);
    }
    body.check_once(0, &[])?;
    body.describe(
        0,
        SiteKind::Entry,
        "the first instruction: none that is emulated has all arguments in place",
        code,
    )
}

/// Returns the first emulated instruction on the straight path on which arguments and stack stay unchanged.
fn emulated(body: &Body) -> Option<usize> {
    for (index, instruction) in body.instructions.iter().enumerate().take(MAX_PROLOGUE) {
        if cost(instruction) == CostClass::Emulated {
            return Some(index);
        }
        if !leaves_arguments(instruction) {
            return None;
        }
    }
    None
}

/// Whether an instruction continues with the next one, and changes neither an argument register nor the stack pointer.
fn leaves_arguments(instruction: &Instruction) -> bool {
    if instruction.flow_control() != FlowControl::Next {
        return false;
    }
    match instruction.mnemonic() {
        Mnemonic::Endbr64 | Mnemonic::Nop | Mnemonic::Cmp | Mnemonic::Test => true,
        Mnemonic::Mov
        | Mnemonic::Lea
        | Mnemonic::Movzx
        | Mnemonic::Movsx
        | Mnemonic::Movsxd
        | Mnemonic::Xor => {
            instruction.op0_kind() == OpKind::Register && !is_argument(instruction.op0_register())
        }
        _ => false,
    }
}

/// Whether a register is for arguments, or is the stack pointer.
fn is_argument(register: Register) -> bool {
    matches!(
        register.full_register(),
        Register::RDI
            | Register::RSI
            | Register::RDX
            | Register::RCX
            | Register::R8
            | Register::R9
            | Register::RSP
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing::{GoFile, TEXT};
    use super::*;

    const ENTRY: u64 = 0x1000;

    /// Global functions, and local ones.
    const GLOBAL: u8 = 0x12;
    const LOCAL: u8 = 0x02;
    /// Local symbols without a type, like LLVM's for parts of functions.
    const UNTYPED: u8 = 0x00;

    /// A symbol of a function in the first section, by the offset of its name.
    fn symbol(name: usize, kind: u8, address: u64) -> Vec<u8> {
        let name = u32::try_from(name).expect("a short table").to_le_bytes();
        [&name[..], &[kind, 0, 1, 0], &address.to_le_bytes(), &8_u64.to_le_bytes()].concat()
    }

    /// A file with symbols of functions, each with its address.
    fn with_symbols(symbols: &[(&str, u64)]) -> Image {
        with_code(&symbols.iter().map(|(name, address)| (*name, GLOBAL, *address)).collect::<Vec<_>>(), &[])
    }

    /// The same with their kinds, and with more code after the existing code.
    fn with_code(symbols: &[(&str, u8, u64)], code: &[&'static [u8]]) -> Image {
        let (mut table, mut names) = (vec![0_u8; 24], vec![0_u8]);
        for (name, kind, address) in symbols {
            table.extend(symbol(names.len(), *kind, *address));
            names.extend(name.as_bytes());
            names.push(0);
        }
        with_table(table, names, code)
    }

    fn with_table(table: Vec<u8>, names: Vec<u8>, code: &[&'static [u8]]) -> Image {
        let unmapped = vec![(".symtab", 0, table), (".strtab", 0, names)];
        let more = code.iter().map(|code| ("more", *code)).collect();
        let (mut file, _) = GoFile { unmapped, more, ..GoFile::of_release(26) }.build();
        // The builder gives all sections one type. The symbol table is the fifth, and its names are in the sixth.
        let headers = u64::from_le_bytes(file[40..48].try_into().expect("eight bytes"));
        let symtab = usize::try_from(headers).expect("a small file") + 4 * 64;
        file[symtab + 4] = 2;
        file[symtab + 40] = 5;
        Image::parse(Box::new(file)).expect("an image")
    }

    #[test]
    fn all_names_of_an_address_are_known() {
        let many = [("e", TEXT + 16), ("d", TEXT + 16), ("c", TEXT + 16), ("b", TEXT + 16), ("a", TEXT + 16)];
        let symbols = [("folded", TEXT), ("wanted", TEXT), ("wanted", TEXT), ("other", TEXT + 8)];
        let image = with_symbols(&[&symbols[..], &many].concat());
        let found = image.native_functions(&mut |name| u64::from(name == "wanted")).expect("symbols");
        assert_eq!(found.iter().map(|one| (&*one.name, one.entry)).collect::<Vec<_>>(), [("wanted", TEXT)]);
        let names = image.native_names(&BTreeSet::from([TEXT, TEXT + 16])).expect("symbols");
        let of = |entry: u64| names[&entry].iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(of(TEXT), ["folded", "wanted"]);
        assert_eq!(of(TEXT + 16).len(), NAMES_MAX);
        assert!(!names.contains_key(&(TEXT + 8)));
    }

    #[test]
    fn thunks_are_told_by_their_symbols() {
        for thunk in ["_ZThn8_N1A1fEi", "_ZTv0_n24_N1A1fEi", "_ZTch0_h16_N1A1fEi"] {
            assert!(is_native_thunk(thunk), "{thunk}");
        }
        // Methods, a virtual table, and functions that initialise or find a thread-local variable.
        for symbol in
            ["_ZN1A1fEi", "_ZN2Th1fEi", "_Z2Thi", "_ZTV1A", "_ZTC1A0_1B", "_ZTH1x", "_ZTW1x", "_ZT", "f"]
        {
            assert!(!is_native_thunk(symbol), "{symbol}");
        }
    }

    #[test]
    fn what_is_made_of_a_function_is_told_by_suffixes() {
        for (part, whole) in [
            ("wanted.cold", "wanted"),
            ("wanted.cold.12", "wanted"),
            ("wanted.part.0.cold", "wanted.part.0"),
            ("wanted.__part.2", "wanted"),
            ("wanted.eh", "wanted"),
            ("wanted.constprop.0.cold", "wanted.constprop.0"),
            ("_ZN4shop6lookupEv.cold", "_ZN4shop6lookupEv"),
        ] {
            assert_eq!(whole_of(part), Some(whole), "{part}");
            assert!(is_native_part(part), "{part}");
        }
        assert!(is_native_part("wanted.part.0") && whole_of("wanted.part.0").is_none());
        for symbol in [
            "cold",
            ".cold",
            "wanted",
            "wanted.constprop.0",
            "wanted.llvm.123",
            "wanted_cold",
            "_ZN4core3ptr35drop_in_place$LT$api..cold..Part$GT$17h0123456789abcdefE",
        ] {
            assert_eq!(whole_of(symbol), None, "{symbol}");
            assert!(!is_native_part(symbol), "{symbol}");
        }
        let made = [
            "f.isra.0",
            "f.constprop.1",
            "f.constprop.0.cold",
            "f._omp_fn.0",
            "f.isra.0.constprop.0",
            "f.resume",
        ];
        assert!(made.into_iter().all(|symbol| native_original(symbol) == Some("f")));
        let others = ["f", "isra.0", "f.lto_priv.0", "f.isra_x", "resume", "f.llvm.7"];
        assert!(others.into_iter().all(|symbol| native_original(symbol).is_none()));
    }

    #[test]
    fn a_function_is_whole_unless_a_part_named_after_it_may_return() {
        let at = |number: u64| TEXT + 8 * number;
        // At 2: a return, then padding. At 3: mov rdi, rbx; call elsewhere. At 4: jmp past the first instruction of 0,
        // then padding. At 5: the same, to the first instruction.
        let code: [&[u8]; 4] = [
            b"\xcc\xcc\xcc\xcc",
            b"\x48\x89\xdf\xe8\x00\x10\x00\x00",
            b"\xeb\xdf\xcc\xcc\xcc\xcc\xcc\xcc",
            b"\xeb\xd6\xcc\xcc\xcc\xcc\xcc\xcc",
        ];
        let told = |symbols: &[(&str, u8, u64)]| {
            let cut = NativeFunction { name: "cut".to_owned(), entry: at(0), size: 8, wanted_by: 0 };
            let mut found = with_code(symbols, &code).native_parts(&[cut]).expect("symbols");
            found.remove(&at(0)).expect("the function").map(|_| ())
        };
        // A part may be named after either of its two names.
        let cut = [("cut", GLOBAL, at(0)), ("alias", GLOBAL, at(0)), ("other", LOCAL, at(1))];
        let with = |more: &[(&str, u8, u64)]| told(&[&cut[..], more].concat());
        let by_part = |part: &str| Err(CodeError::PartMayReturn { part: part.to_owned() });
        assert_eq!(with(&[]), Ok(()));
        for kind in [LOCAL, UNTYPED] {
            for part in ["cut.cold", "cut.cold.1", "cut.__part.1", "cut.eh", "alias.cold"] {
                assert_eq!(with(&[(part, kind, at(2))]), by_part(part));
                assert_eq!(with(&[(part, kind, at(5))]), by_part(part));
                // A part that ends in a call, as code that handles an exception, and one that jumps back into the
                // function.
                assert_eq!(with(&[(part, kind, at(3)), (part, kind, at(4))]), Ok(()), "{part}");
            }
        }
        // A function of its own, and parts of others.
        for symbol in ["cut.part.0", "cut.part.0.cold", "other.cold", "cut_cold"] {
            assert_eq!(with(&[(symbol, LOCAL, at(2))]), Ok(()), "{symbol}");
        }
        assert_eq!(with(&[("cut.cold", LOCAL, at(3)), ("cut.eh", UNTYPED, at(2))]), by_part("cut.eh"));
        // A part that is not in the file, and more parts than are checked.
        assert_eq!(with(&[("cut.cold", LOCAL, at(1 << 20))]), by_part("cut.cold"));
        assert_eq!(with(&[("cut.cold", LOCAL, at(3)); PARTS_MAX]), Ok(()));
        assert_eq!(with(&[("cut.cold", LOCAL, at(3)); PARTS_MAX + 1]), by_part("cut.cold"));
        let unknown = |told: Result<(), CodeError>| told.expect_err("a reason").to_string();
        let names = unknown(with(&[("third", GLOBAL, at(0)), ("fourth", GLOBAL, at(0))]));
        assert!(names.contains("more names than are looked at"), "{names}");
        // Without the symbols of parts.
        let stripped = unknown(told(&[("cut", GLOBAL, at(0))]));
        assert!(stripped.contains("no local symbols"), "{stripped}");
    }

    #[test]
    fn names_without_an_end_are_not_looked_at_forever() {
        let table: Vec<u8> = (0..100_000).flat_map(|_| symbol(0, GLOBAL, TEXT)).collect();
        let image = with_table(table, vec![b'x'; 8_192], &[]);
        let error = image.native_functions(&mut |_| 0).expect_err("no names");
        assert!(error.to_string().contains("longer names"), "{error}");
    }

    /// The offset, cost and text of a function's site.
    fn site(code: &[u8]) -> Result<(u64, CostClass, String), CodeError> {
        native_entry_site(code, ENTRY).map(|site| (site.offset, site.cost, site.instruction))
    }

    fn emulated(code: &[u8]) -> (u64, String) {
        let (offset, cost, text) = site(code).expect("a site");
        assert_eq!(cost, CostClass::Emulated, "{text}");
        (offset, text)
    }

    #[test]
    fn the_site_is_the_first_emulated_instruction_with_all_arguments_in_place() {
        // endbr64; push rbp; mov rbp, rsp; pop rbp; ret
        assert_eq!(emulated(b"\xf3\x0f\x1e\xfa\x55\x48\x89\xe5\x5d\xc3"), (4, "push rbp".to_owned()));
        // push r15; ret
        assert_eq!(emulated(b"\x41\x57\xc3"), (0, "push r15".to_owned()));
        // test edi, edi; jne +1; nop; ret
        let (offset, text) = emulated(b"\x85\xff\x75\x01\x90\xc3");
        assert!(offset == 2 && text.starts_with("jne"), "{offset} {text}");
        // mov eax, edi; push rbx; ret
        assert_eq!(emulated(b"\x89\xf8\x53\xc3").0, 2);
    }

    #[test]
    fn what_changes_arguments_or_stack_is_not_passed() {
        for code in [
            // sub rsp, 8; push rbx; ret
            &b"\x48\x83\xec\x08\x53\xc3"[..],
            // mov edi, esi; push rbx; ret
            b"\x89\xf7\x53\xc3",
            // xor ecx, ecx; push rbx; ret
            b"\x31\xc9\x53\xc3",
            // mov dl, 1; push rbx; ret
            b"\xb2\x01\x53\xc3",
            // pop rax; push rax; ret
            b"\x58\x50\xc3",
            // ret
            b"\xc3",
        ] {
            let (offset, cost, text) = site(code).expect("a site");
            assert_eq!((offset, cost), (0, CostClass::SingleStepped), "{text}");
        }
    }

    #[test]
    fn a_locked_instruction_is_refused() {
        // lock inc dword ptr [rdi]; ret
        assert_eq!(site(b"\xf0\xff\x07\xc3"), Err(CodeError::Locked { offset: 0 }));
    }

    #[test]
    fn one_call_hits_the_site_once() {
        // mov eax, edi; push rbx; jmp to the push: the first instruction is still entered once.
        let (offset, ..) = site(b"\x89\xf8\x53\xeb\xfd").expect("a site");
        assert_eq!(offset, 0);
        // push rbx; jmp to the push.
        assert!(matches!(site(b"\x53\xeb\xfd"), Err(CodeError::Reentered { .. })));
        // A call of the function itself is another call: push rbx; call to the push; pop rbx; ret
        assert_eq!(emulated(b"\x53\xe8\xfa\xff\xff\xff\x5b\xc3").0, 0);
    }
}
