//! Processes and files that can't be watched are refused, as `monitor_tests::refusals` checks.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use monitor_tests::{
    agent::run_command_to_end,
    kernel::BpfObjects,
    process::Process,
    refusals::{
        NO_PROCESS, PATIENCE, Scratch, UNPROVABLE, UNREADABLE, USAGE, agent, refused_command, run_command,
        sentence, server,
    },
    targets::{self, Flavour, Program},
    text::Sites,
};
use serde_json::Value;

/// Fails unless `inspect` refuses, both as text and as JSON. Returns the JSON report.
fn inspect_refused(args: &[&str], code: i32, words: &[&str]) -> Result<Value> {
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
    // The sentence has at least as much as the report: it also names the process or file.
    ensure!(reasons.clone().count() == 1, "{args:?}: {report}");
    for reason in reasons {
        ensure!(text.contains(reason), "{args:?}: {reason:?} is not in {text:?}");
    }
    Ok(report)
}

/// Fails unless both `run` and `inspect` refuse a process.
fn pid_refused(pid: u32, code: i32, words: &[&str]) -> Result<()> {
    let text = pid.to_string();
    let words = [words, &[&text[..]]].concat();
    refused_command(&mut run_command(&["--pid", &text])?, code, &words)?;
    let report = inspect_refused(&["--pid", &text], code, &words)?;
    assert_eq!(report["pid"], pid, "{report}");
    Ok(())
}

fn file_refused(path: &Path, code: i32, words: &[&str]) -> Result<()> {
    let path = path.to_str().context("no UTF-8")?;
    inspect_refused(&["--exe", path], code, &[words, &[path]].concat())?;
    Ok(())
}

/// A child process that is killed when dropped.
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
    // The kernel's pids are below 2^22 (PID_MAX_LIMIT in include/linux/threads.h).
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

/// Returns the state of a process, which follows the name in parentheses in `/proc/PID/stat`.
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
        // The flags are field 9 of `stat`, the state is field 3.
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

/// Whatever part can't be read, the report has the rest.
#[test]
fn a_report_of_what_is_refused_has_what_is_known() -> Result<()> {
    let nobody = inspect_refused(&["--pid", "4194304"], NO_PROCESS, &["no process"])?;
    assert_eq!(nobody["pid"], 4_194_304, "{nobody}");
    ensure!(nobody["exe"].is_null() && nobody.get("kernel").is_none(), "{nobody}");

    let sleep = Other::start(Command::new("sleep").arg("1000"))?;
    let other = inspect_refused(&["--pid", &sleep.pid().to_string()], UNPROVABLE, &["not a Go program"])?;
    let exe = fs::read_link(format!("/proc/{}/exe", sleep.pid()))?;
    assert_eq!(other["exe"].as_str(), exe.to_str(), "{other}");
    assert_eq!(other["pid"], sleep.pid(), "{other}");
    ensure!(other["kernel"]["release"].is_string() && other["go_version"].is_null(), "{other}");

    let scratch = Scratch::new("reports")?;
    let script = scratch.file("script", b"#!/bin/sh\nexec true\n")?;
    let script = script.to_str().context("no UTF-8")?;
    let report = inspect_refused(&["--exe", script], UNREADABLE, &["ELF"])?;
    assert_eq!(report["exe"], script, "{report}");
    ensure!(report["build_id"].is_null() && report["go_version"].is_null(), "{report}");

    // A Go program from which everything but its functions can be read.
    let whole = Program::Kitex.build(Flavour::Stripped)?;
    let ended = run_command_to_end(agent()?.args(["inspect", "--json", "--exe"]).arg(&whole), PATIENCE)?;
    let known: Value = serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:#?}"))?;
    let damaged = scratch.file("no-table", &without_function_table(&fs::read(&whole)?)?)?;
    let damaged = damaged.to_str().context("no UTF-8")?;
    let report = inspect_refused(&["--exe", damaged], UNPROVABLE, &["function table"])?;
    for field in ["build_id", "go_version"] {
        ensure!(report[field].is_string() && report[field] == known[field], "{field}: {report} of {known}");
    }
    Ok(())
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
    // No process ever writes to the pipe, so opening it would block forever.
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
    // The type in the ELF header: 1 is an object file, 4 a core dump.
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
    // The kernel also runs a program whose last bytes, which are never loaded, are missing.
    let cut = scratch.file("kitex-target", &whole[..whole.len() - 1])?;
    let process = server(&cut)?;
    pid_refused(process.pid(), UNREADABLE, &["truncated", "kitex-target"])
}

/// Returns a copy of a program in which `from` is replaced by `to`. It must occur `times` times.
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

/// Returns a copy of a program with an invalid header of its function table. The header has a magic number, two zeros,
/// the instruction quantum and the pointer size.
fn without_function_table(program: &[u8]) -> Result<Vec<u8>> {
    changed(program, b"\xf1\xff\xff\xff\0\0\x01\x08", b"\xf1\xff\xff\xfe\0\0\x01\x08", 1)
}

#[test]
fn what_cannot_be_proven() -> Result<()> {
    let scratch = Scratch::new("unproven")?;
    let program = fs::read(Program::Kitex.build(Flavour::Stripped)?)?;
    // Names in the function table end with a zero byte, names of fields begin with their length.
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
        // The program runs like the original: only the agent uses these names.
        let mut process = server(&path)?;
        pid_refused(process.pid(), UNPROVABLE, &[words, &["kitex-changed"]].concat())?;
        ensure!(process.is_running()?);
        process.quit()?;
    }
    let table = without_function_table(&program)?;
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
            // The agent had already attached.
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
