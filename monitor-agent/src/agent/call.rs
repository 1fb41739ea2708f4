//! Turns the records of a ring into calls.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use monitor_ebpf::{Detail, Peer, Record, record_flag};

use super::clock::Clock;
use crate::{
    bpf::More,
    pipeline::{Aggregate, Details, FinishedCall, Labels, StartedCall, Tracer},
};

/// The minimum size of a record in a ring, in bytes: its header and itself.
const RECORD_BYTES: usize = 8 + size_of::<Record>();
/// Records taken out of a ring at once: few enough to stay in the L1 cache until they are counted.
pub(super) const BATCH: usize = 128;
/// Records taken out of a ring before the other rings get a turn: a ring that fills as fast as it is drained must not
/// starve them.
const TURN: usize = 1 << 20;

/// How much to take out of a ring.
#[derive(Clone, Copy)]
pub(super) enum Turn {
    /// As much as the others can wait for.
    Short,
    /// Everything that waits, plus what comes meanwhile, up to a short turn. Anything left would be missing from the
    /// published numbers, and once the probes are removed this may be the last turn.
    Whole,
}

/// Records on their way. All targets share one buffer, so that it stays in the cache.
pub(super) type Batch = Vec<(Record, Option<More>)>;

/// A record, with all that is needed to make a call of it.
pub(super) struct Call<'a> {
    pub(super) target: u32,
    pub(super) record: &'a Record,
    pub(super) more: Option<More>,
    pub(super) labels: &'a Arc<Labels>,
    pub(super) clock: Clock,
}

impl Call<'_> {
    pub(super) fn hand_over(&self, aggregate: &mut Aggregate, tracer: &mut dyn Tracer) {
        let Record { label_set, flags, start_ns, duration_ns } = *self.record;
        let time_ns = self.clock.unix_ns(start_ns.saturating_add(duration_ns));
        if flags & record_flag::STARTED != 0 {
            let goroutine = self.more.map_or(0, |(detail, _)| detail.goroutine);
            return tracer.start(&StartedCall {
                target: self.target,
                labels: self.labels,
                time_ns,
                goroutine,
            });
        }
        let has_own_start = flags & record_flag::RECORDED != 0;
        let (time_ns, duration) = if has_own_start {
            (self.clock.unix_ns(duration_ns), self.clock.between(start_ns, duration_ns))
        } else {
            let is_paired = flags & record_flag::UNPAIRED == 0;
            (time_ns, is_paired.then(|| Duration::from_nanos(duration_ns)))
        };
        let details = self.more.map(details);
        let call = FinishedCall {
            target: self.target,
            label_set,
            labels: self.labels,
            time_ns,
            duration,
            has_own_start,
            details,
        };
        aggregate.finish(&call);
        if has_own_start && duration.is_none() && self.clock.is_past(start_ns) {
            aggregate.came_from_before();
        }
        tracer.finish(&call);
    }
}

fn details((detail, peer): More) -> Details {
    let [sent_bytes, received_bytes] = detail.sizes.map(|size| (size != Detail::UNREAD).then_some(size));
    Details { goroutine: detail.goroutine, sent_bytes, received_bytes, peer: peer.and_then(peer_address) }
}

/// Returns an address as it was read; `None` if it was not read.
fn peer_address(peer: Peer) -> Option<SocketAddr> {
    let ip = match peer.length {
        4 => IpAddr::from(*peer.address.first_chunk::<4>()?),
        16 => IpAddr::from(peer.address).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::try_from(peer.port).ok()?))
}

/// Takes records out of a ring batch by batch, until a batch is not full or `limit` records were taken, and hands them
/// over. `sync` compares the clocks after each batch is taken: a call in the batch may have begun after the previous
/// comparison, and the time of day may have been set in between.
///
/// Taking records out borrows the ring's maps, and decoding labels needs them, so each step gets them as an argument.
pub(super) fn by_batches<M>(
    maps: &mut M,
    batch: &mut Batch,
    limit: usize,
    take: impl Fn(&mut M, &mut Batch) -> usize,
    mut sync: impl FnMut() -> Clock,
    mut hand_over: impl FnMut(&M, &(Record, Option<More>), Clock),
) {
    let mut records = 0;
    loop {
        let taken = take(maps, batch);
        let clock = sync();
        for record in batch.iter() {
            hand_over(maps, record, clock);
        }
        records += taken;
        batch.clear();
        if taken < BATCH || records >= limit {
            return;
        }
    }
}

/// Returns how many records to take in one turn out of a ring in which `waiting_bytes` bytes wait.
pub(super) fn records_of_a_turn(turn: Turn, waiting_bytes: u64) -> usize {
    let waiting = usize::try_from(waiting_bytes).unwrap_or(usize::MAX) / RECORD_BYTES;
    match turn {
        Turn::Short => TURN,
        Turn::Whole => waiting.saturating_add(TURN),
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, iter};

    use super::*;

    /// The time of day is set forward by an hour while the second batch is taken. A call of that batch begins
    /// afterwards.
    #[test]
    fn no_call_is_timed_by_clocks_as_they_were_before_it_began() {
        const SECOND: u64 = 1_000_000_000;
        const HOUR: u64 = 3_600 * SECOND;
        let call = |start_ns, duration_ns| {
            (Record { label_set: 0, flags: record_flag::RECORDED, start_ns, duration_ns }, None)
        };
        let first: Batch = iter::repeat_n(call(20 * SECOND, 21 * SECOND), BATCH).collect();
        // The first of these is in flight meanwhile.
        let second: Batch = vec![call(29 * SECOND, 33 * SECOND), call(HOUR + 31 * SECOND, 33 * SECOND)];
        let set = RefCell::new(Clock::default());
        set.borrow_mut().sync_at(SECOND, 0);
        let mut ring = vec![second, first];
        let take = |ring: &mut Vec<Batch>, batch: &mut Batch| {
            batch.append(&mut ring.pop().unwrap_or_default());
            if ring.is_empty() {
                set.borrow_mut().sync_at(HOUR, 30 * SECOND);
            }
            batch.len()
        };
        let mut durations = Vec::new();
        let hand_over = |_: &Vec<Batch>, (record, _): &(Record, Option<More>), clock: Clock| {
            durations.push(clock.between(record.start_ns, record.duration_ns).map(|time| time.as_secs()));
        };
        by_batches(&mut ring, &mut Batch::new(), usize::MAX, take, || *set.borrow(), hand_over);
        durations.dedup();
        assert_eq!(durations, [Some(2), None, Some(2)]);
    }

    #[test]
    fn a_whole_turn_takes_all_that_a_ring_can_hold() {
        let (largest, little) = (1 << 30, 320);
        for waiting in [largest, little, 0] {
            assert_eq!(records_of_a_turn(Turn::Short, waiting), TURN);
        }
        // A ring holds the most records when all are of the smallest size.
        assert_eq!(records_of_a_turn(Turn::Whole, largest), (1 << 25) + TURN);
        assert_eq!(records_of_a_turn(Turn::Whole, little), 10 + TURN);
        assert_eq!(records_of_a_turn(Turn::Whole, 0), TURN);
    }
}
