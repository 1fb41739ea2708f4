//! Specs: what they describe is counted as the target counts it itself, and what is wrong with one is said.

mod golden;
mod schema;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use monitor_agent::{
    frameworks,
    specs::{KNOWN, read},
};
use monitor_tests::{
    agent::{Agent, run_to_end},
    chain::check_closed,
    events::Events,
    grpc,
    process::Process,
    scrape::{Scrape, whole},
    side_by_side, specs,
    targets::{Flavour, NEWEST_GO, Program, go_releases},
    turns::{self, MEANINGS, Meaning, tell, twice},
};
use schema::check_schema;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

fn path(path: &Path) -> &str {
    path.to_str().expect("a path that is UTF-8")
}

/// The values of a counter by those of some labels, which are all that it has; slashes in them are bars.
fn counted(scrape: &Scrape, name: &str, labels: &[&str]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for sample in scrape.samples(name) {
        assert_eq!(sample.labels.len(), labels.len(), "{:?}", sample.labels);
        let values: Vec<_> = labels.iter().map(|label| sample.labels[*label].replace('/', "|")).collect();
        *counts.entry(values.join("/")).or_default() += whole(sample.value);
    }
    counts
}

/// The same as the target counted it.
fn own(counts: &Value) -> Result<BTreeMap<String, u64>> {
    let counts = counts.as_object().context("no counts")?;
    Ok(counts.iter().map(|(key, count)| (key.clone(), count.as_u64().unwrap_or_default())).collect())
}

/// Each operation that was counted has a duration.
fn check_durations(scrape: &Scrape, name: &str) -> Result<()> {
    let timed: f64 =
        scrape.histograms(&format!("{name}_duration_seconds")).values().map(|one| one.count).sum();
    let counted = scrape.sum(&format!("{name}_total"), &[]);
    ensure!(whole(timed) == whole(counted) && timed > 0.0, "{name}: {timed} timed of {counted}");
    Ok(())
}

/// Everything that `targets/operations` does, by the specs of the documents and by the agent's own.
fn counts_exactly(executable: &Path) -> Result<()> {
    let mut target = Process::start_command(&mut Command::new(executable))?;
    let (jobs, work) = (specs::documented("jobs")?, specs::documented("work")?);
    let agent = Agent::attach(
        &[target.pid()],
        &["--spec", path(&jobs), "--spec", path(&work), "--spec", "net-http", "--metrics", "go,kitex"],
    )?;
    for line in ["jobs 1000", "work 500", "requests 20"] {
        target.command(line)?;
    }
    let scrape = agent.scrape_settled()?;
    let counts = target.command("counts")?;
    let jobs = counted(&scrape, "jobs_total", &["queue", "kind", "tries", "status"]);
    ensure!(jobs == own(&counts["jobs"])?, "jobs: {jobs:?}, {}", counts["jobs"]);
    let work = counted(&scrape, "work_total", &["status"]);
    ensure!(work == own(&counts["work"])?, "work: {work:?}, {}", counts["work"]);
    ensure!(work.values().sum::<u64>() == 2_000, "{work:?}");
    let requests = counted(&scrape, "http_server_requests_total", &["method", "code", "version"]);
    ensure!(requests == own(&counts["requests"])?, "requests: {requests:?}, {}", counts["requests"]);
    for name in ["jobs", "work", "http_server_requests"] {
        check_durations(&scrape, name)?;
    }
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

#[test]
fn operations_are_counted_once() -> Result<()> {
    counts_exactly(&Program::Operations.build(Flavour::Default)?)
}

#[test]
fn operations_of_a_stripped_executable_that_lies_anywhere_are_proven_as_well() -> Result<()> {
    counts_exactly(&Program::Operations.build(Flavour::StrippedPie)?)
}

/// There HTTP/2 is a package of its own.
#[test]
fn operations_are_counted_once_with_the_newest_go() -> Result<()> {
    counts_exactly(&Program::Operations.build_with(NEWEST_GO, Flavour::Stripped)?)
}

/// The oldest and the newest, and another one in turn.
#[test]
fn requests_are_counted_once_whatever_release_of_go() -> Result<()> {
    for release in go_releases() {
        let executable = Program::Web.build_with(release, Flavour::Stripped)?;
        let mut target = Process::start_command(&mut Command::new(executable))?;
        let agent = Agent::attach(&[target.pid()], &["--spec", "net-http", "--metrics", "go,kitex"])?;
        target.command("requests 20")?;
        let scrape = agent.scrape_settled()?;
        let counts = target.command("counts")?;
        let requests = counted(&scrape, "http_server_requests_total", &["method", "code", "version"]);
        ensure!(requests == own(&counts["requests"])?, "{release}: {requests:?}, {}", counts["requests"]);
        ensure!(requests.values().sum::<u64>() == 480, "{release}: {requests:?}");
        check_durations(&scrape, "http_server_requests").context(release)?;
        check_closed(&scrape, target.pid(), [0, 0]).context(release)?;
        agent.terminate()?;
    }
    Ok(())
}

#[test]
fn requests_to_hertz_are_counted_once() -> Result<()> {
    // Hertz has functions of the names that Kitex's had, which are no Kitex.
    let executable = Program::Hertz.build(Flavour::Stripped)?;
    let ended = run_to_end(&["inspect", "--json", "--exe", path(&executable), "--spec", "hertz"], PATIENCE)?;
    let said: Value = serde_json::from_str(&ended.stdout).with_context(|| ended.stderr.clone())?;
    let names = said["frameworks"].as_array().into_iter().flatten().map(|one| &one["name"]);
    ensure!(names.collect::<Vec<_>>() == ["hertz_server_requests"], "{said}");
    let mut target = Process::start(Program::Hertz, Flavour::Stripped, &[])?;
    let agent = Agent::attach(&[target.pid()], &["--spec", "hertz"])?;
    target.command("requests 50")?;
    let scrape = agent.scrape_settled()?;
    let counts = target.command("counts")?;
    let requests = counted(&scrape, "hertz_server_requests_total", &["method", "route", "code"]);
    ensure!(requests == own(&counts["requests"])?, "{requests:?}, {}", counts["requests"]);
    ensure!(requests.values().sum::<u64>() == 750, "{requests:?}");
    check_durations(&scrape, "hertz_server_requests")?;
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

/// A spec of turns with this key and policy: how a start and a finish say which word is the key.
fn turns_spec(key: &str, policy: &str) -> Result<std::path::PathBuf> {
    let word = match key {
        "pointer" => "key = 0\n",
        "number" => "key = 1\n",
        _ => "",
    };
    let text = format!(
        "name = \"turns\"\n[[operation]]\nname = \"turn\"\nside = \"client\"\nkey = \"{key}\"\npolicy = \"{policy}\"\n\
         labels = {{ id = {{ number = \"argument\" }} }}\n\
         [[operation.start]]\nfunction = \"main.(*turn).begin\"\narguments = \"ww\"\n{word}\
         [[operation.finish]]\nfunction = \"main.(*turn).end\"\narguments = \"ww\"\nnumber = 1\n{word}"
    );
    specs::file(&format!("turns-{key}-{policy}"), &text)
}

/// Does something with the target while the agent watches its turns, and gives what was counted.
fn turns_counted<T>(
    key: &str,
    policy: &str,
    body: impl FnOnce(&mut Process) -> Result<T>,
) -> Result<(T, Scrape)> {
    let mut target = Process::start(Program::Operations, Flavour::Default, &[])?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&turns_spec(key, policy)?)])?;
    let done = body(&mut target)?;
    let scrape = agent.scrape_settled()?;
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok((done, scrape))
}

#[test]
fn policies_say_which_start_and_which_finish_count() -> Result<()> {
    let policies = MEANINGS
        .into_iter()
        .flat_map(|(policy, meaning)| ["pointer", "number", "goroutine"].map(|key| (key, policy, meaning)));
    // Only operations of a goroutine nest.
    let cells = policies.filter(|(key, _, meaning)| *meaning != Meaning::Inside || *key == "goroutine");
    side_by_side(cells, |(key, policy, meaning)| {
        let ((total, times), scrape) = turns_counted(key, policy, |target| twice(target, meaning))?;
        turns::check(&scrape, "turns", total, &times).with_context(|| format!("{key}, {policy}"))?;
        let repeated = scrape.sum("monitor_finishes_total", &[("outcome", "repeated")]);
        let abandoned = scrape.sum("monitor_unpaired_starts_total", &[("reason", "abandoned")]);
        let expected = match meaning {
            Meaning::Latest => (0, 1),
            Meaning::Once => (1, 1),
            Meaning::First | Meaning::Inside => (0, 0),
        };
        let found = (whole(repeated), whole(abandoned));
        ensure!(found == expected, "{key}, {policy}: {found:?} repeated and abandoned");
        Ok(())
    })
}

/// Two that are under way at once, and end in the order in which they began: what has a key of its own has its own duration.
#[test]
fn keys_tell_operations_under_way_apart() -> Result<()> {
    const LARGEST: u64 = (1 << 60) - 1;
    // The goroutine is one and the same: the second start takes the place of the first.
    let cells =
        [("pointer", [0, 1]), ("number", [0, LARGEST - 1]), ("number", [1, 2]), ("goroutine", [1, 2])];
    side_by_side(cells, |(key, ids)| {
        let (times, scrape) = turns_counted(key, "overwrite", |target| {
            let [first, second] = [tell(target, "begin", ids[0])?, tell(target, "begin", ids[1])?];
            let [end, last] = [tell(target, "end", ids[0])?, tell(target, "end", ids[1])?];
            Ok(if key == "goroutine" {
                vec![second.until(end)]
            } else {
                vec![first.until(end), second.until(last)]
            })
        })?;
        turns::check(&scrape, "turns", 2.0, &times).with_context(|| format!("{key}, {ids:?}"))?;
        let shown: BTreeSet<_> = counted(&scrape, "turns_total", &["id"]).into_keys().collect();
        // Of a number the lowest 32 bits are read.
        let expected = ids.map(|id| (id & u64::from(u32::MAX)).to_string());
        ensure!(shown == expected.into(), "{shown:?}");
        Ok(())
    })
}

/// As deep as the documents say; of what is deeper only the durations are not known.
#[test]
fn operations_nest_seven_deep_and_deeper_ones_lose_their_durations_only() -> Result<()> {
    side_by_side([7_u8, 8], |depth| {
        let (times, scrape) = turns_counted("goroutine", "nested", |target| {
            let begun = (0..depth).map(|_| tell(target, "begin", 3)).collect::<Result<Vec<_>>>()?;
            let ended = (0..depth).map(|_| tell(target, "end", 3)).collect::<Result<Vec<_>>>()?;
            Ok(begun.iter().rev().zip(&ended).map(|(begin, end)| begin.until(*end)).collect::<Vec<_>>())
        })?;
        // The innermost ends first.
        let too_deep = usize::from(depth) - 7;
        turns::check(&scrape, "turns", f64::from(depth), &times[too_deep..])
    })
}

/// How many lines there are with each combination of the values of a spec's labels, in their order; slashes in them are bars.
fn in_lines(lines: &[Value], spec: &str, labels: &[&str]) -> Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for line in lines.iter().filter(|line| line["spec"] == spec) {
        let values = labels.iter().map(|label| Some(line["labels"][*label].as_str()?.replace('/', "|")));
        let values: Option<Vec<_>> = values.collect();
        let key = values.with_context(|| line.to_string())?.join("/");
        *counts.entry(key).or_default() += 1;
    }
    Ok(counts)
}

#[test]
fn names_past_the_limit_are_other() -> Result<()> {
    let mut target = Process::start(Program::Operations, Flavour::Default, &[])?;
    let jobs = specs::documented("jobs")?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&jobs), "--max-label-sets", "1"])?;
    target.command("jobs 1000")?;
    let scrape = agent.scrape_settled()?;
    let all: u64 = own(&target.command("counts")?["jobs"])?.values().sum();
    let found = counted(&scrape, "jobs_total", &["queue", "kind", "tries", "status"]);
    let kept = found.keys().filter(|labels| !labels.starts_with("other/other/")).count();
    ensure!(found.values().sum::<u64>() == all && kept == 1 && found.len() > 1, "{found:?}");
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

/// Numbers tell operations apart that are `other` too, and there is no end of them: past the reserve they are lost, each
/// is counted, and what has room counts on.
#[test]
fn numbers_past_the_reserve_for_other_are_lost_and_counted() -> Result<()> {
    const RESERVE: u64 = 256;
    let mut target = Process::start(Program::Operations, Flavour::Default, &[])?;
    let jobs = specs::documented("jobs")?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&jobs), "--max-label-sets", "1"])?;
    // The first has the place for names.
    target.command("tries 300")?;
    // All with new names and up to four tries; 4 of them fail, and 4 others have one try.
    target.command("jobs 20")?;
    let scrape = agent.scrape_settled()?;
    let found = counted(&scrape, "jobs_total", &["queue", "kind", "tries", "status"]);
    let other = (2..=1 + RESERVE).map(|tries| {
        let jobs = if tries <= 4 { 1 + 4 } else { 1 };
        (format!("other/other/{tries}/ok"), jobs)
    });
    let expected: BTreeMap<_, _> = other.chain([("mail/again/1/ok".to_owned(), 1)]).collect();
    ensure!(found == expected, "{found:?}");
    let lost = 300 - (1 + RESERVE) + 4 + 4;
    for name in ["monitor_events_lost_total", "monitor_unpaired_starts_total"] {
        let failed = whole(scrape.sum(name, &[("reason", "label_table_failed")]));
        ensure!(failed == lost, "{name}: {failed}, not {lost}");
    }
    let refused = whole(scrape.sum("monitor_label_sets_refused_total", &[]));
    ensure!(refused == 320 - 1, "{refused} refused");
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

#[test]
fn each_operation_is_an_event() -> Result<()> {
    let mut target = Process::start(Program::Operations, Flavour::Default, &[])?;
    let (jobs, work) = (specs::documented("jobs")?, specs::documented("work")?);
    let args = ["--spec", path(&jobs), "--spec", path(&work), "--spec", "net-http", "--starts"];
    let events = Events::attach(&[target.pid()], &args)?;
    for line in ["jobs 1000", "work 500", "requests 20"] {
        target.command(line)?;
    }
    let counts = target.command("counts")?;
    let lines = events.terminate()?;
    check_schema(&lines)?;
    for (spec, name, labels) in [
        ("jobs", "jobs", &["queue", "kind", "tries", "status"][..]),
        ("work", "work", &["status"]),
        ("http_server_requests", "requests", &["method", "code", "version"]),
    ] {
        let found = in_lines(&lines, spec, labels)?;
        ensure!(found == own(&counts[name])?, "{spec}: {found:?}, {}", counts[name]);
    }
    for line in &lines {
        let goroutine = line["goroutine"].as_u64().with_context(|| line.to_string())?;
        ensure!(line["event"] == "finish" && line["duration_us"].is_u64() && goroutine > 0, "{line}");
        // Requests have a code, and nothing says which of them mean failure.
        let status = match line["labels"]["status"].as_str() {
            Some("failed") => json!("error"),
            Some(_) => json!("succeed"),
            None => Value::Null,
        };
        ensure!(line["status"] == status, "{line}");
    }
    Ok(())
}

/// What `inspect` says of a spec in the target.
fn inspected(spec: &str) -> Result<(i32, Value)> {
    let executable = Program::Operations.build(Flavour::Default)?;
    let ended = run_to_end(&["inspect", "--json", "--exe", path(&executable), "--spec", spec], PATIENCE)?;
    let said = serde_json::from_str(&ended.stdout).with_context(|| ended.stderr.clone())?;
    Ok((ended.code.unwrap_or(-1), said))
}

/// One of the two descriptions that releases need is there, and the other is no loss.
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

/// The code and the error of `spec check` with a spec in which a part has been replaced.
fn checked(name: &str, part: &str, other: &str) -> Result<(i32, String)> {
    let text = specs::text(name)?;
    ensure!(text.contains(part), "no {part} in {text}");
    let file = specs::file("changed", &text.replacen(part, other, 1))?;
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

/// How a job starts in the example of the documents.
const ONE_START: &str =
    "[[operation.start]]\nfunction = \"main.(*queue).begin\"\narguments = \"ww\"\nkey = 1\n";

/// What is said of a function whose calls would not all be seen.
const INLINED: &str = "changed.toml:16:12: function main.leap is inlined into main.(*work).run";

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
            "changed.toml:13:12: main.(*work).* matches 3 functions, and may match 1",
        ),
        ("work", "main.(*work).step\"", "*.*\"\nat_most = 64", 6, " functions, and may match 64"),
        (
            "work",
            "(*work).step\"",
            "(*work).x*\"\nat_most = 9",
            6,
            "main.(*work).x* is not in the executable",
        ),
    ] {
        let (ended, said) = checked(name, part, other)?;
        ensure!(ended == code && said.contains(expected), "{other}: {ended}, {said}");
    }
    Ok(())
}

/// A type must be there even if no label needs it: its place is told, not that of a label.
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

/// Releases differ in types, fields and arguments, too: the first description that fits counts, and if none does, the first
/// reason is told.
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

/// A register has more than a number of few bytes, and one with all bits set is a number there.
#[test]
fn numbers_in_registers_are_read_whole_and_no_more() -> Result<()> {
    const PAIR: &str = "name = \"marks\"\n[[operation]]\nname = \"mark\"\nkey = \"pointer\"\nLINES\n\
                        [[operation.start]]\nfunction = \"main.(*marks).begin\"\narguments = \"w\"\nkey = 0\n\
                        [[operation.finish]]\nfunction = \"main.(*marks).end\"\narguments = \"w1w\"\nkey = 0\nnumber = WORD\n";
    const SIGNED: &str = "signed = true\nfailed = \"< 0\"\nlabels = { number = { number = \"argument\" }, \
                          status = { outcome = [\"found\", \"none\"] } }";
    const NUMBER: &str = "labels = { number = { number = \"argument\" } }";
    const RETURNED: &str = "name = \"marks\"\n[[operation]]\nname = \"mark\"\nkey = \"goroutine\"\n\
                            returns = { number = 0, results = \"1\" }\nallow_expensive = true\n\
                            labels = { number = { number = \"argument\" } }\n\
                            [[operation.start]]\nfunction = \"main.(*marks).kind\"\n";
    let pair = |lines: &str, word: &str| PAIR.replace("LINES", lines).replace("WORD", word);
    for (name, text, labels, expected) in [
        ("byte", pair(NUMBER, "1"), &["number"][..], ["0", "1", "2"]),
        ("unsigned", pair(NUMBER, "2"), &["number"], ["0", "1", "4294967295"]),
        ("signed", pair(SIGNED, "2"), &["number", "status"], ["-1/none", "0/found", "1/found"]),
        ("returned", RETURNED.to_owned(), &["number"], ["0", "1", "2"]),
    ] {
        let mut target = Process::start(Program::Operations, Flavour::Default, &[])?;
        let spec = specs::file(&format!("marks-{name}"), &text)?;
        let agent = Agent::attach(&[target.pid()], &["--spec", path(&spec)])?;
        target.command("mark 300")?;
        let scrape = agent.scrape_settled()?;
        let found = counted(&scrape, "marks_total", labels);
        ensure!(found == expected.map(|values| (values.to_owned(), 100)).into(), "{name}: {found:?}");
        check_closed(&scrape, target.pid(), [0, 0])?;
        agent.terminate()?;
    }
    Ok(())
}

/// A spec of walks with labels of these paths, and a number seven pointers away.
fn walks_spec(name: &str, paths: &[&str]) -> Result<std::path::PathBuf> {
    let labels = paths.iter().zip('a'..).map(|(path, label)| format!("{label} = \"{path}\""));
    let labels = labels.collect::<Vec<_>>().join("\n");
    let text = format!(
        "name = \"walks\"\n[[operation]]\nname = \"walk\"\nside = \"client\"\nkey = \"pointer\"\n\
         types = {{ trail = \"main.trail\" }}\n\
         [operation.labels]\n{labels}\nnumber = {{ number = \"trail.step.one.two.three.four.five.six.number\" }}\n\
         [[operation.start]]\nfunction = \"main.(*trail).begin\"\narguments = \"w\"\nkey = 0\n\
         [[operation.finish]]\nfunction = \"main.(*trail).end\"\narguments = \"w\"\nkey = 0\n\
         pointers = {{ trail = 0 }}\n"
    );
    specs::file(&format!("walks-{name}"), &text)
}

/// What lies between two names of a struct is read with them up to 192 bytes in all, and each pointer takes a read: as many
/// as there may be are read rightly, one more is refused with its place.
#[test]
fn reads_and_bytes_have_their_limits_where_the_documents_say() -> Result<()> {
    const A: &str = "trail.path.next.end.a";
    const SIDE: &str = "trail.path.next.side.name";
    let [b, c, d, e] = ["b", "c", "d", "e"].map(|name| format!("trail.path.next.end.{name}"));
    let cells: [(&str, &[&str], Option<&str>); 7] = [
        ("11-reads", &[A], Some("first/7")),
        ("12-reads", &[A, SIDE], Some("first/side/7")),
        ("12-reads-of-two-names", &[&d, &e], Some("fourth/fifth/7")),
        ("13-reads", &[&d, &e, SIDE], None),
        ("184-bytes", &[A, &b, SIDE], Some("first/second/side/7")),
        ("192-bytes", &[&b, &c, SIDE], Some("second/third/side/7")),
        // Cut in two, that is a read more.
        ("200-bytes", &[&c, &d, SIDE], None),
    ];
    side_by_side(cells, |(name, paths, values)| {
        let spec = walks_spec(name, paths)?;
        let Some(values) = values else {
            let executable = Program::Operations.build(Flavour::Default)?;
            let ended = run_to_end(&["spec", "check", path(&spec), "--exe", path(&executable)], PATIENCE)?;
            let said =
                format!("walks-{name}.toml:8:5: more reads for a call than the eBPF programs can take");
            ensure!(ended.code == Some(6) && ended.stderr.contains(&said), "{name}: {}", ended.stderr);
            return Ok(());
        };
        let mut target = Process::start(Program::Operations, Flavour::Default, &[])?;
        let agent = Agent::attach(&[target.pid()], &["--spec", path(&spec)])?;
        target.command("walk 50")?;
        let scrape = agent.scrape_settled()?;
        let labels = [&["a", "b", "c"][..paths.len()], &["number"]].concat();
        let found = counted(&scrape, "walks_total", &labels);
        ensure!(found == BTreeMap::from([(values.to_owned(), 50)]), "{name}: {found:?}");
        check_durations(&scrape, "walks")?;
        check_closed(&scrape, target.pid(), [0, 0])?;
        agent.terminate()?;
        Ok(())
    })
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

/// A spec may watch what the agent's own frameworks watch, too: each has probes of its own there.
#[test]
fn a_spec_and_a_framework_count_the_same_function_side_by_side() -> Result<()> {
    let function = "google.golang.org/grpc.(*Server).processUnaryRPC";
    let text = format!(
        "name = \"unary\"\nmodule = \"google.golang.org/grpc\"\n[[operation]]\nname = \"unary\"\nkey = \"goroutine\"\n\
         policy = \"nested\"\nside = \"client\"\nreturns = {{ error = 0 }}\nallow_expensive = true\n\
         labels = {{ status = {{ outcome = [\"ok\", \"failed\"] }} }}\n\
         [[operation.start]]\nfunction = \"{function}\"\n"
    );
    let mut target = Process::start(Program::Grpc, Flavour::Default, &[])?;
    let spec = specs::file("unary", &text)?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&spec)])?;
    target.command("run unary 50")?;
    target.command("load 1000 8")?;
    let scrape = agent.scrape_settled()?;
    let calls = grpc::check(&mut target, &scrape, false)?;
    ensure!(calls.total() > 2_000, "{} calls", calls.total());
    let served = whole(scrape.sum("grpc_server_handled_total", &[("grpc_type", "unary")]));
    let by_spec = whole(scrape.sum("unary_total", &[]));
    ensure!(by_spec == served && served > 1_000, "{by_spec} by the spec, {served} by the framework");
    check_durations(&scrape, "unary")?;
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

/// What is entered must tell the operations of a spec apart.
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

/// The properties of a part of the schema, in their order.
fn properties<'a>(schema: &'a Value, part: &str) -> Vec<&'a str> {
    let part = if part.is_empty() { schema } else { &schema["$defs"][part] };
    part["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn the_schema_for_editors_is_what_the_agent_takes() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(root.join("docs/spec.schema.json"))?)?;
    let validator = jsonschema::validator_for(&schema)?;
    let is_valid = |text: &str| -> Result<bool> { Ok(validator.is_valid(&toml::from_str::<Value>(text)?)) };
    let (jobs, work) = (specs::text("jobs")?, specs::text("work")?);
    let known = KNOWN.iter().map(|(_, text)| (*text).to_owned());
    let examples = specs::examples()?;
    ensure!(examples.len() >= 3, "only {} examples", examples.len());
    for text in examples.into_iter().chain(known) {
        ensure!(is_valid(&text)? && read("", &text).is_ok(), "{text}");
    }
    for (text, part, other) in [
        (&jobs, "name = \"jobs\"", ""),
        (&jobs, "[[operation]]", "[[opration]]"),
        (&jobs, "key = 1", "kye = 1"),
        (&jobs, "key = 1", "key = \"one\""),
        (&jobs, "\"pointer\"", "\"thread\""),
        (&work, "allow_expensive = true", ""),
        (&work, "[\"done\", \"failed\"]", "[\"done\"]"),
        (&work, "error = 1", "error = 9"),
        (&jobs, "key = 1", "key = 9"),
        (&jobs, "queue = ", &format!("{} = ", "q".repeat(65))),
        (&jobs, "\"jobs\"", &format!("\"{}\"", "j".repeat(65))),
        (&jobs, "\"job\"", &format!("\"{}\"", "j".repeat(257))),
        (&jobs, "(*queue).begin\"", "*\"\nat_most = 65"),
        (&jobs, "job = 1", "job = 1, two = 0, three = 0"),
        (&work, "allow_expensive = true", "allow_expensive = false"),
        (&work, "[[operation.start]]", "[[operation.finish]]\nfunction = \"main.f\"\n[[operation.start]]"),
        (&work, "\"goroutine\"", "\"pointer\""),
        (&work, "side = \"client\"\n", ""),
        (&work, "error = 1", "error = 8"),
        (&work, "error = 1", "error = 1, number = 0"),
        (&work, "error = 1", "error = 1, results = \"wx\""),
        (&jobs, "key = \"pointer\"", "key = \"pointer\"\nallow_expensive = true"),
        (&jobs, "key = \"pointer\"", "key = \"goroutine\""),
        (&jobs, "key = \"pointer\"", "key = \"pointer\"\npolicy = \"nested\""),
        (&jobs, "key = \"pointer\"", "key = \"pointer\"\nfailed = \"< 0\""),
        (&jobs, "key = \"pointer\"", "key = \"pointer\"\nfailed = \"== -1\""),
        (&jobs, "key = \"pointer\"", "key = \"pointer\"\nsigned = \"yes\""),
        (&jobs, "number = \"job.tries\"", "number = \"job.tries\", text = \"a\""),
        (&jobs, "number = \"job.tries\"", "text = \"a\", zero = \"b\""),
        (&jobs, "number = \"job.tries\"", "number = \"tries\""),
        (&jobs, "job.tries", &format!("job.{}", "t".repeat(253))),
        (&jobs, "\"job.kind\"", "\"kind\""),
        (&jobs, "error = 2", "error = 8"),
        (&jobs, "error = 2", "error = 2\nnumber = 0"),
        (&jobs, "arguments = \"ww\"", &format!("arguments = \"{}\"", "w".repeat(257))),
        (&jobs, "arguments = \"ww\"\n", ""),
        (&jobs, "arguments = \"ww\"", "arguments = \"{ww}\"\nerror = 0"),
        (&jobs, "arguments = \"ww\"", "arguments = \"ww\"\npointers = { job = 1 }"),
        (&jobs, "main.(*queue).begin", "begin"),
        (&jobs, "(*queue).begin", "(*queue).*"),
        (&jobs, "\"main.job\"", "\"job\""),
        (&jobs, "\"main.job\"", "\"(main.a).(*main.job)\""),
        (&jobs, "name = \"jobs\"", "name = \"go_jobs\""),
        (&jobs, "queue = ", "le = "),
        (&jobs, "queue = ", "__queue = "),
    ] {
        let changed = text.replacen(part, other, 1);
        ensure!(changed != *text && !is_valid(&changed)? && read("", &changed).is_err(), "{changed}");
    }
    for (text, part, other) in [
        (&jobs, "number = \"job.tries\"", "number = \"job.tries\", zero = \"none\""),
        (&jobs, "key = \"pointer\"", "key = \"pointer\"\nsigned = true\nfailed = \"< 0\""),
        (&jobs, "key = \"pointer\"", "key = \"pointer\"\nfailed = \">= 500\""),
        (&jobs, "(*queue).begin\"", "(*queue).*\"\nat_most = 3"),
        (&jobs, "(*queue).begin", "set[struct { id int }].begin"),
        (&work, "error = 1", "error = 1, results = \"w{ww}\""),
        (&work, "returns = { error = 1 }", "returns = { number = 0, results = \"1\" }\nfailed = \"!= 0\""),
    ] {
        let changed = text.replacen(part, other, 1);
        let found = read("", &changed).map(|_| ());
        ensure!(changed != *text && is_valid(&changed)? && found.is_ok(), "{found:?}: {changed}");
    }
    for (part, text, at, end) in [
        ("", &jobs, "name = \"jobs\"", "\n"),
        ("operation", &jobs, "key = \"pointer\"", "\n"),
        ("entry", &jobs, "error = 2", "\n"),
        ("returns", &work, "error = 1", ", "),
        ("source", &work, "outcome = ", ", "),
    ] {
        knows_the_same_fields(&schema, part, &text.replacen(at, &format!("nothing = 1{end}{at}"), 1))?;
    }
    Ok(())
}

/// An unknown field is answered by all that are known: those that a part of the schema has.
fn knows_the_same_fields(schema: &Value, part: &str, text: &str) -> Result<()> {
    let error = read("", text).expect_err("an unknown field").to_string();
    let (_, expected) = error.split_once("expected one of ").with_context(|| error.clone())?;
    let mut expected: Vec<_> = expected.split(", ").map(|name| name.trim_matches('`')).collect();
    let mut documented = properties(schema, part);
    expected.sort_unstable();
    documented.sort_unstable();
    ensure!(expected == documented, "{part}: {expected:?}, {documented:?}");
    Ok(())
}

#[test]
fn the_schema_of_native_functions_is_what_the_agent_takes() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(root.join("docs/spec.schema.json"))?)?;
    let validator = jsonschema::validator_for(&schema)?;
    let is_valid = |text: &str| -> Result<bool> { Ok(validator.is_valid(&toml::from_str::<Value>(text)?)) };
    let stock = specs::text("stock")?;
    let returns = "returns = { by = \"instructions\", number = \"int\" }\nallow_expensive = true";
    let pairs = "name = \"pairs\"\n[[native]]\nname = \"job\"\nkey = \"int\"\n[[native.start]]\nfunction = \"begin\"\nkey = 1\n\
                 [[native.finish]]\nfunction = \"end\"\nkey = 0\nnumber = 1\n";
    let twice = format!("{stock}\n{}", stock.split_once("\n\n").map_or("", |(_, operation)| operation));
    let by_probe = "returns = { by = \"probe\", number = \"bool\" }\nnothing_is_thrown = true";
    for text in [
        &stock,
        &twice,
        pairs,
        &pairs.replace("\"int\"", "\"number\"\npolicy = \"first_start\"\nside = \"client\""),
        &stock.replace(returns, by_probe),
        &stock.replace("\"stock_lookup\"", "\"Stock::lookup(int, char const*)\""),
        &stock.replace("\"stock_lookup\"", "\"stock_*\"\nat_most = 64"),
        &stock.replace("cstrings", "strings"),
    ] {
        let read = read("", text).map(|_| ());
        ensure!(is_valid(text)? && read.is_ok(), "{read:?}: {text}");
    }
    for (text, part, other) in [
        (stock.as_str(), "[[native]]", "[[naitve]]"),
        (&stock, "[[native]]", "[native]"),
        (&stock, "help = ", "module = \"std\"\nhelp = "),
        (&stock, "key = \"thread\"", "key = \"goroutine\""),
        (&stock, "key = \"thread\"\n", ""),
        (&stock, returns, ""),
        (&stock, "allow_expensive = true", ""),
        (&stock, "allow_expensive = true", "nothing_is_thrown = true"),
        (&stock, "allow_expensive = true", "allow_expensive = true\nnothing_is_thrown = true"),
        (&stock, "by = \"instructions\"", "by = \"magic\""),
        (&stock, "number = \"int\"", "number = \"float\""),
        (&stock, "\"< 0\"", "\"<0\""),
        (&stock, "cstrings = { item = 1 }", "cstrings = { item = 6 }"),
        (&stock, "cstrings = { item = 1 }", "cstrings = { item = \"one\" }"),
        (&stock, "cstrings = { item = 1 }", "pointers = { item = 1 }"),
        (&stock, "cstrings = { item = 1 }", "arguments = \"ww\""),
        (&stock, "\"stock_lookup\"", "\"stock_*\"\nat_most = 10000"),
        (&stock, "\"stock_lookup\"", "\"\""),
        (&stock, "[\"found\", \"missing\"]", "[\"found\"]"),
        (&stock, "[[native.start]]", "[[native.finish]]\nfunction = \"end\"\n[[native.start]]"),
        (&stock, "cstrings = ", "key = 0\ncstrings = "),
        (&stock, "key = \"thread\"", "key = \"pointer\""),
        (&stock, "{ number = \"result\" }", "{ number = \"item.count\" }"),
        (&stock, "{ number = \"result\" }", "{ number = \"result\", text = \"a\" }"),
        (&stock, "\"stock_lookup\"", "\"stock_*\""),
        (&stock, "item = \"item\"", "le = \"item\""),
        (pairs, "\"int\"", "\"int\"\nallow_expensive = true"),
        (pairs, "[[native.finish]]", "[[native.end]]"),
        (pairs, "\"int\"", "\"int\"\npolicy = \"nested\""),
        (pairs, "\"int\"", "\"int\"\ntypes = { job = \"main.job\" }"),
    ] {
        let changed = text.replacen(part, other, 1);
        let is_taken = toml::from_str::<Value>(&changed).is_ok_and(|value| validator.is_valid(&value));
        ensure!(changed != *text && !is_taken && read("", &changed).is_err(), "{changed}");
    }
    for (part, at, end) in [
        ("native", "key = \"thread\"", "\n"),
        ("nativeEntry", "cstrings = ", "\n"),
        ("source", "outcome = ", ", "),
    ] {
        knows_the_same_fields(&schema, part, &stock.replacen(at, &format!("nothing = 1{end}{at}"), 1))?;
    }
    Ok(())
}

#[test]
fn the_schema_has_the_agents_own_frameworks() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(root.join("docs/spec.schema.json"))?)?;
    let of_frameworks = json!({ "$ref": "#/$defs/framework", "$defs": schema["$defs"] });
    let (of_specs, of_frameworks) =
        (jsonschema::validator_for(&schema)?, jsonschema::validator_for(&of_frameworks)?);
    for (file, text) in frameworks::FILES {
        let value = toml::from_str::<Value>(text)?;
        let errors: Vec<_> = of_frameworks.iter_errors(&value).map(|error| error.to_string()).collect();
        ensure!(errors.is_empty(), "{file}: {errors:?}");
        ensure!(!of_specs.is_valid(&value), "{file} is taken for a spec");
        let error = read(file, text).expect_err("no spec").to_string();
        ensure!(error.contains("only the frameworks that the agent has itself have the key "), "{error}");
        for (part, other) in
            [("told_by = ", "tolt_by = "), ("side = \"server\"", ""), ("[[operation", "[[opration")]
        {
            let changed = text.replacen(part, other, 1);
            ensure!(changed != text && frameworks::read(file, &changed).is_err(), "{file}: {other}");
            let is_valid =
                toml::from_str::<Value>(&changed).is_ok_and(|value| of_frameworks.is_valid(&value));
            ensure!(!is_valid, "{file}: the schema takes {other}");
        }
    }
    // What only they have is known to the reader of specs.
    let of =
        |parts: &[&str]| -> BTreeSet<_> { parts.iter().flat_map(|part| properties(&schema, part)).collect() };
    let keys = &of(&["by_type", "by_function", "shape", "call"]) - &of(&["", "operation"]);
    ensure!(keys == BTreeSet::from(frameworks::FRAMEWORK_KEYS), "{keys:?}");
    Ok(())
}
