//! Events for programs: many independent readers of a Unix socket, and the calls that the agent keeps.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::{Agent, run_to_end},
    chain::check_calls,
    events::{SocketReader, check_same, logged, lost, lost_in_all, of_kind, parse},
    process::Process,
    tally::DEFAULT_LABELS,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

/// A separate path for each test. Removes what is there.
fn path(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.sock"));
    let _ = fs::remove_file(&path);
    path
}

fn pair() -> Result<(Process, Process)> {
    let server = Process::kitex(&["server", "--tracer", "tally,log"])?;
    let client = Process::kitex(&["client", "--connect", server.addr()?, "--tracer", "tally,log"])?;
    Ok((server, client))
}

fn attach(pids: &[u32], path: &std::path::Path, args: &[&str]) -> Result<Agent> {
    let socket = path.to_str().context("a path that is text")?;
    Agent::attach(pids, &[&["--events.socket", socket], args].concat())
}

/// One reader reads nothing under load until lines are dropped, one reads all the time, one sends garbage, one hangs
/// up.
#[test]
fn a_slow_reader_loses_its_own_events_only() -> Result<()> {
    let path = path("slow");
    let (mut server, mut client) = pair()?;
    let agent = attach(&[client.pid(), server.pid()], &path, &[])?;
    let reader = SocketReader::of(UnixStream::connect(&path)?);
    let mut stopped = UnixStream::connect(&path)?;
    let mut garbage = UnixStream::connect(&path)?;
    garbage.write_all(&[0xff; 4_096])?;
    drop(UnixStream::connect(&path)?);
    thread::sleep(Duration::from_millis(200));

    client.command("flow 8")?;
    // Two readers do not read, so half of these lines are those of `stopped`.
    let begin = Instant::now();
    while agent.scrape()?.sum("monitor_event_lines_dropped_total", &[]) < 30_000.0 {
        ensure!(begin.elapsed() < Duration::from_mins(1), "hardly a line was dropped");
        thread::sleep(Duration::from_millis(100));
    }
    let calls = client.command("pause")?["calls"].as_u64().context("no calls")?;
    server.command("settle")?;
    // Starts reading only now. From here on, it receives all lines again.
    let slow = thread::spawn(move || -> Result<Vec<Value>> {
        let mut text = String::new();
        stopped.read_to_string(&mut text)?;
        parse(&text)
    });
    thread::sleep(Duration::from_millis(500));
    let scrape = agent.scrape_settled()?;
    assert_eq!(check_calls(&mut client, &scrape, &DEFAULT_LABELS, true)?.total(), calls);
    assert_eq!(check_calls(&mut server, &scrape, &DEFAULT_LABELS, true)?.total(), calls);
    let dropped = scrape.sum("monitor_event_lines_dropped_total", &[]);
    client.command("call 100 Echo succeed")?;
    server.command("settle")?;
    agent.terminate()?;

    let all = reader.to_end()?;
    assert_eq!((of_kind(&all, "finish").len() as u64, of_kind(&all, "lost").len()), (2 * calls + 200, 0));
    for process in [&mut client, &mut server] {
        check_same(process.pid(), &all, &logged(process)?)?;
    }
    let slow = slow.join().expect("the thread runs to its end")?;
    let (lines, lost) = (of_kind(&slow, "finish").len() as u64, lost(&slow, "finish", "slow_reader"));
    assert_eq!(lines + lost, 2 * calls + 200, "{lines} lines, {lost} lost");
    assert_eq!(lost, lost_in_all(&slow, "finish"));
    ensure!(lost > 10_000, "only {lost} of {calls} calls were lost: it was not slow");
    // Includes the lines of the other reader that did not read.
    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    let told = lost as f64;
    ensure!(dropped >= told, "{dropped} dropped in all, {lost} by the one");
    // Its lines are a subset of all lines, in the same order.
    let mut rest = all.iter();
    for line in of_kind(&slow, "finish") {
        ensure!(rest.any(|other| other == line), "nobody else has {line}");
    }
    Ok(())
}

#[test]
fn the_socket_is_the_owners_and_goes_with_the_agent() -> Result<()> {
    let path = path("owner");
    let (mut server, mut client) = pair()?;
    // As left behind by an agent that was killed.
    drop(UnixListener::bind(&path)?);
    let agent = attach(&[server.pid()], &path, &[])?;
    let metadata = fs::symlink_metadata(&path)?;
    ensure!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    // A second agent must not take the socket over, and a file is never replaced.
    let pid = server.pid().to_string();
    let socket = path.to_str().context("a path that is text")?;
    let args = ["run", "--pid", &pid, "--web.listen-address", "127.0.0.1:0", "--events.socket"];
    let refused = |path: &str, said: &str| -> Result<()> {
        let ended = run_to_end(&[&args[..], &[path]].concat(), PATIENCE)?;
        ensure!(ended.code == Some(7) && ended.stderr.contains(said), "{path}: {ended:?}");
        Ok(())
    };
    refused(socket, "is served by another process")?;
    let file = path.with_extension("file");
    fs::write(&file, "mine")?;
    refused(file.to_str().context("text")?, "is no socket")?;
    assert_eq!(fs::read_to_string(&file)?, "mine");
    refused("/proc/nowhere/socket", "can't listen on")?;
    let ended = run_to_end(&[&args[..], &[socket, "--metrics", "go"]].concat(), PATIENCE)?;
    ensure!(ended.code == Some(2) && ended.stderr.contains("wants none"), "{ended:?}");

    // The first agent's socket still works.
    let reader = SocketReader::of(UnixStream::connect(&path)?);
    let begin = Instant::now();
    while agent.scrape()?.sum("monitor_event_readers", &[]) < 1.0 {
        ensure!(begin.elapsed() < PATIENCE, "it lets nobody in");
    }
    client.command("call 3 Echo succeed")?;
    server.command("settle")?;
    thread::sleep(Duration::from_millis(200));
    assert_eq!(reader.lines()?.len(), 3);
    let (status, took) = agent.terminate()?;
    ensure!(status.success() && took < Duration::from_secs(2), "{status}, {took:?}");
    assert_eq!(reader.to_end()?.len(), 3);
    ensure!(!path.exists(), "the socket stays behind");
    Ok(())
}

#[test]
fn no_more_readers_than_there_is_memory_for() -> Result<()> {
    let path = path("many");
    let (server, _client) = pair()?;
    let agent = attach(&[server.pid()], &path, &[])?;
    let mut readers = Vec::new();
    for _ in 0..16 {
        readers.push(UnixStream::connect(&path)?);
    }
    let begin = Instant::now();
    while agent.scrape()?.sum("monitor_event_readers", &[]) < 16.0 {
        ensure!(begin.elapsed() < PATIENCE, "sixteen are not let in");
    }
    let mut one_more = UnixStream::connect(&path)?;
    one_more.set_read_timeout(Some(PATIENCE))?;
    assert_eq!(one_more.read(&mut [0])?, 0, "it is not turned away");
    // Readers that hang up free their places, even if there are no events to send.
    readers.clear();
    let begin = Instant::now();
    while agent.scrape()?.sum("monitor_event_readers", &[]) > 0.0 {
        ensure!(begin.elapsed() < PATIENCE, "they keep their places");
        thread::sleep(Duration::from_millis(50));
    }
    agent.terminate()?;
    Ok(())
}

/// Compares the calls that the agent keeps with the target's log.
#[test]
fn the_slowest_and_the_last_failed_calls() -> Result<()> {
    let (mut server, mut client) = pair()?;
    let pids = [client.pid(), server.pid()];
    let agent = Agent::attach(&pids, &["--capture.slow", "3"])?;
    client.command("load 1500 4 8")?;
    for sleep_us in [20_000, 40_000, 30_000, 60_000, 50_000] {
        client.command(&format!("call 1 Store succeed 64 {sleep_us}"))?;
    }
    client.command("call 5 Echo fail")?;
    server.command("settle")?;
    thread::sleep(Duration::from_millis(250));
    let calls = |query: &str| -> Result<Vec<Value>> {
        let report: Value = serde_json::from_str(&agent.get(&format!("/api/v1/calls{query}"))?)?;
        Ok(report["calls"].as_array().context("no calls")?.clone())
    };
    let target = client.pid();
    let stores = calls(&format!("?target={target}&side=client&method=Store"))?;
    let good = stores.iter().find(|set| set["status"] == "succeed").context("no successful calls")?;
    let durations: Vec<_> = good["slowest"]
        .as_array()
        .context("a list")?
        .iter()
        .map(|call| call["duration_us"].as_u64())
        .collect();
    ensure!(durations.len() == 3 && durations.is_sorted_by(|one, next| one >= next), "{durations:?}");
    for (duration, least) in durations.iter().zip([60_000, 50_000, 40_000]) {
        ensure!(*duration >= Some(least), "{durations:?}");
    }
    // Servers know the peer of a call.
    let own = logged(&mut server)?;
    let peers: BTreeSet<_> = own.iter().filter_map(|call| call["peer"].as_str()).collect();
    let handled = calls("?side=server&method=Store")?;
    let slowest = handled.iter().flat_map(|set| set["slowest"].as_array().into_iter().flatten());
    for call in slowest {
        ensure!(call["peer"].as_str().is_some_and(|peer| peers.contains(peer)), "{call} is not of {peers:?}");
    }
    ensure!(!handled.is_empty() && !peers.is_empty(), "no peers: this shows nothing");
    // The kept failures are the last ones in the process's log.
    let own = logged(&mut client)?;
    let failed: Vec<_> = own
        .iter()
        .rev()
        .filter(|call| call["method"] == "Echo" && call["status"] == "error")
        .take(3)
        .collect();
    let echoes = calls(&format!("?target={target}&method=Echo"))?;
    let bad = echoes.iter().filter(|set| set["status"] == "error");
    let kept: Vec<_> = bad.flat_map(|set| set["failed"].as_array().into_iter().flatten()).collect();
    for call in &failed {
        let same = |kept: &&&Value| {
            ["goroutine", "sent_bytes", "received_bytes"].iter().all(|name| kept[*name] == call[*name])
        };
        ensure!(kept.iter().any(|kept| same(&kept)), "{call} is not in {kept:?}");
    }
    ensure!(calls("")?.len() > stores.len(), "a query chooses nothing");
    assert_eq!(calls("?target=1")?.len(), 0);
    for query in ["?colour=red", "?target=x", "?side=both"] {
        assert_eq!(agent.status(&format!("/api/v1/calls{query}"))?, 400, "{query}");
    }
    agent.terminate()?;
    let without = Agent::attach(&pids, &[])?;
    assert_eq!(without.status("/api/v1/calls")?, 404);
    without.terminate()?;
    Ok(())
}
