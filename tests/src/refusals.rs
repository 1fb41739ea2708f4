//! How the agent refuses: with the exit code of the kind of failure, with one sentence that names the process or file
//! and what to do, and with nothing left attached. The exit codes are part of the interface; scripts rely on them.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    agent::{Ended, executable, run_command_to_end},
    kernel::BpfObjects,
    process::Process,
};

/// An error while running.
pub const RUNNING: i32 = 1;
/// Wrong use of the command line.
pub const USAGE: i32 = 2;
/// No such process, or it ended.
pub const NO_PROCESS: i32 = 3;
/// A capability is missing.
pub const PERMISSION: i32 = 4;
/// Not an executable that can be read.
pub const UNREADABLE: i32 = 5;
/// Nothing in the executable can be proven.
pub const UNPROVABLE: i32 = 6;
/// The address can't be listened on.
pub const ADDRESS: i32 = 7;
/// The kernel lacks a feature.
pub const KERNEL: i32 = 8;

/// The longest that a refusal may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a command that starts the agent and must be refused. Checks the exit code, the sentence and that nothing is
/// left in the kernel.
pub fn refused_command(command: &mut Command, code: i32, words: &[&str]) -> Result<Ended> {
    let before = BpfObjects::now()?;
    let ended = run_command_to_end(command, PATIENCE)?;
    let check = || -> Result<()> {
        ensure!(ended.code == Some(code), "the exit code is not {code}");
        let sentence = sentence(&ended.stderr)?;
        for word in words {
            ensure!(sentence.contains(word), "`{word}` is not in the sentence");
        }
        BpfObjects::wait_until_back(&before, Duration::from_secs(5))
    };
    check().with_context(|| format!("{command:?}: {ended:#?}"))?;
    Ok(ended)
}

/// Returns the one sentence on stderr that is not a log line of level INFO: `monitor-agent: …`, or `error: …` with,
/// after an empty line, how to get help.
pub fn sentence(stderr: &str) -> Result<String> {
    let mut lines = stderr.lines().skip_while(|line| line.contains(" INFO "));
    let sentence = lines.by_ref().take_while(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
    let known = sentence.starts_with("monitor-agent: ") || sentence.starts_with("error: ");
    ensure!(known, "no sentence that says why");
    let aside = |line: &str| line.is_empty() || line.starts_with("Usage: ") || line.starts_with("  tip: ");
    let rest: Vec<_> = lines.filter(|line| !aside(line)).collect();
    let help = ["For more information, try '--help'."];
    ensure!(rest.is_empty() || rest == help, "more than one sentence: {rest:?}");
    ensure!(sentence.starts_with("error: ") || !sentence.contains('\n'), "more than one line");
    ensure!((30..400).contains(&sentence.len()), "too short or too long");
    for inner in ["panicked", "Error {", "Error(", "Os {", "Some(", "unwrap"] {
        ensure!(!sentence.contains(inner), "it shows the program's inside");
    }
    Ok(sentence)
}

/// A command that runs the agent, without arguments yet.
pub fn agent() -> Result<Command> {
    Ok(Command::new(executable()?))
}

/// A command for `run` with these arguments, on a free port.
pub fn run_command(args: &[&str]) -> Result<Command> {
    let mut command = agent()?;
    command.args(["run", "--web.listen-address", "127.0.0.1:0"]).args(args);
    Ok(command)
}

/// Starts a Kitex server from this executable.
pub fn server(executable: &Path) -> Result<Process> {
    Process::start_command(Command::new(executable).arg("server"))
}

/// A temporary directory for a test's files, readable by every user. It is removed when dropped.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// Creates a directory for the test `name`.
    pub fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("monitor-bad-input-{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self(path))
    }

    /// Writes a file in it and returns the path.
    pub fn file(&self, name: &str, contents: &[u8]) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, contents)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
