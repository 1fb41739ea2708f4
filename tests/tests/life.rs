//! The life of a run: how it starts, how it ends, and what happens to targets that end first.

use std::{
    fs, io,
    net::{TcpListener, UdpSocket},
    os::unix::process::CommandExt as _,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use monitor_tests::{
    agent::{Agent, executable, run_to_end},
    chain::{Chain, check_calls, check_results},
    http::{self, Response},
    kernel::BpfObjects,
    process::Process,
    scrape::{Scrape, whole},
    side_by_side,
    tally::{DEFAULT_LABELS, Tally},
    targets::{Flavour, Program},
    text::{Sites, changed_at},
};

/// How long the agent may take to end after SIGTERM or SIGINT.
const END_WITHIN: Duration = Duration::from_secs(2);
/// How long the agent may take to notice a target's end. It checks five times a second.
const NOTICED_WITHIN: Duration = Duration::from_secs(2);

fn pair() -> Result<(Process, Process)> {
    let server = Process::kitex(&["server"])?;
    let client = Process::kitex(&["client", "--connect", server.addr()?])?;
    Ok((server, client))
}

fn up(scrape: &Scrape, pid: u32) -> Option<f64> {
    scrape.value("monitor_target_up", &[("target", &pid.to_string())])
}

/// Scrapes until a target is no longer up. Returns that scrape.
fn scrape_until_down(agent: &Agent, pid: u32) -> Result<Scrape> {
    let begin = Instant::now();
    loop {
        let scrape = agent.scrape()?;
        match up(&scrape, pid) {
            Some(0.0) => return Ok(scrape),
            found => ensure!(
                found == Some(1.0) && begin.elapsed() < NOTICED_WITHIN,
                "up is {found:?}: {}",
                agent.log()
            ),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// The agent ends, but not its target. No scrape shows the target as ended, not even the last one.
#[test]
fn a_target_that_lives_on_is_up_to_the_last_scrape() -> Result<()> {
    let mut target = Process::start(Program::Strange, Flavour::Default, &[])?;
    let pid = target.pid();
    let agent = Agent::attach(&[pid], &[])?;
    target.command("open 3 client 1")?;
    let address = agent.address().to_owned();
    let scraping = thread::spawn(move || {
        // Scrapes until the agent no longer answers.
        let next = || http::get(&address, "/metrics").and_then(Response::ok_body).ok();
        std::iter::from_fn(next).collect::<Vec<_>>()
    });
    thread::sleep(Duration::from_millis(200));
    ensure!(agent.terminate()?.0.success());
    let scrapes = scraping.join().map_err(|_| anyhow!("the scrapes have panicked"))?;
    ensure!(scrapes.len() > 1, "{} scrapes", scrapes.len());
    for text in scrapes {
        let scrape = Scrape::parse(&text)?;
        ensure!(up(&scrape, pid) == Some(1.0), "{text}");
        let ended = [("reason", "target_ended")];
        ensure!(scrape.sum("monitor_unpaired_starts_total", &ended).to_string() == "0", "{text}");
        ensure!(scrape.sum("monitor_calls_in_flight", &[]).to_string() == "3", "{text}");
    }
    Ok(())
}

#[test]
fn a_signal_ends_it_within_two_seconds() -> Result<()> {
    let mut chain = Chain::start(Flavour::Default, &[], &[])?;
    let sites = chain.pids().map(Sites::of);
    chain.client.command("flow 16")?;
    let all = chain.pids();
    for signal in [libc::SIGTERM, libc::SIGINT] {
        for pids in [&all[..1], &all] {
            let mut agent = Agent::attach(pids, &[])?;
            thread::sleep(Duration::from_millis(200));
            let begin = Instant::now();
            agent.signal(signal)?;
            let status = agent.wait(Duration::from_secs(10))?;
            ensure!(begin.elapsed() < END_WITHIN, "{:?} for {} targets", begin.elapsed(), pids.len());
            ensure!(status.code() == Some(0), "signal {signal}: {status}");
            let log = agent.log();
            let summary = log.lines().last().unwrap_or("").to_owned();
            ensure!(summary.contains("calls counted") && !summary.contains(" 0 calls"), "no summary:\n{log}");
        }
    }
    for site in sites {
        site?.check_clean()?;
    }
    ensure!(chain.client.command("pause")?["calls"].as_u64() > Some(1_000), "that was no load");
    chain.settle()
}

/// Closing a terminal sends SIGHUP. A process started by `nohup` ignores it from the start.
#[test]
fn a_hangup_ends_it_unless_it_is_ignored() -> Result<()> {
    let (_server, mut client) = pair()?;
    let pid = client.pid().to_string();
    for (action, is_ignored) in [(libc::SIG_DFL, false), (libc::SIG_IGN, true)] {
        let mut command = Command::new(executable()?);
        command.args(["run", "--web.listen-address", "127.0.0.1:0", "--pid", &pid]);
        let set_action = move || {
            // SAFETY: takes numbers, none of which is the address of a handler.
            let before = unsafe { libc::signal(libc::SIGHUP, action) };
            if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
        };
        // SAFETY: between fork and exec the closure makes a system call and nothing else.
        unsafe { command.pre_exec(set_action) };
        let mut agent = Agent::start_command(&mut command)?.wait_ready()?;
        client.command("call 3 Echo succeed")?;
        agent.signal(libc::SIGHUP)?;
        if is_ignored {
            thread::sleep(Duration::from_millis(500));
            ensure!(agent.is_running()?, "it does not ignore it:\n{}", agent.log());
            client.command("call 2 Echo succeed")?;
            agent.signal(libc::SIGTERM)?;
        }
        let status = agent.wait(END_WITHIN)?;
        ensure!(status.code() == Some(0), "ignored: {is_ignored}: {status}");
        let log = agent.log();
        let calls = if is_ignored { 5 } else { 3 };
        let summary = log.lines().last().unwrap_or("");
        ensure!(summary.contains(&format!(" {calls} calls counted")), "no summary:\n{log}");
    }
    Ok(())
}

#[test]
fn a_signal_ends_it_while_a_name_is_looked_up() -> Result<()> {
    // A name server that receives requests and never answers, for this agent only.
    let silent = UdpSocket::bind("127.0.9.9:53")?;
    silent.set_read_timeout(Some(Duration::from_secs(10)))?;
    let servers = std::env::temp_dir().join(format!("monitor-life-{}", std::process::id()));
    fs::write(&servers, "nameserver 127.0.9.9\n")?;
    let script = r#"mount --bind "$1" /etc/resolv.conf
        exec "$0" run --pid "$2" --web.listen-address agent.example:0"#;
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-ec", script]).arg(executable()?).arg(&servers);
    let mut agent = command.arg(std::process::id().to_string()).spawn()?;
    let asked = silent.recv_from(&mut [0; 512]);
    let begin = Instant::now();
    // SAFETY: kill touches no memory of this process; the child has not been waited for.
    let sent = unsafe { libc::kill(libc::pid_t::try_from(agent.id())?, libc::SIGTERM) };
    while agent.try_wait()?.is_none() && begin.elapsed() < END_WITHIN {
        thread::sleep(Duration::from_millis(10));
    }
    let ended = agent.try_wait()?;
    if ended.is_none() {
        agent.kill()?;
        agent.wait()?;
    }
    fs::remove_file(&servers)?;
    asked.context("the name is not looked up")?;
    ensure!(sent == 0, "the signal can't be sent");
    let status = ended.context("the signal is not heeded")?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}

#[test]
fn a_signal_while_attaching_ends_it_too() -> Result<()> {
    let chain = Chain::start(Flavour::Default, &[], &[])?;
    let sites = Sites::of(chain.client.pid())?;
    let before = BpfObjects::now()?;
    for wait_ms in [0, 20, 60, 100] {
        let mut agent = Agent::start(&chain.pids(), &[])?;
        thread::sleep(Duration::from_millis(wait_ms));
        let begin = Instant::now();
        agent.signal(libc::SIGTERM)?;
        let (status, took) = (agent.wait(Duration::from_secs(10))?, begin.elapsed());
        ensure!(status.code() == Some(0) && took < END_WITHIN, "after {wait_ms} ms: {status} in {took:?}");
        let log = agent.log();
        // With a longer wait, the signal may come after attaching.
        let summaries = ["no calls counted", "calls counted in"].map(|words| log.matches(words).count());
        ensure!(summaries == [1, 0] || (wait_ms > 0 && summaries == [0, 1]), "after {wait_ms} ms:\n{log}");
    }
    sites.check_clean()?;
    BpfObjects::wait_until_back(&before, Duration::from_secs(10))
}

/// In this case the kernel may leave a breakpoint, which does nothing. The next agent removes it.
#[test]
fn what_an_agent_leaves_that_is_killed_as_it_leaves_goes_with_the_next() -> Result<()> {
    let (server, mut client) = pair()?;
    let pids = [server.pid(), client.pid()];
    let sites = [Sites::of(pids[0])?, Sites::of(pids[1])?];
    client.command("flow 16")?;
    for wait_ms in [5, 20, 40, 60] {
        let agent = Agent::attach(&pids, &[])?;
        agent.signal(libc::SIGTERM)?;
        thread::sleep(Duration::from_millis(wait_ms));
        agent.end_by(libc::SIGKILL)?;
    }
    let (status, _) = Agent::attach(&pids, &[])?.terminate()?;
    ensure!(status.code() == Some(0), "{status}");
    sites.iter().try_for_each(Sites::check_clean)?;
    client.command("pause")?;
    check_results(&mut client)
}

/// The kernel may keep a map forever if other tools open and close it at the wrong moments.
#[test]
fn nothing_is_left_though_other_tools_look_at_what_is_loaded() -> Result<()> {
    let target = Process::kitex(&["server"])?;
    let before = BpfObjects::now()?;
    let agent = Agent::attach(&[target.pid()], &[])?;
    // The objects for measuring are temporary, and the kernel takes some time to free them.
    agent.wait_for_log(Duration::from_secs(10), |line| line.contains("a hit of a probe").then_some(()))?;
    thread::sleep(Duration::from_secs(1));
    let loaded = BpfObjects::now()?.beyond(&before);
    let end = Instant::now() + Duration::from_secs(1);
    thread::scope(|scope| {
        let tools = [(); 4].map(|()| {
            scope.spawn(|| -> Result<()> {
                while Instant::now() < end {
                    loaded.open_maps()?;
                }
                Ok(())
            })
        });
        tools.into_iter().try_for_each(|tool| tool.join().expect("a tool does not panic"))
    })?;
    let (status, _) = agent.terminate()?;
    ensure!(status.code() == Some(0), "{status}");
    BpfObjects::wait_until_back(&before, Duration::from_secs(10))
}

#[test]
fn a_killed_agent_leaves_nothing() -> Result<()> {
    let (mut server, mut client) = pair()?;
    let pids = [server.pid(), client.pid()];
    let sites = [Sites::of(pids[0])?, Sites::of(pids[1])?];
    let before = BpfObjects::now()?;
    client.command("flow 16")?;
    let agent = Agent::attach(&pids, &[])?;
    for sites in &sites {
        sites.check_probed()?;
    }
    agent.end_by(libc::SIGKILL)?;
    for sites in &sites {
        sites.check_clean()?;
    }
    BpfObjects::wait_until_back(&before, Duration::from_secs(10))?;
    let calls = client.command("pause")?["calls"].clone();
    check_results(&mut client)?;
    ensure!(server.command("settle")?["finished"] == calls, "calls were lost");
    Ok(())
}

/// The first request may come after the agent has attached, so the test starts agents until one is not ready yet.
#[test]
fn ready_when_all_probes_are_in_place() -> Result<()> {
    const STARTS: u32 = 10;
    let chain = Chain::start(Flavour::Default, &[], &[])?;
    let sites = [Sites::of(chain.pids()[0])?, Sites::of(chain.pids()[2])?];
    for _ in 0..STARTS {
        let mut agent = Agent::start(&chain.pids(), &[])?;
        let status = agent.status("/readyz")?;
        ensure!([200, 503].contains(&status), "/readyz is {status}");
        let is_early = status == 503;
        if is_early {
            ensure!(agent.status("/healthz")? == 200, "not healthy while attaching");
            agent = agent.wait_ready()?;
        }
        for sites in &sites {
            sites.check_probed()?;
        }
        agent.terminate()?;
        if is_early {
            return Ok(());
        }
    }
    Err(anyhow!("ready at once, {STARTS} times"))
}

#[test]
fn a_target_that_ends_is_reported_and_kept() -> Result<()> {
    let (mut server, mut client) = pair()?;
    let agent = Agent::attach(&[client.pid()], &["--linger", "2"])?;
    client.command("load 3000 8 1")?;
    let own = Tally::of_target(&client.command("counts")?, &DEFAULT_LABELS)?;
    let pid = client.pid();
    // No time to drain the rings between the last call and the end.
    client.quit()?;
    let ended = Instant::now();
    let scrape = scrape_until_down(&agent, pid)?;
    own.check(&Tally::of_agent(&scrape, &DEFAULT_LABELS, None)?)?;
    ensure!(agent.log().contains("has ended"), "not in the log: {}", agent.log());
    thread::sleep(Duration::from_secs(1));
    own.check(&Tally::of_agent(&agent.scrape()?, &DEFAULT_LABELS, None)?)?;
    ensure!(agent.status("/readyz")? == 200, "it still serves");
    let status = { agent }.wait(Duration::from_secs(5))?;
    ensure!(status.code() == Some(0), "{status}");
    let lingered = ended.elapsed();
    ensure!((2.0..4.0).contains(&lingered.as_secs_f64()), "went away after {lingered:?}");
    server.quit()?;
    Ok(())
}

/// Whether a process has this file open.
fn has_open(pid: u32, file: &Path) -> Result<bool> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor may be closed meanwhile.
        if fs::read_link(entry?.path()).is_ok_and(|link| link == file) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// An open file keeps its file system from being unmounted, and the agent may run for months.
#[test]
fn an_executable_is_open_as_long_as_a_target_that_runs_it_is_watched() -> Result<()> {
    let (mut server, mut client) = pair()?;
    let other = Process::start(Program::Strange, Flavour::Default, &[])?;
    let pids = [server.pid(), client.pid(), other.pid()];
    let executable = |pid: u32| fs::read_link(format!("/proc/{pid}/exe"));
    let (ends, stays) = (executable(pids[0])?, executable(pids[2])?);
    ensure!(executable(pids[1])? == ends && ends != stays, "{ends:?}, {stays:?}");
    let agent = Agent::attach(&pids, &[])?;
    let are_open =
        || -> Result<[bool; 2]> { Ok([has_open(agent.pid(), &ends)?, has_open(agent.pid(), &stays)?]) };
    client.command("load 1000 4 1")?;
    server.command("settle")?;
    let own = Tally::of_target(&server.command("counts")?, &DEFAULT_LABELS)?;
    client.quit()?;
    scrape_until_down(&agent, pids[1])?;
    ensure!(are_open()? == [true, true], "one of its two targets has ended: {:?}", are_open()?);
    server.quit()?;
    scrape_until_down(&agent, pids[0])?;
    ensure!(are_open()? == [false, true], "both of its targets have ended: {:?}", are_open()?);
    own.check(&Tally::of_agent(&agent.scrape()?, &DEFAULT_LABELS, Some(pids[0]))?)?;
    ensure!(agent.terminate()?.0.success());
    Ok(())
}

/// Counts a process's descriptors of BPF maps, and the bytes of such maps that are mapped in its memory.
fn bpf_maps(pid: u32) -> Result<(usize, u64)> {
    const NAME: &str = "anon_inode:bpf-map";
    let is_map = |link: &Path| link.to_string_lossy().contains(NAME);
    let mut descriptors = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor may be closed meanwhile.
        descriptors += usize::from(fs::read_link(entry?.path()).is_ok_and(|link| is_map(&link)));
    }
    let mut bytes = 0;
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines().filter(|line| line.contains(NAME)) {
        let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
        let (start, end) = range.context("no range")?;
        bytes += u64::from_str_radix(end, 16)? - u64::from_str_radix(start, 16)?;
    }
    Ok((descriptors, bytes))
}

/// Returns the calls that a target has handled, those in flight at its end, and the bytes in its ring.
fn told(scrape: &Scrape, pid: u32) -> [u64; 3] {
    let pid = pid.to_string();
    let target = ("target", pid.as_str());
    let ended = [target, ("reason", "target_ended")];
    let told = [
        scrape.sum("kitex_server_throughput", &[target]),
        scrape.sum("monitor_unpaired_starts_total", &ended),
        scrape.sum("monitor_ring_bytes", &[target]),
    ];
    told.map(whole)
}

/// After its end, only a target's numbers are left, and those until the agent ends: the agent may run for months.
#[test]
fn what_a_target_has_in_the_kernel_ends_with_it() -> Result<()> {
    const TARGETS: usize = 4;
    let mut targets = Vec::new();
    for _ in 0..TARGETS {
        targets.push(Process::start(Program::Strange, Flavour::Default, &[])?);
    }
    let pids: Vec<_> = targets.iter().map(Process::pid).collect();
    let agent = Agent::attach(&pids, &[])?;
    // The objects for measuring include maps.
    agent.wait_for_log(Duration::from_secs(10), |line| line.contains("a hit of a probe").then_some(()))?;
    let (descriptors, bytes) = bpf_maps(agent.pid())?;
    ensure!(descriptors > 0 && bytes > 0, "{descriptors} maps, {bytes} bytes of them");
    for target in &mut targets {
        target.command("open 3 client 1")?;
        target.command("call 2000 server")?;
    }
    for target in &targets[1..] {
        target.signal(libc::SIGKILL)?;
    }
    // A scrape would drain the rings: without one, records stay in them until the targets' end.
    thread::sleep(NOTICED_WITHIN);
    for pid in &pids[1..] {
        let scrape = scrape_until_down(&agent, *pid)?;
        ensure!(told(&scrape, *pid) == [2_000, 3, 0], "{:?}", told(&scrape, *pid));
    }
    let left = bpf_maps(agent.pid())?;
    ensure!(
        left == (descriptors / TARGETS, bytes / TARGETS as u64),
        "{left:?} of {descriptors} maps and {bytes} bytes for one of {TARGETS} targets"
    );
    targets[0].signal(libc::SIGKILL)?;
    scrape_until_down(&agent, pids[0])?;
    let left = bpf_maps(agent.pid())?;
    ensure!(left == (0, 0), "{left:?} for no target");
    let scrape = agent.scrape()?;
    for pid in pids {
        ensure!(told(&scrape, pid) == [2_000, 3, 0], "{:?}", told(&scrape, pid));
    }
    agent.signal(libc::SIGTERM)?;
    let summary = format!("detached: {} calls counted in {TARGETS} targets", TARGETS * 2_000);
    agent.wait_for_log(Duration::from_secs(5), |line| line.contains(&summary).then_some(()))?;
    let status = { agent }.wait(END_WITHIN)?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// Bytes that a process has read so far, from files of any kind.
fn bytes_read(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let count = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    Ok(count.context("no number of bytes")?.parse()?)
}

/// Rings fill as soon as the first target is attached, so nothing slow may be done for each target after that.
#[test]
fn an_executable_is_read_once_however_many_targets_run_it() -> Result<()> {
    /// The symbol table alone is larger.
    const FOR_ONE_MORE: u64 = 512 << 10;
    let targets = (0..5).map(|_| Process::kitex(&["server"])).collect::<Result<Vec<_>>>()?;
    let pids: Vec<_> = targets.iter().map(Process::pid).collect();
    let to_attach = |pids: &[u32]| -> Result<u64> {
        let agent = Agent::attach(pids, &["--metrics", "kitex,go"])?;
        let read = bytes_read(agent.pid())?;
        ensure!(agent.terminate()?.0.success());
        Ok(read)
    };
    let (one, all) = (to_attach(&pids[..1])?, to_attach(&pids)?);
    let more = pids.len() as u64 - 1;
    ensure!(all < one + more * FOR_ONE_MORE, "{one} bytes for one target, {all} for {more} more");
    Ok(())
}

#[test]
fn a_signal_ends_the_linger() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let agent = Agent::attach(&[server.pid()], &[])?;
    let pid = server.pid();
    server.quit()?;
    scrape_until_down(&agent, pid)?;
    let (status, took) = agent.terminate()?;
    ensure!(status.code() == Some(0) && took < END_WITHIN, "{status} in {took:?}");
    Ok(())
}

#[test]
fn the_others_are_watched_on() -> Result<()> {
    let (mut server, mut client) = pair()?;
    let mut other = Process::kitex(&["client", "--connect", server.addr()?])?;
    let pids = [server.pid(), client.pid(), other.pid()];
    let agent = Agent::attach(&pids, &["--linger", "0"])?;
    other.command("load 1000 4 1")?;
    let others = Tally::of_target(&other.command("counts")?, &DEFAULT_LABELS)?;
    other.signal(libc::SIGKILL)?;
    scrape_until_down(&agent, pids[2])?;
    client.command("load 2000 4 2")?;
    server.command("settle")?;
    let scrape = agent.scrape_settled()?;
    assert_eq!(pids.map(|pid| up(&scrape, pid)), [Some(1.0), Some(1.0), Some(0.0)]);
    assert_eq!(check_calls(&mut server, &scrape, &DEFAULT_LABELS, true)?.total(), 3_000);
    check_calls(&mut client, &scrape, &DEFAULT_LABELS, true)?;
    others.check(&Tally::of_agent(&scrape, &DEFAULT_LABELS, Some(pids[2]))?)?;
    server.quit()?;
    client.quit()?;
    ensure!({ agent }.wait(NOTICED_WITHIN)?.code() == Some(0), "it does not end with its last target");
    Ok(())
}

/// A target that executes another program is gone, even if that is the same program again.
#[test]
fn a_target_that_execs_is_another() -> Result<()> {
    let plain = Program::Plain.build(Flavour::Default)?.display().to_string();
    let kitex = Program::Kitex.build(Flavour::Default)?.display().to_string();
    side_by_side([plain, format!("{kitex} server")], |becomes| {
        let (mut server, mut client) = pair()?;
        let agent = Agent::attach(&[server.pid()], &["--linger", "1"])?;
        client.command("load 1000 4 3")?;
        server.command("settle")?;
        let own = Tally::of_target(&server.command("counts")?, &DEFAULT_LABELS)?;
        server.command(&format!("exec {becomes}"))?;
        let ready = server.answer(Duration::from_secs(5))?;
        ensure!(ready["pid"] == server.pid(), "{ready}");
        let scrape = scrape_until_down(&agent, server.pid())?;
        own.check(&Tally::of_agent(&scrape, &DEFAULT_LABELS, None)?)?;
        ensure!(agent.log().contains("has started another program"), "{becomes}: {}", agent.log());
        if becomes.ends_with("server") {
            // The new program's calls are not counted under the old one, and it has no probes.
            Sites::of(server.pid())?.check_clean()?;
            let address = ready["addr"].as_str().context("no address")?;
            Process::kitex(&["client", "--connect", address])?.command("load 500 4 4")?;
            own.check(&Tally::of_agent(&agent.scrape_settled()?, &DEFAULT_LABELS, None)?)?;
        }
        ensure!({ agent }.wait(Duration::from_secs(5))?.code() == Some(0), "{becomes}");
        ensure!(server.is_running()?, "{becomes} has ended");
        Ok(())
    })
}

/// Whether the agent becomes ready. If not, it has ended.
fn gets_ready(agent: &Agent) -> bool {
    loop {
        match agent.status("/readyz") {
            Ok(200) => return true,
            Ok(_) => thread::sleep(Duration::from_millis(5)),
            Err(_) => return false,
        }
    }
}

#[test]
fn a_target_that_ends_while_it_is_attached_to() -> Result<()> {
    let before = BpfObjects::now()?;
    let mut refused = 0;
    for wait_ms in [0, 3, 10, 20, 30, 45, 60, 80] {
        let other = Process::kitex(&["server"])?;
        let sites = Sites::of(other.pid())?;
        let mut target = Process::kitex(&["server"])?;
        let mut agent = Agent::start(&[other.pid(), target.pid()], &["--linger", "0"])?;
        thread::sleep(Duration::from_millis(wait_ms));
        target.signal(libc::SIGKILL)?;
        // Half of the targets stay zombies, which have a pid and nothing else.
        if wait_ms % 20 == 0 {
            target.quit()?;
        }
        if gets_ready(&agent) {
            // The target was attached in time, so its end must be reported.
            scrape_until_down(&agent, target.pid())?;
            agent.terminate()?;
        } else {
            let status = agent.wait(Duration::from_secs(5))?;
            let log = agent.log();
            ensure!(status.code() == Some(3), "after {wait_ms} ms: {status}\n{log}");
            let pid = target.pid();
            let sentences = [format!("process {pid} has ended"), format!("no process has pid {pid}")];
            ensure!(sentences.iter().any(|sentence| log.contains(sentence)), "{log}");
            refused += 1;
        }
        sites.check_clean()?;
    }
    ensure!(refused >= 2, "only {refused} ended while they were attached to");
    BpfObjects::wait_until_back(&before, Duration::from_secs(10))
}

/// At the offset of a site, the new program may have the middle of an instruction.
#[test]
fn a_target_that_becomes_another_program_while_it_is_attached_to() -> Result<()> {
    let refused = AtomicU32::new(0);
    side_by_side([0, 20], |first| {
        for wait_ms in (first..320).step_by(40) {
            let is_refused = becomes_another(wait_ms).with_context(|| format!("after {wait_ms} ms"))?;
            refused.fetch_add(u32::from(is_refused), Ordering::Relaxed);
        }
        Ok(())
    })?;
    let refused = refused.into_inner();
    ensure!(refused >= 2, "only {refused} became another program while they were attached to");
    Ok(())
}

/// Has a target execute another program some time after an agent was started. Returns whether the agent noticed while
/// it attached.
fn becomes_another(wait_ms: u64) -> Result<bool> {
    let becomes = Program::Grpc.build(Flavour::Default)?.display().to_string();
    let mut target = Process::kitex(&["server"])?;
    let offsets: Vec<_> = Sites::of(target.pid())?.offsets().map(|(_, offset)| offset).collect();
    let mut agent = Agent::start(&[target.pid()], &["--linger", "0"])?;
    thread::sleep(Duration::from_millis(wait_ms));
    target.command(&format!("exec {becomes}"))?;
    target.answer(Duration::from_secs(5))?;
    let begin = Instant::now();
    let mut is_over = false;
    while !is_over && begin.elapsed() < Duration::from_millis(500) {
        // An agent that has ended adds no more probes, so this check is the last one.
        is_over = !agent.is_running()?;
        let changed = changed_at(target.pid(), &offsets)?;
        ensure!(changed == 0, "{changed} probes in the other program: {}", agent.log());
    }
    // The agent may have been ready before, or have found the new program from the start.
    if gets_ready(&agent) {
        agent.terminate()?;
        return Ok(false);
    }
    let status = agent.wait(Duration::from_secs(5))?;
    let log = agent.log();
    ensure!([Some(0), Some(3)].contains(&status.code()), "{status}\n{log}");
    ensure!(target.is_running()?, "the other program has ended");
    Ok(log.contains("has started another program"))
}

#[test]
fn the_port_is_bound_first() -> Result<()> {
    let server = Process::kitex(&["server"])?;
    let sites = Sites::of(server.pid())?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    for pid in [server.pid().to_string(), i32::MAX.to_string()] {
        let args = ["run", "--pid", &pid, "--web.listen-address", &address];
        let ended = run_to_end(&args, Duration::from_secs(5))?;
        ensure!(ended.code == Some(7) && ended.stderr.contains(&address), "{ended:?}");
        ensure!(!ended.stderr.contains("attached"), "{ended:?}");
    }
    sites.check_clean()
}

#[test]
fn a_target_that_fails_takes_all_with_it() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let sites = Sites::of(server.pid())?;
    let plain = Process::start(Program::Plain, Flavour::Default, &[])?;
    let before = BpfObjects::now()?;
    let good = server.pid().to_string();
    for (bad, code) in [(plain.pid(), 6), (i32::MAX.unsigned_abs(), 3), (std::process::id(), 6)] {
        for pids in [[&good, &bad.to_string()], [&bad.to_string(), &good]] {
            let args = ["run", "--web.listen-address", "127.0.0.1:0", "--pid", pids[0], "--pid", pids[1]];
            let ended = run_to_end(&args, Duration::from_secs(5))?;
            ensure!(ended.code == Some(code), "{pids:?}: {ended:?}");
            let sentence = ended.stderr.lines().last().unwrap_or("");
            ensure!(sentence.contains(&bad.to_string()), "it does not name {bad}: {sentence}");
        }
    }
    sites.check_clean()?;
    BpfObjects::wait_until_back(&before, Duration::from_secs(10))?;
    ensure!(server.quit()?.success(), "the good one was disturbed");
    Ok(())
}

#[test]
fn two_agents_on_one_target() -> Result<()> {
    let (mut server, mut client) = pair()?;
    let sites = Sites::of(server.pid())?;
    let first = Agent::attach(&[server.pid()], &[])?;
    let second = Agent::attach(&[server.pid()], &[])?;
    client.command("load 2000 8 1")?;
    server.command("settle")?;
    thread::sleep(Duration::from_millis(250));
    check_calls(&mut server, &first.scrape()?, &DEFAULT_LABELS, false)?;
    check_calls(&mut server, &second.scrape()?, &DEFAULT_LABELS, false)?;
    first.terminate()?;
    sites.check_probed()?;
    client.command("load 2000 8 2")?;
    server.command("settle")?;
    check_calls(&mut server, &second.scrape_settled()?, &DEFAULT_LABELS, false)?;
    second.terminate()?;
    sites.check_clean()
}
