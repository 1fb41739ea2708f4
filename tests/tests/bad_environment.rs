//! If the agent lacks descriptors, capabilities or kernel features, it refuses, as `monitor_tests::refusals` checks.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::{Agent, executable, run_command_to_end},
    events::Events,
    kernel::BpfObjects,
    process::Process,
    refusals::{
        ADDRESS, KERNEL, PATIENCE, PERMISSION, RUNNING, Scratch, USAGE, agent, refused_command, run_command,
        server,
    },
    scrape::whole,
    seccomp,
    targets::{Flavour, Program},
    text::Sites,
};

/// Limits a command's descriptors: `few` is the soft limit, `most` the hard limit that it may raise it to.
fn with_descriptors(command: &mut Command, few: u64, most: u64) {
    let limit = libc::rlimit { rlim_cur: few, rlim_max: most };
    // SAFETY: reads the limit only.
    let set = move || unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    let install = move || if set() == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
    // SAFETY: between fork and exec the closure makes one system call and nothing else.
    unsafe { command.pre_exec(install) };
}

/// However early descriptors run out, the error says so and does not claim that the target has ended.
#[test]
fn too_few_descriptors() -> Result<()> {
    let process = Process::kitex(&["server"])?;
    let pid = process.pid().to_string();
    for limit in (8..=36).step_by(4) {
        let mut command = run_command(&["--pid", &pid])?;
        with_descriptors(&mut command, limit, limit);
        let ended = refused_command(&mut command, RUNNING, &["limit on open files"])?;
        ensure!(!ended.stderr.contains("has ended"), "{limit}: {ended:#?}");
    }
    let mut command = run_command(&["--pid", &pid])?;
    with_descriptors(&mut command, 16, 256);
    Agent::start_command(&mut command)?.wait_ready()?.terminate()?;
    Ok(())
}

/// An unprivileged user's id, that of `nobody`.
const NOBODY: &str = "65534";

/// A command that runs a program as an unprivileged user without any capability.
fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
    command.args(["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]).arg(program);
    command
}

#[test]
fn an_ordinary_user_is_told_which_capability_is_missing() -> Result<()> {
    // Build directories are often not accessible to other users.
    let scratch = Scratch::new("nobody")?;
    let agent = scratch.0.join("monitor-agent");
    fs::copy(executable()?, &agent)?;
    let target = scratch.0.join("kitex-target");
    fs::copy(Program::Kitex.build(Flavour::Default)?, &target)?;
    let run = |pid: &str| {
        let mut command = as_nobody(&agent);
        command.args(["run", "--web.listen-address", "127.0.0.1:0", "--pid", pid]);
        command
    };
    let inspect = |args: &[&str]| {
        let mut command = as_nobody(&agent);
        command.arg("inspect").args(args);
        command
    };

    let foreign = server(&target)?;
    let pid = foreign.pid().to_string();
    let words = ["not permitted", &pid, "run as root", "CAP_SYS_PTRACE"];
    refused_command(&mut run(&pid), PERMISSION, &words)?;
    refused_command(&mut inspect(&["--pid", &pid]), PERMISSION, &words)?;

    // Unprivileged users can read and inspect their own processes, but not attach to them.
    let own = Process::start_command(as_nobody(&target).arg("server"))?;
    let pid = own.pid().to_string();
    refused_command(&mut run(&pid), PERMISSION, &["permission denied", "missing", "CAP_SYS_ADMIN"])?;
    let seen = run_command_to_end(&mut inspect(&["--pid", &pid]), PATIENCE)?;
    ensure!(seen.code == Some(0) && seen.stdout.contains("can be watched"), "{seen:#?}");
    Sites::of(own.pid())?.check_clean()?;

    let seen = run_command_to_end(&mut inspect(&["--exe", target.to_str().context("no UTF-8")?]), PATIENCE)?;
    ensure!(seen.code == Some(0), "{seen:#?}");
    let secret = scratch.file("secret", b"")?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    let secret = secret.to_str().context("no UTF-8")?;
    let words = ["not permitted", secret, "CAP_DAC_READ_SEARCH"];
    refused_command(&mut inspect(&["--exe", secret]), PERMISSION, &words)?;
    let mut low = as_nobody(&agent);
    low.args(["run", "--pid", &pid, "--web.listen-address", "127.0.0.1:1"]);
    refused_command(&mut low, ADDRESS, &["127.0.0.1:1", "CAP_NET_BIND_SERVICE"])?;
    Ok(())
}

/// Commands of `bpf(2)`: create a map, load a program, create a link, measure run times (`include/uapi/linux/bpf.h`).
const BPF_MAP_CREATE: u32 = 0;
const BPF_PROG_LOAD: u32 = 5;
const BPF_LINK_CREATE: u32 = 28;
const BPF_ENABLE_STATS: u32 = 32;

/// Makes a system call fail in this command, as on a kernel that lacks it. If `first_argument` is given, only calls
/// with it fail.
fn without(command: &mut Command, call: libc::c_long, first_argument: Option<u32>, errno: i32) -> Result<()> {
    let fails = libc::SECCOMP_RET_ERRNO | u32::try_from(errno)?;
    seccomp::on_call(command, u32::try_from(call)?, first_argument, fails)
}

/// As at the limit of a cgroup, which applies to root, too.
#[test]
fn no_thread_beside_the_first() -> Result<()> {
    let process = Process::kitex(&["server"])?;
    let sites = Sites::of(process.pid())?;
    let pid = process.pid().to_string();
    let mut events = agent()?;
    events.args(["events", "--pid", &pid]);
    for mut command in [run_command(&["--pid", &pid])?, events] {
        for call in [libc::SYS_clone, libc::SYS_clone3] {
            without(&mut command, call, None, libc::EAGAIN)?;
        }
        refused_command(&mut command, RUNNING, &["no thread can be started", "pids.max"])?;
        sites.check_clean()?;
    }
    Ok(())
}

/// A cgroup that limits a resource of its processes. It is removed when dropped, and must be empty by then.
struct Group(PathBuf);

impl Group {
    /// Creates a cgroup in which a controller can be limited.
    fn with(controller: &str) -> Result<Self> {
        // In version 1 the controller has its own hierarchy, in version 2 all share one.
        let all = Path::new("/sys/fs/cgroup");
        let own = all.join(controller);
        let parent = if own.is_dir() { own.as_path() } else { all };
        let group = parent.join(format!("monitor-tests-{controller}-{}", std::process::id()));
        fs::create_dir(&group).with_context(|| format!("no cgroup {}", group.display()))?;
        let group = Self(group);
        if parent == all && !group.0.join(format!("{controller}.max")).exists() {
            let control = parent.join("cgroup.subtree_control");
            let added = fs::write(&control, format!("+{controller}"));
            added.with_context(|| format!("no {controller} in {}", control.display()))?;
        }
        Ok(group)
    }

    /// Creates a cgroup with this many bytes of memory and no swap.
    fn with_memory(bytes: u64) -> Result<Self> {
        let group = Self::with("memory")?;
        let is_unified = group.0.join("memory.max").exists();
        let [limit, swap] = if is_unified {
            ["memory.max", "memory.swap.max"]
        } else {
            ["memory.limit_in_bytes", "memory.swappiness"]
        };
        if group.0.join(swap).exists() {
            group.set(swap, 0)?;
        }
        group.set(limit, bytes)?;
        Ok(group)
    }

    /// Sets a limit from now on. Existing threads stay.
    fn set(&self, file: &str, number: u64) -> Result<()> {
        let file = self.0.join(file);
        fs::write(&file, number.to_string()).with_context(|| format!("cannot write {}", file.display()))
    }

    /// A command that runs the agent in this cgroup from the start.
    fn agent(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.0.join("cgroup.procs"));
        command.arg(executable()?).args(args);
        Ok(command)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// At the limit on threads the agent refuses before it attaches anything. Once `events` has attached, it has all
/// threads that it can't do without.
#[test]
fn too_few_threads() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    let sites = Sites::of(client.pid())?;
    let pid = client.pid().to_string();
    let few = Group::with("pids")?;
    let allow = |threads| few.set("pids.max", threads);
    let run = ["run", "--web.listen-address", "127.0.0.1:0", "--pid", &pid];
    // One main thread, one for the log, one for peers, and one while it attaches. `events` has one more, for its lines.
    let events = ["events", "--pid", &pid];
    for (args, enough) in [(&run[..], 4), (&events[..], 5)] {
        for threads in 1..enough {
            allow(threads)?;
            let words = ["no thread can be started", "pids.max"];
            refused_command(&mut few.agent(args)?, RUNNING, &words)
                .with_context(|| format!("with {threads} threads"))?;
            sites.check_clean()?;
        }
    }
    allow(5)?;
    let events = Events::attach_command(&mut few.agent(&events)?)?;
    allow(1)?;
    client.command("call 20 Echo succeed")?;
    server.command("settle")?;
    let lines = events.terminate()?;
    ensure!(lines.len() == 20, "{} lines", lines.len());
    Ok(())
}

/// The memory that suffices for one target, according to `docs/permissions.md`.
const ENOUGH_MEMORY: u64 = 128 << 20;

/// With less memory than the agent and its maps need, it refuses or the kernel kills it. Calls go on either way.
#[test]
fn too_little_memory() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    let sites = Sites::of(client.pid())?;
    let pid = client.pid().to_string();
    let run = ["run", "--web.listen-address", "127.0.0.1:0", "--pid", &pid];
    let before = BpfObjects::now()?;
    for limit in [4 << 20, 8 << 20] {
        let group = Group::with_memory(limit)?;
        let ended = run_command_to_end(&mut group.agent(&run)?, PATIENCE)?;
        let is_refused = |code: i32| code != 0 && ended.stderr.contains("monitor-agent: ");
        ensure!(ended.code.is_none_or(is_refused), "with {limit} bytes: {ended:#?}");
        sites.check_clean()?;
        BpfObjects::wait_until_back(&before, PATIENCE)?;
        client.command("call 20 Echo succeed")?;
    }
    let group = Group::with_memory(ENOUGH_MEMORY)?;
    let agent = Agent::start_command(&mut group.agent(&run)?)?.wait_ready()?;
    client.command("call 20 Echo succeed")?;
    server.command("settle")?;
    assert_eq!(whole(agent.scrape_settled()?.sum("kitex_client_throughput", &[])), 20);
    agent.terminate()?;
    sites.check_clean()
}

/// A budget is accepted only if the overhead can be measured, which is checked before anything is attached.
#[test]
fn budgets_that_cannot_be_kept() -> Result<()> {
    let process = Process::kitex(&["server"])?;
    let sites = Sites::of(process.pid())?;
    let pid = process.pid().to_string();
    let args = ["--pid", &pid, "--overhead-budget", "1%"];
    for (call, first_argument, errno, code, action) in [
        (libc::SYS_bpf, Some(BPF_ENABLE_STATS), libc::EPERM, PERMISSION, "run time"),
        (libc::SYS_bpf, Some(BPF_ENABLE_STATS), libc::EINVAL, KERNEL, "run time"),
        (libc::SYS_perf_event_open, None, libc::EPERM, PERMISSION, "a hit of a probe"),
        (libc::SYS_perf_event_open, None, libc::ENOENT, KERNEL, "a hit of a probe"),
    ] {
        let mut command = run_command(&args)?;
        // With multi-uprobe links, the agent would not use perf events.
        command.args(["--links", "perf"]);
        without(&mut command, call, first_argument, errno)?;
        let words = ["--overhead-budget 1%", "can't be kept", action];
        let ended = refused_command(&mut command, code, &words)?;
        ensure!(!ended.stderr.contains("attached to"), "{ended:#?}");
        sites.check_clean()?;
    }
    let mut command = run_command(&args)?;
    command.args(["--metrics", "go,process"]);
    refused_command(&mut command, USAGE, &["--overhead-budget", "no", "go,process"])?;

    // Without a budget the agent runs, and logs what is missing.
    let mut command = run_command(&["--pid", &pid])?;
    without(&mut command, libc::SYS_bpf, Some(BPF_ENABLE_STATS), libc::EPERM)?;
    let agent = Agent::start_command(&mut command)?.wait_ready()?;
    agent.wait_for_log(PATIENCE, |line| line.contains("what the probes cost is not known").then_some(()))?;
    ensure!(!agent.scrape()?.families.contains_key("monitor_target_overhead_ratio"), "{}", agent.log());
    agent.terminate()?;
    Ok(())
}

/// How probes are attached if the kernel has no multi-uprobe links.
const PERF: &[&str] = &["--links", "perf"];

#[test]
fn kernels_that_cannot_do_it() -> Result<()> {
    let mut process = Process::kitex(&["server"])?;
    let sites = Sites::of(process.pid())?;
    let pid = process.pid().to_string();
    let cases = [
        // No bpf(2); no such map type, as before ring buffers; programs refused; no uprobes.
        (libc::SYS_bpf, None, libc::ENOSYS, KERNEL, "load"),
        (libc::SYS_bpf, Some(BPF_MAP_CREATE), libc::EINVAL, KERNEL, "load"),
        (libc::SYS_bpf, Some(BPF_PROG_LOAD), libc::EINVAL, KERNEL, "load"),
        (libc::SYS_perf_event_open, None, libc::ENOSYS, KERNEL, "attach a uprobe"),
        (libc::SYS_perf_event_open, None, libc::ENOENT, KERNEL, "attach a uprobe"),
        // Not enough memory for the maps.
        (libc::SYS_bpf, Some(BPF_MAP_CREATE), libc::ENOMEM, KERNEL, "load"),
        // The default filter of containers.
        (libc::SYS_bpf, None, libc::EPERM, PERMISSION, "load"),
        (libc::SYS_perf_event_open, None, libc::EPERM, PERMISSION, "attach a uprobe"),
    ];
    for (call, first_argument, errno, code, action) in cases {
        let words: &[&str] = match code {
            KERNEL if errno == libc::ENOMEM => &["no memory", action, "--max-in-flight", "--ring-bytes"],
            KERNEL => &["this kernel can't", action, "5.15"],
            _ => &["permission denied", action, "seccomp"],
        };
        // Perf events are used only if the kernel has nothing else.
        let ways: &[&[&str]] = if call == libc::SYS_bpf { &[&[], PERF] } else { &[PERF] };
        for way in ways {
            let mut command = run_command(&["--pid", &pid])?;
            command.args(*way);
            without(&mut command, call, first_argument, errno)?;
            refused_command(&mut command, code, words)
                .with_context(|| format!("{way:?}: call {call} {first_argument:?} fails with {errno}"))?;
            sites.check_clean()?;
        }
    }
    // Without links of any kind, a probe is attached to its perf event.
    let mut command = run_command(&["--pid", &pid])?;
    without(&mut command, libc::SYS_bpf, Some(BPF_LINK_CREATE), libc::EINVAL)?;
    let agent = Agent::start_command(&mut command)?.wait_ready()?;
    sites.check_probed()?;
    agent.terminate()?;
    sites.check_clean()?;
    // Only the filter causes these refusals: the same process can be watched without it, even if no memory may be
    // locked. That limits maps only before Linux 5.11.
    let mut command = run_command(&["--pid", &pid])?;
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: between fork and exec the closure makes one system call, on a value of its own.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const none) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let agent = Agent::start_command(&mut command)?.wait_ready()?;
    sites.check_probed()?;
    agent.terminate()?;
    ensure!(process.is_running()?);
    Ok(())
}
