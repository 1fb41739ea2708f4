use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use proptest::{prelude::*, sample::Index};

use monitor_ebpf::LABELS;

use super::{TARGETS, Target, memory::peak, plans};
use crate::{
    image::{
        Image, file_with_variables, files_with_dwarf,
        testing::{self, BASE, DATA, GoFile, Places, RODATA, TEXT},
    },
    plan::{Inspection, Wanted},
    specs::Specs,
};

/// More than ten times what the slowest input takes in a debug build.
const PATIENCE: Duration = Duration::from_secs(2);
/// Beyond the copy of the input.
const MEMORY: usize = 16 << 20;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("fuzz")
}

/// The inputs in a directory.
fn inputs(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let inputs: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    assert!(!inputs.is_empty(), "nothing in {}", directory.display());
    inputs
}

/// Runs a target on an input within its bounds.
fn run(target: &Target, input: &[u8], name: &dyn std::fmt::Debug) {
    let begin = Instant::now();
    let peak = peak(|| (target.run)(input));
    let time = begin.elapsed();
    assert!(time < PATIENCE, "{} takes {time:?}: {name:?}", target.name);
    assert!(peak < MEMORY + 4 * input.len(), "{} takes {peak} bytes: {name:?}", target.name);
}

#[test]
fn every_input_of_the_corpus_ends_soon_and_takes_little_memory() {
    for target in &TARGETS {
        let own = inputs(&fuzz().join("corpus").join(target.name));
        let seeds = target.seeds.iter().flat_map(|seeds| inputs(&fuzz().join("seeds").join(seeds)));
        for path in own.into_iter().chain(seeds) {
            run(target, &fs::read(&path).expect("an input"), &path);
        }
    }
}

#[test]
fn seeds_are_what_the_parsers_are_written_for() {
    for (name, seeds) in [
        ("files", files()),
        ("dwarf", [files_with_dwarf(), vec![file_with_variables()]].concat()),
        ("functions", functions()),
        ("label-sets", label_sets()),
        ("native", vec![native_file()]),
        ("symbols", SYMBOLS.map(|symbol| symbol.as_bytes().to_vec()).to_vec()),
    ] {
        let kept: Vec<_> = (0..seeds.len())
            .map(|number| fs::read(fuzz().join(format!("seeds/{name}/{number}"))).unwrap_or_default())
            .collect();
        if kept != seeds {
            let found = std::env::temp_dir().join("seeds").join(name);
            fs::create_dir_all(&found).expect("a directory");
            for (number, seed) in seeds.iter().enumerate() {
                fs::write(found.join(number.to_string()), seed).expect("a seed");
            }
            panic!("fuzz/seeds/{name} is not as it should be: if {} is, take it over", found.display());
        }
    }
    for (number, file) in files().into_iter().enumerate() {
        let image = Image::parse(Box::new(file)).expect("an image");
        for found in Inspection::of(&image, &Specs::default()).expect("a Go program").frameworks {
            let plan = found.plan.unwrap_or_else(|refusal| panic!("{number}: {refusal}"));
            let recipe = plan.recipe(0, Wanted::default()).expect("a recipe");
            let shapes = recipe.shape_count;
            assert!(recipe.by_site == 0 && shapes >= 2, "{number}: {shapes} shapes");
        }
    }
}

#[test]
fn the_spec_among_the_seeds_is_for_the_program_that_it_is_tried_on() {
    let read = |path: &str| fs::read(fuzz().join(path)).expect("a seed");
    let text = String::from_utf8(read("seeds/specs/3")).expect("text");
    let specs = Specs::of(vec![crate::specs::read("", &text).expect("a spec")]).expect("one");
    let image = Image::parse(Box::new(read("seeds/files/3"))).expect("an image");
    for found in Inspection::of_specs(&image, &specs).expect("a Go program").frameworks {
        let plan = found.plan.unwrap_or_else(|refusal| panic!("{refusal}"));
        assert!(plan.sites.len() >= 4 && plan.labels().len() == 4, "{:?}", plan.sites);
    }
}

#[test]
fn the_native_specs_among_the_seeds_are_for_the_program_that_they_are_tried_on() {
    let read = |path: &str| fs::read(fuzz().join(path)).expect("a seed");
    let image = Image::parse(Box::new(read("seeds/native/0"))).expect("an image");
    for (seed, operations) in [("seeds/specs/4", 1), ("seeds/specs/5", 2)] {
        let text = String::from_utf8(read(seed)).expect("text");
        let specs = Specs::of(vec![crate::specs::read("", &text).expect("a spec")]).expect("one");
        let found = Inspection::of_specs(&image, &specs).expect("no Go program").frameworks;
        assert_eq!(found.len(), operations, "{seed}");
        for one in found {
            let plan = one.plan.unwrap_or_else(|refusal| panic!("{seed}: {refusal}"));
            assert_eq!(plan.sites.len(), 2, "{seed}: {:?}", plan.sites);
        }
    }
}

#[test]
fn the_native_program_among_the_seeds_has_plans() {
    // By its symbols, and by the names that those have in the source.
    assert_eq!(plans(&native_file()), 2);
    let target = TARGETS.iter().find(|target| target.name == "plan").expect("a target");
    assert!(target.seeds.contains(&"native"));
}

#[test]
fn every_target_is_fuzzed() {
    let mut fuzzed: Vec<_> = inputs(&fuzz().join("fuzz_targets"))
        .into_iter()
        .map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    fuzzed.sort();
    let mut names = TARGETS.each_ref().map(|target| target.name);
    names.sort_unstable();
    assert_eq!(fuzzed, names);
}

#[test]
fn memory_is_counted() {
    assert!((1 << 20..2 << 20).contains(&peak(|| drop(vec![1_u8; 1 << 20]))));
}

/// Go executables as each layout has them.
fn files() -> Vec<Vec<u8>> {
    let kitex = [17, 18, 20, 26, 27].map(|minor| GoFile { kitex: true, ..GoFile::of_release(minor) });
    let others = [17, 26, 27].map(GoFile::of_release);
    let pie = [17, 26].map(|minor| GoFile { pie: true, kitex: true, ..GoFile::of_release(minor) });
    let stripped = [20, 27].map(|minor| GoFile { sections: false, kitex: true, ..GoFile::of_release(minor) });
    let all = kitex.into_iter().chain(others).chain(pie).chain(stripped);
    all.map(|file| file.build().0).collect()
}

/// A program that Go has not built, whose functions have symbols as compilers of C and C++ make them.
fn native_file() -> Vec<u8> {
    const AT: u64 = 0x40_0000;
    const HEADERS: usize = 64 + 56;
    // A frame's push, its pop and a return, and what fills up.
    const CODE: [u8; 8] = [0x55, 0x48, 0x89, 0xe5, 0x5d, 0xc3, 0xcc, 0xcc];
    const LENGTH: u64 = 6;
    const NAMES: [&str; 4] = [
        "stock_lookup",
        "stock_begin",
        "stock_end",
        "_ZN4shop6lookupERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE",
    ];
    let (text_at, code) = (AT + HEADERS as u64, CODE.repeat(NAMES.len()));
    let (mut names, mut symbols) = (vec![0_u8], vec![0_u8; 24]);
    for (entry, name) in (text_at..).step_by(CODE.len()).zip(NAMES) {
        symbols.extend(u32::try_from(names.len()).expect("a short table").to_le_bytes());
        // A function that other files may use, in the first section.
        symbols.extend([0x12, 0, 1, 0]);
        symbols.extend([entry, LENGTH].map(u64::to_le_bytes).concat());
        names.extend(name.as_bytes());
        names.push(0);
    }
    names.resize(names.len().next_multiple_of(8), 0);
    let mapped = HEADERS + code.len();
    let (names_at, sections_at) = (mapped + symbols.len(), mapped + symbols.len() + names.len());
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2_u16, 62, 1, 0].map(u16::to_le_bytes).concat());
    file.extend([text_at, 64, sections_at as u64].map(u64::to_le_bytes).concat());
    file.extend([0_u16, 0, 64, 56, 1, 64, 3, 2].map(u16::to_le_bytes).concat());
    file.extend([1_u32, 5].map(u32::to_le_bytes).concat());
    file.extend([0, AT, AT, mapped as u64, mapped as u64, 0x1000].map(u64::to_le_bytes).concat());
    let section = |kind: u32, place: usize, size: usize, link: u32, entry: u64| {
        let words = [0, 0, place as u64, size as u64].map(u64::to_le_bytes).concat();
        let ends = [link, 0].map(u32::to_le_bytes).concat();
        [[0, kind].map(u32::to_le_bytes).concat(), words, ends, [8, entry].map(u64::to_le_bytes).concat()]
            .concat()
    };
    let tables = [section(2, mapped, symbols.len(), 2, 24), section(3, names_at, names.len(), 0, 0)].concat();
    [file, code, symbols, names, vec![0; 64], tables].concat()
}

/// Symbols as compilers of C++ and Rust make them, and those of what is made of a function.
const SYMBOLS: [&str; 6] = [
    "_ZN4shop6lookupERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE",
    "_ZNSt12__shared_ptrI3FooLN9__gnu_cxx12_Lock_policyE2EE5resetEv",
    "_ZN3APIcvT_IiEEv",
    "_ZN4shop6lookupEi.constprop.0.cold",
    "_ZN8my_crate6handle17h0123456789abcdefE",
    "_RNvCs1234_8my_crate6handle",
];

/// Functions of the executables.
fn functions() -> Vec<Vec<u8>> {
    const ENTRY: u64 = 0x45_4000;
    testing::functions().map(|code| [&ENTRY.to_le_bytes(), code].concat()).collect()
}

/// A label set with each mark.
fn label_sets() -> Vec<Vec<u8>> {
    let set = |mark: u8| {
        let mut set = vec![mark % 3, mark % 4, mark % 2, 1, 0];
        set.extend([16; LABELS]);
        set.extend([mark; LABELS]);
        set.extend((0..LABELS).flat_map(|_| *b"\0\x40\0\0\0\0\0\0\x08\0\0\0\0\0\0\0"));
        set
    };
    (0..8).map(set).collect()
}

/// A good executable of any layout.
fn good_file() -> impl Strategy<Value = GoFile> {
    let layout = (17_u32..=27, any::<bool>(), any::<bool>(), any::<bool>());
    layout.prop_map(|(minor, pie, sections, kitex)| GoFile {
        pie,
        sections,
        kitex,
        inlined: kitex,
        ..GoFile::of_release(minor)
    })
}

/// What a lie is about.
#[derive(Clone, Copy, Debug)]
enum Part {
    Headers,
    Types,
    FunctionTable,
    ModuleData,
    All,
}

impl Part {
    /// Where it lies in a file.
    fn of(self, len: usize, places: Places) -> std::ops::Range<usize> {
        let at = |address: u64| usize::try_from(address - BASE).expect("an offset");
        match self {
            Self::Headers => 0..at(TEXT),
            Self::Types => at(RODATA)..at(places.table),
            Self::FunctionTable => at(places.table)..at(DATA),
            Self::ModuleData => at(places.module)..at(places.variable),
            Self::All => 0..len,
        }
    }
}

/// What stands where something else should.
#[derive(Clone, Debug)]
enum Lie {
    /// A number at the edge of what can be.
    Extreme(u64),
    /// An address inside the program, perhaps of the wrong thing.
    Address(Index),
    /// Its own address: a loop.
    Itself,
    /// What stands at another place.
    Copy(Index),
    /// What was there, and a little.
    Near(i8),
    /// A length of many bytes.
    Varint,
}

fn lie() -> impl Strategy<Value = Lie> {
    let edges = vec![
        0,
        1,
        8,
        0xff,
        0xffff,
        1 << 16,
        (1 << 31) - 1,
        1 << 31,
        (1 << 32) - 1,
        1 << 32,
        1 << 40,
        (1 << 63) - 1,
        1 << 63,
        u64::MAX - 7,
        u64::MAX,
    ];
    prop_oneof![
        3 => prop::sample::select(edges).prop_map(Lie::Extreme),
        3 => any::<Index>().prop_map(Lie::Address),
        1 => Just(Lie::Itself),
        2 => any::<Index>().prop_map(Lie::Copy),
        2 => any::<i8>().prop_map(Lie::Near),
        1 => Just(Lie::Varint),
    ]
}

/// Writes a lie of 1, 2, 4 or 8 bytes to a place that is not padding.
fn tell(file: &mut [u8], part: std::ops::Range<usize>, place: Index, width: usize, lie: &Lie) {
    let used: Vec<usize> =
        part.step_by(width).filter(|&at| file[at..].iter().take(width).any(|&b| b != 0)).collect();
    if used.is_empty() {
        return;
    }
    let at = used[place.index(used.len())];
    let last = file.len() as u64;
    let old = (0..width.min(file.len() - at)).fold(0, |word, i| word | u64::from(file[at + i]) << (8 * i));
    let value = match lie {
        Lie::Extreme(value) => *value,
        Lie::Address(index) => BASE + index.index(file.len()) as u64 / 8 * 8,
        Lie::Itself => BASE.saturating_add(at as u64).min(BASE + last),
        Lie::Copy(index) => {
            let from = index.index(file.len() / 8) * 8;
            file[from..].iter().take(8).rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
        }
        Lie::Near(step) => old.wrapping_add_signed((*step).into()),
        Lie::Varint => 0x0fff_ffff_ffff_ff00 | old & 0xff,
    };
    for (slot, byte) in file[at..].iter_mut().take(width).zip(value.to_le_bytes()) {
        *slot = byte;
    }
}

/// What may stand in a spec in place of something else.
fn change() -> impl Strategy<Value = String> {
    let words = [
        "*",
        "(*a.b).",
        "key = 9",
        "{www}",
        "[[operation]]\n",
        "\"",
        "returns = {}",
        "ri.",
        "at_most = 64",
        "is = \"& 6\"",
        "(a.B).(*c.D)",
        "\n",
    ];
    prop_oneof![prop::sample::select(words.map(str::to_owned).to_vec()), ".{0,20}", Just(String::new())]
}

fn part() -> impl Strategy<Value = Part> {
    use Part::{All, FunctionTable, Headers, ModuleData, Types};
    prop::sample::select(vec![Headers, Types, Types, FunctionTable, ModuleData, All])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn files_that_lie_end_soon_and_take_little_memory(
        good in good_file(),
        lies in prop::collection::vec((part(), any::<Index>(), 0_u32..4, lie()), 1..6),
    ) {
        let (mut file, places) = good.build();
        for (part, place, width, lie) in &lies {
            let part = part.of(file.len(), places);
            tell(&mut file, part, *place, 1 << width, lie);
        }
        for target in TARGETS.iter().filter(|target| !["code", "labels", "spec", "symbol"].contains(&target.name)) {
            run(target, &file, &lies);
        }
    }

    #[test]
    fn specs_with_anything_in_them_end_soon(
        seed in any::<Index>(),
        changes in prop::collection::vec((any::<Index>(), 0_usize..40, change()), 1..4),
    ) {
        let target = TARGETS.iter().find(|target| target.name == "spec").expect("a target");
        let frameworks = fuzz().with_file_name("monitor-agent").join("frameworks");
        let seeds = [inputs(&fuzz().join("seeds/specs")), inputs(&frameworks)].concat();
        let seed = fs::read_to_string(&seeds[seed.index(seeds.len())]).expect("a spec");
        let mut text: Vec<char> = seed.chars().collect();
        for (place, length, change) in &changes {
            let at = place.index(text.len() + 1);
            let end = text.len().min(at + length);
            text.splice(at..end, change.chars());
        }
        let text: String = text.into_iter().collect();
        run(target, text.as_bytes(), &text);
    }

    #[test]
    fn any_bytes_end_soon(data in prop::collection::vec(any::<u8>(), 0..2000), behind in 0_usize..200) {
        let (good, _) = GoFile::of_release(26).build();
        for target in &TARGETS {
            run(target, &data, &());
            run(target, &[&good[..behind], &data].concat(), &behind);
        }
    }
}
