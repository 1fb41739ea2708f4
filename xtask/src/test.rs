//! Runs the tests: unit tests, documentation tests, and end-to-end tests with real probes on real processes.

use std::{
    ffi::OsString,
    io::{BufRead as _, BufReader, Write as _},
    mem, panic,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use monitor_tests::{
    native, side_by_side,
    targets::{self, Flavour, Program},
};

use crate::{
    process::{cargo, run, say, shown},
    setup::{self, Need},
};

type Task = Box<dyn FnOnce() -> Result<()> + Send>;

/// Environment variables for the end-to-end tests.
type Variables = Vec<(&'static str, OsString)>;

/// Modules of end-to-end tests that run two at a time, one of each list, before all others run alone. They compare counts
/// and texts, which do not depend on how busy the machine is, and wait most of their time.
const IN_COMPANY: [&[&str]; 2] = [
    &["cli", "docs", "dwarf", "events", "native", "native_ends", "reads", "schema", "strange"],
    &[
        "bad_flags",
        "bad_input",
        "demo",
        "event_socket",
        "inspect",
        "isolation",
        "otlp",
        "privileges",
        "selection",
        "spec_check",
        "spec_schema",
        "specs",
        "targets",
        "types",
    ],
];

/// Runs all tests whose name contains one of the filters; all tests if there are none.
pub(crate) fn all(filters: &[String]) -> Result<()> {
    prepare()?;
    let begin = Instant::now();
    let variables = build(tests(), None, filters.is_empty())?;
    let mut counts = Counts::default();
    say("unit tests and documentation tests");
    counts.run(with_ebpf(tests().args(["--lib", "--bins", "--"]), None), filters)?;
    counts.run(with_ebpf(tests().args(["--doc", "--"]), None), filters)?;
    end_to_end(&mut counts, filters, None, &variables)?;
    counts.verdict(begin)
}

/// Runs the end-to-end tests with an agent that contains this object instead of the repository's.
pub(crate) fn with_object(object: &Path, filters: &[String]) -> Result<()> {
    prepare()?;
    let begin = Instant::now();
    let variables = build(end_to_end_tests(), Some(object), false)?;
    let mut counts = Counts::default();
    end_to_end(&mut counts, filters, Some(object), &variables)?;
    counts.verdict(begin)
}

/// Fails where the end-to-end tests cannot run, and installs what they need.
fn prepare() -> Result<()> {
    setup::require_root("test")?;
    setup::packages(&[Need::Targets, Need::Native, Need::Machine, Need::Processes])?;
    // SAFETY: this process has no other thread yet.
    unsafe { std::env::set_var("MONITOR_GO", setup::go()?) };
    Ok(())
}

/// Builds the agent and the tests, and, if all tests will run, the programs that most of them need; fetches what some
/// tests need. Runs these steps in parallel, because each leaves a processor idle now and then.
fn build(tests: Command, object: Option<&Path>, with_targets: bool) -> Result<Variables> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let mut variables = thread::scope(|scope| -> Result<Variables> {
        let fetching = scope.spawn(fetch);
        build_all(tests, object, with_targets)?;
        Ok(fetching.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    })?;
    variables.push((targets::BUILT_SINCE, since.to_string().into()));
    Ok(variables)
}

fn build_all(mut tests: Command, object: Option<&Path>, with_targets: bool) -> Result<()> {
    say("building the agent and the tests");
    let mut agent = cargo();
    agent.args(["build", "--release", "--locked", "--package", "monitor-agent"]);
    tests.arg("--no-run");
    let commands = [agent, tests].map(|mut command| -> Task {
        with_ebpf(&mut command, object);
        Box::new(move || run(&mut command))
    });
    let targets = with_targets.then(|| -> Task { Box::new(build_targets) });
    side_by_side(commands.into_iter().chain(targets), |task| task())
}

/// Builds the programs that no test builds in a way of its own.
fn build_targets() -> Result<()> {
    for program in Program::ALL {
        program.build(Flavour::Default)?;
    }
    native::corners(native::Build::Default)?;
    native::server()?;
    native::async_server()?;
    // Some tests need Go releases that have to be fetched. Without them only these tests fail.
    if let Err(error) = targets::build_more() {
        say(&format!("left to the tests that want it: {error:#}"));
    }
    Ok(())
}

/// Fetches what some tests need. If a download fails, so do the tests that need it, and no others.
fn fetch() -> Variables {
    let wanted = [
        ("MONITOR_PROMETHEUS", setup::prometheus().map(PathBuf::into_os_string)),
        ("MONITOR_KERNELS", setup::kernels()),
    ];
    let mut found = Vec::new();
    for (variable, fetched) in wanted {
        match fetched {
            Ok(fetched) => found.push((variable, fetched)),
            Err(error) => say(&format!("{error:#}")),
        }
    }
    found
}

/// Returns the command for tests. Always the whole workspace: with fewer packages some dependencies would have other
/// features, and be built again.
fn tests() -> Command {
    let mut tests = cargo();
    tests.args(["test", "--locked", "--no-fail-fast", "--workspace"]);
    tests
}

fn end_to_end_tests() -> Command {
    let mut tests = tests();
    tests.args(["--test", "*"]);
    tests
}

fn end_to_end(
    counts: &mut Counts,
    filters: &[String],
    object: Option<&Path>,
    variables: &Variables,
) -> Result<()> {
    say("end-to-end tests");
    // One at a time: each measures its own effects.
    let run = |counts: &mut Counts, filters: &[String]| {
        let mut tests = end_to_end_tests();
        tests.args(["--", "--test-threads=1"]).envs(variables.iter().cloned());
        counts.run(with_ebpf(&mut tests, object), filters)
    };
    if !filters.is_empty() || object.is_some() {
        return run(counts, filters);
    }
    let filtered = counts.filtered;
    let in_company = Mutex::new(mem::take(counts));
    side_by_side(IN_COMPANY, |modules| {
        let mut counts = Counts::default();
        run(&mut counts, &modules.iter().map(|module| format!("{module}::")).collect::<Vec<_>>())?;
        in_company.lock().unwrap_or_else(PoisonError::into_inner).add(&counts);
        Ok(())
    })?;
    *counts = in_company.into_inner().unwrap_or_else(PoisonError::into_inner);
    let skip = |module: &&str| ["--skip".to_owned(), format!("{module}::")];
    run(counts, &IN_COMPANY.concat().iter().flat_map(skip).collect::<Vec<_>>())?;
    // What one of these commands left out, another ran.
    counts.filtered = filtered;
    Ok(())
}

fn with_ebpf<'a>(command: &'a mut Command, object: Option<&Path>) -> &'a mut Command {
    match object {
        Some(object) => command.env("MONITOR_EBPF_OBJECT", object),
        None => command.env_remove("MONITOR_EBPF_OBJECT"),
    }
}

/// The total result of all test programs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
    filtered: u64,
    /// Commands that failed without a failed test: something did not compile, or a test crashed.
    broken: u64,
}

impl Counts {
    /// Runs `cargo test`, forwards its output, and adds up its results.
    pub(crate) fn run(&mut self, command: &mut Command, filters: &[String]) -> Result<()> {
        command.args(filters).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", shown(command)))?;
        let failed_before = self.failed;
        for line in BufReader::new(child.stdout.take().context("no stdout")?).lines() {
            let line = line?;
            // Not locked in between: another command may run at the same time.
            writeln!(std::io::stdout(), "{line}")?;
            self.add_line(&line);
        }
        if !child.wait()?.success() && self.failed == failed_before {
            self.broken += 1;
        }
        Ok(())
    }

    /// Adds other results.
    fn add(&mut self, other: &Self) {
        let Self { passed, failed, ignored, filtered, broken } = other;
        self.passed += passed;
        self.failed += failed;
        self.ignored += ignored;
        self.filtered += filtered;
        self.broken += broken;
    }

    /// Adds a line such as "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; …".
    fn add_line(&mut self, line: &str) {
        let Some((_, numbers)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in numbers.split("; ") {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                "filtered out" => self.filtered += number,
                _ => {}
            }
        }
    }

    /// Prints the total in the format of `cargo test`. Fails if a test or command failed, or if no test ran.
    pub(crate) fn verdict(&self, begin: Instant) -> Result<()> {
        let ok = self.failed == 0 && self.broken == 0 && self.passed > 0;
        println!(
            "\ntest result: {}. {} passed; {} failed; {} ignored; 0 measured; {} filtered out; finished in {:.2}s",
            if ok { "ok" } else { "FAILED" },
            self.passed,
            self.failed,
            self.ignored,
            self.filtered,
            begin.elapsed().as_secs_f64(),
        );
        if self.broken > 0 {
            bail!("{} of the test commands broke off", self.broken);
        }
        if self.failed > 0 {
            bail!("{} tests failed", self.failed);
        }
        if self.passed == 0 {
            bail!("no test ran");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_add_up() {
        let mut counts = Counts::default();
        counts.add_line(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.1s",
        );
        counts.add_line(
            "test result: FAILED. 4 passed; 5 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        );
        counts.add_line("test decode::passed ... ok");
        assert_eq!(counts, Counts { passed: 7, failed: 5, ignored: 1, filtered: 2, broken: 0 });
        assert!(counts.verdict(Instant::now()).is_err());
    }

    #[test]
    fn nothing_run_is_a_failure() {
        assert!(Counts::default().verdict(Instant::now()).is_err());
    }
}
