//! The targets themselves are correct: their tallies, the callers' counts and the in-process extension agree.

use std::time::{Duration, Instant};

use anyhow::Result;
use monitor_tests::{
    chain::check_results,
    process::Process,
    tally::{IN_PROCESS_LABELS, Tally},
    targets::{Flavour, Program},
};

const ALL_LABELS: [&str; 6] = ["type", "caller", "callee", "method", "status", "retry"];

struct Chain {
    client: Process,
    relay: Process,
    server: Process,
}

/// Starts a client that calls a relay that calls a server, each with the tally and the in-process extension.
fn chain(protocol: &str, client_flags: &[&str]) -> Result<Chain> {
    let tracers = ["--tracer", "tally,prometheus"];
    let protocol = ["--protocol", protocol];
    let server = Process::kitex(&[&["server"], &tracers[..]].concat())?;
    let relay = ["relay", "--connect", server.addr()?, "--service", "gate", "--caller", "gate"];
    let relay = Process::kitex(&[&relay, &tracers[..], &protocol].concat())?;
    let client = ["client", "--connect", relay.addr()?, "--callee", "gate"];
    let client = Process::kitex(&[&client, &tracers[..], &protocol, client_flags].concat())?;
    Ok(Chain { client, relay, server })
}

/// Waits until a process has settled, compares its tally with the in-process extension's metrics, and returns it.
fn settled(process: &mut Process) -> Result<Tally> {
    let state = process.command("settle")?;
    assert_eq!(state["started"], state["finished"]);
    let counts = process.command("counts")?;
    Tally::of_target(&counts, &IN_PROCESS_LABELS)?.check(&Tally::of_agent(
        &process.in_process_metrics()?,
        &IN_PROCESS_LABELS,
        None,
    )?)?;
    let tally = Tally::of_target(&counts, &ALL_LABELS)?;
    assert_eq!(state["finished"], tally.total());
    Ok(tally)
}

fn load(protocol: &str, client_flags: &[&str]) -> Result<[Tally; 3]> {
    let mut chain = chain(protocol, client_flags)?;
    let answer = chain.client.command("load 2000 8 1")?;
    assert_eq!(answer["calls"], 2000, "{answer}");
    Ok([settled(&mut chain.client)?, settled(&mut chain.relay)?, settled(&mut chain.server)?])
}

#[test]
fn both_protocols_count_the_same() -> Result<()> {
    let [client, relay, server] = load("ttheader", &[])?;
    let [framed_client, framed_relay, framed_server] = load("framed", &[])?;
    assert_eq!(client.total(), 2000);
    assert_eq!(client, framed_client);
    assert_eq!(server.total(), framed_server.total());
    assert_eq!(relay.sum(&[("side", "server"), ("caller", "shop")]), 2000);
    assert_eq!(framed_relay.sum(&[("side", "server"), ("caller", "unknown")]), 2000);
    // A failing oneway call fails only on the server.
    let failed_oneway = [("type", "oneway"), ("status", "error")];
    assert!(relay.sum(&failed_oneway) > 0);
    assert_eq!(client.sum(&failed_oneway), 0);
    // Calls forwarded by the relay arrive once.
    let relayed = relay.sum(&[("side", "server"), ("method", "Relay")]);
    assert!(relayed > 0);
    assert_eq!(relay.sum(&[("side", "client"), ("callee", "stock")]), relayed);
    assert_eq!(server.sum(&[("caller", "gate"), ("method", "Echo")]), relayed);
    Ok(())
}

#[test]
fn retries_and_nested_calls() -> Result<()> {
    let [client, relay, _] = load("ttheader", &["--retry", "--nested"])?;
    assert_eq!(client.sum(&[("callee", "gate")]), 2000);
    assert!(client.sum(&[("callee", "gate"), ("retry", "1"), ("status", "succeed")]) > 0);
    // The middleware runs once per attempt, and so does the relay's server, which sees both.
    let attempts = client.sum(&[("callee", "audit")]);
    assert!(attempts > 2000);
    assert_eq!(relay.sum(&[("side", "server")]), 2 * attempts);
    Ok(())
}

#[test]
fn callers_without_a_tracer_count_too() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let flags = ["client", "--connect", server.addr()?, "--tracer", "none", "--conns", "short"];
    let mut client = Process::kitex(&flags)?;
    let answer = client.command("load 1000 4 9")?;
    let counts = client.command("counts")?;
    assert_eq!(counts["finished"], 0);
    let seen = counts["loop"].as_array().unwrap();
    assert_eq!(seen.iter().map(|row| row["count"].as_u64().unwrap()).sum::<u64>(), 1000);
    assert!(answer["biz"].as_u64().unwrap() > 0 && answer["err"].as_u64().unwrap() > 0);
    assert_eq!(server.command("settle")?["finished"], 1000);
    let server = Tally::of_target(&server.command("counts")?, &["method"])?;
    for method in ["Echo", "Lookup", "Store", "Relay", "Notify"] {
        let calls = seen.iter().filter(|row| row["method"] == method);
        let calls = calls.map(|row| row["count"].as_u64().unwrap()).sum::<u64>();
        assert_eq!(server.sum(&[("method", method)]), calls, "{method}");
    }
    Ok(())
}

#[test]
fn a_flow_pauses_and_goes_on() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    client.command("flow 4 2000")?;
    let refused = client.command("load 1 1 1").unwrap_err();
    assert!(format!("{refused:#}").contains("pause it first"), "{refused:#}");
    std::thread::sleep(Duration::from_millis(300));
    let first = client.command("pause")?["calls"].as_u64().unwrap();
    assert!(first > 0);
    assert_eq!(server.command("settle")?["finished"], first);
    client.command("reset")?;
    server.command("reset")?;
    client.command("flow 4")?;
    let more = client.command("pause")?["calls"].as_u64().unwrap();
    assert_eq!(client.command("counts")?["finished"], more);
    assert_eq!(server.command("settle")?["finished"], more);
    Ok(())
}

#[test]
fn calls_that_come_to_what_they_did_not_ask_for_are_counted() -> Result<()> {
    for flags in [["--protocol", "framed"], ["--retry", "--nested"]] {
        let server = Process::kitex(&["server"])?;
        let mut client = Process::kitex(&[&["client", "--connect", server.addr()?], &flags[..]].concat())?;
        client.command("load 1000 4 9")?;
        client.command("call 10 Missing succeed")?;
        check_results(&mut client)?;
        drop(server);
        client.command("call 3 Lookup succeed")?;
        client.command("call 5 Lookup fail")?;
        assert_eq!(client.command("counts")?["unexpected"], 3, "{flags:?}");
    }
    Ok(())
}

#[test]
fn the_end_of_stdin_ends_a_target() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    client.command("flow 2 100")?;
    for process in [&mut client, &mut server] {
        let begin = Instant::now();
        assert!(process.quit()?.success());
        assert!(begin.elapsed() < Duration::from_secs(2));
    }
    Ok(())
}

#[test]
fn a_target_can_become_another_program() -> Result<()> {
    let plain = Program::Plain.build(Flavour::Default)?;
    let mut server = Process::kitex(&["server"])?;
    let pid = u64::from(server.pid());
    assert!(server.command("exec /no/such/program").is_err());
    server.command(&format!("exec {}", plain.display()))?;
    let ready = server.answer(Duration::from_secs(5))?;
    assert_eq!(ready["pid"], pid);
    assert!(server.is_running()?);
    assert!(server.quit()?.success());
    Ok(())
}

#[test]
fn all_flavours_run() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = Process::start(Program::Kitex, flavour, &["server"])?;
        let mut client = Process::start(Program::Kitex, flavour, &["client", "--connect", server.addr()?])?;
        assert_eq!(client.command("call 10 Lookup succeed 1024")?["ok"], 10);
    }
    Ok(())
}
