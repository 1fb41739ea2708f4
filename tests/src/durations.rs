//! Compares the agent's latencies with those that the target measured itself: for the same calls, or for all calls if
//! the agent timed a sample.

use std::{collections::BTreeMap, iter};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::scrape::{Histogram, Labels, Scrape, whole};

/// The number of timed calls below which a label set's median and mean are not compared: one call that loses its
/// processor at a probe would shift them.
pub const CALLS_FOR_DURATIONS: u64 = 1_000;
/// Durations may differ by the probes' own time and by the width of a bucket: by five percent
const CLOSE_SHARE: f64 = 0.05;
/// or by this many microseconds.
const CLOSE_US: f64 = 20.0;
/// The share of all calls that may change places: a thread can lose its processor between the probe and the target's
/// own clock, most likely right behind a probe. On a server whose calls take 10 µs, such calls are the slowest one
/// percent.
const CHANGE_PLACES: f64 = 0.005;
/// The widest bucket, as a share of its lower bound, in which a quantile is compared.
const WIDEST_SHARE: f64 = 0.3;
/// How many standard errors a sample may be off. Of some forty comparisons, one then fails by chance in one run of
/// thousands. With three standard errors, one would fail in one run of ten.
const STANDARD_ERRORS: f64 = 4.5;

/// The durations of one label set's calls, as the target measured them in whole microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// The number of calls by duration. From 1024 µs on, durations that differ by less than 0.8 % share one key.
    pub calls: BTreeMap<u64, u64>,
    /// The sum of all durations, exact.
    pub sum: u64,
}

impl Durations {
    /// Parses a target's answer to `durations`, summed over all labels except these and `side`.
    pub fn of_target(answer: &Value, labels: &[&str]) -> Result<BTreeMap<Labels, Self>> {
        let mut all = BTreeMap::<Labels, Self>::new();
        for row in answer["durations"].as_array().context("no durations in the target's answer")? {
            let mut of = Labels::new();
            for name in labels.iter().chain(&["side"]) {
                let value = row[name].as_str().with_context(|| format!("no {name} in {row}"))?;
                of.insert((*name).to_owned(), value.to_owned());
            }
            all.entry(of).or_default().add(row).with_context(|| format!("not durations: {row}"))?;
        }
        Ok(all)
    }

    fn add(&mut self, row: &Value) -> Option<()> {
        self.sum += row["sum"].as_u64()?;
        for value in row["values"].as_array()? {
            *self.calls.entry(value[0].as_u64()?).or_default() += value[1].as_u64()?;
        }
        Some(())
    }

    /// The number of calls.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.calls.values().sum()
    }

    /// The duration that a share `q` of the calls does not exceed, in microseconds. `None` without calls.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = q * self.count() as f64;
        let mut seen = 0;
        let at_rank = self.calls.iter().find(|(_, calls)| {
            seen += **calls;
            seen as f64 >= rank
        });
        at_rank.map(|(us, _)| *us as f64)
    }

    /// Fails unless a quantile of the agent's histogram is within 5 % or 20 µs of the target's.
    ///
    /// A histogram only determines the bucket of its quantile. The target's quantile must be that close to the bucket,
    /// and the bucket must not be wider than those of the `fine` preset. Use label sets with many calls: with few, a
    /// single call is a quantile.
    pub fn check(&self, agent: &Histogram, q: f64) -> Result<()> {
        self.check_quantile(agent, q, |_| 0.0)
    }

    /// Does what [`Durations::check`] does if the agent has timed a sample of the calls. `chance` returns, for a
    /// duration, how much the share of calls up to it may differ by chance between the sample and all calls.
    fn check_quantile(&self, agent: &Histogram, q: f64, chance: impl Fn(f64) -> f64) -> Result<()> {
        ensure!(self.count() > 0, "no durations here of the agent's {} calls", agent.count);
        let Some((above, upto)) = agent.quantile_bounds(q) else {
            bail!("no durations at the agent of {} calls", self.count());
        };
        if upto - above.max(0.0) > (above * WIDEST_SHARE).max(CLOSE_US) {
            bail!("the agent's bucket from {above} to {upto} µs is too wide to say anything");
        }
        // The last whole microsecond that is not close to the bucket, and the last one that is.
        let below = (above / (1.0 + CLOSE_SHARE)).min(above - CLOSE_US).ceil() - 1.0;
        let close = (upto / (1.0 - CLOSE_SHARE)).max(upto + CLOSE_US);
        let (shorter, reached) = (self.share_up_to(below), self.share_up_to(close));
        let is_too_long = shorter >= (q + CHANGE_PLACES + chance(below)).min(1.0);
        let is_too_short = reached < (q - CHANGE_PLACES - chance(close)).max(f64::EPSILON);
        ensure!(
            !is_too_long && !is_too_short,
            "quantile {q} is {above} to {upto} µs at the agent; of {} calls here {shorter} took clearly less, and {reached} \
             no more than about that",
            self.count()
        );
        Ok(())
    }

    /// Fails unless the mean of the agent's durations is within 5 % or 20 µs of the target's, plus `chance`
    /// microseconds.
    pub fn check_mean(&self, agent: &Histogram, chance: f64) -> Result<()> {
        let (own, agents) = (self.mean(), agent.sum / agent.count);
        let close = (own * CLOSE_SHARE).max(CLOSE_US) + chance;
        ensure!(
            (own - agents).abs() <= close,
            "the mean is {own} µs here and {agents} at the agent: more than {close} apart"
        );
        Ok(())
    }

    fn mean(&self) -> f64 {
        float(self.sum) / float(self.count())
    }

    fn variance(&self) -> f64 {
        let mean = self.mean();
        let squares = self.calls.iter().map(|(us, calls)| float(*calls) * (float(*us) - mean).powi(2));
        squares.sum::<f64>() / float(self.count())
    }

    /// The number of calls that took at most `us` microseconds.
    fn up_to(&self, us: f64) -> f64 {
        float(self.calls.iter().filter(|(own, _)| float(**own) <= us).map(|(_, calls)| *calls).sum())
    }

    fn share_up_to(&self, us: f64) -> f64 {
        self.up_to(us) / float(self.count())
    }

    /// The calls added since an earlier state, or `None` if calls are missing.
    fn since(&self, earlier: &Self) -> Option<Self> {
        let mut calls = self.calls.clone();
        for (us, before) in &earlier.calls {
            let now = calls.get_mut(us)?;
            *now = now.checked_sub(*before)?;
        }
        Some(Self { calls, sum: self.sum.checked_sub(earlier.sum)? })
    }
}

/// All calls of a process while the agent timed a sample of them, as the process measured them.
#[derive(Clone, Debug)]
pub struct Population {
    /// All calls, by label set.
    all: BTreeMap<Labels, Durations>,
    /// The same calls, divided into periods of time.
    pieces: Vec<BTreeMap<Labels, Durations>>,
}

impl Population {
    /// Parses a target's answers to `durations`, one taken at the end of each period. A period should be as long as one
    /// of the agent's windows, and contain calls of all kinds.
    pub fn of_answers<'a>(answers: impl IntoIterator<Item = &'a Value>, labels: &[&str]) -> Result<Self> {
        let states = answers.into_iter().map(|answer| Durations::of_target(answer, labels));
        Self::of_states(states.collect::<Result<_>>()?).context("the target has forgotten calls")
    }

    fn of_states(mut states: Vec<BTreeMap<Labels, Durations>>) -> Option<Self> {
        let none = BTreeMap::new();
        let earlier = iter::once(&none).chain(&states);
        let pieces = states.iter().zip(earlier).map(|(now, earlier)| since(now, earlier));
        let pieces = pieces.collect::<Option<_>>()?;
        Some(Self { all: states.pop().unwrap_or_default(), pieces })
    }

    /// Fails unless the sample resembles all calls: in the share of each label set and, for sets with enough timed
    /// calls, in the mean, the median and the 99th percentile. Returns the share of calls that were timed.
    pub fn check_sample(&self, sample: &BTreeMap<Labels, Histogram>) -> Result<f64> {
        let stray = sample.keys().find(|labels| !self.all.contains_key(*labels));
        ensure!(stray.is_none(), "no call here has the labels {stray:?}");
        let timed = sample.values().map(|histogram| histogram.count).sum::<f64>();
        let (none, mut compared) = (Histogram::default(), 0);
        for (labels, own) in &self.all {
            let about = || format!("{labels:?}");
            let sample = sample.get(labels).unwrap_or(&none);
            self.check_share(labels, sample.count, timed).with_context(about)?;
            if whole(sample.count) >= CALLS_FOR_DURATIONS {
                self.check_durations(labels, own, sample).with_context(about)?;
                compared += 1;
            }
        }
        ensure!(compared > 0, "of no label set {CALLS_FOR_DURATIONS} calls were timed");
        Ok(timed / calls_of(&self.all))
    }

    /// Fails unless a label set has about the same share of the sample as of all calls.
    fn check_share(&self, labels: &Labels, timed_of_set: f64, timed: f64) -> Result<()> {
        let of_set = |sets: &BTreeMap<Labels, Durations>| float(sets.get(labels).map_or(0, Durations::count));
        let pieces = self.pieces.iter().map(|piece| Piece { calls: calls_of(piece), sum: of_set(piece) });
        let own = of_set(&self.all) / calls_of(&self.all);
        let close = by_chance(&pieces.collect::<Vec<_>>(), own * (1.0 - own), timed);
        let found = timed_of_set / timed;
        ensure!(
            (found - own).abs() <= close,
            "{found} of the timed calls, and {own} of all: more than {close} apart"
        );
        Ok(())
    }

    /// Fails unless the durations of a label set are about the same in the sample as in all calls.
    fn check_durations(&self, labels: &Labels, own: &Durations, sample: &Histogram) -> Result<()> {
        let chance = |number: &dyn Fn(&Durations) -> f64, variance: f64| {
            let pieces = self.pieces.iter().filter_map(|piece| piece.get(labels));
            let pieces = pieces.map(|piece| Piece { calls: float(piece.count()), sum: number(piece) });
            by_chance(&pieces.collect::<Vec<_>>(), variance, sample.count)
        };
        own.check_mean(sample, chance(&|piece: &Durations| float(piece.sum), own.variance()))?;
        [0.5, 0.99].into_iter().try_for_each(|q| {
            own.check_quantile(sample, q, |us| {
                let share = own.share_up_to(us);
                chance(&|piece: &Durations| piece.up_to(us), share * (1.0 - share))
            })
        })
    }
}

/// The calls of one period: how many there are, and the sum of a number that each call has. For the mean, that number
/// is the duration. For a share, it is 1 or 0.
struct Piece {
    calls: f64,
    sum: f64,
}

/// Returns by how much the mean of a number may differ by chance between a sample and all calls.
///
/// For a sample of n out of N independent calls, the standard error of the mean is √(v / n · (1 − n / N)), where v is
/// the variance of the number. Calls of one window are not independent: they share what the machine did in that second,
/// and a stall slows many of them at once. This acts as if there were fewer calls, by a factor called the design
/// effect. It follows from periods as long as a window: with m calls of mean y in each of k periods, and a mean x over
/// all calls, the sum of m (y − x)² / (k − 1) is v if calls are independent, and else v times the factor. It is
/// measured, not assumed, since no single number is right both for a machine at rest and for a busy one. It is never
/// taken as less than 1.
fn by_chance(pieces: &[Piece], variance: f64, sampled: f64) -> f64 {
    let all = pieces.iter().map(|piece| piece.calls).sum::<f64>();
    let mean = pieces.iter().map(|piece| piece.sum).sum::<f64>() / all;
    let with_calls = pieces.iter().filter(|piece| piece.calls > 0.0);
    let off = with_calls.map(|piece| piece.calls * (piece.sum / piece.calls - mean).powi(2)).sum::<f64>();
    let degrees = float(pieces.len() as u64) - 1.0;
    let variance = variance.max(off / degrees.max(1.0));
    STANDARD_ERRORS * (variance / sampled * (1.0 - sampled / all).max(0.0)).sqrt()
}

/// The calls added since earlier states of the same label sets, or `None` if calls are missing.
fn since(
    now: &BTreeMap<Labels, Durations>,
    earlier: &BTreeMap<Labels, Durations>,
) -> Option<BTreeMap<Labels, Durations>> {
    let none = Durations::default();
    let of_set = |(labels, now): (&Labels, &Durations)| {
        Some((labels.clone(), now.since(earlier.get(labels).unwrap_or(&none))?))
    };
    now.iter().map(of_set).collect()
}

fn calls_of(sets: &BTreeMap<Labels, Durations>) -> f64 {
    float(sets.values().map(Durations::count).sum())
}

#[allow(clippy::cast_precision_loss, reason = "counts and microseconds far below 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}

/// Returns the agent's latencies by label set, with `side` among the labels and without `target`.
#[must_use]
pub fn of_agent(scrape: &Scrape, target: Option<u32>) -> BTreeMap<Labels, Histogram> {
    let target = target.map(|pid| pid.to_string());
    let mut all = BTreeMap::new();
    for side in ["client", "server"] {
        for (mut labels, histogram) in scrape.histograms(&format!("kitex_{side}_latency_us")) {
            if labels.remove("target") == target {
                labels.insert("side".to_owned(), side.to_owned());
                all.insert(labels, histogram);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(retry: &str, values: &Value, sum: u64) -> Value {
        json!({"side": "server", "method": "Echo", "retry": retry, "sum": sum, "values": values})
    }

    fn durations() -> Durations {
        let rows = [row("0", &json!([[100, 98], [1000, 1]]), 10_800), row("1", &json!([[2048, 1]]), 2050)];
        let answer = json!({"durations": rows});
        let all = Durations::of_target(&answer, &["method"]).unwrap();
        assert_eq!(all.len(), 1);
        all.into_values().next().unwrap()
    }

    #[test]
    fn rows_are_merged() {
        let durations = durations();
        assert_eq!((durations.count(), durations.sum), (100, 12_850));
        assert_eq!(durations.quantile(0.5), Some(100.0));
        assert_eq!(durations.quantile(0.99), Some(1000.0));
        assert_eq!(durations.quantile(1.0), Some(2048.0));
        assert_eq!(Durations::default().quantile(0.5), None);
    }

    #[test]
    fn close_and_not() {
        let agent = |lower: f64, upper: f64| Histogram {
            buckets: vec![(lower, 0.0), (upper, 50.0), (5000.0, 100.0), (f64::INFINITY, 100.0)],
            sum: 12_850.0,
            count: 100.0,
        };
        durations().check(&agent(100.0, 120.0), 0.5).unwrap();
        durations().check(&agent(120.0, 125.0), 0.5).unwrap();
        durations().check(&agent(70.0, 80.0), 0.5).unwrap();
        assert!(durations().check(&agent(121.0, 125.0), 0.5).is_err());
        assert!(durations().check(&agent(70.0, 79.0), 0.5).is_err());
        assert!(durations().check(&agent(90.0, 130.0), 0.5).is_err());
        assert!(durations().check(&Histogram::default(), 0.5).is_err());
    }

    /// When a call starts and how long it takes, both in microseconds.
    type Call = (u64, u64);

    const SECOND: u64 = 1_000_000;
    /// When the windows open, each a second long, in microseconds.
    const OPENED: [u64; 5] = [1_300_000, 2_800_000, 5_100_000, 7_000_000, 8_900_000];

    /// A call every millisecond for ten seconds. Most take some 200 µs, one in 25 takes some 650 ms.
    fn load() -> Vec<Call> {
        let call = |at: u64| {
            let (is_long, random) = (random(at).is_multiple_of(25), random(at) / 25 % 1_000);
            (at * 1_000, if is_long { 400_000 + 500 * random } else { 100 + random / 4 })
        };
        (0..10_000).map(call).collect()
    }

    /// A pseudorandom number that depends only on `at`, by `SplitMix64`.
    fn random(at: u64) -> u64 {
        let x = at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// The calls that start in each window.
    fn in_windows(calls: &[Call]) -> [Vec<Call>; 5] {
        OPENED.map(|opened| {
            let starts_in = |(start, _): &&Call| (opened..opened + SECOND).contains(start);
            calls.iter().filter(starts_in).copied().collect()
        })
    }

    /// Splits calls into two label sets, alternately.
    fn by_method<T>(calls: &[Call], of: impl Fn(&[Call]) -> T) -> BTreeMap<Labels, T> {
        let of_method = |(method, rest): (&str, u64)| {
            let calls = calls.iter().filter(|(start, _)| start / 1_000 % 2 == rest).copied();
            let labels = Labels::from([("method".to_owned(), method.to_owned())]);
            (labels, of(&calls.collect::<Vec<_>>()))
        };
        [("Echo", 0), ("Lookup", 1)].into_iter().map(of_method).collect()
    }

    fn measured(calls: &[Call]) -> Durations {
        let mut all = Durations::default();
        for (_, us) in calls {
            *all.calls.entry(*us).or_default() += 1;
            all.sum += us;
        }
        all
    }

    fn histogram(calls: &[Call]) -> Histogram {
        let all = measured(calls);
        let bounds =
            iter::successors(Some(10.0_f64), |bound| Some(*bound * 1.21)).take_while(|bound| *bound < 1e7);
        let buckets = bounds.chain([f64::INFINITY]).map(|bound| (bound, all.up_to(bound))).collect();
        Histogram { buckets, sum: float(all.sum), count: float(all.count()) }
    }

    /// Compares a sample with all calls, divided into `seconds` periods of a second. The last one also has all calls
    /// that end later.
    fn check_sample(calls: &[Call], seconds: u64, sample: &[Call]) -> Result<f64> {
        let state = |second: u64| {
            let by_then = |(start, us): &&Call| second == seconds || start + us < second * SECOND;
            by_method(&calls.iter().filter(by_then).copied().collect::<Vec<_>>(), measured)
        };
        let population = Population::of_states((1..=seconds).map(state).collect()).unwrap();
        population.check_sample(&by_method(sample, histogram))
    }

    #[test]
    fn a_fair_sample_passes() {
        let share = check_sample(&load(), 10, &in_windows(&load()).concat()).unwrap();
        assert!((share - 0.5).abs() < 1e-6, "{share}");
        assert!(check_sample(&load(), 10, &[]).is_err());
    }

    #[test]
    fn a_sample_without_calls_that_outlast_their_window_fails() {
        let mut windows = in_windows(&load());
        for (calls, opened) in windows.iter_mut().zip(OPENED) {
            calls.retain(|(start, us)| start + us < opened + SECOND);
        }
        let error = check_sample(&load(), 10, &windows.concat()).unwrap_err();
        assert!(format!("{error:#}").contains("the mean is"), "{error:#}");
    }

    #[test]
    fn a_sample_of_the_first_calls_of_each_window_to_end_fails() {
        let mut windows = in_windows(&load());
        for calls in &mut windows {
            calls.sort_by_key(|(start, us)| start + us);
            calls.truncate(900);
        }
        let sample = windows.concat();
        assert!(check_sample(&load(), 10, &sample).is_err());
        // Without an allowance for chance, one of its quantiles fails.
        let error = measured(&load()).check(&histogram(&sample), 0.99).unwrap_err();
        assert!(error.to_string().contains("quantile 0.99"), "{error:#}");
    }

    #[test]
    fn a_sample_with_too_few_calls_of_a_label_set_fails() {
        let mut sample = in_windows(&load()).concat();
        sample.retain(|(start, _)| !(start / 1_000).is_multiple_of(10));
        let error = check_sample(&load(), 10, &sample).unwrap_err();
        assert!(format!("{error:#}").contains("of the timed calls"), "{error:#}");
    }

    /// Between two windows, all calls are a hundred times as slow for a second. The periods reveal it.
    #[test]
    fn what_happens_to_all_calls_of_a_second_is_chance() {
        let mut calls = load();
        for (start, us) in &mut calls {
            *us = (*us).min(350) + if *start / SECOND == 4 { 20_000 } else { 0 };
        }
        let sample = in_windows(&calls).concat();
        check_sample(&calls, 10, &sample).unwrap();
        assert!(check_sample(&calls, 1, &sample).is_err());
    }

    #[test]
    fn chance_is_less_with_more_calls_and_more_where_pieces_differ() {
        let pieces = |sums: [f64; 2]| sums.map(|sum| Piece { calls: 200.0, sum });
        let close_to = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-6, "{found}");
        // 100 of 400 calls, half of which count: √(0.25 / 100 · 0.75).
        let alike = by_chance(&pieces([100.0, 100.0]), 0.25, 100.0);
        close_to(alike, STANDARD_ERRORS * 0.001_875_f64.sqrt());
        close_to(by_chance(&pieces([100.0, 100.0]), 0.25, 400.0), 0.0);
        // All calls of one period count, and none of the other: 200 (0.5² + 0.5²) is 400 times the variance.
        close_to(by_chance(&pieces([200.0, 0.0]), 0.25, 100.0), alike * 20.0);
    }

    #[test]
    fn a_process_forgets_no_call() {
        let state = |calls: &[Call]| by_method(calls, measured);
        assert!(Population::of_states(vec![state(&[(0, 7)]), state(&[(0, 7), (0, 7)])]).is_some());
        assert!(Population::of_states(vec![state(&[(0, 7)]), state(&[(0, 8)])]).is_none());
    }
}
