//! Starts the project's tasks, or says that this cargo is too old for them.
//!
//! Any cargo can build this program; an old one stops at the workspace with words that help nobody.

use std::{env, os::unix::process::CommandExt, path::Path, process::Command};

/// The `rust-version` of the workspace, as minor version of Rust 1.
const MINOR: u32 = 95;

fn main() {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let version = Command::new(&cargo).arg("--version").output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let version = version.unwrap_or_default();
    if minor(&version).unwrap_or(0) < MINOR {
        eprintln!(
            "error: this needs cargo 1.{MINOR} or later, and this is {version:?}\n\
             With rustup: rustup update stable\n\
             On Debian 12 without rustup, as root: apt-get update && apt-get install cargo-web"
        );
        std::process::exit(1);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    if !root.join("target/debug/xtask").exists() {
        eprintln!("==> building the tasks (once, about a minute)");
    }
    let manifest = root.join("Cargo.toml");
    let mut task = Command::new(cargo);
    task.args(["run", "--quiet", "--locked", "--package", "xtask", "--manifest-path"]);
    let error = task.arg(manifest).arg("--").args(env::args_os().skip(1)).exec();
    eprintln!("error: cannot start cargo: {error}");
    std::process::exit(1);
}

/// The 95 of "cargo 1.95.0 (f2d3ce0bd 2026-03-21)".
fn minor(version: &str) -> Option<u32> {
    version.strip_prefix("cargo 1.")?.split('.').next()?.parse().ok()
}
