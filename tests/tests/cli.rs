//! The command line: its help texts and versions, and what goes to stdout, to the log, and nowhere.

use std::{
    fmt::Write as _,
    fs,
    io::{self, BufRead, BufReader, PipeWriter, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::{Agent, Ended, executable, run_command_to_end},
    events::Events,
    http,
    process::{Process, signal_child, wait},
    scrape::{Scrape, whole},
    targets::{Flavour, Program},
};
use serde_json::Value;

use crate::golden;

const PATIENCE: Duration = Duration::from_secs(20);
/// How long the agent may take to end after SIGTERM.
const END_WITHIN: Duration = Duration::from_secs(2);

fn run_to_end(args: &[&str]) -> Result<Ended> {
    // The width of help texts depends on COLUMNS.
    run_command_to_end(Command::new(executable()?).args(args).env_remove("COLUMNS"), PATIENCE)
}

#[test]
fn version() -> Result<()> {
    for flag in ["--version", "-V"] {
        let ended = run_to_end(&[flag])?;
        assert_eq!(ended.stdout, concat!("monitor-agent ", env!("CARGO_PKG_VERSION")));
        assert_eq!((ended.code, &*ended.stderr), (Some(0), ""));
    }
    Ok(())
}

#[test]
fn help_is_as_it_was() -> Result<()> {
    let mut text = String::new();
    for args in [
        &["--help"][..],
        &["run", "--help"],
        &["events", "--help"],
        &["inspect", "--help"],
        &["spec", "check", "--help"],
    ] {
        let ended = run_to_end(args)?;
        assert_eq!((ended.code, &*ended.stderr), (Some(0), ""));
        writeln!(text, "$ monitor-agent {}", args.join(" "))?;
        for line in ended.stdout.lines() {
            // Lines between paragraphs are indented, and editors strip trailing spaces.
            writeln!(text, "{}", line.trim_end())?;
        }
        text.push('\n');
    }
    golden::check("help.txt", &text)
}

/// Attaches the agent to a server, makes two calls, scrapes the agent, and ends the server. The agent then ends by
/// itself.
fn whole_life(args: &[&str]) -> Result<Ended> {
    let mut server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let pid = server.pid().to_string();
    let mut command = Command::new(executable()?);
    command.args(["run", "--pid", &pid, "--linger", "0", "--web.listen-address", &address]).args(args);
    let agent = std::thread::spawn(move || run_command_to_end(&mut command, PATIENCE));
    while !http::get(&address, "/readyz").is_ok_and(|answer| answer.status == 200) {
        ensure!(!agent.is_finished(), "the agent has ended: {:?}", agent.join());
        std::thread::sleep(Duration::from_millis(10));
    }
    client.command("call 2 Echo succeed")?;
    send_nonsense(&address)?;
    http::get(&address, "/metrics")?.ok_body()?;
    drop(client);
    server.quit()?;
    let ended = agent.join().expect("the thread runs to its end")?;
    ensure!(ended.code == Some(0), "{ended:#?}");
    Ok(ended)
}

/// Sends something that is not a request.
fn send_nonsense(address: &str) -> Result<()> {
    let mut connection = TcpStream::connect(address)?;
    connection.write_all(b"\x16\x03\x01 no HTTP\r\n\r\n")?;
    connection.set_read_timeout(Some(PATIENCE))?;
    // The agent may answer and close, or reset the connection.
    let _ = connection.read_to_end(&mut Vec::new());
    Ok(())
}

#[test]
fn stdout_is_for_data_and_the_log_is_for_people() -> Result<()> {
    let ended = whole_life(&[])?;
    assert_eq!(ended.stdout, "");
    for line in ended.stderr.lines() {
        let (time, rest) = line.split_once(' ').with_context(|| format!("{line:?}"))?;
        ensure!(time.len() == "2026-01-02T03:04:05.678901Z".len() && time.ends_with('Z'), "{line:?}");
        ensure!(rest.starts_with(" INFO ") || rest.starts_with(" WARN "), "{line:?}");
        // Colours are only for terminals.
        ensure!(!line.contains('\x1b'), "{line:?}");
    }
    for said in
        ["INFO listening on http://127.0.0.1:", "INFO attached to pid ", "has ended", "2 calls counted"]
    {
        ensure!(ended.stderr.contains(said), "`{said}` is not in the log:\n{}", ended.stderr);
    }
    Ok(())
}

/// Parses a log in JSON: each line is an object with a time, a level and a message. Returns levels and messages.
fn json_lines(log: &str) -> Result<Vec<(String, String)>> {
    let lines = log.lines().map(|line| {
        let object: Value = serde_json::from_str(line).with_context(|| format!("{line:?}"))?;
        ensure!(object["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
        let level = object["level"].as_str().with_context(|| format!("no level: {line}"))?;
        let message = object["fields"]["message"].as_str().with_context(|| format!("no message: {line}"))?;
        Ok((level.to_owned(), message.to_owned()))
    });
    lines.collect()
}

#[test]
fn a_log_in_json_is_all_json() -> Result<()> {
    let lines = json_lines(&whole_life(&["--log-format", "json"])?.stderr)?;
    let said = |text: &str| lines.iter().any(|(level, message)| level == "INFO" && message.contains(text));
    ensure!(said("listening on http://") && said("attached to pid ") && said("calls counted"), "{lines:?}");

    // The reason to end is JSON, too.
    let args = ["run", "--web.listen-address", "127.0.0.1:0", "--log-format", "json", "--pid", "4194304"];
    let ended = run_to_end(&args)?;
    let lines = json_lines(&ended.stderr)?;
    let (level, message) = lines.last().context("no line")?;
    ensure!(level == "ERROR" && message.contains("no process has pid 4194304"), "{lines:?}");
    assert_eq!((ended.code, &*ended.stdout), (Some(3), ""));

    // So is the line with which `events` reports that it has attached, at any log level.
    let server = Process::kitex(&["server"])?;
    let events = Events::attach(&[server.pid()], &["--log-format", "json", "--log-level", "error"])?;
    assert_eq!(json_lines(&events.said())?, [("INFO".to_owned(), "attached".to_owned())]);
    events.terminate()?;
    Ok(())
}

#[test]
fn how_much_is_logged() -> Result<()> {
    assert_eq!(whole_life(&["--log-level", "error"])?.stderr, "");
    let warnings = whole_life(&["--log-level", "warn"])?.stderr;
    ensure!(
        warnings.contains("has ended") && warnings.lines().all(|line| line.contains(" WARN ")),
        "{warnings}"
    );
    let nonsense = "connection ended";
    ensure!(!whole_life(&["--log-level", "info"])?.stderr.contains(nonsense));
    let debug = whole_life(&["--log-level", "debug"])?.stderr;
    ensure!(debug.lines().any(|line| line.contains("DEBUG") && line.contains(nonsense)), "{debug}");
    Ok(())
}

#[test]
fn the_programs_in_the_kernel_say_why_they_leave_a_call_out() -> Result<()> {
    // A server whose calls have a type that no framework has: a copy of the target in which the type has another name.
    let name = b"\x16*rpcinfo.inlineRPCInfo";
    let mut program = fs::read(Program::Kitex.build(Flavour::Default)?)?;
    let at = program.windows(name.len()).position(|window| window == name).context("no such type")?;
    program[at + name.len() - 1] = b'X';
    let path = std::env::temp_dir().join(format!("monitor-cli-{}", std::process::id()));
    fs::write(&path, &program)?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let server = Process::start_command(Command::new(&path).arg("server"));
    fs::remove_file(&path)?;
    let server = server?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    for (level, told) in [("debug", true), ("info", false)] {
        let agent = Agent::attach(&[server.pid()], &["--log-level", level])?;
        client.command("call 3 Echo succeed")?;
        let metrics = agent.scrape_settled();
        let lines = agent.log();
        agent.terminate()?;
        let of_programs = lines.lines().filter(|line| line.contains("object of unknown type"));
        assert_eq!(of_programs.count() > 0, told, "{level}: {lines}");
        metrics?;
    }
    Ok(())
}

#[test]
fn port_0_and_ipv6() -> Result<()> {
    let server = Process::kitex(&["server"])?;
    let pid = server.pid().to_string();
    let mut addresses = vec!["127.0.0.1:0", ":0", "localhost:0"];
    if TcpListener::bind("[::1]:0").is_ok() {
        addresses.push("[::1]:0");
    } else {
        eprintln!("left out: this machine has no IPv6");
    }
    for address in addresses {
        let mut command = Command::new(executable()?);
        command.args(["run", "--pid", &pid, "--web.listen-address", address]);
        // Reads the address from the log and sends requests there.
        let agent = Agent::start_command(&mut command)?.wait_ready()?;
        let (host, port) = agent.address().rsplit_once(':').context("no port")?;
        ensure!(port.parse::<u16>()? != 0, "{address}: {}", agent.address());
        let host_is_right = match address {
            ":0" => host == "[::]" || host == "0.0.0.0",
            "[::1]:0" => host == "[::1]",
            _ => host == "127.0.0.1",
        };
        ensure!(host_is_right, "{address}: {}", agent.address());
        ensure!(agent.terminate()?.0.success());
    }
    Ok(())
}

/// Returns the address in the first line of an agent's log.
fn address_in(log: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    log.read_line(&mut line)?;
    let (_, address) = line.trim_end().split_once("http://").with_context(|| format!("{line:?}"))?;
    Ok(address.to_owned())
}

fn wait_ready(address: &str) -> Result<()> {
    while http::get(address, "/readyz")?.status != 200 {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
fn a_log_that_nobody_reads_does_not_end_the_agent() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    let mut command = Command::new(executable()?);
    command.args(["run", "--pid", &server.pid().to_string(), "--linger", "0"]);
    command.args(["--web.listen-address", "127.0.0.1:0"]);
    let mut agent = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let result = (|| -> Result<()> {
        let mut log = BufReader::new(agent.stderr.take().context("no stderr")?);
        let address = address_in(&mut log)?;
        drop(log);
        wait_ready(&address)?;
        client.command("call 1 Echo succeed")?;
        Ok(())
    })();
    if result.is_err() {
        agent.kill()?;
    }
    server.quit()?;
    let status = agent.wait()?;
    result?;
    ensure!(status.success(), "{status}");

    // Without a log, an agent still ends with the exit code of its failure.
    let mut command = Command::new(executable()?);
    let mut agent = command.args(["inspect", "--exe", "/no/such/file"]).stderr(Stdio::piped()).spawn()?;
    drop(agent.stderr.take());
    assert_eq!(agent.wait()?.code(), Some(5));
    Ok(())
}

/// The reader of the log is alive, but has stopped reading.
#[test]
fn a_log_that_is_read_no_more_holds_nothing_up() -> Result<()> {
    let server = Process::kitex(&["server"])?;
    let client = || Process::kitex(&["client", "--connect", server.addr()?]);
    let (mut first, mut second) = (client()?, client()?);
    let mut command = Command::new(executable()?);
    command.args(["run", "--web.listen-address", "127.0.0.1:0"]);
    command.args(["--pid", &first.pid().to_string(), "--pid", &second.pid().to_string()]);
    let (log, out) = io::pipe()?;
    let mut log = BufReader::new(log);
    let mut agent = command.stdout(Stdio::null()).stderr(out.try_clone()?).spawn()?;
    let result = address_in(&mut log).and_then(|address| {
        wait_ready(&address)?;
        fill(&out)?;
        goes_on(&mut agent, &address, [&mut first, &mut second])
    });
    if result.is_err() {
        agent.kill()?;
        agent.wait()?;
    }
    result
}

/// Fills a pipe. Opens it anew, since `O_NONBLOCK` must not apply to the other writers.
fn fill(pipe: &PipeWriter) -> Result<()> {
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    let mut pipe = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    for piece in [&[b'x'; 4_096][..], b"x"] {
        let full = loop {
            if let Err(error) = pipe.write_all(piece) {
                break error;
            }
        };
        ensure!(full.kind() == io::ErrorKind::WouldBlock, "{full}");
    }
    Ok(())
}

/// Fails unless the agent goes on: one target ends, which is logged, the other's calls are counted and timed, and the
/// agent reacts to a signal.
fn goes_on(agent: &mut Child, address: &str, [first, second]: [&mut Process; 2]) -> Result<()> {
    const CALLS: u64 = 20;
    let scrape = || Ok::<_, anyhow::Error>(Scrape::parse(&http::get(address, "/metrics")?.ok_body()?)?);
    let pid = first.pid().to_string();
    first.quit()?;
    let begin = Instant::now();
    while scrape()?.value("monitor_target_up", &[("target", &pid)]) != Some(0.0) {
        ensure!(begin.elapsed() < END_WITHIN, "its end is not noticed");
    }
    second.command(&format!("call {CALLS} Echo succeed"))?;
    std::thread::sleep(Duration::from_millis(100));
    let scrape = scrape()?;
    let timed = scrape.histograms("kitex_client_latency_us");
    let timed: f64 = timed.values().map(|histogram| histogram.count).sum();
    let calls = [scrape.sum("kitex_client_throughput", &[]), timed].map(whole);
    ensure!(calls == [CALLS; 2], "of {CALLS} calls so many are counted and timed: {calls:?}");
    signal_child(agent, libc::SIGTERM)?;
    let status = wait(agent, END_WITHIN)?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}

#[test]
fn events_go_on_where_stderr_cannot_be_written() -> Result<()> {
    let server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    let mut command = Command::new(executable()?);
    command.args(["events", "--pid", &server.pid().to_string()]).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(fs::OpenOptions::new().write(true).open("/dev/full")?);
    let mut events = command.spawn()?;
    let mut lines = BufReader::new(events.stdout.take().context("no stdout")?).lines();
    // Reads one line and then stops reading.
    let reader = std::thread::spawn(move || lines.next());
    // The reader can't report that it has attached, so calls are made until it has received one.
    let begin = Instant::now();
    while !reader.is_finished() && begin.elapsed() < PATIENCE {
        if client.command("call 1 Echo succeed").is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    if !reader.is_finished() {
        events.kill()?;
    }
    let status = events.wait()?;
    let line = reader.join().expect("the thread runs to its end");
    let line = line.with_context(|| format!("no line before its end: {status}"))??;
    assert_eq!(serde_json::from_str::<Value>(&line)?["event"], "finish");
    ensure!(status.success(), "{status}");
    Ok(())
}
