//! `--metrics`: families that are not selected are neither shown nor collected. Without calls, any process can be
//! watched.

use std::{
    collections::BTreeSet,
    fs,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::{Agent, Ended, executable, run_command_to_end, run_to_end},
    kernel::BpfObjects,
    process::Process,
    refusals::{Scratch, server},
    scrape::Scrape,
    targets::{Flavour, Program},
};

/// Returns the prefixes of the names in a scrape, without the agent's own.
fn families(scrape: &Scrape) -> BTreeSet<&str> {
    let names = scrape.families.keys().filter_map(|name| Some(name.split_once('_')?.0));
    names.filter(|name| *name != "monitor").collect()
}

/// Attaches the agent and checks which families it shows, and whether it has loaded anything into the kernel.
fn watched(pid: u32, metrics: &str, expected: &[&str], loads: bool) -> Result<Scrape> {
    let before = BpfObjects::now()?;
    let agent = Agent::attach(&[pid], &["--metrics", metrics, "--linger", "0"])?;
    let loaded = BpfObjects::now()?.beyond(&before) != BpfObjects::default();
    let scrape = agent.scrape()?;
    ensure!(families(&scrape) == expected.iter().copied().collect(), "{metrics}: {:?}", families(&scrape));
    ensure!(loaded == loads, "{metrics}: loaded: {loaded}");
    let own = agent.scrape_path(&format!("/targets/{pid}/metrics"))?;
    ensure!(families(&own) == families(&scrape), "{metrics}: {:?}", families(&own));
    let page = agent.get("/")?;
    ensure!(page.contains("watched without calls") != loads, "{metrics}: {page}");
    let (status, _) = agent.terminate()?;
    ensure!(status.success(), "{metrics}: {status}");
    BpfObjects::wait_until_back(&before, std::time::Duration::from_secs(5))?;
    Ok(scrape)
}

fn refused(pid: u32, metrics: &str) -> Result<Ended> {
    let pid = pid.to_string();
    let args = ["run", "--web.listen-address", "127.0.0.1:0", "--pid", &pid, "--metrics", metrics];
    let ended = run_to_end(&args, std::time::Duration::from_secs(10))?;
    ensure!(ended.code == Some(6), "{metrics}: {ended:?}");
    Ok(ended)
}

#[test]
fn only_what_is_chosen_is_gathered() -> Result<()> {
    let server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    client.command("call 2 Echo succeed")?;
    let pid = server.pid();
    watched(pid, "go", &["go"], false)?;
    watched(pid, "process", &["process"], false)?;
    watched(pid, "process,go", &["go", "process"], false)?;
    let calls = watched(pid, "kitex", &[], true)?;
    ensure!(calls.families.contains_key("monitor_starts_total"));
    ensure!(!calls.families.contains_key("monitor_read_errors_total"));
    watched(pid, "kitex,grpc,go", &["go"], true)?;
    let other = refused(pid, "grpc,go")?;
    ensure!(other.stderr.contains("add kitex"), "{other:?}");
    Ok(())
}

#[test]
fn any_go_process_can_be_watched_without_calls() -> Result<()> {
    for flavour in [Flavour::Default, Flavour::StrippedPie] {
        let mut plain = Process::start(Program::Plain, flavour, &[])?;
        let scrape = watched(plain.pid(), "go,process", &["go", "process"], false)?;
        ensure!(scrape.value("go_goroutines", &[]).is_some_and(|count| count >= 1.0));
        let info = scrape.samples("monitor_target_info").next().context("no info")?;
        ensure!(info.labels["framework"].is_empty() && info.labels["go_version"].starts_with("go1."));
        for absent in ["monitor_starts_total", "monitor_attach_seconds", "monitor_probe_site_info"] {
            ensure!(!scrape.families.contains_key(absent), "{absent}");
        }
        for metrics in ["kitex,go,grpc,process", "otel", "go,kitex"] {
            let ended = refused(plain.pid(), metrics)?;
            ensure!(ended.stderr.contains("--metrics go,process"), "{ended:?}");
            ensure!(!ended.stderr.contains("--otlp"), "{ended:?}");
        }
        let agent = Agent::attach(&[plain.pid()], &["--metrics", "go", "--linger", "0"])?;
        plain.quit()?;
        let mut agent = agent;
        ensure!(agent.wait(std::time::Duration::from_secs(10))?.success());
        ensure!(agent.log().contains("no calls were watched"), "{}", agent.log());
    }
    Ok(())
}

/// A push includes calls, so they are watched whatever `--metrics` selects. If the agent refuses for this reason,
/// perhaps because of an inherited environment variable, it says so.
#[test]
fn a_push_asks_for_calls_and_the_refusal_says_so() -> Result<()> {
    let plain = Process::start(Program::Plain, Flavour::Default, &[])?;
    let sleep = Sleep(Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn()?);
    for (pid, metrics) in [(plain.pid(), "go,process"), (sleep.0.id(), "process")] {
        for (flag, exporter) in [(Some("--otlp"), ""), (None, "otlp")] {
            let mut command = Command::new(executable()?);
            command.args(["run", "--web.listen-address", "127.0.0.1:0", "--pid", &pid.to_string()]);
            command.args(["--metrics", metrics]).args(flag).env("OTEL_METRICS_EXPORTER", exporter);
            let ended = run_command_to_end(&mut command, std::time::Duration::from_secs(10))?;
            let said = "--otlp and OTEL_METRICS_EXPORTER=otlp ask for calls";
            ensure!(ended.code == Some(6) && ended.stderr.contains(said), "{metrics}, {flag:?}: {ended:?}");
        }
    }
    Ok(())
}

struct Sleep(Child);

impl Drop for Sleep {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The start of an executable's build info, and the offset of the length of the release's name from there.
const BUILD_INFO: &[u8] = b"\xff Go buildinf:";
const RELEASE_AT: usize = 32;

#[test]
fn a_process_whose_executable_cannot_be_read_has_a_process_to_show() -> Result<()> {
    let scratch = Scratch::new("unread")?;
    let whole = fs::read(Program::Kitex.build(Flavour::Default)?)?;
    let places: Vec<_> =
        (0..whole.len()).step_by(16).filter(|at| whole[*at..].starts_with(BUILD_INFO)).collect();
    ensure!(places.len() == 1, "{places:?}");
    let mut damaged = whole.clone();
    damaged[places[0] + RELEASE_AT..][..5].copy_from_slice(&[0xff; 5]);
    // The kernel also runs a program whose last bytes, which are never loaded, are missing.
    let cut = &whole[..whole.len() - 1];
    for (name, program, has_build_id) in [("damaged", &damaged[..], true), ("cut", cut, false)] {
        let mut process = server(&scratch.file(name, program)?)?;
        let scrape = watched(process.pid(), "process", &["process"], false)?;
        let info = scrape.samples("monitor_target_info").next().context("no info")?;
        let labels = &info.labels;
        ensure!(
            labels["go_version"].is_empty() && labels["build_id"].is_empty() != has_build_id,
            "{labels:?}"
        );
        let pid = process.pid().to_string();
        let args = ["run", "--web.listen-address", "127.0.0.1:0", "--pid", &pid, "--metrics", "go,process"];
        let ended = run_to_end(&args, std::time::Duration::from_secs(10))?;
        ensure!(ended.code == Some(if has_build_id { 6 } else { 5 }), "{name}: {ended:?}");
        process.quit()?;
    }
    Ok(())
}

#[test]
fn any_process_at_all_has_a_process_to_show() -> Result<()> {
    let sleep = Sleep(Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn()?);
    let pid = sleep.0.id();
    let scrape = watched(pid, "process", &["process"], false)?;
    ensure!(scrape.value("process_threads", &[]) == Some(1.0));
    for metrics in ["go", "process,go"] {
        let ended = refused(pid, metrics)?;
        ensure!(ended.stderr.contains("not a Go program"), "{ended:?}");
    }
    Ok(())
}
