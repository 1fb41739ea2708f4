//! The source names of functions, from their mangled names.

use std::{
    fmt::{self, Write},
    time::Duration,
};

use cpp_demangle::{BorrowedSymbol, DemangleOptions, ParseOptions};
use rustc_demangle::try_demangle;

use super::{
    native::{is_native_part, native_original},
    parameters::Parameters,
};

/// The longest symbol that is demangled. A symbol that takes long to decode is long.
const SYMBOL_MAX: usize = 1_024;
/// The longest name made of a symbol. A symbol can refer to its own parts, so a short symbol can have a long name.
const NAME_MAX: usize = 4_096;
/// The deepest nesting of the parts of a name when it is written.
const DEPTH_MAX: u32 = 64;
/// The deepest nesting when a symbol is read, in steps of `cpp_demangle`'s grammar. An argument of a template is five
/// steps deeper, or eight if it is in a namespace other than `std`. Some eight templates fit into each other, or a
/// `std::string` into five.
///
/// The limit is low because `cpp_demangle` tries one rule after the other. If a part is wrong, what contains it is read
/// again: twice for each template that `std::` or a substitution names (`St1aI`, `SaI`, `S_I`). Such templates are five
/// steps apart. There are three steps before the first type, and seven to find that the innermost is not one, so 53
/// steps have room for eight of them: a byte is read 2^8 times at most. A symbol of 1 KiB takes some 20 ms and 30 MB.
/// With 64 steps it would take four times as much.
const READ_DEPTH_MAX: u32 = 53;
/// How much the depth is reduced for each part that more rules [read again](read_again), so that no part multiplies the
/// work by more than two in five steps. With `new` and `delete`, each step multiplies it by two. A value of a type
/// multiplies it by four in seven steps, with a template in it (`LSaI`). An argument of a template's parameter
/// multiplies it by three in three.
const NEW_DEPTH: usize = 4;
const VALUE_DEPTH: usize = 3;
const ARGUMENT_DEPTH: usize = 5;
/// The work for one executable, in bytes of names and what takes as long. A million symbols of a large program take
/// less than half of it. All of it takes seconds.
const WORK_MAX: usize = 6 << 30;
/// The most places in a symbol that are tried as constructors. Few symbols have more than one.
const CONSTRUCTORS_MAX: usize = 8;
/// The work of reading a byte of a symbol, and of writing a piece of a name.
const SYMBOL_WORK: usize = 8;
const PIECE_WORK: usize = 32;

/// The string of libstdc++ since C++11, as it is demangled and as people write it.
pub(super) const CXX11_STRING: [&str; 2] =
    ["std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >", "std::string"];

/// Demangles the symbols of one executable, until it has done more work than any program is worth.
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
    /// Returns the names of a function in its source, from its symbol: with parameters, and without parameters and
    /// return type, and with strings under both of their names. Returns none if the symbol was not made by a compiler
    /// of C++ or Rust, is of a part of a function, is too long or too deep, or once this [is
    /// exhausted](Self::is_exhausted). A function with other arguments than in its source has no name without
    /// parameters. A constructor that is a template has only that name.
    pub fn names(&mut self, symbol: &str) -> Vec<String> {
        if symbol.len() > SYMBOL_MAX || is_native_part(symbol) || self.is_exhausted() {
            return Vec::new();
        }
        let has_own_arguments = native_original(symbol).is_none();
        self.pay(symbol.len() * SYMBOL_WORK);
        if let Ok(name) = try_demangle(symbol) {
            // Without the hash.
            return self.bounded(|out| write!(out, "{name:#}")).into_iter().collect();
        }
        let Some(read) = self.read(symbol) else { return Vec::new() };
        let options = DemangleOptions::new().recursion_limit(DEPTH_MAX);
        let mut names = Vec::new();
        let whole = self.written(&read, options);
        let lacks_one = whole.as_ref().is_some_and(|whole| self.lacks_parameter(symbol, whole, options));
        if let Some(whole) = whole
            && !lacks_one
        {
            names.push(whole.replace(CXX11_STRING[0], CXX11_STRING[1]));
            names.push(whole);
        }
        // The name of an item in a constructor always has the constructor's parameters.
        let has_inner = symbol.get(2..).is_some_and(|name| name.contains("ZN"));
        if has_own_arguments && !(lacks_one && has_inner) {
            names.extend(self.written(&read, options.no_params().no_return_type()));
        }
        names
    }

    /// Returns the parameters of a C++ function, from its symbol. `None` if it does not show them, or cannot be read,
    /// as for names.
    pub fn parameters(&mut self, symbol: &str) -> Option<Parameters> {
        if symbol.len() > SYMBOL_MAX || self.is_exhausted() {
            return None;
        }
        self.pay(symbol.len() * SYMBOL_WORK);
        let read = self.read(symbol)?;
        let options = DemangleOptions::new().recursion_limit(DEPTH_MAX).no_return_type();
        let name = self.written(&read, options)?;
        if self.lacks_parameter(symbol, &name, options) {
            return Some(Parameters::unknown(symbol));
        }
        Parameters::of(symbol, &name)
    }

    /// Whether the name made of a symbol lacks the first parameter of a constructor that is a template. Symbols of
    /// templates have the return type before the parameters. `cpp_demangle` also skips it in those of constructors,
    /// which have none. A name does not show the kind of constructor, but a symbol does: a symbol with another kind
    /// makes the same name. Also true if more places look like a constructor than are tried.
    fn lacks_parameter(&mut self, symbol: &str, name: &str, options: DemangleOptions) -> bool {
        let mut others = with_other_constructors(symbol);
        let is_same = others.by_ref().take(CONSTRUCTORS_MAX).any(|other| {
            self.pay(other.len() * SYMBOL_WORK);
            let read = self.read(&other);
            read.and_then(|read| self.written(&read, options)).as_deref() == Some(name)
        });
        is_same || self.is_exhausted() || others.next().is_some()
    }

    /// Writes the name that a symbol stands for.
    fn written(&mut self, read: &BorrowedSymbol<'_>, options: DemangleOptions) -> Option<String> {
        self.bounded(|out| read.structured_demangle(out, &options))
    }

    /// Reads a C++ symbol, if it is valid.
    fn read<'a>(&mut self, symbol: &'a str) -> Option<BorrowedSymbol<'a>> {
        if !symbol.starts_with("_Z") {
            return None;
        }
        let limits = ParseOptions::default().recursion_limit(depth(symbol));
        let begin = own_time();
        let read = BorrowedSymbol::new_with_options(symbol.as_bytes(), &limits);
        if read.is_err() {
            // A symbol that cannot be read may have been read again and again: each nanosecond costs as much as a byte.
            // A valid symbol is read once.
            self.pay(usize::try_from(own_time().saturating_sub(begin).as_nanos()).unwrap_or(usize::MAX));
        }
        read.ok()
    }

    /// Whether all work is used up. From then on, a symbol without names may have some.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.left == 0
    }

    /// Returns the text that `write` writes, if it is not too long.
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

/// Returns the symbol with another kind of constructor, for each place that may be a constructor that is a template.
/// Its kind (`C1`) is followed by tags, if it has any, and the template's arguments (`I`). The same letters may be in
/// an identifier.
fn with_other_constructors(symbol: &str) -> impl Iterator<Item = String> {
    symbol.match_indices('C').filter_map(move |(at, _)| {
        let (before, kind) = symbol.split_at_checked(at + 1)?;
        let other = match kind.bytes().next()? {
            b'1' => '2',
            b'2'..=b'4' => '1',
            _ => return None,
        };
        let behind = kind.get(1..)?;
        behind_tags(behind)?.starts_with('I').then(|| format!("{before}{other}{behind}"))
    })
}

/// Returns what follows tags of the ABI, such as `B5cxx11`.
fn behind_tags(mut text: &str) -> Option<&str> {
    while let Some(tag) = text.strip_prefix('B') {
        let name = tag.trim_start_matches(|c: char| c.is_ascii_digit());
        let length: usize = tag.strip_suffix(name)?.parse().ok()?;
        text = name.get(length..)?;
    }
    Some(text)
}

/// The CPU time of this thread: the cost of a name must not depend on other threads.
fn own_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to the timespec only, and can't fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// The deepest nesting with which a symbol may be read.
fn depth(symbol: &str) -> u32 {
    let less = u32::try_from(read_again(symbol.as_bytes())).unwrap_or(u32::MAX);
    READ_DEPTH_MAX.saturating_sub(less).max(1)
}

/// Returns how much less deep a symbol may be read, due to what other rules may read again: `new` and `delete` in
/// expressions (`nw`, `na`, `dl`, `da`), values of types that have parts themselves (`L`, except for builtin types),
/// and, in conversion operators (`cv`), arguments of a template's parameter (`T_I`). The same letters inside an
/// identifier count too, so this is an upper bound.
fn read_again(symbol: &[u8]) -> usize {
    let pairs = || symbol.windows(2);
    // An argument of a template, a computed type, a number of bits or the bound of an array.
    let begins_expression = |pair: &[u8]| match pair {
        [b'X', _] | [b'D', b't' | b'T' | b'v' | b'O' | b'B' | b'U'] => true,
        [b'A', bound] => !bound.is_ascii_digit() && *bound != b'_',
        _ => false,
    };
    let is_new = |pair: &&[u8]| matches!(pair, [b'n', b'w' | b'a'] | [b'd', b'l' | b'a']);
    // Builtin types are lower-case letters, except for qualifiers and the first letters of operators.
    let has_parts = |of: u8| of.is_ascii_uppercase() || of.is_ascii_digit() || b"kpqr".contains(&of);
    let is_value = |pair: &&[u8]| matches!(pair, [b'L', of] if has_parts(*of));
    let news = if pairs().any(begins_expression) { pairs().filter(is_new).count() } else { 0 };
    let converts = pairs().any(|pair| pair == b"cv");
    let arguments = if converts { pairs().filter(|pair| *pair == b"_I").count() } else { 0 };
    NEW_DEPTH * news + VALUE_DEPTH * pairs().filter(is_value).count() + ARGUMENT_DEPTH * arguments
}

/// A text that fails with an error when it gets too long.
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

    /// `f<C1<int>, …>(C1<int>)`: each of the types looks like a constructor in the symbol, and each is tried.
    #[test]
    fn few_places_of_a_symbol_are_tried_for_constructors() {
        let has_parameters = |types: usize| {
            let names = source_names(&format!("_Z1fI{}EvT_", "2C1IiE".repeat(types)));
            assert!(!names.is_empty());
            names.iter().any(|name| name.contains('('))
        };
        assert!(has_parameters(CONSTRUCTORS_MAX));
        assert!(!has_parameters(CONSTRUCTORS_MAX + 1));
    }

    #[test]
    fn constructors_that_are_templates_have_no_name_with_parameters() {
        let string = "NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE";
        // J::J<int>(std::string const&, int), whose first parameter is lost.
        for kind in 1..=4 {
            assert_eq!(source_names(&format!("_ZN1JC{kind}IiEERK{string}T_")), ["J::J<int>"]);
        }
        let tagged = source_names("_ZN1AC2B3fooB2abIiEERKiT_");
        assert!(!tagged.is_empty() && tagged.iter().all(|name| !name.contains('(')), "{tagged:?}");
        // A lambda in J::J<int>(int).
        assert_eq!(source_names("_ZZN1JC1IiEET_ENKUlvE_clEv"), Vec::<String>::new());
        for (symbol, expected) in [
            // No templates, and classes that are templates.
            ("_ZN1JC1Ei", "J::J(int)"),
            ("_ZN1JIiEC1Ei", "J<int>::J(int)"),
            // A method with a return type, and a conversion without parameters.
            ("_ZN1J1fIiEEvT_", "void J::f<int>(int)"),
            ("_ZN1JcvT_IiEEv", "J::operator int<int>()"),
            // The same letters in identifiers.
            ("_Z8ADC1Initi", "ADC1Init(int)"),
            ("_ZN4C1IO1fEi", "C1IO::f(int)"),
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
        // Each type is a pair of the previous one.
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

    /// Symbols of up to 1 KiB. `cpp_demangle` reads some parts of each several times, and so the innermost thousands of
    /// times or more.
    #[test]
    fn names_that_are_read_again_and_again_are_given_up() {
        let pointers = |count: usize| "Pi".repeat(count);
        let converted = (1..16).fold(format!("T_I{}E", pointers(450)), |inner, _| format!("T_I{inner}IEE"));
        for symbol in [
            format!("_Zcv{converted}IiE"),
            format!("_Z1f{}SaI{}", "SaIL".repeat(6), pointers(490)),
            // As deep as possible.
            format!("_Z1f{}{}", "SaI".repeat(8), pointers(490)),
            format!("_Z1f{}{}", "St1aI".repeat(8), pointers(490)),
            format!("_Z1f{}{}", "SaI".repeat(12), pointers(490)),
            format!("_Z1f1aIX{}{}", "nw".repeat(40), "i".repeat(400)),
            format!("_Z1fA{}{}", "dl".repeat(40), "i".repeat(400)),
            format!("_Z1f{}", "L1aI".repeat(8)),
        ] {
            let symbol = symbol.get(..SYMBOL_MAX).unwrap_or(&symbol);
            let begin = Instant::now();
            assert_eq!(source_names(symbol), Vec::<String>::new());
            assert!(begin.elapsed() < Duration::from_secs(3), "{symbol} took {:?}", begin.elapsed());
        }
    }

    #[test]
    fn what_cannot_be_read_pays_the_time_that_it_takes() {
        let mut demangler = Demangler::default();
        let symbol = format!("_Z1f{}{}", "SaI".repeat(8), "Pi".repeat(490));
        assert!(demangler.names(&symbol).is_empty());
        // A thousand types, each read 2^8 times.
        let paid = WORK_MAX - demangler.left;
        assert!(paid > 1_000 << 8, "{paid}");
    }

    #[test]
    fn long_names_of_the_standard_library_are_read() {
        let string = "NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE";
        let vector = |of: &str| format!("St6vectorI{of}SaIiEE");
        let parameter = vector(&format!("St4pairIi{}E", vector(string)));
        for symbol in [
            format!("_ZN4shop5store6handleERKSt8functionIFv{parameter}EE"),
            // Values of an enum's type among the arguments, as in libstdc++, and letters with another meaning
            // elsewhere.
            "_ZNSt12__shared_ptrI3FooLN9__gnu_cxx12_Lock_policyE2EE5resetEv".to_owned(),
            format!("_ZN9ParserURL13DataAnalytics17handleUnnamedDataERK{}", vector(string)),
            "_ZN3APIcvT_IiEEv".to_owned(),
        ] {
            assert!(!source_names(&symbol).is_empty(), "{symbol}");
        }
    }

    #[test]
    fn parts_and_functions_with_other_arguments_are_not_named_as_the_function() {
        let lookup = "_ZN4shop6lookupEi";
        let is_named = |suffix: &str, name: &str| {
            source_names(&format!("{lookup}{suffix}")).iter().any(|found| found == name)
        };
        assert!(is_named("", "shop::lookup") && is_named("", "shop::lookup(int)"));
        assert!(is_named(".lto_priv.0", "shop::lookup"));
        for suffix in [".constprop.0", ".isra.0"] {
            assert!(!is_named(suffix, "shop::lookup") && !is_named(suffix, "shop::lookup(int)"), "{suffix}");
        }
        for part in [".cold", ".cold.1", ".part.0", ".constprop.0.cold", ".__part.1"] {
            assert_eq!(source_names(&format!("{lookup}{part}")), Vec::<String>::new(), "{part}");
        }
        assert_eq!(source_names("_ZN8my_crate6handle17h0123456789abcdefE.cold"), Vec::<String>::new());
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
