//! Beyond its limits the agent never loses calls silently: throughput stays exact, and everything missing is counted by
//! reason.

use std::{iter, thread, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use monitor_tests::{
    agent::Agent,
    chain::check_closed,
    http::{self, Response},
    process::Process,
    scrape::{Scrape, whole},
    tally::{DEFAULT_LABELS, Tally},
    targets::{Flavour, Program},
};

/// Each call has a nested one, by a second client.
const CALLS: u64 = 3_000;
const FINISHES: u64 = 2 * CALLS;

/// Makes calls by a client while an agent with this flag watches it. Returns the scrape, the client's pid and its own
/// tally. If `stopped`, the agent gets no CPU time meanwhile.
fn load(flag: &str, value: &str, stopped: bool, callers: u32) -> Result<(Scrape, u32, Tally)> {
    let server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?, "--nested"])?;
    let agent = Agent::attach(&[client.pid()], &[flag, value])?;
    if stopped {
        signal(&agent, libc::SIGSTOP)?;
    }
    client.command(&format!("load {CALLS} {callers} 1"))?;
    client.command("settle")?;
    if stopped {
        signal(&agent, libc::SIGCONT)?;
    }
    let scrape = agent.scrape_settled()?;
    let own = Tally::of_target(&client.command("counts")?, &DEFAULT_LABELS)?;
    assert_eq!(own.total(), FINISHES);
    check_closed(&scrape, client.pid(), [0, 0])?;
    agent.terminate()?;
    Ok((scrape, client.pid(), own))
}

fn signal(agent: &Agent, signal: i32) -> Result<()> {
    let pid = libc::pid_t::try_from(agent.pid())?;
    // SAFETY: kill touches no memory of this process; the agent has not been waited for.
    ensure!(unsafe { libc::kill(pid, signal) } == 0, "kill: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Returns a metric of the agent's only target, selected by a label if one is given.
fn about(scrape: &Scrape, pid: u32, name: &str, label: &[(&str, &str)]) -> u64 {
    let pid = pid.to_string();
    let labels: Vec<_> = [("target", pid.as_str())].into_iter().chain(label.iter().copied()).collect();
    whole(scrape.value(name, &labels).unwrap_or_else(|| panic!("no {name} {labels:?}")))
}

/// The number of calls in the histograms.
fn timed(scrape: &Scrape) -> u64 {
    scrape.histograms("kitex_client_latency_us").values().map(|histogram| whole(histogram.count)).sum()
}

#[test]
fn past_the_limit_on_label_sets_names_become_other() -> Result<()> {
    let (scrape, pid, own) = load("--max-label-sets", "3", false, 8)?;
    let seen = Tally::of_agent(&scrape, &DEFAULT_LABELS, None)?;
    let other = [("caller", "other"), ("callee", "other"), ("method", "other")];
    let named = seen.iter().filter(|(labels, _)| labels["method"] != "other");
    let mut kept = 0;
    for (labels, calls) in named {
        assert_eq!(own.get(labels), calls, "{labels:?}");
        kept += 1;
    }
    assert_eq!(kept, 3);
    // Type and status are kept, and so are their sums.
    for kind in ["pingpong", "oneway"] {
        for status in ["succeed", "error"] {
            let labels = [("type", kind), ("status", status)];
            assert_eq!(seen.sum(&labels), own.sum(&labels), "{labels:?}");
        }
    }
    let refused = about(&scrape, pid, "monitor_label_sets_refused_total", &[]);
    assert_eq!(seen.sum(&other), refused);
    assert!(refused > 0);
    assert_eq!(timed(&scrape), FINISHES, "durations are kept under `other` too");
    Ok(())
}

#[test]
fn a_full_ring_loses_durations_only() -> Result<()> {
    let (scrape, pid, own) = load("--ring-bytes", "65536", true, 8)?;
    own.check(&Tally::of_agent(&scrape, &DEFAULT_LABELS, None)?)?;
    let lost = about(&scrape, pid, "monitor_events_lost_total", &[("reason", "ring_full")]);
    assert!(lost > 0);
    assert_eq!(timed(&scrape) + lost, FINISHES);
    assert_eq!(about(&scrape, pid, "monitor_finishes_total", &[("outcome", "lost")]), lost);
    Ok(())
}

/// Makes as many calls as possible for a second or a few, up to a million.
const BURST: &str = "calls 1000000 1 1";

/// Records that arrive while the agent drains a ring do not count as waiting in it.
#[test]
fn a_ring_is_never_fuller_than_full() -> Result<()> {
    let mut target = Process::start(Program::Synthetic, Flavour::Default, &[])?;
    let pid = target.pid();
    let agent = Agent::attach(&[pid], &["--ring-bytes", "65536"])?;
    target.send(BURST)?;
    let mut fullest = 0;
    for _ in 0..15 {
        thread::sleep(Duration::from_millis(60));
        let scrape = agent.scrape()?;
        let [bytes, capacity] =
            ["monitor_ring_bytes", "monitor_ring_capacity_bytes"].map(|name| about(&scrape, pid, name, &[]));
        assert!(bytes <= capacity, "{bytes} of {capacity} bytes");
        fullest = fullest.max(bytes);
    }
    target.answer(Duration::from_mins(1))?;
    assert!(fullest > 32_768, "it was never half full, with {fullest} bytes at most: this shows nothing");
    agent.terminate()?;
    Ok(())
}

/// More records than the agent drains in a last drain before it handles the signal and an ordinary one after it: each
/// takes little more than a million.
const MORE_THAN_TWO_TURNS: u64 = 2_500_000;
/// Room for these records and another million.
const LARGE_RING: &str = "134217728";

#[test]
fn an_agent_that_ends_takes_all_that_waits() -> Result<()> {
    let mut target = Process::start(Program::Synthetic, Flavour::Default, &[])?;
    let pid = target.pid();
    let mut agent = Agent::attach(&[pid], &["--ring-bytes", LARGE_RING])?;
    agent.signal(libc::SIGSTOP)?;
    let mut calls = 0;
    while calls < MORE_THAN_TWO_TURNS {
        calls += target.command(BURST)?["calls"].as_u64().context("no calls")?;
    }
    let address = agent.address().to_owned();
    let scraping = thread::spawn(move || {
        // Scrapes until the agent no longer answers.
        let next = || http::get(&address, "/metrics").and_then(Response::ok_body).ok();
        iter::from_fn(next).last()
    });
    // By then, the first scrape waits for its answer.
    thread::sleep(Duration::from_millis(200));
    agent.signal(libc::SIGTERM)?;
    agent.signal(libc::SIGCONT)?;
    ensure!(agent.wait(Duration::from_secs(10))?.success(), "{}", agent.log());
    let last = scraping.join().map_err(|_| anyhow!("the scrapes have panicked"))?;
    let scrape = Scrape::parse(&last.context("no scrape was answered")?)?;
    check_closed(&scrape, pid, [0, 0])?;
    let became = |outcome| about(&scrape, pid, "monitor_finishes_total", &[("outcome", outcome)]);
    assert_eq!((became("timed"), became("lost")), (calls, 0));
    Ok(())
}

#[test]
fn a_full_table_of_calls_in_flight_loses_durations_only() -> Result<()> {
    // Even at its smallest size, the table has room for some calls.
    let (scrape, pid, own) = load("--max-in-flight", "1", false, 300)?;
    own.check(&Tally::of_agent(&scrape, &DEFAULT_LABELS, None)?)?;
    let refused = about(&scrape, pid, "monitor_unpaired_starts_total", &[("reason", "in_flight_full")]);
    assert!(refused > 0);
    assert_eq!(
        about(&scrape, pid, "monitor_unpaired_finishes_total", &[("reason", "start_not_seen")]),
        refused
    );
    assert_eq!(timed(&scrape) + refused, FINISHES);
    assert_eq!(about(&scrape, pid, "monitor_calls_in_flight", &[]), 0);
    Ok(())
}

#[test]
fn calls_that_find_their_bucket_full_are_timed_all_the_same() -> Result<()> {
    let (scrape, pid, own) = load("--max-in-flight", "1", false, 16)?;
    own.check(&Tally::of_agent(&scrape, &DEFAULT_LABELS, None)?)?;
    assert_eq!(about(&scrape, pid, "monitor_unpaired_starts_total", &[("reason", "in_flight_full")]), 0);
    assert_eq!(timed(&scrape), FINISHES);
    Ok(())
}

/// Of nine nested calls of a goroutine, the outermost and the next six are timed. The others are counted, and their
/// finishes do not take the starts of the calls around them.
#[test]
fn calls_nested_too_deep_lose_their_durations_only() -> Result<()> {
    const GOROUTINES: u64 = 5;
    let mut target = Process::start(Program::Strange, Flavour::Default, &[])?;
    let agent = Agent::attach(&[target.pid()], &[])?;
    target.command(&format!("open {GOROUTINES} client 9"))?;
    target.command(&format!("close {GOROUTINES}"))?;
    let scrape = agent.scrape_settled()?;
    check_closed(&scrape, target.pid(), [0, 0])?;
    let about = |name, label| about(&scrape, target.pid(), name, &[label]);
    assert_eq!(about("monitor_finishes_total", ("outcome", "timed")), 7 * GOROUTINES);
    assert_eq!(about("monitor_unpaired_finishes_total", ("reason", "start_not_seen")), 2 * GOROUTINES);
    assert_eq!(about("monitor_unpaired_starts_total", ("reason", "nested_too_deep")), 2 * GOROUTINES);
    assert_eq!(timed(&scrape), 7 * GOROUTINES);
    agent.terminate()?;
    Ok(())
}
