//! Controls which starts the programs see.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use monitor_ebpf::{name, sampling};

use super::{
    BpfError,
    clock::monotonic,
    mapped::{Access, MappedWords},
    maps::map_array,
    object::Object,
};

/// Which calls without a seen start are asked for the start time that they record themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// All of them.
    All,
    /// Enough to see whether they record it.
    Few,
    /// None, so that such calls have no duration.
    None,
}

impl Asked {
    /// Returns the word for [`sampling::ASKED`].
    fn bits(self) -> u64 {
        match self {
            Self::All => 0,
            Self::Few => sampling::FEW,
            // No call finishes at a time whose bits are all zero.
            Self::None => u64::MAX,
        }
    }
}

/// Which starts of calls the programs of one copy of a framework see.
///
/// The programs never pair a call with a start that may be another's: see [`monitor_ebpf::sampling`].
pub struct Sampling {
    words: MappedWords,
    /// The mode, cached: only the agent sets it, and it is read all the time.
    in_windows: AtomicBool,
}

impl Sampling {
    pub(super) fn take(object: &mut Object) -> Result<Self, BpfError> {
        let words = map_array(object, name::SAMPLING, sampling::COUNT as usize, Access::Write)?;
        Ok(Self { words, in_windows: AtomicBool::new(false) })
    }

    /// Switches to windows: from now on starts are seen only in windows. Does not close the current one.
    pub fn begin_windows(&self) {
        self.set(sampling::MODE, sampling::WINDOWS);
        self.in_windows.store(true, Ordering::Release);
    }

    /// Stops the programs from seeing starts. Call it before the first probe at a start is removed.
    pub fn close(&self) {
        self.set(sampling::SEEN_SINCE, u64::MAX);
    }

    /// Lets the programs see all starts. Call it after the last probe at a start is attached.
    pub fn open(&self) {
        self.set(sampling::SEEN_SINCE, u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX));
    }

    /// Leaves windows. Call it once all starts are seen, and regularly from then on: until `max_age` has passed, a
    /// call whose start was not seen may have started before.
    pub fn end_windows(&self, max_age: Duration) {
        if self.in_windows() && self.in_windows.swap(false, Ordering::AcqRel) {
            self.set(sampling::MODE, sampling::FULL_AGAIN);
        }
        if self.get(sampling::MODE) == sampling::FULL_AGAIN && self.seen_for() >= max_age {
            self.set(sampling::MODE, sampling::FULL);
        }
    }

    /// Returns for how long all starts have been seen.
    fn seen_for(&self) -> Duration {
        monotonic().saturating_sub(Duration::from_nanos(self.get(sampling::SEEN_SINCE)))
    }

    /// Sets which calls are asked for the start time that they record themselves.
    pub fn ask(&self, asked: Asked) {
        self.set(sampling::ASKED, asked.bits());
    }

    /// Whether starts are seen in windows.
    #[must_use]
    pub fn in_windows(&self) -> bool {
        self.in_windows.load(Ordering::Acquire)
    }

    fn get(&self, word: u32) -> u64 {
        self.words.get(word as usize)
    }

    fn set(&self, word: u32, value: u64) {
        self.words.set(word as usize, value);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::bpf::mapped::testing::memory;

    #[test]
    fn after_windows_all_is_as_before_once_calls_of_their_time_are_too_old() {
        let map = memory(&[0; sampling::COUNT as usize * 8]);
        let words = MappedWords::new(map.as_fd(), sampling::COUNT as usize, Access::Write).unwrap();
        let told = Sampling { words, in_windows: AtomicBool::new(false) };
        let mode = || told.get(sampling::MODE);
        told.begin_windows();
        told.close();
        told.end_windows(Duration::from_nanos(1));
        assert_eq!(mode(), sampling::FULL_AGAIN, "none is seen yet");
        told.open();
        told.end_windows(Duration::from_hours(1));
        assert_eq!(mode(), sampling::FULL_AGAIN, "calls may be an hour old");
        told.end_windows(Duration::ZERO);
        assert_eq!(mode(), sampling::FULL);
        // What is left of the windows can't be paired with what finishes now.
        assert!(told.get(sampling::SEEN_SINCE) > 0);
        told.begin_windows();
        assert_eq!(mode(), sampling::WINDOWS);
    }
}
