//! Builds the eBPF object that the agent carries.
//!
//! The object is kept in the repository, so that building the agent needs only cargo. A file beside it records the
//! tool chain. The same tool chain builds the same bytes from the same sources, in any directory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    process::{cargo, output, root, run, say},
    setup::{self, BPF_CLIPPY, BPF_LINKER, BPF_RUSTC, LLVM, Need},
    test,
};

const TARGET: &str = "bpfel-unknown-none";

/// The tool chain of an object.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Toolchain {
    rustc: String,
    cargo: String,
    bpf_linker: String,
    llvm: String,
}

/// The file beside the object.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    sha256: String,
    toolchain: Toolchain,
}

/// Returns the path of the repository's object.
fn committed() -> PathBuf {
    root().join("monitor-agent/ebpf/monitor.x86_64.bpf.o")
}

fn record_of(object: &Path) -> PathBuf {
    object.with_extension("o.json")
}

/// Rebuilds the repository's object.
pub(crate) fn build() -> Result<()> {
    let object = committed();
    let record = build_to(&object)?;
    fs::write(record_of(&object), serde_json::to_string_pretty(&record)? + "\n")?;
    say(&format!("{}, {} bytes", object.display(), fs::metadata(&object)?.len()));
    Ok(())
}

/// Builds the object elsewhere and compares it with the repository's. If another tool chain has built a different
/// one, runs the end-to-end tests with it, as chosen by the filters.
pub(crate) fn check(filters: &[String]) -> Result<()> {
    setup::packages(&[Need::Ebpf, Need::Targets])?;
    let fresh = target_dir().join("check/monitor.x86_64.bpf.o");
    let made = build_to(&fresh)?;
    let record = fs::read(record_of(&committed()))
        .with_context(|| format!("cannot read {}", record_of(&committed()).display()))?;
    let record: Record = serde_json::from_slice(&record).context("the record of the tool chain")?;
    let committed_sum = sha256(&committed())?;
    if committed_sum != record.sha256 {
        bail!("the object of the repository is not the recorded one: run `cargo xtask ebpf` and commit both");
    }
    if committed_sum == made.sha256 {
        say("the fresh object equals the one of the repository, byte for byte: tests say the same of both");
        return Ok(());
    }
    if record.toolchain == made.toolchain {
        bail!(
            "the sources give another object than the one of the repository, with the recorded tool chain: \
             run `cargo xtask ebpf` and commit what it writes"
        );
    }
    say(&format!(
        "bytes not compared: the object of the repository was made with {:?}, the fresh one with {:?}",
        record.toolchain, made.toolchain
    ));
    test::with_object(&fresh, filters)
}

/// Runs clippy on the programs, for the target they are built for.
pub(crate) fn lint() -> Result<()> {
    setup::packages(&[Need::Ebpf, Need::Lint])?;
    say("clippy, eBPF programs");
    run(cargo_bpf("check")?
        .env("RUSTC_WORKSPACE_WRAPPER", BPF_CLIPPY)
        .env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__"))
}

/// Builds the programs and writes the object; returns a record of its tool chain.
fn build_to(object: &Path) -> Result<Record> {
    setup::packages(&[Need::Ebpf])?;
    let linker = setup::bpf_linker()?;
    let toolchain = toolchain()?;
    say(&format!("building the eBPF object with rustc {}", toolchain.rustc));
    run(cargo_bpf("build")?.env("PATH", path_with(&linker)?))?;
    let parent = object.parent().context("the object needs a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    // The debug information is for the linker, which has made BTF from it.
    run(Command::new(format!("{LLVM}/bin/llvm-objcopy"))
        .arg("--strip-debug")
        .arg(target_dir().join(TARGET).join("release/monitor"))
        .arg(object))?;
    Ok(Record { sha256: sha256(object)?, toolchain })
}

/// Returns a cargo command for the programs, with their own target and Debian's rustc.
fn cargo_bpf(command: &str) -> Result<Command> {
    let mut cargo = cargo();
    cargo
        .args([command, "--quiet", "--release", "--locked", "--package", "monitor-ebpf"])
        .args(["--bin", "monitor", "--features", "programs", "--target", TARGET, "--target-dir"])
        .arg(target_dir())
        .env("RUSTC", BPF_RUSTC)
        .env("RUSTC_WRAPPER", "")
        // aya-ebpf needs `asm_experimental_arch`, and so do the programs for their atomic additions.
        .env("RUSTC_BOOTSTRAP", "aya_ebpf,monitor")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags()?.join("\x1f"));
    Ok(cargo)
}

fn target_dir() -> PathBuf {
    root().join("target/ebpf")
}

fn rustflags() -> Result<Vec<String>> {
    let mut flags = vec![
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        // v3 has atomic operations and 32-bit jumps; every kernel since 5.15 supports it.
        "-Ctarget-cpu=v3".to_owned(),
        "-Ccodegen-units=1".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clinker=bpf-linker".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("--remap-path-prefix={}=/monitor", root().display()),
    ];
    // BTF contains the paths of source files: without these flags the object would depend on where it was built.
    for registry in registries()? {
        flags.push(format!("--remap-path-prefix={}=/cargo", registry.display()));
    }
    Ok(flags)
}

/// Returns the directories with cargo's registry sources.
fn registries() -> Result<Vec<PathBuf>> {
    run(cargo().args(["fetch", "--quiet", "--locked"]))?;
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let sources = home.context("neither CARGO_HOME nor HOME is set")?.join("registry/src");
    let entries = fs::read_dir(&sources).with_context(|| format!("cannot read {}", sources.display()))?;
    let mut found = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    found.sort();
    Ok(found)
}

fn path_with(first: &Path) -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(first.to_path_buf()).chain(std::env::split_paths(&path));
    std::env::join_paths(all).context("cannot put bpf-linker on PATH")
}

fn toolchain() -> Result<Toolchain> {
    let version = |text: String| text.split_once(' ').map_or(text.clone(), |(_, version)| version.to_owned());
    Ok(Toolchain {
        rustc: version(output(Command::new(BPF_RUSTC).arg("--version"))?),
        cargo: version(output(cargo().arg("--version"))?),
        bpf_linker: BPF_LINKER.to_owned(),
        llvm: output(Command::new(format!("{LLVM}/bin/llvm-config")).arg("--version"))?,
    })
}

fn sha256(file: &Path) -> Result<String> {
    let line = output(Command::new("sha256sum").arg(file))?;
    let Some((sum, _)) = line.split_once(' ') else { bail!("sha256sum wrote {line:?}") };
    Ok(sum.to_owned())
}
