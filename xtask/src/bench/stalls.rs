//! How long calls are held up while the agent attaches and detaches.

use std::{
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, ensure};
use monitor_tests::agent::{self, Agent};
use serde_json::json;

use super::{
    machine::{Cores, pinned},
    report::{Spread, float, row, table, verdict},
    section::Section,
    stage::{Load, Pair, Timed},
};

/// Loads without the agent, and in a cycle in which the agent attaches and detaches or nothing happens.
const BARE: Load = Load { seconds: 3.0, concurrency: 1 };
const CYCLE: Load = Load { seconds: 1.5, concurrency: 1 };
/// When the agent starts after the beginning of a cycle, and how long it stays.
const ATTACH_AFTER: Duration = Duration::from_millis(300);
const STAY: Duration = Duration::from_millis(400);
/// Number of longest calls that are kept with their time: the longest of each window are among them.
const KEPT: u32 = 1000;
/// How much longer than a bare server's 99.9th percentile a call may be held up, in milliseconds.
const AIM_MS: f64 = 5.0;
/// Minimum number of cycles of each kind: with fewer, rare events appear by chance only.
const CYCLES_MIN: u32 = 20;
/// Two counts of windows differ if their difference exceeds this many standard deviations.
const DEVIATIONS: f64 = 2.0;

/// The longest call of each window of a cycle, in milliseconds.
#[derive(Clone, Copy)]
struct Longest {
    attaching: f64,
    detaching: f64,
}

/// A cycle with the agent, followed by one with equally long windows in which nothing happens.
struct Cycle {
    agent: Longest,
    nothing: Longest,
}

/// Selects one of the two.
type Of = fn(&Longest) -> f64;

/// Begin and end in nanoseconds since 1970.
type Window = (u64, u64);

/// Measures this many cycles. Server and client share one processor and the agent has the other, so calls are not
/// held up by the agent competing with the client.
pub(super) fn measure(cores: Cores, cycles: u32) -> Result<Section> {
    let mut pair = Pair::together(cores.server)?;
    let mut bare = Vec::new();
    for _ in 0..3 {
        pair.send(BARE, 0)?;
        bare.push(float(pair.answer(BARE)?.p999_us) / 1000.0);
    }
    let bare = Spread::of(bare);
    let cycles = (0..cycles.max(CYCLES_MIN)).map(|_| cycle(&mut pair, cores.others));
    Ok(section(bare, &cycles.collect::<Result<Vec<_>>>()?))
}

fn cycle(pair: &mut Pair, core: usize) -> Result<Cycle> {
    let mut lengths = [Duration::ZERO; 2];
    let agent = longest(pair, |pair| {
        let (agent, attaching) = window(|| {
            let mut command = pinned(core, &agent::executable()?);
            command.args(["run", "--web.listen-address", "127.0.0.1:0", "--pid"]);
            Agent::start_command(command.arg(pair.server.pid().to_string()))?.wait_ready()
        })?;
        thread::sleep(STAY);
        let (_, detaching) = window(|| agent.terminate())?;
        lengths = [attaching, detaching].map(|(from, to)| Duration::from_nanos(to - from));
        Ok([attaching, detaching])
    })?;
    let nothing = longest(pair, |_| {
        let nothing = |length| {
            move || {
                thread::sleep(length);
                Ok(())
            }
        };
        let ((), attaching) = window(nothing(lengths[0]))?;
        thread::sleep(STAY);
        let ((), detaching) = window(nothing(lengths[1]))?;
        Ok([attaching, detaching])
    })?;
    Ok(Cycle { agent, nothing })
}

/// Runs a closure and returns its result and its window.
fn window<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Window)> {
    let from = now_ns();
    let result = work()?;
    Ok((result, (from, now_ns())))
}

/// Returns the longest calls that overlap the two windows.
fn longest(pair: &mut Pair, happen: impl FnOnce(&Pair) -> Result<[Window; 2]>) -> Result<Longest> {
    pair.send(CYCLE, KEPT)?;
    thread::sleep(ATTACH_AFTER);
    let windows = happen(pair)?;
    let calls = pair.answer(CYCLE)?.longest;
    let last = calls.iter().map(|call| call.begin_ns).max();
    ensure!(last.is_some_and(|last| last > windows[1].1), "the calls were over before the agent was gone");
    let [attaching, detaching] = windows.map(|(from, to)| {
        let overlaps = |call: &&Timed| call.begin_ns < to && call.begin_ns + call.us * 1000 > from;
        let longest = calls.iter().filter(overlaps).map(|call| call.us).max();
        float(longest.unwrap_or_default()) / 1000.0
    });
    Ok(Longest { attaching, detaching })
}

fn section(bare: Spread, cycles: &[Cycle]) -> Section {
    let limit = bare.median + AIM_MS;
    let mut rows = vec![row([
        "the longest call, ms",
        "median (min to max)",
        "windows beyond the limit",
        "worst at most the limit",
        "more often beyond it than with nothing",
    ])];
    let mut results = serde_json::Map::new();
    let kinds: [(&str, Of); 2] =
        [("attaches", |longest| longest.attaching), ("detaches", |longest| longest.detaching)];
    for (what, of) in kinds {
        let agent = cycles.iter().map(|cycle| of(&cycle.agent)).collect::<Vec<_>>();
        let nothing = cycles.iter().map(|cycle| of(&cycle.nothing)).collect::<Vec<_>>();
        let [beyond, beyond_with_nothing] = [&agent, &nothing].map(|all| beyond(all, limit));
        let (agent, nothing) = (Spread::of(agent), Spread::of(nothing));
        let of_all = |beyond: u32| format!("{beyond} of {}", cycles.len());
        rows.push(vec![
            format!("while the agent {what}"),
            agent.show(2),
            of_all(beyond),
            verdict(agent.max, limit).to_owned(),
            if is_more(beyond, beyond_with_nothing) { "yes: not met" } else { "no: met" }.to_owned(),
        ]);
        rows.push(vec![
            "windows as long in which nothing happens".to_owned(),
            nothing.show(2),
            of_all(beyond_with_nothing),
        ]);
        let numbers = json!({
            "agent_ms": agent, "nothing_ms": nothing, "beyond": beyond, "beyond_with_nothing": beyond_with_nothing,
        });
        results.insert(what.to_owned(), numbers);
    }
    results.insert("bare_p999_ms".to_owned(), json!(bare));
    results.insert("limit_ms".to_owned(), json!(limit));
    let text = format!(
        "{} times attached and detached under full load, each followed by windows as long in which nothing happens. The \
         limit is {limit:.1} ms: {AIM_MS} ms beyond the 99.9th percentile of all calls with nothing attached, {} ms.\n\n{}",
        cycles.len(),
        bare.show(2),
        table(&rows)
    );
    Section { part: "stalls", blocks: vec![("stalls", text)], results: results.into(), ..Section::default() }
}

fn beyond(longest: &[f64], limit: f64) -> u32 {
    longest.iter().map(|longest| u32::from(*longest > limit)).sum()
}

/// Whether one count of windows exceeds another by more than chance: the standard deviation of the difference of two
/// counts is the square root of their sum.
fn is_more(one: u32, other: u32) -> bool {
    f64::from(one) - f64::from(other) > DEVIATIONS * f64::from(one + other).sqrt()
}

/// Returns the time in nanoseconds since 1970.
fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_compared_with_those_in_which_nothing_happens() {
        let of = |attaching, detaching| Longest { attaching, detaching };
        let cycle = |attaching, detaching| Cycle { agent: of(attaching, detaching), nothing: of(2.0, 7.0) };
        let cycles = [cycle(2.0, 3.0), cycle(5.9, 6.1), cycle(5.9, 1.0), cycle(1.0, 1.0)];
        let (_, text) = section(Spread::of([1.0]), &cycles).blocks.remove(0);
        let rows = text.lines().filter(|line| line.starts_with("| while"));
        let cells = rows.map(|line| line.split('|').map(str::trim).skip(2).collect::<Vec<_>>().join("|"));
        let expected =
            ["3.95 (1.00 to 5.90)|0 of 4|met|no: met|", "2.00 (1.00 to 6.10)|1 of 4|not met|no: met|"];
        assert_eq!(cells.collect::<Vec<_>>(), expected, "{text}");
    }

    #[test]
    fn a_few_more_may_be_chance() {
        assert!(!is_more(0, 0) && !is_more(2, 0) && !is_more(4, 0) && !is_more(3, 5));
        assert!(is_more(5, 0) && is_more(12, 3));
    }
}
