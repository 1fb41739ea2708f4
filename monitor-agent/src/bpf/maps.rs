//! Reads what the programs have written.

use std::{
    iter,
    ops::Range,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use aya::maps::{HashMap, Map, MapData, RingBuf};
use aya_obj::generated::{BPF_RINGBUF_BUSY_BIT, BPF_RINGBUF_DISCARD_BIT};
use monitor_ebpf::{
    ALIASES, COUNTERS, COUNTERS_OF_SIDE, Counter, Detail, LabelSet, Peer, Record, extra, name, side,
};

use super::{
    BpfError, InFlight, Sampling,
    load::Sizes,
    mapped::{Access, MappedWords},
    object::Object,
};

/// Words of a label set.
const LABEL_SET_WORDS: usize = size_of::<LabelSet>() / 8;
/// Entries of the map of unexpected types that are read: as many as it holds.
const UNEXPECTED_MAX: usize = 64;

/// The maps of one target's programs. Readable after the programs are gone.
pub struct Maps {
    records: RingBuf<MapData>,
    filling: Filling,
    totals: MappedWords,
    extras: Option<MappedWords>,
    counters: MappedWords,
    label_sets: Arc<LabelSets>,
    next_label: MappedWords,
    in_flight: Arc<InFlight>,
    sampling: Arc<Sampling>,
    aliases: MappedWords,
    unexpected: HashMap<MapData, u64, u64>,
    sizes: Sizes,
}

impl Maps {
    pub(super) fn take(object: &mut Object, sizes: Sizes) -> Result<Self, BpfError> {
        let rows = sizes.rows as usize;
        let labels = sizes.label_capacity as usize;
        let Some(records) = object.take_map(name::RECORDS) else {
            return Err(BpfError::missing("give its maps", name::RECORDS));
        };
        let filling = Filling::of(&records, sizes)?;
        let records =
            RingBuf::try_from(records).map_err(|error| BpfError::from_map("map the ring buffer", error))?;
        let extras = if sizes.has_extras {
            Some(map_array(object, name::EXTRAS, extra::COUNT as usize * labels * rows, Access::Read)?)
        } else {
            None
        };
        let label_sets = Arc::new(LabelSets::take(object, sizes)?);
        Ok(Self {
            records,
            filling,
            totals: map_array(object, name::TOTALS, labels * rows, Access::Read)?,
            extras,
            counters: map_array(object, name::COUNTERS, COUNTERS as usize * rows, Access::Read)?,
            in_flight: Arc::new(InFlight::take(object, sizes, Arc::clone(&label_sets))?),
            label_sets,
            next_label: map_array(object, name::NEXT_LABEL, 2, Access::Read)?,
            sampling: Arc::new(Sampling::take(object)?),
            aliases: map_array(object, name::ALIASES, ALIASES as usize * 2, Access::Write)?,
            unexpected: take_hash(object, name::UNEXPECTED)?,
            sizes,
        })
    }

    /// Passes at most `limit` records of the ring to `take` and returns their number. Events come with their further
    /// data.
    ///
    /// A number below `limit` means that the ring is empty, or that its next record is still being written.
    pub fn drain(&mut self, limit: usize, mut take: impl FnMut(Record, Option<More>)) -> usize {
        let mut count = 0;
        while count < limit {
            let Some(item) = self.records.next() else { break };
            if let Some((record, more)) = decode(&item) {
                take(record, more);
            }
            count += 1;
        }
        self.filling.note_taken();
        count
    }

    /// Returns the records in the ring that could not be drained because they are behind one that is still being
    /// written. Its program may have been preempted, for long. Records that are being written have no content yet,
    /// and are left out.
    pub fn behind(&self) -> impl Iterator<Item = Record> + use<> {
        written(self.records.as_fd(), self.sizes.ring_bytes, self.filling.range())
    }

    /// Returns the bytes that wait in the ring, including headers.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        self.filling.bytes()
    }

    /// Whether a significant part of the ring is full.
    #[must_use]
    pub fn is_filling(&self) -> bool {
        self.filling.bytes() >= self.filling.much
    }

    /// Returns the exact number of finished calls of a label set.
    #[must_use]
    pub fn total(&self, label_set: u32) -> u64 {
        if label_set >= self.sizes.label_capacity {
            return 0;
        }
        let place = |row| row * self.sizes.label_capacity as usize + label_set as usize;
        (0..self.sizes.rows as usize).map(|row| self.totals.get(place(row))).sum()
    }

    /// Returns the optional counts of a label set, by [`extra`]; zeros where they were not requested.
    #[must_use]
    pub fn extras(&self, label_set: u32) -> [u64; extra::COUNT as usize] {
        let mut sums = [0; extra::COUNT as usize];
        let Some(extras) = self.extras.as_ref().filter(|_| label_set < self.sizes.label_capacity) else {
            return sums;
        };
        for row in 0..self.sizes.rows as usize {
            for (kind, sum) in sums.iter_mut().enumerate() {
                let row = row * extra::COUNT as usize + kind;
                *sum += extras.get(row * self.sizes.label_capacity as usize + label_set as usize);
            }
        }
        sums
    }

    /// Returns the calls in flight.
    #[must_use]
    pub fn in_flight(&self) -> &Arc<InFlight> {
        &self.in_flight
    }

    /// Returns the control of which starts the programs see.
    #[must_use]
    pub fn sampling(&self) -> &Arc<Sampling> {
        &self.sampling
    }

    /// Returns type words that match no shape, and how often each was seen.
    #[must_use]
    pub fn unexpected_types(&self) -> Vec<(u64, u64)> {
        self.unexpected.iter().take(UNEXPECTED_MAX).filter_map(Result::ok).collect()
    }

    /// Returns the number of starts and finishes whose type matches no shape.
    #[must_use]
    pub fn unknown_hits(&self) -> u64 {
        // Their side is unknown: the programs count them with the clients' calls.
        let hits = |counter| self.counter_of(counter, side::CLIENT);
        hits(Counter::StartUnknownType) + hits(Counter::FinishUnknownType)
    }

    /// Makes a type word equivalent to another; returns false if there is no room.
    #[must_use]
    pub fn add_alias(&self, alias: u64, meaning: u64) -> bool {
        // The meaning first: the programs use a pair as soon as its alias is set.
        let free = (0..ALIASES as usize).find(|pair| self.aliases.get(pair * 2) == 0);
        free.is_some_and(|pair| {
            self.aliases.replace(pair * 2 + 1, 0, meaning) && self.aliases.replace(pair * 2, 0, alias)
        })
    }

    /// Returns a counter of the programs, summed over all CPUs and both sides.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counter_of(counter, side::CLIENT) + self.counter_of(counter, side::SERVER)
    }

    /// Returns a counter of the programs for the calls of one [`side`], summed over all CPUs.
    #[must_use]
    pub fn counter_of(&self, counter: Counter, side: u8) -> u64 {
        let slot = counter as usize + usize::from(side & 1) * COUNTERS_OF_SIDE as usize;
        (0..self.sizes.rows as usize).map(|row| self.counters.get(row * COUNTERS as usize + slot)).sum()
    }

    /// Returns the numbers of all label sets seen so far.
    pub fn label_sets(&self) -> impl Iterator<Item = u32> + use<> {
        let used =
            |kind, limit: u32| u32::try_from(self.next_label.get(kind)).map_or(limit, |next| next.min(limit));
        let limit = self.sizes.label_limit;
        let full = used(0, limit);
        let other = used(1, self.sizes.label_capacity - limit);
        (0..full).chain(limit..limit + other)
    }

    /// Returns the label set of a number.
    #[must_use]
    pub fn label_set(&self, number: u32) -> LabelSet {
        self.label_sets.get(number)
    }
}

/// The label sets by number.
pub(super) struct LabelSets(MappedWords);

impl LabelSets {
    fn take(object: &mut Object, sizes: Sizes) -> Result<Self, BpfError> {
        let words = sizes.label_capacity as usize * LABEL_SET_WORDS;
        map_array(object, name::LABEL_SETS, words, Access::Read).map(Self)
    }

    /// Returns the label set of a number; an empty one if there is none.
    pub(super) fn get(&self, number: u32) -> LabelSet {
        let bytes = self.0.bytes(number as usize * LABEL_SET_WORDS);
        // SAFETY: a label set consists of bytes and integers, valid for every bit pattern.
        unsafe { std::mem::transmute::<[u8; size_of::<LabelSet>()], LabelSet>(bytes) }
    }
}

/// How full a ring is, known without a system call and without draining it. All fields that a check needs, except the
/// positions in the ring, share one cache line: with many targets none of them is cached when a check comes.
#[repr(align(64))]
struct Filling {
    /// Total bytes drained: the kernel's consumer position.
    consumed: MappedWords,
    /// The same as last seen: only the agent drains, and its own memory is nearer.
    taken: u64,
    /// Total bytes written: the kernel's producer position.
    produced: MappedWords,
    /// Bytes from which on the ring counts as filling.
    much: u64,
}

impl Filling {
    /// A ring can be mapped as two pages with one position each, followed by its data (`kernel/bpf/ringbuf.c`).
    fn of(ring: &Map, sizes: Sizes) -> Result<Self, BpfError> {
        let Map::RingBuf(ring) = ring else {
            return Err(BpfError::missing("give its maps", name::RECORDS));
        };
        let position = |page: libc::off_t| {
            let mapped = MappedWords::at(ring.fd().as_fd(), page * PAGE, 1, Access::Read);
            mapped.map_err(|error| BpfError::from_io("map the positions of a ring into memory", error))
        };
        let much = u64::from(sizes.ring_bytes) / 16;
        Ok(Self { consumed: position(0)?, produced: position(1)?, taken: 0, much })
    }

    /// Updates the position. Call it after draining.
    fn note_taken(&mut self) {
        self.taken = self.consumed.get(0);
    }

    fn bytes(&self) -> u64 {
        let Range { start, end } = self.range();
        end.saturating_sub(start)
    }

    /// Returns the range of positions that are written and not drained.
    fn range(&self) -> Range<u64> {
        self.taken..self.produced.get(0)
    }
}

/// Returns the records between two positions of a ring, except those that are being written or were discarded. A
/// record's header holds its length as soon as the record is reserved. Maps only this range, and only for now: the
/// ring is mapped as a whole already, but that mapping gives access to its next record only.
fn written(ring: BorrowedFd<'_>, ring_bytes: u32, range: Range<u64>) -> impl Iterator<Item = Record> + use<> {
    let page = PAGE.unsigned_abs();
    let at = range.start % u64::from(ring_bytes);
    let skipped = at % page;
    // After the two position pages. The data is mapped twice in a row, so a range that wraps around is contiguous.
    let offset = libc::off_t::try_from(2 * page + at - skipped);
    let words = usize::try_from((skipped + range.end.saturating_sub(range.start)) / 8).unwrap_or_default();
    let is_empty = range.is_empty();
    let mapped = offset.ok().filter(|_| !is_empty);
    let mapped = mapped.and_then(|offset| MappedWords::at(ring, offset, words, Access::Read).ok());
    let mut next = usize::try_from(skipped / 8).unwrap_or_default();
    iter::from_fn(move || {
        let mapped = mapped.as_ref()?;
        while next < words {
            let (head, first) = (mapped.get(next).to_ne_bytes(), next + 1);
            let head = head.first_chunk().map_or(0, |length| u32::from_ne_bytes(*length));
            let length = head & !(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);
            next = first + length.div_ceil(8) as usize;
            if head == length {
                return decode(&mapped.bytes::<{ size_of::<Record>() }>(first)).map(|(record, _)| record);
            }
        }
        None
    })
}

/// Page size in bytes (amd64).
const PAGE: libc::off_t = 4096;

pub(super) fn map_array(
    object: &mut Object,
    name: &'static str,
    words: usize,
    access: Access,
) -> Result<MappedWords, BpfError> {
    let Some(Map::Array(map)) = object.map(name) else {
        return Err(BpfError::missing("give its maps", name));
    };
    let fd: BorrowedFd<'_> = map.fd().as_fd();
    MappedWords::new(fd, words, access).map_err(|error| BpfError::from_io("map an array into memory", error))
}

pub(super) fn take_hash<V: aya::Pod>(
    object: &mut Object,
    name: &'static str,
) -> Result<HashMap<MapData, u64, V>, BpfError> {
    let map = object.take_map(name).ok_or_else(|| BpfError::missing("give its maps", name))?;
    HashMap::try_from(map).map_err(|error| BpfError::from_map("open a hash map", error))
}

/// The data of an event in addition to its record; only some events have a peer.
pub type More = (Detail, Option<Peer>);

/// Decodes a record, and its further data if there are more bytes; `None` if there are too few.
pub(crate) fn decode(bytes: &[u8]) -> Option<(Record, Option<More>)> {
    let (label_set, rest) = bytes.split_first_chunk()?;
    let (flags, rest) = rest.split_first_chunk()?;
    let (start_ns, rest) = rest.split_first_chunk()?;
    let (duration_ns, rest) = rest.split_first_chunk()?;
    let record = Record {
        label_set: u32::from_ne_bytes(*label_set),
        flags: u32::from_ne_bytes(*flags),
        start_ns: u64::from_ne_bytes(*start_ns),
        duration_ns: u64::from_ne_bytes(*duration_ns),
    };
    Some((record, decode_more(rest)))
}

fn decode_more(bytes: &[u8]) -> Option<More> {
    let (goroutine, rest) = bytes.split_first_chunk()?;
    let (sent, rest) = rest.split_first_chunk()?;
    let (received, rest) = rest.split_first_chunk()?;
    let detail = Detail {
        goroutine: u64::from_ne_bytes(*goroutine),
        sizes: [u64::from_ne_bytes(*sent), u64::from_ne_bytes(*received)],
    };
    Some((detail, decode_peer(rest)))
}

fn decode_peer(bytes: &[u8]) -> Option<Peer> {
    let (address, rest) = bytes.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (port, _) = rest.split_first_chunk()?;
    Some(Peer { address: *address, length: u32::from_ne_bytes(*length), port: u32::from_ne_bytes(*port) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::mapped::testing::memory;

    /// Tests records of any length, across the end of a ring of two pages.
    #[test]
    fn what_waits_behind_a_record_that_is_being_written_is_seen() {
        const RING: u32 = 8_192;
        let start = 3 * u64::from(RING) - 72;
        let (mut end, mut data) = (start, [0_u8; RING as usize]);
        for (length, bits, label_set) in [
            (24_u32, BPF_RINGBUF_BUSY_BIT, 1),
            (24, 0, 2),
            (24, BPF_RINGBUF_DISCARD_BIT, 3),
            (48, 0, 4),
            (72, BPF_RINGBUF_BUSY_BIT, 5),
            (24, 0, 6),
        ] {
            let mut bytes = vec![0; 8 + length as usize];
            bytes[..4].copy_from_slice(&(length | bits).to_ne_bytes());
            // Where the kernel keeps the record's place in the ring.
            bytes[4] = 7;
            bytes[8] = label_set;
            for (position, byte) in (end..).zip(bytes) {
                data[usize::try_from(position % u64::from(RING)).unwrap()] = byte;
            }
            end += 8 + u64::from(length);
        }
        let ring = memory(&[&[0; 2 * 4_096][..], &data[..], &data[..]].concat());
        let written = |range| written(ring.as_fd(), RING, range).map(|record| record.label_set);
        assert_eq!(written(start..end).collect::<Vec<_>>(), [2, 4, 6]);
        assert_eq!(written(end..end).count(), 0);
    }

    #[test]
    fn a_record_is_read_field_by_field() {
        let mut bytes = [0_u8; 72];
        for (place, value) in
            [(0, 7), (4, 1), (8, 9), (16, 5), (24, 3), (32, 11), (40, 13), (48, 127), (64, 4), (68, 80)]
        {
            bytes[place] = value;
        }
        let record = Record { label_set: 7, flags: 1, start_ns: 9, duration_ns: 5 };
        assert_eq!(decode(&bytes[..24]), Some((record, None)));
        assert_eq!(decode(&bytes[..23]), None);
        let detail = Detail { goroutine: 3, sizes: [11, 13] };
        assert_eq!(decode(&bytes[..48]), Some((record, Some((detail, None)))));
        let mut address = [0; 16];
        address[0] = 127;
        let peer = Peer { address, length: 4, port: 80 };
        assert_eq!(decode(&bytes), Some((record, Some((detail, Some(peer))))));
    }
}
