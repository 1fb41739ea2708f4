//! Runs the agent on other kernels than the running one. Each has its own verifier and its own kinds of probes.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use monitor_tests::{
    agent::executable,
    chain::{self, Account, check_closed},
    grpc::{self, SIDES},
    kernel::{SINCE_PAGE_TABLES, page_tables},
    machine::{self, Files, Report},
    scrape::Scrape,
    side_by_side,
    tally::{DEFAULT_LABELS, Tally},
    targets::{Flavour, Program},
};
use serde_json::Value;

/// How long a machine may take: less than a minute if nothing else runs, several minutes on a busy machine.
const PATIENCE: Duration = Duration::from_mins(10);
/// How many instructions the verifier may process for a program: half of its limit, which leaves room for kernels that
/// process more.
const VERIFIED_MAX: u64 = 500_000;

/// The arguments of one run of the agent. Each run loads programs that are difficult for the verifier in a different
/// way, most so where they read by page tables.
struct Ask {
    arguments: &'static str,
    /// The labels of `kitex_` metrics.
    labels: &'static [&'static str],
    is_economy: bool,
}

const ASKS: [Ask; 4] = [
    Ask { arguments: "", labels: &DEFAULT_LABELS, is_economy: false },
    Ask {
        arguments: "--latency economy --latency.every 3600 --reads tables",
        labels: &DEFAULT_LABELS,
        is_economy: true,
    },
    Ask { arguments: "--metrics kitex,grpc,otel --reads tables", labels: &DEFAULT_LABELS, is_economy: false },
    // Everything that the programs can do for a call of a framework.
    Ask {
        arguments: "--metrics kitex,grpc,otel --kitex.bytes --kitex.stream-messages --grpc.messages \
                    --events.socket events --capture.slow 3 --reads tables \
                    --kitex.labels type,caller,callee,method,status,retry",
        labels: &["type", "caller", "callee", "method", "status", "retry"],
        is_economy: false,
    },
];

/// The report of one run of the agent, by the names of targets and texts.
struct Run<'a> {
    number: usize,
    report: &'a Report,
}

impl Run<'_> {
    fn text(&self, name: &str) -> Result<&str> {
        let name = format!("{} {name}", self.number);
        self.report
            .get(&name)
            .map(String::as_str)
            .with_context(|| format!("the machine has not told `{name}`"))
    }

    fn pid(&self, target: &str) -> Result<u32> {
        Ok(self.text(&format!("{target} pid"))?.trim().parse()?)
    }

    fn counts(&self, target: &str) -> Result<Value> {
        let text = self.text(&format!("{target} counts"))?;
        serde_json::from_str(text).with_context(|| format!("{target} answered {text:?}"))
    }

    /// Fails unless every call of every target was counted once and the agent has logged no errors.
    fn check(&self, ask: &Ask) -> Result<()> {
        let log = self.text("log")?;
        ensure!(self.text("status")?.trim() == "0", "the agent ended with {}", self.text("status")?);
        ensure!(!log.contains("ERROR"), "an error in its log");
        let scrape = Scrape::parse(self.text("metrics")?)?;
        if ask.labels.contains(&"retry") {
            let retried = scrape.sum("kitex_client_throughput", &[("retry", "1")]);
            ensure!(retried > 0.0, "no call has a second attempt: this shows nothing of Go's maps");
        }
        for target in ["client", "server"] {
            let (pid, counts) = (self.pid(target)?, self.counts(target)?);
            let calls = if ask.is_economy {
                check_economy(pid, &counts, &scrape)?
            } else {
                chain::check_counts(pid, &counts, &scrape, ask.labels, true)?.total()
            };
            // If a call times out before it is sent, no server sees it.
            ensure!(calls >= 300, "{calls} calls of the {target}");
        }
        let (pid, counts) = (self.pid("grpc")?, self.counts("grpc")?);
        let calls = grpc::check_counts(pid, &counts, &scrape, true, &SIDES)?;
        ensure!(calls.total() > 50, "{} calls of gRPC", calls.total());
        self.check_verified()
    }

    /// Fails if a program is near the verifier's limit.
    fn check_verified(&self) -> Result<()> {
        let lines = self.text("verified")?.lines().filter_map(|line| line.split_once(':'));
        let verified: Vec<u64> = lines.map(|(_, number)| number.trim().parse()).collect::<Result<_, _>>()?;
        let most = verified.iter().max().context("no program has told what its verification took")?;
        let version = self.report.get("kernel").map_or("", |version| version.trim());
        eprintln!("Linux {version}, run {}: at most {most} instructions to verify a program", self.number);
        ensure!(*most <= VERIFIED_MAX, "a program took {most} instructions to verify, of {VERIFIED_MAX}");
        Ok(())
    }
}

/// Fails unless all calls are counted and each has one outcome. Returns how many there are.
fn check_economy(pid: u32, counts: &Value, scrape: &Scrape) -> Result<u64> {
    let own = Tally::of_target(counts, &DEFAULT_LABELS)?;
    own.check(&Tally::of_agent(scrape, &DEFAULT_LABELS, Some(pid))?)?;
    check_closed(scrape, pid, [0, 0])?;
    let account = Account::of(scrape, pid);
    let finished = account.timed + account.recorded + account.unpaired + account.sampled_out;
    ensure!(finished == own.total() && account.found_faults().is_empty(), "{account:?}");
    Ok(own.total())
}

/// Creates the archive with the agent and its targets.
fn files() -> Result<Files> {
    let mut files = Files::new()?;
    files.add_stripped("monitor-agent", &executable()?)?;
    // Without DWARF, which takes long to read on an emulated processor. The plan is the same.
    files.add_program("kitex-target", &Program::Kitex.build(Flavour::Stripped)?)?;
    files.add_program("grpc-target", &Program::Grpc.build(Flavour::Stripped)?)?;
    let lines = ASKS.map(|ask| ask.arguments).join("\n") + "\n";
    files.add("runs", 0o644, lines.as_bytes());
    Ok(files)
}

fn works(kernel: &Path, files: &Path) -> Result<()> {
    let report = machine::boot(kernel, files, PATIENCE)?;
    let version = report.get("kernel").context("no version")?.trim();
    let inspected = serde_json::from_str(report.get("inspect").context("nothing inspected")?)?;
    let (release, reads) = page_tables(&inspected)?;
    ensure!(reads == (release >= SINCE_PAGE_TABLES), "Linux {version}: reads by page tables {reads}");
    for (number, ask) in (1..).zip(&ASKS) {
        let run = Run { number, report: &report };
        if let Err(error) = run.check(ask) {
            bail!(
                "Linux {version}, `{}`: {error:#}\nthe agent's log:\n{}",
                ask.arguments,
                run.text("log").unwrap_or_default()
            );
        }
    }
    Ok(())
}

/// The oldest kernel that Debian 12 has packages of, and the newest before each function of a program had its own
/// stack.
#[test]
fn programs_load_and_count_exactly_on_other_kernels() -> Result<()> {
    let kernels = machine::kernels()?;
    let files = files()?.write()?;
    let outcome = side_by_side(&kernels, |kernel| works(kernel, &files));
    std::fs::remove_file(files)?;
    outcome
}
