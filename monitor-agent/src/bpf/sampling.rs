//! Telling the programs which starts they see.

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

/// Which calls are asked for the start that they have recorded themselves, of those whose start was not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Each.
    All,
    /// Enough to see whether there are records.
    Few,
    /// None, so that none has a duration.
    None,
}

impl Asked {
    /// See [`sampling::ASKED`].
    fn bits(self) -> u64 {
        match self {
            Self::All => 0,
            Self::Few => sampling::FEW,
            // No call finishes at a time of which all bits are zero.
            Self::None => u64::MAX,
        }
    }
}

/// Which starts of calls the programs of one copy of a framework see.
///
/// The programs give a call no start that may be another's: see [`monitor_ebpf::sampling`].
pub struct Sampling {
    words: MappedWords,
    /// What the mode says. Only the agent sets it, and asks for it all the time.
    in_windows: AtomicBool,
}

impl Sampling {
    pub(super) fn take(object: &mut Object) -> Result<Self, BpfError> {
        let words = map_array(object, name::SAMPLING, sampling::COUNT as usize, Access::Write)?;
        Ok(Self { words, in_windows: AtomicBool::new(false) })
    }

    /// From now on starts are watched in windows. Those under way are seen on.
    pub fn begin_windows(&self) {
        self.set(sampling::MODE, sampling::WINDOWS);
        self.in_windows.store(true, Ordering::Release);
    }

    /// From now on starts go unseen. To be called before the first probe at a start is taken away.
    pub fn close(&self) {
        self.set(sampling::SEEN_SINCE, u64::MAX);
    }

    /// From now on all starts are seen. To be called after the last probe at a start was put in place.
    pub fn open(&self) {
        self.set(sampling::SEEN_SINCE, u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX));
    }

    /// Starts are no longer watched in windows. To be called when all are seen, and now and then as long as they are: a call
    /// whose start was not seen may have started before, until it would be as old as this.
    pub fn end_windows(&self, max_age: Duration) {
        if self.in_windows() && self.in_windows.swap(false, Ordering::AcqRel) {
            self.set(sampling::MODE, sampling::FULL_AGAIN);
        }
        if self.get(sampling::MODE) == sampling::FULL_AGAIN && self.seen_for() >= max_age {
            self.set(sampling::MODE, sampling::FULL);
        }
    }

    /// For how long all starts have been seen.
    fn seen_for(&self) -> Duration {
        monotonic().saturating_sub(Duration::from_nanos(self.get(sampling::SEEN_SINCE)))
    }

    /// From now on these calls are asked for the start that they have recorded themselves.
    pub fn ask(&self, asked: Asked) {
        self.set(sampling::ASKED, asked.bits());
    }

    /// Whether starts are watched in windows.
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
        // What is left of the windows is no pair of what finishes now.
        assert!(told.get(sampling::SEEN_SINCE) > 0);
        told.begin_windows();
        assert_eq!(mode(), sampling::WINDOWS);
    }
}
