//! Types that calls come with and that the plan doesn't know: named, and used where it can be proven what they are.
//!
//! A type word is the address of an itab. The compiler makes one for each pair of interface and type that it sees; the
//! runtime makes others (`runtime/iface.go`), and so do executables that carry a package twice. An itab begins with the
//! addresses of its interface and of its type: when both are those of an itab that the plan knows, it is the same.

use std::collections::BTreeMap;

use monitor_ebpf::Recipe;
use tracing::{info, warn};

use super::attached::Place;
use crate::{
    bpf::Maps,
    image::{Image, Kind},
    metrics::UnexpectedType,
};

/// Stands for names that can't be told.
const UNKNOWN: &str = "unknown";

/// Link-time addresses of an itab's interface and type: its first two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Itab {
    interface: u64,
    concrete: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Unexpected {
    /// Type words that the recipe knows.
    known: Vec<(u64, Itab)>,
    seen: BTreeMap<u64, UnexpectedType>,
}

impl Unexpected {
    pub(super) fn new(recipe: &Recipe, place: &Place) -> Self {
        let shapes = recipe.shapes.iter();
        let words = shapes.flat_map(|shape| {
            let guards = shape.windows.iter().map(|window| window.guard_word);
            [shape.type_word, shape.inner_word].into_iter().chain(guards)
        });
        let mut known: Vec<(u64, Itab)> = Vec::new();
        for word in words {
            if known.iter().any(|(seen, _)| *seen == word) {
                continue;
            }
            known.extend(in_image(place, word).map(|itab| (word, itab)));
        }
        Self { known, seen: BTreeMap::new() }
    }

    /// Asks the programs which types they met.
    pub(super) fn look(&mut self, maps: &Maps, place: &Place) {
        for (word, hits) in maps.unexpected_types() {
            let known = &self.known;
            let found = self.seen.entry(word).or_insert_with(|| meet(word, known, maps, place));
            found.hits = hits;
        }
    }

    pub(super) fn types(&self) -> impl Iterator<Item = &UnexpectedType> {
        self.seen.values()
    }
}

/// A type that is met for the first time.
fn meet(word: u64, known: &[(u64, Itab)], maps: &Maps, place: &Place) -> UnexpectedType {
    let itab = in_image(place, word).or_else(|| in_memory(place, word));
    let (interface, concrete) =
        itab.and_then(|itab| names(&place.executable.image, itab)).unwrap_or_else(unknown);
    let same = known.iter().find(|(_, known)| Some(*known) == itab);
    match same {
        Some((meaning, _)) if maps.add_alias(word, *meaning) => info!(
            "{}: calls come with another table for {concrete} as {interface}; they are counted from now on",
            place.name
        ),
        _ => warn!(
            "{}: calls come with {concrete} as {interface}, which was not expected: what depends on it is not read",
            place.name
        ),
    }
    UnexpectedType { interface, concrete, hits: 0 }
}

fn unknown() -> (String, String) {
    (UNKNOWN.to_owned(), UNKNOWN.to_owned())
}

/// The itab at an address of the target, as the file has it.
fn in_image(place: &Place, word: u64) -> Option<Itab> {
    let bytes = place.executable.image.read(word.checked_sub(place.bias)?, 16).ok()?;
    Itab::decode(&bytes, 0)
}

/// The itab at an address of the target, as its memory has it.
fn in_memory(place: &Place, word: u64) -> Option<Itab> {
    let mut bytes = [0; 16];
    place.target.read_memory(word, &mut bytes).ok()?;
    Itab::decode(&bytes, place.bias)
}

impl Itab {
    fn decode(bytes: &[u8], bias: u64) -> Option<Self> {
        let (interface, rest) = bytes.split_first_chunk()?;
        let (concrete, _) = rest.split_first_chunk()?;
        Some(Self {
            interface: u64::from_le_bytes(*interface).checked_sub(bias)?,
            concrete: u64::from_le_bytes(*concrete).checked_sub(bias)?,
        })
    }
}

/// Names of the interface and the type, if they are that.
fn names(image: &Image, itab: Itab) -> Option<(String, String)> {
    let go = image.go().ok()?;
    let interface = go.type_at(itab.interface).ok().filter(|found| found.kind == Kind::Interface)?;
    let concrete = go.type_at(itab.concrete).ok()?;
    Some((interface.name, concrete.name))
}
