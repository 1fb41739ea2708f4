//! The checks that run nothing: formatting, lints and documentation, for Rust and Go.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};
use monitor_tests::side_by_side;

use crate::{
    ebpf,
    process::{cargo, output, root, run, say},
    setup::{self, Need},
};

/// Runs all checks, those of each language until the first failure: one language may wait for the network while the
/// other runs.
pub(crate) fn all() -> Result<()> {
    setup::packages(&[Need::Ebpf, Need::Lint, Need::Targets])?;
    let languages: [fn() -> Result<()>; 2] = [rust, go];
    side_by_side(languages, |check| check())
}

fn rust() -> Result<()> {
    // Separate workspaces: see their manifests.
    const LAUNCH: &str = "--manifest-path=xtask/launch/Cargo.toml";
    const FUZZ: &str = "--manifest-path=fuzz/Cargo.toml";

    say("formatting");
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args(["fmt", "--check", LAUNCH]))?;
    run(cargo().args(["fmt", "--check", FUZZ]))?;
    say("clippy");
    run(workspace().args(["--", "-Dwarnings"]))?;
    run(cargo().args(["clippy", "--locked", LAUNCH, "--target-dir=target/launch", "--", "-Dwarnings"]))?;
    // Checks the code that only fuzz targets call; the fuzz targets have one line each. The first check is still
    // needed: it finds code that is dead without them. For the agent alone, dependencies would have other features,
    // and be checked again.
    run(workspace().args(["--features=monitor-agent/fuzzing", "--", "-Dwarnings"]))?;
    ebpf::lint()?;
    say("documentation");
    run(cargo()
        .args(["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-Dwarnings"))
}

/// Returns a clippy command for the whole workspace.
fn workspace() -> Command {
    let mut clippy = cargo();
    clippy.args(["clippy", "--locked", "--workspace", "--all-targets"]);
    clippy
}

fn go() -> Result<()> {
    let go = setup::go()?;
    let gofmt = go.with_file_name("gofmt");
    for module in go_modules()? {
        say(&format!("gofmt and go vet, {}", module.strip_prefix(root())?.display()));
        let unformatted = output(Command::new(&gofmt).args(["-l", "."]).current_dir(&module))?;
        if !unformatted.is_empty() {
            bail!("not formatted with gofmt, in {}: {unformatted}", module.display());
        }
        run(Command::new(&go).args(["vet", "./..."]).current_dir(&module).env("GOTOOLCHAIN", "local"))?;
    }
    Ok(())
}

/// Returns the directories of the Go programs.
fn go_modules() -> Result<Vec<PathBuf>> {
    let targets = root().join("tests/targets");
    let entries = fs::read_dir(&targets).with_context(|| format!("cannot read {}", targets.display()))?;
    let mut modules = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    modules.retain(|directory| directory.join("go.mod").exists());
    modules.sort();
    Ok(modules)
}
