//! The parameters of a C++ function, from its mangled name, and the registers that may hold them.

use std::collections::BTreeSet;

use super::source_names::CXX11_STRING;

/// What a symbol contains for a `std::string` of the C++11 ABI: Itanium C++ ABI, 5.1, and the inline namespace
/// `__cxx11` of libstdc++.
const MANGLED_STRING: &str = "NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE";
/// The number of registers for integer and pointer arguments: System V ABI for x86-64, 3.2.3.
const REGISTERS: usize = 6;
/// How many registers an argument of unknown type may take.
const UNKNOWN: &[usize] = &[0, 1, 2];

/// The parameters of a C++ function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    types: Vec<String>,
    /// The registers that may hold the first parameter: after `this`, if there is one, and after a pointer to the
    /// result, if it is returned in memory.
    first: BTreeSet<usize>,
    /// Whether each type is known. In a pack, the name has one type for several parameters.
    are_known: bool,
}

impl Parameters {
    /// Returns the parameters of a function, from its symbol and its source name without the return type.
    pub(super) fn of(symbol: &str, name: &str) -> Option<Self> {
        let (types, behind) = split(name.split(" [clone").next()?)?;
        // Names of methods are nested, or local. So are names in namespaces.
        let may_be_method = matches!(symbol.as_bytes().get(2), Some(b'N' | b'Z'));
        let first = match (behind.is_empty(), may_be_method) {
            (false, _) => BTreeSet::from([1, 2]),
            (true, true) => BTreeSet::from([0, 1, 2]),
            (true, false) => BTreeSet::from([0, 1]),
        };
        let types = types.into_iter().map(str::to_owned).collect();
        Some(Self { types, first, are_known: !symbol.contains("Dp") })
    }

    /// The parameters of a function whose name does not show them. Any may be a string, if the symbol contains that
    /// type.
    pub(super) fn unknown(symbol: &str) -> Self {
        let string = symbol.contains(MANGLED_STRING).then(|| CXX11_STRING[0].to_owned());
        Self { types: string.into_iter().collect(), first: (0..REGISTERS).collect(), are_known: false }
    }

    /// Whether the argument in a register, counted from 0, may be a `std::string` of the C++11 ABI, by reference or
    /// pointer: whether a parameter of that type may be in this register.
    #[must_use]
    pub fn may_be_string(&self, argument: usize) -> bool {
        let mut places = self.first.clone();
        for parameter in &self.types {
            if is_string(parameter) && places.contains(&argument) {
                return true;
            }
            let counts = if self.are_known { registers(parameter) } else { UNKNOWN };
            let behind = |place: &usize| counts.iter().map(|count| next(*place, *count)).collect::<Vec<_>>();
            places = places.iter().flat_map(behind).collect();
        }
        false
    }
}

/// Returns the types in the parentheses of a function's name, and the qualifiers after them, which only a method has.
fn split(name: &str) -> Option<(Vec<&str>, &str)> {
    let (before, behind) = name.rsplit_once(')')?;
    if !behind.bytes().all(|byte| byte.is_ascii_lowercase() || b" &".contains(&byte)) {
        return None;
    }
    let mut types = Vec::new();
    let (mut depth, mut end) = (0_usize, before.len());
    for (at, byte) in before.bytes().enumerate().rev() {
        match byte {
            b')' | b'>' | b']' | b'}' => depth += 1,
            b',' | b'(' if depth == 0 => {
                types.push(before.get(at + 1..end)?.trim());
                end = at;
                if byte == b'(' {
                    types.reverse();
                    return Some((types, behind));
                }
            }
            b'(' | b'<' | b'[' | b'{' => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    None
}

/// Whether a parameter is a `std::string`, or a reference or pointer to one. A string by value is also passed by a
/// pointer.
fn is_string(parameter: &str) -> bool {
    parameter.strip_prefix(CXX11_STRING[0]).is_some_and(|behind| {
        matches!(behind.strip_prefix(" const").unwrap_or(behind), "" | "&" | "&&" | "*")
    })
}

/// Returns how many registers a parameter may take. Floating-point numbers use other registers, and structs by value
/// may be in any registers or in none.
fn registers(parameter: &str) -> &'static [usize] {
    let referred = parameter.trim_end_matches('&');
    // At the end of a pointer to a method, a space precedes `&`.
    let is_reference = referred.len() < parameter.len() && !referred.ends_with(' ');
    match parameter {
        "float" | "double" | "long double" | "__float128" => &[0],
        "bool" | "char" | "signed char" | "unsigned char" | "short" | "unsigned short" | "int"
        | "unsigned int" | "long" | "unsigned long" | "long long" | "unsigned long long" | "wchar_t"
        | "char8_t" | "char16_t" | "char32_t" => &[1],
        "__int128" | "unsigned __int128" => &[2],
        _ if is_reference || parameter.ends_with('*') || is_string(parameter) => &[1],
        _ => UNKNOWN,
    }
}

/// Returns the register after those of an argument. An argument for which too few are left lies on the stack, and takes
/// none.
fn next(place: usize, count: usize) -> usize {
    if place + count > REGISTERS { place } else { place + count }
}

#[cfg(test)]
mod tests {
    use super::super::Demangler;

    /// The arguments that may be a string, for a symbol in which `$` stands for its type.
    fn strings(symbol: &str) -> Vec<usize> {
        let symbol = symbol.replace('$', super::MANGLED_STRING);
        let parameters = Demangler::default().parameters(&symbol).unwrap_or_else(|| panic!("{symbol}"));
        (0..super::REGISTERS).filter(|argument| parameters.may_be_string(*argument)).collect()
    }

    #[test]
    fn strings_are_where_the_name_has_them() {
        for (symbol, expected) in [
            // f(std::string const&): a pointer to the result may come first, and in a method `this`.
            ("_Z1fRK$", &[0_usize, 1][..]),
            ("_ZL1fRK$", &[0, 1]),
            ("_ZN1A1fERK$", &[0, 1, 2]),
            ("_ZNK1A1fERK$", &[1, 2]),
            ("_ZNKR1A1fERK$", &[1, 2]),
            // By reference, pointer and value, and types that are not strings.
            ("_Z1fR$", &[0, 1]),
            ("_Z1fO$", &[0, 1]),
            ("_Z1fP$", &[0, 1]),
            ("_Z1fPK$", &[0, 1]),
            ("_Z1f$", &[0, 1]),
            ("_Z1fPP$", &[]),
            ("_Z1fRSt6vectorI$SaI$EE", &[]),
            ("_Z1fSs", &[]),
            ("_Z1fPFvRK$E", &[]),
            ("_ZN1AI$E1fEi", &[]),
            // f(int, std::string const&)
            ("_Z1fiRK$", &[1, 2]),
            ("_Z1fPKcRK$", &[1, 2]),
            // A parameter in another register, and one that takes two.
            ("_Z1fdRK$", &[0, 1]),
            ("_Z1feRK$", &[0, 1]),
            ("_Z1fnRK$", &[2, 3]),
            ("_Z1fRKdRK$", &[1, 2]),
            // A class, and a pointer to a method.
            ("_Z1f1BRK$", &[0, 1, 2, 3]),
            ("_Z1fM1BKFviERK$", &[0, 1, 2, 3]),
            ("_Z1fM1BKFviRERK$", &[0, 1, 2, 3]),
            ("_Z1fR1BRK$", &[1, 2]),
            ("_Z1fRSt8functionIFvicEERK$", &[1, 2]),
            // An argument without room is on the stack. The one after it is in the last register.
            ("_Z1fiiiiiiRK$", &[]),
            ("_Z1fiiiiinRK$", &[5]),
            ("_Z1fiiiiRK$", &[4, 5]),
            // Names of templates include the return type.
            ("_Z1fI$EvRKT_i", &[0, 1]),
            ("_Z1fIiEvT_RK$", &[1, 2]),
            // A suffix that does not change the arguments.
            ("_Z1fiRK$.lto_priv.0", &[1, 2]),
        ] {
            assert_eq!(strings(symbol), expected, "{symbol}");
        }
    }

    /// `void f(As const&..., std::string const&)`, of a float and an int: demangled, only the last of the pack is a
    /// reference.
    #[test]
    fn of_packs_nothing_is_known() {
        assert_eq!(strings("_Z1fIJfiEEvDpRKT_RK$"), [0, 1, 2, 3, 4, 5]);
    }

    /// `J::J<int>(std::string const&, int)`: demangled, it has the last parameter only.
    #[test]
    fn of_constructors_that_are_templates_nothing_is_known() {
        assert_eq!(strings("_ZN1JC1IiEERK$T_"), [0, 1, 2, 3, 4, 5]);
        assert_eq!(strings("_ZN1JC2B3fooIiEET_RK$"), [0, 1, 2, 3, 4, 5]);
        assert_eq!(strings("_ZN1JC1IiEERKiT_"), Vec::<usize>::new());
        // The same letters in an identifier.
        assert_eq!(strings("_Z8ADC1InitiRK$"), [1, 2]);
    }

    #[test]
    fn what_has_no_parameters_in_its_name_has_none() {
        for symbol in ["stock_lookup", "_ZN1A1bE", "_ZN8my_crate6handle17h0123456789abcdefE", "_ZTV1A"] {
            assert_eq!(Demangler::default().parameters(symbol), None, "{symbol}");
        }
    }
}
