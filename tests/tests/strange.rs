//! Targets that pass the probes other things than Kitex does: nothing is mistaken for something else or counted wrong,
//! and lost calls are counted as lost.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::Agent,
    chain::{Account, check_closed},
    events::{Events, lost, lost_in_all, of_kind},
    process::Process,
    scrape::{Scrape, whole},
    side_by_side,
    strange::{Seen, USUAL, Watched, row, tally},
    tally::Tally,
    targets::{Flavour, Program},
    text::Sites,
};

/// What happens to a string that is a name of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Becomes {
    Text,
    Implausible,
    NotInMemory,
}

#[test]
fn strings_that_lie() -> Result<()> {
    let x = |count: usize| "x".repeat(count);
    let forms: Vec<(&str, Becomes, String)> = [
        ("text:", "unknown".to_owned()),
        ("text:Lookup", "Lookup".to_owned()),
        ("length:63", x(63)),
        ("length:64", x(64)),
        ("length:65", x(64) + "…"),
        ("length:1048576", x(64) + "…"),
        ("invalid-utf8", "\u{fffd}\u{fffd}Echo\u{fffd}".to_owned()),
        ("cut-character", x(63) + "…"),
        ("page-last:5", "yyyyy".to_owned()),
        ("page-last:64", "y".repeat(64)),
        // The part that is kept can be read, and the rest does not matter.
        ("page-end:128", "y".repeat(64) + "…"),
    ]
    .into_iter()
    .map(|(form, shown)| (form, Becomes::Text, shown))
    .chain(
        ["length:1048577", "huge", "largest", "negative", "nil", "kernel", "non-canonical"]
            .map(|form| (form, Becomes::Implausible, "unreadable".to_owned())),
    )
    .chain(
        ["unmapped:0", "page-end:8", "page-end:126"]
            .map(|form| (form, Becomes::NotInMemory, "unreadable".to_owned())),
    )
    .collect();
    let mut watched = Watched::start(&[])?;
    let mut rows = Vec::new();
    for shape in ["server", "separate", "client"] {
        let side = if shape == "client" { "client" } else { "server" };
        for (index, name) in ["caller", "callee", "method"].into_iter().enumerate() {
            for (form, _, shown) in &forms {
                watched.calls(&format!("call 7 {shape} {name}={form}"), 7)?;
                let mut labels = USUAL;
                labels[index] = shown;
                rows.push(row(side, labels, 7));
            }
        }
    }
    let seen = watched.seen()?;
    tally(&rows)?.check(&seen.tally)?;
    for (becomes, reason) in [(Becomes::Implausible, "implausible"), (Becomes::NotInMemory, "not_in_memory")]
    {
        let kinds = forms.iter().filter(|form| form.1 == becomes).count() as u64;
        let counted = seen.by_reason("monitor_labels_unreadable_total", reason);
        ensure!(counted == 3 * 3 * 7 * kinds, "{reason}: {counted}");
    }
    let kinds = forms.iter().filter(|(_, _, shown)| shown.ends_with('…')).count() as u64;
    let cut = whole(seen.scrape.sum("monitor_labels_cut_total", &[]));
    ensure!(cut == 3 * 3 * 7 * kinds, "{cut} names are cut");
    watched.end()
}

/// However many names can't be read, they leave room for those that can.
#[test]
fn names_that_are_not_in_memory_take_one_label_set() -> Result<()> {
    const PLACES: u64 = 60;
    let mut watched = Watched::start(&["--max-label-sets", "30"])?;
    for place in 0..PLACES {
        watched.calls(&format!("call 1 server method=unmapped:{place}"), 1)?;
    }
    watched.calls("call 10 server method=text:Later", 10)?;
    let seen = watched.seen()?;
    let of = |method| [USUAL[0], USUAL[1], method];
    tally(&[row("server", of("unreadable"), PLACES), row("server", of("Later"), 10)])?.check(&seen.tally)?;
    ensure!(
        seen.by_reason("monitor_labels_unreadable_total", "not_in_memory") == PLACES,
        "{:?}",
        seen.account
    );
    watched.end()
}

/// The label of a call is what the memory contains at that moment: perhaps a mix of two strings, but never more than
/// the string.
#[test]
fn strings_that_change_while_they_are_read() -> Result<()> {
    const CALLS: u64 = 100_000;
    let mut watched = Watched::start(&[])?;
    watched.calls(&format!("rewrite {CALLS}"), CALLS)?;
    let seen = watched.seen()?;
    ensure!(seen.tally.total() == CALLS && seen.tally.iter().count() > 1, "{:?}", seen.tally);
    for (labels, _) in seen.tally.iter() {
        let method = &labels["method"];
        ensure!(method.len() == 16 && method.bytes().all(|byte| matches!(byte, b'a' | b'b')), "{method:?}");
        ensure!((labels["caller"].as_str(), labels["callee"].as_str()) == ("shop", "stock"), "{labels:?}");
    }
    watched.end()
}

#[test]
fn a_hundred_thousand_methods() -> Result<()> {
    const METHODS: u64 = 100_000;
    const KEPT: u64 = 4_096;
    let mut watched = Watched::start(&[])?;
    let command = format!("methods {METHODS} 8");
    let resident = |seen: &Seen| seen.scrape.sum("monitor_agent_resident_memory_bytes", &[]);
    let before = resident(&watched.seen()?);
    watched.calls(&command, METHODS)?;
    let first = watched.seen()?;
    // The first names stay. All others are counted as `other` from then on.
    watched.calls(&command, METHODS)?;
    let second = watched.seen()?;
    for (seen, rounds) in [(&first, 1), (&second, 2)] {
        let is_other = |method: &str| method == "other";
        let kept: Vec<_> = seen.tally.iter().filter(|(labels, _)| !is_other(&labels["method"])).collect();
        ensure!(kept.len() as u64 == KEPT, "{} methods are kept", kept.len());
        for (labels, calls) in kept {
            let number = labels["method"].strip_prefix("method-").and_then(|text| text.parse::<u64>().ok());
            ensure!(number.is_some_and(|number| number < METHODS) && calls == rounds, "{labels:?}: {calls}");
        }
        let others = seen.tally.sum(&[("method", "other"), ("caller", "other"), ("callee", "other")]);
        ensure!(others == rounds * (METHODS - KEPT), "{others} others");
        let refused = seen.scrape.sum("monitor_label_sets_refused_total", &[]);
        ensure!(whole(refused) == others, "{refused} refused");
        ensure!((seen.account.timed, seen.account.lost) == (rounds * METHODS, 0), "{:?}", seen.account);
    }
    // 4,096 histograms of eleven buckets, their names, and the text of a scrape.
    let grown = resident(&second) - before;
    ensure!(grown < 3e7, "{grown} bytes more");
    watched.end()
}

/// Calls that differ not only in their names also use up the reserve for `other`. Calls that then find no room, not
/// even as `other`, are missing in the throughput, and each is counted as lost. Calls with room are still counted.
#[test]
fn past_the_reserve_for_other_calls_are_lost_and_counted() -> Result<()> {
    const RESERVE: u64 = 256;
    const RETRIES: u64 = RESERVE + 44;
    const MORE: u64 = 10;
    let labels: [&str; 6] = ["type", "caller", "callee", "method", "status", "retry"];
    let mut watched = Watched::start(&["--max-label-sets", "1", "--kitex.labels", &labels.join(",")])?;
    for round in 1..=2 {
        watched.calls(&format!("retries {RETRIES}"), RETRIES)?;
        // These calls are not retried, which is one more combination.
        watched.calls(&format!("call {MORE} client"), MORE)?;
        let scrape = watched.agent.scrape_settled()?;
        let found = Tally::of_agent(&scrape, &labels, None)?;
        let account = Account::of(&scrape, watched.target.pid());
        let named = [("caller", "shop"), ("callee", "stock"), ("method", "Echo"), ("retry", "1")];
        let other = [("caller", "other"), ("callee", "other"), ("method", "other")];
        ensure!((found.sum(&named), found.sum(&other)) == (round, round * RESERVE), "{found:?}");
        ensure!(found.total() == round * (1 + RESERVE), "{found:?}");
        ensure!(found.iter().all(|(_, calls)| calls == round), "{found:?}");
        let lost = round * (RETRIES + MORE - 1 - RESERVE);
        for name in ["monitor_events_lost_total", "monitor_unpaired_starts_total"] {
            let failed = whole(scrape.sum(name, &[("reason", "label_table_failed")]));
            ensure!(failed == lost, "{name}: {failed}, not {lost}");
        }
        let refused = whole(scrape.sum("monitor_label_sets_refused_total", &[]));
        ensure!(refused == found.sum(&other) + lost, "{refused} refused");
        let label_sets = whole(scrape.sum("monitor_label_sets", &[]));
        ensure!(label_sets == 1 + RESERVE, "{label_sets} label sets");
        ensure!(account.starts == round * (RETRIES + MORE), "{account:?}");
        ensure!(account.timed == found.total(), "{account:?}");
        check_closed(&scrape, watched.target.pid(), [0, 0])?;
    }
    watched.end()
}

/// The same for calls that were in flight when the agent attached. They have no start that could be missing.
#[test]
fn past_the_reserve_for_other_calls_without_a_start_are_lost_and_counted() -> Result<()> {
    const RESERVE: u64 = 256;
    const RETRIES: u64 = RESERVE + 44;
    const UNDER_WAY: u64 = 7;
    let mut target = Process::start(Program::Strange, Flavour::Default, &[])?;
    target.command(&format!("open {UNDER_WAY} client 1"))?;
    let labels = ["--max-label-sets", "1", "--kitex.labels", "method,retry"];
    let mut watched = Watched { agent: Agent::attach(&[target.pid()], &labels)?, target };
    watched.calls(&format!("retries {RETRIES}"), RETRIES)?;
    let before = watched.agent.scrape_settled()?;
    watched.calls(&format!("close {UNDER_WAY}"), UNDER_WAY)?;
    let after = watched.agent.scrape_settled()?;
    for (scrape, without_start) in [(&before, 0), (&after, UNDER_WAY)] {
        let (by_name, by_label) = (|name| whole(scrape.sum(name, &[])), [("reason", "label_table_failed")]);
        let paired = RETRIES - 1 - RESERVE;
        ensure!(whole(scrape.sum("monitor_events_lost_total", &by_label)) == paired + without_start);
        ensure!(whole(scrape.sum("monitor_unpaired_starts_total", &by_label)) == paired);
        ensure!(by_name("monitor_label_sets_refused_total") == RETRIES - 1 + without_start);
        ensure!(by_name("kitex_client_throughput") == 1 + RESERVE);
        // Calls in no total have no outcome, either.
        let account = Account::of(scrape, watched.target.pid());
        ensure!((account.starts, account.timed) == (RETRIES, 1 + RESERVE), "{account:?}");
        ensure!((account.unpaired, account.in_flight) == (0, 0), "{account:?}");
        check_closed(scrape, watched.target.pid(), [0, 0])?;
    }
    watched.end()
}

/// The number of records in a full ring of 64 KiB. Each has a header of eight bytes, and the last byte of the ring
/// stays free.
const IN_RING: u64 = (65_536 - 1) / (24 + 8);

/// Runs a command on the target while the agent does not drain its ring of 64 KiB.
fn with_a_full_ring(target: Process, agent: &[&str], command: &str, calls: u64) -> Result<Seen> {
    let args = [agent, &["--ring-bytes", "65536"]].concat();
    let mut watched = Watched { agent: Agent::attach(&[target.pid()], &args)?, target };
    // A first window has ended by then.
    thread::sleep(Duration::from_secs(if agent.is_empty() { 0 } else { 2 }));
    watched.agent.signal(libc::SIGSTOP)?;
    watched.calls(command, calls)?;
    watched.agent.signal(libc::SIGCONT)?;
    let seen = watched.seen()?;
    check_closed(&seen.scrape, watched.target.pid(), [0, 0])?;
    ensure!(seen.tally.total() == calls, "{:?}", seen.tally);
    ensure!(
        seen.by_reason("monitor_events_lost_total", "ring_full") == calls - IN_RING,
        "{:?}",
        seen.account
    );
    watched.end()?;
    Ok(seen)
}

/// Calls in flight when the agent attached have no duration that could be lost. Calls that have recorded their start
/// have one.
#[test]
fn a_full_ring_loses_the_durations_that_there_are() -> Result<()> {
    const CALLS: u64 = IN_RING + 900;
    side_by_side([true, false], |under_way| {
        let mut target = Process::start(Program::Strange, Flavour::Default, &[])?;
        if under_way {
            target.command(&format!("open {CALLS} client 1"))?;
            let account = with_a_full_ring(target, &[], &format!("close {CALLS}"), CALLS)?.account;
            ensure!((account.starts, account.timed, account.lost) == (0, 0, 0), "{account:?}");
            ensure!((account.unpaired, account.recorded) == (CALLS, 0), "{account:?}");
            return Ok(());
        }
        let economy = ["--latency", "economy", "--latency.every", "3600"];
        let seen = with_a_full_ring(target, &economy, &format!("record {CALLS} server 0"), CALLS)?;
        let account = &seen.account;
        ensure!((account.recorded, account.timed, account.lost) == (IN_RING, 0, 0), "{account:?}");
        ensure!((account.unpaired, account.sampled_out) == (0, 0), "{account:?}");
        let finishes = whole(seen.scrape.sum("monitor_finishes_total", &[("outcome", "recorded_lost")]));
        ensure!(finishes == CALLS - IN_RING, "{finishes} lost");
        let timed = seen.timed("server", 1_000_000.0).0;
        ensure!(timed == IN_RING, "{timed} timed");
        Ok(())
    })
}

/// Messages of streams of unknown type, and messages that find no label set, not even `other`, are counted as lost.
/// Those with a label set are still counted.
#[test]
fn messages_that_have_no_labels_are_lost_and_counted() -> Result<()> {
    const RESERVE: u64 = 256;
    let args = ["--kitex.stream-messages", "--max-label-sets", "1", "--kitex.labels", "method,retry"];
    let mut watched = Watched::start(&args)?;
    let check = |watched: &Watched, counted: u64, lost: u64| -> Result<()> {
        let scrape = watched.agent.scrape_settled()?;
        for direction in ["sent", "received"] {
            let of = |name: &str, side: &str| {
                whole(scrape.sum(&format!("kitex_{side}_stream_{name}"), &[("direction", direction)]))
            };
            let found = (of("messages", "client"), of("messages", "server"));
            ensure!(found == (counted, 0), "{direction}: {found:?}");
        }
        let reasons = scrape.samples("monitor_events_lost_total").filter(|sample| sample.value > 0.0);
        let reasons: Vec<_> = reasons.map(|one| (one.labels["reason"].as_str(), whole(one.value))).collect();
        let failed = RESERVE_FAILED.min(whole(scrape.sum("monitor_label_sets_refused_total", &[])));
        let expected = [("label_table_failed", failed), ("message", 2 * lost)];
        let expected: Vec<_> = expected.into_iter().filter(|(_, lost)| *lost > 0).collect();
        ensure!(reasons == expected, "{reasons:?}, not {expected:?}");
        check_closed(&scrape, watched.target.pid(), [0, 0])
    };
    watched.calls("messages 20 client", 0)?;
    check(&watched, 20, 0)?;
    watched.calls("messages 30 my-rpcinfo", 0)?;
    check(&watched, 20, 30)?;
    let retries = RESERVE + RESERVE_FAILED;
    watched.calls(&format!("retries {retries}"), retries)?;
    watched.calls("messages 40 server", 0)?;
    check(&watched, 20, 70)?;
    watched.calls("messages 5 client", 0)?;
    check(&watched, 25, 70)?;
    watched.end()
}

/// The number of calls that find no room even as `other`.
const RESERVE_FAILED: u64 = 4;

/// Numbers of bytes that are impossible were not read correctly. They are left out and counted, but the call is counted
/// normally.
#[test]
fn bytes_that_cannot_be_are_lost_and_counted() -> Result<()> {
    let mut watched = Watched::start(&["--kitex.bytes"])?;
    for shape in ["server", "client"] {
        watched.calls(&format!("bytes 30 {shape} 1000"), 30)?;
        watched.calls(&format!("bytes 20 {shape} {}", 1_u64 << 60), 20)?;
    }
    let seen = watched.seen()?;
    tally(&[row("server", USUAL, 50), row("client", USUAL, 50)])?.check(&seen.tally)?;
    for name in ["server_send", "server_recv", "client_send", "client_recv"] {
        let bytes = whole(seen.scrape.sum(&format!("kitex_{name}_bytes"), &[]));
        ensure!(bytes == 30 * 1_000, "{name}: {bytes}");
    }
    // Two numbers for each call.
    let lost = seen.by_reason("monitor_events_lost_total", "size_unreadable");
    ensure!((lost, seen.account.timed) == (2 * 2 * 20, 100), "{lost}: {:?}", seen.account);
    watched.end()
}

/// A server's call is still known to be one, with unreadable names. Of another call, not even that is known.
#[test]
fn memory_that_is_gone_at_the_finish() -> Result<()> {
    let mut watched = Watched::start(&[])?;
    watched.calls("unmap 40 server finish", 40)?;
    watched.calls("call 10 server", 10)?;
    let seen = watched.seen()?;
    let unreadable = row("server", ["unreadable"; 3], 40);
    tally(&[unreadable.clone(), row("server", USUAL, 10)])?.check(&seen.tally)?;
    ensure!((seen.account.starts, seen.account.timed) == (50, 50), "{:?}", seen.account);
    watched.calls("unmap 40 client finish", 40)?;
    watched.calls("call 10 client", 10)?;
    let seen = watched.seen()?;
    let rows = [unreadable, row("server", USUAL, 10), row("client", USUAL, 10)];
    tally(&rows)?.check(&seen.tally)?;
    ensure!(seen.by_reason("monitor_events_lost_total", "finish_unreadable") == 40, "{:?}", seen.account);
    watched.end()
}

/// The kind of a client's call is unknown at the start and later. It is lost as a start and as a finish, and leaves
/// nothing behind that another call could find.
#[test]
fn memory_that_is_gone_at_the_start() -> Result<()> {
    const GONE: u64 = 40;
    const CALLS: u64 = 10;
    let mut watched = Watched::start(&[])?;
    let events = Events::attach(&[watched.target.pid()], &["--starts"])?;
    watched.calls(&format!("unmap {GONE} client start"), GONE)?;
    let seen = watched.seen()?;
    ensure!((seen.account.starts, seen.account.in_flight) == (0, 0), "{:?}", seen.account);
    watched.calls(&format!("call {CALLS} client"), CALLS)?;
    let seen = watched.seen()?;
    tally(&[row("client", USUAL, CALLS)])?.check(&seen.tally)?;
    ensure!((seen.account.starts, seen.account.timed) == (CALLS, CALLS), "{:?}", seen.account);
    check_closed(&seen.scrape, watched.target.pid(), [0, 0])?;
    let lines = events.terminate()?;
    for moment in ["start", "finish"] {
        let counted = seen.by_reason("monitor_events_lost_total", &format!("{moment}_unreadable"));
        ensure!(counted == GONE, "{moment}: {counted} are lost");
        let told = (of_kind(&lines, moment).len() as u64, lost(&lines, moment, "unreadable"));
        ensure!(told == (CALLS, GONE), "{moment}: {told:?}");
        ensure!(lost_in_all(&lines, moment) == GONE, "{moment}");
    }
    watched.end()
}

#[test]
fn children_are_not_the_target() -> Result<()> {
    let mut watched = Watched::start(&[])?;
    watched.calls("call 100 server", 100)?;
    for _ in 0..3 {
        // The child's copy of the code has the probes, but its calls are not the target's.
        watched.calls("fork 2000", 2_000)?;
    }
    watched.target.command("flow 4")?;
    watched.target.command("spawn 50")?;
    let calls = watched.target.command("pause")?["calls"].as_u64().context("no calls")?;
    watched.calls("call 100 server", 100)?;
    let seen = watched.seen()?;
    ensure!(calls > 1_000, "{calls} calls are no load");
    tally(&[row("server", USUAL, 200 + calls / 2), row("client", USUAL, calls / 2)])?.check(&seen.tally)?;
    seen.account.check_complete(200 + calls)?;
    Sites::of(watched.target.pid())?.check_probed()?;
    watched.end()
}

/// A file in which the target counts its calls, so that the counts outlive it.
struct Counted(PathBuf);

impl Counted {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("monitor-{name}-{}", std::process::id())))
    }

    /// Returns the calls begun and ended.
    fn read(&self) -> Result<(u64, u64)> {
        let bytes = fs::read(&self.0)?;
        let word =
            |at: usize| bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map(u64::from_ne_bytes);
        Ok((word(0).context("no count")?, word(8).context("no count")?))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The target exits, is killed, or executes another program while calls are in flight in eight goroutines. All calls
/// that ended are counted.
#[test]
fn the_end_in_the_middle_of_calls() -> Result<()> {
    side_by_side(["exit", "kill", "exec /bin/cat"], |end| {
        let counted = Counted::new(&end[..4]);
        let path = counted.0.display().to_string();
        let mut watched = Watched::start_with(&["--account", &path], &["--linger", "1"])?;
        watched.target.command("flow 8")?;
        thread::sleep(Duration::from_millis(300));
        match end {
            "kill" => watched.target.signal(libc::SIGKILL)?,
            _ => drop(watched.target.command(end)?),
        }
        let pid = watched.target.pid();
        let seen = Seen::of(&scrape_until_down(&watched.agent, pid)?, pid)?;
        let (begun, ended) = counted.read()?;
        ensure!(ended > 1_000 && begun - ended <= 8, "{end}: {begun} begun, {ended} ended");
        let total = seen.tally.total();
        ensure!((ended..=begun).contains(&total), "{end}: {total} of {begun} begun and {ended} ended");
        let account = &seen.account;
        ensure!(account.timed + account.lost == total && account.unpaired == 0, "{end}: {account:?}");
        ensure!(account.starts - total <= 8, "{end}: {account:?}");
        ensure!({ watched.agent }.wait(Duration::from_secs(5))?.success(), "{end}");
        Ok(())
    })
}

fn scrape_until_down(agent: &Agent, pid: u32) -> Result<Scrape> {
    let begin = Instant::now();
    loop {
        let scrape = agent.scrape()?;
        if scrape.value("monitor_target_up", &[("target", &pid.to_string())]) == Some(0.0) {
            return Ok(scrape);
        }
        ensure!(begin.elapsed() < Duration::from_secs(3), "still up: {}", agent.log());
        thread::sleep(Duration::from_millis(10));
    }
}

/// Longer calls must have been paired with the start of another call.
const LONG_US: f64 = 200_000.0;
const BUCKETS: [&str; 2] = ["--latency-buckets", "200000,1000000"];

/// The runtime reuses goroutines. The starts of calls in which one ended are still remembered.
#[test]
fn goroutines_that_die_in_a_call() -> Result<()> {
    side_by_side([("exit", 3), ("exit", 200), ("panic", 3), ("panic", 200)], |(how, deaths)| {
        let mut watched = Watched::start(&BUCKETS)?;
        watched.calls(&format!("die {deaths} {how}"), 0)?;
        let seen = watched.seen()?;
        let kept = seen.account.in_flight;
        let lost: u64 = seen.account.faults.values().sum();
        ensure!((seen.account.starts, kept + lost) == (deaths, deaths), "{:?}", seen.account);
        // No goroutine keeps more than seven starts.
        ensure!(deaths <= 7 || lost > 0, "no goroutine was used again: {:?}", seen.account);
        thread::sleep(Duration::from_secs_f64(2e-6 * LONG_US));
        for depth in [1, 3] {
            watched.calls(&format!("open 50 client {depth}"), 0)?;
            watched.calls("close 50", 50 * depth)?;
        }
        let seen = watched.seen()?;
        tally(&[row("client", USUAL, 200)])?.check(&seen.tally)?;
        let (timed, quick) = seen.timed("client", LONG_US);
        ensure!(timed == quick, "{} durations of {timed} are those of dead calls", timed - quick);
        ensure!(timed == seen.account.timed && timed + seen.account.unpaired == 200, "{:?}", seen.account);
        ensure!(deaths > 6 || timed == 200, "{:?}", seen.account);
        watched.end()
    })
}

/// The same for objects: a stream that is dropped never ends, and streams may end on any goroutine.
#[test]
fn an_object_that_is_used_again_has_its_own_start() -> Result<()> {
    const AGO: Duration = Duration::from_millis(400);
    let mut watched = Watched::start(&BUCKETS)?;
    watched.calls("open 20 stream 1", 0)?;
    thread::sleep(AGO);
    watched.calls("close 20", 20)?;
    ensure!(watched.seen()?.timed("client", LONG_US) == (20, 0), "streams that took long");
    for (shape, calls) in [("stream", 30), ("server", 40)] {
        watched.calls(&format!("again {calls} {shape} {}", AGO.as_millis()), calls)?;
    }
    let seen = watched.seen()?;
    let mut streams = row("client", USUAL, 50);
    streams["type"] = "streaming".into();
    tally(&[streams, row("server", USUAL, 40)])?.check(&seen.tally)?;
    for (side, expected) in [("client", (50, 30)), ("server", (40, 40))] {
        let timed = seen.timed(side, LONG_US);
        ensure!(timed == expected, "{side}: of {} durations {} are short", timed.0, timed.1);
    }
    let dropped = seen.by_reason("monitor_unpaired_starts_total", "abandoned");
    ensure!((seen.account.starts, dropped) == (160, 70), "{dropped}: {:?}", seen.account);
    check_closed(&seen.scrape, watched.target.pid(), [0, 0])?;
    watched.end()
}

/// Calls in flight are counted by name, with the age of the oldest call of each name. Both are zero once all have
/// ended.
#[test]
fn calls_in_flight_are_told_apart() -> Result<()> {
    const APART: Duration = Duration::from_millis(600);
    let mut watched = Watched::start(&[])?;
    watched.calls("open 3 client 1 method=text:Older", 0)?;
    thread::sleep(APART);
    watched.calls("open 5 client 1 method=text:Newer", 0)?;
    watched.calls("open 2 server 1", 0)?;
    let age = |scrape: &Scrape, side: &str, method: &str, calls: u64| -> Result<f64> {
        let labels = [("caller", "shop"), ("callee", "stock"), ("method", method)];
        let value = |what: &str| {
            let name = format!("kitex_{side}_{what}");
            scrape.value(&name, &labels).with_context(|| format!("no {name} of {method}"))
        };
        let in_flight = value("in_flight")?;
        ensure!(whole(in_flight) == calls, "{in_flight} calls of {method} by a {side}, not {calls}");
        value("oldest_call_age_seconds")
    };
    let scrape = watched.agent.scrape()?;
    let older = age(&scrape, "client", "Older", 3)?;
    let newer = age(&scrape, "client", "Newer", 5)?;
    let served = age(&scrape, "server", "Echo", 2)?;
    let apart = older - newer;
    ensure!(apart >= APART.as_secs_f64() && newer >= served, "ages of {older}, {newer} and {served} s");
    ensure!(served > 0.0 && older < 20.0, "ages of {older}, {newer} and {served} s");
    watched.calls("close 10", 10)?;
    let scrape = watched.agent.scrape_settled()?;
    for (side, method) in [("client", "Older"), ("client", "Newer"), ("server", "Echo")] {
        let age = age(&scrape, side, method, 0)?;
        ensure!(age == 0.0, "{method} by a {side}: {age} s");
    }
    watched.end()
}

/// A call whose start had an unknown type has no start, even if another call of its goroutine has one.
#[test]
fn an_unknown_start_is_not_replaced_by_anothers() -> Result<()> {
    let mut watched = Watched::start(&BUCKETS)?;
    watched.calls("change 20 my-to client", 20)?;
    let seen = watched.seen()?;
    tally(&[row("client", USUAL, 20)])?.check(&seen.tally)?;
    ensure!((seen.account.timed, seen.account.unpaired) == (0, 20), "{:?}", seen.account);
    watched.calls("inside 4 my-to client 300", 8)?;
    let seen = watched.seen()?;
    let outer = row("client", ["shop", "stock", "Outer"], 4);
    tally(&[row("client", USUAL, 24), outer])?.check(&seen.tally)?;
    let long = |method: &str| {
        let timed = seen.scrape.histogram("kitex_client_latency_us", &[("method", method)])?;
        Some(whole(timed.count - timed.buckets.first()?.1))
    };
    ensure!(long("Echo").unwrap_or(0) == 0, "{:?} inner calls have the start of the outer", long("Echo"));
    watched.end()
}

/// Calls in flight for longer than this are given up.
const MAX_AGE: Duration = Duration::from_secs(2);
/// By this time they have certainly been given up.
const AGED_BY: Duration = Duration::from_secs(3);

#[test]
fn calls_that_are_too_old_are_given_up() -> Result<()> {
    // With the smaller table, most calls find no room in their bucket.
    side_by_side(["65536", "1"], |in_flight| {
        let age = MAX_AGE.as_secs().to_string();
        let args = [&BUCKETS[..], &["--max-call-age", &age, "--max-in-flight", in_flight]].concat();
        let mut watched = Watched::start(&args)?;
        watched.calls("open 8 client 3", 0)?;
        watched.calls("open 20 client 1", 0)?;
        watched.calls("open 20 server 1", 0)?;
        let opened = watched.seen()?;
        ensure!((opened.account.starts, opened.account.in_flight) == (64, 64), "{:?}", opened.account);
        ensure!(opened.account.found_faults().is_empty(), "too early: {:?}", opened.account);
        thread::sleep(AGED_BY);
        watched.calls("open 10 client 1", 0)?;
        let aged = watched.seen()?;
        let by_age = |seen: &Seen| seen.by_reason("monitor_unpaired_starts_total", "aged");
        ensure!((by_age(&aged), aged.account.in_flight) == (64, 10), "{:?}", aged.account);
        // Old calls are counted without a duration, young ones have one, and new calls have their own.
        watched.calls("close 18", 34)?;
        watched.calls("close 30", 30)?;
        watched.calls("close 10", 10)?;
        watched.calls("call 50 client", 50)?;
        watched.calls("open 10 client 2", 0)?;
        watched.calls("close 10", 20)?;
        let seen = watched.seen()?;
        tally(&[row("client", USUAL, 124), row("server", USUAL, 20)])?.check(&seen.tally)?;
        let account = &seen.account;
        ensure!((account.timed, account.unpaired, account.in_flight) == (80, 64, 0), "{account:?}");
        ensure!(by_age(&seen) == 64, "{account:?}");
        let (timed, quick) = seen.timed("client", 1_000_000.0);
        ensure!((timed, quick) == (80, 80), "{timed} timed, {quick} of them right");
        watched.end()
    })
}

/// Calls in flight are counted at the scrape, while the other numbers are up to 50 ms older. No scrape may have a call
/// that is neither in flight nor given up.
#[test]
fn the_account_closes_while_calls_are_given_up() -> Result<()> {
    const BATCHES: u64 = 5;
    side_by_side(["65536", "1"], |in_flight| {
        let age = MAX_AGE.as_secs().to_string();
        let mut watched = Watched::start(&["--max-call-age", &age, "--max-in-flight", in_flight])?;
        // Not all at once, so that calls are given up at several moments.
        for _ in 0..BATCHES {
            watched.calls("open 10 client 1", 0)?;
            thread::sleep(MAX_AGE / 8);
        }
        let by_age =
            |scrape: &Scrape| whole(scrape.sum("monitor_unpaired_starts_total", &[("reason", "aged")]));
        let mut given_up = vec![by_age(&watched.agent.scrape_settled()?)];
        let until = Instant::now() + 2 * MAX_AGE;
        while Instant::now() < until {
            let scrape = watched.agent.scrape()?;
            check_closed(&scrape, watched.target.pid(), [0, 0])?;
            given_up.push(by_age(&scrape));
            thread::sleep(Duration::from_millis(2));
        }
        given_up.dedup();
        ensure!(given_up.last() == Some(&(10 * BATCHES)) && given_up.len() > 2, "{given_up:?}");
        watched.end()
    })
}

/// The outer call is given up while the inner one is still in flight.
#[test]
fn an_old_call_takes_none_of_those_inside_it_along() -> Result<()> {
    let age = MAX_AGE.as_secs().to_string();
    let args = [&BUCKETS[..], &["--max-call-age", &age]].concat();
    let mut watched = Watched::start(&args)?;
    watched.calls(&format!("inside 1 client client {}", AGED_BY.as_millis()), 2)?;
    // Later calls are not affected.
    watched.calls("inside 1 client client 0", 2)?;
    let seen = watched.seen()?;
    tally(&[row("client", USUAL, 2), row("client", ["shop", "stock", "Outer"], 2)])?.check(&seen.tally)?;
    ensure!(
        (seen.account.timed, seen.account.unpaired, seen.account.in_flight) == (3, 1, 0),
        "{:?}",
        seen.account
    );
    ensure!(seen.timed("client", LONG_US) == (3, 3), "{:?}", seen.account);
    watched.end()
}
