//! Memory without a runtime, and runtimes that change while they are read.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use proptest::prelude::*;

use super::{
    super::{Arch, heap::Heap, memory::at},
    scheduler::MAX_THREADS,
    *,
};
use crate::image::GoVersion;

/// Memory in which a rule gives each word from its address. Counts the reads.
struct Rule<F>(F, Arc<AtomicUsize>);

impl<F: Fn(u64) -> Option<u64> + Send> Memory for Rule<F> {
    fn read(&self, address: u64, buf: &mut [u8]) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::Relaxed);
        for (place, byte) in (address..=u64::MAX).zip(buf.iter_mut()) {
            let word = self.0(place & !7).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
            *byte = word.to_le_bytes()[(place & 7) as usize];
        }
        Ok(())
    }
}

/// Reads such memory twice. Returns the last reading, and the average number of reads.
fn read(minor: u32, rule: impl Fn(u64) -> Option<u64> + Send + 'static) -> (Readings, usize) {
    let reads = Arc::new(AtomicUsize::new(0));
    let memory = Box::new(Rule(rule, Arc::clone(&reads)));
    let layout = Layout::of(GoVersion { major: 1, minor, patch: 0 }, Arch::Amd64).expect("a table");
    let mut reader = Reader::new(memory, Sources::everywhere(0x10_0000), 0, layout, Detail::All);
    reader.read();
    let (readings, _) = reader.read();
    (readings, reads.load(Ordering::Relaxed) / 2)
}

#[test]
fn memory_that_is_all_the_same_is_no_runtime() {
    for minor in 18..=27 {
        for word in [0, 1, 0x10_0000, u64::MAX, 1 << 63] {
            let (readings, reads) = read(minor, move |_| Some(word));
            assert_eq!((readings.goroutines, &readings.gc), (None, &None), "1.{minor}, {word:#x}");
            assert!(!readings.metrics.contains_key("/memory/classes/total:bytes"), "1.{minor}, {word:#x}");
            assert!(reads < 500_000, "{reads} reads");
        }
    }
}

#[test]
fn a_list_of_threads_without_an_end_is_given_up() {
    // Each thread's goroutine points back, and the next thread is the same one.
    let (readings, reads) = read(26, |_| Some(0x20_0000));
    assert_eq!(readings.threads, None);
    assert!((MAX_THREADS..500_000).contains(&reads), "{reads} reads");
}

#[test]
fn where_there_is_no_memory_there_is_nothing() {
    let (readings, reads) = read(27, |_| None);
    assert!(readings.metrics.is_empty() && readings.gc.is_none() && readings.threads.is_none());
    assert!(reads < 100, "{reads} reads");
}

/// The addresses that [`Sources::everywhere`] gives the variables of these tests.
const ALLGS: u64 = 0x10_0000;
const ALLM: u64 = 0x11_0000;
const CONTROLLER: u64 = 0x13_0000;
const MEMSTATS: u64 = 0x14_0000;
const SCHED: u64 = 0x16_0000;
const NCGOCALL: u64 = 0x1c_0000;

fn newest() -> Layout {
    Layout::of(GoVersion { major: 1, minor: 27, patch: 0 }, Arch::Amd64).expect("a table")
}

/// Returns the address of a field in the newest release.
fn field(structure: u64, path: &str) -> u64 {
    at(structure, newest().find(path).expect("a field"))
}

/// Reads a part of memory in which a rule gives each word from its address and the number of the read.
fn part<T>(
    rule: impl Fn(u64, usize) -> u64 + Send,
    read: impl FnMut(&mut Moment<'_>) -> Result<T, Fault>,
) -> Option<T> {
    let reads = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&reads);
    let memory = Rule(move |place| Some(rule(place, count.load(Ordering::Relaxed))), reads);
    let layout = newest();
    let globals = Globals::find(&Sources::everywhere(ALLGS), 0, &layout, &memory);
    let mut moment = Moment {
        memory: &memory,
        layout: &layout,
        globals: &globals,
        readings: Readings::default(),
        faults: Vec::new(),
    };
    moment.part(read)
}

#[test]
fn goroutines_that_change_places_meanwhile_are_counted_once() {
    const PROCESSORS: [u64; 2] = [0x40_0000, 0x41_0000];
    let sched = field(SCHED, "sched.gFree.stack.size");
    let processor = field(PROCESSORS[0], "p.gFree.size");
    for step in 0..12 {
        let rule = move |place: u64, reads: usize| match place {
            // A slice of all goroutines that ever existed.
            ALLGS => 1,
            _ if place == ALLGS + 8 || place == ALLGS + 16 => 1000,
            _ if place == sched => [100, 133][usize::from(reads > step)],
            _ if place == processor => [64, 31][usize::from(reads > step)],
            _ => 0,
        };
        let found = part(rule, |moment| {
            moment.goroutines(&PROCESSORS)?;
            Ok(moment.readings.goroutines)
        });
        assert_eq!(found, Some(Some(836)), "33 were handed over after {step} reads");
    }
}

#[test]
fn a_thread_that_exits_meanwhile_is_counted_once() {
    const THREADS: [u64; 2] = [0x40_0000, 0x41_0000];
    const GOROUTINES: [u64; 2] = [0x50_0000, 0x51_0000];
    let [exiting, staying] = THREADS;
    let places = [
        (field(exiting, "m.alllink"), staying),
        (field(exiting, "m.g0"), GOROUTINES[0]),
        (field(staying, "m.g0"), GOROUTINES[1]),
        (field(GOROUTINES[0], "g.m"), exiting),
        (field(GOROUTINES[1], "g.m"), staying),
        (field(exiting, "m.ncgocall"), 7),
        (field(staying, "m.ncgocall"), 5),
        (field(SCHED, "sched.mnext"), 2),
        (field(SCHED, "sched.maxmcount"), 10_000),
    ];
    let exited = field(SCHED, "sched.nmfreed");
    for step in 0..30 {
        let rule = move |place: u64, reads: usize| match place {
            ALLM => [exiting, staying][usize::from(reads > step)],
            NCGOCALL => [0, 7][usize::from(reads > step)],
            _ if place == exited => u64::from(reads > step),
            _ => places.iter().find(|(there, _)| *there == place).map_or(0, |(_, word)| *word),
        };
        let found = part(rule, |moment| {
            moment.of_threads()?;
            Ok(moment.readings.unsigned("/cgo/go-to-c-calls:calls"))
        });
        assert_eq!(found, Some(Some(12)), "a thread exits after {step} reads");
    }
}

#[test]
fn processors_that_hand_over_meanwhile_are_counted_once() {
    const PROCESSORS: [u64; 2] = [0x40_0000, 0x41_0000];
    let total = field(SCHED, "sched.goroutinesCreated");
    let part_of_it = field(PROCESSORS[1], "p.goroutinesCreated");
    for step in 0..12 {
        let rule = move |place: u64, reads: usize| match place {
            _ if place == total => [100, 107][usize::from(reads > step)],
            _ if place == part_of_it => [7, 0][usize::from(reads > step)],
            _ => 0,
        };
        let found = part(rule, |moment| {
            moment.goroutines_created(&PROCESSORS)?;
            Ok(moment.readings.unsigned("/sched/goroutines-created:goroutines"))
        });
        assert_eq!(found, Some(Some(107)), "7 were handed over after {step} reads");
    }
}

/// Whether the records of the heap seem to rest, if the second read of the one that is written to has these words.
fn rests(tiny_allocs: u64, committed: u64) -> bool {
    let start = field(MEMSTATS, "memstats.heapStats.stats");
    let (counted, sized) =
        (field(start, "heapStatsDelta.tinyAllocCount"), field(start, "heapStatsDelta.committed"));
    let rule = move |place: u64, reads: usize| match (place, reads.is_multiple_of(2)) {
        (place, false) if place == counted => 50,
        (place, true) if place == counted => tiny_allocs,
        (place, false) if place == sized => 4096,
        (place, true) if place == sized => committed,
        _ => 0,
    };
    let found = part(rule, |moment| {
        let memstats = moment.block("runtime.memstats", "memstats#")?;
        moment.records_rest(&memstats)
    });
    found.is_some()
}

#[test]
fn records_that_all_had_their_turn_meanwhile_do_not_rest() {
    assert!(rests(50, 4096));
    assert!(rests(60, 0), "sizes may fall");
    assert!(!rests(20, 8192), "the record was cleared in between");
}

/// Whether the heap is accepted if the pacer has this much free memory.
fn is_believed(free: u64) -> bool {
    const MIB: u64 = 1 << 20;
    let start = field(MEMSTATS, "memstats.heapStats.stats");
    let (committed, spans) =
        (field(start, "heapStatsDelta.committed"), field(start, "heapStatsDelta.inHeap"));
    let known = field(CONTROLLER, "gcController.heapInUse");
    let known_free = field(CONTROLLER, "gcController.heapFree");
    let rule = move |place: u64, _: usize| match place {
        _ if place == committed => 100 * MIB,
        _ if place == spans || place == known => 10 * MIB,
        _ if place == known_free => free,
        _ => 0,
    };
    let found = part(rule, |moment| {
        let memstats = moment.block("runtime.memstats", "memstats#")?;
        let pacer = moment.block("runtime.gcController", "gcController#")?;
        Heap::read(&memstats, moment.layout)?.check(&memstats, &pacer, moment.layout)
    });
    found.is_some()
}

#[test]
fn a_heap_of_which_too_much_is_kept_is_not_believed() {
    assert!(is_believed(90 << 20));
    assert!(!is_believed(40 << 20), "twice of what there is");
}

#[test]
fn the_highest_stays_when_a_number_falls() {
    const USER: &str = "/cpu/classes/user:cpu-seconds";
    const CALLS: &str = "/cgo/go-to-c-calls:calls";
    let nowhere = Box::new(Rule(|_: u64| None, Arc::default()));
    let mut reader = Reader::new(nowhere, Sources::default(), 0, newest(), Detail::All);
    for (seconds, calls, highest) in
        [(-1.0, 3, [0.0, 3.0]), (2.5, 4, [2.5, 4.0]), (1.5, 2, [2.5, 4.0]), (-3.0, 9, [2.5, 9.0])]
    {
        let metrics = [(USER, Value::Float(seconds)), (CALLS, Value::Unsigned(calls))].into();
        let mut readings = Readings { metrics, ..Readings::default() };
        reader.keep_highest(&mut readings);
        assert_eq!(readings.highest, [(USER, highest[0]), (CALLS, highest[1])].into());
    }
    // What could not be read is absent.
    let mut readings = Readings::default();
    reader.keep_highest(&mut readings);
    assert!(readings.highest.is_empty());
}

proptest! {
    #[test]
    fn any_memory_ends_without_a_panic(
        minor in 18_u32..=27,
        seed in any::<u64>(),
        words in prop::collection::vec(any::<u64>(), 1..40),
    ) {
        // Addresses, small numbers, and anything else.
        let rule = move |place: u64| {
            let hash = (place ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            match hash % 5 {
                0 => Some(0x10_0000 + (hash & 0xfff8)),
                1 => Some(hash % 7),
                2 => (!hash.is_multiple_of(64)).then_some(place),
                _ => words.get(usize::try_from(hash).unwrap_or(0) % words.len()).copied(),
            }
        };
        let (readings, reads) = read(minor, rule);
        prop_assert!(readings.gc.is_none() && readings.goroutines.is_none_or(|count| count >= 1));
        prop_assert!(reads < 500_000, "{} reads", reads);
    }
}
