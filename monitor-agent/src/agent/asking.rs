//! Decides which calls are asked for the start that they have recorded themselves, of those whose start was not seen:
//! all, or only a few while none has one.
//!
//! The programs need two or three reads of the target's memory to ask a call, a quarter of the time of a finish. Most
//! targets record no starts, but any of them may begin to, so a few calls are still asked.

/// After this many calls in a row without a record, only a few are asked.
const ENOUGH: u64 = 1_000;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// Calls with a record, at the last decision.
    recorded: u64,
    /// Calls without a duration, when a call with a record was last seen.
    missed: u64,
    /// Only a few calls are asked.
    few: bool,
}

impl Asking {
    /// Updates the counts of calls with a record and of calls without a duration. Returns whether only a few calls are
    /// to be asked from now on, if that has changed.
    pub(super) fn decide(&mut self, recorded: u64, missed: u64) -> Option<bool> {
        if recorded > self.recorded {
            (self.recorded, self.missed) = (recorded, missed);
        }
        let few = missed.saturating_sub(self.missed) >= ENOUGH;
        (std::mem::replace(&mut self.few, few) != few).then_some(few)
    }

    /// Asks all calls from now on, after none was asked: calls that got no duration until now may still have had
    /// records.
    pub(super) fn begin_again(&mut self, missed: u64) {
        (self.missed, self.few) = (missed, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_asked_after_many_without_a_record_and_all_after_one_with() {
        let mut asking = Asking::default();
        assert_eq!(asking.decide(0, 0), None);
        assert_eq!(asking.decide(0, ENOUGH - 1), None);
        assert_eq!(asking.decide(0, ENOUGH), Some(true));
        assert_eq!(asking.decide(0, 9 * ENOUGH), None);
        assert_eq!(asking.decide(1, 9 * ENOUGH), Some(false));
        assert_eq!(asking.decide(1, 10 * ENOUGH - 1), None);
        assert_eq!(asking.decide(5, 10 * ENOUGH + 1), None, "some with a record, among others");
        assert_eq!(asking.decide(5, 11 * ENOUGH + 1), Some(true));
    }

    #[test]
    fn all_are_asked_after_none_was() {
        let mut asking = Asking::default();
        assert_eq!(asking.decide(5, 0), None);
        assert_eq!(asking.decide(5, ENOUGH), Some(true));
        asking.begin_again(9 * ENOUGH);
        assert_eq!(asking.decide(5, 10 * ENOUGH - 1), None);
        assert_eq!(asking.decide(5, 10 * ENOUGH), Some(true));
    }
}
