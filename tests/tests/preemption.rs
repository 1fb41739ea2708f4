//! Counts are exact where programs are interrupted. Since Linux 6.0 uprobe programs are preemptible: if two calls on
//! one processor shared a counter or a scratch buffer, some calls would be lost or mixed up.
//!
//! Many more threads than processors want to run, at several priorities. If the running kernel's preemption can be
//! selected (debugfs, not under lockdown), the test runs under each mode that differs for uprobe programs, and then
//! restores the mode.

use std::{
    fs,
    hint::black_box,
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::Agent,
    chain::check_calls,
    process::Process,
    tally::DEFAULT_LABELS,
    targets::{Flavour, Program},
};

/// Threads per processor that always want to run.
const HOGS_EACH: usize = 4;
/// The minimum number of times that the targets must lose their processors, a small part of the usual number.
const PREEMPTED: u64 = 100;

/// Threads that never block, at different priorities. They end when this is dropped.
struct Hogs {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Hogs {
    fn start() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let count = thread::available_parallelism()?.get() * HOGS_EACH;
        let (tell, told) = mpsc::channel();
        let threads = (0..count).map(|number| {
            let (stop, tell) = (Arc::clone(&stop), tell.clone());
            thread::spawn(move || {
                // Some preempt the targets as soon as they wake up, others only wait for their turn.
                let nice = if number % 2 == 0 { -5 } else { 5 };
                // SAFETY: changes the priority of this thread only.
                let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
                let _ = tell.send(if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) });
                while !stop.load(Ordering::Relaxed) {
                    for spin in 0..50_000 {
                        black_box(spin);
                    }
                    thread::sleep(Duration::from_micros(50));
                }
            })
        });
        let hogs = Self { threads: threads.collect(), stop };
        for result in told.iter().take(count) {
            result.context("cannot choose the priority of a thread")?;
        }
        Ok(hogs)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The running kernel's preemption mode, if it can be selected.
struct Preemption {
    file: PathBuf,
    before: String,
    /// Where this has mounted debugfs to reach the file, if it was not mounted.
    mounted: Option<PathBuf>,
}

impl Preemption {
    fn open() -> Result<Self> {
        let usual = Path::new("/sys/kernel/debug");
        let mounted = if usual.join("sched").exists() { None } else { Some(mount_debugfs()?) };
        let file = mounted.as_deref().unwrap_or(usual).join("sched/preempt");
        let mut this = Self { file, before: String::new(), mounted };
        this.before = this.mode()?;
        // If the file is not writable, no mode can be selected.
        this.choose(&this.before)?;
        Ok(this)
    }

    /// Returns the mode in parentheses, as in "none voluntary (full) lazy".
    fn mode(&self) -> Result<String> {
        let text = fs::read_to_string(&self.file).with_context(|| self.file.display().to_string())?;
        let chosen = text.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
        Ok(chosen.with_context(|| format!("no mode is chosen in {text:?}"))?.0.to_owned())
    }

    fn choose(&self, mode: &str) -> Result<()> {
        fs::write(&self.file, mode).with_context(|| self.file.display().to_string())
    }
}

impl Drop for Preemption {
    fn drop(&mut self) {
        if !self.before.is_empty() {
            let _ = self.choose(&self.before);
        }
        if let Some(mounted) = &self.mounted {
            let _ = Command::new("umount").arg(mounted).status();
            let _ = fs::remove_dir(mounted);
        }
    }
}

fn mount_debugfs() -> Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("monitor-debugfs-{}", std::process::id()));
    fs::create_dir_all(&path)?;
    let status = Command::new("mount").args(["-t", "debugfs", "none"]).arg(&path).status()?;
    ensure!(status.success(), "cannot mount debugfs: {status}");
    Ok(path)
}

/// Starts a target whose runtime uses more threads than there are processors.
fn crowded(args: &[&str]) -> Result<Process> {
    let executable = Program::Kitex.build(Flavour::Default)?;
    Process::start_command(Command::new(executable).args(args).env("GOMAXPROCS", "16"))
}

/// Returns how often threads of these processes have lost their processor to others.
fn preempted(pids: [u32; 2]) -> Result<u64> {
    let mut times = 0;
    for pid in pids {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            // The thread may have ended meanwhile.
            let Ok(status) = fs::read_to_string(thread?.path().join("status")) else { continue };
            let line = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
            times += line.context("a thread without a number of switches")?.trim().parse::<u64>()?;
        }
    }
    Ok(times)
}

fn exact_in_a_crowd() -> Result<()> {
    let mut server = crowded(&["server"])?;
    let mut client = crowded(&["client", "--connect", server.addr()?, "--nested"])?;
    let pids = [server.pid(), client.pid()];
    let agent = Agent::attach(&pids, &[])?;
    let before = preempted(pids)?;
    let hogs = Hogs::start()?;
    client.command("load 10000 64 11")?;
    let lost = preempted(pids)?.saturating_sub(before);
    drop(hogs);
    ensure!(lost > PREEMPTED, "the targets have lost a processor {lost} times only: this shows nothing");
    server.command("settle")?;
    let scrape = agent.scrape_settled()?;
    assert_eq!(check_calls(&mut client, &scrape, &DEFAULT_LABELS, true)?.total(), 20_000);
    assert_eq!(check_calls(&mut server, &scrape, &DEFAULT_LABELS, true)?.total(), 20_000);
    agent.terminate()?;
    Ok(())
}

#[test]
fn exact_in_every_mode_that_can_be_chosen() -> Result<()> {
    let preemption = match Preemption::open() {
        Ok(preemption) => preemption,
        Err(error) => {
            // The test is not skipped: it runs under the current mode.
            let version = fs::read_to_string("/proc/sys/kernel/version")?;
            eprintln!("preemption: as it is, {}; it can't be chosen here: {error:#}", version.trim());
            return exact_in_a_crowd();
        }
    };
    for mode in ["full", "none"] {
        match preemption.choose(mode) {
            Ok(()) => {
                ensure!(preemption.mode()? == mode, "asked for {mode}: {}", preemption.mode()?);
                eprintln!("preemption: {mode}");
                exact_in_a_crowd()?;
            }
            // A kernel may lack some of the modes.
            Err(error) => eprintln!("preemption: no {mode} here: {error:#}"),
        }
    }
    preemption.choose(&preemption.before)?;
    eprintln!("preemption: {}", preemption.mode()?);
    exact_in_a_crowd()
}
