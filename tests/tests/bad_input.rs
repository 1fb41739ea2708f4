//! What can't be watched is refused: with the exit code of its kind, in one sentence that names the process or file and
//! what to do, and with nothing left attached. The codes are those of the interface; scripts rely on them.

use std::{
    fs,
    net::TcpListener,
    os::unix::{
        fs::PermissionsExt as _,
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use monitor_tests::{
    agent::{Agent, Ended, executable, run_command_to_end},
    kernel::BpfObjects,
    process::Process,
    targets::{self, Flavour, Program},
    text::Sites,
};
use serde_json::Value;

const RUNNING: i32 = 1;
const USAGE: i32 = 2;
const NO_PROCESS: i32 = 3;
const PERMISSION: i32 = 4;
const UNREADABLE: i32 = 5;
const UNPROVABLE: i32 = 6;
const ADDRESS: i32 = 7;
const KERNEL: i32 = 8;

/// Nothing that is refused takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a command that is the agent and must be refused, and looks at how it says so.
fn refused_command(command: &mut Command, code: i32, words: &[&str]) -> Result<Ended> {
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

/// The one sentence that is not the log of what went well: `monitor-agent: …`, or `error: …` and, behind an empty line,
/// how to get help.
fn sentence(stderr: &str) -> Result<String> {
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

fn agent() -> Result<Command> {
    Ok(Command::new(executable()?))
}

fn run_command(args: &[&str]) -> Result<Command> {
    let mut command = agent()?;
    command.args(["run", "--web.listen-address", "127.0.0.1:0"]).args(args);
    Ok(command)
}

/// `inspect` refuses, as text and as JSON alike.
fn inspect_refused(args: &[&str], code: i32, words: &[&str]) -> Result<()> {
    let text = refused_command(agent()?.arg("inspect").args(args), code, words)?;
    let ended = refused_command(agent()?.args(["inspect", "--json"]).args(args), code, words)?;
    let report: Value =
        serde_json::from_str(&ended.stdout).with_context(|| format!("{args:?}: {ended:?}"))?;
    assert_eq!(report["attachable"], false, "{args:?}: {report}");
    let reasons = std::iter::once(&report)
        .chain(report["frameworks"].as_array().context("no frameworks")?)
        .filter_map(|part| part["reasons"].as_array())
        .flatten()
        .filter_map(Value::as_str);
    let text = sentence(&text.stderr)?;
    // The sentence says at least as much: it names the process or file too.
    ensure!(reasons.clone().count() == 1, "{args:?}: {report}");
    for reason in reasons {
        ensure!(text.contains(reason), "{args:?}: {reason:?} is not in {text:?}");
    }
    Ok(())
}

/// `run` and `inspect` both refuse a process.
fn pid_refused(pid: u32, code: i32, words: &[&str]) -> Result<()> {
    let pid = pid.to_string();
    let words = [words, &[&pid[..]]].concat();
    refused_command(&mut run_command(&["--pid", &pid])?, code, &words)?;
    inspect_refused(&["--pid", &pid], code, &words)
}

fn file_refused(path: &Path, code: i32, words: &[&str]) -> Result<()> {
    let path = path.to_str().context("no UTF-8")?;
    inspect_refused(&["--exe", path], code, &[words, &[path]].concat())
}

/// A directory of its own for a test's files, readable for every user; it goes with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("monitor-bad-input-{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self(path))
    }

    fn file(&self, name: &str, contents: &[u8]) -> Result<PathBuf> {
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

/// A child that is killed when it is no longer needed.
struct Other(Child);

impl Other {
    fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn server(executable: &Path) -> Result<Process> {
    Process::start_command(Command::new(executable).arg("server"))
}

#[test]
fn pids_that_are_no_pids() -> Result<()> {
    for pid in ["0", "-1", "-", "", "shop", "1.5", "0x10", "99999999999", "1 2"] {
        let words = ["--pid", pid];
        refused_command(&mut run_command(&["--pid", pid])?, USAGE, &words)?;
        refused_command(agent()?.args(["inspect", "--pid", pid]), USAGE, &words)?;
    }
    Ok(())
}

#[test]
fn pids_that_nobody_has() -> Result<()> {
    // The kernel gives no pid from 2^22 on (PID_MAX_LIMIT in include/linux/threads.h).
    for pid in [1 << 22, u32::MAX] {
        pid_refused(pid, NO_PROCESS, &["no process"])?;
    }
    let mut gone = Other::start(&mut Command::new("true"))?;
    gone.0.wait()?;
    pid_refused(gone.pid(), NO_PROCESS, &["no process"])
}

#[test]
fn a_process_that_nobody_has_waited_for() -> Result<()> {
    let zombie = Other::start(&mut Command::new("true"))?;
    let begin = Instant::now();
    while process_state(zombie.pid())? != "Z" {
        ensure!(begin.elapsed() < PATIENCE, "`true` does not end");
        thread::sleep(Duration::from_millis(1));
    }
    pid_refused(zombie.pid(), NO_PROCESS, &["has ended"])
}

/// The state of a process, as `/proc/PID/stat` has it behind the name in parentheses.
fn process_state(pid: u32) -> Result<String> {
    Ok(stat_words(pid)?.swap_remove(0))
}

fn stat_words(pid: u32) -> Result<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("no name")?;
    Ok(rest.split(' ').map(str::to_owned).collect())
}

#[test]
fn a_thread_names_its_process() -> Result<()> {
    let process = Process::kitex(&["server"])?;
    let mut threads = fs::read_dir(format!("/proc/{}/task", process.pid()))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().parse()?))
        .collect::<Result<Vec<u32>>>()?;
    threads.retain(|thread| *thread != process.pid());
    let thread = threads.pop().context("a Go program with one thread")?;
    pid_refused(thread, NO_PROCESS, &["thread", &process.pid().to_string()])
}

#[test]
fn a_kernel_thread() -> Result<()> {
    const PF_KTHREAD: u32 = 0x0020_0000;
    let is_kernel_thread = |pid: &u32| {
        // The flags are field 9, the state field 3.
        let flags = stat_words(*pid).ok().and_then(|words| words.get(6)?.parse::<u32>().ok());
        flags.is_some_and(|flags| flags & PF_KTHREAD != 0)
    };
    let pids = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let Some(pid) = pids.into_iter().find(is_kernel_thread) else {
        eprintln!("left out: no kernel thread is in sight (a container with pids of its own)");
        return Ok(());
    };
    pid_refused(pid, UNPROVABLE, &["kernel thread"])
}

#[test]
fn programs_without_anything_to_watch() -> Result<()> {
    let sleep = Other::start(Command::new("sleep").arg("1000"))?;
    pid_refused(sleep.pid(), UNPROVABLE, &["not a Go program", "sleep"])?;
    file_refused(Path::new("/bin/sh"), UNPROVABLE, &["not a Go program"])?;
    let plain = Process::start(Program::Plain, Flavour::Default, &[])?;
    pid_refused(plain.pid(), UNPROVABLE, &["no RPC framework", "Kitex", "plain-go"])?;
    file_refused(&Program::Plain.build(Flavour::Default)?, UNPROVABLE, &["no RPC framework", "Kitex"])
}

#[test]
fn files_that_are_no_programs() -> Result<()> {
    let scratch = Scratch::new("files")?;
    let kind = "ELF";
    file_refused(&scratch.file("script", b"#!/bin/sh\nexec true\n")?, UNREADABLE, &[kind, "give"])?;
    file_refused(&scratch.file("text.py", b"print('hello, world')\n")?, UNREADABLE, &[kind, "give"])?;
    file_refused(&scratch.file("empty", b"")?, UNREADABLE, &["is empty", "give"])?;
    file_refused(&scratch.0, UNREADABLE, &["directory", "give"])?;
    file_refused(&scratch.0.join("missing"), UNREADABLE, &["does not exist", "give"])?;
    file_refused(&scratch.0.join("empty/missing"), UNREADABLE, &["can't be read"])?;
    for device in ["/dev/zero", "/dev/null"] {
        file_refused(Path::new(device), UNREADABLE, &["not a regular file", "give"])?;
    }
    // Nobody ever writes to it: opening it would wait for ever.
    let pipe = scratch.0.join("pipe");
    ensure!(Command::new("mkfifo").arg(&pipe).status()?.success(), "mkfifo fails");
    file_refused(&pipe, UNREADABLE, &["not a regular file", "give"])
}

#[test]
fn programs_for_other_machines() -> Result<()> {
    let scratch = Scratch::new("machines")?;
    let source = scratch.file("main.go", b"package main\n\nfunc main() { println() }\n")?;
    for (machine, words) in
        [("arm64", "is a program for arm64"), ("386", "32-bit program"), ("s390x", "big-endian")]
    {
        let built = scratch.0.join(machine);
        let mut go = Command::new(targets::go()?);
        go.args(["build", "-o"]).arg(&built).arg(&source).current_dir(&scratch.0);
        go.envs([("GOARCH", machine), ("GOOS", "linux"), ("CGO_ENABLED", "0"), ("GOTOOLCHAIN", "local")]);
        ensure!(go.status()?.success(), "{go:?} fails");
        file_refused(&built, UNREADABLE, &[words, "x86-64"])?;
    }
    // The ELF header's type: 1 for what a linker has not seen yet, 4 for a core dump.
    let program = fs::read(Program::Plain.build(Flavour::Default)?)?;
    for (kind, words) in [(1, "object file"), (4, "core dump")] {
        let mut other = program.clone();
        other[16] = kind;
        file_refused(&scratch.file("other", &other)?, UNREADABLE, &[words, "give"])?;
    }
    Ok(())
}

#[test]
fn programs_that_are_cut_off() -> Result<()> {
    let scratch = Scratch::new("cut")?;
    let whole = fs::read(Program::Kitex.build(Flavour::Default)?)?;
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| whole[at + i]));
    let section_headers = usize::try_from(word(0x28))?;
    file_refused(&scratch.file("cut", &whole[..1])?, UNREADABLE, &["not an ELF file"])?;
    for length in [4, 16, 63, 64, 200, whole.len() / 3, section_headers + 100, whole.len() - 1] {
        let cut = scratch.file("cut", &whole[..length])?;
        file_refused(&cut, UNREADABLE, &["truncated", "again"]).with_context(|| format!("{length} bytes"))?;
    }
    // The kernel runs a program whose last bytes, which are never loaded, are gone.
    let cut = scratch.file("kitex-target", &whole[..whole.len() - 1])?;
    let process = server(&cut)?;
    pid_refused(process.pid(), UNREADABLE, &["truncated", "kitex-target"])
}

/// A copy of a program in which some bytes, found as often as said, are other ones.
fn changed(program: &[u8], from: &[u8], to: &[u8], times: usize) -> Result<Vec<u8>> {
    assert_eq!(from.len(), to.len());
    let mut program = program.to_vec();
    let mut found = 0;
    let mut at = 0;
    while let Some(next) = program[at..].windows(from.len()).position(|window| window == from) {
        at += next;
        program[at..at + to.len()].copy_from_slice(to);
        found += 1;
    }
    ensure!(found == times, "{:?} is in the program {found} times", String::from_utf8_lossy(from));
    Ok(program)
}

#[test]
fn what_cannot_be_proven() -> Result<()> {
    let scratch = Scratch::new("unproven")?;
    let program = fs::read(Program::Kitex.build(Flavour::Stripped)?)?;
    // Names in the function table end with a zero, those of fields start with their length.
    let cases: [(&[u8], &[u8], &[&str]); 4] = [
        (
            b"pkg/rpcinfo.(*TraceController).DoFinish\0",
            b"pkg/rpcinfo.(*TraceController).DoFiniXX\0",
            &["kitex", "DoFinish", "is not in the executable"],
        ),
        (
            b"pkg/rpcinfo.(*TraceController).DoStart\0",
            b"pkg/rpcinfo.(*TraceController).DoStaXX\0",
            &["kitex", "DoStart", "is not in the executable"],
        ),
        (b"\x0bserviceName", b"\x0bserviceXame", &["kitex", "no field serviceName", "can't be proven"]),
        (b"\x0finteractionMode", b"\x0finteractionXode", &["kitex", "no field interactionMode"]),
    ];
    for (from, to, words) in cases {
        let path = scratch.file("kitex-changed", &changed(&program, from, to, 1)?)?;
        file_refused(&path, UNPROVABLE, words)?;
        // It runs like the original: only the agent goes by these names.
        let mut process = server(&path)?;
        pid_refused(process.pid(), UNPROVABLE, &[words, &["kitex-changed"]].concat())?;
        ensure!(process.is_running()?);
        process.quit()?;
    }
    // The header of the function table: magic, two zeros, instruction quantum, pointer size.
    let table = changed(&program, b"\xf1\xff\xff\xff\0\0\x01\x08", b"\xf1\xff\xff\xfe\0\0\x01\x08", 1)?;
    file_refused(&scratch.file("no-table", &table)?, UNPROVABLE, &["function table", "obfuscated"])
}

#[test]
fn one_bad_target_and_the_good_ones_stay_as_they_were() -> Result<()> {
    let mut good = Process::kitex(&["server"])?;
    let plain = Process::start(Program::Plain, Flavour::Default, &[])?;
    let sites = Sites::of(good.pid())?;
    let [good_pid, plain_pid] = [good.pid(), plain.pid()].map(|pid| pid.to_string());
    for (bad, code) in [(&plain_pid[..], UNPROVABLE), ("4194304", NO_PROCESS)] {
        for order in [[&good_pid, bad], [bad, &good_pid]] {
            let args = ["--pid", order[0], "--pid", order[1]];
            refused_command(&mut run_command(&args)?, code, &[bad])?;
            sites.check_clean()?;
        }
    }
    for again in [&good_pid, &format!("0{good_pid}")] {
        let args = ["--pid", &good_pid, "--pid", again];
        refused_command(&mut run_command(&args)?, USAGE, &[&good_pid, "twice"])?;
    }
    ensure!(good.is_running()?);
    Ok(())
}

#[test]
fn a_target_that_ends_while_it_is_being_attached() -> Result<()> {
    let before = BpfObjects::now()?;
    let mut refused = 0;
    for step in 0..12 {
        let mut process = Process::kitex(&["server"])?;
        let pid = process.pid().to_string();
        let mut command = run_command(&["--pid", &pid, "--linger", "0"])?;
        let agent = thread::spawn(move || run_command_to_end(&mut command, PATIENCE));
        thread::sleep(Duration::from_millis(step * 15));
        process.signal(libc::SIGKILL)?;
        let status = process.quit()?;
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        let ended = agent.join().expect("the thread runs to its end")?;
        match ended.code {
            // It was attached already.
            Some(0) => ensure!(ended.stderr.contains("has ended"), "{ended:#?}"),
            Some(NO_PROCESS) => {
                let sentence = sentence(&ended.stderr).with_context(|| format!("{ended:#?}"))?;
                ensure!(sentence.contains(&pid), "{sentence}");
                refused += 1;
            }
            _ => bail!("{step}: {ended:#?}"),
        }
    }
    ensure!(refused > 0, "every target was attached before it was killed");
    BpfObjects::wait_until_back(&before, Duration::from_secs(5))
}

#[test]
fn values_that_mean_nothing() -> Result<()> {
    let process = Process::kitex(&["server"])?;
    let cases: &[(&str, &[&str])] = &[
        (
            "--latency-buckets",
            &["coarse", "", "5,4", "5,5", "0", "-1", "1,-1", "nan", "1,inf", "1,,2", "5 10"],
        ),
        ("--metrics", &["", ",", "service", "go,service", "go,go", "Go", "go process"]),
        ("--kitex.labels", &["", ",", "service", "type,service", "type,type", "Type"]),
        ("--ring-bytes", &["", "lots", "0", "4096", "65537", "-65536", "4294967296", "2147483648"]),
        ("--max-label-sets", &["", "0", "many", "-5", "1048577"]),
        ("--max-in-flight", &["", "0", "many", "-5", "16777217"]),
        (
            "--overhead-budget",
            &[
                "", "%", "1", "much", "1 %", "nan%", "inf%", "0%", "0.0%", "-1%", "-0%", "100.1%", "1e9%",
                "1%%",
            ],
        ),
        ("--linger", &["", "-1", "long", "4294967296"]),
        ("--log-level", &["", "loud"]),
        ("--log-format", &["", "xml"]),
        (
            "--web.listen-address",
            &[
                "",
                "9790",
                "localhost",
                "127.0.0.1:",
                ":http",
                ":65536",
                "::1:9790",
                "[::1:9790",
                "http://localhost:1",
            ],
        ),
        ("--metrics.path", &["/metrics"]),
    ];
    let pid = process.pid().to_string();
    for (flag, values) in cases {
        for value in *values {
            let mut command = agent()?;
            command.args(["run", "--pid", &pid, flag, value]);
            refused_command(&mut command, USAGE, &[flag])?;
        }
    }
    // The sentence repeats the whole list.
    let many = (1..=513).map(|bound: u32| bound.to_string()).collect::<Vec<_>>().join(",");
    let ended =
        run_command_to_end(&mut run_command(&["--pid", &pid, "--latency-buckets", &many])?, PATIENCE)?;
    ensure!(ended.code == Some(USAGE) && ended.stderr.contains("at most 512"), "{ended:?}");
    Ok(())
}

#[test]
fn commands_that_are_incomplete_or_unknown() -> Result<()> {
    refused_command(agent()?.arg("run"), USAGE, &["--pid"])?;
    refused_command(agent()?.args(["run", "--pid"]), USAGE, &["--pid"])?;
    refused_command(agent()?.arg("inspect"), USAGE, &["--pid", "--exe"])?;
    refused_command(
        agent()?.args(["inspect", "--pid", "1", "--exe", "/bin/sh"]),
        USAGE,
        &["--pid", "--exe"],
    )?;
    refused_command(agent()?.arg("attach"), USAGE, &["attach"])?;
    refused_command(agent()?.args(["run", "--pid", "1", "--verbose"]), USAGE, &["--verbose"])?;
    let none = run_command_to_end(&mut agent()?, PATIENCE)?;
    assert_eq!(none.code, Some(USAGE));
    ensure!(none.stdout.is_empty() && none.stderr.contains("Usage: monitor-agent <COMMAND>"), "{none:?}");
    Ok(())
}

#[test]
fn addresses_that_cannot_be_listened_on() -> Result<()> {
    let process = Process::kitex(&["server"])?;
    let sites = Sites::of(process.pid())?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?.to_string();
    let cases: [(&str, &[&str]); 4] = [
        (&taken, &["in use", "port 0"]),
        // A block that is reserved for documentation (RFC 5737), and a name that never exists (RFC 6761).
        ("192.0.2.1:0", &["no interface of this machine"]),
        ("no-such-host.invalid:0", &["cannot be resolved"]),
        ("256.0.0.1:0", &["cannot be resolved"]),
    ];
    // The port comes first: it is what is wrong, even where the process is wrong too.
    for pid in [&process.pid().to_string(), "4194304"] {
        for (address, words) in cases {
            let mut command = agent()?;
            command.args(["run", "--pid", pid, "--web.listen-address", address]);
            refused_command(&mut command, ADDRESS, &[words, &[address]].concat())?;
        }
    }
    sites.check_clean()
}

/// Lets a command have so few descriptors, and so many if it asks for more.
fn with_descriptors(command: &mut Command, few: u64, most: u64) {
    let limit = libc::rlimit { rlim_cur: few, rlim_max: most };
    // SAFETY: reads the limit only.
    let set = move || unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    let install = move || if set() == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
    // SAFETY: between fork and exec the closure makes one system call and nothing else.
    unsafe { command.pre_exec(install) };
}

/// However early descriptors run out: it is told as that, and not as the end of the target.
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

/// Who asks for something expects to see it.
#[test]
fn flags_that_can_have_no_effect() -> Result<()> {
    let process = Process::kitex(&["server"])?;
    let sites = Sites::of(process.pid())?;
    let pid = process.pid().to_string();
    let cases: &[(&str, &[&str], &str)] = &[
        ("grpc,go", &["--kitex.bytes"], "add kitex"),
        ("grpc,go", &["--kitex.stream-messages"], "add kitex"),
        ("kitex", &["--grpc.messages"], "add grpc"),
        ("kitex,process", &["--go.metrics", "all"], "add go"),
        ("kitex", &["--otel.go", "both"], "add otel"),
        ("kitex", &["--latency.every", "5"], "--latency economy"),
        ("go", &["--latency", "economy"], "add kitex"),
        // There are calls and operations, but none that can do without a probe at its start.
        ("grpc", &["--latency", "economy"], "add kitex"),
        ("go", &["--latency", "economy", "--spec", "net-http"], "add kitex"),
        ("grpc,go", &["--overhead-budget", "1%"], "add kitex"),
        ("go", &["--overhead-budget", "1%", "--spec", "net-http"], "add kitex"),
        ("go", &["--capture.slow", "3"], "add kitex"),
        ("go", &["--capture.slow", "3", "--spec", "net-http"], "add kitex"),
        ("go", &["--events.socket", "/nowhere"], "add kitex"),
    ];
    for (metrics, flags, words) in cases {
        let mut command = run_command(&["--pid", &pid, "--metrics", metrics])?;
        command.args(*flags);
        refused_command(&mut command, USAGE, &[flags[0], words])?;
    }
    let path = format!("/{}", "long".repeat(40));
    let mut command = run_command(&["--pid", &pid, "--events.socket", &path])?;
    refused_command(&mut command, ADDRESS, &[&path, "too long", "at most 107 bytes"])?;
    sites.check_clean()
}

/// An ordinary user's id, that of `nobody`.
const NOBODY: &str = "65534";

/// Another program run by an ordinary user without any capability.
fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
    command.args(["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]).arg(program);
    command
}

#[test]
fn an_ordinary_user_is_told_which_capability_is_missing() -> Result<()> {
    // Build directories are often out of other users' reach.
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

    // Their own process they can read and inspect, but not attach to.
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

/// `bpf(2)`: make a map, load a program, link one, measure run times (`include/uapi/linux/bpf.h`).
const BPF_MAP_CREATE: u32 = 0;
const BPF_PROG_LOAD: u32 = 5;
const BPF_LINK_CREATE: u32 = 28;
const BPF_ENABLE_STATS: u32 = 32;

/// Makes a system call fail in this command, as on a kernel that does not have it; only if its first argument is this
/// one, where there is one.
fn without(command: &mut Command, call: libc::c_long, first_argument: Option<u32>, errno: i32) -> Result<()> {
    // Offsets in struct seccomp_data (include/uapi/linux/seccomp.h) on a little-endian machine.
    const CALL: u32 = 0;
    const FIRST_ARGUMENT: u32 = 16;
    let step = |code: u32, jt: u8, jf: u8, k: u32| -> Result<libc::sock_filter> {
        Ok(libc::sock_filter { code: u16::try_from(code)?, jt, jf, k })
    };
    let load = |at| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at);
    let unless_equal = |k, skip| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, skip, k);
    let end = |k| step(libc::BPF_RET | libc::BPF_K, 0, 0, k);
    let call = u32::try_from(call)?;
    let fail = end(libc::SECCOMP_RET_ERRNO | u32::try_from(errno)?)?;
    let allow = end(libc::SECCOMP_RET_ALLOW)?;
    let mut filter = match first_argument {
        None => vec![load(CALL)?, unless_equal(call, 1)?, fail, allow],
        Some(argument) => vec![
            load(CALL)?,
            unless_equal(call, 3)?,
            load(FIRST_ARGUMENT)?,
            unless_equal(argument, 1)?,
            fail,
            allow,
        ],
    };
    let length = u16::try_from(filter.len())?;
    let install = move || {
        let program = libc::sock_fprog { len: length, filter: filter.as_mut_ptr() };
        // SAFETY: both calls take numbers and a pointer to `program`, which outlives them, as does the filter it points to.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
        };
        if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec the closure makes two system calls and nothing else.
    unsafe { command.pre_exec(install) };
    Ok(())
}

/// A budget is promised only where what it is of can be known, which is found out before anything is attached.
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
        // Where the kernel has multi-uprobe links, perf events are not asked for.
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

    // Without a budget all else goes on, and the log says what is missing.
    let mut command = run_command(&["--pid", &pid])?;
    without(&mut command, libc::SYS_bpf, Some(BPF_ENABLE_STATS), libc::EPERM)?;
    let agent = Agent::start_command(&mut command)?.wait_ready()?;
    agent.wait_for_log(PATIENCE, |line| line.contains("what the probes cost is not known").then_some(()))?;
    ensure!(!agent.scrape()?.families.contains_key("monitor_target_overhead_ratio"), "{}", agent.log());
    agent.terminate()?;
    Ok(())
}

/// What probes hang on where the kernel has no multi-uprobe links.
const PERF: &[&str] = &["--links", "perf"];

#[test]
fn kernels_that_cannot_do_it() -> Result<()> {
    let mut process = Process::kitex(&["server"])?;
    let sites = Sites::of(process.pid())?;
    let pid = process.pid().to_string();
    let cases = [
        // No bpf(2); no map of this type, as before ring buffers; programs refused; no uprobes.
        (libc::SYS_bpf, None, libc::ENOSYS, KERNEL, "load"),
        (libc::SYS_bpf, Some(BPF_MAP_CREATE), libc::EINVAL, KERNEL, "load"),
        (libc::SYS_bpf, Some(BPF_PROG_LOAD), libc::EINVAL, KERNEL, "load"),
        (libc::SYS_perf_event_open, None, libc::ENOSYS, KERNEL, "attach a uprobe"),
        (libc::SYS_perf_event_open, None, libc::ENOENT, KERNEL, "attach a uprobe"),
        // No room for the maps.
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
        // Perf events are asked for only where nothing else can be had.
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
    // No links of any kind: a probe then hangs on its perf event.
    let mut command = run_command(&["--pid", &pid])?;
    without(&mut command, libc::SYS_bpf, Some(BPF_LINK_CREATE), libc::EINVAL)?;
    let agent = Agent::start_command(&mut command)?.wait_ready()?;
    sites.check_probed()?;
    agent.terminate()?;
    sites.check_clean()?;
    // All that is nothing but the filter: the same process is fine without it, and with no memory that may be locked,
    // which limits maps before Linux 5.11 only.
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
