//! Other tools watch the same functions at the same time, or determine by other means what the agent reports.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use monitor_tests::{
    agent::{Agent, run_to_end},
    chain::{Account, check_calls},
    kernel::BpfObjects,
    process::Process,
    side_by_side,
    tally::{DEFAULT_LABELS, Tally},
    targets::{self, Flavour, Program},
    text::Sites,
    tracefs::{Event, Tracing},
};

/// Who comes or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    ToolComes,
    ToolGoes,
    AgentComes,
    AgentGoes,
}

use Step::{AgentComes, AgentGoes, ToolComes, ToolGoes};

const ORDERS: [[Step; 4]; 6] = [
    [ToolComes, ToolGoes, AgentComes, AgentGoes],
    [ToolComes, AgentComes, ToolGoes, AgentGoes],
    [ToolComes, AgentComes, AgentGoes, ToolGoes],
    [AgentComes, ToolComes, ToolGoes, AgentGoes],
    [AgentComes, ToolComes, AgentGoes, ToolGoes],
    [AgentComes, AgentGoes, ToolComes, ToolGoes],
];

/// Places the kernel's own probes at all sites of a process.
fn tool<'a>(tracing: &'a Tracing, sites: &Sites, executable: &Path) -> Result<Vec<Event<'a>>> {
    let place = |(symbol, offset): (&str, u64)| {
        let name = if symbol.ends_with("DoStart") { "start" } else { "finish" };
        tracing.place(name, executable, offset, "from=+0(%sp):x64")
    };
    sites.offsets().map(place).collect()
}

/// Both watch at once, and one of them alone, in every order of coming and going, with and without a second agent all
/// the time.
#[test]
fn another_tool_at_the_same_sites() -> Result<()> {
    // A separate file for each, so that nothing else has probes in it. Copies both files first: no program can be
    // executed while its file is open for writing, even in a child that is just being started.
    let [alone, second] = [Copied::of(Program::Strange, "alone")?, Copied::of(Program::Strange, "second")?];
    side_by_side([(&alone, false), (&second, true)], |(executable, with_second)| {
        let tracing = Tracing::open()?;
        ORDERS.into_iter().try_for_each(|order| in_order(&tracing, &executable.0, order, with_second))
    })
}

/// Takes the steps with a new target, and checks all counts after each.
fn in_order(tracing: &Tracing, executable: &Path, order: [Step; 4], with_second: bool) -> Result<()> {
    let mut target = Process::start_command(&mut Command::new(executable))?;
    let sites = Sites::of(target.pid())?;
    let second = with_second.then(|| Agent::attach(&[target.pid()], &[])).transpose()?;
    let (mut events, mut agent): (Vec<Event>, Option<Agent>) = (Vec::new(), None);
    let (mut of_tool, mut of_agent, mut of_second) = (0, 0, 0);
    for step in order {
        match step {
            ToolComes => events = tool(tracing, &sites, executable)?,
            ToolGoes => events.clear(),
            AgentComes => agent = Some(Agent::attach(&[target.pid()], &[])?),
            AgentGoes => {
                let (status, _) = agent.take().context("no agent")?.terminate()?;
                ensure!(status.success(), "{order:?} at {step:?}: {status}");
            }
        }
        (of_tool, of_agent) = (if events.is_empty() { 0 } else { of_tool + 200 }, of_agent + 200);
        of_second += 200;
        target.command("call 100 server")?;
        target.command("call 100 client")?;
        let about = || format!("{order:?}, second agent {with_second}, at {step:?}");
        for event in &events {
            ensure!(event.hits()? == of_tool, "{}: {} hits", about(), event.hits()?);
        }
        match &agent {
            Some(agent) => exactly(agent, target.pid(), of_agent).with_context(about)?,
            None => of_agent = 0,
        }
        if let Some(second) = &second {
            exactly(second, target.pid(), of_second).with_context(about)?;
        }
        if events.is_empty() && agent.is_none() && second.is_none() {
            sites.check_clean().with_context(about)?;
        } else {
            sites.check_probed().with_context(about)?;
        }
    }
    if let Some(second) = second {
        second.terminate()?;
    }
    sites.check_clean()?;
    ensure!(target.quit()?.success(), "{order:?}");
    Ok(())
}

fn exactly(agent: &Agent, pid: u32, calls: u64) -> Result<()> {
    let scrape = agent.scrape_settled()?;
    let tally = Tally::of_agent(&scrape, &DEFAULT_LABELS, None)?;
    let sides = ["client", "server"].map(|side| tally.sum(&[("side", side), ("method", "Echo")]));
    ensure!(
        sides == [calls / 2, calls / 2] && tally.total() == calls,
        "{sides:?} of {calls} calls: {tally:?}"
    );
    Account::of(&scrape, pid).check_complete(calls)
}

/// The tool's breakpoints are there first. They are a difference between code and file, but no reason to refuse.
#[test]
fn another_tool_elsewhere_in_the_functions() -> Result<()> {
    let tracing = Tracing::open()?;
    let executable = Program::Strange.build(Flavour::Default)?;
    let mut target = Process::start(Program::Strange, Flavour::Default, &[])?;
    let sites = Sites::of(target.pid())?;
    let mut events = Vec::new();
    for (index, (_, offset)) in sites.offsets().enumerate() {
        // The agent's instruction, `push rbp`, has one byte.
        events.push(tracing.place(&format!("behind_{index}"), &executable, offset + 1, "")?);
    }
    let agent = Agent::attach(&[target.pid()], &[])?;
    target.command("call 100 server")?;
    target.command("call 100 client")?;
    exactly(&agent, target.pid(), 200)?;
    for event in events {
        ensure!(event.hits()? == 200, "{} hits", event.hits()?);
    }
    agent.terminate()?;
    sites.check_clean()?;
    ensure!(target.quit()?.success(), "it was disturbed");
    Ok(())
}

/// Returns the functions of an executable by address, from its symbol table.
fn functions(executable: &Path) -> Result<BTreeMap<u64, String>> {
    let output = Command::new(targets::go()?).args(["tool", "nm"]).arg(executable).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let function = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        words.next().filter(|kind| kind.eq_ignore_ascii_case("t"))?;
        Some((address, words.collect::<Vec<_>>().join(" ")))
    };
    Ok(text.lines().filter_map(function).collect())
}

/// Returns the side of a call from the function that started or finished it.
fn side_of(function: &str) -> Result<&'static str> {
    const KITEX: &str = "github.com/cloudwego/kitex/";
    let package = function.strip_prefix(KITEX).with_context(|| format!("called by {function}"))?;
    if package.starts_with("client.") {
        return Ok("client");
    }
    if package.starts_with("pkg/remote/trans") || package.starts_with("server.") {
        return Ok("server");
    }
    bail!("called by {function}")
}

/// The agent distinguishes the sides by types. The return address on the stack also reveals them, since it is in the
/// caller.
#[test]
fn sides_by_type_and_by_return_address() -> Result<()> {
    // A separate file, so that nothing else has probes in it.
    let executable = Copied::of(Program::Kitex, "sides")?;
    let mut server = Process::kitex(&["server"])?;
    let mut relay = Process::start_command(Command::new(&executable.0).args([
        "relay",
        "--connect",
        server.addr()?,
        "--service",
        "gate",
    ]))?;
    let mut client = Process::kitex(&["client", "--connect", relay.addr()?, "--callee", "gate"])?;
    let agent = Agent::attach(&[relay.pid()], &[])?;
    let tracing = Tracing::open()?;
    let events = tool(&tracing, &Sites::of(relay.pid())?, &executable.0)?;
    client.command("load 4000 8 3")?;
    for process in [&mut client, &mut relay, &mut server] {
        process.command("settle")?;
    }
    let scrape = agent.scrape_settled()?;
    let tally = check_calls(&mut relay, &scrape, &DEFAULT_LABELS, false)?;
    let functions = functions(&executable.0)?;
    let mut called: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for line in tracing.lines()? {
        let event = if line.contains(" start: ") { "start" } else { "finish" };
        let from = line.rsplit_once("from=0x").and_then(|(_, hex)| u64::from_str_radix(hex.trim(), 16).ok());
        let from = from.with_context(|| line.clone())?;
        let (_, function) = functions.range(..from).next_back().context("an address before all code")?;
        *called.entry((event, side_of(function)?)).or_default() += 1;
    }
    drop(events);
    for side in ["client", "server"] {
        let calls = tally.sum(&[("side", side)]);
        for event in ["start", "finish"] {
            ensure!(called.get(&(event, side)) == Some(&calls), "{side} {calls}: {called:?}");
        }
    }
    ensure!(
        called[&("start", "client")] < called[&("start", "server")],
        "the sides look the same: {called:?}"
    );
    agent.terminate()?;
    Ok(())
}

/// A copy of a program's executable, removed when dropped.
struct Copied(PathBuf);

impl Copied {
    fn of(program: Program, name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("monitor-{name}-{}", std::process::id()));
        fs::copy(program.build(Flavour::Default)?, &path)?;
        Ok(Self(path))
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
/// A process that has changed its own code, even to an equivalent one, no longer matches the plan.
#[test]
fn text_that_was_patched() -> Result<()> {
    let before = BpfObjects::now()?;
    for function in ["start", "finish"] {
        for place in ["entry", "frame"] {
            let mut target = Process::start(Program::Strange, Flavour::Default, &[])?;
            let answer = target.command(&format!("patch {function} {place}"))?;
            let symbol = answer["function"].as_str().context("no function")?;
            let pid = target.pid().to_string();
            let args = ["run", "--web.listen-address", "127.0.0.1:0", "--pid", &pid];
            let ended =
                run_to_end(&args, Duration::from_secs(5)).with_context(|| format!("{function}, {place}"))?;
            ensure!(ended.code == Some(6), "{function}, {place}: {ended:?}");
            let sentence = ended.stderr.lines().last().unwrap_or("");
            ensure!(sentence.contains(symbol) && sentence.contains(&pid), "{function}, {place}: {sentence}");
            let said = run_to_end(&["inspect", "--json", "--pid", &pid], Duration::from_secs(20))?;
            let report: serde_json::Value = serde_json::from_str(&said.stdout)?;
            let reasons = report["reasons"].as_array().context("no reasons")?;
            ensure!(said.code == Some(6) && report["attachable"] == false, "{function}, {place}: {said:?}");
            ensure!(
                reasons.iter().any(|reason| reason.as_str().is_some_and(|reason| sentence.ends_with(reason))),
                "{function}, {place}: {reasons:?}, and of run: {sentence}"
            );
            ensure!(target.command("call 100 server")?["calls"] == 100, "it was disturbed");
            ensure!(target.quit()?.success(), "it was disturbed");
        }
    }
    BpfObjects::wait_until_back(&before, Duration::from_secs(10))
}
