//! Events that the programs lost, derived from their counters.

use monitor_ebpf::Counter;

use super::{EventKind, LossReason};

const FULL: &[Counter] = &[Counter::RingFull, Counter::RingFullUnpaired, Counter::RingFullRecorded];

/// Each way to lose an event, with the counters that count it.
const WAYS: [(EventKind, LossReason, &[Counter]); 8] = [
    (EventKind::Finish, LossReason::RingFull, FULL),
    (EventKind::Finish, LossReason::UnknownType, &[Counter::FinishUnknownType]),
    (EventKind::Finish, LossReason::Unreadable, &[Counter::FinishUnread]),
    (EventKind::Finish, LossReason::LabelTableFailed, &[Counter::FinishLost, Counter::FinishLostUnpaired]),
    (EventKind::Start, LossReason::RingFull, &[Counter::StartRingFull]),
    (EventKind::Start, LossReason::UnknownType, &[Counter::StartUnknownType]),
    (EventKind::Start, LossReason::Unreadable, &[Counter::StartUnread]),
    (EventKind::Start, LossReason::LabelTableFailed, &[Counter::StartLabelLost]),
];

/// The losses reported so far.
#[derive(Clone, Debug, Default)]
pub struct Losses([u64; WAYS.len()]);

impl Losses {
    /// Reports to `lost` each loss since the last call. `counter` returns the value of one of the programs' counters.
    pub fn tell_new(
        &mut self,
        counter: impl Fn(Counter) -> u64,
        mut lost: impl FnMut(EventKind, LossReason, u64),
    ) {
        for (told, (event, reason, counters)) in self.0.iter_mut().zip(WAYS) {
            let now = counters.iter().map(|one| counter(*one)).sum::<u64>();
            // The counters of the CPUs are read one after the other, so a sum can be smaller than before.
            let more = now.saturating_sub(*told);
            if more > 0 {
                *told = now;
                lost(event, reason, more);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loss_is_told_once() {
        let mut losses = Losses::default();
        let mut told = Vec::new();
        for (full, unknown) in [(0, 0), (3, 0), (3, 1), (5, 1)] {
            let counter = |counter| match counter {
                Counter::RingFull => full - full / 5,
                Counter::RingFullUnpaired => full / 5,
                Counter::StartUnknownType => unknown,
                _ => 0,
            };
            losses.tell_new(counter, |event, reason, count| told.push((event, reason, count)));
        }
        let expected = [
            (EventKind::Finish, LossReason::RingFull, 3),
            (EventKind::Start, LossReason::UnknownType, 1),
            (EventKind::Finish, LossReason::RingFull, 2),
        ];
        assert_eq!(told, expected);
    }
}
