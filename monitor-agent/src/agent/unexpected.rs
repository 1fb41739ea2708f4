//! Types of calls that the plan does not know: named, and used where their meaning can be proven.
//!
//! A type word is the address of an itab. The compiler makes one for each pair of interface and type that it sees. The
//! runtime makes others (`runtime/iface.go`), and so do executables that contain a package twice. An itab has the
//! addresses of its interface and of its type, the type's hash and its methods (`internal/abi/iface.go`). If all these
//! are equal to those of an itab that the plan knows, it means the same.

use std::{
    collections::BTreeMap,
    task::Poll,
    time::{Duration, Instant},
};

use monitor_ebpf::Recipe;
use tracing::{info, warn};

use super::{
    aside::{Aside, Awaited},
    attached::Place,
};
use crate::{
    bpf::Maps,
    image::{Image, Kind},
    metrics::UnexpectedType,
    target::AddressSpace,
    text::shown,
};

/// Stands for names that can't be read.
const UNKNOWN: &str = "unknown";

/// The fields that identify an itab, with link-time addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Itab {
    interface: u64,
    concrete: u64,
    hash: u32,
    first_method: u64,
}

/// Size of an itab up to the end of its first method, in bytes.
const ITAB_BYTES: usize = 32;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Unexpected {
    /// Type words of the recipe.
    known: Vec<(u64, Itab)>,
    seen: BTreeMap<u64, UnexpectedType>,
    /// Number of hits with an unknown type, when the programs were last asked.
    unknown_hits: u64,
    /// When to ask again, even if `unknown_hits` has not changed.
    next_ask: Instant,
    /// The memory with the itabs that the runtime has made; `None` if it may not be read.
    memory: Option<AddressSpace>,
    made: Aside,
    /// Itabs that are being read from memory.
    awaited: Option<Awaited<Vec<Met>>>,
}

/// A type word, and the itab at its address, if there is one.
type Met = (u64, Option<Itab>);

/// How often the programs are asked, which takes a system call, while no hits have an unknown type.
const ASK_EVERY: Duration = Duration::from_secs(1);

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
        Self {
            known,
            seen: BTreeMap::new(),
            unknown_hits: 0,
            next_ask: Instant::now(),
            memory: place.target.memory().ok(),
            made: Aside::new(&place.name, "calls with types that its runtime has made are not counted"),
            awaited: None,
        }
    }

    /// Asks the programs which types they met, if calls are not counted because of their type, a read of memory is
    /// pending or it is time to. Returns whether anything has changed.
    pub(super) fn ask_if_due(&mut self, now: Instant, maps: &Maps, place: &Place) -> bool {
        let unknown_hits = maps.unknown_hits();
        if now < self.next_ask && unknown_hits == self.unknown_hits && self.awaited.is_none() {
            return false;
        }
        (self.unknown_hits, self.next_ask) = (unknown_hits, now + ASK_EVERY);
        self.ask(maps, place)
    }

    /// Asks the programs which types they met. Returns whether anything has changed. Does not wait: what has to be read
    /// from the target's memory is known the next time, or later.
    pub(super) fn ask(&mut self, maps: &Maps, place: &Place) -> bool {
        let given = self.given();
        self.meet_all(given, maps, place);
        let types = maps.unexpected_types();
        let words = types.iter().map(|(word, _)| *word);
        let new = words.filter(|word| !self.seen.contains_key(word)).collect();
        let found = self.look_up(new, place);
        self.meet_all(found, maps, place);
        let mut has_news = false;
        for (word, hits) in types {
            // If it could not be looked up yet, it is tried again: until then its calls are counted only as of unknown
            // type.
            let Some(found) = self.seen.get_mut(&word) else { continue };
            has_news |= found.hits != hits;
            found.hits = hits;
        }
        has_news
    }

    /// Returns what has been read from memory by now.
    fn given(&mut self) -> Vec<Met> {
        let Some(Poll::Ready(given)) = self.awaited.as_ref().map(Awaited::poll) else { return Vec::new() };
        self.awaited = None;
        given.unwrap_or_default()
    }

    fn meet_all(&mut self, all: Vec<Met>, maps: &Maps, place: &Place) {
        for (word, itab) in all {
            self.seen.insert(word, meet(word, itab, &self.known, maps, place));
        }
    }

    /// Returns the itabs at these addresses that are in the executable. Begins to read the others from memory, unless a
    /// read is pending.
    fn look_up(&mut self, words: Vec<u64>, place: &Place) -> Vec<Met> {
        let met = words.into_iter().map(|word| (word, in_image(place, word)));
        let (mut met, others): (Vec<Met>, Vec<Met>) = met.partition(|(_, itab)| itab.is_some());
        let Some(memory) = self.memory.clone().filter(|_| !others.is_empty()) else {
            met.extend(others);
            return met;
        };
        let bias = place.bias;
        let read = move || {
            let read = others.into_iter().map(|(word, _)| (word, in_memory(&memory, word, bias))).collect();
            // The process has not become another program meanwhile.
            if memory.is_there() { read } else { Vec::new() }
        };
        self.awaited.get_or_insert_with(|| self.made.begin(read));
        met
    }

    pub(super) fn types(&self) -> impl Iterator<Item = &UnexpectedType> {
        self.seen.values()
    }
}

/// Handles a type that is met for the first time.
fn meet(word: u64, itab: Option<Itab>, known: &[(u64, Itab)], maps: &Maps, place: &Place) -> UnexpectedType {
    let (interface, concrete) =
        itab.and_then(|itab| names(&place.executable.image, itab)).unwrap_or_else(unknown);
    let same = known.iter().find(|(_, known)| Some(*known) == itab);
    let pair = pair(&interface, &concrete);
    match same {
        Some((meaning, _)) if maps.add_alias(word, *meaning) => {
            info!("{}: calls come with another table for {pair}; they are counted from now on", place.name);
        }
        _ => warn!(
            "{}: calls come with {pair}, which was not expected: what depends on it is not read",
            place.name
        ),
    }
    UnexpectedType { interface, concrete, hits: 0 }
}

/// Formats the two names for the log: they are the target's own, of any length and content.
fn pair(interface: &str, concrete: &str) -> String {
    format!("{} as {}", shown(concrete), shown(interface))
}

fn unknown() -> (String, String) {
    (UNKNOWN.to_owned(), UNKNOWN.to_owned())
}

/// Returns the itab at an address of the target, as it is in the file.
fn in_image(place: &Place, word: u64) -> Option<Itab> {
    let bytes = place.executable.image.read(word.checked_sub(place.bias)?, ITAB_BYTES).ok()?;
    Itab::decode(&bytes, 0)
}

/// Returns the itab at an address of the target, as it is in memory.
fn in_memory(memory: &AddressSpace, word: u64, bias: u64) -> Option<Itab> {
    let mut bytes = [0; ITAB_BYTES];
    memory.read(word, &mut bytes).ok()?;
    Itab::decode(&bytes, bias)
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

/// Returns the names of the interface and the type, if they are an interface and a type. A target can make up any
/// number of itabs, but each takes only a few short reads of the file.
fn names(image: &Image, itab: Itab) -> Option<(String, String)> {
    let go = image.go().ok()?;
    let (kind, interface) = go.kind_and_name_at(itab.interface).ok()?;
    let (_, concrete) = go.kind_and_name_at(itab.concrete).ok()?;
    (kind == Kind::Interface).then_some((interface, concrete))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_can_write_no_line_of_its_own_into_the_log() {
        let long = "x".repeat(16 << 10);
        assert_eq!(pair("shop.Reader", "*shop.Stock"), "*shop.Stock as shop.Reader");
        let text = pair(&long, "*shop.A\n2026-01-01T00:00:00Z  INFO attached\x1b[2J");
        assert!(!text.chars().any(char::is_control), "{text}");
        assert!(text.starts_with(r"*shop.A\n2026") && text.len() < 1_000, "{text}");
    }
}
