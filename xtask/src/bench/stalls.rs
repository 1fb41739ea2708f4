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

/// Calls while nothing happens, and calls in which the agent comes and goes.
const BARE: Load = Load { seconds: 3.0, concurrency: 1 };
const CYCLE: Load = Load { seconds: 2.0, concurrency: 1 };
/// When the agent is started and ended, from the begin of a cycle.
const ATTACH_AFTER: Duration = Duration::from_millis(300);
const STAY: Duration = Duration::from_millis(400);
/// Calls that are kept with their time: the longest of each window are among them.
const KEPT: u32 = 1000;
/// How much longer than the 99.9th percentile of a bare server a call may be held up, in milliseconds.
const AIM_MS: f64 = 5.0;

/// The longest calls of a cycle, in milliseconds.
struct Cycle {
    attaching: f64,
    detaching: f64,
    /// While neither happens.
    between: f64,
}

/// Lets the agent come and go so often. Server and client share a processor, the agent has the other: what holds a call up
/// is not that the agent takes the client's time.
pub(super) fn measure(cores: Cores, cycles: u32) -> Result<Section> {
    let mut pair = Pair::together(cores.server)?;
    let mut bare = Vec::new();
    for _ in 0..cycles.clamp(1, 3) {
        pair.send(BARE, 0)?;
        bare.push(float(pair.answer(BARE)?.p999_us) / 1000.0);
    }
    let bare = Spread::of(bare);
    let cycles = (0..cycles).map(|_| cycle(&mut pair, cores.others)).collect::<Result<Vec<_>>>()?;
    Ok(section(bare, &cycles))
}

fn cycle(pair: &mut Pair, core: usize) -> Result<Cycle> {
    pair.send(CYCLE, KEPT)?;
    thread::sleep(ATTACH_AFTER);
    let begin = now_ns();
    let mut command = pinned(core, &agent::executable()?);
    command.args(["run", "--web.listen-address", "127.0.0.1:0", "--pid"]).arg(pair.server.pid().to_string());
    let agent = Agent::start_command(&mut command)?.wait_ready()?;
    let attached = now_ns();
    thread::sleep(STAY);
    let leaving = now_ns();
    agent.terminate()?;
    let left = now_ns();
    let calls = pair.answer(CYCLE)?.longest;
    ensure!(!calls.is_empty(), "the client has kept no calls");
    let longest = |is_in: &dyn Fn(&Timed) -> bool| {
        let longest = calls.iter().filter(|call| is_in(call)).map(|call| call.us).max();
        float(longest.unwrap_or_default()) / 1000.0
    };
    let overlaps = |call: &Timed, from, to| call.begin_ns < to && call.begin_ns + call.us * 1000 > from;
    Ok(Cycle {
        attaching: longest(&|call| overlaps(call, begin, attached)),
        detaching: longest(&|call| overlaps(call, leaving, left)),
        between: longest(&|call| !overlaps(call, begin, attached) && !overlaps(call, leaving, left)),
    })
}

fn section(bare: Spread, cycles: &[Cycle]) -> Section {
    let of = |number: fn(&Cycle) -> f64| Spread::of(cycles.iter().map(number));
    let (attaching, detaching, between) =
        (of(|cycle| cycle.attaching), of(|cycle| cycle.detaching), of(|cycle| cycle.between));
    let limit = bare.median + AIM_MS;
    let aimed = |spread: Spread| format!("≤ {limit:.1} ms: {}", verdict(spread.max, limit));
    let text = table(&[
        row(["the longest call, ms", "median (min to max)", "aim, for the worst"]),
        vec!["while the agent attaches".to_owned(), attaching.show(2), aimed(attaching)],
        vec!["while it detaches".to_owned(), detaching.show(2), aimed(detaching)],
        vec!["in the rest of the same time".to_owned(), between.show(2), String::new()],
        vec!["99.9th percentile of all calls, nothing attached".to_owned(), bare.show(2), String::new()],
    ]);
    let count = cycles.len();
    Section {
        part: "stalls",
        blocks: vec![("stalls", format!("{count} times attached and detached under full load.\n\n{text}"))],
        results: json!({
            "bare_p999_ms": bare,
            "attaching_ms": attaching,
            "detaching_ms": detaching,
            "between_ms": between,
            "limit_ms": limit,
        }),
        ..Section::default()
    }
}

/// Nanoseconds since 1970.
fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_is_compared_with_the_aim() {
        let bare = Spread::of([1.0]);
        let cycle = |attaching, detaching| Cycle { attaching, detaching, between: 1.5 };
        let (_, text) = section(bare, &[cycle(2.0, 3.0), cycle(5.9, 6.1)]).blocks.remove(0);
        assert!(text.contains("| 3.95 (2.00 to 5.90) | ≤ 6.0 ms: met "), "{text}");
        assert!(text.contains("| 4.55 (3.00 to 6.10) | ≤ 6.0 ms: not met "), "{text}");
    }
}
