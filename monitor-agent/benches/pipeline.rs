//! How many records the agent decodes and aggregates in a second of one processor's time: a full ring, over and over.
//!
//! One line of JSON on stdout; `cargo xtask bench --only pipeline` makes a table of it. A directory with rings that were
//! recorded may be given; other rings are made here.

use std::{
    env, fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use monitor_agent::agent::Replay;
use monitor_ebpf::LabelSet;

/// Bytes of a ring, as it is by default.
const RING: usize = 4 << 20;
/// Bytes of the header that the kernel puts before each record: its length, and where its page is.
const HEADER: usize = 8;
/// Bytes of a record, and of an event.
const RECORD: usize = 24;
const EVENT: usize = 48;
const TIMES: usize = 20;
const ROUNDS: usize = 7;

fn main() {
    let mut figures: Vec<String> =
        [("records", RECORD, 10), ("records", RECORD, 1_000), ("events", EVENT, 10)]
            .into_iter()
            .map(|(what, size, label_sets)| {
                figure(what, &ring(size, label_sets), (0..label_sets).map(label_set).collect())
            })
            .collect();
    // Cargo has arguments of its own.
    if let Some(directory) = env::args_os().skip(1).map(PathBuf::from).find(|path| path.is_dir()) {
        for what in ["records", "events"] {
            let read = |name: String| fs::read(directory.join(name)).expect("a recorded file");
            let sets = label_sets(&read(format!("{what}.labels")));
            figures.push(figure(&format!("{what}, recorded"), &read(format!("{what}.ring")), sets));
        }
    }
    println!("[{}]", figures.join(","));
}

fn figure(what: &str, ring: &[u8], sets: Vec<LabelSet>) -> String {
    let label_sets = sets.len();
    let rates = rates(ring, sets);
    format!("{{\"what\":\"{what}\",\"label_sets\":{label_sets},\"per_second\":{rates:?}}}")
}

/// Label sets as the programs write them.
fn label_sets(bytes: &[u8]) -> Vec<LabelSet> {
    let (sets, rest) = bytes.as_chunks::<{ size_of::<LabelSet>() }>();
    assert!(rest.is_empty(), "half a label set");
    // SAFETY: it is made of numbers, for which all bytes are values.
    sets.iter().map(|bytes| unsafe { bytes.as_ptr().cast::<LabelSet>().read_unaligned() }).collect()
}

/// Records a second, in each round.
fn rates(ring: &[u8], sets: Vec<LabelSet>) -> Vec<f64> {
    let mut replay = Replay::new(sets);
    let rounds = (0..=ROUNDS).map(|_| {
        let begin = Instant::now();
        let before = replay.snapshot().counters.records_timed;
        for _ in 0..TIMES {
            replay.drain(Items(ring), 1);
        }
        let taken = replay.snapshot().counters.records_timed - before;
        rate(taken, begin.elapsed())
    });
    // The first decodes the labels.
    rounds.skip(1).collect()
}

#[allow(clippy::cast_precision_loss, reason = "a few million")]
fn rate(records: u64, time: Duration) -> f64 {
    records as f64 / time.as_secs_f64()
}

/// A full ring, as the kernel would have it.
fn ring(size: usize, label_sets: u32) -> Vec<u8> {
    let mut ring = Vec::with_capacity(RING);
    // Any order of labels, and durations from a microsecond to a second.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    while ring.len() + HEADER + size <= RING {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let label_set = u32::try_from(random >> 33).unwrap_or_default() % label_sets;
        let duration = (random >> 3 & 0xffff) << (random >> 59 & 0xf);
        ring.extend(u32::try_from(size).unwrap_or_default().to_ne_bytes());
        ring.extend(0_u32.to_ne_bytes());
        ring.extend(label_set.to_ne_bytes());
        ring.extend(0_u32.to_ne_bytes());
        ring.extend(random.to_ne_bytes());
        ring.extend(duration.to_ne_bytes());
        ring.resize(ring.len() + size - RECORD, 0);
    }
    ring
}

/// A client's calls of one method.
fn label_set(number: u32) -> LabelSet {
    let mut set = LabelSet::EMPTY;
    let method = format!("Method{number}");
    set.text[2][..method.len()].copy_from_slice(method.as_bytes());
    set.lengths[2] = method.len().try_into().unwrap_or_default();
    set
}

/// The records in a ring.
struct Items<'a>(&'a [u8]);

impl<'a> Iterator for Items<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk()?;
        let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
        let (item, rest) = rest.get(HEADER - size_of::<u32>()..)?.split_at_checked(length)?;
        self.0 = rest;
        Some(item)
    }
}
