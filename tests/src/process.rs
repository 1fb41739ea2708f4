//! A target process that is controlled by lines: each command is a line, each answer a line of JSON.

use std::{
    io::Write as _,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    capture::{Lines, NotFound},
    http,
    scrape::Scrape,
    targets::{Flavour, Program},
};

/// How long an answer may take by default.
const PATIENCE: Duration = Duration::from_mins(1);

/// A running target. It inherits this process's stderr, and is killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    /// Closing it asks the target to exit.
    stdin: Option<ChildStdin>,
    stdout: Lines,
    answers_taken: usize,
    ready: Value,
}

impl Process {
    /// Builds a program if necessary, starts it and waits until it is ready.
    pub fn start(program: Program, flavour: Flavour, args: &[&str]) -> Result<Self> {
        let executable = program.build(flavour)?;
        Self::start_command(Command::new(executable).args(args))
    }

    /// Starts a Kitex target from the default build. `args` are `server`, `client` or `relay`, and flags.
    pub fn kitex(args: &[&str]) -> Result<Self> {
        Self::start(Program::Kitex, Flavour::Default, args)
    }

    /// Starts a program that speaks the targets' protocol and waits until it is ready.
    pub fn start_command(command: &mut Command) -> Result<Self> {
        let name = format!("{command:?}");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let stdin = child.stdin.take();
        let stdout = Lines::of(child.stdout.take().context("no stdout")?);
        let mut process = Self { name, child, stdin, stdout, answers_taken: 0, ready: Value::Null };
        process.ready = process.answer(PATIENCE)?;
        Ok(process)
    }

    /// The process id, in this process's namespace.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The address that a server or relay listens on.
    pub fn addr(&self) -> Result<&str> {
        self.ready["addr"].as_str().with_context(|| format!("{} has no address", self.name))
    }

    /// The address at which the process serves its own metrics, if it does.
    pub fn metrics_address(&self) -> Result<&str> {
        self.ready["metrics"].as_str().with_context(|| format!("{} serves no metrics", self.name))
    }

    /// Scrapes the metrics that the process serves itself.
    pub fn in_process_metrics(&self) -> Result<Scrape> {
        Ok(Scrape::parse(&http::get(self.metrics_address()?, "/metrics")?.ok_body()?)?)
    }

    /// Sends a command and waits for its answer, at most a minute.
    pub fn command(&mut self, line: &str) -> Result<Value> {
        self.command_within(line, PATIENCE)
    }

    /// Sends a command and waits for its answer, at most for `patience`.
    pub fn command_within(&mut self, line: &str, patience: Duration) -> Result<Value> {
        self.send(line)?;
        self.answer(patience).with_context(|| format!("command `{line}`"))
    }

    /// Sends a command. [`Process::answer`] receives the answer.
    pub fn send(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("stdin is closed")?;
        writeln!(stdin, "{line}").with_context(|| format!("{} takes no more commands", self.name))
    }

    /// Waits for the next answer. An answer that reports a failure is an error.
    pub fn answer(&mut self, patience: Duration) -> Result<Value> {
        let line = match self.stdout.find(self.answers_taken, patience, |line| Some(line.to_owned())) {
            Ok(line) => line,
            Err(NotFound::Ended) => bail!("{} has ended: {:?}", self.name, self.child.wait()?),
            Err(NotFound::Timeout) => bail!("{} did not answer within {patience:?}", self.name),
        };
        self.answers_taken += 1;
        let answer: Value =
            serde_json::from_str(&line).with_context(|| format!("{} answered {line:?}", self.name))?;
        if let Some(error) = answer["error"].as_str() {
            bail!("{}: {error}", self.name);
        }
        Ok(answer)
    }

    /// Whether the process is still running.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: i32) -> Result<()> {
        signal_child(&self.child, signal)
    }

    /// Closes stdin and waits until the process ends, at most ten seconds.
    pub fn quit(&mut self) -> Result<ExitStatus> {
        self.stdin = None;
        wait(&mut self.child, Duration::from_secs(10)).with_context(|| self.name.clone())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a child ends, at most for `patience`.
pub fn wait(child: &mut Child, patience: Duration) -> Result<ExitStatus> {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if begin.elapsed() > patience {
            bail!("still running after {patience:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal to a child that has not been waited for, so that its pid cannot belong to another process.
pub fn signal_child(child: &Child, signal: i32) -> Result<()> {
    let pid = libc::pid_t::try_from(child.id()).context("pid out of range")?;
    // SAFETY: kill touches no memory of this process.
    if unsafe { libc::kill(pid, signal) } != 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| format!("kill({pid}, {signal})"));
    }
    Ok(())
}
