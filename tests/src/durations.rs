//! Compares the latencies that the agent shows with those that the target measured itself.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::scrape::{Histogram, Labels, Scrape};

/// Durations may differ by the probes' own time and by the width of a bucket: five percent,
const CLOSE_SHARE: f64 = 0.05;
/// or so many microseconds.
const CLOSE_US: f64 = 20.0;
/// So many of all calls may change places: a thread can lose its processor between the probe and the target's own clock,
/// most likely right behind a probe. On a server whose calls take 10 µs, such calls are the slowest one percent.
const CHANGE_PLACES: f64 = 0.005;
/// The widest bucket, as a share of its lower bound, in which a quantile can be compared.
const WIDEST_SHARE: f64 = 0.3;

/// How long the calls of one label set took, as the target measured it in whole microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How many calls took so long. From 1024 on, durations that differ by less than 0.8 % share one number.
    pub calls: BTreeMap<u64, u64>,
    /// The sum of all durations, exact.
    pub sum: u64,
}

impl Durations {
    /// What a target answered to `durations`, summed over all labels but these and `side`.
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

    /// The duration at or below which the share `q` of the calls lies, in microseconds; none without calls.
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
    /// The histogram says only in which bucket its quantile lies: the target's must be that close to the bucket, which
    /// must not be wider than the `fine` preset's are. Take label sets with many calls: of few, one is a quantile.
    pub fn check(&self, agent: &Histogram, q: f64) -> Result<()> {
        let own = |q: f64| self.quantile(q.clamp(0.0, 1.0));
        let (Some(low), Some(high)) = (own(q - CHANGE_PLACES), own(q + CHANGE_PLACES)) else {
            bail!("no durations here of the agent's {} calls", agent.count);
        };
        let Some((above, upto)) = agent.quantile_bounds(q) else {
            bail!("no durations at the agent of {} calls", self.count());
        };
        if upto - above.max(0.0) > (above * WIDEST_SHARE).max(CLOSE_US) {
            bail!("the agent's bucket from {above} to {upto} µs is too wide to say anything");
        }
        let slack = |us: f64| (us * CLOSE_SHARE).max(CLOSE_US);
        if high + slack(high) < above || low - slack(low) > upto {
            bail!(
                "quantile {q} of {} calls is {low} to {high} µs here, {above} to {upto} µs at the agent",
                self.count()
            );
        }
        Ok(())
    }
}

/// The agent's latencies by label set, with `side` among the labels and without `target`.
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
}
