//! Reading what the programs wrote.

use std::os::fd::{AsFd, BorrowedFd};

use aya::{
    Ebpf,
    maps::{Map, MapData, RingBuf},
    util::nr_cpus,
};
use monitor_ebpf::{COUNTERS, Counter, LabelSet, Record, name};

use super::{BpfError, mapped::MappedWords};

/// Words of a label set.
const LABEL_SET_WORDS: usize = size_of::<LabelSet>() / 8;

/// The maps of one target's programs. Readable after the programs are gone.
pub struct Maps {
    records: RingBuf<MapData>,
    totals: MappedWords,
    counters: MappedWords,
    label_sets: MappedWords,
    next_label: MappedWords,
    cpus: usize,
    label_capacity: usize,
    label_limit: usize,
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf, label_capacity: u32) -> Result<Self, BpfError> {
        let cpus = nr_cpus().map_err(|(_, error)| BpfError::from_io("count its CPUs", error))?;
        let label_capacity = label_capacity as usize;
        let Some(records) = ebpf.take_map(name::RECORDS) else {
            return Err(BpfError::missing("give its maps", name::RECORDS));
        };
        let records =
            RingBuf::try_from(records).map_err(|error| BpfError::from_map("map the ring buffer", error))?;
        Ok(Self {
            records,
            totals: map_array(ebpf, name::TOTALS, label_capacity * cpus)?,
            counters: map_array(ebpf, name::COUNTERS, COUNTERS as usize * cpus)?,
            label_sets: map_array(ebpf, name::LABEL_SETS, label_capacity * LABEL_SET_WORDS)?,
            next_label: map_array(ebpf, name::NEXT_LABEL, 2)?,
            cpus,
            label_capacity,
            label_limit: label_capacity.saturating_sub(super::load::OTHER_LABEL_SETS as usize),
        })
    }

    /// Hands the finished calls that wait in the ring to `take`, at most `limit`; gives how many there were.
    ///
    /// Fewer than `limit` means that the ring is empty, or that its next record is still being written.
    pub fn drain(&mut self, limit: usize, mut take: impl FnMut(Record)) -> usize {
        let mut count = 0;
        while count < limit {
            let Some(item) = self.records.next() else { break };
            if let Some(record) = decode(&item) {
                take(record);
            }
            count += 1;
        }
        count
    }

    /// Finished calls of a label set, exactly.
    #[must_use]
    pub fn total(&self, label_set: u32) -> u64 {
        let label_set = label_set as usize;
        if label_set >= self.label_capacity {
            return 0;
        }
        (0..self.cpus).map(|cpu| self.totals.get(cpu * self.label_capacity + label_set)).sum()
    }

    /// A counter of the programs, summed over all CPUs.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        (0..self.cpus).map(|cpu| self.counters.get(cpu * COUNTERS as usize + counter as usize)).sum()
    }

    /// The numbers of all label sets seen so far.
    pub fn label_sets(&self) -> impl Iterator<Item = u32> + use<> {
        let used = |kind, limit: usize| {
            usize::try_from(self.next_label.get(kind)).map_or(limit, |next| next.min(limit))
        };
        let full = used(0, self.label_limit);
        let other = used(1, self.label_capacity - self.label_limit);
        let numbers = (0..full).chain(self.label_limit..self.label_limit + other);
        numbers.filter_map(|number| u32::try_from(number).ok())
    }

    /// What a label set's number stands for.
    #[must_use]
    pub fn label_set(&self, number: u32) -> LabelSet {
        let first = number as usize * LABEL_SET_WORDS;
        let mut bytes = [0; size_of::<LabelSet>()];
        for (index, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            chunk.copy_from_slice(&self.label_sets.get(first + index).to_ne_bytes());
        }
        // SAFETY: a label set is made of bytes and one `u16`, valid for every bit pattern.
        unsafe { std::mem::transmute::<[u8; size_of::<LabelSet>()], LabelSet>(bytes) }
    }
}

fn map_array(ebpf: &mut Ebpf, name: &'static str, words: usize) -> Result<MappedWords, BpfError> {
    let Some(Map::Array(map)) = ebpf.map(name) else {
        return Err(BpfError::missing("give its maps", name));
    };
    let fd: BorrowedFd<'_> = map.fd().as_fd();
    MappedWords::new(fd, words).map_err(|error| BpfError::from_io("map an array into memory", error))
}

/// A record from its bytes; `None` when there are too few.
fn decode(bytes: &[u8]) -> Option<Record> {
    let (label_set, rest) = bytes.split_first_chunk()?;
    let (flags, rest) = rest.split_first_chunk()?;
    let (start_ns, rest) = rest.split_first_chunk()?;
    let (duration_ns, _) = rest.split_first_chunk()?;
    Some(Record {
        label_set: u32::from_ne_bytes(*label_set),
        flags: u32::from_ne_bytes(*flags),
        start_ns: u64::from_ne_bytes(*start_ns),
        duration_ns: u64::from_ne_bytes(*duration_ns),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_field_by_field() {
        let mut bytes = [0_u8; 24];
        bytes[0] = 7;
        bytes[4] = 1;
        bytes[8] = 9;
        bytes[16] = 5;
        let record = Record { label_set: 7, flags: 1, start_ns: 9, duration_ns: 5 };
        assert_eq!(decode(&bytes), Some(record));
        assert_eq!(decode(&bytes[..23]), None);
    }
}
