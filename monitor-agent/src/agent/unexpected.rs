//! Types that calls come with and that the plan doesn't know: named, and used where it can be proven what they are.
//!
//! A type word is the address of an itab. The compiler makes one for each pair of interface and type that it sees; the
//! runtime makes others (`runtime/iface.go`), and so do executables that carry a package twice. An itab has the addresses
//! of its interface and of its type, the type's hash and its methods (`internal/abi/iface.go`): when all these are those
//! of an itab that the plan knows, it means the same.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

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

/// What tells an itab from others; addresses are those of link time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Itab {
    interface: u64,
    concrete: u64,
    hash: u32,
    first_method: u64,
}

/// Bytes of an itab up to the end of its first method.
const ITAB_BYTES: usize = 32;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Unexpected {
    /// Type words that the recipe knows.
    known: Vec<(u64, Itab)>,
    seen: BTreeMap<u64, UnexpectedType>,
    /// Hits that the programs could make nothing of, when last asked about,
    unknown_hits: u64,
    /// and when they are asked again, whatever that number says.
    next_look: Instant,
}

/// How often the programs are asked, which takes a system call, where they could make something of all calls.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Unexpected {
    pub(super) fn new(recipe: &Recipe, place: &Place) -> Self {
        let shapes = recipe.shapes.iter();
        let words = shapes.flat_map(|shape| {
            let guards = shape.windows.iter().map(|window| window.guard_word);
            [shape.type_word, shape.inner_word, shape.sited.messages.object_word].into_iter().chain(guards)
        });
        let mut known: Vec<(u64, Itab)> = Vec::new();
        for word in words {
            if known.iter().any(|(seen, _)| *seen == word) {
                continue;
            }
            known.extend(in_image(place, word).map(|itab| (word, itab)));
        }
        Self { known, seen: BTreeMap::new(), unknown_hits: 0, next_look: Instant::now() }
    }

    /// Asks the programs which types they met, if calls are not counted for it or it is time to. Tells whether there is news.
    pub(super) fn look(&mut self, now: Instant, maps: &Maps, place: &Place) -> bool {
        let unknown_hits = maps.unknown_hits();
        if now < self.next_look && unknown_hits == self.unknown_hits {
            return false;
        }
        (self.unknown_hits, self.next_look) = (unknown_hits, now + LOOK_EVERY);
        self.ask(maps, place)
    }

    /// Asks the programs which types they met; tells whether there is news.
    pub(super) fn ask(&mut self, maps: &Maps, place: &Place) -> bool {
        let mut has_news = false;
        for (word, hits) in maps.unexpected_types() {
            let known = &self.known;
            let found = self.seen.entry(word).or_insert_with(|| meet(word, known, maps, place));
            has_news |= found.hits != hits;
            found.hits = hits;
        }
        has_news
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
    let bytes = place.executable.image.read(word.checked_sub(place.bias)?, ITAB_BYTES).ok()?;
    Itab::decode(&bytes, 0)
}

/// The itab at an address of the target, as its memory has it.
fn in_memory(place: &Place, word: u64) -> Option<Itab> {
    let mut bytes = [0; ITAB_BYTES];
    place.target.read_memory(word, &mut bytes).ok()?;
    Itab::decode(&bytes, place.bias)
}

impl Itab {
    fn decode(bytes: &[u8], bias: u64) -> Option<Self> {
        let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let address = |at: usize| word(at)?.checked_sub(bias);
        Some(Self {
            interface: address(0)?,
            concrete: address(8)?,
            hash: u32::try_from(word(16)? & u64::from(u32::MAX)).ok()?,
            first_method: address(24)?,
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
