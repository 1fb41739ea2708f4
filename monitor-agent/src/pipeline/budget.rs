//! A budget for the probes' cost to a target, and what is shed to keep it.

use std::{fmt, str::FromStr, time::Duration};

use thiserror::Error;

/// The part of a target's CPU time that its probes may take, above 0 and at most 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget(f64);

impl Budget {
    /// Returns the budget as a ratio.
    #[must_use]
    pub fn ratio(self) -> f64 {
        self.0
    }
}

/// An error in a budget.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BudgetError {
    /// Not a number with a percent sign.
    #[error("not a percentage: give a number and a percent sign, such as 1% or 0.5%")]
    NotAPercentage,
    /// 0% or less: every probe costs something.
    #[error("no probe costs nothing, so such a budget can't be kept: give one above 0%, such as 1%")]
    Nothing,
    /// More than 100%.
    #[error("more than all of the target's CPU time: give at most 100%")]
    TooMuch,
}

impl FromStr for Budget {
    type Err = BudgetError;

    fn from_str(text: &str) -> Result<Self, BudgetError> {
        let number = text.strip_suffix('%').ok_or(BudgetError::NotAPercentage)?;
        let is_plain = number.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-'));
        let percent: f64 = number.parse().ok().filter(|_| is_plain).ok_or(BudgetError::NotAPercentage)?;
        if percent <= 0.0 {
            return Err(BudgetError::Nothing);
        }
        if percent > 100.0 {
            return Err(BudgetError::TooMuch);
        }
        Ok(Self(percent / 100.0))
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Percent(self.0))
    }
}

/// Formats a ratio as a percentage, for people.
#[derive(Clone, Copy, Debug)]
pub struct Percent(pub f64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.0 * 100.0;
        let digits = if percent < 0.1 { 3 } else { 2 };
        let text = format!("{percent:.digits$}");
        write!(f, "{}%", text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// The minimum time between the last step and shedding or reporting exhaustion: the ratio must be measured after that
/// step.
const SHED_AFTER: Duration = Duration::from_secs(6);
/// How long a richer level must fit before it is restored.
const RESTORE_AFTER: Duration = Duration::from_secs(10);
/// A richer level fits if it would take at most this part of the budget, so that it is not shed again soon.
const FITS: f64 = 0.8;

/// How much detail of a target is shed: levels from 0, where nothing is, to the last, where everything possible is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shedding {
    level: usize,
    last: usize,
    /// The time of the last step.
    stepped: Duration,
    /// Since when a richer level would fit, and the richest level that has fitted at every decision since.
    fits: Option<(Duration, usize)>,
    /// Whether even the last level exceeds the budget.
    exhausted: bool,
}

/// A change of the level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Detail was shed: this is the new level.
    Shed(usize),
    /// Detail was restored: this is the new level.
    Restored(usize),
    /// Nothing is left to shed, but the budget is still exceeded.
    Exhausted,
}

impl Shedding {
    /// Starts at `now` with nothing shed. At level `last`, everything possible is shed.
    #[must_use]
    pub fn new(now: Duration, last: usize) -> Self {
        Self { last, stepped: now, ..Self::default() }
    }

    /// Returns the current level.
    #[must_use]
    pub fn level(&self) -> usize {
        self.level
    }

    /// Returns whether the probes exceed the budget with everything possible shed.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// Decides on a step by the cost of the probes at each level. `ratio_at` returns it as part of the target's CPU
    /// time.
    pub fn decide(&mut self, now: Duration, budget: Budget, ratio_at: impl Fn(usize) -> f64) -> Option<Step> {
        if ratio_at(self.level) > budget.ratio() {
            self.fits = None;
            return self.shed(now, |level| ratio_at(*level) <= budget.ratio());
        }
        self.exhausted = false;
        let richer = (0..self.level).find(|level| ratio_at(*level) <= budget.ratio() * FITS);
        let Some(level) = richer else {
            self.fits = None;
            return None;
        };
        let (since, level) = self.fits.map_or((now, level), |(since, fits)| (since, level.max(fits)));
        self.fits = Some((since, level));
        if now.saturating_sub(since) < RESTORE_AFTER {
            return None;
        }
        self.step_to(level, now);
        Some(Step::Restored(level))
    }

    /// Steps to the first poorer level that fits, or else to the last.
    fn shed(&mut self, now: Duration, fits: impl Fn(&usize) -> bool) -> Option<Step> {
        if now.saturating_sub(self.stepped) < SHED_AFTER {
            return None;
        }
        if self.level == self.last {
            let is_news = !std::mem::replace(&mut self.exhausted, true);
            return is_news.then_some(Step::Exhausted);
        }
        let level = (self.level + 1..self.last).find(fits).unwrap_or(self.last);
        self.step_to(level, now);
        Some(Step::Shed(level))
    }

    fn step_to(&mut self, level: usize, now: Duration) {
        *self = Self { level, ..Self::new(now, self.last) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(text: &str) -> Budget {
        text.parse().unwrap()
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The cost of each level: finishes 4 %, starts 3 %.
    fn cost(level: usize) -> f64 {
        [0.07, 0.046, 0.0415, 0.04][level]
    }

    #[test]
    fn what_a_budget_may_be() {
        for (text, ratio) in [("1%", 0.01), ("0.5%", 0.005), ("100%", 1.0), (".25%", 0.0025)] {
            assert!((budget(text).ratio() - ratio).abs() < 1e-12, "{text}");
        }
        for text in ["", "%", "1", "one%", "1 %", "nan%", "NaN%", "inf%", "-inf%", "1e1%", "+1%", "1%%"] {
            assert_eq!(text.parse::<Budget>(), Err(BudgetError::NotAPercentage), "{text}");
        }
        for text in ["0%", "0.0%", "-1%", "-0%"] {
            assert_eq!(text.parse::<Budget>(), Err(BudgetError::Nothing), "{text}");
        }
        for text in ["100.1%", "1000%"] {
            assert_eq!(text.parse::<Budget>(), Err(BudgetError::TooMuch), "{text}");
        }
        assert_eq!(budget("0.50%").to_string(), "0.5%");
        assert_eq!(Percent(0.12345).to_string(), "12.35%");
        assert_eq!(Percent(0.0).to_string(), "0%");
    }

    #[test]
    fn a_budget_that_is_kept_changes_nothing() {
        let mut shedding = Shedding::new(at(0), 3);
        for second in 0..100 {
            assert_eq!(shedding.decide(at(second), budget("10%"), cost), None);
        }
        assert_eq!(shedding.level(), 0);
    }

    #[test]
    fn as_much_is_shed_as_is_needed() {
        for (text, level) in [("5%", 1), ("4.2%", 2), ("4%", 3), ("0.5%", 3)] {
            let mut shedding = Shedding::new(at(0), 3);
            assert_eq!(shedding.decide(at(5), budget(text), cost), None, "too soon");
            assert_eq!(shedding.decide(at(6), budget(text), cost), Some(Step::Shed(level)));
            // The lower cost alone does not restore the level: it would be shed again.
            for second in 7..100 {
                let step = shedding.decide(at(second), budget(text), cost);
                assert!(matches!(step, None | Some(Step::Exhausted)), "{text}: {step:?}");
            }
            assert_eq!(shedding.level(), level);
        }
    }

    #[test]
    fn the_end_of_the_ladder_is_told_once() {
        let steps = |shedding: &mut Shedding, seconds: std::ops::Range<u64>, ratio: f64| {
            seconds
                .filter_map(|second| shedding.decide(at(second), budget("0.5%"), |_| ratio))
                .collect::<Vec<_>>()
        };
        let mut shedding = Shedding::new(at(0), 3);
        assert_eq!(steps(&mut shedding, 0..60, 0.04), [Step::Shed(3), Step::Exhausted]);
        assert!(shedding.is_exhausted());
        assert_eq!(steps(&mut shedding, 60..62, 0.0045), []);
        assert!(!shedding.is_exhausted());
        assert_eq!(steps(&mut shedding, 62..90, 0.04), [Step::Exhausted]);
        assert!(shedding.is_exhausted());
        // Some targets have nothing to shed.
        let mut shedding = Shedding::new(at(0), 0);
        assert_eq!(steps(&mut shedding, 0..60, 0.04), [Step::Exhausted]);
        assert_eq!(shedding.level(), 0);
    }

    #[test]
    fn it_comes_back_when_it_fits_with_something_to_spare() {
        let mut shedding = Shedding::new(at(0), 3);
        assert_eq!(shedding.decide(at(6), budget("1%"), cost), Some(Step::Shed(3)));
        let light = |level| cost(level) / 10.0;
        assert_eq!(shedding.decide(at(20), budget("1%"), light), None);
        // A moment of load restarts the wait.
        assert_eq!(shedding.decide(at(29), budget("1%"), |_| 0.009), None);
        assert_eq!(shedding.decide(at(30), budget("1%"), light), None);
        assert_eq!(shedding.decide(at(39), budget("1%"), light), None);
        assert_eq!(shedding.decide(at(40), budget("1%"), light), Some(Step::Restored(0)));
        // A level that would take nearly the whole budget is not restored.
        let mut shedding = Shedding::new(at(0), 3);
        assert_eq!(shedding.decide(at(6), budget("1%"), cost), Some(Step::Shed(3)));
        let steps: Vec<_> =
            (7..100).filter_map(|second| shedding.decide(at(second), budget("6%"), cost)).collect();
        assert_eq!(steps, [Step::Restored(1)]);
    }

    #[test]
    fn a_level_comes_back_when_it_has_fitted_long_enough_itself() {
        let mut shedding = Shedding::new(at(0), 2);
        assert_eq!(shedding.decide(at(6), budget("1%"), |_| 0.02), Some(Step::Shed(2)));
        let mut decide = |second: u64| {
            let ratio_at = |level: usize| if level == 0 && second < 20 { 0.015 } else { 0.005 };
            shedding.decide(at(second), budget("1%"), ratio_at)
        };
        let steps: Vec<_> = (10..60).filter_map(|second| Some((second, decide(second)?))).collect();
        assert_eq!(steps, [(20, Step::Restored(1)), (31, Step::Restored(0))]);
    }
}
