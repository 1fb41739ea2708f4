//! An agent whose clock differs from that of the programs.

use std::{process::Command, thread, time::Duration};

use anyhow::{Result, ensure};
use monitor_tests::{
    agent::{Agent, executable},
    chain::Account,
    process::Process,
};

/// The agent's clock is a day ahead, so each call would immediately be too old and be given up.
#[test]
fn a_time_namespace_of_the_agent_makes_no_call_older() -> Result<()> {
    let server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    client.command("call 1 Echo succeed")?;
    let mut command = Command::new("unshare");
    // The agent is a child of `unshare` and ends with it.
    command.args(["--time", "--monotonic", "100000", "--kill-child"]).arg(executable()?);
    command.args(["run", "--web.listen-address", "127.0.0.1:0", "--max-call-age", "20"]);
    let agent = Agent::start_command(command.arg("--pid").arg(server.pid().to_string()))?.wait_ready()?;
    client.send("call 1 Store succeed 64 5000000")?;
    // The agent looks for old calls every two seconds, and gives one up when it is too old twice.
    thread::sleep(Duration::from_millis(4_500));
    let scrape = agent.scrape()?;
    let age = scrape.sum("kitex_server_oldest_call_age_seconds", &[("method", "Store")]);
    ensure!((4.0..20.0).contains(&age), "{age} s old:\n{}", agent.log());
    client.answer(Duration::from_secs(10))?;
    let account = Account::of(&agent.scrape_settled()?, server.pid());
    ensure!((account.timed, account.unpaired, account.in_flight) == (1, 0, 0), "{account:?}");
    Ok(())
}
