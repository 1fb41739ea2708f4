use super::*;
use crate::{
    plan::{Inspection, Plan},
    specs::{Specs, read},
};

const BY_INSTRUCTIONS: &str = "{ by = \"instructions\" }";

/// The plan for an operation that starts in a function of a program with the symbol `stock_lookup` and some
/// replaced ones; or why there is none.
fn planned(start: &str) -> Result<Plan, String> {
    planned_by(BY_INSTRUCTIONS, start)
}

fn planned_by(returns: &str, start: &str) -> Result<Plan, String> {
    let mut file = include_bytes!("../../../../fuzz/seeds/native/0").to_vec();
    for (name, by) in [
        ("stock_begin", "lookup.cold"),
        ("stock_end", "f.isra.12"),
        ("_ZN4shop6lookupERKNSt7__cxx11", "_ZN4shop6lookupEv.cold\0"),
    ] {
        let at = file.windows(name.len()).position(|text| text == name.as_bytes()).expect("a symbol");
        file[at..at + by.len()].copy_from_slice(by.as_bytes());
    }
    planned_in(file, returns, start)
}

fn planned_in(file: Vec<u8>, returns: &str, start: &str) -> Result<Plan, String> {
    let text = format!("allow_expensive = true\nreturns = {returns}\n[[native.start]]\n{start}\n");
    planned_of(file, &text)
}

fn planned_of(file: Vec<u8>, operation: &str) -> Result<Plan, String> {
    planned_by_key(file, "thread", operation)
}

fn planned_by_key(file: Vec<u8>, key: &str, operation: &str) -> Result<Plan, String> {
    let image = Image::parse(Box::new(file)).expect("an image");
    let text = format!("name = \"any\"\n[[native]]\nname = \"a\"\nkey = \"{key}\"\n{operation}");
    let spec = read("any.toml", &text).unwrap_or_else(|error| panic!("{error}"));
    let specs = Specs::of(vec![spec]).expect("one goes with itself");
    let found = Inspection::of_specs(&image, &specs).expect("no Go program").frameworks.remove(0);
    found.plan.map_err(|why| why.to_string())
}

#[test]
fn a_part_of_a_function_is_none() {
    for start in [
        "function = \"look*\"\nat_most = 9",
        "function = \"_Z*\"\nat_most = 9",
        "function = \"shop::lookup\"",
        "function = \"shop::lookup()\"",
        "function = \"*::*\"\nat_most = 9",
    ] {
        let why = planned(start).expect_err("a refusal");
        assert!(why.contains("is not among the symbols"), "{start}: {why}");
    }
    for symbol in ["lookup.cold", "_ZN4shop6lookupEv.cold"] {
        let why = planned(&format!("function = \"{symbol}\"")).expect_err("a refusal");
        assert!(why.contains(&format!("{symbol} is a part of a function")), "{why}");
    }
    let all = planned("function = \"*\"\nat_most = 2").expect("a plan");
    assert!(all.sites.iter().all(|site| !is_native_part(&site.symbol)), "{:?}", all.sites);
}

#[test]
fn a_thunk_is_none() {
    const THUNK: &str = "_ZThn8_N4shop6lookupEi";
    let planned = |start: &str| {
        let mut file = include_bytes!("../../../../fuzz/seeds/native/0").to_vec();
        let at = file.windows(3).position(|text| text == b"_ZN").expect("a symbol");
        let name = format!("{THUNK}\0");
        file[at..at + name.len()].copy_from_slice(name.as_bytes());
        planned_in(file, BY_INSTRUCTIONS, start)
    };
    for pattern in ["_Z*", "*shop::lookup*", "*::*"] {
        let why = planned(&format!("function = \"{pattern}\"\nat_most = 9")).expect_err("a refusal");
        assert!(why.contains("is not among the symbols"), "{pattern}: {why}");
    }
    let why = planned(&format!("function = \"{THUNK}\"")).expect_err("a refusal");
    assert!(why.contains(&format!("{THUNK} is a thunk")), "{why}");
}

#[test]
fn a_function_is_refused_where_a_part_of_it_may_return() {
    // The offset of the code in the file, eight bytes per function, and that of the symbols.
    const CODE: usize = 120;
    const SYMBOLS: usize = CODE + 4 * 8;
    const LOCAL: u8 = 2;
    const GLOBAL: u8 = 0x12;
    let planned_with = |third: u8, whole: &[u8], part: &str, code: &[u8]| {
        let mut file = include_bytes!("../../../../fuzz/seeds/native/0").to_vec();
        let name = file.windows(3).position(|text| text == b"_ZN").expect("a symbol");
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        // The first function.
        put(CODE, whole);
        put(SYMBOLS + 24 + 16, &[u8::try_from(whole.len()).expect("a short one")]);
        put(SYMBOLS + 3 * 24 + 4, &[third]);
        // The fourth symbol becomes the part, without a type.
        put(SYMBOLS + 4 * 24 + 4, &[0]);
        put(CODE + 3 * 8, code);
        put(name, format!("{part}\0").as_bytes());
        planned_in(file, BY_INSTRUCTIONS, "function = \"stock_lookup\"").map(|plan| plan.sites.len())
    };
    let planned = |whole: &[u8], part: &str, code: &[u8]| planned_with(LOCAL, whole, part, code);
    // push rbp; mov rbp, rsp; pop rbp; ret. And code that never returns: call elsewhere; int3
    let returns = b"\x55\x48\x89\xe5\x5d\xc3";
    let calls = b"\xe8\x00\x10\x00\x00\xcc";
    // movsxd rax, dword ptr [rdx+rdi*4]; add rax, rdx; jmp rax; ret. And: je to the fourth; ret
    let switch = b"\x48\x63\x04\xba\x48\x01\xd0\xff\xe0\xc3";
    let jump = b"\x74\x16\xc3";
    // Only an exception leads from the last one to its part.
    for whole in [&switch[..], jump, returns] {
        let why = planned(whole, "stock_lookup.cold", returns).expect_err("a refusal");
        assert!(why.contains("its part stock_lookup.cold may return by itself"), "{why}");
        assert!(why.contains("by itself, or enter it anew; gcc builds it whole"), "{why}");
        assert_eq!(planned(whole, "stock_lookup.cold", calls), Ok(2));
    }
    assert_eq!(planned(switch, "stock_lookup.part.0", returns), Ok(2));
    // A part of another function.
    let why = planned(jump, "stock.cold", calls).expect_err("a refusal");
    assert!(why.contains("to what returns in its place; gcc builds it whole"), "{why}");
    // Without local symbols, only a jump shows that there may be a part.
    assert_eq!(planned_with(GLOBAL, returns, "stock_lookup.cold", returns), Ok(2));
    for whole in [&switch[..], jump] {
        let why = planned_with(GLOBAL, whole, "stock_lookup.cold", calls).expect_err("a refusal");
        assert!(why.contains("no local symbols, so whether it has parts"), "{why}");
        assert!(why.ends_with("; `strip --strip-debug` keeps local symbols"), "{why}");
    }
}

#[test]
fn a_function_with_other_arguments_has_none_that_are_known() {
    for start in ["function = \"f.isra.12\"", "function = \"f.*\"\nat_most = 9"] {
        assert!(planned(start).is_ok(), "{start}");
        let why = planned(&format!("{start}\ncstrings = {{ item = 0 }}")).expect_err("a refusal");
        assert!(why.contains("the compiler has made f.isra.12 of a function with other arguments"), "{why}");
    }
    assert!(planned("function = \"stock_lookup\"\ncstrings = { item = 0 }").is_ok());
    let result = "{ by = \"instructions\", number = \"int\" }";
    assert!(planned_by(result, "function = \"stock_lookup\"").is_ok());
    let why = planned_by(result, "function = \"f.isra.12\"").expect_err("a refusal");
    assert!(why.contains("or one without a result"), "{why}");
    let why = planned("function = \"f\"").expect_err("a refusal");
    assert!(why.contains("of f nothing is left but f.isra.12"), "{why}");
}

#[test]
fn a_function_is_no_start_and_finish_of_one_operation() {
    let planned = |start: &str, finish: &str| {
        let file = include_bytes!("../../../../fuzz/seeds/native/0").to_vec();
        planned_of(file, &format!("[[native.start]]\n{start}\n[[native.finish]]\n{finish}\n"))
    };
    for (start, finish) in [
        ("function = \"stock_end\"", "function = \"stock_end\""),
        ("function = \"stock_*\"\nat_most = 3", "function = \"stock_end\""),
        ("function = \"stock_end\"", "function = \"stock_*\"\nat_most = 3"),
    ] {
        let why = planned(start, finish).expect_err("a refusal");
        assert!(why.contains("function stock_end is a start and a finish of the same operation"), "{why}");
    }
    let all = planned("function = \"stock_begin\"", "function = \"stock_e*\"\nat_most = 3");
    assert_eq!(all.map(|plan| plan.sites.len()), Ok(2));
}

#[test]
fn a_function_may_end_one_call_and_begin_another() {
    let planned = |start: usize, finish: usize| {
        let file = include_bytes!("../../../../fuzz/seeds/native/0").to_vec();
        let operation = format!(
            "[[native.start]]\nfunction = \"stock_end\"\nkey = {start}\n\
             [[native.finish]]\nfunction = \"stock_end\"\nkey = {finish}\n"
        );
        planned_by_key(file, "number", &operation).map(|plan| plan.sites.len())
    };
    assert_eq!(planned(1, 0), Ok(2));
    let why = planned(1, 1).expect_err("a refusal");
    assert!(why.contains("stock_end is a start and a finish of the same operation"), "{why}");
}

/// The start entry of a spec with this text.
fn entry(text: &str) -> NativeEntry {
    let text = format!(
        "name = \"any\"\n[[native]]\nname = \"a\"\nkey = \"thread\"\nallow_expensive = true\n\
         returns = {{ by = \"instructions\" }}\n[[native.start]]\n{text}\n"
    );
    let spec = read("any.toml", &text).expect("a spec");
    spec.operations[0].native.as_ref().expect("native").start[0].clone()
}

#[test]
fn a_string_must_be_one_by_the_mangled_name() {
    const STRING: &str = "NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE";
    let check = |symbol: &str, arguments: &str| {
        let entry = entry(&format!("function = \"f\"\nstrings = {{ {arguments} }}"));
        check_symbol(&symbol.replace('$', STRING), &entry, false, &mut Demangler::default())
            .map_err(|why| why.to_string())
    };
    assert_eq!(check("_Z1fiRK$", "item = 1"), Ok(()));
    assert_eq!(check("_Z1fRK$S6_", "item = 0, other = 1"), Ok(()));
    assert_eq!(check("_ZNK4Shop4findERK$", "item = 2"), Ok(()));
    for (symbol, arguments, wrong) in [
        ("_Z1fiRK$", "item = 0", 0),
        ("_Z1fiRK$", "item = 1, other = 0", 0),
        ("_Z1fiRK$", "item = 3", 3),
        ("_Z1fRKSt6vectorI$SaI$EE", "item = 0", 0),
    ] {
        let why = check(symbol, arguments).expect_err("a refusal");
        assert!(why.contains(&format!("that can be argument {wrong},")), "{symbol}: {why}");
    }
    assert_eq!(check("_ZN1JC1IiEERK$T_", "item = 1"), Ok(()));
    for symbol in ["f".to_owned(), format!("_Z1100{}RK$", "f".repeat(1_100))] {
        let why = check(&symbol, "item = 0").expect_err("a refusal");
        assert!(why.contains("can't be read from its symbol"), "{symbol}: {why}");
    }
}

#[test]
fn clones_that_are_not_watched_are_noted() {
    let entry = entry("function = \"f\"");
    let function = |name: &str| NativeFunction { name: name.to_owned(), entry: 8, size: 8, wanted_by: 1 };
    let note = |clones: &[&str], watched: &[&str]| {
        let clones = clones.iter().map(|name| ((*name).to_owned(), 1)).collect();
        let functions = Functions { entries: vec![&entry], found: Vec::new(), clones, is_stripped: false };
        let watched: Vec<_> = watched.iter().map(|name| function(name)).collect();
        clones_left_out(&entry, &watched, &functions)
    };
    assert_eq!(note(&[], &["f"]), None);
    assert_eq!(note(&["f.isra.0"], &["f", "f.isra.0"]), None);
    let text = note(&["f.constprop.0", "f.isra.0"], &["f", "f.isra.0"]).expect("a note");
    assert!(text.ends_with("of its own of f are not counted: f.constprop.0"), "{text}");
}

fn note(functions: &[(u64, &str)], names: &[(u64, &str)]) -> Option<String> {
    let mut all: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for (entry, name) in names {
        all.entry(*entry).or_default().insert((*name).to_owned());
    }
    other_names(&functions.iter().copied().collect(), &all)
}

#[test]
fn other_names_of_a_function_are_noted() {
    assert_eq!(note(&[(8, "get")], &[(8, "get"), (16, "put")]), None);
    let note_of_get = note(&[(8, "get")], &[(8, "get"), (8, "look\n"), (16, "put")]);
    assert!(note_of_get.is_some_and(|text| text.ends_with("(--icf): get is look\\n as well")));
    let functions: Vec<_> = (0..6).map(|entry| (entry, "get")).collect();
    let names: Vec<_> = (0..6).map(|entry| (entry, "set")).collect();
    let text = note(&functions, &names).expect("a note");
    assert_eq!(text.matches("get is set as well").count(), NOTED_MAX);
    assert!(text.ends_with(" and 2 functions more"), "{text}");
    let long = "x".repeat(4_096);
    assert!(note(&[(8, "get")], &[(8, &long)]).is_some_and(|text| text.len() < 500));
}
