//! Specs: what is wrong with one is reported, with its place. What is right with one is reported, too.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use monitor_agent::specs::KNOWN;
use monitor_tests::{
    agent::run_to_end,
    process::Process,
    specs::{self, path},
    targets::{Flavour, NEWEST_GO, Program},
};
use serde_json::{Value, json};

use crate::golden;

const PATIENCE: Duration = Duration::from_secs(20);

/// Returns the exit code and the report of `inspect` about a spec in the target.
fn inspected(spec: &str) -> Result<(i32, Value)> {
    let executable = Program::Operations.build(Flavour::Default)?;
    let ended = run_to_end(&["inspect", "--json", "--exe", path(&executable), "--spec", spec], PATIENCE)?;
    let said = serde_json::from_str(&ended.stdout).with_context(|| ended.stderr.clone())?;
    Ok((ended.code.unwrap_or(-1), said))
}

/// An operation is described once for each of several releases. If one of the descriptions fits, the others are not
/// reported as missing.
#[test]
fn what_is_described_for_several_releases_is_there_or_not() -> Result<()> {
    let newest = Program::Operations.build_with(NEWEST_GO, Flavour::Stripped)?;
    let default = Program::Operations.build(Flavour::Default)?;
    let text = KNOWN.iter().find(|(name, _)| *name == "net-http").context("no spec net-http")?.1;
    let other = specs::file("net-http-other", &text.replace("handlerDone", "handlerGone"))?;
    for executable in [default, newest] {
        let notes = |spec: &str| -> Result<String> {
            let args = ["inspect", "--json", "--exe", path(&executable), "--spec", spec];
            let ended = run_to_end(&args, PATIENCE)?;
            let said: Value = serde_json::from_str(&ended.stdout).with_context(|| ended.stderr.clone())?;
            let of_spec = said["frameworks"].as_array().into_iter().flatten();
            let of_spec = of_spec.filter(|one| one["name"] == "http_server_requests");
            Ok(of_spec.map(|one| one["notes"].to_string()).collect())
        };
        ensure!(!notes("net-http")?.contains("not watched"), "{}", notes("net-http")?);
        let said = notes(path(&other))?;
        let both = "HTTP/2 is not watched (function net/http.(*http2responseWriter).handlerGone is not in the executable; \
                    function net/http/internal/http2.(*responseWriter).handlerGone is not in the executable)";
        ensure!(said.matches("not watched").count() == 1 && said.contains(both), "{said}");
    }
    Ok(())
}

#[test]
fn inspect_shows_what_returns_cost() -> Result<()> {
    let (code, said) = inspected(path(&specs::documented("work")?))?;
    ensure!(code == 0 && said["frameworks"][0]["attachable"] == true, "{said}");
    let sites: Vec<_> = said["frameworks"][0]["sites"].as_array().into_iter().flatten().collect();
    let of = |role: &str, cost: &str| {
        sites.iter().filter(|site| site["role"] == role && site["cost_class"] == cost).count()
    };
    ensure!(
        of("start", "emulated") == 1 && of("finish", "single-stepped") == 3 && sites.len() == 4,
        "{said}"
    );
    ensure!(said["frameworks"][0]["labels"] == json!(["status"]), "{said}");
    Ok(())
}

/// Runs `spec check` on a spec with one part replaced, written to `file`. Returns the exit code and stderr.
fn checked(file: &str, name: &str, part: &str, other: &str) -> Result<(i32, String)> {
    let text = specs::text(name)?;
    ensure!(text.contains(part), "no {part} in {text}");
    let file = specs::file(file, &text.replacen(part, other, 1))?;
    let executable = Program::Operations.build(Flavour::Default)?;
    let ended = run_to_end(&["spec", "check", path(&file), "--exe", path(&executable)], PATIENCE)?;
    Ok((ended.code.unwrap_or(-1), ended.stderr))
}

#[test]
fn what_is_right_with_a_spec_is_as_it_was() -> Result<()> {
    let executable = Program::Operations.build(Flavour::Default)?;
    for name in ["jobs", "work"] {
        golden::check(&format!("spec-check-{name}.txt"), &specs::checked(name, &executable, PATIENCE)?)?;
    }
    Ok(())
}

/// The start of a job in the example of the documents.
const ONE_START: &str =
    "[[operation.start]]\nfunction = \"main.(*queue).begin\"\narguments = \"ww\"\nkey = 1\n";

/// The error for a function some of whose calls would not be seen.
const INLINED: &str = "changed.toml:16:12: function main.leap is inlined into main.(*work).run";

/// The errors for names without the full path of their package.
const SHORT_FUNCTION: &str = "changed.toml:16:12: function http.(*response).finishRequest is not in the executable, but \
                              net/http.(*response).finishRequest is: write the whole path";
const SHORT_TYPE: &str =
    "changed.toml:7:17: type http.response can't be found, but net/http.response can: write the whole path";

#[test]
fn what_is_wrong_with_a_spec_has_a_place_and_a_code() -> Result<()> {
    let others = ["begun", "started"].map(|name| ONE_START.replace("begin", name)).concat();
    for (name, part, other, code, expected) in [
        ("jobs", "key = 1", "kye = 1", 2, "changed.toml:18:1: unknown field `kye`"),
        ("jobs", "error = 2", "error = 7", 2, "changed.toml:25:9: there are 4 words in `ww{ww}`"),
        ("work", "allow_expensive = true", "", 2, "allow_expensive = true"),
        (
            "jobs",
            "job.queue.name",
            "job.queue.title",
            6,
            "changed.toml:10:9: type main.queueName has no field title",
        ),
        ("jobs", "job.kind", "job.fails", 6, "fails is bool, not a string or a slice of bytes"),
        ("jobs", "{ number = \"job.tries\" }", "{ number = \"job.kind\" }", 6, "not a number"),
        (
            "jobs",
            "queue).begin",
            "queue).begun",
            6,
            "changed.toml:16:12: function main.(*queue).begun is not in the executable",
        ),
        ("jobs", "arguments = \"ww\"", "arguments = \"www\"", 6, "has the arguments ww, not www"),
        ("jobs", "(*queue).begin", "leap", 6, INLINED),
        (
            "jobs",
            "job = \"main.job\"",
            "job = \"main.jobs\"",
            6,
            "changed.toml:7:17: type main.jobs can't be found",
        ),
        (
            "jobs",
            ONE_START,
            others.as_str(),
            6,
            "main.(*queue).begun (or main.(*queue).started) is not in the executable",
        ),
        ("jobs", "error = 2\n", "error = 2\nnumber = 0\n", 2, "by an error or by a number, not both"),
        (
            "work",
            "(*work).step\"",
            "(*work).*\"\nat_most = 1",
            6,
            "changed.toml:13:12: main.(*work).* matches 2 functions, and may match 1",
        ),
        ("work", "main.(*work).step\"", "*.*\"\nat_most = 64", 6, " functions, and may match 64"),
        // The star is the receiver's pointer, not a pattern.
        (
            "work",
            "(*work).step\"",
            "(*ork).*\"\nat_most = 9",
            6,
            "changed.toml:13:12: function main.(*ork).* is not in the executable",
        ),
        ("jobs", "main.(*queue).begin", "http.(*response).finishRequest", 6, SHORT_FUNCTION),
        ("jobs", "\"main.job\"", "\"http.response\"", 6, SHORT_TYPE),
        (
            "work",
            "(*work).step\"",
            "(*work).x*\"\nat_most = 9",
            6,
            "main.(*work).x* is not in the executable",
        ),
    ] {
        let (ended, said) = checked("changed", name, part, other)?;
        ensure!(ended == code && said.contains(expected), "{other}: {ended}, {said}");
    }
    Ok(())
}

/// Functions that are not what they seem, and operations that can't be distinguished.
#[test]
fn what_would_count_wrongly_is_refused() -> Result<()> {
    const MADE: &str = "is one that the compiler has made to call another";
    const PANICS: &str = "a call that panics has no return";
    let generic = |symbol: &str| format!("unsound.toml:16:12: function {symbol} is generic");
    let made = |symbol: &str| format!("unsound.toml:13:12: function {symbol} {MADE}");
    for (name, part, other, code, expected) in [
        ("jobs", "(*queue).begin", "(*box[go.shape.int]).put", 6, generic("main.(*box[go.shape.int]).put")),
        ("jobs", "(*queue).begin", "larger[go.shape.int]", 6, generic("main.larger[go.shape.int]")),
        // The spec does not use their arguments.
        ("work", "(*work).step", "(*box[go.shape.int]).put", 0, String::new()),
        ("work", "(*work).step", "larger[go.shape.int]", 0, String::new()),
        ("work", "(*work).step", "(*coin).toss", 6, made("main.(*coin).toss")),
        ("work", "(*work).step", "(*purse).toss", 6, made("main.(*purse).toss")),
        ("work", "(*work).step", "coin.toss", 0, String::new()),
        (
            "work",
            "main.(*work).step",
            "runtime.memmove",
            6,
            "unsound.toml:13:12: function runtime.memmove is written in assembly".to_owned(),
        ),
        (
            "jobs",
            "(*queue).begin\"",
            "(*queue).*\"\nat_most = 9",
            6,
            "unsound.toml:22:12: function main.(*queue).end is a start and a finish".to_owned(),
        ),
        (
            "jobs",
            "begin\"\narguments = \"ww\"\nkey = 1",
            "end\"\narguments = \"ww\"\nkey = 1",
            6,
            "unsound.toml:21:12: function main.(*queue).end is a start and a finish".to_owned(),
        ),
        // The function finishes one operation and starts another.
        (
            "jobs",
            "begin\"\narguments = \"ww\"\nkey = 1",
            "end\"\narguments = \"ww\"\nkey = 0",
            0,
            String::new(),
        ),
        (
            "jobs",
            "job.tries",
            "job.queue",
            6,
            "unsound.toml:12:9: queue is *main.queueName, not a number".to_owned(),
        ),
        ("work", "\"nested\"", "\"first_start\"", 2, format!("unsound.toml:6:10: {PANICS}")),
        (
            "stock",
            "\"thread\"",
            "\"thread\"\npolicy = \"first_start\"",
            2,
            format!("unsound.toml:7:10: {PANICS}"),
        ),
    ] {
        let (ended, said) = checked("unsound", name, part, other)?;
        ensure!(ended == code && said.contains(&expected), "{other}: {ended}, {said}");
    }
    Ok(())
}

/// A type must exist even if no label uses it. The error has the type's place, not that of a label.
#[test]
fn a_type_without_a_label_must_be_there_too() -> Result<()> {
    let text = specs::text("jobs")?
        .replacen("pointers = { job = 1 }", "pointers = { job = 1, queue = 0 }", 1)
        .replacen("job = \"main.job\" }", "job = \"main.job\", queue = \"main.queues\" }", 1);
    let file = specs::file("types", &text)?;
    let executable = Program::Operations.build(Flavour::Default)?;
    let ended = run_to_end(&["spec", "check", path(&file), "--exe", path(&executable)], PATIENCE)?;
    let expected = "types.toml:7:37: type main.queues can't be found";
    ensure!(ended.code == Some(6) && ended.stderr.contains(expected), "{}", ended.stderr);
    Ok(())
}

/// Releases also differ in types, fields and arguments. The first description that fits is used. If none fits, the
/// error is that of the first one.
#[test]
fn the_first_description_that_fits_counts() -> Result<()> {
    let jobs = specs::text("jobs")?;
    let (head, operation) = jobs.split_once("[[operation]]").context("no operation")?;
    let executable = Program::Operations.build(Flavour::Default)?;
    let worse = operation.replacen("job.kind", "job.sort", 1);
    for (part, other, why) in [
        ("job.queue.name", "job.queue.title", "releases.toml:10:9: type main.queueName has no field title"),
        ("\"main.job\"", "\"main.jobs\"", "releases.toml:7:17: type main.jobs can't be found"),
        ("arguments = \"ww\"", "arguments = \"www\"", "has the arguments ww, not www"),
        ("job.kind", "job.fails", "releases.toml:11:8: fails is bool"),
    ] {
        ensure!(operation.contains(part), "no {part} in {operation}");
        let first = operation.replacen(part, other, 1);
        for (second, code) in [(operation, 0), (worse.as_str(), 6)] {
            let text = format!("{head}[[operation]]{first}[[operation]]{second}");
            let file = specs::file("releases", &text)?;
            let ended = run_to_end(&["spec", "check", path(&file), "--exe", path(&executable)], PATIENCE)?;
            let is_said = code == 0 || ended.stderr.contains(why);
            ensure!(ended.code == Some(code) && is_said, "{other}: {:?} {}", ended.code, ended.stderr);
            ensure!(!ended.stdout.contains("not watched"), "{other}: {}", ended.stdout);
        }
    }
    Ok(())
}

/// If an operation is copied with other functions but without a new name, a note reports that the calls there are not counted.
#[test]
fn a_second_operation_of_a_name_is_told_of_where_it_is_elsewhere() -> Result<()> {
    let jobs = specs::text("jobs")?;
    let (head, operation) = jobs.split_once("[[operation]]").context("no operation")?;
    // A field that only the second one reads.
    let first = operation.replacen("job.kind", "job.queue.name", 1);
    let executable = Program::Operations.build(Flavour::Default)?;
    for (begin, is_told) in [("(*queue).begin", false), ("(*turn).begin", true)] {
        let second = operation.replacen("(*queue).begin", begin, 1);
        let file = specs::file("namesakes", &format!("{head}[[operation]]{first}[[operation]]{second}"))?;
        let ended = run_to_end(&["spec", "check", path(&file), "--exe", path(&executable)], PATIENCE)?;
        let said = &ended.stdout;
        let note = "  note    job is described a second time (";
        let has_note = said.contains(note) && said.contains("namesakes.toml:38:12), which fits as well");
        ensure!(ended.code == Some(0) && has_note == is_told, "{begin}: {} {said}", ended.stderr);
        ensure!(!said.contains("main.(*turn)") && !said.contains("main.job.kind"), "{begin}: {said}");
    }
    Ok(())
}

/// A start may belong to several operations, each finish belongs to one.
#[test]
fn inspect_says_which_operation_a_site_is_of() -> Result<()> {
    let (code, said) = inspected("net-http")?;
    let sites = said["frameworks"][0]["sites"].as_array().into_iter().flatten();
    let found: Vec<_> = sites.map(|site| json!([site["role"], site["operations"]])).collect();
    let expected = [
        json!(["finish", ["HTTP/1"]]),
        json!(["finish", ["HTTP/2"]]),
        json!(["start", ["HTTP/1", "HTTP/2"]]),
    ];
    ensure!(code == 0 && found == expected, "{said}");
    let executable = Program::Operations.build(Flavour::Default)?;
    let ended = run_to_end(&["spec", "check", "net-http", "--exe", path(&executable)], PATIENCE)?;
    ensure!(ended.stdout.contains("\n          operation: HTTP/1, HTTP/2\n"), "{}", ended.stdout);
    Ok(())
}

#[test]
fn specs_that_do_not_go_together_are_refused() -> Result<()> {
    let target = Process::start(Program::Operations, Flavour::Default, &[])?;
    let pid = target.pid().to_string();
    let jobs = specs::documented("jobs")?;
    let again = specs::file("again", &specs::text("jobs")?.replace("name = \"jobs\"", "name = \"again\""))?;
    let other = specs::file(
        "other",
        &specs::text("jobs")?.replace("*queue", "*other").replace("\"jobs\"", "\"other\""),
    )?;
    let text = specs::text("work")?.replace("\"work\"", "\"like\"");
    let like = specs::file("like-work", &text.replace("(*work).step\"", "(*work).s*\"\nat_most = 1"))?;
    let work = specs::documented("work")?;
    let wrong = specs::file("wrong", &specs::text("jobs")?.replace("error = 2", "error = 7"))?;
    for (others, code, expected) in [
        ([&jobs, &jobs], 2, "both have the metrics jobs_total"),
        ([&jobs, &again], 2, "both watch main.(*queue).begin"),
        ([&work, &like], 6, "function main.(*work).step is watched for spec work already"),
        ([&jobs, &other], 6, "main.(*other).begin is not in the executable"),
        ([&jobs, &wrong], 2, "wrong.toml:25:9: there are 4 words in `ww{ww}`"),
    ] {
        let args = others.map(|file| ["--spec", path(file)]).concat();
        let args = [&["run", "--pid", &pid, "--web.listen-address", ":0"], &args[..]].concat();
        let ended = run_to_end(&args, PATIENCE)?;
        ensure!(ended.code == Some(code) && ended.stderr.contains(expected), "{}", ended.stderr);
    }
    Ok(())
}

/// The functions that start them must distinguish the operations of a spec.
#[test]
fn operations_of_a_spec_that_can_not_be_told_apart_are_refused() -> Result<()> {
    let jobs = specs::text("jobs")?;
    let (head, operation) = jobs.split_once("[[operation]]").context("no operation")?;
    let second = |part: &str, other: &str| {
        ensure!(operation.contains(part), "no {part} in {operation}");
        let second = operation.replacen("name = \"job\"", "name = \"second\"", 1).replacen(part, other, 1);
        specs::file("second", &format!("{head}[[operation]]{operation}[[operation]]{second}"))
    };
    let executable = Program::Operations.build(Flavour::Default)?;
    for (part, other, code, expected) in [
        (
            "queue).begin",
            "queue).begin",
            6,
            "second.toml:43:12: operations job and second can't be told apart",
        ),
        ("kind = ", "other = ", 2, "second.toml:26:1: all operations of a spec have the same labels"),
        (
            "queue).begin\"",
            "queue).begin*\"\nat_most = 1",
            2,
            "patterns and returns need a spec of their own",
        ),
    ] {
        let file = second(part, other)?;
        let ended = run_to_end(&["spec", "check", path(&file), "--exe", path(&executable)], PATIENCE)?;
        ensure!(ended.code == Some(code) && ended.stderr.contains(expected), "{other}: {}", ended.stderr);
    }
    Ok(())
}
