//! Specs of native functions: the operations that they describe are counted as by the target itself, however the
//! functions end. Functions that can't be watched are refused.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::{Agent, run_to_end},
    chain::check_closed,
    events::Events,
    kernel,
    native::{Build, async_server, corners, server},
    process::Process,
    scrape::{Scrape, whole},
    side_by_side,
    specs::{self, path},
    targets::{Flavour, Program},
    turns::{self, MEANINGS, Meaning, twice},
};
use serde_json::{Value, json};

use crate::{golden, schema::check_schema};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The two ways to see the end of a function.
pub(crate) const WAYS: [&str; 2] = ["instructions", "probe"];
/// The first way, as in the example of the documents.
const BY_INSTRUCTIONS: &str = "returns = { by = \"instructions\", number = \"int\" }\nallow_expensive = true";

const BY_RETURNS: &str = "returns = { by = \"instructions\" }\nallow_expensive = true";
const BY_PROBE: &str = "returns = { by = \"probe\" }\nnothing_is_thrown = true";

pub(crate) fn start(build: Build) -> Result<Process> {
    Process::start_command(&mut Command::new(corners(build)?))
}

/// Returns the lines by which a spec selects one of the ways.
fn returns(way: &str) -> &'static str {
    match way {
        "probe" => "returns = { by = \"probe\", number = \"int\" }\nnothing_is_thrown = true",
        _ => BY_INSTRUCTIONS,
    }
}

/// Writes a spec of one function, whose end is seen in one of the ways.
pub(crate) fn spec_of(function: &str, way: &str) -> Result<std::path::PathBuf> {
    let text = format!(
        "name = \"stock\"\n[[native]]\nname = \"one\"\nkey = \"thread\"\n{}\n[native.labels]\nresult = {{ number = \"result\" }}\n\
         [[native.start]]\nfunction = \"{function}\"\n",
        returns(way)
    );
    specs::file(&format!("{}-{way}", function.replace('*', "any")), &text)
}

/// Returns the counter by the values of its labels, in the given order.
pub(crate) fn counted(scrape: &Scrape, labels: &[&str]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for sample in scrape.samples("stock_total") {
        let values: Vec<_> = labels.iter().map(|label| sample.labels[*label].as_str()).collect();
        *counts.entry(values.join("/")).or_default() += whole(sample.value);
    }
    counts
}

/// Parses the target's own counts.
fn own(counts: &Value) -> Result<BTreeMap<String, u64>> {
    let counts = counts.as_object().context("no counts")?;
    Ok(counts.iter().map(|(key, count)| (key.clone(), count.as_u64().unwrap_or_default())).collect())
}

/// Returns the number of operations with a duration, and the sum of durations in seconds.
pub(crate) fn timed(scrape: &Scrape) -> (u64, f64) {
    let all = scrape.histograms("stock_duration_seconds");
    (all.values().map(|one| whole(one.count)).sum(), all.values().map(|one| one.sum).sum())
}

/// Makes lookups with every kind of name and compares the counts, with the example of the documents or a variant of it.
fn lookups_are_counted(build: Build, spec: &Path) -> Result<()> {
    let mut target = start(build)?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(spec)])?;
    target.command("lookups 200")?;
    let scrape = agent.scrape_settled()?;
    let expected = own(&target.command("counts")?["lookups"])?;
    let found = counted(&scrape, &["item", "result"]);
    ensure!(found == expected, "{found:?}\nis not {expected:?}");
    let failed = whole(scrape.sum("stock_total", &[("status", "missing")]));
    ensure!(failed == 200 && found.values().sum::<u64>() == 14 * 200, "{failed} missing of {found:?}");
    ensure!(timed(&scrape).0 == 14 * 200, "{:?}", timed(&scrape));
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

#[test]
fn lookups_are_counted_once() -> Result<()> {
    lookups_are_counted(Build::Default, &specs::documented("stock")?)
}

#[test]
fn so_they_are_at_a_fixed_address_and_by_a_return_probe() -> Result<()> {
    let text = specs::text("stock")?;
    ensure!(text.contains(BY_INSTRUCTIONS), "{text}");
    let probe = specs::file("stock-probe", &text.replace(BY_INSTRUCTIONS, returns("probe")))?;
    lookups_are_counted(Build::Fixed, &probe)
}

#[test]
fn each_lookup_is_an_event() -> Result<()> {
    let mut target = start(Build::Default)?;
    let events = Events::attach(&[target.pid()], &["--spec", path(&specs::documented("stock")?)])?;
    target.command("lookups 200")?;
    let expected = own(&target.command("counts")?["lookups"])?;
    let lines = events.terminate()?;
    check_schema(&lines)?;
    let mut found = BTreeMap::new();
    for line in &lines {
        let labels = &line["labels"];
        let values = labels["item"].as_str().zip(labels["result"].as_str());
        let (item, result) = values.with_context(|| line.to_string())?;
        *found.entry(format!("{item}/{result}")).or_default() += 1;
        let status = if labels["status"] == "missing" { "error" } else { "succeed" };
        ensure!(line["status"] == status && line["duration_us"].is_u64(), "{line}");
        ensure!(line["operation"] == "lookup" && line["goroutine"].is_null(), "{line}");
    }
    ensure!(found == expected, "{found:?}\nis not {expected:?}");
    Ok(())
}

#[test]
fn names_past_the_limit_are_other() -> Result<()> {
    let mut target = start(Build::Default)?;
    let spec = specs::documented("stock")?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&spec), "--max-label-sets", "3"])?;
    target.command("lookups 100")?;
    let scrape = agent.scrape_settled()?;
    let found = counted(&scrape, &["item"]);
    ensure!(found.values().sum::<u64>() == 1_400 && found["other"] >= 1_100 && found.len() <= 4, "{found:?}");
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

#[test]
fn a_function_that_calls_itself_is_counted_each_time() -> Result<()> {
    for way in WAYS {
        let mut target = start(Build::Default)?;
        let agent = Agent::attach(&[target.pid()], &["--spec", path(&spec_of("stock_recurse", way)?)])?;
        target.command("recurse 100")?;
        let scrape = agent.scrape_settled()?;
        let expected: BTreeMap<_, _> = (0..=20).map(|depth| (depth.to_string(), 100)).collect();
        ensure!(counted(&scrape, &["result"]) == expected, "{way}: {:?}", counted(&scrape, &["result"]));
        ensure!(timed(&scrape).0 == 2_100, "{way}: {:?}", timed(&scrape));
        check_closed(&scrape, target.pid(), [0, 0])?;
        agent.terminate()?;
    }
    Ok(())
}

#[test]
fn durations_are_those_of_the_function() -> Result<()> {
    for way in WAYS {
        let mut target = start(Build::Default)?;
        let agent = Agent::attach(&[target.pid()], &["--spec", path(&spec_of("stock_nap", way)?)])?;
        let begin = Instant::now();
        target.command("nap 10")?;
        let whole = begin.elapsed().as_secs_f64();
        let (count, sum) = timed(&agent.scrape_settled()?);
        ensure!(count == 10 && (0.2..=whole).contains(&sum), "{way}: {count} took {sum} s of {whole} s");
        agent.terminate()?;
    }
    Ok(())
}

/// The argument of an operation is known from its start. If the start was not seen, the number is `unreadable`, not 0,
/// and so is an outcome that depends on it.
#[test]
fn a_number_of_a_start_that_was_not_seen_is_unreadable() -> Result<()> {
    let text = format!(
        "name = \"stock\"\n[[native]]\nname = \"one\"\nkey = \"thread\"\n{BY_RETURNS}\nfailed = \">= 30\"\n[native.labels]\n\
         ms = {{ number = \"argument\" }}\nstatus = {{ outcome = [\"short\", \"long\"] }}\n[[native.start]]\nfunction = \"stock_nap\"\nnumber = 0\n"
    );
    let mut target = start(Build::Default)?;
    // One after the other, so that the probes are attached in the middle of a nap.
    target.send("nap 100")?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&specs::file("nap", &text)?)])?;
    target.answer(PATIENCE)?;
    let scrape = agent.scrape_settled()?;
    let found = counted(&scrape, &["ms"]);
    let unpaired = whole(scrape.sum("monitor_unpaired_finishes_total", &[("reason", "start_not_seen")]));
    ensure!(unpaired > 0 && timed(&scrape).0 > 0, "{found:?}");
    let expected = [("20".to_owned(), timed(&scrape).0), ("unreadable".to_owned(), unpaired)];
    ensure!(found == expected.into(), "{found:?}, {unpaired} without a start");
    let endings = counted(&scrape, &["status"]);
    let expected = [("short".to_owned(), timed(&scrape).0), ("unreadable".to_owned(), unpaired)];
    ensure!(endings == expected.into(), "{endings:?}, {unpaired} without a start");
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

/// Linux 6.18 replaces such a probe by a call once it was hit. Here this happens before the first agent checks its
/// probe, and before the second one compares the code.
#[test]
fn a_probe_on_a_nop_is_known_for_one_when_it_was_hit() -> Result<()> {
    const CALL: u64 = 0xe8;
    let spec = spec_of("padded", "instructions")?;
    let mut target = start(Build::Default)?;
    let pid = target.pid();
    target.command("spin")?;
    let first = Agent::attach(&[pid], &["--spec", path(&spec)])?;
    let second = Agent::attach(&[pid], &["--spec", path(&spec)])?;
    let byte = target.command("calm")?["byte"].as_u64().context("no byte")?;
    ensure!(kernel::release()? != (6, 18) || byte == CALL, "the function begins with {byte:#x}");
    target.command("padded 1000")?;
    let check = |agent: &Agent, times| -> Result<()> {
        let scrape = agent.scrape_settled()?;
        let found = counted(&scrape, &["result"]);
        ensure!(found.get("42") == Some(&times) && found.get("2").is_some_and(|spun| *spun > 0), "{found:?}");
        check_closed(&scrape, pid, [0, 0])
    };
    check(&first, 1_000)?;
    check(&second, 1_000)?;
    first.terminate()?;
    target.command("padded 1000")?;
    check(&second, 2_000)?;
    second.terminate()?;
    ensure!(target.command("padded 1")?["ran"] == 1, "the target does not go on");
    Ok(())
}

#[test]
fn two_functions_are_paired_by_an_argument() -> Result<()> {
    for (key, start_word, end_word) in [("pointer", 0, 1), ("int", 1, 0)] {
        let text = format!(
            "name = \"stock\"\n[[native]]\nname = \"job\"\nkey = \"{key}\"\n[native.labels]\nkind = \"kind\"\n\
             [[native.start]]\nfunction = \"stock_begin\"\nkey = {start_word}\n\
             [[native.finish]]\nfunction = \"stock_end\"\nkey = {end_word}\ncstrings = {{ kind = 2 }}\n"
        );
        let spec = specs::file(&format!("pairs-{key}"), &text)?;
        let mut target = start(Build::Default)?;
        let agent = Agent::attach(&[target.pid()], &["--spec", path(&spec)])?;
        target.command("pairs 1000")?;
        let scrape = agent.scrape_settled()?;
        let expected = [("even".to_owned(), 500), ("odd".to_owned(), 500)].into();
        ensure!(counted(&scrape, &["kind"]) == expected, "{key}: {:?}", counted(&scrape, &["kind"]));
        ensure!(timed(&scrape).0 == 1_000, "{key}: {:?}", timed(&scrape));
        check_closed(&scrape, target.pid(), [0, 0])?;
        agent.terminate()?;
    }
    Ok(())
}

/// The pointer to a result in memory comes first, then `this`. Floating-point arguments use other registers.
#[test]
fn arguments_are_counted_by_registers() -> Result<()> {
    let spec = |item: usize| {
        let text = format!(
            "name = \"stock\"\n[[native]]\nname = \"find\"\nkey = \"thread\"\n{BY_RETURNS}\n\
             [native.labels]\nitem = \"item\"\nmost = {{ number = \"argument\" }}\n[[native.start]]\n\
             function = \"StockShelf::find(double, std::string const&, int) const\"\n\
             strings = {{ item = {item} }}\nnumber = 3\n"
        );
        specs::file(&format!("find-{item}"), &text)
    };
    let mut target = start(Build::Default)?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&spec(2)?)])?;
    target.command("finds 100")?;
    let scrape = agent.scrape_settled()?;
    let expected = [("short/7".to_owned(), 50), (format!("{}/7", "l".repeat(40)), 50)];
    let found = counted(&scrape, &["item", "most"]);
    ensure!(found == expected.into(), "{found:?}");
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    // The first argument of a method is `this`, unless a pointer to the result comes before it. Its string comes next.
    let executable = corners(Build::Default)?;
    for item in [0, 3] {
        let ended = run_to_end(&["spec", "check", path(&spec(item)?), "--exe", path(&executable)], PATIENCE)?;
        let why = format!("has no std::string of the C++11 ABI that can be argument {item},");
        ensure!(ended.code == Some(6) && ended.stderr.contains(&why), "{item}: {}", ended.stderr);
    }
    Ok(())
}

#[test]
fn a_function_is_no_start_and_finish_of_one_operation() -> Result<()> {
    let text = "name = \"stock\"\n[[native]]\nname = \"turn\"\nkey = \"thread\"\n\
                [[native.start]]\nfunction = \"stock_*\"\nat_most = 64\n\
                [[native.finish]]\nfunction = \"stock_end\"\n";
    let (spec, executable) = (specs::file("own-finish", text)?, corners(Build::Default)?);
    let ended = run_to_end(&["spec", "check", path(&spec), "--exe", path(&executable)], PATIENCE)?;
    let why = "own-finish.toml:6:12: function stock_end is a start and a finish of the same operation";
    ensure!(ended.code == Some(6) && ended.stderr.contains(why), "{}", ended.stderr);
    Ok(())
}

#[test]
fn policies_say_which_start_and_which_finish_count() -> Result<()> {
    let cells = MEANINGS.into_iter().filter(|(_, meaning)| *meaning != Meaning::Inside);
    let cells = cells.flat_map(|(policy, meaning)| {
        ["thread", "pointer", "number", "int"].map(|key| (key, policy, meaning))
    });
    side_by_side(cells, |(key, policy, meaning)| {
        let word = match key {
            "thread" => "",
            "pointer" => "key = 0\n",
            _ => "key = 1\n",
        };
        let text = format!(
            "name = \"turns\"\n[[native]]\nname = \"turn\"\nkey = \"{key}\"\npolicy = \"{policy}\"\n\
             labels = {{ id = {{ number = \"argument\" }} }}\n\
             [[native.start]]\nfunction = \"stock_turn_begin\"\n{word}\
             [[native.finish]]\nfunction = \"stock_turn_end\"\nnumber = 1\n{word}"
        );
        let spec = specs::file(&format!("turns-native-{key}-{policy}"), &text)?;
        let mut target = start(Build::Default)?;
        let agent = Agent::attach(&[target.pid()], &["--spec", path(&spec)])?;
        let (total, times) = twice(&mut target, meaning)?;
        let scrape = agent.scrape_settled()?;
        turns::check(&scrape, "turns", total, &times).with_context(|| format!("{key}, {policy}"))?;
        ensure!(
            whole(scrape.sum("turns_total", &[("id", "7")])) == whole(total),
            "{key}, {policy}: other names"
        );
        check_closed(&scrape, target.pid(), [0, 0])?;
        agent.terminate()?;
        Ok(())
    })
}

#[test]
fn operations_of_one_spec_are_counted_apart() -> Result<()> {
    let operation = |name: &str, returned: &str, failed: &str, function: &str| {
        format!(
            "[[native]]\nname = \"{name}\"\nkey = \"thread\"\nreturns = {{ by = \"instructions\", number = \"{returned}\" }}\n\
             allow_expensive = true\nfailed = \"{failed}\"\n[native.labels]\nwhat = {{ text = \"{name}\" }}\n\
             status = {{ outcome = [\"good\", \"bad\"] }}\n[[native.start]]\nfunction = \"{function}\"\n"
        )
    };
    let even = operation("even", "bool", "== 0", "stock_is_even");
    let lookup = operation("lookup", "int", "< 0", "stock_lookup");
    let gone = operation("gone", "int", "< 0", "stock_gone");
    // What another release might have in its place.
    let instead = operation("even", "int", "< 0", "stock_odd");
    let spec = specs::file("several", &format!("name = \"stock\"\n{instead}{even}{gone}{lookup}"))?;
    let mut target = start(Build::Default)?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&spec)])?;
    target.command("even 101")?;
    target.command("lookups 50")?;
    let scrape = agent.scrape_settled()?;
    ensure!(agent.log().contains("stock: gone is not watched"), "{}", agent.log());
    let expected = [("even/good", 51), ("even/bad", 50), ("lookup/good", 650), ("lookup/bad", 50)];
    let expected = expected.map(|(labels, count)| (labels.to_owned(), count)).into();
    let found = counted(&scrape, &["what", "status"]);
    ensure!(found == expected && timed(&scrape).0 == 801, "{found:?}, {:?}", timed(&scrape));
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    let executable = corners(Build::Default)?;
    let ended =
        run_to_end(&["inspect", "--json", "--exe", path(&executable), "--spec", path(&spec)], PATIENCE)?;
    let said: Value = serde_json::from_str(&ended.stdout).with_context(|| ended.stderr.clone())?;
    let notes: Vec<_> =
        said["frameworks"].as_array().into_iter().flatten().map(|one| &one["notes"]).collect();
    let gone = "gone is not watched (function stock_gone is not among the symbols of the executable, or has no size there)";
    ensure!(notes == [&json!([gone]), &json!([])], "{said}");
    let twice = lookup.replace("\"lookup\"", "\"twice\"");
    let twice = specs::file("twice", &format!("name = \"stock\"\n{lookup}{twice}"))?;
    let ended = run_to_end(&["spec", "check", path(&twice), "--exe", path(&executable)], PATIENCE)?;
    ensure!(
        ended.code == Some(6)
            && ended
                .stderr
                .contains("twice.toml:23:12: operations lookup and twice both watch function stock_lookup:"),
        "{}",
        ended.stderr
    );
    Ok(())
}

#[test]
fn functions_are_known_by_their_names_in_the_source() -> Result<()> {
    let operation = |name: &str, function: &str, returns: &str| {
        format!(
            "[[native]]\nname = \"{name}\"\nkey = \"thread\"\n{returns}\n\
             [native.labels]\nwhat = {{ text = \"{name}\" }}\n[[native.start]]\nfunction = \"{function}\"\n"
        )
    };
    let lookup = operation("lookup", "StockHandler::lookup(std::string const&, int)", BY_RETURNS);
    let restock = operation("restock", "stock::StockProcessor::process_restock", BY_PROBE);
    let spec = specs::file("source-names", &format!("name = \"stock\"\n{lookup}{restock}"))?;
    let executable = server()?;
    let mut target = Process::start_command(Command::new(&executable).arg("server"))?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&spec)])?;
    let address = target.addr()?.to_owned();
    let status = Command::new(&executable).args(["client", &address, "300"]).status()?;
    ensure!(status.success(), "the client: {status}");
    let scrape = agent.scrape_settled()?;
    let own = target.command("counts")?;
    let found = counted(&scrape, &["what"]);
    let expected = [("lookup", &own["returned"]), ("restock", &own["restocked"])];
    ensure!(expected.iter().all(|(what, count)| Some(found[*what]) == count.as_u64()), "{found:?}, {own}");
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;

    let spec = spec_of("async_target::check_item", "instructions")?;
    let mut target = Process::start_command(&mut Command::new(async_server()?))?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&spec)])?;
    target.command("calls 300")?;
    let scrape = agent.scrape_settled()?;
    ensure!(whole(scrape.sum("stock_total", &[])) == 300, "{}", scrape.sum("stock_total", &[]));
    agent.terminate()?;
    Ok(())
}

#[test]
fn numbers_of_one_byte_and_patterns() -> Result<()> {
    let text = "name = \"stock\"\n[[native]]\nname = \"one\"\nkey = \"thread\"\n\
                returns = { by = \"instructions\", number = \"bool\" }\nallow_expensive = true\nfailed = \"== 0\"\n\
                [native.labels]\nstatus = { outcome = [\"even\", \"odd\"] }\n[[native.start]]\nfunction = \"stock_is_even\"\n";
    let even = specs::file("even", text)?;
    let many = spec_of("stock_many_*\"\nat_most = \"3", "instructions");
    let many = std::fs::read_to_string(many?)?
        .replace("\"stock\"", "\"many\"")
        .replace("at_most = \"3\"", "at_most = 3");
    let many = specs::file("many", &many)?;
    let mut target = start(Build::Default)?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&even), "--spec", path(&many)])?;
    target.command("even 101")?;
    target.command("many 70")?;
    let scrape = agent.scrape_settled()?;
    let expected = [("even".to_owned(), 51), ("odd".to_owned(), 50)].into();
    ensure!(counted(&scrape, &["status"]) == expected, "{:?}", counted(&scrape, &["status"]));
    ensure!(whole(scrape.sum("many_total", &[])) == 210, "{}", scrape.sum("many_total", &[]));
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

/// Writes a spec that only counts the returns of functions that match a pattern.
fn counting(name: &str, pattern: &str, at_most: u32, returns: &str) -> Result<std::path::PathBuf> {
    let text = format!(
        "name = \"{name}\"\n[[native]]\nname = \"one\"\nkey = \"thread\"\n{returns}\n\
         [[native.start]]\nfunction = \"{pattern}\"\nat_most = {at_most}\n"
    );
    specs::file(name, &text)
}

/// The part of the handler that gcc has moved elsewhere. The handler jumps there to throw.
const PART: &[u8] = b"_ZN12StockHandler6lookupERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEEi.cold";

#[test]
fn calls_of_a_thrift_server_are_counted_once() -> Result<()> {
    let executable = server()?;
    let is_cut = std::fs::read(&executable)?.windows(PART.len()).any(|name| name == PART);
    ensure!(is_cut, "no part of the handler lies elsewhere");
    let mut target = Process::start_command(Command::new(&executable).arg("server"))?;
    // The handler itself, which throws, and the functions that Thrift's compiler generates around it, which do not.
    let handler = "name = \"stock\"\n[[native]]\nname = \"lookup\"\nkey = \"thread\"\nallow_expensive = true\n\
                   returns = { by = \"instructions\", number = \"int\" }\n\
                   [native.labels]\nitem = \"item\"\nresult = { number = \"result\" }\n\
                   [[native.start]]\nfunction = \"_ZN12StockHandler6lookup*\"\nat_most = 1\nstrings = { item = 1 }\n";
    let handler = specs::file("handler", handler)?;
    let processed = counting("processed", "_ZN5stock14StockProcessor*process_*", 2, BY_PROBE)?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&handler), "--spec", path(&processed)])?;
    let address = target.addr()?.to_owned();
    let status = Command::new(&executable).args(["client", &address, "1200"]).status()?;
    ensure!(status.success(), "the client: {status}");
    let scrape = agent.scrape_settled()?;
    let own = target.command("counts")?;
    ensure!(own["returned"] == 2_400 && own["thrown"] == 1_200 && own["restocked"] == 1_200, "{own}");
    let expected = [
        ("apple/0".to_owned(), 400),
        ("apple/1".to_owned(), 400),
        ("apple/2".to_owned(), 400),
        (format!("{}…/7", "p".repeat(64)), 1_200),
    ];
    let found = counted(&scrape, &["item", "result"]);
    ensure!(found == expected.into(), "{found:?}");
    ensure!(timed(&scrape).0 == 2_400, "{:?}", timed(&scrape));
    ensure!(whole(scrape.sum("processed_total", &[])) == 4_800, "{}", scrape.sum("processed_total", &[]));
    // Calls left by an exception have ended, but are in no total.
    let left = scrape.sum("monitor_unpaired_starts_total", &[]) + scrape.sum("monitor_calls_in_flight", &[]);
    ensure!(whole(left) == 1_200, "{left} were left by an exception");
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

#[test]
fn of_an_async_function_the_polls_are_counted_and_of_another_the_calls() -> Result<()> {
    let mut target = Process::start_command(&mut Command::new(async_server()?))?;
    let check = counting("checked", "*check_item*", 1, BY_RETURNS)?;
    let polls = counting("polls", "_ZN12async_target11answer_item*closure*", 1, BY_RETURNS)?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&check), "--spec", path(&polls)])?;
    target.command("calls 1000")?;
    let scrape = agent.scrape_settled()?;
    let own = target.command("counts")?;
    ensure!(own["calls"] == 1_000 && own["checked"] == 1_000, "{own}");
    ensure!(whole(scrape.sum("checked_total", &[])) == 1_000, "{}", scrape.sum("checked_total", &[]));
    let polled = whole(scrape.sum("polls_total", &[]));
    ensure!(own["polls"] == polled && polled >= 3_000, "{polled} polls, {own}");
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

/// Runs `spec check` on the example of the documents with one part replaced. Returns the exit code and stderr.
fn checked(executable: &Path, part: &str, other: &str) -> Result<(i32, String)> {
    let text = specs::text("stock")?;
    ensure!(text.contains(part), "no {part} in {text}");
    let file = specs::file("changed-stock", &text.replacen(part, other, 1))?;
    let ended = run_to_end(&["spec", "check", path(&file), "--exe", path(executable)], PATIENCE)?;
    Ok((ended.code.unwrap_or(-1), ended.stderr))
}

/// Ignores what differs between compilers: instructions, and the number of returns.
#[test]
fn what_is_right_with_a_spec_is_as_it_was() -> Result<()> {
    let said = specs::checked("stock", &corners(Build::Default)?, PATIENCE)?;
    let (without, with) = said.split_once("\n\n").context("nothing about the executable")?;
    let mut lines: Vec<_> = with.lines().filter(|line| !line.starts_with("          ")).collect();
    lines.dedup();
    golden::check("spec-check-stock.txt", &format!("{without}\n\n{}\n", lines.join("\n")))
}

#[test]
fn what_can_not_be_watched_is_refused() -> Result<()> {
    let executable = corners(Build::Default)?;
    for (part, other, code, expected) in [
        (
            "\"stock_lookup\"",
            "\"stock_lokup\"",
            6,
            "changed-stock.toml:17:12: function stock_lokup is not among the symbols",
        ),
        ("\"stock_lookup\"", "\"stock_many_*\"\nat_most = 2", 6, "matches 3 functions, and may match 2"),
        ("\"stock_lookup\"", "\"stock_*\"", 2, "a pattern needs at_most"),
        ("\"stock_lookup\"", "\"stack_*\"\nat_most = 2", 6, "function stack_* is not among the symbols"),
        ("\"stock_lookup\"", "\"stock::lookup(int)\"", 6, "stock::lookup(int) is not among the symbols"),
        ("\"stock_lookup\"", "\"stock lookup\"", 2, "`stock lookup` is no name of a function"),
        ("\"stock_lookup\"", "\"stock_*\"\nat_most = 10000", 2, "from 1 to 64 functions"),
        ("cstrings = { item = 1 }", "cstrings = { item = 6 }", 2, "only the first 6 arguments"),
        ("cstrings = { item = 1 }", "cstrings = { other = 1 }", 2, "`item` is no string of each start"),
        (
            "cstrings = { item = 1 }",
            "strings = { item = 1 }",
            6,
            "changed-stock.toml:17:12: the parameters of stock_lookup can't be read from its symbol",
        ),
        ("cstrings = { item = 1 }", "cstrings = { item = 1 }\nkey = 0", 2, "the key is the thread"),
        ("allow_expensive = true", "", 2, "write allow_expensive = true"),
        ("by = \"instructions\"", "by = \"probe\"", 2, "write nothing_is_thrown = true"),
        (
            BY_INSTRUCTIONS,
            "returns = { by = \"probe\", number = \"int\" }",
            2,
            "write nothing_is_thrown = true",
        ),
        ("number = \"int\" }", "}", 2, "returns must say what number is returned"),
        ("failed = \"< 0\"\n", "", 2, "`failed` must compare a number"),
        ("key = \"thread\"", "key = \"goroutine\"", 2, "unknown variant `goroutine`"),
        ("help = ", "module = \"std\"\nhelp = ", 2, "only Go programs say which modules"),
    ] {
        let (ended, said) = checked(&executable, part, other)?;
        ensure!(ended == code && said.contains(expected), "{other}: {ended}, {said}");
    }
    // This test program has some ten thousand functions.
    let (ended, said) = checked(&std::env::current_exe()?, "\"stock_lookup\"", "\"_*\"\nat_most = 64")?;
    ensure!(ended == 6 && said.contains("functions, and may match 64"), "{ended}, {said}");
    let (ended, said) = checked(&corners(Build::Stripped)?, "", "")?;
    let stripped = "function stock_lookup can't be found: the executable was stripped";
    ensure!(ended == 6 && said.contains(stripped), "{ended}, {said}");
    let go = Program::Operations.build(Flavour::Default)?;
    let (ended, said) = checked(&go, "", "")?;
    ensure!(ended == 6 && said.contains("it is a Go program"), "{ended}, {said}");
    let jobs = specs::documented("jobs")?;
    let ended = run_to_end(&["spec", "check", path(&jobs), "--exe", path(&executable)], PATIENCE)?;
    ensure!(ended.code == Some(6) && ended.stderr.contains("is not a Go program"), "{}", ended.stderr);
    Ok(())
}

#[test]
fn specs_that_claim_the_same_function_are_refused() -> Result<()> {
    let target = start(Build::Default)?;
    let pid = target.pid().to_string();
    let text = specs::text("stock")?;
    let same = specs::file("same", &text.replace("\"stock\"", "\"same\""))?;
    let like =
        text.replace("\"stock\"", "\"like\"").replace("\"stock_lookup\"", "\"stock_look*\"\nat_most = 1");
    let like = specs::file("like", &like)?;
    let stock = specs::documented("stock")?;
    for (other, code, expected) in [
        (&same, 2, "both watch stock_lookup"),
        (&like, 6, "function stock_lookup is watched for spec stock already"),
    ] {
        let args = [
            "run",
            "--pid",
            &pid,
            "--web.listen-address",
            ":0",
            "--spec",
            path(&stock),
            "--spec",
            path(other),
        ];
        let ended = run_to_end(&args, PATIENCE)?;
        ensure!(
            ended.code == Some(code) && ended.stderr.contains(expected),
            "{:?} {}",
            ended.code,
            ended.stderr
        );
    }
    Ok(())
}

#[test]
fn inspect_shows_how_ends_are_seen() -> Result<()> {
    let executable = corners(Build::Default)?;
    for (way, cost) in [("instructions", "single-stepped"), ("probe", "return-probe")] {
        let spec = spec_of("stock_throw", way)?;
        let ended =
            run_to_end(&["inspect", "--json", "--exe", path(&executable), "--spec", path(&spec)], PATIENCE)?;
        let said: Value = serde_json::from_str(&ended.stdout).with_context(|| ended.stderr.clone())?;
        ensure!(ended.code == Some(0) && said["go_version"].is_null(), "{said}");
        let one = &said["frameworks"][0];
        let sites: Vec<_> = one["sites"].as_array().into_iter().flatten().collect();
        let is = |site: &&&Value, role: &str, cost: &str| site["role"] == role && site["cost_class"] == cost;
        ensure!(sites.iter().filter(|site| is(site, "start", "emulated")).count() == 1, "{said}");
        ensure!(sites.iter().filter(|site| is(site, "finish", cost)).count() == sites.len() - 1, "{said}");
        ensure!(one["notes"].to_string().contains("ends the target") == (way == "probe"), "{said}");
    }
    Ok(())
}
