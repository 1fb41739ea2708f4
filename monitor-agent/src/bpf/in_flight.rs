//! Calls in flight, as recorded by the programs.

use std::{
    collections::HashSet,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aya::maps::{HashMap, MapData};
use monitor_ebpf::{Bucket, DEPTH_BITS, LabelSet, Spilled, WAYS, key, name, side};

use super::{
    BpfError,
    clock::monotonic,
    load::Sizes,
    mapped::{Access, MappedWords},
    maps::{LabelSets, map_array, take_hash},
    object::Object,
};

/// Words of a bucket of the table.
const BUCKET_WORDS: usize = size_of::<Bucket>() / 8;
/// Step limit for iterating over a small spill map.
const SPILL_STEPS_MIN: usize = 1_024;

/// The calls in flight of one copy of a framework. Shared: a scrape reads them while the pipeline drains.
pub struct InFlight {
    table: MappedWords,
    objects: MappedWords,
    spill: Mutex<HashMap<MapData, u64, Spilled>>,
    label_sets: Arc<LabelSets>,
    buckets: usize,
    /// Step limit for iterating over the spill map.
    spill_steps: usize,
    ageing: Mutex<Ageing>,
}

/// State of the search for calls that are too old.
#[derive(Default)]
struct Ageing {
    /// Places of the table whose calls were too old at the last check, with their keys and starts.
    seen: HashSet<(usize, u64, u64)>,
    /// Total number of calls forgotten.
    forgotten: u64,
}

/// One call in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Underway {
    /// One of [`side`].
    pub side: u8,
    /// When it started, in nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// Address of its object; 0 if unknown.
    pub object: u64,
    /// Its kind, one of [`stream`](monitor_ebpf::stream), where the programs record it; else 0.
    pub kind: u8,
    /// Number of its label set at the start, where starts have names; else meaningless.
    pub label_set: u32,
    key: u64,
    /// Its place in the table; `None` in the spill map.
    place: Option<usize>,
}

#[cfg(test)]
impl Underway {
    /// Returns a call of an object.
    pub(crate) fn of(side: u8, object: u64) -> Self {
        Self { side, start_ns: 1, object, kind: 0, label_set: 0, key: object, place: None }
    }
}

impl InFlight {
    pub(super) fn take(
        object: &mut Object,
        sizes: Sizes,
        label_sets: Arc<LabelSets>,
    ) -> Result<Self, BpfError> {
        let buckets = sizes.buckets as usize;
        Ok(Self {
            table: map_array(object, name::IN_FLIGHT, buckets * BUCKET_WORDS, Access::Write)?,
            objects: map_array(object, name::OBJECTS, buckets * WAYS, Access::Read)?,
            spill: Mutex::new(take_hash(object, name::SPILL)?),
            label_sets,
            buckets,
            spill_steps: SPILL_STEPS_MIN.max(buckets * WAYS),
            ageing: Mutex::default(),
        })
    }

    /// Returns all calls in flight and the total number of calls [forgotten](Self::forget_older). A call is never in
    /// both or in neither. A call that starts or finishes meanwhile may or may not be included.
    #[must_use]
    pub fn calls(&self) -> (Vec<Underway>, u64) {
        let ageing = self.lock_ageing();
        let places = (0..self.buckets).flat_map(|bucket| (0..WAYS).map(move |way| (bucket, way)));
        let mut calls: Vec<_> = places.filter_map(|(bucket, way)| self.call_at(bucket, way)).collect();
        let spill = self.spill.lock().unwrap_or_else(PoisonError::into_inner);
        calls.extend(self.spilled(&spill).into_iter().map(|(key, call)| Underway {
            side: side_of(key),
            start_ns: call.start_ns,
            // The other keys may belong to nested calls.
            object: if side_of(key) == side::SERVER { key } else { 0 },
            kind: kind_of(key, call),
            label_set: number(call.nested >> DEPTH_BITS),
            key,
            place: None,
        }));
        (calls, ageing.forgotten)
    }

    /// Whether this call is still in flight.
    #[must_use]
    pub fn is_underway(&self, call: &Underway) -> bool {
        if let Some(place) = call.place {
            return self.call_at(place / WAYS, place % WAYS).as_ref() == Some(call);
        }
        let spill = self.spill.lock().unwrap_or_else(PoisonError::into_inner);
        spill.get(&call.key, 0).is_ok_and(|found| found.start_ns == call.start_ns)
    }

    /// Returns the label set that a call had at its start, if starts have names and this one has.
    #[must_use]
    pub fn names(&self, call: &Underway) -> Option<LabelSet> {
        (call.label_set != u32::MAX).then(|| self.label_sets.get(call.label_set))
    }

    fn call_at(&self, bucket: usize, way: usize) -> Option<Underway> {
        let (key, word) = self.entry(bucket, way);
        let start_ns = word >> DEPTH_BITS;
        if key == 0 || start_ns == 0 {
            return None;
        }
        let place = bucket * WAYS + way;
        // Goroutine keys have the number of nested calls in the bits that hold the kind for other keys.
        let beside = self.objects.get(place);
        let (object, kind) = match key & key::BITS {
            key::GOROUTINE => (beside, 0),
            _ => (key & !key::BITS, low_bits(word)),
        };
        let (side, label_set) = (side_of(key), number(beside));
        Some(Underway { side, start_ns, object, kind, label_set, key, place: Some(place) })
    }

    /// Returns key and start word of a way of a bucket. The start is above the lowest [`DEPTH_BITS`] bits.
    fn entry(&self, bucket: usize, way: usize) -> (u64, u64) {
        let word = bucket * BUCKET_WORDS + way;
        (self.table.get(word), self.table.get(word + WAYS))
    }

    /// Forgets calls that are older than `age` and were so, under the same key, at the last check too. One check is
    /// not enough: a program that claims a place writes the key before the start, so the start may be an earlier
    /// call's.
    ///
    /// If a call finishes at this very moment, its place may pass to another call, which is then forgotten instead:
    /// it is counted as unpaired and has no duration.
    pub fn forget_older(&self, age: Duration) {
        let Some(oldest_ns) = monotonic().checked_sub(age) else { return };
        let oldest_ns = u64::try_from(oldest_ns.as_nanos()).unwrap_or(u64::MAX);
        let mut ageing = self.lock_ageing();
        let seen = std::mem::take(&mut ageing.seen);
        for bucket in 0..self.buckets {
            for way in 0..WAYS {
                let (key, word) = self.entry(bucket, way);
                let start_ns = word >> DEPTH_BITS;
                if key == 0 || start_ns == 0 || start_ns >= oldest_ns {
                    continue;
                }
                let place = bucket * BUCKET_WORDS + way;
                if seen.contains(&(place, key, start_ns)) {
                    ageing.forgotten += u64::from(self.table.replace(place, key, 0));
                } else {
                    ageing.seen.insert((place, key, start_ns));
                }
            }
        }
        ageing.forgotten += self.forget_spilled(oldest_ns);
    }

    /// Locks the state. Where both locks are held, this one is taken before the spill map's.
    fn lock_ageing(&self) -> MutexGuard<'_, Ageing> {
        self.ageing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets old calls of the spill map and returns their number.
    fn forget_spilled(&self, oldest_ns: u64) -> u64 {
        let mut spill = self.spill.lock().unwrap_or_else(PoisonError::into_inner);
        let old: Vec<u64> = self
            .spilled(&spill)
            .into_iter()
            .filter(|(_, call)| call.start_ns < oldest_ns)
            .map(|(key, _)| key)
            .collect();
        old.into_iter().filter(|key| spill.remove(key).is_ok()).count() as u64
    }

    /// Returns the calls that found no place in their buckets.
    fn spilled(&self, spill: &HashMap<MapData, u64, Spilled>) -> Vec<(u64, Spilled)> {
        each_once(spill.iter().take(self.spill_steps).filter_map(Result::ok))
    }
}

/// Yields each key of an iteration over a kernel hash map once. The iteration restarts if its current entry is
/// removed meanwhile, so its steps must also be limited, or a busy map would keep it going.
fn each_once<K: Copy + Eq + Hash, V>(walk: impl Iterator<Item = (K, V)>) -> Vec<(K, V)> {
    let mut met = HashSet::new();
    walk.filter(|(key, _)| met.insert(*key)).collect()
}

/// Returns the bits below the start in a word of the table.
fn low_bits(word: u64) -> u8 {
    u8::try_from(word & ((1 << DEPTH_BITS) - 1)).unwrap_or_default()
}

/// Returns the number of a label set from the programs' word.
fn number(word: u64) -> u32 {
    u32::try_from(word).unwrap_or(u32::MAX)
}

/// Returns the kind of a call in the spill map. Goroutine keys have the number of nested calls in its place. Nested
/// calls have nothing there, and a key that may look like an object's.
fn kind_of(key: u64, call: Spilled) -> u8 {
    match key & key::BITS {
        key::SERVER | key::CLIENT => low_bits(call.nested),
        _ => 0,
    }
}

/// Only calls that the target handles have just their object as key.
fn side_of(key: u64) -> u8 {
    if key & key::BITS == key::SERVER { side::SERVER } else { side::CLIENT }
}

#[cfg(test)]
mod tests {
    use monitor_ebpf::{Spilled, key};

    use super::{each_once, kind_of};

    #[test]
    fn only_calls_of_an_object_have_their_kind_in_the_spill_map() {
        let call = |nested| Spilled { start_ns: 1, nested };
        for (bits, nested, kind) in [
            (key::SERVER, 4, 4),
            (key::CLIENT, 6, 6),
            (key::CLIENT, 77 << 6 | 2, 2),
            // The outermost of three, and one that is nested once.
            (key::GOROUTINE, 2, 0),
            (key::GOROUTINE + 1, 0, 0),
        ] {
            assert_eq!(kind_of(0xc000_0000 | bits, call(nested)), kind, "{bits} {nested}");
        }
    }

    #[test]
    fn a_walk_that_begins_again_meets_each_key_once() {
        // Entry 3 was removed while the iteration was there.
        let walk = [(1, 'a'), (2, 'b'), (3, 'c'), (1, 'a'), (2, 'z'), (4, 'd')];
        assert_eq!(each_once(walk.into_iter()), [(1, 'a'), (2, 'b'), (3, 'c'), (4, 'd')]);
    }
}
