//! Synthetic executables, whole and damaged.

use proptest::prelude::*;

use super::super::testing::{BASE, DATA, FUNCTIONS, GoFile, RODATA, TEXT};
use super::*;

fn parse(file: Vec<u8>) -> Result<Image, ImageError> {
    Image::parse(Box::new(file))
}

/// A valid file with some bytes replaced.
fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let (mut file, _) = GoFile::of_release(26).build();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

fn error(file: Vec<u8>) -> ImageError {
    parse(file).err().expect("an error")
}

#[test]
fn what_is_no_program_is_told_apart() {
    assert!(matches!(error(Vec::new()), ImageError::Empty));
    assert!(matches!(error(b"hi".to_vec()), ImageError::NotElf));
    assert!(matches!(error(b"#!/bin/sh\nexec true\n".to_vec()), ImageError::NotElf));
    assert!(matches!(error(b"\x7fELF\x02\x01".to_vec()), ImageError::Truncated { what: "ELF header" }));
    assert!(matches!(error(patched(4, &[1])), ImageError::WrongClass));
    assert!(matches!(error(patched(5, &[2])), ImageError::WrongEndian));
    assert!(matches!(error(patched(4, &[7])), ImageError::Malformed { .. }));
    assert!(matches!(error(patched(18, &[183, 0])), ImageError::WrongMachine(name) if name == "arm64"));
    assert!(matches!(error(patched(16, &[1, 0])), ImageError::NotExecutable("an object file")));
    assert!(matches!(error(patched(16, &[4, 0])), ImageError::NotExecutable("a core dump")));
}

#[test]
fn every_cut_of_a_file_is_seen() {
    let (whole, _) = GoFile::of_release(26).build();
    for len in (64..whole.len()).step_by(97) {
        let cut = error(whole[..len].to_vec());
        assert!(matches!(cut, ImageError::Truncated { .. }), "{len} bytes: {cut}");
    }
}

#[test]
fn impossible_headers_are_refused() {
    // No program headers; headers of an unknown size; more bytes in the file than in memory; an address that wraps.
    for (at, bytes) in [(56, &[0_u8; 2][..]), (54, &[55, 0]), (64 + 40, &[1, 0]), (64 + 16, &[0xff; 8])] {
        assert!(matches!(error(patched(at, bytes)), ImageError::Malformed { .. }), "{at}");
    }
    // The second segment starts before the first ends.
    let overlapping = error(patched(64 + 56 + 16, &(TEXT + 1).to_le_bytes()));
    assert!(overlapping.to_string().ends_with("its segments overlap"), "{overlapping}");
    let beyond = error(patched(64 + 8, &[0xff; 8]));
    assert!(matches!(beyond, ImageError::Truncated { what: "segments" }), "{beyond}");
    let headers = error(patched(56, &[0xff, 0xff]));
    assert!(matches!(headers, ImageError::Truncated { what: "program headers" }), "{headers}");
}

#[test]
fn a_file_gives_its_identity_and_places() {
    let (file, _) = GoFile::of_release(26).build();
    let image = parse(file).expect("an image");
    assert_eq!(image.build_id(), Some("abcd"));
    assert_eq!(image.link_base(), TEXT);
    assert_eq!(image.segments().len(), 3);
    assert_eq!(image.file_offset(TEXT + 3), Some(TEXT + 3 - BASE));
    assert_eq!(image.file_offset(RODATA), None);
    assert_eq!(image.file_offset(0), None);
    assert_eq!(image.read(TEXT, 4).expect("code"), FUNCTIONS[0].1[..4]);
    assert_eq!(image.read_only(TEXT, 4).expect("code"), FUNCTIONS[0].1[..4]);
    assert!(image.read_only(DATA, 4).is_none());
    assert!(image.read(DATA, 4).is_ok());
}

#[test]
fn without_a_gnu_build_id_there_is_gos() {
    let (mut file, _) = GoFile::of_release(26).build();
    let at = file.windows(4).position(|w| w == b"GNU\0").expect("a note");
    file[at] = b'X';
    assert_eq!(parse(file).expect("an image").build_id(), Some("go-id"));
}

#[test]
fn reads_outside_the_segments_fail_without_taking_memory() {
    let (file, _) = GoFile::of_release(26).build();
    let image = parse(file).expect("an image");
    for (address, len) in
        [(0, 1), (TEXT - 1, 4), (TEXT, 0x1000), (TEXT, usize::MAX), (u64::MAX, 1), (DATA, 1 << 40)]
    {
        assert!(matches!(image.read(address, len), Err(ImageError::Malformed { .. })), "{address:#x} {len}");
        assert!(image.read_only(address, len).is_none());
    }
}

#[test]
fn pointers_of_a_position_independent_file_come_from_its_relocations() {
    let (file, places) = GoFile { pie: true, ..GoFile::of_release(26) }.build();
    let offset = usize::try_from(places.variable - BASE).expect("an offset");
    assert_eq!(file[offset..offset + 8], [0; 8]);
    let image = parse(file).expect("an image");
    let pointer = image.read(places.variable, 8).expect("a pointer");
    assert_eq!(pointer, places.pointer.to_le_bytes());
    // Parts of a relocated word, from both sides.
    assert_eq!(image.read(places.variable, 3).expect("a part"), pointer[..3]);
    assert_eq!(image.read(places.variable + 3, 5).expect("a part"), pointer[3..]);
    assert_eq!(image.read_up_to(places.variable + 1, 2).expect("a part"), pointer[1..3]);
}

/// As in an executable of 300 MB.
#[test]
fn a_large_file_may_have_millions_of_relocations() {
    const COUNT: u64 = 2_100_000;
    let (mut file, places) = GoFile { pie: true, sections: false, ..GoFile::of_release(26) }.build();
    // The dynamic section is the last part of the file. Address and size of the table come first in it.
    let dynamic = file.len() - 64;
    let table = BASE + file.len() as u64;
    for number in 0..COUNT {
        for word in [places.variable + 8 * number, 8, TEXT + number] {
            file.extend(u64::to_le_bytes(word));
        }
    }
    let data_size = file.len() as u64 - (DATA - BASE);
    // The third segment's size in the file and in memory.
    let segment = 64 + 2 * 56;
    for (at, word) in [
        (dynamic + 8, table),
        (dynamic + 24, 24 * COUNT),
        (segment + 32, data_size),
        (segment + 40, data_size),
    ] {
        file[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    let image = parse(file).expect("an image");
    for number in [0, 1, COUNT / 2, COUNT - 1] {
        let word = image.read(places.variable + 8 * number, 8).expect("a pointer");
        assert_eq!(word, (TEXT + number).to_le_bytes(), "{number}");
    }
}

#[test]
fn files_are_read_where_they_are() {
    let (file, _) = GoFile::of_release(26).build();
    let path = std::env::temp_dir().join(format!("monitor-agent-image-{}", std::process::id()));
    std::fs::write(&path, &file).expect("a file");
    let opened = std::fs::File::open(&path).expect("the file");
    let image = Image::parse(Box::new(opened)).expect("an image");
    assert_eq!(image.read(TEXT, 4).expect("code"), FUNCTIONS[0].1[..4]);
    // The file shrinks while it is in use.
    std::fs::write(&path, b"").expect("a file");
    assert!(matches!(image.read(TEXT, 4), Err(ImageError::Truncated { .. })));
    std::fs::remove_file(&path).expect("the file");
}

proptest! {
    #[test]
    fn any_bytes_behind_the_identification_are_an_image_or_an_error(
        tail in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let (good, _) = GoFile::of_release(26).build();
        let _ = parse([&good[..20], &tail].concat());
        let _ = parse([&good[..64], &tail].concat());
    }
}
