//! The Go side of synthetic executables, of every release, whole and damaged.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::image::testing::{BASE, FUNCTIONS, GoFile, Places, TEXT};
use crate::image::{Kind, SiteKind, Source, go_entry_site};

fn image(file: Vec<u8>) -> Image {
    Image::parse(Box::new(file)).expect("an image")
}

fn variants() -> impl Iterator<Item = GoFile> {
    let releases = (17..=28).map(GoFile::of_release);
    let pie = releases.flat_map(|file| [GoFile { pie: true, ..file.clone() }, file]);
    pie.flat_map(|file| [GoFile { sections: false, ..file.clone() }, file])
}

fn put(file: &mut [u8], address: u64, bytes: &[u8]) {
    let at = usize::try_from(address - BASE).expect("an offset");
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

#[test]
fn functions_are_found_in_every_release() {
    for file in variants() {
        let (bytes, _) = file.build();
        let image = image(bytes);
        let go = image.go().unwrap_or_else(|e| panic!("go1.{} pie={}: {e}", file.minor, file.pie));
        assert_eq!(go.version().minor, file.minor);
        let found = go.functions_named(&|_| true).expect("functions");
        let mut entry = TEXT;
        for (function, (name, code)) in found.iter().zip(FUNCTIONS) {
            assert_eq!((&*function.name, function.entry), (name, entry));
            assert_eq!(go.code(function).expect("code"), code);
            entry = function.end;
        }
        assert_eq!(found.len(), FUNCTIONS.len());
        let named = go.functions_named(&|name| name.ends_with(".(*T).Do")).expect("functions");
        let site = go_entry_site(&go.code(&named[0]).expect("code"), named[0].entry).expect("a site");
        assert_eq!((named.len(), site.kind, site.offset), (1, SiteKind::Entry, 0));
    }
}

#[test]
fn what_is_none_of_the_programs_own_code_is_told() {
    const RETURN: &[u8] = &[0xc3, 0xcc, 0xcc, 0xcc];
    /// Adds to the receiver, and jumps far past the function.
    const JUMP: &[u8] = &[0x48, 0x83, 0xc0, 8, 0xe9, 16, 0, 0, 0, 0xcc, 0xcc, 0xcc];
    /// The same after code that stores arguments on the stack and reloads them, as without optimisation.
    const LATE_JUMP: [u8; 352 + JUMP.len()] = {
        let mut code = [0x90; 352 + JUMP.len()];
        let mut at = 0;
        while at < JUMP.len() {
            code[352 + at] = JUMP[at];
            at += 1;
        }
        code
    };
    const MORE: [(&str, &[u8]); 6] = [
        (A_WRAPPER, RETURN),
        ("main.(*T).made", RETURN),
        ("main.(*T).jumps", JUMP),
        ("main.(*T).jumpsLate", &LATE_JUMP),
        ("main.assembly", RETURN),
        ("main.written", RETURN),
    ];
    for minor in 18..=28 {
        let (mut bytes, _) = GoFile { more: MORE.to_vec(), ..GoFile::of_release(minor) }.build();
        let functions = image(bytes.clone()).go().expect("a Go image").functions_named(&|_| true);
        let functions = functions.expect("functions");
        let named = |name: &str| functions.iter().find(|function| function.name == name).expect("a function");
        let size = if minor < 20 { 40 } else { 44 };
        for (name, marks) in
            [(A_WRAPPER, [22, 0]), ("main.(*T).made", [22, 0]), ("main.assembly", [0, 1 << 2])]
        {
            put(&mut bytes, named(name).record + size - 4, &marks);
        }
        let image = image(bytes);
        let go = image.go().expect("a Go image");
        let wrapper = go.wrapper_id(&functions).expect("a number");
        let stand_in = |name: &str| go.stand_in(named(name), wrapper).expect("a record");
        assert_eq!(
            ["main.(*T).made", "main.(*T).jumps", "main.(*T).jumpsLate"].map(stand_in),
            [Some(StandIn::Wrapper); 3],
            "go1.{minor}"
        );
        let others = ["main.assembly", "main.written"].map(stand_in);
        assert_eq!(others, [Some(StandIn::Assembly), None], "go1.{minor}");
    }
}

#[test]
fn the_number_of_wrappers_is_known_where_nothing_in_the_program_tells_it() {
    for (minors, number) in [(18..=21, Some(21)), (22..=24, Some(22)), (25..=27, Some(23)), (28..=28, None)] {
        for minor in minors {
            let (bytes, _) = GoFile::of_release(minor).build();
            let image = image(bytes);
            let found = image.go().expect("a Go image").wrapper_id(&[]);
            // An unknown release may have another id.
            assert_eq!(found.ok(), number.map(Some), "go1.{minor}");
        }
    }
}

#[test]
fn answers_are_bounded() {
    let (bytes, _) = GoFile::of_release(26).build();
    let image = image(bytes);
    let go = image.go().expect("a Go image");
    let found = go.some_functions_named(FUNCTIONS.len(), &|_| true).expect("functions");
    assert_eq!(found.len(), FUNCTIONS.len());
    let error = go.some_functions_named(FUNCTIONS.len() - 1, &|_| true).expect_err("too many");
    assert!(error.to_string().contains("too many of its Go functions"), "{error}");
    // Functions with other names do not count.
    let found = go.some_functions_named(1, &|name| name == "main.main").expect("a function");
    assert_eq!(found.len(), 1);
}

#[test]
fn itabs_are_found_in_every_release() {
    for file in variants() {
        let (bytes, places) = file.build();
        let image = image(bytes);
        let itabs = image.go().expect("a Go image").itabs().expect("itabs");
        let pairs: Vec<_> = itabs.iter().map(|i| (i.interface, i.concrete)).collect();
        let (interface, pointer, object) = (places.interface, places.pointer, places.object);
        assert_eq!(
            pairs,
            [(interface, pointer), (interface, object), (interface, pointer)],
            "{}",
            file.minor
        );
    }
}

#[test]
fn build_info_is_found_in_every_release() {
    for file in variants() {
        let (bytes, _) = file.build();
        let info = image(bytes).build_info().expect("build info");
        assert_eq!((&*info.go_version, &*info.path), (&*file.version, "example.com/pkg"));
        assert_eq!(info.main.expect("a module").version, "v1.2.3");
    }
}

#[test]
fn a_program_without_build_info_is_not_go() {
    for sections in [true, false] {
        let (mut bytes, places) = GoFile { sections, ..GoFile::of_release(26) }.build();
        put(&mut bytes, places.build_info, b"something else");
        let image = image(bytes);
        assert!(matches!(image.build_info(), Err(ImageError::NotGo)));
        assert!(matches!(image.go(), Err(ImageError::NotGo)));
    }
}

#[test]
fn unknown_releases_are_named() {
    for version in ["go1.16.9", "unknown", "go2.1"] {
        let (bytes, _) = GoFile { version: version.to_owned(), ..GoFile::of_release(26) }.build();
        match image(bytes).go().err() {
            Some(ImageError::UnsupportedGo { version: named, .. }) => assert_eq!(named, version),
            other => panic!("{version}: {other:?}"),
        }
    }
}

/// Returns why a file of Go 1.26 is refused after `change`.
fn refusal(change: impl Fn(&mut [u8], Places)) -> String {
    let (mut bytes, places) = GoFile::of_release(26).build();
    change(&mut bytes, places);
    let image = image(bytes);
    let result = image.go().and_then(|go| go.functions_named(&|_| true).and_then(|_| go.itabs()));
    match result.err() {
        Some(ImageError::Malformed { what }) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_obfuscated_program_is_called_so() {
    let what = refusal(|file, places| put(file, places.table, &[0x12, 0x34, 0x56, 0x78]));
    assert!(what.contains("garble"), "{what}");
    let what = refusal(|file, places| put(file, places.names, &[b'x'; 400]));
    assert!(what.contains("function"), "{what}");
}

#[test]
fn module_data_that_disagrees_is_not_believed() {
    // Number of functions, start of the text, of the names, start and size of the table.
    for offset in [128 + 8, 176, 8, 104, 104 + 8, 128, 160, 0] {
        let what = refusal(|file, places| put(file, places.module + offset, &[0xff; 8]));
        assert!(what.contains("not one of go1.26.3"), "{offset}: {what}");
    }
}

#[test]
fn functions_out_of_order_are_refused() {
    let what = refusal(|file, places| put(file, places.rows + 8, &[0xff, 0xff, 0xff, 0x7f]));
    assert!(what.contains("outside the code"), "{what}");
    let what = refusal(|file, places| put(file, places.rows + 16, &[1, 0, 0, 0]));
    assert!(what.contains("not in order"), "{what}");
    let what = refusal(|file, places| put(file, places.rows + 4, &[0xff, 0xff, 0xff, 0x7f]));
    assert!(what.contains("outside itself"), "{what}");
}

#[test]
fn code_must_be_code() {
    let (bytes, places) = GoFile::of_release(26).build();
    let image = image(bytes);
    let go = image.go().expect("a Go image");
    for (entry, end) in
        [(TEXT + 4, TEXT), (places.table, places.table + 8), (TEXT, u64::MAX), (TEXT, TEXT + 4096)]
    {
        assert!(go.code(&Function { name: String::new(), entry, end, record: 0 }).is_err(), "{entry:#x}");
    }
}

/// A file that counts its reads.
struct Counted {
    file: Vec<u8>,
    reads: Arc<AtomicU32>,
}

impl Source for Counted {
    fn len(&self) -> u64 {
        Source::len(&self.file)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        Source::read_at(&self.file, offset, buf)
    }
}

/// A hostile target can make the agent ask again and again.
#[test]
fn a_file_is_searched_once_whether_there_is_something_to_find_or_not() {
    for is_whole in [true, false] {
        let (mut file, places) = GoFile { sections: false, ..GoFile::of_release(26) }.build();
        if !is_whole {
            put(&mut file, places.table, &[0x12, 0x34, 0x56, 0x78]);
        }
        let reads = Arc::new(AtomicU32::new(0));
        let image = Image::parse(Box::new(Counted { file, reads: Arc::clone(&reads) })).expect("an image");
        let count = || reads.load(Ordering::SeqCst);
        let told = || image.go().map(|go| go.version()).map_err(|error| error.to_string());
        let before = count();
        let first = told();
        assert_eq!(first.is_ok(), is_whole, "{first:?}");
        let searched = count();
        assert!(searched > before, "nothing was read");
        assert_eq!((told(), count()), (first, searched));
    }
}

/// Asks an image everything.
fn ask(file: Vec<u8>) {
    let Ok(image) = Image::parse(Box::new(file)) else {
        return;
    };
    let _ = image.build_info();
    let Ok(go) = image.go() else {
        return;
    };
    for function in go.functions_named(&|_| true).unwrap_or_default() {
        let _ = go.code(&function).map(|code| go_entry_site(&code, function.entry));
        let _ = go.inlined_into(&function);
    }
    for itab in go.itabs().unwrap_or_default() {
        for address in [itab.interface, itab.concrete] {
            let Ok(found) = go.type_at(address) else { continue };
            assert!(found.kind == Kind::Struct || found.fields.is_empty());
            let _ = found.elem.map(|elem| go.type_at(elem));
        }
    }
}

proptest! {
    #[test]
    fn damaged_files_never_panic(
        minor in 17_u32..=27,
        pie in any::<bool>(),
        sections in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (mut file, _) = GoFile { pie, sections, ..GoFile::of_release(minor) }.build();
        // Only bytes that are not padding.
        let places: Vec<usize> = (0..file.len()).filter(|&i| file[i] != 0).collect();
        for (at, value) in changes {
            file[places[at.index(places.len())]] = value;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        ask(file);
    }

    #[test]
    fn words_with_extreme_values_never_panic(
        minor in 17_u32..=27,
        at in any::<prop::sample::Index>(),
        value in prop::sample::select(vec![0, 1, u64::MAX, u64::MAX - 7, 1 << 63, 1 << 32, TEXT, u64::from(u32::MAX)]),
    ) {
        let (mut file, _) = GoFile::of_release(minor).build();
        let places: Vec<usize> = (0..file.len() / 8).filter(|&i| file[8 * i..8 * i + 8] != [0; 8]).collect();
        let at = 8 * places[at.index(places.len())];
        file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        ask(file);
    }
}
