//! How native functions end: otherwise than by returning, and where a return probe would do harm.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use monitor_tests::{
    agent::{Agent, run_to_end},
    chain::check_closed,
    kernel,
    native::{Build, corners, filtered},
    process::Process,
    scrape::whole,
    side_by_side,
    specs::path,
};
use serde_json::Value;

use crate::native::{PATIENCE, WAYS, counted, spec_of, start, timed};

/// Leaves a function `left` times otherwise than by returning, and then returns from it. Fails unless the operation is
/// counted once, with its own duration, and every start has an outcome.
fn is_left(command: &str, function: &str, way: &str) -> Result<()> {
    let mut target = start(Build::Default)?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&spec_of(function, way)?)])?;
    target.command(&format!("{command} 30"))?;
    thread::sleep(Duration::from_secs(1));
    // Calls the function at the same place where it was left a second ago.
    target.command(&format!("{command} 0"))?;
    let scrape = agent.scrape_settled()?;
    let (count, sum) = timed(&scrape);
    ensure!(count == 2 && sum < 0.5, "{way}: {count} took {sum} s");
    ensure!(counted(&scrape, &["result"]) == [("0".to_owned(), 2)].into(), "{way}");
    ensure!(whole(scrape.sum("monitor_starts_total", &[])) == 32, "{way}: not all starts were seen");
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    ensure!(target.command("nap 1")?["ran"] == 1, "{way}: the target does not go on");
    Ok(())
}

#[test]
fn a_jump_out_of_a_function_is_no_return() -> Result<()> {
    side_by_side(WAYS, |way| is_left("jumps", "stock_jump", way))
}

#[test]
fn a_thread_that_ends_in_a_function_does_not_return() -> Result<()> {
    side_by_side(WAYS, |way| is_left("leaves", "stock_leave", way))
}

#[test]
fn an_exception_passes_probed_return_instructions() -> Result<()> {
    is_left("throws", "stock_throw", "instructions")
}

#[test]
fn an_exception_through_a_return_probe_ends_the_target_as_documented() -> Result<()> {
    let mut target = start(Build::Default)?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&spec_of("stock_throw", "probe")?)])?;
    target.send("throws 1")?;
    let begin = Instant::now();
    while target.is_running()? {
        ensure!(
            begin.elapsed() < PATIENCE,
            "docs/specs.md says that this ends the target; it doesn't any more"
        );
        thread::sleep(Duration::from_millis(10));
    }
    agent.terminate()?;
    Ok(())
}

/// A return probe has the target make a system call, which a thread may not be allowed to make.
#[test]
fn a_target_with_a_confined_thread_gets_no_return_probe() -> Result<()> {
    let mut target = start(Build::Default)?;
    target.command("confine 1")?;
    no_return_probe(&mut target)
}

/// A filter that kills the target at this system call does no harm on kernels that do not consult filters for it.
#[test]
fn a_target_under_seccomp_gets_return_probes_where_no_filter_is_asked() -> Result<()> {
    let mut target = Process::start_command(filtered(&mut Command::new(corners(Build::Default)?))?)?;
    // Fixes are backported, so some older kernels do not consult filters, either.
    if kernel::release()? < SURELY_PASSES && !passes(&target)? {
        return no_return_probe(&mut target);
    }
    calls_are_counted(&mut target, "probe")
}

/// From this release of Linux on, all releases let this system call pass all filters.
const SURELY_PASSES: (u32, u32) = (6, 14);

fn passes(target: &Process) -> Result<bool> {
    let spec = spec_of("stock_nothing", "probe")?;
    let args = ["inspect", "--json", "--pid", &target.pid().to_string(), "--spec", path(&spec)];
    Ok(run_to_end(&args, PATIENCE)?.code == Some(0))
}

/// Fails unless the agent refuses a return probe but accepts return instructions.
fn no_return_probe(target: &mut Process) -> Result<()> {
    let pid = target.pid().to_string();
    let probe = spec_of("stock_nothing", "probe")?;
    let name = format!("pid {pid} (");
    for args in [
        &["run", "--pid", &pid, "--web.listen-address", ":0", "--spec", path(&probe)][..],
        &["inspect", "--json", "--pid", &pid, "--spec", path(&probe)],
    ] {
        let ended = run_to_end(args, PATIENCE)?;
        let words =
            [name.as_str(), "stock can't be watched by return probes", "seccomp", "by = \"instructions\""];
        let is_told = words.iter().all(|words| ended.stderr.contains(*words));
        ensure!(ended.code == Some(6) && is_told, "{:?} {}", ended.code, ended.stderr);
        if args[0] == "inspect" {
            let said: Value = serde_json::from_str(&ended.stdout)?;
            ensure!(said["attachable"] == false && said["reasons"].to_string().contains("seccomp"), "{said}");
        }
    }
    calls_are_counted(target, "instructions")
}

fn calls_are_counted(target: &mut Process, way: &str) -> Result<()> {
    let spec = spec_of("stock_nothing", way)?;
    let agent = Agent::attach(&[target.pid()], &["--spec", path(&spec)])?;
    target.command("calls 3")?;
    let scrape = agent.scrape_settled()?;
    ensure!(timed(&scrape).0 == 3, "{:?}", timed(&scrape));
    check_closed(&scrape, target.pid(), [0, 0])?;
    agent.terminate()?;
    ensure!(target.command("nap 1")?["ran"] == 1, "the target does not go on");
    Ok(())
}
