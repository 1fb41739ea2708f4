//! The calls in flight of a target, for the server to show: how many, since when, and to where.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use monitor_ebpf::{
    LABELS, NO_GUARD, NO_SCRATCH, OBJECT, Recipe, SCRATCH_BYTES, Shape, TEXT_BYTES, by_site, label,
};
use tracing::warn;

use super::{
    aside::{Aside, Awaited},
    names::Names,
};
use crate::{
    bpf::{InFlight, Sampling, Underway, monotonic},
    goruntime::Memory,
    metrics::UnderwayCalls,
    pipeline::{Labels, Side, StreamKind, shown},
    target::{AddressSpace, Target},
};

/// Maximum number of calls whose names are read for one scrape, the oldest first. The names of the others are unknown.
/// Each takes about ten microseconds.
const NAMED: usize = 4_096;
/// Upper limit, in bytes, of a plausible name of a service or method.
const LENGTH_MAX: u64 = 1 << 20;

/// The names of a call, by [`label`].
type CallNames = [String; LABELS];

/// The calls in flight of one copy of a framework.
pub(super) struct CopyInFlight {
    /// The recipe of its programs.
    pub(super) recipe: Recipe,
    /// The calls.
    pub(super) calls: Arc<InFlight>,
    /// Whether these are all calls.
    pub(super) sampling: Arc<Sampling>,
    /// Decodes their label sets.
    pub(super) names: Names,
}

/// See the [module](self).
pub(super) struct CallsInFlight {
    /// The copies of all frameworks; empty after the target's end.
    copies: Arc<[CopyInFlight]>,
    /// The memory in which names are read; `None` if that is not permitted, and after the target's end.
    memory: Option<AddressSpace>,
    names: Aside,
    /// How many calls never finished and how many were given up, once the target has ended.
    at_the_end: UnderwayCalls,
}

impl fmt::Debug for CallsInFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallsInFlight").field("at_the_end", &self.at_the_end).finish_non_exhaustive()
    }
}

/// A call whose names are yet to be read, and the index of its copy.
type Unread = (usize, Underway);

/// A call with its names, if they could be read.
type Named = (Underway, Option<CallNames>);

/// The calls in flight at one moment, while some of their names are being read.
pub(super) struct Unnamed {
    /// Calls whose names are known, or that have none.
    calls: UnderwayCalls,
    /// Calls whose names are being read.
    unread: Vec<Unread>,
    /// The names of `unread`; `None` if none can be read.
    names: Option<Awaited<Vec<Named>>>,
    /// Returns whether a call is still in flight.
    is_underway: Box<dyn Fn(&Unread) -> bool>,
    /// The moment, by the clock that starts are measured with.
    now_ns: u64,
    /// How many calls there were, including those that have finished or were given up since.
    all: u64,
    /// The target's probes were being removed.
    pub(super) was_leaving: bool,
}

impl CallsInFlight {
    pub(super) fn open(target: &Target, name: &str, copies: Vec<CopyInFlight>) -> Self {
        // Calls of specs have no names before the finish, and calls of gRPC-Go report theirs at the start. If no copy
        // has names to read, there is nothing to warn about.
        let reads_names = copies.iter().any(|copy| copy.recipe.by_site == 0);
        let memory = reads_names.then(|| target.memory()).transpose();
        let memory = memory.inspect_err(|error| {
            warn!("{name}: calls in flight are shown without their names: {error}");
        });
        let names = Aside::new(name, "calls in flight are shown without their names");
        let at_the_end = UnderwayCalls::default();
        Self { copies: copies.into(), memory: memory.ok().flatten(), names, at_the_end }
    }

    /// Marks the target as ended: calls still in flight never finish. Keeps their number and drops everything else.
    pub(super) fn close(&mut self) {
        self.memory = None;
        for copy in &*self.copies {
            let (found, aged) = copy.calls.calls();
            self.at_the_end.never_finished += found.len() as u64;
            self.at_the_end.aged += aged;
        }
        self.copies = Arc::default();
    }

    /// Takes all calls in flight now, and begins to read their names. Once the target `is_leaving`, finishes are no
    /// longer seen, and calls get no names.
    pub(super) fn begin(&self, is_leaving: &AtomicBool) -> Unnamed {
        let mut calls = self.at_the_end.clone();
        let now_ns = u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX);
        let (mut unread, mut all) = (Vec::new(), 0);
        for (index, copy) in self.copies.iter().enumerate() {
            let (found, aged) = copy.calls.calls();
            calls.aged += aged;
            all += found.len() as u64;
            // The real number is unknown then. Checked after the calls are read: if false now, all their finishes were
            // seen before.
            if copy.sampling.in_windows() || is_leaving.load(Ordering::SeqCst) {
                calls.is_sample = true;
                continue;
            }
            match copy.recipe.by_site {
                // A spec's labels are read at the finish.
                by_site::NAMES => {}
                by_site::PATH => copy.add_told(found, now_ns, &mut calls),
                _ => unread.extend(found.into_iter().map(|call| (index, call))),
            }
        }
        let was_leaving = is_leaving.load(Ordering::SeqCst);
        let unread = oldest_first(unread);
        let (names, copies) = (self.begin_names(&unread), Arc::clone(&self.copies));
        let is_underway =
            move |(index, call): &Unread| copies.get(*index).is_some_and(|copy| copy.calls.is_underway(call));
        Unnamed { calls, unread, names, is_underway: Box::new(is_underway), now_ns, all, was_leaving }
    }

    /// Begins to read the names of calls in their objects, if there are calls and the memory may be read.
    fn begin_names(&self, calls: &[Unread]) -> Option<Awaited<Vec<Named>>> {
        let memory = self.memory.clone().filter(|_| !calls.is_empty())?;
        let (copies, calls) = (Arc::clone(&self.copies), calls.to_vec());
        Some(self.names.begin(move || read_names(&copies, calls, &memory)))
    }
}

#[cfg(test)]
impl CallsInFlight {
    /// Always finds these calls.
    pub(super) fn always(calls: UnderwayCalls) -> Self {
        Self { copies: Arc::default(), memory: None, names: Aside::new("", ""), at_the_end: calls }
    }
}

impl Unnamed {
    /// Returns the calls, with the names that come by `until`.
    pub(super) fn named(self, until: Instant) -> UnderwayCalls {
        let Self { mut calls, unread, names, is_underway, now_ns, all, .. } = self;
        let named = names.and_then(|names| names.take(until));
        let nameless = || unread.into_iter().filter(is_underway).map(|(_, call)| (call, None)).collect();
        for (call, names) in named.unwrap_or_else(nameless) {
            let age_ns = now_ns.saturating_sub(call.start_ns);
            calls.add(side_of(&call), names.unwrap_or_else(unknown), age_ns);
        }
        calls.others += all.saturating_sub(calls.count());
        calls
    }
}

/// Returns the calls with their names, without those that have finished meanwhile.
fn read_names(copies: &[CopyInFlight], calls: Vec<Unread>, memory: &AddressSpace) -> Vec<Named> {
    let name = |(nth, (index, call)): (usize, Unread)| {
        let copy = copies.get(index)?;
        let names = if nth < NAMED { names(&copy.recipe, &call, memory) } else { None };
        // The names belong to the call only if it is still in the slot. The same is true of its start, which was still
        // that of the previous call if this one had just taken the slot.
        copy.calls.is_underway(&call).then_some((call, names))
    };
    let mut named: Vec<Named> = calls.into_iter().enumerate().filter_map(name).collect();
    if !memory.is_there() {
        for (_, names) in &mut named {
            *names = None;
        }
    }
    named
}

impl CopyInFlight {
    /// Adds calls whose names were reported at their start.
    fn add_told(&self, found: Vec<Underway>, now_ns: u64, calls: &mut UnderwayCalls) {
        let mut known: BTreeMap<u32, [String; 2]> = BTreeMap::new();
        // If a call had just taken the slot, its start was still that of the previous call.
        for call in found.into_iter().filter(|call| self.calls.is_underway(call)) {
            let names = known.entry(call.label_set).or_insert_with(|| self.names_of(&call));
            let age_ns = now_ns.saturating_sub(call.start_ns);
            calls.add_grpc(side_of(&call), StreamKind::of(call.kind), names.clone(), age_ns);
        }
    }

    /// Returns service and method of a call; unknown if its start had no label set.
    fn names_of(&self, call: &Underway) -> [String; 2] {
        let Some(set) = self.calls.names(call) else { return [shown(&[], false), shown(&[], false)] };
        let Labels { callee, method, .. } = Labels::decode(&set, &self.names);
        [callee, method]
    }
}

/// Sorts calls by start. Users look at the calls in flight to find one that hangs, which is older than most and may be
/// anywhere in the table.
fn oldest_first<C>(mut calls: Vec<(C, Underway)>) -> Vec<(C, Underway)> {
    calls.sort_unstable_by_key(|(_, call)| call.start_ns);
    calls
}

fn side_of(call: &Underway) -> Side {
    if call.side == monitor_ebpf::side::SERVER { Side::Server } else { Side::Client }
}

fn unknown() -> CallNames {
    [label::CALLER, label::CALLEE, label::METHOD].map(|_| shown(&[], false))
}

/// Returns the names of a call as its object has them now. A name that can't be read, or is not set yet, is unknown.
fn names(recipe: &Recipe, call: &Underway, memory: &dyn Memory) -> Option<CallNames> {
    let (shape, scratch) = shape(recipe, call, memory)?;
    Some(shape.labels.map(|at| name(at, TEXT_BYTES, &scratch, memory).unwrap_or_else(|| shown(&[], false))))
}

/// Returns the shape of a call's object, with a copy of its windows. The start program has seen the object's type but
/// has kept only the side. Of two shapes with the same side, the one with a second type word inside the object is
/// recognized by this word.
fn shape<'a>(recipe: &'a Recipe, call: &Underway, memory: &dyn Memory) -> Option<(&'a Shape, Scratch)> {
    let of_side = || {
        let shapes = recipe.shapes.iter().take(recipe.shape_count.into());
        shapes.filter(|shape| shape.side == call.side)
    };
    for shape in of_side().filter(|shape| shape.inner_word != 0) {
        let scratch = Scratch::copy(shape, call.object, memory);
        if scratch.word(shape.inner_at) == Some(shape.inner_word) {
            return Some((shape, scratch));
        }
    }
    let mut others = of_side().filter(|shape| shape.inner_word == 0);
    let shape = others.next()?;
    others.next().is_none().then(|| (shape, Scratch::copy(shape, call.object, memory)))
}

/// What the programs would copy of an object. See `monitor_ebpf::Window`.
struct Scratch([u8; SCRATCH_BYTES]);

impl Scratch {
    fn copy(shape: &Shape, object: u64, memory: &dyn Memory) -> Self {
        // All ones are implausible in every field.
        let mut scratch = Self([u8::MAX; SCRATCH_BYTES]);
        for window in shape.windows.iter().take_while(|window| window.length != 0) {
            if window.guard_at != NO_GUARD && scratch.word(window.guard_at) != Some(window.guard_word) {
                continue;
            }
            let base = if window.base == OBJECT { Some(object) } else { scratch.word(window.base) };
            let Some(base) = base else { continue };
            let start = usize::from(window.at);
            let Some(place) = scratch.0.get_mut(start..start + usize::from(window.length)) else { continue };
            if memory.read(base.wrapping_add(window.offset.into()), place).is_err() {
                place.fill(u8::MAX);
            }
        }
        scratch
    }

    fn word(&self, at: u8) -> Option<u64> {
        let at = usize::from(at);
        let bytes = self.0.get(at..at + 8)?;
        bytes.try_into().ok().map(u64::from_ne_bytes)
    }
}

/// Returns the string whose header is at this place, cut to `room` bytes.
fn name(at: u8, room: usize, scratch: &Scratch, memory: &dyn Memory) -> Option<String> {
    if at == NO_SCRATCH {
        return None;
    }
    let (pointer, length) = (scratch.word(at)?, scratch.word(at + 8)?);
    if length > LENGTH_MAX {
        return None;
    }
    let kept = usize::try_from(length).ok()?.min(room);
    let mut bytes = vec![0; kept];
    memory.read(pointer, &mut bytes).ok()?;
    Some(shown(&bytes, length > room as u64))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io, time::Duration};

    use monitor_ebpf::{Window, side};

    use super::*;

    /// Bytes at addresses.
    #[derive(Default)]
    struct Fake(BTreeMap<u64, u8>);

    impl Fake {
        fn put(&mut self, address: u64, bytes: &[u8]) {
            self.0.extend(bytes.iter().enumerate().map(|(at, byte)| (address + at as u64, *byte)));
        }
    }

    impl Memory for Fake {
        fn read(&self, address: u64, buf: &mut [u8]) -> io::Result<()> {
            for (at, byte) in buf.iter_mut().enumerate() {
                let found = self.0.get(&(address.wrapping_add(at as u64)));
                *byte = *found.ok_or(io::ErrorKind::InvalidInput)?;
            }
            Ok(())
        }
    }

    /// Returns an object with a type word, a pointer to a second object, and the method's name there.
    fn memory(type_word: u64, text: &[u8]) -> Fake {
        let mut memory = Fake::default();
        memory.put(0x1000, &type_word.to_ne_bytes());
        memory.put(0x1008, &0x2000_u64.to_ne_bytes());
        memory.put(0x2000, &0x3000_u64.to_ne_bytes());
        memory.put(0x2008, &(text.len() as u64).to_ne_bytes());
        memory.put(0x3000, text);
        memory
    }

    fn recipe() -> Recipe {
        let mut shape = Shape { side: side::CLIENT, inner_word: 0x77, ..Shape::UNUSED };
        shape.labels[label::METHOD] = 16;
        shape.windows[0] = Window { length: 16, ..Window::UNUSED };
        shape.windows[1] =
            Window { base: 8, length: 16, at: 16, guard_at: 0, guard_word: 0x77, ..Window::UNUSED };
        let mut recipe = Recipe { shape_count: 1, ..Recipe::EMPTY };
        recipe.shapes[0] = shape;
        recipe
    }

    fn method(memory: &Fake, side: u8) -> Option<String> {
        names(&recipe(), &Underway::of(side, 0x1000), memory).map(|names| names[label::METHOD].clone())
    }

    /// Only the first calls in this order get names.
    #[test]
    fn the_oldest_calls_come_first_whichever_copy_has_them() {
        let call = |start_ns| {
            let mut call = Underway::of(side::SERVER, start_ns);
            call.start_ns = start_ns;
            call
        };
        let found =
            vec![("first", call(30)), ("first", call(20)), ("second", call(10)), ("second", call(40))];
        let ordered: Vec<_> =
            oldest_first(found).into_iter().map(|(copy, call)| (copy, call.start_ns)).collect();
        assert_eq!(ordered, [("second", 10), ("first", 20), ("first", 30), ("second", 40)]);
    }

    /// All numbers are of one moment: calls that end afterwards are missing only from the next scrape.
    #[test]
    fn calls_count_that_are_gone_when_their_names_have_been_read() {
        let calls = [1, 2].map(|object| Underway::of(side::CLIENT, object));
        let (aside, named) = (Aside::new("", ""), vec![(calls[0], None)]);
        let begun = Unnamed {
            calls: UnderwayCalls::default(),
            unread: calls.map(|call| (0, call)).to_vec(),
            names: Some(aside.begin(move || named)),
            is_underway: Box::new(|_| false),
            now_ns: 1,
            // One of them has no names.
            all: 3,
            was_leaving: false,
        };
        let calls = begun.named(Instant::now() + Duration::from_secs(10));
        assert_eq!((calls.count(), calls.others), (3, 2));
    }

    /// A scan may see a new key next to the start of the previous call.
    #[test]
    fn a_start_of_the_call_before_has_no_age_where_no_names_are_read() {
        const SECOND: u64 = 1_000_000_000;
        let call = |object, start_ns| {
            let mut call = Underway::of(side::CLIENT, object);
            call.start_ns = start_ns;
            call
        };
        let by_now = [call(0x1000, 9 * SECOND), call(0x2000, 8 * SECOND)];
        let begun = Unnamed {
            calls: UnderwayCalls::default(),
            unread: vec![(0, call(0x1000, SECOND)), (0, call(0x2000, 8 * SECOND))],
            names: None,
            is_underway: Box::new(move |(_, call)| by_now.contains(call)),
            now_ns: 10 * SECOND,
            all: 2,
            was_leaving: false,
        };
        let mut expected = UnderwayCalls::default();
        expected.others = 1;
        expected.add(Side::Client, unknown(), 2 * SECOND);
        assert_eq!(format!("{:?}", begun.named(Instant::now())), format!("{expected:?}"));
    }

    #[test]
    fn names_are_read_where_the_recipe_has_them() {
        assert_eq!(method(&memory(0x77, b"Echo"), side::CLIENT).as_deref(), Some("Echo"));
        assert_eq!(method(&memory(0x77, b""), side::CLIENT).as_deref(), Some("unknown"));
        let long = format!("{}…", "a".repeat(64));
        assert_eq!(method(&memory(0x77, &[b'a'; 70]), side::CLIENT), Some(long));
    }

    #[test]
    fn an_object_of_another_type_has_no_names() {
        assert_eq!(method(&memory(0x78, b"Echo"), side::CLIENT), None);
        assert_eq!(method(&memory(0x77, b"Echo"), side::SERVER), None);
    }

    #[test]
    fn what_can_not_be_read_is_unknown() {
        let mut memory = memory(0x77, b"Echo");
        memory.0.remove(&0x3000);
        assert_eq!(method(&memory, side::CLIENT).as_deref(), Some("unknown"));
        memory.put(0x2008, &u64::MAX.to_ne_bytes());
        assert_eq!(method(&memory, side::CLIENT).as_deref(), Some("unknown"));
    }
}
