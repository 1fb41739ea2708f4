//! Compares the agent's counts with the target's own, by label set.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::scrape::{Labels, Scrape, whole};

/// The labels that the agent shows by default.
pub const DEFAULT_LABELS: [&str; 5] = ["type", "caller", "callee", "method", "status"];
/// The labels of the in-process extension.
pub const IN_PROCESS_LABELS: [&str; 5] = ["caller", "callee", "method", "status", "retry"];

const SIDES: [&str; 2] = ["client", "server"];

/// Finished calls by label set. The label `side` is `client` or `server`. Label sets without calls are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<Labels, u64>);

impl Tally {
    /// Parses a target's answer to `counts`, summed over all labels except these.
    pub fn of_target(counts: &Value, labels: &[&str]) -> Result<Self> {
        let mut tally = Self::default();
        for row in counts["counts"].as_array().context("no counts in the target's answer")? {
            let mut of = Labels::new();
            for name in labels.iter().chain(&["side"]) {
                let value = row[name].as_str().with_context(|| format!("no {name} in {row}"))?;
                of.insert((*name).to_owned(), value.to_owned());
            }
            tally.add(of, row["count"].as_u64().with_context(|| format!("no count in {row}"))?);
        }
        Ok(tally)
    }

    /// Reads the agent's counts from a scrape, for one target if the agent watches several. Series must have exactly
    /// these labels.
    pub fn of_agent(scrape: &Scrape, labels: &[&str], target: Option<u32>) -> Result<Self> {
        let target = target.map(|pid| pid.to_string());
        let expected =
            labels.iter().copied().chain(target.as_ref().map(|_| "target")).collect::<BTreeSet<_>>();
        let mut tally = Self::default();
        for side in SIDES {
            for sample in scrape.samples(&format!("kitex_{side}_throughput")) {
                if sample.labels.keys().map(String::as_str).collect::<BTreeSet<_>>() != expected {
                    bail!("{} has labels {:?}, not {expected:?}", sample.name, sample.labels);
                }
                if sample.labels.get("target") != target.as_ref() {
                    continue;
                }
                let mut of = sample.labels.clone();
                of.remove("target");
                of.insert("side".to_owned(), side.to_owned());
                tally.add(of, whole(sample.value));
            }
        }
        Ok(tally)
    }

    fn add(&mut self, labels: Labels, calls: u64) {
        if calls > 0 {
            *self.0.entry(labels).or_default() += calls;
        }
    }

    /// Returns the calls added since an earlier tally of the same side.
    pub fn since(&self, earlier: &Self) -> Result<Self> {
        let mut tally = Self::default();
        if let Some(gone) = earlier.0.keys().find(|labels| !self.0.contains_key(*labels)) {
            bail!("{gone:?} was counted before and is gone");
        }
        for (labels, calls) in &self.0 {
            let before = earlier.get(labels);
            let more = calls.checked_sub(before);
            tally.add(
                labels.clone(),
                more.with_context(|| format!("{labels:?} fell from {before} to {calls}"))?,
            );
        }
        Ok(tally)
    }

    /// Returns the calls of one label set, `side` included.
    #[must_use]
    pub fn get(&self, labels: &Labels) -> u64 {
        self.0.get(labels).copied().unwrap_or(0)
    }

    /// Returns all label sets with their calls.
    pub fn iter(&self) -> impl Iterator<Item = (&Labels, u64)> {
        self.0.iter().map(|(labels, calls)| (labels, *calls))
    }

    /// Returns the calls of all label sets that have these labels.
    #[must_use]
    pub fn sum(&self, wanted: &[(&str, &str)]) -> u64 {
        let has =
            |labels: &Labels| wanted.iter().all(|(n, v)| labels.get(*n).is_some_and(|found| found == v));
        self.0.iter().filter(|(labels, _)| has(labels)).map(|(_, calls)| calls).sum()
    }

    /// Returns the number of all calls.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.sum(&[])
    }

    /// Compares this tally with the agent's, row by row.
    #[must_use]
    pub fn compared_with(&self, agent: &Self) -> Comparison {
        let all = self.0.keys().chain(agent.0.keys()).collect::<BTreeSet<_>>();
        let rows = all.into_iter().map(|labels| Row {
            labels: labels.clone(),
            target: self.get(labels),
            agent: agent.get(labels),
        });
        Comparison { rows: rows.collect() }
    }

    /// Fails with a readable table unless the agent counted exactly these calls, and at least one.
    pub fn check(&self, agent: &Self) -> Result<()> {
        let comparison = self.compared_with(agent);
        if !comparison.is_equal() {
            bail!("the agent and the target counted differently:\n{comparison}");
        }
        if comparison.rows.is_empty() {
            bail!("neither the agent nor the target counted anything");
        }
        Ok(())
    }
}

/// One label set in a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The labels, `side` included.
    pub labels: Labels,
    /// The target's own count.
    pub target: u64,
    /// The agent's count.
    pub agent: u64,
}

/// Two tallies side by side. The printed table marks rows that differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The label sets of both tallies.
    pub rows: Vec<Row>,
}

impl Comparison {
    /// Whether both counts are equal in every row.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.rows.iter().all(|row| row.target == row.agent)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |row: &Row| {
            let side = row.labels.get("side").map_or("", String::as_str);
            let others = row.labels.iter().filter(|(name, _)| *name != "side");
            others.fold(side.to_owned(), |text, (name, value)| format!("{text} {name}={value}"))
        };
        let width = self.rows.iter().map(|row| text(row).chars().count()).max().unwrap_or(0);
        writeln!(f, "{:width$} {:>12} {:>12}", "", "target", "agent")?;
        for row in &self.rows {
            write!(f, "{:width$} {:>12} {:>12}", text(row), row.target, row.agent)?;
            match i128::from(row.agent) - i128::from(row.target) {
                0 => writeln!(f)?,
                more => writeln!(f, "  {more:+} !")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn scrape(calls: u64) -> Scrape {
        let text = format!(
            "# HELP kitex_server_throughput H\n# TYPE kitex_server_throughput counter\n\
             kitex_server_throughput{{method=\"Echo\",status=\"succeed\"}} {calls}\n\
             kitex_server_throughput{{method=\"Echo\",status=\"error\"}} 0\n"
        );
        Scrape::parse(&text).unwrap()
    }

    fn target(calls: u64) -> Value {
        let row = |retry: &str, count: u64| json!({"side": "server", "method": "Echo", "status": "succeed", "retry": retry, "count": count});
        json!({"counts": [row("0", calls - 1), row("1", 1)]})
    }

    #[test]
    fn equal_and_not() {
        let labels = ["method", "status"];
        let agent = Tally::of_agent(&scrape(12), &labels, None).unwrap();
        Tally::of_target(&target(12), &labels).unwrap().check(&agent).unwrap();
        let error = Tally::of_target(&target(13), &labels).unwrap().check(&agent).unwrap_err().to_string();
        assert!(error.contains("server method=Echo status=succeed") && error.contains("-1 !"), "{error}");
        assert!(Tally::default().check(&Tally::default()).is_err());
    }

    #[test]
    fn labels_must_be_those_asked_for() {
        assert!(Tally::of_agent(&scrape(1), &["method"], None).is_err());
        assert!(Tally::of_agent(&scrape(1), &["method", "status"], Some(7)).is_err());
        assert!(Tally::of_target(&target(1), &["caller"]).is_err());
    }

    #[test]
    fn since_an_earlier_tally() {
        let tally = |calls| Tally::of_agent(&scrape(calls), &["method", "status"], None).unwrap();
        assert_eq!(tally(12).since(&tally(5)).unwrap().total(), 7);
        assert!(tally(5).since(&tally(12)).is_err());
        assert!(Tally::default().since(&tally(1)).is_err());
        assert_eq!(tally(5).since(&tally(5)).unwrap(), Tally::default());
    }
}
