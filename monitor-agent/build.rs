//! Puts the eBPF object where the agent embeds it from.
//!
//! The object of the repository is taken, or the file that `MONITOR_EBPF_OBJECT` names. Without an object
//! there is no agent: a missing or empty one stops the build.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=MONITOR_EBPF_OBJECT");
    if let Err(text) = copy() {
        println!("cargo::error={text}");
    }
}

fn copy() -> Result<(), String> {
    let variable = |name: &str| env::var(name).map_err(|error| format!("{name}: {error}"));
    let object = match env::var_os("MONITOR_EBPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => match variable("CARGO_CFG_TARGET_ARCH")?.as_str() {
            "x86_64" => PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("ebpf/monitor.x86_64.bpf.o"),
            other => return Err(format!("this version is for x86-64 only, and not for {other}")),
        },
    };
    println!("cargo::rerun-if-changed={}", object.display());
    let content = fs::read(&object)
        .map_err(|error| format!("cannot read the eBPF object {}: {error}", object.display()))?;
    if !content.starts_with(b"\x7fELF") {
        return Err(format!("{} is not an eBPF object: run `cargo xtask ebpf`", object.display()));
    }
    let embedded = PathBuf::from(variable("OUT_DIR")?).join("monitor.bpf.o");
    fs::write(&embedded, content).map_err(|error| format!("cannot write {}: {error}", embedded.display()))
}
