//! gRPC-Go: the agent's counts equal those of interceptors in the process.

use std::{process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::{Agent, run_to_end},
    chain::check_closed,
    events::{Events, of_kind},
    grpc,
    process::Process,
    scrape::whole,
    targets::{Flavour, Program},
};
use serde_json::Value;

use crate::schema::check_schema;

/// Makes every kind of call, and compares the agent's counts with the process's own.
fn counts_exactly(flavour: Flavour) -> Result<()> {
    let mut target = Process::start(Program::Grpc, flavour, &[])?;
    let agent = Agent::attach(&[target.pid()], &[])?;
    target.command("run all 3")?;
    target.command("load 3000 16")?;
    let scrape = agent.scrape_settled()?;
    let calls = grpc::check(&mut target, &scrape, false)?;
    ensure!(calls.total() > 6_000, "{} calls", calls.total());
    ensure!(scrape.samples("kitex_server_throughput").next().is_none(), "calls of another framework");
    agent.terminate()?;
    Ok(())
}

#[test]
fn every_kind_of_call_is_counted_once() -> Result<()> {
    counts_exactly(Flavour::Default)
}

#[test]
fn a_stripped_executable_that_lies_anywhere_is_proven_as_well() -> Result<()> {
    counts_exactly(Flavour::StrippedPie)
}

/// Calls counted as `other` still differ by code, and a server may make up any code. Once the reserve for `other` is
/// used up, further calls, starts and messages of streams are lost, and counted as lost.
#[test]
fn codes_past_the_reserve_for_other_are_lost_and_counted() -> Result<()> {
    const CODES: u64 = 200;
    const STREAMS: u64 = 5;
    let mut target = Process::start(Program::Grpc, Flavour::Default, &[])?;
    let agent = Agent::attach(&[target.pid()], &["--max-label-sets", "1", "--grpc.messages"])?;
    // On both sides. There is room for one label set and the reserve of 256.
    target.command(&format!("codes {CODES}"))?;
    // Streams have another type, so their starts need label sets, too.
    target.command(&format!("run bidirectional {STREAMS}"))?;
    let scrape = agent.scrape_settled()?;
    let (own, agents) = (grpc::Calls::of_target(&mut target)?, grpc::Calls::of_agent(&scrape, None));
    let lost = |name, reason| whole(scrape.sum(name, &[("reason", reason)]));
    let finishes = lost("monitor_events_lost_total", "label_table_failed");
    ensure!(own.total() == 2 * (CODES + STREAMS), "{own:?}");
    ensure!(
        finishes >= own.total() - 257 && agents.total() == own.total() - finishes,
        "{finishes}: {agents:?}"
    );
    ensure!(lost("monitor_unpaired_starts_total", "label_table_failed") == finishes, "{finishes} finishes");
    let starts = lost("monitor_events_lost_total", "start_label_table_failed");
    let started = |calls: &grpc::Calls| calls.started.values().sum::<u64>();
    ensure!(starts == 2 * STREAMS && started(&agents) == started(&own) - starts, "{starts}: {agents:?}");
    let messages = |calls: &grpc::Calls| calls.messages_of("bidi_stream");
    // Two in each direction, on both sides.
    ensure!((messages(&own), messages(&agents)) == (8 * STREAMS, 0), "{own:?}, {agents:?}");
    let lost_messages = lost("monitor_events_lost_total", "message");
    ensure!(lost_messages == messages(&own), "{lost_messages} messages lost");
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

/// A stream may be waiting for a message when the agent attaches. The agent sees only the end of this wait, not its
/// start.
#[test]
fn messages_that_streams_were_waiting_for_are_lost_and_counted() -> Result<()> {
    const STREAMS: u64 = 9;
    let mut target = Process::start(Program::Grpc, Flavour::Default, &[])?;
    target.command(&format!("wait {STREAMS}"))?;
    let before = grpc::Calls::of_target(&mut target)?.messages();
    let agent = Agent::attach(&[target.pid()], &["--grpc.messages"])?;
    target.command("exchange")?;
    let scrape = agent.scrape_settled()?;
    let after = grpc::Calls::of_target(&mut target)?.messages();
    // One in each direction: both sides have waited for the other's message, and have sent one since.
    ensure!(after - before == 4 * STREAMS, "{} messages", after - before);
    let agents = grpc::Calls::of_agent(&scrape, None);
    let lost = whole(scrape.sum("monitor_events_lost_total", &[("reason", "message")]));
    ensure!((agents.messages(), lost) == (2 * STREAMS, 2 * STREAMS), "{lost} lost: {agents:?}");
    ensure!(agents.received.is_empty(), "{agents:?}");
    // The starts of the streams are unknown, too: those of the server have no duration, and for those of the client, it
    // is unknown which end is the first.
    ensure!((agents.total(), agents.started.len()) == (STREAMS, 0), "{agents:?}");
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

/// The table of messages in flight has no more room than the one of calls.
#[test]
fn messages_that_find_no_room_are_lost_and_counted() -> Result<()> {
    const STREAMS: u64 = 20;
    let mut target = Process::start(Program::Grpc, Flavour::Default, &[])?;
    let agent = Agent::attach(&[target.pid()], &["--grpc.messages", "--max-in-flight", "1"])?;
    // Each side waits for a message. Only some of them find room.
    target.command(&format!("wait {STREAMS}"))?;
    target.command("exchange")?;
    let scrape = agent.scrape_settled()?;
    let (own, agents) = (grpc::Calls::of_target(&mut target)?, grpc::Calls::of_agent(&scrape, None));
    // Two in each direction, on both sides.
    ensure!(own.messages() == 8 * STREAMS, "{own:?}");
    let lost = whole(scrape.sum("monitor_events_lost_total", &[("reason", "message")]));
    ensure!(lost > STREAMS && agents.messages() + lost == own.messages(), "{lost} lost: {agents:?}");
    own.check(&agents)?;
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

/// Fails unless the calls that a command makes, and their messages, are counted as by the interceptors.
fn counts_as_interceptors_do(command: &str) -> Result<()> {
    let mut target = Process::start(Program::Grpc, Flavour::Default, &[])?;
    let agent = Agent::attach(&[target.pid()], &["--grpc.messages"])?;
    target.command(command)?;
    let scrape = agent.scrape_settled()?;
    grpc::check(&mut target, &scrape, false)?;
    grpc::check_messages(&mut target, &scrape, false)?;
    agent.terminate()?;
    Ok(())
}

#[test]
fn messages_are_counted_as_interceptors_count_them() -> Result<()> {
    counts_as_interceptors_do("run all 20")
}

/// Everything that go-grpc-prometheus counts in the same process, by its own names. `docs/metrics.md` lists the
/// differences.
#[test]
fn the_library_that_the_names_are_from_counts_the_same() -> Result<()> {
    let mut target = Process::start(Program::GrpcReference, Flavour::Default, &[])?;
    let agent = Agent::attach(&[target.pid()], &["--grpc.messages"])?;
    target.command("run all 5")?;
    target.command("load 1000 16")?;
    let scrape = agent.scrape_settled()?;
    grpc::check(&mut target, &scrape, false)?;
    grpc::check_reference(&target.in_process_metrics()?, &scrape)?;
    agent.terminate()?;
    Ok(())
}

#[test]
fn two_frameworks_side_by_side_are_told_apart() -> Result<()> {
    let server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    let mut target = Process::start(Program::Grpc, Flavour::Default, &[])?;
    let agent = Agent::attach(&[server.pid(), target.pid()], &[])?;
    client.command("load 500 4 1")?;
    target.command("run all 1")?;
    let scrape = agent.scrape_settled()?;
    grpc::check(&mut target, &scrape, true)?;
    let calls = |name: &str, pid: u32| whole(scrape.sum(name, &[("target", pid.to_string().as_str())]));
    ensure!(calls("kitex_server_throughput", target.pid()) == 0, "gRPC under the names of Kitex");
    ensure!(calls("kitex_server_throughput", server.pid()) == 500, "Kitex under its own names");
    ensure!(calls("grpc_server_handled_total", server.pid()) == 0, "Kitex under the names of gRPC");
    agent.terminate()?;
    Ok(())
}

/// Kitex and gRPC-Go in one process, called alternately by the same goroutines. The counts of each are its own.
#[test]
fn two_frameworks_in_one_process_are_told_apart() -> Result<()> {
    let executable = Program::Inside.build(Flavour::Default)?;
    let start = |args: &[&str]| Process::start_command(Command::new(&executable).args(args));
    let server = start(&["--service", "stock"])?;
    let mut client = start(&["--service", "shop", "--connect", server.addr()?])?;
    let agent = Agent::attach(&[client.pid()], &[])?;
    let answer = client.command("both 2000 8")?;
    let scrape = agent.scrape_settled()?;
    for (side, own) in [("server", "servers"), ("client", "clients")] {
        let own = answer[own].as_object().context("no counts in the target's answer")?;
        ensure!(own.len() == 2, "{own:?}");
        for (code, calls) in own {
            let name = format!("grpc_{side}_handled_total");
            let labels = [
                ("grpc_type", "unary"),
                ("grpc_service", "grpc.health.v1.Health"),
                ("grpc_method", "Check"),
                ("grpc_code", code.as_str()),
            ];
            let counted = scrape.value(&name, &labels).map(whole);
            ensure!(counted == calls.as_u64(), "{side} {code}: {counted:?}, inside {calls}");
        }
        ensure!(whole(scrape.sum(&format!("grpc_{side}_handled_total"), &[])) == 2000, "{side}");
        let timed = scrape.histogram(&format!("grpc_{side}_handling_seconds"), &[]);
        ensure!(timed.is_some_and(|timed| whole(timed.count) == 2000), "{side}: not all timed");
    }
    ensure!(whole(scrape.sum("kitex_client_throughput", &[])) == 2000, "Kitex's own calls");
    ensure!(scrape.samples("kitex_server_throughput").next().is_none(), "nothing is served with Kitex here");
    let timed = scrape.histogram("kitex_client_latency_us", &[]);
    ensure!(timed.is_some_and(|timed| whole(timed.count) == 2000), "not all of Kitex's are timed");
    agent.terminate()?;
    Ok(())
}

/// The duration on the server is within the one on the client, which is within the one that the caller measures. Calls
/// of one method and streams take 20 ms, other calls meanwhile do not.
#[test]
fn durations_are_those_of_the_calls() -> Result<()> {
    const CALLS: u32 = 50;
    const SLEEP: f64 = 0.02;
    const QUICK: &str = "Call";
    let mut target = Process::start(Program::Grpc, Flavour::Default, &[])?;
    let agent = Agent::attach(&[target.pid()], &[])?;
    let answer = target.command(&format!("pace {CALLS}"))?;
    let took = answer["seconds"].as_object().context("no durations in the target's answer")?;
    ensure!(took.len() == 3 && took.contains_key(QUICK), "{answer}");
    let scrape = agent.scrape_settled()?;
    for (method, own) in took {
        let timed = |side: &str| {
            let labels = [("grpc_method", method.as_str())];
            let timed = scrape.histogram(&format!("grpc_{side}_handling_seconds"), &labels);
            let timed = timed.with_context(|| format!("{side}: no durations of {method}"))?;
            ensure!(whole(timed.count) == u64::from(CALLS), "{side}: {} of {method}", timed.count);
            anyhow::Ok(timed.sum)
        };
        let slept = if method == QUICK { 0.0 } else { SLEEP * f64::from(CALLS) };
        let seconds = [slept, timed("server")?, timed("client")?, own.as_f64().context("no number")?];
        ensure!(seconds.is_sorted(), "{method}: asleep, the server, the client, from outside: {seconds:?}");
    }
    grpc::check(&mut target, &scrape, false)?;
    agent.terminate()?;
    Ok(())
}

#[test]
fn calls_under_way_are_not_timed() -> Result<()> {
    let mut target = Process::start(Program::Grpc, Flavour::Default, &[])?;
    target.send("load 60000 16")?;
    let agent = Agent::attach(&[target.pid()], &[])?;
    target.answer(Duration::from_mins(1))?;
    let scrape = agent.scrape_settled()?;
    for side in ["client", "server"] {
        let sum = |name: &str| scrape.sum(&format!("grpc_{side}_{name}"), &[]);
        let (started, handled) = (sum("started_total"), sum("handled_total"));
        let timed = scrape.histogram(&format!("grpc_{side}_handling_seconds"), &[]);
        let timed = timed.map_or(0.0, |histogram| histogram.count);
        ensure!(whole(started) == whole(timed), "{side}: {started} started, {timed} timed");
        ensure!(timed <= handled, "{side}: {timed} timed, {handled} handled");
        ensure!(handled < 60_000.0 && handled > 0.0, "{side}: {handled} of 60000 calls seen");
    }
    agent.terminate()?;
    Ok(())
}

/// Calls of rare kinds are counted like any other.
#[test]
fn odd_calls_are_counted_once() -> Result<()> {
    counts_as_interceptors_do("odd 3")
}

/// A peer may make calls without a service name, a method name, or both. Neither labels nor fields of lines are empty
/// for these calls.
#[test]
fn names_that_are_none_are_unknown() -> Result<()> {
    const ECHO: &str = "monitor.test.Echo";
    let mut target = Process::start(Program::Grpc, Flavour::Default, &[])?;
    let agent = Agent::attach(&[target.pid()], &[])?;
    target.command("odd 2")?;
    let scrape = agent.scrape_settled()?;
    for (service, method) in [(ECHO, "unknown"), ("unknown", "Call"), ("unknown", "unknown")] {
        for (side, kind) in [("client", "unary"), ("server", "unknown")] {
            let labels = [
                ("grpc_type", kind),
                ("grpc_service", service),
                ("grpc_method", method),
                ("grpc_code", "Unimplemented"),
            ];
            let calls = scrape.value(&format!("grpc_{side}_handled_total"), &labels).map(whole);
            ensure!(calls == Some(2), "{side}, {service}, {method}: {calls:?}");
        }
    }
    agent.terminate()?;
    let events = Events::attach(&[target.pid()], &[])?;
    target.command("odd 1")?;
    let lines = events.terminate()?;
    check_schema(&lines)?;
    let finishes = of_kind(&lines, "finish");
    let is_nameless = |line: &&&Value| line["callee"] == ECHO && line["method"] == "unknown";
    let nameless = finishes.iter().filter(is_nameless).count();
    ensure!(nameless == 2, "{nameless} lines, not one of each side");
    Ok(())
}

/// Calls that never get a stream end when they learn that they are not retried, or that they can't be since their
/// connection is closed.
#[test]
fn calls_that_never_get_a_stream_are_counted_as_they_end() -> Result<()> {
    let mut target = Process::start(Program::Grpc, Flavour::Stripped, &[])?;
    let agent = Agent::attach(&[target.pid()], &[])?;
    target.command("strand 300")?;
    target.command("close 200")?;
    target.command("run unary 100")?;
    let scrape = agent.scrape_settled()?;
    grpc::check(&mut target, &scrape, false)?;
    for code in ["Unavailable", "Canceled"] {
        let ended = scrape.sum("grpc_client_handled_total", &[("grpc_code", code)]);
        ensure!(whole(ended) >= 200, "{code}: {ended}");
    }
    let without =
        scrape.sum("monitor_unpaired_starts_total", &[]) + scrape.sum("monitor_calls_in_flight", &[]);
    ensure!(without == 0.0, "{without} starts without an end");
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

/// Calls that wait for a stream when the agent attaches, both unary calls and streams, have one end. They are counted,
/// without a duration.
fn counts_calls_that_wait(flavour: Flavour) -> Result<()> {
    const CALLS: u64 = 50;
    let mut target = Process::start(Program::Grpc, flavour, &[])?;
    target.command(&format!("stall {CALLS}"))?;
    let agent = Agent::attach(&[target.pid()], &[])?;
    target.command("release")?;
    let scrape = agent.scrape_settled()?;
    let (own, agents) = (grpc::Calls::of_target(&mut target)?, grpc::Calls::of_agent(&scrape, None));
    ensure!(own.total() == 2 * CALLS, "{own:?}");
    ensure!(agents.handled == own.handled && agents.started.is_empty(), "{agents:?}, the target {own:?}");
    let finishes = |outcome| whole(scrape.sum("monitor_finishes_total", &[("outcome", outcome)]));
    let (unpaired, repeated) = (finishes("unpaired"), finishes("repeated"));
    ensure!((unpaired, repeated) == (2 * CALLS, 0), "{unpaired} without a start, {repeated} repeated");
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

#[test]
fn calls_that_wait_for_a_stream_as_the_agent_comes_are_counted() -> Result<()> {
    counts_calls_that_wait(Flavour::Stripped)
}

#[test]
fn calls_that_wait_for_a_stream_are_counted_where_nothing_is_optimised() -> Result<()> {
    counts_calls_that_wait(Flavour::NotOptimised)
}

/// A call that got a stream which the server left unprocessed ends once, even if its next attempt gets no stream.
#[test]
fn calls_that_are_left_unprocessed_are_counted_once() -> Result<()> {
    const CALLS: u64 = 20;
    for flavour in [Flavour::Stripped, Flavour::NotOptimised] {
        let mut target = Process::start(Program::Grpc, flavour, &[])?;
        let agent = Agent::attach(&[target.pid()], &[])?;
        target.command(&format!("run left unprocessed {CALLS}"))?;
        let scrape = agent.scrape_settled()?;
        let calls = grpc::check(&mut target, &scrape, false)?;
        ensure!(calls.total() == CALLS, "{flavour:?}: {calls:?}");
        agent.terminate()?;
    }
    Ok(())
}

/// If gRPC-Go is not optimised, calls that are retried and never get a stream have no visible end. Later calls at the
/// same addresses have their own start, name and duration.
#[test]
fn a_call_has_nothing_of_one_that_lay_there_before() -> Result<()> {
    const STRANDED: u64 = 500;
    const STREAMS: u64 = 4_000;
    let mut target = Process::start(Program::Grpc, Flavour::NotOptimised, &[])?;
    let agent = Agent::attach(&[target.pid()], &[])?;
    target.command(&format!("strand {STRANDED}"))?;
    // A stream paired with the start of one of these calls would take longer than any stream does.
    thread::sleep(Duration::from_secs(2));
    target.command(&format!("run bidirectional {STREAMS}"))?;
    let scrape = agent.scrape_settled()?;
    let (mut own, agents) = (grpc::Calls::of_target(&mut target)?, grpc::Calls::of_agent(&scrape, None));
    own.handled.retain(|labels, _| labels["grpc_code"] != "Unavailable");
    ensure!(own.total() == 2 * STREAMS, "{own:?}");
    own.check(&agents)?;
    for side in grpc::SIDES {
        let streams = [("grpc_type", "bidi_stream")];
        let timed = scrape.histogram(&format!("grpc_{side}_handling_seconds"), &streams);
        let timed = timed.with_context(|| format!("{side}: no stream is timed"))?;
        let quick = timed.up_to(1.0).context("no bucket ends there")?;
        ensure!((whole(timed.count), whole(quick)) == (STREAMS, STREAMS), "{side}: {timed:?}");
    }
    let displaced = scrape.sum("monitor_unpaired_starts_total", &[("reason", "abandoned")]);
    let in_flight = scrape.sum("monitor_calls_in_flight", &[]);
    ensure!(displaced > 0.0, "no call lay where one was that did not end");
    ensure!(whole(displaced + in_flight) == STRANDED, "{displaced} displaced, {in_flight} in flight");
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

/// If no attempts are left for sending, the error wraps the one of a successful end. The stream has not ended
/// successfully.
#[test]
fn streams_whose_attempts_are_used_up_have_not_ended_well() -> Result<()> {
    const STREAMS: u64 = 50;
    let mut target = Process::start(Program::Grpc, Flavour::Stripped, &[])?;
    let agent = Agent::attach(&[target.pid()], &[])?;
    target.command(&format!("exhaust {STREAMS}"))?;
    let scrape = agent.scrape_settled()?;
    let streams = |code: &[(&str, &str)]| {
        let labels = [&[("grpc_type", "bidi_stream")], code].concat();
        whole(scrape.sum("grpc_client_handled_total", &labels))
    };
    let [all, well, unknown] = [&[][..], &[("grpc_code", "OK")], &[("grpc_code", "Unknown")]].map(streams);
    ensure!((all, well) == (STREAMS, 0), "{well} of {all} have ended well");
    ensure!(unknown > 0, "none ended as it was sent");
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

/// Hanging handlers are visible while they hang, on both sides and by name: how many of each kind, and since when.
/// There are two more streams than unary calls, and they are half a second younger.
#[test]
fn calls_in_flight_have_names_and_ages() -> Result<()> {
    const KINDS: [(&str, &str, u64); 2] = [("unary", "Call", 5), ("bidi_stream", "Chat", 7)];
    let mut target = Process::start(Program::Grpc, Flavour::StrippedPie, &[])?;
    let agent = Agent::attach(&[target.pid()], &[])?;
    target.command("run unary 3")?;
    target.command("hang 5")?;
    thread::sleep(Duration::from_millis(400));
    let named =
        |kind, method| [("grpc_type", kind), ("grpc_service", "monitor.test.Echo"), ("grpc_method", method)];
    let scrape = agent.scrape()?;
    for side in ["server", "client"] {
        let mut ages = [0.0; 2];
        for ((kind, method, calls), age) in KINDS.into_iter().zip(&mut ages) {
            let value = |what: &str| scrape.value(&format!("grpc_{side}_{what}"), &named(kind, method));
            ensure!(value("in_flight").map(whole) == Some(calls), "{side}: {:?}", value("in_flight"));
            *age = value("oldest_call_age_seconds").unwrap_or_default();
            ensure!((0.4..20.0).contains(&*age), "{side}: {age}");
        }
        let [unary, stream] = ages;
        ensure!((0.4..5.0).contains(&(unary - stream)), "{side}: {unary} and {stream}");
        let all = scrape.sum(&format!("grpc_{side}_in_flight"), &[]);
        ensure!(whole(all) == 12, "{side}: {all} calls in flight");
    }
    ensure!(scrape.samples("kitex_server_in_flight").next().is_none(), "calls of another framework");
    target.command("release")?;
    let scrape = agent.scrape_settled()?;
    for side in ["server", "client"] {
        for what in ["in_flight", "oldest_call_age_seconds"] {
            let name = format!("grpc_{side}_{what}");
            for (kind, method, _) in KINDS {
                let value = scrape.value(&name, &named(kind, method));
                ensure!(value == Some(0.0), "{name} of {method} went on with {value:?}");
            }
        }
    }
    grpc::check(&mut target, &scrape, false)?;
    agent.terminate()?;
    Ok(())
}

#[test]
fn inspect_shows_both_sides_and_the_labels() -> Result<()> {
    let executable = Program::Grpc.build(Flavour::Stripped)?;
    let path = executable.to_str().expect("a path that is UTF-8");
    let ended = run_to_end(&["inspect", "--json", "--exe", path], Duration::from_secs(20))?;
    let said: Value = serde_json::from_str(&ended.stdout)?;
    let framework = &said["frameworks"][0];
    ensure!(framework["name"] == "grpc" && framework["attachable"] == true, "{said}");
    ensure!(framework["labels"].as_array().is_some_and(|labels| labels.len() == 4), "{said}");
    let symbols: Vec<_> = framework["sites"].as_array().into_iter().flatten().collect();
    for (role, symbol) in [
        ("start", "google.golang.org/grpc.(*Server).processUnaryRPC"),
        ("start", "google.golang.org/grpc.(*clientStream).newAttemptLocked"),
        ("finish", "google.golang.org/grpc/internal/transport.(*http2Server).writeStatus"),
        ("finish", "google.golang.org/grpc/internal/transport.(*serverHandlerTransport).writeStatus"),
        ("finish", "google.golang.org/grpc.(*clientStream).finish"),
        ("finish", "google.golang.org/grpc.(*clientStream).retryLocked"),
        ("enter", "google.golang.org/grpc.(*serverStream).SendMsg"),
        ("count", "google.golang.org/grpc.(*serverStream).SendMsg"),
        ("enter", "google.golang.org/grpc.(*clientStream).RecvMsg"),
        ("count", "google.golang.org/grpc.(*clientStream).RecvMsg"),
    ] {
        let is_there = symbols.iter().any(|site| site["role"] == role && site["symbol"] == symbol);
        ensure!(is_there, "no {role} at {symbol}: {said}");
    }
    Ok(())
}
