//! Durations of a sample of the calls: all calls are counted, the durations in the sample are right and representative,
//! and the account has what became of the other calls.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::{Agent, run_to_end},
    chain::{Account, check_closed, check_durations},
    durations::{self, Durations, Population},
    matrix::Matrix,
    process::Process,
    scrape::{Scrape, whole},
    side_by_side,
    tally::{DEFAULT_LABELS, Tally},
    targets::{Flavour, Program},
};

/// A window of a second in every two.
const OFTEN: [&str; 6] = ["--latency", "economy", "--latency.every", "2", "--latency-buckets", "fine"];
/// One window right after the agent has attached, and then none for a long time.
const ONCE: [&str; 6] =
    ["--latency", "economy", "--latency.every", "3600", "--latency-buckets", "1000000,2500000"];
/// When a window has certainly ended.
const ENDED_BY: Duration = Duration::from_secs(2);
/// How long the load takes whose calls the sample is compared with, in seconds.
const LOAD_SECONDS: u64 = 9;
/// How long the calls of some callers take. Each caller makes its calls one after the other. Of these 92 calls some 48
/// start in windows, and two thirds of those outlast their window. In a sample without them, the mean of the server's
/// `Lookup` is 70 % too low, while slack and chance together allow 50 %.
const LONG_MS: [u64; 8] = [600, 650, 700, 750, 800, 850, 900, 950];

fn of_target(scrape: &Scrape, name: &str, pid: u32, labels: &[(&str, &str)]) -> f64 {
    let pid = pid.to_string();
    let labels: Vec<_> = [("target", pid.as_str())].into_iter().chain(labels.iter().copied()).collect();
    scrape.sum(name, &labels)
}

/// Fails unless the agent's durations are within the range that the process has measured: a call paired with a wrong
/// start would be as long as the time between two windows. Returns the number of timed calls.
fn check_extremes(process: &mut Process, scrape: &Scrape) -> Result<u64> {
    let own = Durations::of_target(&process.command("durations")?, &DEFAULT_LABELS)?;
    let mut timed = 0.0;
    for (labels, histogram) in durations::of_agent(scrape, Some(process.pid())) {
        timed += histogram.count;
        let bounds = (histogram.quantile_bounds(0.0), histogram.quantile_bounds(1.0));
        let (Some(shortest), Some(longest)) = bounds else { continue };
        let own = &own[&labels];
        let (min, max) = (own.quantile(0.0).unwrap_or(0.0), own.quantile(1.0).unwrap_or(0.0));
        // A thread can lose its processor between a probe and the target's own clock.
        ensure!(longest.0 <= max + 50_000.0, "{labels:?}: {longest:?} µs, and none over {max}");
        ensure!(shortest.1 >= min * 0.5, "{labels:?}: {shortest:?} µs, and none below {min}");
    }
    Ok(whole(timed))
}

/// A server and a client whose calls have nested calls, connected to each other and warmed up.
fn pair(args: &[&str]) -> Result<[(Process, &'static str); 2]> {
    let mut server = Process::kitex(&[&["server"], args].concat())?;
    let client = client_of(&server, args)?;
    forget(&mut server)?;
    Ok([(client, "client"), (server, "server")])
}

/// A client whose calls have nested calls, connected to this server and warmed up.
fn client_of(server: &Process, args: &[&str]) -> Result<Process> {
    let client = [&["client", "--connect", server.addr()?, "--nested"], args].concat();
    let mut client = Process::kitex(&client)?;
    client.command("call 1 Echo succeed")?;
    forget(&mut client)?;
    Ok(client)
}

/// Has a process reset its counts.
fn forget(process: &mut Process) -> Result<()> {
    process.command("settle")?;
    process.command("reset")?;
    Ok(())
}

/// Fails unless the agent's counts equal those of the process and its account closes with nothing lost.
fn check_counts(process: &mut Process, scrape: &Scrape) -> Result<Account> {
    let pid = process.pid();
    check_counts_of(process, scrape, Some(pid))
}

/// Like [`check_counts`]. If the agent has a single target, its series have no `target` label.
fn check_counts_of(process: &mut Process, scrape: &Scrape, target: Option<u32>) -> Result<Account> {
    let own = Tally::of_target(&process.command("counts")?, &DEFAULT_LABELS)?;
    own.check(&Tally::of_agent(scrape, &DEFAULT_LABELS, target)?)?;
    check_closed(scrape, process.pid(), [0, 0])?;
    let account = Account::of(scrape, process.pid());
    ensure!((account.in_flight, account.lost) == (0, 0), "{account:?}");
    let finished = account.timed + account.recorded + account.unpaired + account.sampled_out;
    ensure!(finished == own.total(), "{account:?}");
    Ok(account)
}

/// Whether a counter has stopped between some scrapes and increased between others.
fn come_in_windows(counts: &[f64]) -> bool {
    let is_still = |pair: &[f64]| pair[0].total_cmp(&pair[1]).is_eq();
    counts.windows(2).any(is_still) && !counts.windows(2).all(is_still)
}

#[test]
fn all_calls_are_counted_and_some_are_timed() -> Result<()> {
    let mut pair = pair(&["--unrecorded"])?;
    let pids = [pair[0].0.pid(), pair[1].0.pid()];
    let agent = Agent::attach(&pids, &OFTEN)?;
    pair[0].0.command("flow 8 3000")?;
    let began = Instant::now();
    let mut starts = Vec::new();
    while began.elapsed() < Duration::from_secs(4) || !come_in_windows(&starts) {
        ensure!(began.elapsed() < Duration::from_secs(30), "not in windows: {starts:?}");
        thread::sleep(Duration::from_millis(200));
        let scrape = agent.scrape()?;
        for pid in pids {
            check_closed(&scrape, pid, [2_000, 100])?;
        }
        starts.push(of_target(&scrape, "monitor_starts_total", pids[0], &[]));
        ensure!(
            scrape.samples("kitex_server_in_flight").next().is_none(),
            "a sample is shown as if it were all"
        );
    }
    pair[0].0.command("pause")?;
    pair[1].0.command("settle")?;
    let scrape = agent.scrape_settled()?;
    for (process, side) in &mut pair {
        let pid = process.pid();
        let account = check_counts(process, &scrape)?;
        let timed = check_extremes(process, &scrape)?;
        ensure!((timed, account.recorded) == (account.timed, 0), "{timed}: {account:?}");
        let share = of_target(&scrape, "monitor_latency_sampled_ratio", pid, &[("side", side)]);
        ensure!((0.2..0.9).contains(&share), "{share}: {account:?}");
        let source = [("source", "windows")];
        ensure!(of_target(&scrape, "monitor_latency_source_info", pid, &source).to_string() == "1");
    }
    agent.terminate()?;
    Ok(())
}

/// Returns the durations that client and server have measured so far.
fn measured(pair: &mut [(Process, &'static str); 2]) -> Result<[serde_json::Value; 2]> {
    let [(client, _), (server, _)] = pair;
    Ok([client.command("durations")?, server.command("durations")?])
}

/// Returns how many calls of a process were timed and have this label.
fn timed_with(scrape: &Scrape, pid: u32, label: (&str, &str)) -> f64 {
    let pid = pid.to_string();
    let labels = [("target", pid.as_str()), label];
    let of_side = |side: &str| scrape.histogram(&format!("kitex_{side}_latency_us"), &labels);
    ["client", "server"].into_iter().filter_map(of_side).map(|histogram| histogram.count).sum()
}

#[test]
fn the_calls_that_are_timed_are_like_all() -> Result<()> {
    let mut pair = pair(&["--unrecorded"])?;
    let mut patient = Vec::new();
    for _ in LONG_MS {
        patient.push(client_of(&pair[1].0, &["--unrecorded"])?);
    }
    forget(&mut pair[1].0)?;
    let processes = pair.iter().map(|(process, _)| process).chain(&patient);
    let agent = Agent::attach(&processes.map(Process::pid).collect::<Vec<_>>(), &OFTEN)?;
    // The first window does not open at a random time.
    thread::sleep(ENDED_BY);
    for (caller, ms) in patient.iter_mut().zip(LONG_MS) {
        caller.send(&format!("call {} Lookup succeed 32 {}", LOAD_SECONDS * 1_000 / ms, ms * 1_000))?;
    }
    pair[0].0.command("flow 8 1500")?;
    let mut by_second = Vec::new();
    for _ in 1..LOAD_SECONDS {
        thread::sleep(Duration::from_secs(1));
        by_second.push(measured(&mut pair)?);
    }
    thread::sleep(Duration::from_secs(1));
    pair[0].0.command("pause")?;
    for caller in &mut patient {
        caller.answer(Duration::from_secs(20))?;
    }
    pair[1].0.command("settle")?;
    // Only long calls end after the load. They are no period of their own.
    by_second.push(measured(&mut pair)?);
    let scrape = agent.scrape_settled()?;
    for (at, (process, side)) in pair.iter_mut().enumerate() {
        let pid = process.pid();
        let account = check_counts(process, &scrape)?;
        let all = Population::of_answers(by_second.iter().map(|both| &both[at]), &DEFAULT_LABELS)?;
        let share = all
            .check_sample(&durations::of_agent(&scrape, Some(pid)))
            .with_context(|| format!("the {side}: {account:?}"))?;
        let told = of_target(&scrape, "monitor_latency_sampled_ratio", pid, &[("side", side)]);
        ensure!((told - share).abs() < 1e-6, "{told} is told, and {share} were timed: {account:?}");
    }
    // A short call is nested in each long one and starts with it, so both are in a window or neither is.
    let (mut long, mut short) = (0.0, 0.0);
    for caller in &mut patient {
        check_counts(caller, &scrape)?;
        long += timed_with(&scrape, caller.pid(), ("callee", "stock"));
        short += timed_with(&scrape, caller.pid(), ("callee", "audit"));
    }
    ensure!(long > 20.0 && (long - short).abs() < 4.0, "{long} long calls were timed, {short} short ones");
    agent.terminate()?;
    Ok(())
}

/// Every start of gRPC-Go stays probed. An agent in economy mode says so.
#[test]
fn a_target_of_which_nothing_can_be_sampled_is_told_of() -> Result<()> {
    let target = Process::start(Program::Grpc, Flavour::Default, &[])?;
    let agent = Agent::attach(&[target.pid()], &["--latency", "economy", "--overhead-budget", "100%"])?;
    let pid = target.pid().to_string();
    for words in
        ["--latency economy changes nothing here", "nothing can be given up here for --overhead-budget 100%"]
    {
        let is_said = |line: &str| (line.contains(words) && line.contains(&pid)).then_some(());
        agent.wait_for_log(Duration::from_secs(5), is_said)?;
    }
    agent.terminate()?;
    Ok(())
}

#[test]
fn where_calls_record_their_starts_all_are_timed_without_windows() -> Result<()> {
    let mut pair = pair(&[])?;
    let pids = [pair[0].0.pid(), pair[1].0.pid()];
    let agent = Agent::attach(&pids, &OFTEN)?;
    pair[0].0.command("flow 8 3000")?;
    // The first window, and a period without one.
    thread::sleep(Duration::from_millis(2_500));
    let early = agent.scrape()?;
    thread::sleep(Duration::from_millis(2_500));
    let late = agent.scrape()?;
    pair[0].0.command("pause")?;
    pair[1].0.command("settle")?;
    let scrape = agent.scrape_settled()?;
    for pid in pids {
        let starts = [&early, &late].map(|scrape| of_target(scrape, "monitor_starts_total", pid, &[]));
        ensure!(starts[0].total_cmp(&starts[1]).is_eq(), "starts are watched: {starts:?}");
        let source = [("source", "recorded")];
        ensure!(of_target(&scrape, "monitor_latency_source_info", pid, &source).to_string() == "1");
    }
    for (process, _) in &mut pair {
        let account = check_counts(process, &scrape)?;
        ensure!(account.recorded > account.timed, "{account:?}");
        ensure!(account.sampled_out == 0 && account.unpaired < 20, "{account:?}");
        check_extremes(process, &scrape)?;
        check_durations(process, &scrape, &DEFAULT_LABELS, true)?;
    }
    agent.terminate()?;
    Ok(())
}

/// Finished calls that had recorded their start, and those without a duration.
fn by_record(scrape: &Scrape) -> [u64; 2] {
    ["recorded", "sampled_out"]
        .map(|outcome| whole(scrape.sum("monitor_finishes_total", &[("outcome", outcome)])))
}

#[test]
fn a_target_that_begins_to_record_is_noticed() -> Result<()> {
    let mut target = Process::start(Program::Strange, Flavour::Default, &[])?;
    let agent = Agent::attach(&[target.pid()], &ONCE)?;
    thread::sleep(ENDED_BY);
    target.command("call 2000 server")?;
    assert_eq!(by_record(&agent.scrape_settled()?), [0, 2_000]);
    // By now the agent reads the record of few calls, which suffices to notice.
    thread::sleep(Duration::from_secs(1));
    target.command("record 6400 server 0")?;
    let [recorded, others] = by_record(&agent.scrape_settled()?);
    ensure!(recorded >= 20, "{recorded}: one in 64 should have been asked");
    // The agent may have noticed during these calls.
    ensure!(others > 2_000, "all were asked");
    assert_eq!(recorded + others, 8_400);
    // The agent reads the records of all calls again.
    thread::sleep(Duration::from_secs(1));
    target.command("record 500 server 0")?;
    target.command("call 500 server")?;
    let scrape = agent.scrape_settled()?;
    assert_eq!(by_record(&scrape), [recorded + 500, others + 500]);
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

/// Waits until the sum of a metric about a process has this value.
fn wait_for(agent: &Agent, pid: u32, name: &str, labels: &[(&str, &str)], value: u64) -> Result<()> {
    let begin = Instant::now();
    while whole(of_target(&agent.scrape()?, name, pid, labels)) != value {
        ensure!(
            begin.elapsed() < Duration::from_secs(40),
            "{name}{labels:?} is not {value}:\n{}",
            agent.log()
        );
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// At the last level of a budget no call has a duration, whether it records its start or not. Level, log and source of
/// durations show this. Then durations come back. Finishes alone exceed this budget.
#[test]
fn where_all_durations_are_given_up_none_come_from_anywhere() -> Result<()> {
    const BUDGET: [&str; 6] = ["--latency", "economy", "--latency.every", "5", "--overhead-budget", "0.2%"];
    const SOURCE: &str = "monitor_latency_source_info";
    const LAST: &str = "no durations are taken (level 3)";
    let cells: [(&[&str], &str); 2] = [(&[], "recorded"), (&["--unrecorded"], "windows")];
    side_by_side(cells, |(args, source)| {
        let [(mut client, _), (mut server, _)] = pair(args)?;
        let pid = server.pid();
        let agent = Agent::attach(&[pid], &BUDGET)?;
        client.command("flow 8 3000")?;
        wait_for(&agent, pid, "monitor_shed_level", &[], 3)?;
        // A window that was open has closed by then.
        thread::sleep(ENDED_BY);
        let early = agent.scrape()?;
        thread::sleep(Duration::from_secs(2));
        let late = agent.scrape()?;
        let [(few, timed_early), (many, timed_late)] = [&early, &late].map(|scrape| {
            let account = Account::of(scrape, pid);
            (account.sampled_out, account.timed + account.recorded)
        });
        ensure!(many > few + 1_000, "{few} calls without a duration, then {many}");
        ensure!(timed_early == timed_late, "{timed_early} durations, then {timed_late}");
        for (one, expected) in [("none", 1), ("recorded", 0), ("windows", 0), ("probes", 0)] {
            let told = whole(of_target(&late, SOURCE, pid, &[("source", one)]));
            ensure!(told == expected, "{told} for {one}");
        }
        let log = agent.log();
        let (_, since) = log.split_once(LAST).with_context(|| log.clone())?;
        ensure!(!since.contains("record their starts"), "{log}");

        // Without load, the budget suffices for everything again.
        client.command("pause")?;
        wait_for(&agent, pid, "monitor_shed_level", &[], 0)?;
        agent.wait_for_log(Duration::from_secs(5), |line| {
            (line.contains("in one second of 5") && line.contains("(level 0)")).then_some(())
        })?;
        // The window that opened with the new level has closed by then. The next one is far, or is not needed.
        thread::sleep(ENDED_BY);
        let before = Account::of(&agent.scrape_settled()?, pid);
        client.command("call 500 Echo succeed")?;
        server.command("settle")?;
        let after = check_counts_of(&mut server, &agent.scrape_settled()?, None)?;
        let [recorded, without] = [after.recorded - before.recorded, after.sampled_out - before.sampled_out];
        if source == "recorded" {
            ensure!(recorded >= 500 && without == 0, "{recorded} records, {without} calls without");
        } else {
            ensure!(recorded == 0 && without > 0, "{recorded} records, {without} calls without");
        }
        wait_for(&agent, pid, SOURCE, &[("source", source)], 1)?;
        agent.terminate()?;
        Ok(())
    })
}

/// Returns the scrape of an agent with a single window, whose target runs some commands inside the window and others
/// after it.
fn across_the_end(inside: &[&str], after: &[&str]) -> Result<Scrape> {
    let mut target = Process::start(Program::Strange, Flavour::Default, &[])?;
    let agent = Agent::attach(&[target.pid()], &ONCE)?;
    for command in inside {
        target.command(command)?;
    }
    thread::sleep(ENDED_BY);
    for command in after {
        target.command(command)?;
    }
    let scrape = agent.scrape_settled()?;
    check_closed(&scrape, target.pid(), [0, 0])?;
    ensure!(agent.terminate()?.0.success());
    ensure!(target.quit()?.success(), "the target did not end well");
    Ok(scrape)
}

/// Returns the number of timed calls of a side, and of those longer than a second.
fn timed(scrape: &Scrape, side: &str) -> (u64, u64) {
    let histograms = scrape.histograms(&format!("kitex_{side}_latency_us"));
    histograms.values().fold((0, 0), |(all, long), histogram| {
        (all + whole(histogram.count), long + whole(histogram.count - histogram.buckets[0].1))
    })
}

fn sampled_out(scrape: &Scrape) -> [String; 2] {
    ["monitor_finishes_total", "monitor_unpaired_starts_total"].map(|name| {
        let label = if name.contains("starts") { "reason" } else { "outcome" };
        scrape.sum(name, &[(label, "sampled_out")]).to_string()
    })
}

#[test]
fn a_call_that_outlasts_its_window_is_timed_and_one_whose_start_was_not_seen_gets_no_other() -> Result<()> {
    let outlasting: [&[&str]; 2] = [&["open 5 client 1", "open 7 server 1"], &["close 12", "call 20 client"]];
    // The inner call starts after the window has ended and finishes before the outer one.
    let inner: [&[&str]; 2] = [&["inside 1 client client 2000"], &[]];
    // Of three calls of a goroutine, it can no longer be known which finishes first.
    let nested: [&[&str]; 2] = [&["open 4 client 3", "call 9 client"], &["close 4"]];
    let cells = [
        (outlasting, [(5, 5), (7, 7)], ["20", "0"]),
        (inner, [(0, 0), (0, 0)], ["2", "1"]),
        (nested, [(9, 0), (0, 0)], ["12", "12"]),
    ];
    side_by_side(cells, |([inside, after], calls, out)| {
        let scrape = across_the_end(inside, after)?;
        assert_eq!(["client", "server"].map(|side| timed(&scrape, side)), calls, "{inside:?}");
        assert_eq!(sampled_out(&scrape), out, "{inside:?}");
        Ok(())
    })
}

/// Changes the machine's time of day by nanoseconds, and back when dropped.
struct ClockSet(i64);

impl ClockSet {
    fn by(nanoseconds: i64) -> Result<Self> {
        step_clock(nanoseconds)?;
        Ok(Self(nanoseconds))
    }
}

impl Drop for ClockSet {
    fn drop(&mut self) {
        if let Err(error) = step_clock(-self.0) {
            eprintln!("the clock stays {} ns off: {error:#}", self.0);
        }
    }
}

fn step_clock(nanoseconds: i64) -> Result<()> {
    // SAFETY: zeros are a valid timex, which holds nothing but numbers.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    change.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    change.time.tv_sec = nanoseconds.div_euclid(1_000_000_000);
    change.time.tv_usec = nanoseconds.rem_euclid(1_000_000_000);
    // SAFETY: the pointer is to a whole timex, which the kernel reads and fills.
    let state = unsafe { libc::adjtimex(&raw mut change) };
    ensure!(state >= 0, "adjtimex: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Returns the number of calls without a duration because the clock may have been set meanwhile. Both metrics that have
/// it must agree.
fn clock_set(scrape: &Scrape, pid: u32) -> u64 {
    let events = of_target(scrape, "monitor_events_lost_total", pid, &[("reason", "clock_set")]);
    let finishes = of_target(scrape, "monitor_finishes_total", pid, &[("outcome", "recorded_lost")]);
    assert!(events.total_cmp(&finishes).is_eq(), "{events}, but {finishes}");
    whole(events)
}

/// A step of ten milliseconds for a fifth of a second disturbs nothing else on the machine, and is a thousand times
/// what the agent takes for slewing.
#[test]
fn a_call_in_which_the_clock_is_set_has_no_duration() -> Result<()> {
    const STEP_NS: i64 = 10_000_000;
    let mut server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    let agent = Agent::attach(&[client.pid(), server.pid()], &ONCE)?;
    thread::sleep(ENDED_BY);
    client.send("call 1 Store succeed 64 1000000")?;
    thread::sleep(Duration::from_millis(300));
    let set = ClockSet::by(STEP_NS)?;
    thread::sleep(Duration::from_millis(200));
    drop(set);
    client.answer(Duration::from_secs(10))?;
    // Once a call has shown the new time, all is as before.
    thread::sleep(Duration::from_millis(200));
    let before = agent.scrape()?;
    client.command("call 200 Echo succeed")?;
    server.command("settle")?;
    let after = agent.scrape_settled()?;
    for process in [&mut client, &mut server] {
        let pid = process.pid();
        let [set, set_later] = [&before, &after].map(|scrape| clock_set(scrape, pid));
        ensure!((set, set_later) == (1, 1), "{set} calls, then {set_later}");
        let own = Tally::of_target(&process.command("counts")?, &DEFAULT_LABELS)?;
        own.check(&Tally::of_agent(&after, &DEFAULT_LABELS, Some(pid))?)?;
        check_closed(&after, pid, [0, 0])?;
        let account = Account::of(&after, pid);
        ensure!((account.recorded, account.unpaired, own.total()) == (200, 0, 201), "{account:?}");
        let [store, echo] = ["Store", "Echo"].map(|method| timed_with(&after, pid, ("method", method)));
        ensure!(
            store < 0.5 && echo > 199.5,
            "{store} durations of the call in which the clock was set, {echo} of 200 others"
        );
        check_extremes(process, &after)?;
    }
    agent.terminate()?;
    Ok(())
}

/// A call that is in flight while the clock is set may have recorded any start. None may yield a duration that is
/// negative, or longer than the agent has watched the process.
#[test]
fn a_claim_that_cant_be_true_makes_no_duration() -> Result<()> {
    let mut target = Process::start(Program::Strange, Flavour::Default, &[])?;
    let pid = target.pid();
    let buckets = ["--latency-buckets", "100000,1000000,5000000"];
    let agent = Agent::attach(&[pid], &[&ONCE[..4], &buckets].concat())?;
    thread::sleep(ENDED_BY);
    for shape in ["server", "client", "separate"] {
        target.command(&format!("record 10 {shape} 150"))?;
        // Starts before the process existed, before the machine was booted by the programs' clock, and in the future.
        for (calls, ago) in [(3, "20000"), (4, "36000000000"), (5, "-60000")] {
            target.command(&format!("record {calls} {shape} {ago}"))?;
        }
    }
    let scrape = agent.scrape_settled()?;
    check_closed(&scrape, pid, [0, 0])?;
    let account = Account::of(&scrape, pid);
    ensure!((account.recorded, account.unpaired) == (30, 0), "{account:?}");
    ensure!(clock_set(&scrape, pid) == 36, "{} of 36", clock_set(&scrape, pid));
    for (side, calls) in [("client", 10.0), ("server", 20.0)] {
        let histograms = scrape.histograms(&format!("kitex_{side}_latency_us"));
        let (below, up_to, all) = histograms.values().fold((0.0, 0.0, 0.0), |(below, up_to, all), one| {
            (below + one.buckets[0].1, up_to + one.buckets[1].1, all + one.count)
        });
        ensure!(
            below.total_cmp(&0.0).is_eq() && up_to.total_cmp(&calls).is_eq() && all.total_cmp(&calls).is_eq(),
            "{side}: {below} {up_to} {all}"
        );
    }
    agent.terminate()?;
    ensure!(target.quit()?.success(), "the target did not end well");
    Ok(())
}

/// As if the clock had been set back: no recorded start yields a duration, so the agent goes on with windows.
#[test]
fn where_records_mean_nothing_durations_come_from_windows() -> Result<()> {
    const SOURCE: &str = "monitor_latency_source_info";
    let mut target = Process::start(Program::Strange, Flavour::Default, &[])?;
    let pid = target.pid();
    let agent = Agent::attach(&[pid], &OFTEN)?;
    let mut starts_after = |calling: Duration| -> Result<u64> {
        let began = Instant::now();
        while began.elapsed() < calling {
            target.command("record 10 server -60000")?;
            thread::sleep(Duration::from_millis(50));
        }
        Ok(whole(of_target(&agent.scrape()?, "monitor_starts_total", pid, &[])))
    };
    // The first window and the first period have ended by then.
    let early = starts_after(ENDED_BY + Duration::from_secs(1))?;
    let began = Instant::now();
    while starts_after(Duration::from_millis(200))? == early {
        ensure!(began.elapsed() < Duration::from_secs(20), "no more windows: {early} starts");
    }
    let scrape = agent.scrape_settled()?;
    check_closed(&scrape, pid, [0, 0])?;
    let account = Account::of(&scrape, pid);
    ensure!(account.timed > 0 && account.recorded == 0 && clock_set(&scrape, pid) > 0, "{account:?}");
    for (source, expected) in [("windows", 1), ("recorded", 0)] {
        let told = whole(of_target(&scrape, SOURCE, pid, &[("source", source)]));
        ensure!(told == expected, "{told} for {source}");
    }
    agent.terminate()?;
    ensure!(target.quit()?.success(), "the target did not end well");
    Ok(())
}

/// For a release of Kitex without a readable record, `inspect` reports that only windows are used, and why. For the
/// same program with a newer release, it reports records. gRPC-Go's starts stay probed.
#[test]
fn inspect_says_where_durations_come_from() -> Result<()> {
    let matrix = Matrix::read()?;
    let old = matrix.cells.iter().find(|cell| cell.release == "v0.5.2").context("no old cell")?;
    let old = old.build(&matrix)?;
    let programs = [
        (old.clone(), "windows", "no field state"),
        (Program::Kitex.build(Flavour::Default)?, "recorded", "without, windows"),
        (Program::Echo.build(Flavour::Default)?, "probes", "stay"),
    ];
    for (path, durations, why) in programs {
        let path = path.to_str().context("a path that is not UTF-8")?;
        let said = run_to_end(&["inspect", "--json", "--exe", path], Duration::from_secs(20))?.stdout;
        let said: serde_json::Value = serde_json::from_str(&said)?;
        let economy = &said["frameworks"][0]["economy"];
        let reason = economy["why"].as_str().context("no reason")?;
        ensure!(economy["durations"] == durations && reason.contains(why), "{path}: {economy}");
        let text = run_to_end(&["inspect", "--exe", path], Duration::from_secs(20))?.stdout;
        ensure!(text.contains(&format!("\n  economy {durations}: {reason}\n")), "{text}");
    }
    // At run time it is the same, and all calls are counted.
    let mut target = Process::start_command(&mut Command::new(old))?;
    let agent = Agent::attach(&[target.pid()], &OFTEN)?;
    target.command("run framed 300")?;
    target.command("settle")?;
    let own = Tally::of_target(&target.command("counts")?, &DEFAULT_LABELS)?;
    own.check(&Tally::of_agent(&agent.scrape_settled()?, &DEFAULT_LABELS, None)?)?;
    ensure!(own.total() == 600, "{own:?}");
    let source =
        of_target(&agent.scrape()?, "monitor_latency_source_info", target.pid(), &[("source", "windows")]);
    ensure!(source.to_string() == "1", "durations don't come from windows");
    agent.terminate()?;
    Ok(())
}
