//! The event stream has exactly the calls that the target has seen, one by one. Lost events are always counted.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::{executable, run_to_end},
    cargo,
    chain::Chain,
    events::{Events, check_same, logged, lost, lost_in_all, of_kind, parse},
    grpc,
    process::{Process, signal_child},
    targets::{Flavour, Program},
    text::Sites,
};
use serde_json::Value;

use crate::schema::check_schema;

const PATIENCE: Duration = Duration::from_secs(20);
/// Durations that differ by more belong to calls that lost the processor between the agent's probe and the target's
/// clock.
const CLOSE_US: u64 = 1_000;

fn pair() -> Result<(Process, Process)> {
    let server = Process::kitex(&["server", "--tracer", "tally,log"])?;
    let client = Process::kitex(&["client", "--connect", server.addr()?, "--tracer", "tally,log"])?;
    Ok((server, client))
}

fn field<'a>(line: &'a Value, name: &str) -> Result<&'a str> {
    line[name].as_str().with_context(|| format!("no {name}: {line}"))
}

/// Client, relay and server in one run: nested calls, oneway calls, failures, panics. Compares the lines with the log
/// in the process.
#[test]
fn the_lines_are_the_calls_of_the_tracer_inside_one_by_one() -> Result<()> {
    let log = ["--tracer", "tally,log"];
    let server = Process::kitex(&[&["server"][..], &log].concat())?;
    let relay = ["relay", "--connect", server.addr()?, "--service", "gate", "--caller", "gate"];
    let relay = Process::kitex(&[&relay[..], &log].concat())?;
    let client = ["client", "--connect", relay.addr()?, "--callee", "gate", "--nested"];
    let client = Process::kitex(&[&client[..], &log].concat())?;
    let mut chain = Chain { client, relay, server };
    chain.warm_up()?;
    for process in chain.each() {
        logged(process)?;
    }
    let events = Events::attach(&chain.pids(), &[])?;
    chain.load(6_000, 8, 11)?;
    let lines = events.terminate()?;
    check_schema(&lines)?;
    assert_eq!(lost_in_all(&lines, "finish"), 0);
    for process in chain.each() {
        let own = logged(process)?;
        ensure!(own.len() > 600, "only {} calls", own.len());
        let differences = check_same(process.pid(), &lines, &own)?;
        let apart = differences.iter().filter(|us| **us > CLOSE_US).count();
        ensure!(apart * 50 <= differences.len(), "{apart} of {} durations differ", differences.len());
    }
    let failed = of_kind(&lines, "finish").into_iter().filter(|line| line["status"] == "error");
    let classes: Vec<_> = failed.filter_map(|line| line["error"].as_str()).collect();
    ensure!(classes.contains(&"biz") || classes.contains(&"remote"), "{classes:?}");
    ensure!(!classes.contains(&"none"), "{classes:?}");
    Ok(())
}

/// A line has the time of the event, not the time at which it was read.
#[test]
fn times_are_those_of_the_events() -> Result<()> {
    let (mut server, mut client) = pair()?;
    client.command("call 1 Echo succeed")?;
    logged(&mut client)?;
    let events = Events::attach(&[client.pid()], &[])?;
    client.command("call 20 Store succeed 64 2000")?;
    server.command("settle")?;
    let lines = events.terminate()?;
    let own = logged(&mut client)?;
    assert_eq!((lines.len(), own.len()), (20, 20));
    let mut close = 0;
    for (line, call) in lines.iter().zip(&own) {
        let (time, own_ns) = (field(line, "time")?, call["time_ns"].as_i64().context("no time")?);
        // Both times have a date. Only seconds within a minute are compared.
        let seconds: f64 = time[17..29].parse()?;
        #[allow(clippy::cast_precision_loss, reason = "less than a minute")]
        let own_seconds = (own_ns % 60_000_000_000) as f64 / 1e9;
        let apart = (seconds - own_seconds).abs().min(60.0 - (seconds - own_seconds).abs());
        ensure!(apart < 1.0, "{line} was at {own_ns}, {apart} s away");
        close += u32::from(apart < 0.002);
    }
    // The other calls may have lost the processor between the agent's reading of the clock and the target's.
    ensure!(close >= 10, "only {close} of 20 times are close");
    Ok(())
}

#[test]
fn lines_are_there_within_a_fifth_of_a_second() -> Result<()> {
    const CALLS: usize = 10;
    let (_server, mut client) = pair()?;
    let events = Events::attach(&[client.pid()], &[])?;
    let mut took = Vec::new();
    for calls in 1..=CALLS {
        client.command("call 1 Echo succeed")?;
        let called = Instant::now();
        while events.lines()?.len() < calls {
            ensure!(called.elapsed() < Duration::from_secs(2), "no line of call {calls}");
            std::thread::sleep(Duration::from_millis(5));
        }
        took.push(called.elapsed());
        assert_eq!(events.lines()?.len(), calls);
    }
    // The agent may lack a processor now and then.
    let in_time = took.iter().filter(|took| **took <= Duration::from_millis(200)).count();
    ensure!(in_time >= 8, "{took:?}");
    assert_eq!(events.terminate()?.len(), CALLS);
    Ok(())
}

#[test]
fn a_start_comes_before_its_finish() -> Result<()> {
    let (mut server, mut client) = pair()?;
    let events = Events::attach(&[client.pid(), server.pid()], &["--starts"])?;
    client.command("load 2000 8 3")?;
    server.command("settle")?;
    let lines = events.terminate()?;
    check_schema(&lines)?;
    for process in [&client, &server] {
        let own: Vec<_> = lines.iter().filter(|line| line["target"] == process.pid()).collect();
        let mut under_way = BTreeMap::new();
        let mut pairs = 0;
        for line in own {
            let goroutine = line["goroutine"].as_u64().context("no goroutine")?;
            if line["event"] == "start" {
                ensure!(under_way.insert(goroutine, line).is_none(), "two starts: {line}");
                continue;
            }
            let start = under_way.remove(&goroutine).with_context(|| format!("no start: {line}"))?;
            ensure!(field(start, "time")? < field(line, "time")?, "{start} {line}");
            if line["side"] == "client" {
                for name in ["caller", "callee", "method", "type"] {
                    assert_eq!(start[name], line[name], "{start} {line}");
                }
            } else {
                assert_eq!((&start["method"], &start["type"]), (&"unknown".into(), &Value::Null), "{start}");
                assert_eq!(start["callee"], line["callee"]);
            }
            pairs += 1;
        }
        assert_eq!((pairs, under_way.len()), (2_000, 0));
    }
    // Starts have label sets of their own. No metric shows them.
    Ok(())
}

#[test]
fn filters_choose_lines() -> Result<()> {
    let (mut server, mut client) = pair()?;
    let pids = [client.pid(), server.pid()];
    let all = Events::attach(&pids, &[])?;
    let failed = Events::attach(&pids, &["--filter", "side=server", "--filter", "status=error"])?;
    let some = Events::attach(&pids, &["--filter", "method=Echo,Lookup"])?;
    let slow = Events::attach(&pids, &["--filter", "min_duration=3ms", "--filter", "side=client"])?;
    client.command("load 2000 4 5")?;
    client.command("call 5 Store succeed 64 5000")?;
    server.command("settle")?;
    let all = all.terminate()?;
    let expect = |chosen: &dyn Fn(&Value) -> bool, events: Events| -> Result<()> {
        let lines = events.terminate()?;
        // Each agent drains its rings at its own times.
        let sorted = |mut keys: Vec<_>| {
            keys.sort_unstable();
            keys
        };
        let expected = sorted(all.iter().filter(|line| chosen(line)).map(key).collect());
        ensure!(!expected.is_empty() && expected.len() < all.len(), "this shows nothing");
        ensure!(sorted(lines.iter().map(key).collect()) == expected, "{} lines", lines.len());
        Ok(())
    };
    expect(&|line| line["side"] == "server" && line["status"] == "error", failed)?;
    expect(&|line| line["method"] == "Echo" || line["method"] == "Lookup", some)?;
    let lines = slow.terminate()?;
    ensure!(lines.iter().all(|line| line["duration_us"].as_u64() >= Some(3_000)), "{lines:?}");
    ensure!(lines.iter().filter(|line| line["method"] == "Store").count() >= 5, "{lines:?}");
    Ok(())
}

/// What several agents report alike about one call.
fn key(line: &Value) -> (u64, u64, String) {
    let number = |name: &str| line[name].as_u64().unwrap_or_default();
    (number("target"), number("goroutine"), line["method"].to_string() + &line["status"].to_string())
}

/// The agent is stopped until its ring is full. Lines and lost events add up to the calls.
#[test]
fn what_is_lost_is_told_and_the_sum_fits() -> Result<()> {
    let (mut server, mut client) = pair()?;
    let events = Events::attach(&[client.pid()], &[])?;
    // Nothing drains the ring of 4 MiB while the agent is stopped.
    events.signal(libc::SIGSTOP)?;
    client.command_within("load 90000 8 9", Duration::from_mins(2))?;
    events.signal(libc::SIGCONT)?;
    server.command("settle")?;
    let lines = events.terminate()?;
    check_schema(&lines)?;
    let (finished, lost) = (of_kind(&lines, "finish").len() as u64, lost_in_all(&lines, "finish"));
    assert_eq!(finished + lost, 90_000, "{finished} lines, {lost} lost");
    ensure!(lost > 1_000, "the ring held all of them: {lost} lost");
    Ok(())
}

/// Lost starts are reported like lost finishes, whether the ring was full or the type unknown.
#[test]
fn starts_that_are_lost_are_told() -> Result<()> {
    const UNKNOWN: u64 = 30;
    const CALLS: u64 = 60_000;
    let mut target = Process::start(Program::Strange, Flavour::Default, &[])?;
    let events = Events::attach(&[target.pid()], &["--starts"])?;
    target.command(&format!("call {UNKNOWN} my-rpcinfo"))?;
    // Nothing drains the ring of 4 MiB, in which each event takes 56 bytes: it overflows.
    events.signal(libc::SIGSTOP)?;
    target.command(&format!("call {CALLS} client"))?;
    events.signal(libc::SIGCONT)?;
    // `events` ends when everything is written, which takes longer than it has after a signal.
    target.quit()?;
    let (status, lines) = events.wait()?;
    ensure!(status.success(), "{status}");
    let mut in_ring = 0;
    for event in ["start", "finish"] {
        let told = of_kind(&lines, event).len() as u64;
        let full = lost(&lines, event, "ring_full");
        ensure!(told + full == CALLS && full > 1_000, "{event}: {told} lines, {full} lost");
        ensure!(lost(&lines, event, "unknown_type") == UNKNOWN, "{event}");
        ensure!(lost_in_all(&lines, event) == full + UNKNOWN, "{event}");
        in_ring += told;
    }
    ensure!(in_ring == (4 << 20) / 56, "{in_ring} events were in the ring");
    Ok(())
}

/// Of calls without a label set, only the number can be reported. Calls with one of the last label sets have no names,
/// which stderr reports. The codes use up all label sets.
#[test]
fn calls_that_have_no_labels_are_told_as_lost() -> Result<()> {
    const CODES: u64 = 4_500;
    const STREAMS: u64 = 5;
    let mut target = Process::start(Program::Grpc, Flavour::Default, &[])?;
    let events = Events::attach(&[target.pid()], &["--starts"])?;
    target.command_within(&format!("codes {CODES}"), Duration::from_mins(1))?;
    target.command(&format!("run bidirectional {STREAMS}"))?;
    said_behind(&events, "the limit on combinations of labels is passed: `other` ")?;
    events.signal(libc::SIGTERM)?;
    let passed = times(&events, "combinations of labels")?;
    let (status, lines) = events.wait()?;
    ensure!(status.success(), "{status}");
    check_schema(&lines)?;
    let unnamed = lines.iter().filter(|line| line["method"] == "other").count() as u64;
    ensure!(unnamed > 0, "all have names: this shows nothing");
    assert_eq!(passed, unnamed + lost_in_all(&lines, "finish") + lost_in_all(&lines, "start"));
    let own = grpc::Calls::of_target(&mut target)?;
    for (event, all, at_least) in
        [("finish", own.total(), 2 * CODES - 4_096 - 256), ("start", own.started.values().sum(), 2 * STREAMS)]
    {
        let told = of_kind(&lines, event).len() as u64;
        let failed = lost(&lines, event, "label_table_failed");
        ensure!(told + failed == all, "{event}: {told} lines and {failed} lost of {all}");
        ensure!(failed >= at_least && failed == lost_in_all(&lines, event), "{event}: {failed} lost");
    }
    Ok(())
}

/// Calls go on as long as the probes are there. The last of them have lines, too.
#[test]
fn how_often_labels_were_too_many_is_told_of_the_last_calls_too() -> Result<()> {
    let mut target = Process::start(Program::Grpc, Flavour::Default, &[])?;
    let events = Events::attach(&[target.pid()], &[])?;
    target.send("codes 30000")?;
    said_behind(&events, "the limit on combinations of labels is passed: ")?;
    events.signal(libc::SIGTERM)?;
    let passed = times(&events, "combinations of labels")?;
    let (status, lines) = events.wait()?;
    ensure!(status.success(), "{status}");
    let unnamed = lines.iter().filter(|line| line["method"] == "other").count() as u64;
    assert_eq!(passed, unnamed + lost_in_all(&lines, "finish"));
    Ok(())
}

/// Calls whose starts were not kept have lines without a duration.
#[test]
fn starts_that_are_not_kept_are_told_on_stderr() -> Result<()> {
    const GOROUTINES: u64 = 5;
    let mut target = Process::start(Program::Strange, Flavour::Default, &[])?;
    let events = Events::attach(&[target.pid()], &[])?;
    // Of nine nested calls, the outermost and the next six are timed.
    target.command(&format!("open {GOROUTINES} client 9"))?;
    said_behind(&events, "the limit on calls nested in one on a goroutine is passed: deeper ones ")?;
    target.command(&format!("close {GOROUTINES}"))?;
    events.signal(libc::SIGTERM)?;
    assert_eq!(times(&events, "calls nested in one on a goroutine")?, 2 * GOROUTINES);
    let said = events.said();
    let (status, lines) = events.wait()?;
    ensure!(status.success() && lines.len() as u64 == 9 * GOROUTINES, "{status}, {} lines", lines.len());
    let untimed = lines.iter().filter(|line| line["duration_us"].is_null()).count() as u64;
    assert_eq!(untimed, 2 * GOROUTINES);
    // Limits that were not passed are not mentioned.
    assert_eq!(said.matches("the limit on ").count(), 2, "{said}");
    Ok(())
}

/// The target's data is gone from the kernel by then.
#[test]
fn limits_that_were_passed_are_told_when_the_target_has_ended() -> Result<()> {
    let mut target = Process::start(Program::Strange, Flavour::Default, &[])?;
    let events = Events::attach(&[target.pid()], &[])?;
    target.command("open 5 client 9")?;
    target.command("close 5")?;
    ensure!(target.quit()?.success());
    assert_eq!(times(&events, "calls nested in one on a goroutine")?, 10);
    ensure!(events.wait()?.0.success());
    Ok(())
}

/// Returns how often a limit was passed, according to the last lines on stderr.
fn times(events: &Events, limit: &str) -> Result<u64> {
    let rest = said_behind(events, &format!("the limit on {limit} was passed "))?;
    let (times, _) = rest.split_once(" times: ").with_context(|| format!("no number: {rest}"))?;
    Ok(times.parse()?)
}

/// Waits for a text on stderr. Returns the rest of its line.
fn said_behind(events: &Events, text: &str) -> Result<String> {
    let begin = Instant::now();
    loop {
        let said = events.said();
        if let Some((_, rest)) = said.split_once(text) {
            return Ok(rest.lines().next().unwrap_or_default().to_owned());
        }
        ensure!(begin.elapsed() < PATIENCE, "nobody said {text:?}: {said}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_closed_pipe_is_a_good_end() -> Result<()> {
    let (_server, mut client) = pair()?;
    for makes_calls in [true, false] {
        let (mut child, _stderr) = unread(client.pid())?;
        drop(child.stdout.take());
        if makes_calls {
            client.command("call 3 Echo succeed")?;
        }
        let status = wait(&mut child)?;
        assert_eq!(status, Some(0), "with calls: {makes_calls}");
    }
    Ok(())
}

/// A reader that has closed the pipe is also told how often a limit was passed.
#[test]
fn a_closed_pipe_keeps_no_limit_back() -> Result<()> {
    const GOROUTINES: u64 = 5;
    let mut target = Process::start(Program::Strange, Flavour::Default, &[])?;
    let (mut child, mut stderr) = unread(target.pid())?;
    // Of nine nested calls, two are nested too deep.
    target.command(&format!("open {GOROUTINES} client 9"))?;
    target.command(&format!("close {GOROUTINES}"))?;
    drop(child.stdout.take());
    assert_eq!(wait(&mut child)?, Some(0));
    let mut said = String::new();
    stderr.read_to_string(&mut said)?;
    let passed = format!("calls nested in one on a goroutine was passed {} times: ", 2 * GOROUTINES);
    ensure!(said.contains(&passed), "{said}");
    Ok(())
}

/// The reader starts long after the target has ended, and misses nothing.
#[test]
fn lines_wait_for_their_reader_when_the_target_has_ended() -> Result<()> {
    const CALLS: u64 = 20_000;
    let (_server, mut client) = pair()?;
    let (mut child, _stderr) = unread(client.pid())?;
    client.command(&format!("load {CALLS} 8 13"))?;
    client.quit()?;
    // Longer than `events` has after a signal.
    std::thread::sleep(Duration::from_secs(2));
    let mut text = String::new();
    child.stdout.take().context("no stdout")?.read_to_string(&mut text)?;
    assert_eq!(wait(&mut child)?, Some(0));
    let lines = parse(&text)?;
    let (finished, lost) = (of_kind(&lines, "finish").len() as u64, lost_in_all(&lines, "finish"));
    assert_eq!(finished + lost, CALLS, "{finished} lines, {lost} lost");
    Ok(())
}

/// After a signal, `events` ends without its reader. It reports how many lines and events were not written, and cuts no
/// line.
#[test]
fn lines_that_nobody_takes_in_time_are_counted() -> Result<()> {
    const CALLS: u64 = 20_000;
    let (_server, mut client) = pair()?;
    let (mut child, mut stderr) = unread(client.pid())?;
    client.command(&format!("load {CALLS} 8 14"))?;
    signal_child(&child, libc::SIGTERM)?;
    assert_eq!(wait(&mut child)?, Some(0));
    let (mut text, mut said) = (String::new(), String::new());
    child.stdout.take().context("no stdout")?.read_to_string(&mut text)?;
    stderr.read_to_string(&mut said)?;
    let lines = number_between(&said, "in time: up to ", ", which")?;
    let events = number_between(&said, ", which tell of ", " events")?;
    let taken = parse(&text)?;
    ensure!(!taken.is_empty() && text.ends_with('\n') && lines > 0, "{} lines, {lines} left", taken.len());
    let told = of_kind(&taken, "finish").len() as u64 + lost_in_all(&taken, "finish");
    assert_eq!(told + events, CALLS, "{} lines, {lines} left", taken.len());
    Ok(())
}

/// Returns the number between two texts.
fn number_between(said: &str, before: &str, after: &str) -> Result<u64> {
    let rest = said.split_once(before).map(|(_, rest)| rest);
    let number = rest.and_then(|rest| rest.split_once(after)).map(|(number, _)| number);
    Ok(number.with_context(|| format!("no number behind {before:?}: {said:?}"))?.parse()?)
}

/// Starts `events` for a process and waits until it has attached. Returns its stderr from then on. Nothing reads its
/// stdout yet.
fn unread(pid: u32) -> Result<(Child, BufReader<ChildStderr>)> {
    let mut command = Command::new(executable()?);
    command.args(["events", "--pid", &pid.to_string()]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stderr = BufReader::new(child.stderr.take().context("no stderr")?);
    let mut line = String::new();
    stderr.read_line(&mut line)?;
    assert_eq!(line, "attached\n");
    Ok((child, stderr))
}

fn wait(child: &mut Child) -> Result<Option<i32>> {
    for _ in 0..500 {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill()?;
    anyhow::bail!("still running")
}

#[test]
fn it_ends_with_its_targets_and_by_ctrl_c() -> Result<()> {
    let (mut server, mut client) = pair()?;
    let events = Events::attach(&[client.pid(), server.pid()], &[])?;
    let interrupted = Events::attach(&[server.pid()], &["--format", "pretty"])?;
    client.command("call 4 Echo succeed")?;
    server.command("settle")?;
    interrupted.signal(libc::SIGINT)?;
    let text = interrupted.text_to_end()?;
    assert_eq!(text.lines().filter(|line| line.contains(" server Echo ")).count(), 4, "{text}");
    client.quit()?;
    server.quit()?;
    let (status, lines) = events.wait()?;
    assert_eq!((status.code(), lines.len()), (Some(0), 8));
    Ok(())
}

#[test]
fn what_can_not_be_is_refused_before_anything_is_attached() -> Result<()> {
    let plain = Process::start(Program::Plain, Flavour::Default, &[])?;
    let pid = plain.pid().to_string();
    let cases: [(&[&str], i32, &str); 6] = [
        (&["--filter", "colour=red"], 2, "side, method, status, min_duration"),
        (&["--filter", "min_duration=5"], 2, "us, ms or s"),
        (&["--format", "xml"], 2, "ndjson"),
        (&["--pid", &pid], 2, "twice"),
        (&["--nonsense"], 2, "--nonsense"),
        (&[], 6, "no RPC framework"),
    ];
    for (args, code, said) in cases {
        let ended = run_to_end(&[&["events", "--pid", &pid], args].concat(), PATIENCE)?;
        assert_eq!((ended.code, &*ended.stdout), (Some(code), ""), "{args:?}: {}", ended.stderr);
        ensure!(ended.stderr.contains(said), "{args:?}: {}", ended.stderr);
        ensure!(ended.stderr.lines().all(|line| line != "attached"), "{args:?}: {}", ended.stderr);
    }
    // No process can have this pid: it is above the kernel's limit.
    let ended = run_to_end(&["events", "--pid", "4194305"], PATIENCE)?;
    assert_eq!((ended.code, &*ended.stdout), (Some(3), ""), "{}", ended.stderr);
    Ok(())
}

/// Runs the library's example on a real target.
#[test]
fn a_program_with_a_tracer_of_its_own() -> Result<()> {
    let (mut server, mut client) = pair()?;
    // Builds the whole workspace, like the tests: for the agent alone, dependencies would have other features and be
    // rebuilt.
    let mut build = cargo();
    build.args(["build", "--quiet", "--locked", "--workspace", "--example", "slow_calls"]);
    ensure!(build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("")).status()?.success());
    let target = std::env::current_exe()?;
    let target = target.ancestors().nth(2).context("a target directory")?;
    let mut example = Command::new(target.join("examples/slow_calls"));
    let child = example.arg(server.pid().to_string()).stdout(Stdio::piped()).spawn()?;
    // The example prints nothing when it has attached, but its probes are visible.
    let sites = Sites::of(server.pid())?;
    let begin = Instant::now();
    while sites.probed()? < sites.count() {
        ensure!(begin.elapsed() < PATIENCE, "it does not attach");
        std::thread::sleep(Duration::from_millis(10));
    }
    client.command("call 10 Echo succeed")?;
    client.command("call 3 Store succeed 64 3000")?;
    server.command("settle")?;
    server.quit()?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{text}");
    ensure!(text.lines().filter(|line| line.contains(" Store succeed ")).count() == 3, "{text}");
    ensure!(text.ends_with("13 calls seen\n"), "{text}");
    Ok(())
}

/// gRPC calls have lines, too. Failed ones have the name of their code.
#[test]
fn calls_of_grpc_are_lines_with_the_codes_that_they_ended_with() -> Result<()> {
    let mut target = Process::start(Program::Grpc, Flavour::Default, &[])?;
    let events = Events::attach(&[target.pid()], &[])?;
    target.command("run all 2")?;
    target.command("load 500 4")?;
    let lines = events.terminate()?;
    check_schema(&lines)?;
    assert_eq!(lost_in_all(&lines, "finish"), 0);
    let mut seen: BTreeMap<[String; 4], u64> = BTreeMap::new();
    for line in of_kind(&lines, "finish") {
        let code = if line["status"] == "succeed" { "OK" } else { field(line, "error")? };
        let key = [field(line, "side")?, field(line, "callee")?, field(line, "method")?, code];
        *seen.entry(key.map(str::to_owned)).or_default() += 1;
    }
    let mut own = BTreeMap::new();
    for (labels, calls) in grpc::Calls::of_target(&mut target)?.handled {
        let names = ["side", "grpc_service", "grpc_method", "grpc_code"];
        *own.entry(names.map(|name| labels[name].clone())).or_default() += calls;
    }
    ensure!(own.keys().any(|[.., code]| code.starts_with("Code(")), "all codes have names");
    assert_eq!(seen, own);
    Ok(())
}
