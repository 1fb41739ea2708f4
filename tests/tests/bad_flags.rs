//! Command lines that make no sense, or ask for something impossible, are refused, as `monitor_tests::refusals` checks.

use std::net::TcpListener;

use anyhow::{Result, ensure};
use monitor_tests::{
    agent::run_command_to_end,
    process::Process,
    refusals::{ADDRESS, PATIENCE, USAGE, agent, refused_command, run_command},
    text::Sites,
};

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
    // The sentence must not repeat the whole list.
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
        // An address from a block reserved for documentation (RFC 5737), and a name that never exists (RFC 6761).
        ("192.0.2.1:0", &["no interface of this machine"]),
        ("no-such-host.invalid:0", &["cannot be resolved"]),
        ("256.0.0.1:0", &["cannot be resolved"]),
    ];
    // The address is checked first: it is reported even if the process is wrong, too.
    for pid in [&process.pid().to_string(), "4194304"] {
        for (address, words) in cases {
            let mut command = agent()?;
            command.args(["run", "--pid", pid, "--web.listen-address", address]);
            refused_command(&mut command, ADDRESS, &[words, &[address]].concat())?;
        }
    }
    sites.check_clean()
}

/// No start can match such a filter, but each would cost the target time.
#[test]
fn starts_beside_filters_by_how_calls_end() -> Result<()> {
    let process = Process::kitex(&["server"])?;
    let sites = Sites::of(process.pid())?;
    let pid = process.pid().to_string();
    for filter in ["status=error", "min_duration=5ms"] {
        let mut command = agent()?;
        command.args(["events", "--pid", &pid, "--starts", "--filter", "side=server", "--filter", filter]);
        refused_command(&mut command, USAGE, &["--starts", "--filter", "leave out"])?;
    }
    sites.check_clean()
}

/// A flag without effect is refused, since users expect one.
#[test]
fn flags_that_can_have_no_effect() -> Result<()> {
    let process = Process::kitex(&["server"])?;
    let sites = Sites::of(process.pid())?;
    let pid = process.pid().to_string();
    let cases: &[(&str, &[&str], &str)] = &[
        ("grpc,go", &["--latency-buckets", "fine"], "add kitex"),
        // Other families have their own buckets and labels.
        ("otel,grpc", &["--latency-buckets", "default"], "add kitex"),
        ("grpc,go", &["--kitex.labels", "method,status"], "add kitex"),
        ("otel", &["--kitex.labels", "type,caller,callee,method,status"], "add kitex"),
        ("grpc,go", &["--kitex.bytes"], "add kitex"),
        ("grpc,go", &["--kitex.stream-messages"], "add kitex"),
        ("kitex", &["--grpc.messages"], "add grpc"),
        ("kitex,process", &["--go.metrics", "all"], "add go"),
        ("kitex", &["--otel.go", "both"], "add otel"),
        ("kitex", &["--latency.every", "5"], "--latency economy"),
        ("go", &["--latency", "economy"], "add kitex"),
        // These have calls and operations, but none that can do without a probe at its start.
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
