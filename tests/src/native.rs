//! Builds the programs of `targets/native`, which are not written in Go.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{cargo, paths, seccomp};

/// How the program of corner cases is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// Position independent, the compilers' default.
    Default,
    /// At a fixed address.
    Fixed,
    /// Position independent, without symbols.
    Stripped,
}

impl Build {
    fn name(self) -> &'static str {
        match self {
            Self::Default => "corners",
            Self::Fixed => "corners-fixed",
            Self::Stripped => "corners-stripped",
        }
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Default => &["-pie", "-fPIE"],
            Self::Fixed => &["-no-pie", "-fno-pie"],
            Self::Stripped => &["-pie", "-fPIE", "-s"],
        }
    }
}

/// The flags for C++ programs.
const CXX_FLAGS: [&str; 5] = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-pthread"];
/// Flags that keep functions whole, so that the tests know how each of them ends.
const WHOLE: [&str; 2] = ["-fno-optimize-sibling-calls", "-fno-reorder-blocks-and-partition"];

/// The program of corner cases.
pub fn corners(build: Build) -> Result<PathBuf> {
    let source = sources().join("corners.cc");
    let (directory, _lock) = directory()?;
    let executable = directory.join(build.name());
    if is_newer(&executable, &[&source])? {
        return Ok(executable);
    }
    run(Command::new("g++")
        .args(CXX_FLAGS)
        .args(WHOLE)
        .args(build.flags())
        .arg("-o")
        .arg(&executable)
        .arg(&source))?;
    Ok(executable)
}

/// Builds the Thrift server and client, including the code that Thrift's compiler generates, in the way services are
/// built.
pub fn server() -> Result<PathBuf> {
    let (source, service) = (sources().join("server.cc"), sources().join("stock.thrift"));
    let (directory, _lock) = directory()?;
    let executable = directory.join("server");
    if is_newer(&executable, &[&source, &service])? {
        return Ok(executable);
    }
    run(Command::new("thrift").args(["--gen", "cpp:no_skeleton", "-o"]).arg(&directory).arg(&service))?;
    let made = directory.join("gen-cpp");
    run(Command::new("g++")
        .args(CXX_FLAGS)
        .arg("-I")
        .arg(&made)
        .arg("-o")
        .arg(&executable)
        .arg(&source)
        .args(["Stock.cpp", "stock_types.cpp"].map(|file| made.join(file)))
        .arg("-lthrift"))?;
    Ok(executable)
}

/// Builds the gRPC server of `targets/async` with the cargo that runs the tests.
pub fn async_server() -> Result<PathBuf> {
    let (directory, _lock) = directory()?;
    let built = directory.join("async");
    run(cargo()
        .args(["build", "--quiet", "--locked", "--manifest-path"])
        .arg(paths::tests().join("targets/async/Cargo.toml"))
        .arg("--target-dir")
        .arg(&built))?;
    Ok(built.join("debug/async-target"))
}

/// The number of the system call that newer kernels have a target make after a return probe (`uretprobe`).
const BEHIND_RETURN_PROBES: u32 = 335;

/// Puts a command under a seccomp filter that kills it at this system call and allows everything else.
pub fn filtered(command: &mut Command) -> Result<&mut Command> {
    seccomp::on_call(command, BEHIND_RETURN_PROBES, None, libc::SECCOMP_RET_KILL_PROCESS)?;
    Ok(command)
}

/// The directory of the sources.
fn sources() -> PathBuf {
    paths::tests().join("targets/native")
}

/// The directory of the built programs, locked: a file that is being executed cannot be written.
fn directory() -> Result<(PathBuf, File)> {
    let directory = paths::target().join("targets/native");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let lock = File::create(directory.join("lock"))?;
    lock.lock()?;
    Ok((directory, lock))
}

/// Whether `made` exists and is newer than all `sources`.
fn is_newer(made: &Path, sources: &[&Path]) -> Result<bool> {
    let Ok(made) = made.metadata() else { return Ok(false) };
    let made = made.modified()?;
    for source in sources {
        if source.metadata()?.modified()? >= made {
            return Ok(false);
        }
    }
    Ok(true)
}

fn run(command: &mut Command) -> Result<()> {
    let missing = "`cargo xtask test` installs it";
    let status = command.status().with_context(|| format!("cannot start {command:?}: {missing}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}
