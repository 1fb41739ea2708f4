//! The kernel's own description of its types (BTF), for looking up numbers and offsets.
//!
//! aya's parser builds a value for every type, which takes 30 ms. One pass here notes where each type begins.

/// `struct btf_header`: magic, version, flags, own length, then the positions of types and strings after it.
const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
/// `struct btf_type`.
const TYPE: usize = 12;
/// `struct btf_member`.
const MEMBER: usize = 12;
/// Limit on nested structures: deeper than kernels nest anonymous ones.
const NESTING: u32 = 4;

/// Kinds of types that are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A structure.
    Struct = 4,
    /// A function.
    Function = 12,
}

const UNION: u32 = 5;
/// A typedef or qualifier.
const ALIAS: u32 = 8;

/// A member of a structure.
struct Member {
    /// Its offset in bits.
    bits: u32,
    /// The number of its type.
    of: u32,
}

/// All types of the kernel.
pub(super) struct KernelTypes<'a> {
    /// Where each type begins. The first type has the number 1.
    places: Vec<usize>,
    types: &'a [u8],
    strings: &'a [u8],
}

impl<'a> KernelTypes<'a> {
    /// Finds where each type begins; `None` if this is not BTF, or has unknown kinds.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        if u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = number(bytes, 4)?;
        let section = |at: usize| {
            let start = header.checked_add(number(bytes, at)?)?;
            bytes.get(start..start.checked_add(number(bytes, at + 4)?)?)
        };
        if header < HEADER {
            return None;
        }
        let (types, strings) = (section(8)?, section(16)?);
        let mut places = Vec::new();
        let mut at = 0;
        while at < types.len() {
            places.push(at);
            at = at.checked_add(TYPE)?.checked_add(length_behind(number(types, at + 4)?)?)?;
        }
        Some(Self { places, types, strings })
    }

    /// Returns the number of a type.
    pub(super) fn number(&self, kind: Kind, name: &str) -> Option<u32> {
        let is_wanted = |place: &usize| {
            number(self.types, place + 4).map(kind_of) == Some(kind as u32) && self.is_named(*place, name)
        };
        let index = self.places.iter().position(is_wanted)?;
        u32::try_from(index + 1).ok()
    }

    /// Returns the offset in bytes from a structure to a member of a member and so on. Each may be in an anonymous
    /// part.
    pub(super) fn offset(&self, structure: u32, path: &[&str]) -> Option<u32> {
        let mut found = Member { bits: 0, of: structure };
        for name in path {
            let inner = self.member(self.aliased(found.of)?, name, NESTING)?;
            found = Member { bits: found.bits.checked_add(inner.bits)?, of: inner.of };
        }
        found.bits.is_multiple_of(8).then_some(found.bits / 8)
    }

    fn member(&self, structure: u32, name: &str, nesting: u32) -> Option<Member> {
        let place = self.place(structure)?;
        let info = number(self.types, place + 4)?;
        if ![Kind::Struct as u32, UNION].contains(&kind_of(info)) {
            return None;
        }
        (0..info & 0xffff).find_map(|index| {
            let at = place + TYPE + index * MEMBER;
            let (of, bits) = (number(self.types, at + 4)?, number(self.types, at + 8)?);
            // If there are bit fields among the members, the highest byte is their width.
            let bits = u32::try_from(if info >> 31 == 1 { bits & 0xff_ffff } else { bits }).ok()?;
            let of = u32::try_from(of).ok()?;
            if self.is_named(at, name) {
                return Some(Member { bits, of });
            }
            if number(self.types, at)? != 0 || nesting == 0 {
                return None;
            }
            let inner = self.member(of, name, nesting - 1)?;
            Some(Member { bits: inner.bits.checked_add(bits)?, of: inner.of })
        })
    }

    /// Resolves typedefs and qualifiers.
    fn aliased(&self, mut of: u32) -> Option<u32> {
        for _ in 0..NESTING {
            let place = self.place(of)?;
            if kind_of(number(self.types, place + 4)?) != ALIAS {
                break;
            }
            of = u32::try_from(number(self.types, place + 8)?).ok()?;
        }
        Some(of)
    }

    fn place(&self, of: u32) -> Option<usize> {
        self.places.get(usize::try_from(of).ok()?.checked_sub(1)?).copied()
    }

    /// Whether the type or member at this place has that name.
    fn is_named(&self, place: usize, name: &str) -> bool {
        let found = number(self.types, place).and_then(|at| self.strings.get(at..));
        found
            .and_then(|found| found.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// Reads the four bytes at a place.
fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    usize::try_from(u32::from_le_bytes(four.try_into().ok()?)).ok()
}

/// Returns the kind in a type's second word.
fn kind_of(info: usize) -> u32 {
    u32::try_from(info >> 24 & 0x1f).unwrap_or_default()
}

/// Returns the number of bytes after a type with this second word (include/uapi/linux/btf.h).
fn length_behind(info: usize) -> Option<usize> {
    let count = info & 0xffff;
    Some(match kind_of(info) {
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Structure, union, section, 64-bit enumeration.
        4 | 5 | 15 | 19 => count * 12,
        // Enumeration, function prototype.
        6 | 13 => count * 8,
        // Pointer, forward declaration, typedef, qualifiers, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types in the kernel's format.
    #[derive(Default)]
    struct Described {
        types: Vec<u32>,
        strings: Vec<u8>,
    }

    impl Described {
        fn name(&mut self, name: &str) -> u32 {
            if self.strings.is_empty() {
                self.strings.push(0);
            }
            if name.is_empty() {
                return 0;
            }
            let at = self.strings.len();
            self.strings.extend(name.as_bytes());
            self.strings.push(0);
            u32::try_from(at).unwrap()
        }

        fn add(&mut self, kind: u32, name: &str, behind: &[u32], count: u32, has_bits: bool) {
            let name = self.name(name);
            self.types.extend([name, u32::from(has_bits) << 31 | kind << 24 | count, 8]);
            self.types.extend(behind);
        }

        fn structure(&mut self, kind: u32, name: &str, members: &[(&str, u32, u32)], has_bits: bool) {
            let mut behind = Vec::new();
            for (name, of, bits) in members {
                behind.extend([self.name(name), *of, *bits]);
            }
            let count = u32::try_from(members.len()).unwrap();
            self.add(kind, name, &behind, count, has_bits);
        }

        fn alias(&mut self, name: &str, of: u32) {
            self.add(8, name, &[], 0, false);
            *self.types.last_mut().unwrap() = of;
        }

        fn bytes(&self) -> Vec<u8> {
            let types: Vec<u8> = self.types.iter().flat_map(|word| word.to_le_bytes()).collect();
            let lengths = [types.len(), self.strings.len()].map(|length| u32::try_from(length).unwrap());
            let header = [0x0001_eb9f, 24, 0, lengths[0], lengths[0], lengths[1]];
            let header = header.iter().flat_map(|word: &u32| word.to_le_bytes());
            header.chain(types).chain(self.strings.iter().copied()).collect()
        }
    }

    fn kernel() -> Vec<u8> {
        let mut described = Described::default();
        described.add(1, "unsigned long", &[64], 0, false);
        described.structure(4, "", &[("mm_count", 1, 0), ("pgd", 1, 960)], false);
        described.add(12, "bpf_rdonly_cast", &[], 0, false);
        described.structure(
            4,
            "mm_struct",
            &[("", 2, 64), ("cpu_bitmap", 1, 9_000), ("context", 9, 80)],
            false,
        );
        described.structure(4, "flags", &[("few", 1, 3 << 24 | 16), ("next", 1, 24), ("odd", 1, 25)], true);
        described.structure(4, "", &[("", 6, 0)], false);
        described.structure(4, "round", &[("", 6, 0)], false);
        described.add(2, "", &[], 0, false);
        described.alias("mm_context_t", 10);
        described.structure(4, "", &[("ctx_id", 1, 0), ("tlb_gen", 1, 64)], false);
        described.alias("itself", 11);
        described.bytes()
    }

    #[test]
    fn types_and_members_are_found() {
        let bytes = kernel();
        let types = KernelTypes::parse(&bytes).unwrap();
        assert_eq!(types.number(Kind::Function, "bpf_rdonly_cast"), Some(3));
        assert_eq!(types.number(Kind::Struct, "mm_struct"), Some(4));
        for (kind, name) in [
            (Kind::Struct, "bpf_rdonly_cast"),
            (Kind::Struct, "mm"),
            (Kind::Function, "bpf_rdonly_cast2"),
            (Kind::Function, "nowhere"),
        ] {
            assert_eq!(types.number(kind, name), None, "{name}");
        }
        assert_eq!(types.offset(4, &["pgd"]), Some(128));
        assert_eq!(types.offset(4, &["cpu_bitmap"]), Some(1_125));
        assert_eq!(types.offset(4, &["context", "tlb_gen"]), Some(18));
        assert_eq!([types.offset(5, &["few"]), types.offset(5, &["next"])], [Some(2), Some(3)]);
        let not_there: [(u32, &[&str]); 8] = [
            (4, &["mm"]),
            (4, &["pgd", "tlb_gen"]),
            (5, &["odd"]),
            (0, &["pgd"]),
            (3, &["pgd"]),
            (12, &["pgd"]),
            (7, &["pgd"]),
            (11, &["pgd"]),
        ];
        for (structure, path) in not_there {
            assert_eq!(types.offset(structure, path), None, "{structure} {path:?}");
        }
    }

    #[test]
    fn what_is_cut_or_strange_is_no_description() {
        let bytes = kernel();
        for length in 0..bytes.len() {
            assert!(KernelTypes::parse(&bytes[..length]).is_none(), "{length}");
        }
        for at in 0..bytes.len() {
            for wrong in [0, 0x7f, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = wrong;
                if let Some(types) = KernelTypes::parse(&bytes) {
                    let _ = types
                        .number(Kind::Struct, "mm_struct")
                        .map(|number| types.offset(number, &["context", "tlb_gen"]));
                }
            }
        }
    }

    #[test]
    fn this_kernels_are_found_as_aya_finds_them() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let types = KernelTypes::parse(&bytes).unwrap();
        let all = aya_obj::btf::Btf::from_sys_fs().unwrap();
        for (kind, of, name) in [
            (Kind::Struct, aya_obj::btf::BtfKind::Struct, "mm_struct"),
            (Kind::Struct, aya_obj::btf::BtfKind::Struct, "task_struct"),
            (Kind::Function, aya_obj::btf::BtfKind::Func, "bpf_rdonly_cast"),
        ] {
            assert_eq!(types.number(kind, name), all.id_by_type_name_kind(name, of).ok(), "{name}");
        }
    }
}
