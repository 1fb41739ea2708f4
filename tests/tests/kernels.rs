//! The agent on other kernels than the one that runs here: each loads the programs by a verifier of its own, and has other
//! kinds of probes.

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

/// A machine takes less than a minute where nothing else runs, and several where much does.
const PATIENCE: Duration = Duration::from_mins(10);
/// Instructions that a verifier may go through for a program: half of what it gives up at, so that there is room for kernels
/// that go through more.
const VERIFIED_MAX: u64 = 500_000;

/// What the agent is asked for in one run: each makes programs that the verifier has other trouble with.
struct Ask {
    arguments: &'static str,
    /// Those of `kitex_` metrics.
    labels: &'static [&'static str],
    is_economy: bool,
}

const ASKS: [Ask; 4] = [
    Ask { arguments: "", labels: &DEFAULT_LABELS, is_economy: false },
    Ask { arguments: "--latency economy --latency.every 3600", labels: &DEFAULT_LABELS, is_economy: true },
    Ask { arguments: "--metrics kitex,grpc,otel", labels: &DEFAULT_LABELS, is_economy: false },
    // All that the programs can do for a call of a framework.
    Ask {
        arguments: "--metrics kitex,grpc,otel --kitex.bytes --kitex.stream-messages --grpc.messages \
                    --events.socket events --capture.slow 3 \
                    --kitex.labels type,caller,callee,method,status,retry",
        labels: &["type", "caller", "callee", "method", "status", "retry"],
        is_economy: false,
    },
];

/// What was told in one run of the agent, by the name of the target and of the text.
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

    /// Fails unless all that any target did was counted once, and the agent found nothing to complain of.
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
            // Where time runs out for a call before it is sent, no server hears of it.
            ensure!(calls >= 300, "{calls} calls of the {target}");
        }
        let (pid, counts) = (self.pid("grpc")?, self.counts("grpc")?);
        let calls = grpc::check_counts(pid, &counts, &scrape, true, &SIDES)?;
        ensure!(calls.total() > 50, "{} calls of gRPC", calls.total());
        self.check_verified()
    }

    /// Fails if a program is near what the verifier gives up at.
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

/// All calls are counted, and each has become one thing. Gives how many there are.
fn check_economy(pid: u32, counts: &Value, scrape: &Scrape) -> Result<u64> {
    let own = Tally::of_target(counts, &DEFAULT_LABELS)?;
    own.check(&Tally::of_agent(scrape, &DEFAULT_LABELS, Some(pid))?)?;
    check_closed(scrape, pid, [0, 0])?;
    let account = Account::of(scrape, pid);
    let finished = account.timed + account.recorded + account.unpaired + account.sampled_out;
    ensure!(finished == own.total() && account.found_faults().is_empty(), "{account:?}");
    Ok(own.total())
}

/// The agent, and targets for it.
fn files() -> Result<Files> {
    let mut files = Files::new()?;
    files.add_stripped("monitor-agent", &executable()?)?;
    // Without DWARF, which an emulated processor takes long to read: the plan is the same.
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

/// The oldest that Debian 12 has packages of, and the newest of those before each function of a program had a
/// stack of its own.
#[test]
fn programs_load_and_count_exactly_on_other_kernels() -> Result<()> {
    let kernels = machine::kernels()?;
    let files = files()?.write()?;
    let outcome = side_by_side(&kernels, |kernel| works(kernel, &files));
    std::fs::remove_file(files)?;
    outcome
}
