//! Names that functions have in their sources, from those that compilers made of them.

use std::fmt::{self, Write};

use cpp_demangle::{BorrowedSymbol, DemangleOptions, ParseOptions};
use rustc_demangle::try_demangle;

/// Longer symbols are known by their mangled names only: what takes long to decode is long.
const SYMBOL_MAX: usize = 1_024;
/// Longest name that is made of one: a symbol can refer to its own parts, and so mean much more than it says.
const NAME_MAX: usize = 4_096;
/// How deep parts of a name may lie in others.
const DEPTH_MAX: u32 = 64;

/// What libstdc++ has for a string since C++11, as demangled, and as people write it.
const CXX11_STRING: [&str; 2] =
    ["std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >", "std::string"];

/// The names of a function in its source, by its symbol: with parameters and without those (and what is returned), and with strings under both of their
/// names. None where it is no name that a compiler of C++ or Rust has made, or one that is too long or too deep.
#[must_use]
pub fn source_names(symbol: &str) -> Vec<String> {
    if symbol.len() > SYMBOL_MAX {
        return Vec::new();
    }
    if let Ok(name) = try_demangle(symbol) {
        // Without the hash.
        return bounded(|out| write!(out, "{name:#}")).into_iter().collect();
    }
    if !symbol.starts_with("_Z") {
        return Vec::new();
    }
    let limits = ParseOptions::default().recursion_limit(DEPTH_MAX);
    let Ok(symbol) = BorrowedSymbol::new_with_options(symbol.as_bytes(), &limits) else { return Vec::new() };
    let options = DemangleOptions::new().recursion_limit(DEPTH_MAX);
    let of = |options: DemangleOptions| bounded(|out| symbol.structured_demangle(out, &options));
    let mut names = Vec::new();
    if let Some(whole) = of(options) {
        names.push(whole.replace(CXX11_STRING[0], CXX11_STRING[1]));
        names.push(whole);
    }
    names.extend(of(options.no_params().no_return_type()));
    names
}

/// What is written, if it is not too long.
fn bounded(write: impl FnOnce(&mut Bounded) -> fmt::Result) -> Option<String> {
    let mut out = Bounded(String::new());
    write(&mut out).ok()?;
    Some(out.0)
}

/// A text that ends with an error when it gets too long.
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > NAME_MAX {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_those_of_the_source() {
        for (symbol, expected) in [
            ("_ZN10EchoServer3sayERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE", "EchoServer::say"),
            (
                "_ZN10EchoServer3sayERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE",
                "EchoServer::say(std::string const&)",
            ),
            ("_Z3addii", "add(int, int)"),
            ("_ZN8my_crate6handle17h0123456789abcdefE", "my_crate::handle"),
            ("_RNvCs1234_8my_crate6handle", "my_crate::handle"),
        ] {
            let names = source_names(symbol);
            assert!(names.iter().any(|name| name == expected), "{symbol}: {names:?}");
        }
    }

    #[test]
    fn what_no_compiler_has_mangled_has_no_other_name() {
        for symbol in ["main", "", "_Z", "_ZN", "_R", "_ZN3abc", "stock_lookup"] {
            assert_eq!(source_names(symbol), Vec::<String>::new(), "{symbol}");
        }
    }

    /// A symbol of some hundred bytes whose name would have more than a million.
    #[test]
    fn names_that_mean_more_than_they_say_are_cut_off() {
        // Each type is a pair of the one before.
        let pairs =
            "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ".chars().map(|last| format!("S_IS{last}_S{last}_E"));
        let doubling = format!("_Z1f1AIiiE{}", pairs.collect::<String>());
        for symbol in [
            doubling,
            format!("_Z1f{}i", "P".repeat(100_000)),
            format!("_Z1f{}i", "P".repeat(1_000)),
            format!("_ZN{}E", "1a".repeat(500)),
            format!("_Z1f{}{}", "1AI".repeat(200), "E".repeat(200)),
            format!("_RNv{}", "Nv".repeat(400)),
        ] {
            let begin = Instant::now();
            let names = source_names(&symbol);
            assert!(names.iter().all(|name| name.len() <= NAME_MAX));
            assert!(begin.elapsed() < Duration::from_secs(1), "{symbol} took {:?}", begin.elapsed());
        }
    }

    proptest! {
        #[test]
        fn any_symbol_has_few_short_names(symbol in "_(Z|ZN|R|RNv)[0-9A-Za-z_$.]{0,300}") {
            let begin = Instant::now();
            let names = source_names(&symbol);
            prop_assert!(names.len() <= 3 && names.iter().all(|name| name.len() <= NAME_MAX));
            prop_assert!(begin.elapsed() < Duration::from_secs(1));
        }
    }
}
