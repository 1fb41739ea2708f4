//! Other tools that watch a server, given by the user as commands.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Stdio},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::machine::{cpu_time, pinned};
use crate::process::root;

/// Placeholder for the server's process id in a command.
const PID: &str = "{pid}";
/// How long a peer may take to exit by itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// A tool and the command that starts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) name: String,
    /// A shell command.
    command: String,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, command)) if !name.is_empty() && !command.trim().is_empty() => {
                Ok(Self { name: name.to_owned(), command: command.to_owned() })
            }
            _ => Err("not NAME=COMMAND, such as obi=\"obi --pid {pid}\"".to_owned()),
        }
    }
}

impl Peer {
    /// Returns the peer as an argument, quoted for the shell.
    pub(super) fn quoted(&self) -> String {
        let given = format!("{}={}", self.name, self.command);
        format!("'{}'", given.replace('\'', r"'\''"))
    }
}

/// A running peer. Dropping this ends it, with all processes that it started.
pub(super) struct Running {
    child: Child,
}

impl Running {
    /// Starts the peer on one processor and waits for the given time: there is no common way to see when it is ready.
    pub(super) fn start(peer: &Peer, pid: u32, core: usize, ready_after: Duration) -> Result<Self> {
        let log = root().join(format!("target/bench-peer-{}.log", peer.name.replace('/', "_")));
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = pinned(core, Path::new("sh"));
        command.arg("-c").arg(peer.command.replace(PID, &pid.to_string()));
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start the peer {}", peer.name))?;
        let mut running = Self { child };
        thread::sleep(ready_after);
        if let Some(status) = running.child.try_wait()? {
            bail!("the peer {} has ended with {status}: {} has what it wrote", peer.name, log.display());
        }
        Ok(running)
    }

    /// Returns the processor time of all its running processes.
    pub(super) fn cpu_time(&self) -> Result<Duration> {
        let members = members(self.child.id())?;
        // Skips processes that have ended in between.
        Ok(members.into_iter().filter_map(|pid| cpu_time(pid).ok()).sum())
    }

    fn signal(&self, signal: i32) {
        if let Ok(group) = libc::pid_t::try_from(self.child.id()) {
            // SAFETY: kill touches no memory of this process. The group is the peer's own, and its leader has not
            // been waited for, so no other group can have its number.
            unsafe { libc::kill(-group, signal) };
        }
    }

    fn has_members(&self) -> bool {
        members(self.child.id()).is_ok_and(|members| !members.is_empty())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(libc::SIGTERM);
        let begin = Instant::now();
        while self.has_members() && begin.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(10));
        }
        self.signal(libc::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Returns the processes of a group that have not ended.
fn members(group: u32) -> Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").context("cannot read /proc")?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(pids
        .filter(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| is_in(&stat, group)))
        .collect())
}

/// Parses the fields after the name in parentheses: state, parent, group (proc(5)).
fn is_in(stat: &str, group: u32) -> bool {
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.next().is_some_and(|state| state != "Z")
        && fields.nth(1).is_some_and(|field| field == group.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_a_name_and_a_command() {
        let peer: Peer = "obi=OBI_PID={pid} obi".parse().unwrap();
        assert_eq!((peer.name.as_str(), peer.command.as_str()), ("obi", "OBI_PID={pid} obi"));
        assert!(
            "obi".parse::<Peer>().is_err()
                && "=x".parse::<Peer>().is_err()
                && "obi= ".parse::<Peer>().is_err()
        );
    }

    #[test]
    fn a_quoted_peer_is_what_was_given() {
        let given = r#"obi=OBI="a 'b'" obi --pid {pid} $HOME"#;
        let quoted = given.parse::<Peer>().unwrap().quoted();
        let echoed = std::process::Command::new("sh").arg("-c").arg(format!("printf %s {quoted}")).output();
        assert_eq!(String::from_utf8(echoed.unwrap().stdout).unwrap(), given);
    }

    #[test]
    fn a_peer_gets_the_pid_and_ends_with_all_that_it_has_started() {
        let file = root().join(format!("target/peer-{}", std::process::id()));
        let command = format!("test=sleep 100 & echo {{pid}} >{}; sleep 100; true", file.display());
        let ready_after = Duration::from_millis(500);
        let running = Running::start(&command.parse().unwrap(), 4711, 0, ready_after).unwrap();
        let group = running.child.id();
        assert_eq!(fs::read_to_string(&file).unwrap().trim(), "4711");
        assert_eq!(members(group).unwrap().len(), 3);
        assert!(running.cpu_time().unwrap() > Duration::ZERO);
        drop(running);
        assert!(members(group).unwrap().is_empty());
        fs::remove_file(file).unwrap();
    }

    #[test]
    fn a_peer_that_ends_at_once_is_an_error() {
        let error = Running::start(&"gone=exit 3".parse().unwrap(), 1, 0, Duration::from_millis(300)).err();
        assert!(error.is_some_and(|error| error.to_string().contains("exit status: 3")));
    }

    #[test]
    fn the_group_of_a_process() {
        assert!(is_in("12 (a) b) S 1 4711 9 0", 4711));
        assert!(!is_in("12 (ab) Z 1 4711 9 0", 4711));
        assert!(!is_in("12 (ab) S 4711 1 9 0", 4711));
    }
}
