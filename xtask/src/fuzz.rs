//! Fuzzes the parsers: runs the fuzz targets of `fuzz/` with libFuzzer, on the stable compiler.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, value_parser};

use crate::{
    process::{cargo, root, run as run_command, say},
    setup::{self, Need},
};

/// The agent's only platform. Naming it keeps coverage counters out of build scripts.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// The flags of `cargo fuzz`, except the sanitizer's, which needs an unstable compiler: the fuzzed code is safe Rust,
/// whose errors are panics.
const FLAGS: [&str; 6] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// What to fuzz.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The name of a target, or "all" of them
    #[arg(default_value = "all")]
    target: String,
    /// Seconds for each target
    #[arg(default_value_t = 60, value_parser = value_parser!(u32).range(1..))]
    seconds: u32,
}

/// Builds the fuzz targets and runs them one after the other; stops at the first input that makes one fail.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut targets = targets()?;
    if options.target != "all" {
        if !targets.contains(&options.target) {
            bail!("no fuzz target {}: there are {}", options.target, targets.join(", "));
        }
        targets = vec![options.target.clone()];
    }
    setup::packages(&[Need::Fuzz])?;
    say("building the fuzz targets (some minutes the first time)");
    let mut build = cargo();
    build.args(["build", "--quiet", "--release", "--locked", "--manifest-path=fuzz/Cargo.toml"]);
    build.args(["--target", TRIPLE, "--target-dir=target/fuzz"]);
    run_command(build.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")))?;
    targets.iter().try_for_each(|target| fuzz(target, options.seconds))
}

/// Returns the names of all fuzz targets.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for path in entries(&root().join("fuzz/fuzz_targets"))? {
        names.extend(path.file_stem().and_then(|name| name.to_str()).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

fn fuzz(target: &str, seconds: u32) -> Result<()> {
    let build = root().join("target/fuzz");
    let (found, crashes) = (build.join("corpus").join(target), build.join("crashes").join(target));
    for directory in [&found, &crashes] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    say(&format!("{target}, {seconds} s"));
    let mut fuzzer = Command::new(build.join(TRIPLE).join("release").join(target));
    fuzzer.arg(format!("-max_total_time={seconds}"));
    // Executables in the corpus have 8 KB. An input that takes a second is worth a look.
    fuzzer.args([
        "-max_len=16384",
        "-timeout=5",
        "-report_slow_units=1",
        "-rss_limit_mb=512",
        "-print_final_stats=1",
    ]);
    fuzzer.arg(format!("-artifact_prefix={}/", crashes.display()));
    // libFuzzer writes new inputs to the first directory.
    fuzzer.arg(&found).arg(root().join("fuzz/corpus").join(target));
    fuzzer.args(entries(&root().join("fuzz/seeds"))?).arg(root().join("monitor-agent/frameworks"));
    run_command(&mut fuzzer).with_context(|| {
        format!(
            "{target} cannot take an input that is now in {}: put it into fuzz/corpus/{target} together with the fix",
            crashes.display()
        )
    })
}
