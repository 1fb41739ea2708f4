//! Runs `monitor-agent events` as a process, and compares its lines with a target's log of its calls.

use std::{
    collections::BTreeMap,
    io::Read,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    agent::executable,
    capture::Lines,
    process::{Process, signal_child, wait},
};

/// How long attaching may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The fields of a finished call that the target knows exactly.
const SAME: [&str; 8] =
    ["side", "type", "caller", "callee", "method", "status", "sent_bytes", "received_bytes"];

/// A running `monitor-agent events`. Killed when dropped.
pub struct Events {
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

impl Events {
    /// Starts it on these processes and waits until it reports that it has attached.
    pub fn attach(pids: &[u32], args: &[&str]) -> Result<Self> {
        let mut command = Command::new(executable()?);
        command.arg("events");
        for pid in pids {
            command.arg("--pid").arg(pid.to_string());
        }
        Self::attach_command(command.args(args))
    }

    /// Like [`Events::attach`], with a command that starts it, possibly through another program.
    pub fn attach_command(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let stdout = Lines::of(child.stdout.take().context("no stdout")?);
        let stderr = Lines::of(child.stderr.take().context("no stderr")?);
        let events = Self { child, stdout, stderr };
        let attached = events.stderr.find(0, PATIENCE, |line| says_attached(line).then_some(()));
        match attached {
            Ok(()) => Ok(events),
            Err(_) => bail!("not attached; on stderr:\n{}", events.stderr.text()),
        }
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: i32) -> Result<()> {
        signal_child(&self.child, signal)
    }

    /// Returns the lines so far.
    pub fn lines(&self) -> Result<Vec<Value>> {
        parse(&self.stdout.text())
    }

    /// Returns what it has written to stderr.
    #[must_use]
    pub fn said(&self) -> String {
        self.stderr.text()
    }

    /// Waits until it ends. Returns its exit status and all lines.
    pub fn wait(mut self) -> Result<(ExitStatus, Vec<Value>)> {
        let status = wait(&mut self.child, Duration::from_secs(10)).with_context(|| self.stderr.text())?;
        self.stdout.wait_for_end(Duration::from_secs(1));
        Ok((status, self.lines()?))
    }

    /// Waits until it ends successfully. Returns everything it wrote to stdout.
    pub fn text_to_end(mut self) -> Result<String> {
        let status = wait(&mut self.child, Duration::from_secs(10)).with_context(|| self.stderr.text())?;
        ensure!(status.code() == Some(0), "{status}");
        self.stdout.wait_for_end(Duration::from_secs(1));
        Ok(self.stdout.text())
    }

    /// Ends it with SIGTERM. It must exit successfully within two seconds. Returns all lines.
    pub fn terminate(self) -> Result<Vec<Value>> {
        let begin = Instant::now();
        self.signal(libc::SIGTERM)?;
        let (status, lines) = self.wait()?;
        ensure!(status.code() == Some(0), "{status}");
        ensure!(begin.elapsed() < Duration::from_secs(2), "it took {:?}", begin.elapsed());
        Ok(lines)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("monitor-agent events said:\n{}", self.stderr.text());
        }
    }
}

/// Whether a line reports that it has attached, as text or as a JSON log record.
fn says_attached(line: &str) -> bool {
    line == "attached" || line.contains(r#""message":"attached""#)
}

/// A reader of an event socket, which collects lines until the other end closes.
pub struct SocketReader(Lines);

impl SocketReader {
    /// Reads from a connection on a separate thread.
    #[must_use]
    pub fn of(connection: impl Read + Send + 'static) -> Self {
        Self(Lines::of(connection))
    }

    /// Waits until the other end has closed. Returns all lines.
    pub fn to_end(&self) -> Result<Vec<Value>> {
        self.0.wait_for_end(PATIENCE);
        parse(&self.0.text())
    }

    /// Returns the lines so far.
    pub fn lines(&self) -> Result<Vec<Value>> {
        parse(&self.0.text())
    }
}

/// Parses each line, which must be a JSON object.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    let lines = text.lines().map(|line| {
        let value: Value = serde_json::from_str(line).with_context(|| format!("{line:?}"))?;
        ensure!(value.is_object(), "{line}");
        Ok(value)
    });
    lines.collect()
}

/// Returns the lines about one kind of event.
#[must_use]
pub fn of_kind<'a>(lines: &'a [Value], event: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["event"] == event).collect()
}

/// Returns how many events of a kind were lost for one reason, according to the lines.
#[must_use]
pub fn lost(lines: &[Value], event: &str, reason: &str) -> u64 {
    let told = of_kind(lines, "lost");
    let these = told.iter().filter(|line| line["of"] == event && line["reason"] == reason);
    these.filter_map(|line| line["lost"].as_u64()).sum()
}

/// Returns how many events of a kind were lost in all, according to the lines.
#[must_use]
pub fn lost_in_all(lines: &[Value], event: &str) -> u64 {
    let told = of_kind(lines, "lost");
    told.iter().filter(|line| line["of"] == event).filter_map(|line| line["lost"].as_u64()).sum()
}

/// Takes a target's log of its calls.
pub fn logged(process: &mut Process) -> Result<Vec<Value>> {
    let answer = process.command("calls")?;
    Ok(answer["calls"].as_array().context("no calls")?.clone())
}

/// Groups events by goroutine and keeps their order.
fn by_goroutine<'a>(events: impl IntoIterator<Item = &'a Value>) -> Result<BTreeMap<u64, Vec<&'a Value>>> {
    let mut goroutines: BTreeMap<u64, Vec<_>> = BTreeMap::new();
    for event in events {
        let goroutine = event["goroutine"].as_u64().with_context(|| format!("no goroutine: {event}"))?;
        goroutines.entry(goroutine).or_default().push(event);
    }
    Ok(goroutines)
}

/// Fails unless the lines about a target match its own log call by call, in the order of each goroutine. Returns the
/// differences of their durations in microseconds.
pub fn check_same(pid: u32, lines: &[Value], logged: &[Value]) -> Result<Vec<u64>> {
    let finishes = of_kind(lines, "finish").into_iter().filter(|line| line["target"] == pid);
    let (agents, own) = (by_goroutine(finishes)?, by_goroutine(logged)?);
    ensure!(
        agents.keys().eq(own.keys()),
        "pid {pid}: goroutines {:x?} and {:x?}",
        agents.keys().collect::<Vec<_>>(),
        own.keys().collect::<Vec<_>>()
    );
    let mut differences = Vec::new();
    for (goroutine, own) in own {
        let agents = &agents[&goroutine];
        ensure!(
            agents.len() == own.len(),
            "pid {pid}, goroutine {goroutine:x}: {} lines of {} calls",
            agents.len(),
            own.len()
        );
        for (index, (line, call)) in agents.iter().zip(&own).enumerate() {
            for field in SAME {
                ensure!(
                    line[field] == call[field],
                    "pid {pid}, goroutine {goroutine:x}, call {index}, {field}: {line} and {call}"
                );
            }
            let times = (line["duration_us"].as_u64(), call["duration_us"].as_u64());
            let (Some(line_us), Some(call_us)) = times else { bail!("no duration: {line} and {call}") };
            differences.push(line_us.abs_diff(call_us));
        }
    }
    Ok(differences)
}
