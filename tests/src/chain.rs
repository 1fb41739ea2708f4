//! A client that calls a relay, which calls a server: every role, from one executable.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    durations::{self, CALLS_FOR_DURATIONS, Durations},
    process::Process,
    scrape::{Labels, Scrape, whole},
    tally::Tally,
    targets::{Flavour, Program},
};

/// The number of calls below which a label set's 99th percentile is not compared: one call that loses its processor at
/// a probe would shift it.
const CALLS_FOR_P99: u64 = 3_000;

/// The three processes. They are killed when dropped.
pub struct Chain {
    /// Calls the relay.
    pub client: Process,
    /// Is called by the client, and forwards `Relay` to the server.
    pub relay: Process,
    /// Is called by the relay.
    pub server: Process,
}

impl Chain {
    /// Starts the processes. `callers` are flags for the client and the relay, `client` for the client alone.
    pub fn start(flavour: Flavour, callers: &[&str], client: &[&str]) -> Result<Self> {
        let start = |args: &[&[&str]]| Process::start(Program::Kitex, flavour, &args.concat());
        let server = start(&[&["server"]])?;
        let relay = ["relay", "--connect", server.addr()?, "--service", "gate", "--caller", "gate"];
        let relay = start(&[&relay, callers])?;
        let of_client = ["client", "--connect", relay.addr()?, "--callee", "gate"];
        let client = start(&[&of_client, callers, client])?;
        Ok(Self { client, relay, server })
    }

    /// The pids of client, relay and server.
    #[must_use]
    pub fn pids(&self) -> [u32; 3] {
        [self.client.pid(), self.relay.pid(), self.server.pid()]
    }

    /// The processes: client, relay, server.
    pub fn each(&mut self) -> [&mut Process; 3] {
        [&mut self.client, &mut self.relay, &mut self.server]
    }

    /// Waits until no call is in flight in any process, including oneway calls.
    pub fn settle(&mut self) -> Result<()> {
        for process in self.each() {
            process.command("settle")?;
        }
        Ok(())
    }

    /// Opens connections and makes every kind of call, then resets all counts.
    pub fn warm_up(&mut self) -> Result<()> {
        self.client.command("load 500 8 1")?;
        self.settle()?;
        for process in self.each() {
            process.command("reset")?;
        }
        Ok(())
    }

    /// Makes calls of the mixed load and waits until all of them have finished in every process.
    pub fn load(&mut self, calls: u64, concurrency: u32, seed: u64) -> Result<Value> {
        let answer = self.client.command(&format!("load {calls} {concurrency} {seed}"))?;
        ensure!(answer["calls"] == calls, "{calls} calls were wanted: {answer}");
        self.settle()?;
        Ok(answer)
    }

    /// Runs [`check_calls`] for each process of the chain. Returns their tallies in the order of [`Chain::pids`].
    pub fn check_calls(&mut self, scrape: &Scrape, labels: &[&str]) -> Result<[Tally; 3]> {
        let [client, relay, server] = self.each();
        Ok([
            check_calls(client, scrape, labels, true)?,
            check_calls(relay, scrape, labels, true)?,
            check_calls(server, scrape, labels, true)?,
        ])
    }

    /// Runs [`check_durations`] for each process of the chain.
    pub fn check_durations(&mut self, scrape: &Scrape, labels: &[&str]) -> Result<()> {
        self.each().into_iter().try_for_each(|process| check_durations(process, scrape, labels, true))
    }
}

/// Fails unless the agent's counters equal the process's own for every label set, each histogram has as many calls as
/// its counter, and the agent's account shows nothing lost. The agent must have been attached before the first call,
/// and the process must be settled.
///
/// `several`: the scrape covers several targets. Returns the tally.
pub fn check_calls(process: &mut Process, scrape: &Scrape, labels: &[&str], several: bool) -> Result<Tally> {
    check_counts(process.pid(), &process.command("counts")?, scrape, labels, several)
}

/// Does what [`check_calls`] does, with a process's answer to `counts`.
pub fn check_counts(
    pid: u32,
    counts: &Value,
    scrape: &Scrape,
    labels: &[&str],
    several: bool,
) -> Result<Tally> {
    let target = several.then_some(pid);
    let own = Tally::of_target(counts, labels)?;
    own.check(&Tally::of_agent(scrape, labels, target)?).with_context(|| format!("pid {pid}"))?;
    let timed = durations::of_agent(scrape, target);
    for (labels, calls) in own.iter() {
        let count = timed.get(labels).map_or(0, |histogram| whole(histogram.count));
        ensure!(count == calls, "pid {pid}: the histogram of {labels:?} has {count} calls of {calls}");
    }
    ensure!(timed.len() == own.iter().count(), "pid {pid}: histograms without calls: {:?}", timed.keys());
    Account::of(scrape, pid).check_complete(own.total())?;
    check_closed(scrape, pid, [0, 0])?;
    Ok(own)
}

/// Fails if a call of a Kitex client ended otherwise than it asked for, since the start or the last `reset`. If an
/// agent breaks a call, agent and target both see an error, so comparing them would not show it.
pub fn check_results(client: &mut Process) -> Result<()> {
    let counts = client.command("counts")?;
    let unexpected = counts["unexpected"].as_u64().with_context(|| format!("no `unexpected` in {counts}"))?;
    ensure!(unexpected == 0, "{unexpected} calls came to what they did not ask for: {}", counts["loop"]);
    Ok(())
}

/// Fails unless the agent's durations are close to the process's own: the mean, the median and the 99th percentile of
/// each label set that has enough calls.
pub fn check_durations(process: &mut Process, scrape: &Scrape, labels: &[&str], several: bool) -> Result<()> {
    let pid = process.pid();
    let agents = durations::of_agent(scrape, several.then_some(pid));
    let own = Durations::of_target(&process.command("durations")?, labels)?;
    let mut compared = 0;
    for (labels, own) in &own {
        let about = || format!("pid {pid}: {labels:?}");
        let agents = agents.get(labels).with_context(about)?;
        if own.count() >= CALLS_FOR_DURATIONS {
            own.check_mean(agents, 0.0).with_context(about)?;
            own.check(agents, 0.5).with_context(about)?;
            compared += 1;
        }
        if own.count() >= CALLS_FOR_P99 {
            own.check(agents, 0.99).with_context(about)?;
        }
    }
    ensure!(compared > 0, "pid {pid}: no label set has {CALLS_FOR_DURATIONS} calls");
    Ok(())
}

/// The agent's own account of its work on one target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Starts seen.
    pub starts: u64,
    /// Finishes whose duration arrived.
    pub timed: u64,
    /// Finishes whose start was not seen.
    pub unpaired: u64,
    /// Finishes timed from the start that the call itself has recorded.
    pub recorded: u64,
    /// Finishes whose start was not sampled.
    pub sampled_out: u64,
    /// Finishes whose duration was lost.
    pub lost: u64,
    /// Calls that have started but not finished.
    pub in_flight: u64,
    /// Counters that must be zero if nothing went wrong, by name and labels.
    pub faults: BTreeMap<String, u64>,
}

impl Account {
    /// Reads the account of a target from a scrape.
    #[must_use]
    pub fn of(scrape: &Scrape, pid: u32) -> Self {
        let pid = pid.to_string();
        let target = [("target", pid.as_str())];
        let sum = |name: &str| whole(scrape.sum(name, &target));
        let finishes = |outcome| {
            whole(scrape.sum("monitor_finishes_total", &[("target", pid.as_str()), ("outcome", outcome)]))
        };
        let mut faults = BTreeMap::new();
        for name in [
            "monitor_events_lost_total",
            "monitor_unpaired_starts_total",
            "monitor_label_sets_refused_total",
            "monitor_labels_unreadable_total",
        ] {
            let of_target = |labels: &Labels| labels.get("target") == Some(&pid);
            for sample in scrape.samples(name).filter(|sample| of_target(&sample.labels)) {
                faults.insert(format!("{name}{:?}", sample.labels), whole(sample.value));
            }
        }
        Self {
            starts: sum("monitor_starts_total"),
            timed: finishes("timed"),
            unpaired: finishes("unpaired"),
            recorded: finishes("recorded"),
            sampled_out: finishes("sampled_out"),
            lost: finishes("lost"),
            in_flight: sum("monitor_calls_in_flight"),
            faults,
        }
    }

    /// The faults that are not zero.
    #[must_use]
    pub fn found_faults(&self) -> Vec<(&String, &u64)> {
        self.faults.iter().filter(|(_, times)| **times > 0).collect()
    }

    /// Fails unless exactly `calls` calls were seen, each from its start to its end.
    pub fn check_complete(&self, calls: u64) -> Result<()> {
        let complete = Self { starts: calls, timed: calls, ..Self::default() };
        ensure!(Self { faults: BTreeMap::new(), ..self.clone() } == complete, "of {calls} calls: {self:?}");
        ensure!(self.faults.len() >= 8, "the agent does not account for itself: {self:?}");
        ensure!(self.found_faults().is_empty(), "of {calls} calls: {:?}", self.found_faults());
        Ok(())
    }
}

/// Fails unless the agent's account of a target closes: every start has exactly one outcome, and so has every finished
/// call of either side. With a `slack` of 0 the sums must be equal. Under load they may differ by up to `slack`,
/// because calls start and finish between two readings. All numbers must be present.
pub fn check_closed(scrape: &Scrape, pid: u32, slack: [u64; 2]) -> Result<()> {
    let pid = pid.to_string();
    let sum = |name: &str, labels: &[(&str, &str)]| {
        let labels: Vec<_> = [("target", pid.as_str())].into_iter().chain(labels.iter().copied()).collect();
        // A metric that is missing would add up to 0, and an empty account always closes.
        ensure!(scrape.has(name, &labels), "no {name} {labels:?}");
        Ok(whole(scrape.sum(name, &labels)))
    };
    let unpaired = "monitor_unpaired_starts_total";
    let outcome = |outcome| sum("monitor_finishes_total", &[("outcome", outcome)]);
    let became =
        outcome("timed")? + outcome("lost")? + sum("monitor_calls_in_flight", &[])? + sum(unpaired, &[])?
            - sum(unpaired, &[("reason", "unknown_type")])?;
    let starts = sum("monitor_starts_total", &[])?;
    ensure!(starts.abs_diff(became) <= slack[0], "{starts} starts became {became} things");
    for side in ["client", "server"] {
        let calls = |outcome| sum("monitor_calls_total", &[("side", side), ("outcome", outcome)]);
        let parts = [
            calls("timed")?,
            calls("unpaired")?,
            calls("sampled_out")?,
            calls("lost")?,
            sum("monitor_calls_pending", &[("side", side)])?,
        ];
        let finished = calls("finished")?;
        ensure!(
            finished.abs_diff(parts.iter().sum()) <= slack[1],
            "{finished} calls of the {side} became {parts:?} (timed, unpaired, sampled out, lost, pending)"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scrape::{Family, Kind, Sample};

    /// What an agent shows of target 7, which has made three calls and is making a fourth, if the agent has seen
    /// `starts` starts.
    fn shown(starts: f64) -> Scrape {
        let mut scrape = Scrape::default();
        let mut add = |name: &str, labels: &[(&str, &str)], value: f64| {
            let labels = [("target", "7")].into_iter().chain(labels.iter().copied());
            let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            let none = Family { help: String::new(), kind: Kind::Untyped, samples: Vec::new() };
            let family = scrape.families.entry(name.to_owned()).or_insert(none);
            family.samples.push(Sample { name: name.to_owned(), labels, value });
        };
        add("monitor_starts_total", &[], starts);
        add("monitor_finishes_total", &[("outcome", "timed")], 3.0);
        add("monitor_finishes_total", &[("outcome", "lost")], 0.0);
        add("monitor_calls_in_flight", &[], 1.0);
        add("monitor_unpaired_starts_total", &[("reason", "unknown_type")], 0.0);
        for (side, calls) in [("client", 3.0), ("server", 0.0)] {
            for (outcome, count) in [
                ("finished", calls),
                ("timed", calls),
                ("unpaired", 0.0),
                ("sampled_out", 0.0),
                ("lost", 0.0),
            ] {
                add("monitor_calls_total", &[("side", side), ("outcome", outcome)], count);
            }
            add("monitor_calls_pending", &[("side", side)], 0.0);
        }
        scrape
    }

    #[test]
    fn an_account_closes_if_each_start_became_something() {
        check_closed(&shown(4.0), 7, [0, 0]).unwrap();
        check_closed(&shown(5.0), 7, [1, 0]).unwrap();
        let error = check_closed(&shown(5.0), 7, [0, 0]).unwrap_err().to_string();
        assert_eq!(error, "5 starts became 4 things");
    }

    #[test]
    fn an_account_of_nothing_does_not_close() {
        let mut without = shown(4.0);
        without.families.remove("monitor_calls_total");
        for (scrape, pid) in [(Scrape::default(), 7), (shown(4.0), 8), (without, 7)] {
            let error = check_closed(&scrape, pid, [100, 100]).unwrap_err().to_string();
            assert!(error.starts_with("no monitor_"), "{error}");
        }
    }
}
