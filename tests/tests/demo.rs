//! Runs `cargo xtask demo` as a user does.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use monitor_tests::{agent, http, scrape::Scrape};

const PATIENCE: Duration = Duration::from_mins(2);

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.args(["xtask", "demo", "--seconds", "1"]).current_dir("..").env_remove("LD_LIBRARY_PATH");
    command
}

#[test]
fn counts_are_equal() -> Result<()> {
    let ended = agent::run_command_to_end(&mut demo(), PATIENCE)?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines = ended.stdout.lines().collect::<Vec<_>>();
    let verdict = lines.iter().rfind(|line| !line.is_empty()).context("nothing was shown")?;
    assert!(verdict.starts_with("equal: ") && verdict.ends_with(", every label set"), "{verdict}");
    assert!(lines.iter().all(|line| line.chars().count() <= 110), "{}", ended.stdout);
    for kind in ["pingpong  succeed", "pingpong  error", "oneway    succeed", "oneway    error"] {
        assert!(ended.stdout.contains(kind), "no {kind}: {}", ended.stdout);
    }
    for side in ["The client", "The server"] {
        assert_eq!(lines.iter().filter(|line| line.starts_with(side)).count(), 1, "{}", ended.stdout);
    }
    Ok(())
}

#[test]
fn counts_that_differ_are_a_failure() -> Result<()> {
    // An agent that has no room for most label sets counts their calls as `other`.
    let agent = Path::new(env!("CARGO_TARGET_TMPDIR")).join("agent-without-room");
    let real = agent::executable()?;
    fs::write(&agent, format!("#!/bin/sh\nexec '{}' \"$@\" --max-label-sets 3\n", real.display()))?;
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755))?;
    let ended = agent::run_command_to_end(demo().env("MONITOR_AGENT_BIN", &agent), PATIENCE)?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("\nNOT equal: "), "{}", ended.stdout);
    assert!(ended.stdout.lines().any(|line| line.contains("other") && line.contains("DIFFERS +")));
    Ok(())
}

#[test]
fn keeps_running_until_it_is_told_to_end() -> Result<()> {
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join("demo-keep.txt");
    let file = File::create(&output)?;
    let mut command = demo();
    command.arg("--keep").stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let mut demo = Kept(command.spawn()?);
    let (pids, address) = demo.wait_for(&output)?;
    assert_eq!(pids.len(), 3);
    assert!(pids.iter().all(|pid| is_running(*pid)));
    let calls = || -> Result<f64> {
        let text = http::get(&address, "/metrics")?.ok_body()?;
        Ok(Scrape::parse(&text)?.sum("kitex_server_throughput", &[]))
    };
    let before = calls()?;
    thread::sleep(Duration::from_secs(1));
    assert!(calls()? > before, "no calls go on");

    // SAFETY: kill touches no memory of this process, and the child has not been waited for.
    assert_eq!(unsafe { libc::kill(demo.0.id().try_into()?, libc::SIGTERM) }, 0);
    assert!(demo.0.wait()?.success());
    assert!(!pids.iter().any(|pid| is_running(*pid)), "left behind: {pids:?}");
    Ok(())
}

/// The demo with `--keep`. It is killed when dropped, which ends its targets and, later, its agent.
struct Kept(Child);

impl Kept {
    /// Waits until the demo reports that everything runs. Returns the pids and the agent's address.
    fn wait_for(&mut self, output: &Path) -> Result<(Vec<u32>, String)> {
        let begin = Instant::now();
        loop {
            let text = fs::read_to_string(output)?;
            if text.contains("\n  stop ") {
                let (_, running) = text.split_once("Still running").context("nothing runs")?;
                let pids =
                    running.split("(pid ").skip(1).filter_map(|rest| rest.split_once(')')?.0.parse().ok());
                let (_, url) = running.split_once("curl -s http://").context("no address")?;
                let (address, _) = url.split_once("/metrics").context("no path")?;
                return Ok((pids.collect(), address.to_owned()));
            }
            if let Some(status) = self.0.try_wait()? {
                bail!("the demo has ended with {status}: {text}");
            }
            ensure!(begin.elapsed() < PATIENCE, "not ready after {PATIENCE:?}: {text}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_running(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
