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
/// Work for one executable, in bytes of names and what takes as long: a million symbols of a large program have less than
/// half of it. To make as many as this takes seconds.
const WORK_MAX: usize = 6 << 30;
/// What takes as long as a byte of a symbol that is read, and as one of the pieces that a name is made of.
const SYMBOL_WORK: usize = 8;
const PIECE_WORK: usize = 32;

/// What libstdc++ has for a string since C++11, as demangled, and as people write it.
const CXX11_STRING: [&str; 2] =
    ["std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >", "std::string"];

/// Makes names of the source for the symbols of one executable, until it has had more work than any program is worth.
#[derive(Debug)]
pub struct Demangler {
    left: usize,
}

impl Default for Demangler {
    fn default() -> Self {
        Self { left: WORK_MAX }
    }
}

impl Demangler {
    /// The names of a function in its source, by its symbol: with parameters and without those (and what is returned), and
    /// with strings under both of their names. None where it is no name that a compiler of C++ or Rust has made, one that is
    /// too long or too deep, or once this [is exhausted](Self::is_exhausted).
    pub fn names(&mut self, symbol: &str) -> Vec<String> {
        if symbol.len() > SYMBOL_MAX || self.is_exhausted() {
            return Vec::new();
        }
        self.pay(symbol.len() * SYMBOL_WORK);
        if let Ok(name) = try_demangle(symbol) {
            // Without the hash.
            return self.bounded(|out| write!(out, "{name:#}")).into_iter().collect();
        }
        if !symbol.starts_with("_Z") {
            return Vec::new();
        }
        let limits = ParseOptions::default().recursion_limit(DEPTH_MAX);
        let Ok(symbol) = BorrowedSymbol::new_with_options(symbol.as_bytes(), &limits) else {
            return Vec::new();
        };
        let options = DemangleOptions::new().recursion_limit(DEPTH_MAX);
        let mut of = |options: DemangleOptions| self.bounded(|out| symbol.structured_demangle(out, &options));
        let mut names = Vec::new();
        if let Some(whole) = of(options) {
            names.push(whole.replace(CXX11_STRING[0], CXX11_STRING[1]));
            names.push(whole);
        }
        names.extend(of(options.no_params().no_return_type()));
        names
    }

    /// Whether it has made so many names that it makes no more: a symbol without names may have some then.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.left == 0
    }

    /// What is written, if it is not too long.
    fn bounded(&mut self, write: impl FnOnce(&mut Bounded) -> fmt::Result) -> Option<String> {
        let mut out = Bounded { text: String::new(), pieces: 0 };
        let is_whole = write(&mut out).is_ok();
        self.pay(out.text.len() + out.pieces * PIECE_WORK);
        is_whole.then_some(out.text)
    }

    fn pay(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }
}

/// A text that ends with an error when it gets too long.
struct Bounded {
    text: String,
    pieces: usize,
}

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.pieces += 1;
        if self.text.len() + text.len() > NAME_MAX {
            return Err(fmt::Error);
        }
        self.text.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    fn source_names(symbol: &str) -> Vec<String> {
        Demangler::default().names(symbol)
    }

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

    #[test]
    fn there_is_an_end_to_the_work() {
        let mut demangler = Demangler { left: WORK_MAX };
        assert!(!demangler.names("_Z3addii").is_empty() && !demangler.is_exhausted());
        demangler.left = 1;
        assert!(!demangler.names("_Z3addii").is_empty() && demangler.is_exhausted());
        assert!(demangler.names("_Z3addii").is_empty());
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
