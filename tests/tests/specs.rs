//! Specs: the operations that they describe are counted as by the target itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::{Agent, run_to_end},
    chain::check_closed,
    events::Events,
    grpc,
    process::Process,
    scrape::{Scrape, whole},
    side_by_side,
    specs::{self, path},
    targets::{Flavour, NEWEST_GO, Program, go_releases, older_hertz},
    turns::{self, MEANINGS, Meaning, tell, twice},
};
use serde_json::{Value, json};

use crate::schema::check_schema;

const PATIENCE: Duration = Duration::from_secs(20);

/// Returns a counter by the values of these labels, which must be all of its labels. Slashes in values are replaced by
/// bars.
fn counted(scrape: &Scrape, name: &str, labels: &[&str]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for sample in scrape.samples(name) {
        assert_eq!(sample.labels.len(), labels.len(), "{:?}", sample.labels);
        let values: Vec<_> = labels.iter().map(|label| sample.labels[*label].replace('/', "|")).collect();
        *counts.entry(values.join("/")).or_default() += whole(sample.value);
    }
    counts
}

/// Parses the target's own counts.
fn own(counts: &Value) -> Result<BTreeMap<String, u64>> {
    let counts = counts.as_object().context("no counts")?;
    Ok(counts.iter().map(|(key, count)| (key.clone(), count.as_u64().unwrap_or_default())).collect())
}

/// Fails unless each operation counted has a duration.
fn check_durations(scrape: &Scrape, name: &str) -> Result<()> {
    let timed: f64 =
        scrape.histograms(&format!("{name}_duration_seconds")).values().map(|one| one.count).sum();
    let counted = scrape.sum(&format!("{name}_total"), &[]);
    ensure!(whole(timed) == whole(counted) && timed > 0.0, "{name}: {timed} timed of {counted}");
    Ok(())
}

/// Has `targets/operations` do everything that it can, and compares the counts, with the specs of the documents and the
/// agent's own.
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

/// In the newest Go, HTTP/2 is a package of its own.
#[test]
fn operations_are_counted_once_with_the_newest_go() -> Result<()> {
    counts_exactly(&Program::Operations.build_with(NEWEST_GO, Flavour::Stripped)?)
}

/// With the oldest and the newest release, and another one in turn.
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
    // Hertz has functions with names that Kitex once had. They must not be taken for Kitex's.
    let executable = Program::Hertz.build(Flavour::Stripped)?;
    let ended = run_to_end(&["inspect", "--json", "--exe", path(&executable), "--spec", "hertz"], PATIENCE)?;
    let said: Value = serde_json::from_str(&ended.stdout).with_context(|| ended.stderr.clone())?;
    let names = said["frameworks"].as_array().into_iter().flatten().map(|one| &one["name"]);
    ensure!(names.collect::<Vec<_>>() == ["hertz_server_requests"], "{said}");
    hertz_counts_exactly(&executable)
}

/// A Kitex service without Hertz has calls to watch. With a spec for Hertz, `run` still refuses, and so does `inspect`.
#[test]
fn inspect_says_of_a_spec_what_run_does() -> Result<()> {
    let server = Process::kitex(&["server"])?;
    let (executable, pid) = (Program::Kitex.build(Flavour::Default)?, server.pid().to_string());
    let run = ["run", "--web.listen-address", "127.0.0.1:0", "--pid", &pid, "--spec", "hertz"];
    let refused = run_to_end(&run, PATIENCE)?;
    let why = "hertz_server_requests can't be watched: ";
    let reason = |stderr: &str| stderr.split_once(why)?.1.lines().next().map(str::to_owned);
    ensure!(refused.code == Some(6) && reason(&refused.stderr).is_some(), "{refused:?}");
    for subject in [["--exe", path(&executable)], ["--pid", &pid]] {
        let inspected =
            run_to_end(&[&["inspect", "--json", "--spec", "hertz"], &subject[..]].concat(), PATIENCE)?;
        ensure!(inspected.code == refused.code, "{subject:?}: {inspected:?}");
        ensure!(reason(&inspected.stderr) == reason(&refused.stderr), "{refused:?} {inspected:?}");
        let said: Value =
            serde_json::from_str(&inspected.stdout).with_context(|| inspected.stderr.clone())?;
        let attachable = said["frameworks"].as_array().into_iter().flatten().map(|one| &one["attachable"]);
        ensure!(said["attachable"] == false && attachable.eq([&json!(true), &json!(false)]), "{said}");
    }
    Ok(())
}

#[test]
fn requests_to_older_hertz_are_counted_once() -> Result<()> {
    for release in older_hertz() {
        hertz_counts_exactly(&Program::Hertz.build_of(release, Flavour::Stripped)?).context(release)?;
    }
    Ok(())
}

/// Over Go's own network library, and over netpoll.
fn hertz_counts_exactly(executable: &Path) -> Result<()> {
    [&[][..], &["-netpoll"]].into_iter().try_for_each(|args| hertz_counts_exactly_with(executable, args))
}

fn hertz_counts_exactly_with(executable: &Path, args: &[&str]) -> Result<()> {
    let mut target = Process::start_command(Command::new(executable).args(args))?;
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

/// Writes a spec of turns with this key and policy. If the key is an argument, start and finish name it.
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

/// Runs `body` on a target while the agent watches its turns. Returns the result and the scrape.
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
    // Only operations with the goroutine as key nest.
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

/// Two operations are in flight at once, and finish in the order in which they started. Operations with different keys
/// have their own durations.
#[test]
fn keys_tell_operations_under_way_apart() -> Result<()> {
    const LARGEST: u64 = (1 << 60) - 1;
    // The goroutine is the same, so the second start replaces the first.
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
        // Only the lowest 32 bits of a number are read.
        let expected = ids.map(|id| (id & u64::from(u32::MAX)).to_string());
        ensure!(shown == expected.into(), "{shown:?}");
        Ok(())
    })
}

/// Operations of one spec with the same keys do not share starts, whether one is nested in the other or starts where
/// the other finishes.
#[test]
fn operations_of_one_spec_do_not_meet() -> Result<()> {
    let ways = [[("begin", "end"), ("take", "put")], [("begin", "take"), ("take", "end")]];
    let policies = ["overwrite", "first_start", "first_finish"];
    let keys = ["pointer", "number", "goroutine"];
    let cells = ways.into_iter().flat_map(|way| keys.map(|key| (way, key))).zip(policies.into_iter().cycle());
    side_by_side(cells, |((way, key), policy)| {
        let word = match key {
            "pointer" => "key = 0\n",
            "number" => "key = 1\n",
            _ => "",
        };
        let operations = way.map(|(start, finish)| {
            format!(
                "[[operation]]\nname = \"{start}\"\nside = \"client\"\nkey = \"{key}\"\npolicy = \"{policy}\"\n\
                 labels = {{ step = {{ text = \"{start}\" }} }}\n\
                 [[operation.start]]\nfunction = \"main.(*turn).{start}\"\narguments = \"ww\"\n{word}\
                 [[operation.finish]]\nfunction = \"main.(*turn).{finish}\"\narguments = \"ww\"\n{word}"
            )
        });
        let text = format!("name = \"turns\"\n{}", operations.concat());
        let [_, (_, last)] = way;
        let spec = specs::file(&format!("turns-{key}-{policy}-{last}"), &text)?;
        let mut target = Process::start(Program::Operations, Flavour::Default, &[])?;
        let agent = Agent::attach(&[target.pid()], &["--spec", path(&spec)])?;
        let mut times = Vec::new();
        for id in [7, 8, 7] {
            let moments = ["begin", "take", "put", "end"].map(|step| tell(&mut target, step, id));
            let [begin, take, put, end] = moments.map(|moment| moment.context(key));
            let (begin, take, put, end) = (begin?, take?, put?, end?);
            times.extend(if last == "end" {
                [begin.until(take), take.until(end)]
            } else {
                [begin.until(end), take.until(put)]
            });
        }
        let scrape = agent.scrape_settled()?;
        turns::check(&scrape, "turns", 6.0, &times).with_context(|| format!("{key}, {policy}, {way:?}"))?;
        let abandoned = scrape.sum("monitor_unpaired_starts_total", &[("reason", "abandoned")]);
        ensure!(whole(abandoned) == 0, "{key}, {policy}, {way:?}: {abandoned} abandoned");
        check_closed(&scrape, target.pid(), [0, 0])?;
        agent.terminate()?;
        Ok(())
    })
}

/// A start that found no room in the table is also displaced by the next one under its key, even if that one finds
/// room. Then the second of two finishes has no start, and by this policy it is not counted.
#[test]
fn starts_are_displaced_wherever_they_are_kept() -> Result<()> {
    let mut target = Process::start(Program::Operations, Flavour::Default, &[])?;
    let spec = turns_spec("number", "first_finish")?;
    // The table has room for eight operations.
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&spec), "--max-in-flight", "1"])?;
    let mut each = |command: &str, ids: std::ops::RangeInclusive<u32>| -> Result<()> {
        ids.into_iter().try_for_each(|id| target.command(&format!("{command} {id}")).map(drop))
    };
    each("begin", 1..=16)?;
    each("end", 1..=8)?;
    each("begin", 9..=16)?;
    each("end", 9..=16)?;
    each("end", 9..=16)?;
    let scrape = agent.scrape_settled()?;
    let finishes = |outcome| whole(scrape.sum("monitor_finishes_total", &[("outcome", outcome)]));
    let abandoned = scrape.sum("monitor_unpaired_starts_total", &[("reason", "abandoned")]);
    assert_eq!((finishes("timed"), finishes("repeated"), whole(abandoned)), (16, 8, 8));
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

/// Operations nest as deep as documented. Deeper ones lose only their durations.
#[test]
fn operations_nest_seven_deep_and_deeper_ones_lose_their_durations_only() -> Result<()> {
    side_by_side([7_u8, 8], |depth| {
        let (times, scrape) = turns_counted("goroutine", "nested", |target| {
            let begun = (0..depth).map(|_| tell(target, "begin", 3)).collect::<Result<Vec<_>>>()?;
            let ended = (0..depth).map(|_| tell(target, "end", 3)).collect::<Result<Vec<_>>>()?;
            Ok(begun.iter().rev().zip(&ended).map(|(begin, end)| begin.until(*end)).collect::<Vec<_>>())
        })?;
        // The innermost operation finishes first.
        let too_deep = usize::from(depth) - 7;
        turns::check(&scrape, "turns", f64::from(depth), &times[too_deep..])
    })
}

/// An operation that recovers from a panic in a nested one has its own duration, while the nested one has none. The
/// next operation at the same depth displaces the nested one.
#[test]
fn a_call_that_is_left_by_a_panic_gives_its_start_to_nobody() -> Result<()> {
    let text = "name = \"rescues\"\n[[operation]]\nname = \"rescue\"\nside = \"client\"\nkey = \"goroutine\"\n\
                policy = \"nested\"\nreturns = {}\nallow_expensive = true\n\
                [[operation.start]]\nfunction = \"main.rescue\"\n";
    let mut target = Process::start(Program::Operations, Flavour::Default, &[])?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&specs::file("rescues", text)?)])?;
    for _ in 0..2 {
        target.command("rescue 100")?;
    }
    let scrape = agent.scrape_settled()?;
    let sum: f64 = scrape.histograms("rescues_duration_seconds").values().map(|one| one.sum).sum();
    ensure!(sum >= 0.4, "{sum} s: each of two takes 0.1 s before the other begins, and 0.1 s in it");
    ensure!(whole(scrape.sum("rescues_total", &[])) == 2, "not two");
    let abandoned = scrape.sum("monitor_unpaired_starts_total", &[("reason", "abandoned")]);
    ensure!(whole(abandoned) == 1, "{abandoned} abandoned");
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    Ok(())
}

/// A pattern does not match methods that the compiler has generated to call other methods or jump to them.
#[test]
fn what_the_compiler_calls_a_method_by_is_not_counted_with_it() -> Result<()> {
    let text = "name = \"tosses\"\n[[operation]]\nname = \"toss\"\nside = \"client\"\nkey = \"goroutine\"\n\
                policy = \"nested\"\nreturns = {}\nallow_expensive = true\n\
                [[operation.start]]\nfunction = \"main.*.toss\"\nat_most = 2\n";
    let spec = specs::file("tosses", text)?;
    let newest = Program::Operations.build_with(NEWEST_GO, Flavour::Stripped)?;
    for executable in [Program::Operations.build(Flavour::Default)?, newest] {
        let mut target = Process::start_command(&mut Command::new(executable))?;
        let agent = Agent::attach(&[target.pid()], &["--spec", path(&spec)])?;
        target.command("toss 100")?;
        let scrape = agent.scrape_settled()?;
        let tosses = whole(scrape.sum("tosses_total", &[]));
        ensure!(tosses == 300, "{tosses} tosses");
        check_durations(&scrape, "tosses")?;
        check_closed(&scrape, target.pid(), [0, 0])?;
        agent.terminate()?;
    }
    Ok(())
}

/// Counts the lines by the values of a spec's labels, in their order. Slashes in values are replaced by bars.
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

/// Operations counted as `other` still differ by numbers, and there may be any number of those. Once the reserve is
/// used up, further combinations are lost, each is counted as lost, and those with room are still counted.
#[test]
fn numbers_past_the_reserve_for_other_are_lost_and_counted() -> Result<()> {
    const RESERVE: u64 = 256;
    let mut target = Process::start(Program::Operations, Flavour::Default, &[])?;
    let jobs = specs::documented("jobs")?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&jobs), "--max-label-sets", "1"])?;
    // The first operation takes the only place for names.
    target.command("tries 300")?;
    // All have new names and up to four tries. 4 of them fail, and 4 others have one try.
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
        // Requests have a code, but nothing defines which codes mean failure.
        let status = match line["labels"]["status"].as_str() {
            Some("failed") => json!("error"),
            Some(_) => json!("succeed"),
            None => Value::Null,
        };
        ensure!(line["status"] == status, "{line}");
    }
    Ok(())
}

/// A register has more bits than a small number, and a register with all bits set is still a number.
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

/// Writes a spec of walks with labels of these paths, and a number seven pointers away.
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

/// Two names of a struct are read together with the bytes between them if these are up to 192 bytes in all, and each
/// pointer takes another read. The maximum number of reads works; one more is refused, with its place.
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
        // Split in two, which takes one more read.
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

/// A spec may watch a function that one of the agent's frameworks watches. Each has its own probes there.
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
