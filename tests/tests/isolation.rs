//! Targets in their own namespaces, and executables that are no longer where they were.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use monitor_tests::{
    agent::{Agent, run_to_end},
    chain::check_calls,
    process::Process,
    scrape::Scrape,
    side_by_side,
    tally::{DEFAULT_LABELS, Tally},
    targets::{Flavour, Program},
    text::Sites,
};

/// A new directory, removed with its contents when dropped.
struct Room(PathBuf);

impl Room {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("monitor-{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Starts the target by a shell script in its own namespaces. In the script, `$0` is the executable and `$1` a
/// directory.
fn isolated(unshare: &[&str], script: &str, directory: &Path) -> Result<Process> {
    let executable = Program::Kitex.build(Flavour::Default)?;
    let mut command = Command::new("unshare");
    command.args(unshare).args(["sh", "-ec", script]).arg(executable).arg(directory);
    Process::start_command(&mut command)
}

/// Makes calls to a server and compares the agent's counts under this pid with the server's own.
fn counts_exactly(server: &mut Process, pid: u32) -> Result<Scrape> {
    let agent = Agent::attach(&[pid], &[])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    client.command("load 3000 8 6")?;
    server.command("settle")?;
    let scrape = agent.scrape_settled()?;
    let own = Tally::of_target(&server.command("counts")?, &DEFAULT_LABELS)?;
    own.check(&Tally::of_agent(&scrape, &DEFAULT_LABELS, None)?)?;
    assert_eq!(own.total(), 3_000);
    Sites::of(pid)?.check_probed()?;
    agent.terminate()?;
    Sites::of(pid)?.check_clean()?;
    Ok(scrape)
}

#[test]
fn an_executable_that_only_the_target_can_see() -> Result<()> {
    let room = Room::new("mount")?;
    // A file system mounted only in the target's namespace. Its path does not exist outside.
    let script = r#"mount -t tmpfs none "$1"; cp "$0" "$1/target"; exec "$1/target" server"#;
    let mut server = isolated(&["-m"], script, room.path())?;
    ensure!(!room.path().join("target").exists(), "the executable can be seen from outside");
    let pid = server.pid();
    let scrape = counts_exactly(&mut server, pid)?;
    let exe =
        scrape.samples("monitor_target_info").next().context("no monitor_target_info")?.labels["exe"].clone();
    assert_eq!(exe, room.path().join("target").display().to_string());
    Ok(())
}

#[test]
fn another_file_under_the_same_path() -> Result<()> {
    let room = Room::new("bind")?;
    let path = room.path().join("target");
    // Outside, the path leads to a program without a framework; inside, to the server.
    fs::copy(Program::Plain.build(Flavour::Default)?, &path)?;
    let mut server =
        isolated(&["-m"], r#"mount --bind "$0" "$1/target"; exec "$1/target" server"#, room.path())?;
    let pid = server.pid();
    counts_exactly(&mut server, pid)?;
    let outside = path.display().to_string();
    ensure!(run_to_end(&["inspect", "--exe", &outside], Duration::from_secs(5))?.code == Some(6));
    Ok(())
}

/// Returns the only child of a process, by its pid in this namespace.
fn child_of(parent: u32) -> Result<u32> {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // The fields after the name in parentheses: state, ppid.
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
            if fields.split_whitespace().nth(1) == Some(&parent.to_string()) {
                return Ok(pid);
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    bail!("process {parent} has no child")
}

#[test]
fn a_pid_namespace() -> Result<()> {
    let room = Room::new("pid")?;
    let own_file = r#"mount -t tmpfs none "$1"; cp "$0" "$1/target"; exec "$1/target" server"#;
    let alone = (&["-p", "-f", "--kill-child"][..], r#"exec "$0" server"#);
    let with_a_mount_namespace = (&["-p", "-f", "--kill-child", "-m", "--mount-proc"][..], own_file);
    for (flags, script) in [alone, with_a_mount_namespace] {
        let mut server = isolated(flags, script, room.path())?;
        let pid = child_of(server.pid())?;
        // The target's pid in its own namespace is 1. The agent uses the pid in its own /proc.
        ensure!(
            fs::read_to_string(format!("/proc/{pid}/status"))?.contains("\t1\n"),
            "not a namespace of its own"
        );
        counts_exactly(&mut server, pid)?;
    }
    Ok(())
}

/// An update on disk while the old program runs: the running program is watched.
#[test]
fn an_executable_that_was_replaced_on_disk() -> Result<()> {
    let other = Program::Plain.build(Flavour::Default)?;
    let stripped = Program::Kitex.build(Flavour::Stripped)?;
    let mut rooms = Vec::new();
    // Copies all files first: no program can be executed while its file is open for writing, even in a child that is
    // just being started.
    for (by, replacement) in [("nothing", None), ("plain", Some(&other)), ("stripped", Some(&stripped))] {
        let room = Room::new(&format!("replaced-by-{by}"))?;
        fs::copy(Program::Kitex.build(Flavour::Default)?, room.path().join("service"))?;
        rooms.push((room, replacement));
    }
    side_by_side(rooms, |(room, replacement)| {
        let path = room.path().join("service");
        let mut server = Process::start_command(Command::new(&path).arg("server"))?;
        fs::remove_file(&path)?;
        if let Some(replacement) = replacement {
            fs::copy(replacement, &path)?;
        }
        let pid = server.pid();
        counts_exactly(&mut server, pid)?;
        let pid = pid.to_string();
        let ended = run_to_end(&["inspect", "--pid", &pid], Duration::from_secs(5))?;
        ensure!(ended.code == Some(0) && ended.stdout.contains("(deleted)"), "{replacement:?}: {ended:?}");
        Ok(())
    })
}

/// As in a container, the executable is in a lower layer of an overlay. A change of its mode creates a copy in the
/// upper layer. From then on, probes are placed in the copy, while the process still runs the original. Its starts then
/// do not count as watched, and the log has the reason.
#[test]
fn an_executable_that_overlayfs_copies_while_it_runs() -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let room = Room::new("overlay")?;
    let script = r#"mount -t tmpfs none "$1"
        mkdir "$1/lower" "$1/upper" "$1/work" "$1/merged"; cp "$0" "$1/lower/target"
        layers="lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work"
        mount -t overlay -o "$layers,metacopy=off" none "$1/merged"
        exec "$1/merged/target" server --unrecorded"#;
    let mut server = isolated(&["-m"], script, room.path())?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    let pid = server.pid();
    let agent = Agent::attach(&[pid], &["--latency", "economy", "--latency.every", "2"])?;
    client.command("flow 4 500")?;
    let starts = || -> Result<f64> { Ok(agent.scrape()?.sum("monitor_starts_total", &[])) };
    let says_why = || agent.log().contains("the probes at the starts of calls are not in place");
    let wait_for_more = |what: &str| -> Result<()> {
        // A window that was open has closed by then.
        thread::sleep(Duration::from_secs(2));
        let (before, began) = (starts()?, Instant::now());
        while starts()? <= before && !says_why() {
            ensure!(began.elapsed() < PATIENCE, "{what}: no window, and no reason:\n{}", agent.log());
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    };
    wait_for_more("on overlayfs")?;
    ensure!(!says_why(), "before anything has changed:\n{}", agent.log());
    let executable = format!("/proc/{pid}/root{}/merged/target", room.path().display());
    fs::set_permissions(executable, Permissions::from_mode(0o700))?;
    wait_for_more("after a change of its mode")?;
    client.command("pause")?;
    server.command("settle")?;
    let scrape = agent.scrape_settled()?;
    let own = Tally::of_target(&server.command("counts")?, &DEFAULT_LABELS)?;
    own.check(&Tally::of_agent(&scrape, &DEFAULT_LABELS, None)?)?;
    // Calls whose starts counted as watched but were not.
    let unpaired = scrape.sum("monitor_finishes_total", &[("outcome", "unpaired")]);
    ensure!(unpaired < 20.0, "{unpaired} calls without a start:\n{}", agent.log());
    agent.terminate()?;
    Ok(())
}

/// The old and the new program of one path at the same time, each watched by its own plan.
#[test]
fn two_programs_that_had_the_same_path() -> Result<()> {
    let room = Room::new("both")?;
    let path = room.path().join("service");
    let mut servers = Vec::new();
    for flavour in [Flavour::Default, Flavour::Pie] {
        // Replaced by a new file: the file of a running program can't be written.
        let _ = fs::remove_file(&path);
        fs::copy(Program::Kitex.build(flavour)?, &path)?;
        servers.push(Process::start_command(Command::new(&path).arg("server"))?);
    }
    let agent = Agent::attach(&[servers[0].pid(), servers[1].pid()], &[])?;
    for (server, calls) in servers.iter().zip([700, 900]) {
        Process::kitex(&["client", "--connect", server.addr()?])?.command(&format!("load {calls} 4 1"))?;
    }
    for server in &mut servers {
        server.command("settle")?;
    }
    let scrape = agent.scrape_settled()?;
    for (server, calls) in servers.iter_mut().zip([700, 900]) {
        assert_eq!(check_calls(server, &scrape, &DEFAULT_LABELS, true)?.total(), calls);
    }
    agent.terminate()?;
    Ok(())
}
