//! An agent that is not root: which capabilities suffice, and what it reports if one is missing. `docs/permissions.md`
//! has the same for users.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Result, ensure};
use monitor_tests::{
    agent::{self, Agent, Ended, run_command_to_end, says_multi},
    chain::check_calls,
    process::Process,
    tally::DEFAULT_LABELS,
    targets::{Flavour, Program},
    text::Sites,
};

/// The capabilities that suffice for any process.
const ALL: [&str; 3] = ["sys_admin", "sys_ptrace", "dac_read_search"];

/// Users without a name on most machines: the agent's, and another one.
const AGENT: u32 = 61_001;
const OTHER: u32 = 61_002;

/// A directory that every user can access, with copies of the executables. Removed when dropped.
struct Room(PathBuf);

impl Room {
    fn new(name: &str) -> Result<Self> {
        let room = Self(std::env::temp_dir().join(format!("monitor-{name}-{}", std::process::id())));
        fs::create_dir_all(&room.0)?;
        fs::set_permissions(&room.0, fs::Permissions::from_mode(0o755))?;
        room.copy(&agent::executable()?, "monitor-agent", 0o755)?;
        room.copy(&Program::Kitex.build(Flavour::Default)?, "target", 0o755)?;
        Ok(room)
    }

    fn copy(&self, from: &Path, name: &str, mode: u32) -> Result<PathBuf> {
        let to = self.0.join(name);
        fs::copy(from, &to)?;
        fs::set_permissions(&to, fs::Permissions::from_mode(mode))?;
        Ok(to)
    }

    /// Starts a server as this user: as root with all capabilities, as another user with none.
    fn server(&self, user: u32) -> Result<Process> {
        let target = self.0.join("target");
        if user == 0 {
            return Process::start_command(Command::new(target).arg("server"));
        }
        Process::start_command(as_user(user, &[]).arg(target).arg("server"))
    }

    /// Returns the agent's command, to run as a user with exactly these capabilities.
    fn agent(&self, capabilities: &[&str], pid: u32) -> Command {
        let mut command = as_user(AGENT, capabilities);
        command.arg(self.0.join("monitor-agent"));
        command.args(["run", "--web.listen-address", "127.0.0.1:0", "--pid", &pid.to_string()]);
        command
    }

    /// Runs the agent, which must exit because a capability is missing.
    fn refused(&self, capabilities: &[&str], pid: u32) -> Result<Ended> {
        let ended = run_command_to_end(&mut self.agent(capabilities, pid), Duration::from_secs(5))?;
        ensure!(ended.code == Some(4), "with {capabilities:?}: {ended:?}");
        Ok(ended)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Returns the beginning of a command: the rest runs as a user with these capabilities and can't gain others.
fn as_user(user: u32, capabilities: &[&str]) -> Command {
    let id = user.to_string();
    let list = ["-all".to_owned()].into_iter().chain(capabilities.iter().map(|name| format!("+{name}")));
    let list = list.collect::<Vec<_>>().join(",");
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--no-new-privs"]);
    command.args(["--inh-caps", &list, "--ambient-caps", &list, "--bounding-set", &list]);
    command
}

/// Makes calls to a server and compares the agent's counts with the server's own. Returns the names of all families.
fn counts_exactly(server: &mut Process, agent: Agent) -> Result<BTreeSet<String>> {
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    client.command("load 1500 8 6")?;
    server.command("settle")?;
    let scrape = agent.scrape_settled()?;
    ensure!(check_calls(server, &scrape, &DEFAULT_LABELS, false)?.total() == 1_500);
    server.command("reset")?;
    let (status, took) = agent.terminate()?;
    ensure!(status.success() && took < Duration::from_secs(2), "{status} in {took:?}");
    Sites::of(server.pid())?.check_clean()?;
    Ok(scrape.families.into_keys().collect())
}

/// The capabilities in `ALL` except one.
fn without(name: &str) -> Vec<&'static str> {
    ALL.into_iter().filter(|capability| *capability != name).collect()
}

#[test]
fn three_capabilities_suffice_for_any_process() -> Result<()> {
    let room = Room::new("suffice")?;
    for user in [0, OTHER] {
        let mut server = room.server(user)?;
        let agent = Agent::attach(&[server.pid()], &[])?;
        let as_root = counts_exactly(&mut server, agent)?;
        let agent = Agent::start_command(&mut room.agent(&ALL, server.pid()))?.wait_ready()?;
        let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
        ensure!(status.contains(&format!("Uid:\t{AGENT}\t{AGENT}")), "the agent is someone else: {status}");
        ensure!(!agent.log().contains("WARN"), "target of user {user}: {}", agent.log());
        ensure!(counts_exactly(&mut server, agent)? == as_root, "less is shown than to root");
    }
    Ok(())
}

#[test]
fn one_suffices_for_a_process_of_the_same_user() -> Result<()> {
    let room = Room::new("same")?;
    let mut server = room.server(AGENT)?;
    let agent = Agent::start_command(&mut room.agent(&["sys_admin"], server.pid()))?.wait_ready()?;
    ensure!(!agent.log().contains("WARN"), "{}", agent.log());
    counts_exactly(&mut server, agent)?;
    let ended = room.refused(&["sys_ptrace", "dac_read_search"], server.pid())?;
    ensure!(ended.stderr.contains("CAP_SYS_ADMIN"), "{ended:?}");
    Ok(())
}

#[test]
fn none_is_needed_for_the_runtime_of_a_process_of_the_same_user() -> Result<()> {
    let room = Room::new("none")?;
    let server = room.server(AGENT)?;
    let agent = Agent::start_command(room.agent(&[], server.pid()).args(["--metrics", "go,process"]))?;
    let agent = agent.wait_ready()?;
    let scrape = agent.scrape()?;
    for name in ["go_goroutines", "process_cpu_seconds_total"] {
        ensure!(scrape.families.contains_key(name), "no {name}: {}", agent.log());
    }
    ensure!(!agent.log().contains("WARN"), "{}", agent.log());
    agent.terminate()?;
    // Processes of other users can't be read.
    let ended = run_command_to_end(
        room.agent(&[], room.server(OTHER)?.pid()).args(["--metrics", "process"]),
        Duration::from_secs(5),
    )?;
    ensure!(ended.code == Some(4), "{ended:?}");
    Ok(())
}

#[test]
fn each_missing_capability_is_named() -> Result<()> {
    let room = Room::new("named")?;
    for user in [0, OTHER] {
        let server = room.server(user)?;
        for (missing, name) in [("sys_admin", "CAP_SYS_ADMIN"), ("sys_ptrace", "CAP_SYS_PTRACE")] {
            let ended = room.refused(&without(missing), server.pid())?;
            let sentence = ended.stderr.lines().last().unwrap_or("");
            ensure!(sentence.contains(name), "without {missing}: {sentence}");
            ensure!(!ended.stderr.contains("WARN"), "without {missing}: {}", ended.stderr);
        }
        room.refused(&[], server.pid())?;
        Sites::of(server.pid())?.check_clean()?;
    }
    Ok(())
}

/// The capabilities for loading programs suffice for multi-uprobe links, but not for measuring their cost. On kernels
/// since July 2025 they do not suffice for perf events.
#[test]
fn what_loads_programs_suffices_for_multi_uprobe_links() -> Result<()> {
    let room = Room::new("loads")?;
    let mut server = room.server(OTHER)?;
    let uses_multi = says_multi(server.pid())?;
    let mut command = room.agent(&["bpf", "perfmon", "sys_ptrace", "dac_read_search"], server.pid());
    let agent = match Agent::start_command(&mut command)?.wait_ready() {
        Err(error) if !uses_multi => {
            ensure!(format!("{error:#}").contains("missing here: CAP_SYS_ADMIN)"), "{error:#}");
            return Ok(());
        }
        agent => agent?,
    };
    let is_told = |line: &str| line.contains("what the probes cost is not known").then_some(());
    agent.wait_for_log(Duration::from_secs(20), is_told)?;
    counts_exactly(&mut server, agent)?;
    Ok(())
}

/// Without this capability calls are counted, but nothing in the target's memory can be verified. The agent warns about
/// this.
#[test]
fn without_dac_read_search_it_warns() -> Result<()> {
    let room = Room::new("warns")?;
    for user in [0, OTHER] {
        let mut server = room.server(user)?;
        let mut command = room.agent(&without("dac_read_search"), server.pid());
        let agent = Agent::start_command(&mut command)?.wait_ready()?;
        let log = agent.log();
        let warns = log.lines().any(|line| line.contains("WARN") && line.contains("CAP_DAC_READ_SEARCH"));
        ensure!(warns, "{log}");
        let refused = [("target", &*server.pid().to_string()), ("reason", "not_permitted")];
        ensure!(agent.scrape()?.value("monitor_read_errors_total", &refused) == Some(1.0));
        let shown = counts_exactly(&mut server, agent)?;
        ensure!(shown.iter().all(|name| !name.starts_with("go_")), "{shown:?}");
    }
    Ok(())
}

#[test]
fn an_executable_that_only_its_owner_can_read() -> Result<()> {
    let room = Room::new("private")?;
    fs::set_permissions(room.0.join("target"), fs::Permissions::from_mode(0o700))?;
    let mut server = room.server(0)?;
    let ended = room.refused(&without("dac_read_search"), server.pid())?;
    ensure!(ended.stderr.contains("CAP_DAC_READ_SEARCH"), "{ended:?}");
    let agent = Agent::start_command(&mut room.agent(&ALL, server.pid()))?.wait_ready()?;
    counts_exactly(&mut server, agent)?;
    Ok(())
}
