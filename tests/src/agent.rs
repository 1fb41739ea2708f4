//! Runs the agent as a process: starts it, waits for it, scrapes it, ends it.

use std::{
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    capture::{Lines, NotFound},
    http::{self, Response},
    paths,
    process::{signal_child, wait},
    scrape::Scrape,
};

/// How long attaching may take.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long to wait before a scrape that must include every call that has ended. The agent may show data that it began
/// to read up to 50 ms earlier (`NEW_FOR`). The rest covers calls whose other side ends a moment later, as on a busy
/// machine. The documented limit, 250 ms, has a test of its own in `exact.rs`.
const FRESHNESS: Duration = Duration::from_millis(80);

/// Returns the path of the agent's executable: `MONITOR_AGENT_BIN` if set, else cargo's release build.
pub fn executable() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("MONITOR_AGENT_BIN") {
        return Ok(path.into());
    }
    let path = paths::target().join("release/monitor-agent");
    if !path.exists() {
        bail!("no {}: build it with `cargo build --release --package monitor-agent`", path.display());
    }
    Ok(path)
}

/// A running agent. If it is dropped before its end was seen, it is killed and its log is printed.
pub struct Agent {
    child: Child,
    log: Lines,
    address: String,
    end_seen: bool,
}

impl Agent {
    /// Runs the agent on these processes, on a free port, and waits until their probes are in place.
    pub fn attach(pids: &[u32], args: &[&str]) -> Result<Self> {
        let agent = Self::start(pids, args)?;
        agent.wait_ready()
    }

    /// Like [`Agent::attach`], with environment variables.
    pub fn attach_with(variables: &[(&str, &str)], pids: &[u32], args: &[&str]) -> Result<Self> {
        let agent = Self::start_with(variables, pids, args)?;
        agent.wait_ready()
    }

    /// Runs the agent on these processes, on a free port, and waits until it listens, but not until it is ready.
    pub fn start(pids: &[u32], args: &[&str]) -> Result<Self> {
        Self::start_with(&[], pids, args)
    }

    /// Like [`Agent::start`], with environment variables.
    pub fn start_with(variables: &[(&str, &str)], pids: &[u32], args: &[&str]) -> Result<Self> {
        let mut command = Command::new(executable()?);
        command.envs(variables.iter().copied());
        command.args(["run", "--web.listen-address", "127.0.0.1:0"]);
        for pid in pids {
            command.arg("--pid").arg(pid.to_string());
        }
        // Chosen for all agents, unless a test is about it.
        if let Some(reads) = std::env::var_os("MONITOR_READS").filter(|_| !args.contains(&"--reads")) {
            command.arg("--reads").arg(reads);
        }
        Self::start_command(command.args(args))
    }

    /// Runs a command that starts the agent, possibly through another program that gives it fewer rights.
    pub fn start_command(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let log = Lines::of(child.stderr.take().context("no stderr")?);
        let mut agent = Self { child, log, address: String::new(), end_seen: false };
        agent.address = agent.wait_for_log(READY_WITHIN, listen_address)?;
        Ok(agent)
    }

    /// Waits until `/readyz` reports that all probes are in place.
    pub fn wait_ready(mut self) -> Result<Self> {
        let begin = Instant::now();
        while self.status("/readyz")? != 200 {
            if let Some(status) = self.child.try_wait()? {
                self.log.wait_for_end(Duration::from_secs(1));
                bail!("the agent has ended with {status}:\n{}", self.log());
            }
            if begin.elapsed() > READY_WITHIN {
                bail!("the agent is not ready after {READY_WITHIN:?}:\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(self)
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The host and port that the agent listens on.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns what the agent has written to stderr so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits for a line on stderr for which `wanted` returns a value, and returns that value.
    pub fn wait_for_log<T>(&self, patience: Duration, wanted: impl Fn(&str) -> Option<T>) -> Result<T> {
        match self.log.find(0, patience, wanted) {
            Ok(found) => Ok(found),
            Err(NotFound::Ended) => bail!("the agent has ended:\n{}", self.log()),
            Err(NotFound::Timeout) => bail!("the agent did not log it within {patience:?}:\n{}", self.log()),
        }
    }

    /// Scrapes `/metrics` and parses it strictly.
    pub fn scrape(&self) -> Result<Scrape> {
        self.scrape_path("/metrics")
    }

    /// Scrapes `/metrics` after a pause that ensures that it includes every call that has ended by now.
    pub fn scrape_settled(&self) -> Result<Scrape> {
        thread::sleep(FRESHNESS);
        self.scrape()
    }

    /// Scrapes another path and parses it strictly. Fails if the agent has left out a family or series because it made
    /// it twice.
    pub fn scrape_path(&self, path: &str) -> Result<Scrape> {
        let text = self.get(path)?;
        let log = self.log();
        ensure!(!log.contains("given twice") && !log.contains("given with two types"), "{log}");
        Scrape::parse(&text).with_context(|| format!("{path} of the agent is not valid"))
    }

    /// Returns the body at a path. Any status but 200 is an error.
    pub fn get(&self, path: &str) -> Result<String> {
        self.request(path)?.ok_body()
    }

    /// Returns the status at a path.
    pub fn status(&self, path: &str) -> Result<u16> {
        Ok(self.request(path)?.status)
    }

    /// Returns the response at a path, whatever its status.
    pub fn request(&self, path: &str) -> Result<Response> {
        http::get(&self.address, path).with_context(|| format!("the agent; its log:\n{}", self.log()))
    }

    /// Ends the agent with SIGTERM. Returns its exit status and how long it took to end.
    pub fn terminate(self) -> Result<(ExitStatus, Duration)> {
        self.end_by(libc::SIGTERM)
    }

    /// Ends the agent with a signal. Returns its exit status and how long it took to end.
    pub fn end_by(mut self, signal: i32) -> Result<(ExitStatus, Duration)> {
        let begin = Instant::now();
        self.signal(signal)?;
        let status = self.wait(Duration::from_secs(10))?;
        Ok((status, begin.elapsed()))
    }

    /// Sends a signal to the agent.
    pub fn signal(&self, signal: i32) -> Result<()> {
        signal_child(&self.child, signal)
    }

    /// Whether the agent is still running.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits until the agent ends by itself, at most for `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let status = wait(&mut self.child, patience)
            .with_context(|| format!("the agent; its log:\n{}", self.log()))?;
        self.log.wait_for_end(Duration::from_secs(1));
        self.end_seen = true;
        Ok(status)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !self.end_seen || thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
    }
}

/// The result of a command that ends by itself.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The exit code, or `None` if a signal ended the command.
    pub code: Option<i32>,
    /// Everything written to stdout.
    pub stdout: String,
    /// Everything written to stderr.
    pub stderr: String,
}

/// Runs the agent with these arguments until it ends, at most for `patience`.
pub fn run_to_end(args: &[&str], patience: Duration) -> Result<Ended> {
    run_command_to_end(Command::new(executable()?).args(args), patience)
}

/// Whether the agent reports that it uses multi-uprobe links to watch a process.
pub fn says_multi(pid: u32) -> Result<bool> {
    let ended = run_to_end(&["inspect", "--json", "--pid", &pid.to_string()], Duration::from_secs(10))?;
    let report: serde_json::Value = serde_json::from_str(&ended.stdout)?;
    let features = report["kernel"]["features"].as_array().context("no features of the kernel")?;
    let uses = |name: &str| {
        let feature = features.iter().find(|feature| feature["name"] == name);
        feature.map(|feature| feature["used"] == true && feature["present"] == true).context("not there")
    };
    let uses_multi = uses("multi-uprobe links")?;
    ensure!(uses("uprobes by perf_event_open")? != uses_multi, "{features:?}");
    Ok(uses_multi)
}

/// Runs a command that starts the agent, possibly through another program, until it ends, at most for `patience`.
pub fn run_command_to_end(command: &mut Command, patience: Duration) -> Result<Ended> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let stdout = Lines::of(child.stdout.take().context("no stdout")?);
    let stderr = Lines::of(child.stderr.take().context("no stderr")?);
    let ended = wait(&mut child, patience);
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    stdout.wait_for_end(Duration::from_secs(1));
    stderr.wait_for_end(Duration::from_secs(1));
    let status = ended.with_context(|| format!("{command:?}; it wrote:\n{}", stderr.text()))?;
    Ok(Ended { code: status.code(), stdout: stdout.text(), stderr: stderr.text() })
}

/// Returns the address in a line such as "listening on <http://127.0.0.1:9790>", as text or inside JSON.
fn listen_address(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("listening on http://")?;
    let end = rest.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(rest.len());
    Some(rest[..end].trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::listen_address;

    #[test]
    fn address_in_a_log_line() {
        let text = "2026-01-02T03:04:05.6Z  INFO listening on http://127.0.0.1:34567";
        assert_eq!(listen_address(text).as_deref(), Some("127.0.0.1:34567"));
        let json = r#"{"level":"INFO","fields":{"message":"listening on http://[::1]:9790"}}"#;
        assert_eq!(listen_address(json).as_deref(), Some("[::1]:9790"));
        assert_eq!(listen_address("attached"), None);
    }
}
